//! Secrets of steps: what the operator lets a step have, from the read to the revoke (docs/design/0024).
//!
//! Guarantees: a spec names a secret and nothing else, so that no path, server or field comes from a tenant; what the operator's file
//! does not give is denied, and the tenant is told the same text for each reason; no value is in a file of the agent's, in a log or in
//! a `Debug`.

mod acquire;
mod check;
mod file;
mod files;
mod fitting;
mod held;
pub mod identity;
mod judge;
pub mod leases;
mod local;
mod logout;
mod mapping;
mod plan;
mod revoke;
mod server;
mod service;
#[cfg(test)]
pub(crate) mod testing;
mod unwrapped;
mod wait;
mod watch;

pub use acquire::{AcquireError, Acquired, Step};
pub use check::{Busy, Checked, CheckedRule, CheckedServer, Finding, FindingState};
pub use file::{SecretsError, SecretsFile};
pub use held::{Asked, Held, Shown, Wanted as WantedLeases, Which};
pub use judge::{Asks, Tried};
pub use leases::{Grant, GrantId};
pub use local::{LocalError, read_credential, read_file};
pub use mapping::{Denied, Mapping, Rule, Source, TENANT_TEXT, Wanted};
pub use server::{Server, Times};
pub use service::{Counts, NewRules, OpenError, Options, Secrets, is_signed};

/// What evidence and the audit log name an accessor by.
fn digest_of(accessor: &str) -> String {
    crate::export::sha256_of(accessor.as_bytes()).to_string()
}
