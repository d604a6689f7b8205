//! Trust: which keys a reader believes, for which builder, and for which time.

use crate::authority::Authority;
use crate::key::{KeyError, PublicKey};
use crate::strict::{StrictError, parse_strict};
use crate::time;
use ampoule_spec::{FORMAT, UnixNanos};
use serde::Deserialize;

/// The largest trust file, in bytes.
const TRUST_BYTES_MAX: usize = 1 << 20;

/// A key that a reader believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    /// The key.
    pub key: PublicKey,
    /// The only builder that may sign with it; none: any, and the reader looks at the builder it is told.
    pub builder_id: Option<String>,
    /// The earliest end of a build that it may sign.
    pub valid_from: Option<UnixNanos>,
    /// The latest end of a build that it may sign.
    pub valid_to: Option<UnixNanos>,
}

impl TrustedKey {
    /// A key without a builder and without an end.
    pub fn any(key: PublicKey) -> Self {
        Self { key, builder_id: None, valid_from: None, valid_to: None }
    }
}

/// Why bytes are not a trust file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// They are too many.
    #[error("a trust file has at most {TRUST_BYTES_MAX} bytes, this has {bytes}")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// They are not strict JSON.
    #[error("the trust file is not strict JSON")]
    Json(#[from] StrictError),
    /// A field is missing, unknown or of another type.
    #[error("the trust file has another shape: {reason}")]
    Shape {
        /// What.
        reason: String,
    },
    /// The version is not known.
    #[error("version {found} of the trust file is not known")]
    Format {
        /// The version.
        found: u32,
    },
    /// There is no key.
    #[error("the trust file has no key")]
    Empty,
    /// A key is not one that Ampoule uses.
    #[error("keys[{at}].publicKey is refused")]
    Key {
        /// Its place, from 0.
        at: usize,
        /// Why.
        #[source]
        cause: KeyError,
    },
    /// A key is there twice: each key signs for one builder in one mode.
    #[error("keys[{at}] is there before")]
    Twice {
        /// The second place, from 0.
        at: usize,
    },
    /// A builder id is not one of Ampoule's.
    #[error("keys[{at}].builder is not https://HOST/builders/{{hermetic|host|dev}}/v1")]
    Builder {
        /// Its place, from 0.
        at: usize,
    },
    /// A time is odd, or the end is not after the beginning.
    #[error("keys[{at}] has no proper window: give RFC 3339 times in UTC, validFrom before validTo")]
    Window {
        /// Its place, from 0.
        at: usize,
    },
}

/// A parsed trust file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustFile {
    /// The keys, at least one.
    pub keys: Vec<TrustedKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrust {
    ampoule: u32,
    keys: Vec<RawKey>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawKey {
    public_key: String,
    builder: String,
    #[serde(default)]
    valid_from: Option<String>,
    #[serde(default)]
    valid_to: Option<String>,
}

impl TrustFile {
    /// Reads a trust file (docs/provenance.md).
    ///
    /// # Errors
    /// [`TrustError`] with the first rule that it breaks.
    pub fn parse(bytes: &[u8]) -> Result<Self, TrustError> {
        if bytes.len() > TRUST_BYTES_MAX {
            return Err(TrustError::TooLarge { bytes: bytes.len() });
        }
        let raw: RawTrust = serde_json::from_value(parse_strict(bytes)?)
            .map_err(|e| TrustError::Shape { reason: e.to_string() })?;
        if raw.ampoule != FORMAT {
            return Err(TrustError::Format { found: raw.ampoule });
        }
        if raw.keys.is_empty() {
            return Err(TrustError::Empty);
        }
        let mut keys: Vec<TrustedKey> = Vec::with_capacity(raw.keys.len());
        for (at, raw) in raw.keys.into_iter().enumerate() {
            let key = trusted(at, raw)?;
            if keys.iter().any(|other| other.key == key.key) {
                return Err(TrustError::Twice { at });
            }
            keys.push(key);
        }
        Ok(Self { keys })
    }
}

fn trusted(at: usize, raw: RawKey) -> Result<TrustedKey, TrustError> {
    let key = PublicKey::from_pem(&raw.public_key).map_err(|cause| TrustError::Key { at, cause })?;
    if Authority::of_builder_id(&raw.builder).is_none() {
        return Err(TrustError::Builder { at });
    }
    let time = |text: Option<String>| match text {
        Some(text) => time::parse(&text).map(Some).ok_or(TrustError::Window { at }),
        None => Ok(None),
    };
    let (valid_from, valid_to) = (time(raw.valid_from)?, time(raw.valid_to)?);
    if valid_from.zip(valid_to).is_some_and(|(from, to)| from >= to) {
        return Err(TrustError::Window { at });
    }
    Ok(TrustedKey { key, builder_id: Some(raw.builder), valid_from, valid_to })
}
