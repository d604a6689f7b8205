//! Who made something, by the provenance that is verified for it: what a job that uses it records.

use crate::bundle::Attestation;
use crate::statement::{Kind, ResourceDescriptor, sha256};
use crate::strict::parse_strict;
use crate::trust::TrustedKey;
use crate::verify::{ATTESTATION_BYTES_MAX, VerifyError, VerifyRequest, verify};
use ampoule_spec::{Code, JobId, MadeBy, OutputName, Sha256};
use std::collections::BTreeMap;

/// What a reader demands of provenance before what it is about is used.
#[derive(Debug, Clone, Copy)]
pub struct MadeByRequest<'a> {
    /// A DSSE envelope (one line of `.intoto.jsonl`) or a Sigstore bundle.
    pub attestation: &'a [u8],
    /// The keys that the reader believes.
    pub trusted: &'a [TrustedKey],
    /// The subject that is wanted; none: the statement has one.
    pub subject: Option<&'a str>,
    /// The builder that must have signed.
    pub builder: Option<&'a str>,
    /// Whether a `dev` builder will do.
    pub allow_dev: bool,
}

/// Why something is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MadeByError {
    /// The provenance does not verify.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// It has no such subject.
    #[error("it has no subject {wanted:?}; it has {has}")]
    NoSubject {
        /// The one that was wanted.
        wanted: String,
        /// Those that it has.
        has: String,
    },
    /// It has several subjects and none was named.
    #[error("it has several subjects ({has}); name one with subject = \"…\"")]
    Several {
        /// Those that it has.
        has: String,
    },
}

impl MadeByError {
    /// The code that a job with such an input ends with.
    pub fn code(&self) -> Code {
        match self {
            Self::Verify(error) => error.code(),
            Self::NoSubject { .. } | Self::Several { .. } => Code::JobInvalid,
        }
    }
}

/// What another job has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// SHA-256 of a file's bytes, or the tree digest of a directory.
    pub sha256: Sha256,
    /// Whether it is a directory.
    pub tree: bool,
    /// The job that made it, and whose word that is.
    pub by: MadeBy,
}

/// Verifies provenance and gives the digest of one of its subjects with who made it.
///
/// Nothing of the statement is believed before every check of [`verify`] has passed with that very digest.
///
/// # Errors
/// [`MadeByError`].
pub fn made_by(request: &MadeByRequest<'_>) -> Result<Made, MadeByError> {
    let bytes = request.attestation.len();
    if bytes > ATTESTATION_BYTES_MAX {
        return Err(VerifyError::TooLarge { bytes }.into());
    }
    let attestation = Attestation::parse(request.attestation).map_err(VerifyError::Envelope)?;
    let payload = attestation.envelope().payload();
    let Said { name, sha256: artifact, tree } = choose(&said_subjects(payload)?, request.subject)?;
    let verified = verify(&VerifyRequest {
        attestation: request.attestation,
        trusted: request.trusted,
        artifact,
        tree,
        kind: Kind::Provenance,
        builder: request.builder,
        source: None,
        params: &BTreeMap::new(),
        allow_dev: request.allow_dev,
    })?;
    // What verified above are the names of subjects and the invocation; an odd one was refused there.
    let odd = |reason: &str| VerifyError::Shape { reason: reason.to_owned() };
    let subject = verified.subjects.into_iter().find(|subject| *subject == name);
    let subject = subject.ok_or_else(|| odd("the subject is not the one that was verified"))?;
    let job = verified.invocation.strip_prefix("urn:uuid:").unwrap_or_default();
    let made_by = MadeBy {
        builder: verified.builder,
        key: verified.key_fingerprint,
        job: JobId::parse(job).map_err(|_| odd("the invocation is no job's"))?,
        subject: OutputName::parse(&subject).map_err(|_| odd("the subject is no output's name"))?,
        statement: sha256(payload),
    };
    Ok(Made { sha256: artifact, tree, by: made_by })
}

/// A subject as a statement says it.
#[derive(Clone)]
struct Said {
    name: String,
    sha256: Sha256,
    tree: bool,
}

/// The subjects that a statement says it has. Nothing of it is authentic yet.
fn said_subjects(payload: &[u8]) -> Result<Vec<Said>, VerifyError> {
    let value = parse_strict(payload).map_err(VerifyError::Payload)?;
    let subjects = value.get("subject").cloned().unwrap_or_default();
    let subjects: Vec<ResourceDescriptor> =
        serde_json::from_value(subjects).map_err(|e| VerifyError::Shape { reason: e.to_string() })?;
    let named = |subject: &ResourceDescriptor| {
        let (name, sha256) = (subject.name.clone()?, subject.sha256()?);
        Some(Said { name, sha256, tree: subject.is_tree() })
    };
    let named: Option<Vec<_>> = subjects.iter().map(named).collect();
    let none = || VerifyError::Shape { reason: "it has no subject with a name and a sha256".to_owned() };
    named.filter(|named| !named.is_empty()).ok_or_else(none)
}

fn choose(subjects: &[Said], wanted: Option<&str>) -> Result<Said, MadeByError> {
    let has = || {
        let names: Vec<String> =
            subjects.iter().take(8).map(|said| said.name.chars().take(128).collect()).collect();
        format!("{names:?}")
    };
    match (wanted, subjects) {
        (Some(wanted), _) => {
            let found = subjects.iter().find(|said| said.name == wanted);
            found.cloned().ok_or_else(|| MadeByError::NoSubject { wanted: wanted.to_owned(), has: has() })
        }
        (None, [one]) => Ok(one.clone()),
        (None, _) => Err(MadeByError::Several { has: has() }),
    }
}
