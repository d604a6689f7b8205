//! The log's own key: Ed25519, made at the first start.

use super::AuditError;
use crate::signing::{create_private, read_private};
use ampoule_evidence::tlog::{NoteKey, NoteSigner};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use std::path::Path;

/// The private key of a log, in this process's memory.
pub struct LogKey {
    pair: Ed25519KeyPair,
    origin: String,
    public: NoteKey,
}

impl std::fmt::Debug for LogKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogKey({})", self.public)
    }
}

impl LogKey {
    /// Reads the key of a log from a PKCS#8 PEM file that only its owner can read.
    ///
    /// # Errors
    /// [`AuditError::Key`] with what to do about it.
    pub fn load(path: &Path, origin: &str) -> Result<Self, AuditError> {
        let der = read_private(path, 0o077).map_err(|e| AuditError::Key(e.to_string()))?;
        let wrong = |reason: &str| AuditError::Key(format!("{} {reason}", path.display()));
        let pair = Ed25519KeyPair::from_pkcs8(&der)
            .map_err(|_| wrong("holds no Ed25519 private key in PKCS#8 PEM; put back the log's own"))?;
        let public =
            <[u8; 32]>::try_from(pair.public_key().as_ref()).map_err(|_| wrong("is no key of 32 bytes"))?;
        let public =
            NoteKey::new(origin, public).map_err(|e| AuditError::Key(format!("origin {origin:?}: {e}")))?;
        Ok(Self { pair, origin: origin.to_owned(), public })
    }

    /// The same, or makes a new one, mode 0600.
    ///
    /// # Errors
    /// As [`LogKey::load`].
    pub fn load_or_create(path: &Path, origin: &str) -> Result<Self, AuditError> {
        if !path.exists() {
            let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
                .map_err(|_| AuditError::Key("no key could be generated".to_owned()))?;
            create_private(path, key.as_ref()).map_err(|e| AuditError::Key(e.to_string()))?;
        }
        Self::load(path, origin)
    }

    /// The public key.
    pub fn public(&self) -> &NoteKey {
        &self.public
    }
}

impl NoteSigner for LogKey {
    fn name(&self) -> &str {
        &self.origin
    }

    fn public_key(&self) -> [u8; 32] {
        // Its length was looked at when it was read.
        self.pair.public_key().as_ref().try_into().unwrap_or_default()
    }

    fn sign(&self, text: &[u8]) -> [u8; 64] {
        // Ed25519 signatures have 64 bytes; any other is refused where the note is made.
        self.pair.sign(text).as_ref().try_into().unwrap_or([0; 64])
    }
}
