//! Whose word is believed: one public key, or a trust file with keys that are pinned to their builders.

use crate::chain::chain;
use crate::files::read_file;
use ampoule_evidence::{PublicKey, TrustFile, TrustedKey};
use std::path::{Path, PathBuf};

/// The most bytes of a key or trust file.
const BYTES_MAX: u64 = 1 << 20;

/// Which keys are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Believed<P> {
    /// One public key, PEM.
    Key(P),
    /// A trust file.
    Trust(P),
}

/// Why nobody is believed.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct TrustedError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
    /// Whether it cannot be read at all.
    pub unreadable: bool,
}

impl<P: AsRef<Path>> Believed<P> {
    /// The file that says it.
    pub fn file(&self) -> &Path {
        let (Self::Key(path) | Self::Trust(path)) = self;
        path.as_ref()
    }

    /// Reads the keys.
    ///
    /// # Errors
    /// [`TrustedError`].
    pub fn keys(&self) -> Result<Vec<TrustedKey>, TrustedError> {
        let path = self.file();
        let wrong = |reason: String, unreadable| TrustedError { path: path.to_owned(), reason, unreadable };
        let bytes = read_file(path, BYTES_MAX).map_err(|e| wrong(e.to_string(), true))?;
        match self {
            Self::Trust(_) => Ok(TrustFile::parse(&bytes).map_err(|e| wrong(chain(&e), false))?.keys),
            Self::Key(_) => {
                let text =
                    String::from_utf8(bytes).map_err(|_| wrong("it is not a PEM file".to_owned(), false))?;
                let key = PublicKey::from_pem(&text).map_err(|e| wrong(e.to_string(), false))?;
                Ok(vec![TrustedKey::any(key)])
            }
        }
    }
}
