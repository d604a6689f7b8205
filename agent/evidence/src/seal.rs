//! Sealing: one signature over a statement, in two files.

use crate::bundle::BUNDLE_MEDIA_TYPE;
use crate::dsse::{PAYLOAD_TYPE, pae};
use crate::key::{KeyError, PublicKey, SignatureRefused};
use crate::statement::{UnsignedStatement, sha256};
use crate::verify::ATTESTATION_BYTES_MAX;
use ampoule_spec::{Code, Sha256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// Why a signer gave no signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the signer gave no signature: {reason}")]
pub struct SignerError {
    /// Why; no secret.
    pub reason: String,
}

/// A private key that lives elsewhere: ECDSA on P-256 with SHA-256, signatures in ASN.1 DER.
///
/// Signing draws randomness and may reach another process, so its implementations are outside this crate.
pub trait Signer {
    /// The DER of the public key's SubjectPublicKeyInfo.
    fn public_key_spki_der(&self) -> &[u8];

    /// Signs the SHA-256 digest of these bytes.
    ///
    /// # Errors
    /// [`SignerError`] if there is no signature.
    fn sign(&self, pae: &[u8]) -> Result<Vec<u8>, SignerError>;
}

/// Why a statement was not sealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The signer's public key is not one that Ampoule uses.
    #[error("the signer's public key is refused")]
    Key(#[from] KeyError),
    /// The signer gave no signature.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The fresh signature does not verify with the signer's own public key.
    #[error("the fresh signature does not verify")]
    Signature(#[from] SignatureRefused),
    /// The files have no JSON form.
    #[error("the envelope has no JSON form")]
    Json(#[from] serde_json::Error),
    /// No verifier would read it.
    #[error(
        "the statement has {bytes} bytes, and its attestation would be larger than the {ATTESTATION_BYTES_MAX} bytes that are read"
    )]
    TooLarge {
        /// The statement's length.
        bytes: usize,
    },
}

/// The most bytes of an envelope or bundle beside the statement: names, one signature, a fingerprint.
const AROUND_BYTES_MAX: usize = 4 << 10;

impl SealError {
    /// The code of the job's end.
    pub fn code(&self) -> Code {
        Code::ProvenanceRefused
    }
}

/// A signed statement in its two forms, with the same signature bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// `.intoto.jsonl`: the DSSE envelope as one line, line feed included.
    pub envelope_json_line: String,
    /// `.sigstore.json`: the Sigstore bundle v0.3.
    pub bundle_json: String,
    /// SHA-256 of the statement's bytes.
    pub statement_sha256: Sha256,
    /// The key's OpenSSH fingerprint.
    pub key_fingerprint: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EnvelopeOut<'a> {
    payload: &'a str,
    payload_type: &'static str,
    signatures: [SignatureOut<'a>; 1],
}

#[derive(Serialize)]
struct SignatureOut<'a> {
    keyid: &'a str,
    sig: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BundleOut<'a> {
    media_type: &'static str,
    verification_material: MaterialOut<'a>,
    dsse_envelope: EnvelopeOut<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MaterialOut<'a> {
    public_key: KeyOut<'a>,
}

#[derive(Serialize)]
struct KeyOut<'a> {
    hint: &'a str,
}

/// Signs a statement once, checks the signature, and writes both files.
///
/// # Errors
/// [`SealError`] if the files would be larger than [`verify`](crate::verify()) reads, or there is no signature that verifies with the
/// signer's own public key.
pub fn seal(statement: &UnsignedStatement, signer: &dyn Signer) -> Result<Sealed, SealError> {
    let bytes = statement.bytes().len();
    let encoded = base64::encoded_len(bytes, true).and_then(|encoded| encoded.checked_add(AROUND_BYTES_MAX));
    if encoded.is_none_or(|encoded| encoded > ATTESTATION_BYTES_MAX) {
        return Err(SealError::TooLarge { bytes });
    }
    seal_bytes(statement.bytes(), signer)
}

/// As [`seal`] for any bytes: for this crate's forgery tests alone, so that no caller has a signing oracle.
pub(crate) fn seal_bytes(payload: &[u8], signer: &dyn Signer) -> Result<Sealed, SealError> {
    let key = PublicKey::from_spki_der(signer.public_key_spki_der())?;
    let pae = pae(payload);
    let signature = signer.sign(&pae)?;
    key.verify(&pae, &signature)?;
    let (payload_text, sig) = (STANDARD.encode(payload), STANDARD.encode(&signature));
    let (fingerprint, hint) = (key.fingerprint(), key.hint());
    let envelope = |keyid| EnvelopeOut {
        payload: &payload_text,
        payload_type: PAYLOAD_TYPE,
        signatures: [SignatureOut { keyid, sig: &sig }],
    };
    let bundle = BundleOut {
        media_type: BUNDLE_MEDIA_TYPE,
        verification_material: MaterialOut { public_key: KeyOut { hint: &hint } },
        dsse_envelope: envelope(""),
    };
    Ok(Sealed {
        envelope_json_line: serde_json::to_string(&envelope(&fingerprint))? + "\n",
        bundle_json: serde_json::to_string(&bundle)? + "\n",
        statement_sha256: sha256(payload),
        key_fingerprint: fingerprint,
    })
}
