//! DSSE v1 envelopes: the pre-authentication encoding, and a parser without leniency.

use crate::strict::{StrictError, has_null, parse_strict};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

/// The payload type of every envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// The bytes that are signed: DSSE's PAE, with lengths in bytes.
pub fn pae(payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

/// Why bytes are not an envelope or bundle that Ampoule reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// They are not strict JSON.
    #[error("it is not strict JSON")]
    Json(#[from] StrictError),
    /// They are JSON, but neither an envelope nor a bundle.
    #[error("it is neither a DSSE envelope nor a Sigstore bundle")]
    UnknownForm,
    /// A field is missing, unknown or of another type.
    #[error("it has another shape: {reason}")]
    Shape {
        /// What.
        reason: String,
    },
    /// A value is null.
    #[error("a value is null")]
    Null,
    /// The payload is of another type.
    #[error("the payload type is {found:?}, not {PAYLOAD_TYPE}")]
    PayloadType {
        /// The type found.
        found: String,
    },
    /// A field is not standard base64 with padding.
    #[error("{field} is not standard base64")]
    Base64 {
        /// The field.
        field: &'static str,
    },
    /// There is no signature.
    #[error("there is no signature")]
    Unsigned,
    /// There are more signatures than were asked for.
    #[error("there are {count} signatures, at most {max} are read")]
    Signatures {
        /// How many.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// The bundle is of another version.
    #[error("the bundle's media type is {found:?}")]
    MediaType {
        /// The type found.
        found: String,
    },
    /// The key id in a bundle is not empty: the hint alone names the key.
    #[error("the signature in a bundle has a key id")]
    BundleKeyid,
    /// The bundle has log entries, which this version cannot check.
    #[error("the bundle has transparency log entries, which this version does not check")]
    LogEntries,
}

/// One signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// What the envelope calls the key; empty and absent are the same.
    pub keyid: String,
    /// The signature's bytes.
    pub bytes: Vec<u8>,
}

/// An envelope whose payload is the exact bytes that were signed. Nothing in it is authentic yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    payload: Vec<u8>,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawEnvelope {
    payload: String,
    payload_type: String,
    signatures: Vec<RawSignature>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSignature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

impl Envelope {
    /// Reads an envelope: one JSON object, at most one line feed after it, at most `signatures_max` signatures.
    ///
    /// # Errors
    /// [`EnvelopeError`] for anything that another reader could read differently.
    pub fn parse(bytes: &[u8], signatures_max: usize) -> Result<Self, EnvelopeError> {
        Self::from_value(parse_line(bytes)?, signatures_max)
    }

    pub(crate) fn from_value(value: Value, signatures_max: usize) -> Result<Self, EnvelopeError> {
        if has_null(&value) {
            return Err(EnvelopeError::Null);
        }
        let raw: RawEnvelope =
            serde_json::from_value(value).map_err(|e| EnvelopeError::Shape { reason: e.to_string() })?;
        if raw.payload_type != PAYLOAD_TYPE {
            return Err(EnvelopeError::PayloadType { found: raw.payload_type });
        }
        let count = raw.signatures.len();
        if count == 0 {
            return Err(EnvelopeError::Unsigned);
        }
        if count > signatures_max {
            return Err(EnvelopeError::Signatures { count, max: signatures_max });
        }
        let signatures = raw.signatures.into_iter().map(|signature| {
            let bytes = decode("sig", &signature.sig)?;
            Ok(Signature { keyid: signature.keyid, bytes })
        });
        let signatures = signatures.collect::<Result<_, EnvelopeError>>()?;
        Ok(Self { payload: decode("payload", &raw.payload)?, signatures })
    }

    /// The exact bytes that were signed.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// The signatures, at least one.
    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// The bytes over which the signatures are.
    pub fn pae(&self) -> Vec<u8> {
        pae(&self.payload)
    }
}

/// Parses one JSON document that begins with its first byte and ends with it or with one line feed.
pub(crate) fn parse_line(bytes: &[u8]) -> Result<Value, EnvelopeError> {
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if line.first() != Some(&b'{') || line.last() != Some(&b'}') {
        return Err(EnvelopeError::UnknownForm);
    }
    Ok(parse_strict(line)?)
}

fn decode(field: &'static str, text: &str) -> Result<Vec<u8>, EnvelopeError> {
    STANDARD.decode(text).map_err(|_| EnvelopeError::Base64 { field })
}
