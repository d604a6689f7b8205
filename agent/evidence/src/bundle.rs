//! Sigstore bundles v0.3 that hold a DSSE envelope and name a bare key.
//!
//! Ampoule's carry no log entry yet. One with entries is refused rather than read without them: a reader
//! that skips a check it cannot make says more than it knows.

use crate::dsse::{Envelope, EnvelopeError, parse_line};
use crate::strict::has_null;
use serde::Deserialize;
use serde_json::Value;

/// The media type of every bundle.
pub const BUNDLE_MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A bundle. Nothing in it is authentic yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    hint: String,
    envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawBundle {
    media_type: String,
    verification_material: RawMaterial,
    dsse_envelope: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawMaterial {
    public_key: RawKey,
    #[serde(default)]
    tlog_entries: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    hint: String,
}

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    /// [`EnvelopeError`] for another version, a certificate, log entries, or a loose envelope.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        Self::from_value(parse_line(bytes)?)
    }

    pub(crate) fn from_value(value: Value) -> Result<Self, EnvelopeError> {
        if has_null(&value) {
            return Err(EnvelopeError::Null);
        }
        let raw: RawBundle =
            serde_json::from_value(value).map_err(|e| EnvelopeError::Shape { reason: e.to_string() })?;
        if raw.media_type != BUNDLE_MEDIA_TYPE {
            return Err(EnvelopeError::MediaType { found: raw.media_type });
        }
        if !raw.verification_material.tlog_entries.is_empty() {
            return Err(EnvelopeError::LogEntries);
        }
        // A bundle has exactly one signature.
        let envelope = Envelope::from_value(raw.dsse_envelope, 1)?;
        if envelope.signatures().iter().any(|signature| !signature.keyid.is_empty()) {
            return Err(EnvelopeError::BundleKeyid);
        }
        Ok(Self { hint: raw.verification_material.public_key.hint, envelope })
    }

    /// What the bundle calls its key.
    pub fn hint(&self) -> &str {
        &self.hint
    }

    /// The envelope in it.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }
}

/// An attestation in either form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Attestation {
    /// A line of `.intoto.jsonl`.
    Dsse(Envelope),
    /// A `.sigstore.json`.
    Bundle(Bundle),
}

impl Attestation {
    /// Reads either form with exactly one signature.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let value = parse_line(bytes)?;
        if value.get("mediaType").is_some() {
            Bundle::from_value(value).map(Self::Bundle)
        } else if value.get("payload").is_some() {
            Envelope::from_value(value, 1).map(Self::Dsse)
        } else {
            Err(EnvelopeError::UnknownForm)
        }
    }

    pub(crate) fn envelope(&self) -> &Envelope {
        match self {
            Self::Dsse(envelope) => envelope,
            Self::Bundle(bundle) => bundle.envelope(),
        }
    }

    /// The form's name for people.
    pub(crate) fn form(&self) -> &'static str {
        match self {
            Self::Dsse(_) => "DSSE envelope",
            Self::Bundle(_) => "Sigstore bundle v0.3",
        }
    }
}
