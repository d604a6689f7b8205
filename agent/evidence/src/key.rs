//! Public keys: ECDSA on P-256 and nothing else, with the two names that other tools give them.

use crate::statement::sha256;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use std::fmt;

/// DER of a SubjectPublicKeyInfo for an uncompressed point on P-256, up to the point (RFC 5480 §2).
const SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed point on P-256.
const POINT_BYTES: usize = 65;
/// Longer texts are not read as a key.
const PEM_BYTES_MAX: usize = 16 << 10;

/// Object identifiers, in DER, by which other keys are named in an error.
const OTHERS: [(&str, &[u8]); 5] = [
    ("Ed25519", &[0x06, 0x03, 0x2b, 0x65, 0x70]),
    ("RSA", &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01]),
    ("ECDSA on P-384", &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22]),
    ("ECDSA on P-521", &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23]),
    ("ECDSA on secp256k1", &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a]),
];

/// Why a text is not a key that Ampoule uses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It is not one PEM block of a public key.
    #[error("it is not one PEM block \"PUBLIC KEY\"")]
    NotPem,
    /// It is a private key.
    #[error("it is a private key; give the public one (openssl pkey -in KEY -pubout)")]
    Private,
    /// It is a certificate.
    #[error("it is a certificate; give the public key alone (openssl x509 -in CERT -pubkey -noout)")]
    Certificate,
    /// It is a key of another algorithm.
    #[error("it is a key for {algorithm}; only ECDSA on P-256 is used")]
    Algorithm {
        /// The algorithm.
        algorithm: &'static str,
    },
    /// It is a P-256 key in an encoding that Ampoule does not read.
    #[error("it is not a SubjectPublicKeyInfo of an uncompressed point on P-256")]
    Encoding,
    /// The point is not on the curve.
    #[error("its point is not on the curve P-256")]
    NotOnCurve,
}

/// A signature that does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not one of this key over these bytes")]
pub struct SignatureRefused;

/// A public key for ECDSA on P-256 with SHA-256.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    point: [u8; POINT_BYTES],
}

impl PublicKey {
    /// Reads a key from PEM: exactly one block `PUBLIC KEY`.
    ///
    /// # Errors
    /// [`KeyError`] that says what the text is instead.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        if text.len() > PEM_BYTES_MAX {
            return Err(KeyError::NotPem);
        }
        if text.contains("PRIVATE KEY-----") {
            return Err(KeyError::Private);
        }
        if text.contains("-----BEGIN CERTIFICATE-----") {
            return Err(KeyError::Certificate);
        }
        let body = text
            .trim_ascii()
            .strip_prefix("-----BEGIN PUBLIC KEY-----")
            .and_then(|rest| rest.strip_suffix("-----END PUBLIC KEY-----"))
            .ok_or(KeyError::NotPem)?;
        let body: String = body.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        Self::from_spki_der(&STANDARD.decode(body).map_err(|_| KeyError::NotPem)?)
    }

    /// Reads a key from the DER of its SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// [`KeyError`] that says what the bytes are instead.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, KeyError> {
        let point = der.strip_prefix(&SPKI_HEAD).and_then(|point| <[u8; POINT_BYTES]>::try_from(point).ok());
        let Some(point) = point.filter(|point| point.first() == Some(&4)) else {
            let other = OTHERS.iter().find(|(_, oid)| der.windows(oid.len()).any(|window| window == *oid));
            return Err(other.map_or(KeyError::Encoding, |(algorithm, _)| KeyError::Algorithm { algorithm }));
        };
        let key = Self { point };
        key.parsed().map_err(|SignatureRefused| KeyError::NotOnCurve)?;
        Ok(key)
    }

    fn parsed(&self) -> Result<ParsedPublicKey, SignatureRefused> {
        ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.point).map_err(|_| SignatureRefused)
    }

    /// The DER of its SubjectPublicKeyInfo.
    pub fn spki_der(&self) -> Vec<u8> {
        [SPKI_HEAD.as_slice(), self.point.as_slice()].concat()
    }

    /// The key's OpenSSH fingerprint, `SHA256:` and unpadded base64: what `ssh-keygen -l` prints, and the
    /// `keyid` of an envelope.
    pub fn fingerprint(&self) -> String {
        // RFC 5656 §3.1: string "ecdsa-sha2-nistp256", string "nistp256", string Q.
        let mut blob = Vec::with_capacity(104);
        for part in [b"ecdsa-sha2-nistp256".as_slice(), b"nistp256", &self.point] {
            // Every part is shorter than 2^8.
            blob.extend_from_slice(&[0, 0, 0, u8::try_from(part.len()).unwrap_or(u8::MAX)]);
            blob.extend_from_slice(part);
        }
        format!("SHA256:{}", STANDARD_NO_PAD.encode(sha256(&blob).as_bytes()))
    }

    /// The key's name in a Sigstore bundle: base64 of SHA-256 of the SubjectPublicKeyInfo.
    pub fn hint(&self) -> String {
        STANDARD.encode(sha256(&self.spki_der()).as_bytes())
    }

    /// Checks an ASN.1 DER signature over a message.
    ///
    /// # Errors
    /// [`SignatureRefused`] for any other message, key or encoding.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SignatureRefused> {
        self.parsed()?.verify_sig(message, signature).map_err(|_| SignatureRefused)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}
