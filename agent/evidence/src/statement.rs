//! in-toto Statement v1 and ResourceDescriptor: exactly their fields, nothing beside them.
//!
//! Anyone may read a [`Statement`]; only this crate makes an [`UnsignedStatement`], and only that is sealed.

use crate::canonical::{NotCanonical, canonical_json};
use crate::dependencies::TREE_MEDIA_TYPE;
use ampoule_spec::{OutputForm, Sha256};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The `_type` of every statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// The most subjects of one statement (limit of sigstore-go and sigstore-rs).
pub(crate) const SUBJECTS_MAX: usize = 1024;

/// Which of Ampoule's two statements it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SLSA provenance of a job that succeeded.
    Provenance,
    /// The run attestation, which every admitted job gets.
    Run,
}

impl Kind {
    /// The kind's name for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provenance => "provenance",
            Self::Run => "run attestation",
        }
    }
}

/// An in-toto Statement v1 with a predicate of one type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement<P> {
    #[serde(rename = "_type")]
    type_uri: String,
    subject: Vec<ResourceDescriptor>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: P,
}

impl<P> Statement<P> {
    pub(crate) fn new(predicate_type: String, subject: Vec<ResourceDescriptor>, predicate: P) -> Self {
        Self { type_uri: STATEMENT_TYPE.to_owned(), subject, predicate_type, predicate }
    }

    /// `_type` as it stands.
    pub fn type_uri(&self) -> &str {
        &self.type_uri
    }

    /// What the statement is about.
    pub fn subject(&self) -> &[ResourceDescriptor] {
        &self.subject
    }

    /// What the predicate is.
    pub fn predicate_type(&self) -> &str {
        &self.predicate_type
    }

    /// The predicate.
    pub fn predicate(&self) -> &P {
        &self.predicate
    }
}

/// An in-toto ResourceDescriptor. Ampoule's always carry a digest, and text alone in their annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceDescriptor {
    /// Its name, unique in its list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is, as an absolute URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Algorithm to lower-case hex. Ampoule writes and accepts exactly `sha256`; for a git input, exactly `gitCommit`.
    pub digest: BTreeMap<String, String>,
    /// Its bytes in standard base64, where they are fewer than 1,024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Where it was fetched, where that differs from `uri`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_location: Option<String>,
    /// Its media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What Ampoule says about it beyond in-toto's fields; every key begins with `ampoule_`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl ResourceDescriptor {
    /// A descriptor of named bytes.
    pub fn named(name: impl Into<String>, sha256: Sha256) -> Self {
        Self { name: Some(name.into()), digest: sha256_only(sha256), ..Self::default() }
    }

    /// A descriptor of something with a URI.
    pub fn at(uri: impl Into<String>, sha256: Sha256) -> Self {
        Self { uri: Some(uri.into()), digest: sha256_only(sha256), ..Self::default() }
    }

    pub(crate) fn with_media_type(mut self, media_type: &str) -> Self {
        self.media_type = Some(media_type.to_owned());
        self
    }

    pub(crate) fn with_annotation(mut self, key: &str, value: impl Into<String>) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// Something by its tree digest, where that is what the digest is.
    pub(crate) fn with_form(self, form: OutputForm) -> Self {
        match form {
            OutputForm::Tree => self.with_media_type(TREE_MEDIA_TYPE),
            OutputForm::File | OutputForm::TarZst => self,
        }
    }

    /// Whether the digest is that of a directory's tree and not of a file's bytes.
    pub fn is_tree(&self) -> bool {
        self.media_type.as_deref() == Some(TREE_MEDIA_TYPE)
    }

    /// The digest, if it is exactly one SHA-256 in lower-case hex.
    pub fn sha256(&self) -> Option<Sha256> {
        match self.digest.first_key_value() {
            Some((name, hex)) if name == "sha256" && self.digest.len() == 1 => Sha256::parse(hex).ok(),
            _ => None,
        }
    }
}

/// A digest map with SHA-256 alone.
pub(crate) fn sha256_only(sha256: Sha256) -> BTreeMap<String, String> {
    BTreeMap::from([("sha256".to_owned(), sha256.to_string())])
}

/// The finished bytes of a statement of this crate's making: what [`crate::seal`] takes, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsignedStatement {
    kind: Kind,
    bytes: Vec<u8>,
}

impl UnsignedStatement {
    pub(crate) fn of<P: Serialize>(kind: Kind, statement: &Statement<P>) -> Result<Self, NotCanonical> {
        Ok(Self { kind, bytes: canonical_json(statement)? })
    }

    /// Which statement it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The bytes that are signed: canonical JSON.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// SHA-256 of the bytes.
    pub fn sha256(&self) -> Sha256 {
        sha256(&self.bytes)
    }
}

/// SHA-256 of bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Sha256 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    Sha256::new(out)
}
