//! Signing keys in files: a development key made on first use, or the operator's own.
//!
//! (A signer process of its own comes later; it will implement the same trait.)

use ampoule_evidence::{PublicKey, Signer, SignerError};
use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The most bytes of a key file.
const KEY_BYTES_MAX: u64 = 16 << 10;

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// The file cannot be read or made.
    #[error("the key file {path} cannot be {doing}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Others can read the key.
    #[error("the key file {path} can be read by others (mode {mode:03o}); run chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The key belongs to somebody else, who knows it.
    #[error("the key file {path} belongs to another user; copy it to a file of your own")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// It is not a key that Ampoule signs with.
    #[error(
        "{path} holds no ECDSA P-256 private key in PKCS#8 PEM: {reason}; make one with: openssl genpkey \
         -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {path}"
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// The key is in Vault's Transit and cannot be used.
    #[error("signing.transit: {0}")]
    Transit(String),
}

impl SigningError {
    /// The bounded code.
    pub fn code(&self) -> ampoule_spec::Code {
        match self {
            Self::File { source, .. } => crate::files::code_of(source),
            _ => ampoule_spec::Code::FileUnusable,
        }
    }
}

/// A private key in this process's memory.
pub struct FileSigner {
    pair: EcdsaKeyPair,
    spki: Vec<u8>,
}

impl std::fmt::Debug for FileSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FileSigner(..)")
    }
}

impl Signer for FileSigner {
    fn public_key_spki_der(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, pae: &[u8]) -> Result<Vec<u8>, SignerError> {
        let signature = self.pair.sign(&SystemRandom::new(), pae);
        signature
            .map(|s| s.as_ref().to_vec())
            .map_err(|_| SignerError { reason: "the library refused to sign".to_owned() })
    }
}

impl FileSigner {
    /// Reads a PKCS#8 PEM file that only its owner can read.
    ///
    /// # Errors
    /// [`SigningError`] with what to do about it.
    pub fn load(path: &Path) -> Result<Self, SigningError> {
        Self::load_hidden_by(path, 0o077)
    }

    /// Reads a credential that systemd has handed over (`systemd.exec(5)`). Where it grants access by an access control
    /// list, the list's mask shows as the group's read bit; the directory around it is the unit's alone.
    ///
    /// # Errors
    /// As [`FileSigner::load`].
    pub fn load_credential(path: &Path) -> Result<Self, SigningError> {
        Self::load_hidden_by(path, 0o037)
    }

    fn load_hidden_by(path: &Path, forbidden: u32) -> Result<Self, SigningError> {
        let der = read_private(path, forbidden)?;
        let unusable = |reason| SigningError::Unusable { path: path.to_owned(), reason };
        Self::from_pkcs8(&der).ok_or_else(|| unusable("it is a key of another kind"))
    }

    /// Reads the key at `path`, or makes a new one there, mode 0600, for development.
    ///
    /// # Errors
    /// As [`FileSigner::load`].
    pub fn load_or_create(path: &Path) -> Result<Self, SigningError> {
        if path.exists() {
            return Self::load(path);
        }
        let unusable =
            || SigningError::Unusable { path: path.to_owned(), reason: "no key could be generated" };
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| unusable())?;
        create_private(path, document.as_ref())?;
        Self::load(path)
    }

    fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).ok()?;
        let spki = pair.public_key().as_der().ok()?.as_ref().to_vec();
        Some(Self { pair, spki })
    }

    /// The public key as PEM, and its fingerprint.
    ///
    /// # Errors
    /// [`SignerError`] if the library gave a key that is not one of P-256.
    pub fn public(&self) -> Result<(String, String), SignerError> {
        public_of(self)
    }
}

/// The public key of a signer as PEM, and its fingerprint.
pub(crate) fn public_of(signer: &dyn Signer) -> Result<(String, String), SignerError> {
    let spki = signer.public_key_spki_der();
    let key = PublicKey::from_spki_der(spki).map_err(|e| SignerError { reason: e.to_string() })?;
    Ok((to_pem("PUBLIC KEY", spki), key.fingerprint()))
}

/// The DER of a private key in a PKCS#8 PEM file, whose mode has none of the `forbidden` bits.
pub(crate) fn read_private(path: &Path, forbidden: u32) -> Result<Zeroizing<Vec<u8>>, SigningError> {
    let failed = |source| SigningError::File { path: path.to_owned(), doing: "read", source };
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let mode = meta.mode() & 0o777;
    if mode & forbidden != 0 {
        return Err(SigningError::Exposed { path: path.to_owned(), mode });
    }
    if ![0, rustix::process::geteuid().as_raw()].contains(&meta.uid()) {
        return Err(SigningError::Foreign { path: path.to_owned() });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(KEY_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    let unusable = |reason| SigningError::Unusable { path: path.to_owned(), reason };
    Ok(Zeroizing::new(from_pem(&text).ok_or_else(|| unusable("it is not a block PRIVATE KEY"))?))
}

/// Writes a new private key, mode 0600. Where there is one already, that one stays.
pub(crate) fn create_private(path: &Path, der: &[u8]) -> Result<(), SigningError> {
    let failed = |source| SigningError::File { path: path.to_owned(), doing: "made", source };
    let pem = Zeroizing::new(to_pem("PRIVATE KEY", der));
    // Two first runs at once: written aside and linked into place, one wins and both read its key.
    let aside = path.with_extension(format!("new-{}", std::process::id()));
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside).map_err(failed)?;
    file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    let linked = std::fs::hard_link(&aside, path);
    let _ = std::fs::remove_file(&aside);
    match linked {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(failed(error)),
        _ => Ok(()),
    }
}

fn from_pem(text: &str) -> Option<Vec<u8>> {
    let body = text.trim().strip_prefix("-----BEGIN PRIVATE KEY-----")?;
    let body = Zeroizing::new(
        body.strip_suffix("-----END PRIVATE KEY-----")?.split_whitespace().collect::<String>(),
    );
    STANDARD.decode(body.as_bytes()).ok()
}

pub(crate) fn to_pem(label: &str, der: &[u8]) -> String {
    let text = Zeroizing::new(STANDARD.encode(der));
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = next;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn made_key_is_private_and_signs_what_its_public_key_verifies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dev.pem");
        let signer = FileSigner::load_or_create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let again = FileSigner::load_or_create(&path).unwrap();
        assert_eq!(signer.public_key_spki_der(), again.public_key_spki_der());
        let key = PublicKey::from_pem(&signer.public().unwrap().0).unwrap();
        key.verify(b"text", &signer.sign(b"text").unwrap()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn exposed_or_foreign_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.pem");
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(matches!(FileSigner::load(&path), Err(SigningError::Exposed { .. })));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(matches!(FileSigner::load(&path), Err(SigningError::Unusable { .. })));
        std::fs::write(&path, "not a key").unwrap();
        assert!(matches!(FileSigner::load(&path), Err(SigningError::Unusable { .. })));
    }
}
