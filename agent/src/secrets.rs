//! Secrets of steps: what the operator lets a step have, from the read to the revoke (docs/design/0024).
//!
//! Guarantees: a spec names a secret and nothing else, so that no path, server or field comes from a tenant; what the operator's file
//! does not give is denied, and the tenant is told the same text for each reason; no value is in a file of the agent's, in a log or in
//! a `Debug`.

mod file;
pub mod identity;
pub mod leases;
mod local;
mod mapping;

pub use file::{SecretsError, SecretsFile};
pub use local::{LocalError, read_credential, read_file};
pub use mapping::{Delivery, Denied, Mapping, Rule, Source, TENANT_TEXT, Wanted};

use zeroize::{Zeroize, Zeroizing};

/// The largest value, in bytes: the runner takes none that is larger.
pub const VALUE_BYTES_MAX: usize = 64 << 10;
/// The smallest value, in bytes: a shorter one cannot be masked.
pub const VALUE_BYTES_MIN: usize = 8;

/// A value: wiped when it is dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(Zeroizing<Vec<u8>>);

impl Value {
    /// The bytes, which it takes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Value(..)")
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
