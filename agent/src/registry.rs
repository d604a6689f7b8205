//! Registries of images (OCI distribution-spec 1.1): pulling by digest, resolving tags, pushing outputs.
//!
//! What is guaranteed: whatever is handed on has the digest that was asked for; of credentials only the file that
//! was named is read, and they are shown to nobody but the registry and its token service. What is not: layers are
//! not unpacked and not read here.

mod answer;
mod auth_file;
mod challenge;
mod pull;
mod push;
mod reference;
mod session;
#[cfg(test)]
mod testing;
mod wire;

pub use auth_file::AuthFile;
pub(crate) use pull::Document;
pub(crate) use push::{Called, INDEX_TYPE, Piece, Source};
pub(crate) use reference::is_tag;
pub use reference::{Reference, ReferenceError, SCHEME};
pub(crate) use session::{Purpose, Session};

use crate::inputs::InputError;
use crate::sources::Policy;
use ampoule_spec::Sha256;
use wire::Wire;

/// How registries are reached, and what they are shown.
#[derive(Debug)]
pub struct Access {
    auth: Option<AuthFile>,
    wire: Wire,
}

impl Access {
    /// Reaches the registries that this policy allows, with the credentials of this file besides those of the policy.
    pub fn new(policy: Policy, auth: Option<AuthFile>) -> Self {
        Self { auth, wire: Wire::new(policy) }
    }
}

/// The digest that a reference's tag names now: of a manifest, or of an index. Without a tag it is `latest`, as
/// everywhere.
///
/// # Errors
/// [`InputError`].
pub async fn resolve_tag(access: &Access, reference: &Reference) -> Result<Sha256, InputError> {
    let tag = reference.tag.clone().unwrap_or_else(|| "latest".to_owned());
    Session::new(access, reference, Purpose::Pull)?.resolve(&tag).await
}
