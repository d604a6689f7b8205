//! Verification: every check in a fixed order, each with its own error, and nothing skipped.
//!
//! 1 the envelope is strict; 2 its key is trusted; 3 the signature is that key's over the exact bytes; 4 the
//! payload is an in-toto statement v1; 5 of the expected predicate type; 6 with well-formed subjects, one of
//! which is the artifact; 7 by the builder that the key is trusted for, and that the reader expects; 8 not by a
//! `dev` builder unless allowed; 9 of the known build type, without unknown parameters; 10 every field follows
//! its rule; 11 the source and parameters are the expected ones; 12 the key was valid at the end of the build.

use crate::authority::{Authority, BuilderMode};
use crate::bundle::Attestation;
use crate::dsse::EnvelopeError;
use crate::parameters::ExternalParameters;
use crate::rules::{self, FieldError, SubjectError};
use crate::run::RunStatement;
use crate::slsa::{PROVENANCE_PREDICATE_TYPE, ProvenanceStatement};
use crate::statement::{Kind, ResourceDescriptor, STATEMENT_TYPE};
use crate::strict::{StrictError, has_null, parse_strict};
use crate::time;
use crate::trust::TrustedKey;
use ampoule_spec::{Code, Outcome, Sha256, UnixNanos};
use serde_json::Value;
use std::collections::BTreeMap;

/// The largest attestation, in bytes.
pub const ATTESTATION_BYTES_MAX: usize = 16 << 20;

/// What is to be verified, and what the reader expects of it.
#[derive(Debug, Clone, Copy)]
pub struct VerifyRequest<'a> {
    /// A DSSE envelope (one line of `.intoto.jsonl`) or a Sigstore bundle.
    pub attestation: &'a [u8],
    /// The keys that the reader believes.
    pub trusted: &'a [TrustedKey],
    /// SHA-256 of the artifact's bytes; for a run attestation, of `report.json` or of a log.
    pub artifact: Sha256,
    /// Whether `artifact` is the tree digest of a directory. A file can be made whose bytes have that digest, so the
    /// two are never taken for each other.
    pub tree: bool,
    /// Which statement it must be.
    pub kind: Kind,
    /// The builder that must have signed.
    pub builder: Option<&'a str>,
    /// The URI of one input, or `sha256:` and its digest.
    pub source: Option<&'a str>,
    /// Parameters with the values that they must have, as text.
    pub params: &'a BTreeMap<String, String>,
    /// Whether a `dev` builder will do.
    pub allow_dev: bool,
}

/// What was verified, to be shown to the reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Which statement it is.
    pub kind: Kind,
    /// Who signed.
    pub builder: String,
    /// The builder's mode.
    pub mode: BuilderMode,
    /// Every name under which the artifact is a subject.
    pub subjects: Vec<String>,
    /// The predicate type.
    pub predicate_type: String,
    /// The build type, in provenance.
    pub build_type: Option<String>,
    /// `urn:uuid:` and the job's id.
    pub invocation: String,
    /// How the job ended.
    pub outcome: Outcome,
    /// The OpenSSH fingerprint of the key.
    pub key_fingerprint: String,
    /// The checks that were made, in their order.
    pub checks: Vec<&'static str>,
}

/// The check that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The attestation is too large to be read.
    #[error("the attestation has {bytes} bytes, at most {ATTESTATION_BYTES_MAX} are read")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
    /// The envelope is not strict.
    #[error("the envelope is refused")]
    Envelope(#[from] EnvelopeError),
    /// The reader named no key.
    #[error("no key is trusted")]
    NoTrustedKey,
    /// The envelope names a key that is not trusted.
    #[error("the attestation names key {named:?}, which is not trusted")]
    UntrustedKey {
        /// The key id or hint.
        named: String,
    },
    /// The signature is not one of the key over these bytes.
    #[error("the signature does not verify")]
    Signature,
    /// The payload is not strict JSON.
    #[error("the payload is not strict JSON")]
    Payload(#[source] StrictError),
    /// The payload is another kind of statement.
    #[error("the payload's _type is {found:?}, not {STATEMENT_TYPE}")]
    StatementType {
        /// The type found.
        found: String,
    },
    /// The predicate is of another type than expected.
    #[error("the predicateType is {found:?}, not the one of a {}", expected.as_str())]
    PredicateType {
        /// The type found.
        found: String,
        /// The expected kind.
        expected: Kind,
    },
    /// The statement has a missing, unknown, null or mistyped field.
    #[error("the statement has another shape: {reason}")]
    Shape {
        /// What.
        reason: String,
    },
    /// A subject is odd.
    #[error("the subjects are refused")]
    Subject(#[from] SubjectError),
    /// The artifact is no subject.
    #[error("no subject has the artifact's digest {artifact}")]
    OtherArtifact {
        /// SHA-256 of the artifact.
        artifact: Sha256,
    },
    /// The builder's id is not one of Ampoule's.
    #[error("builder {found:?} is not https://HOST/builders/{{hermetic|host|dev}}/v1")]
    BuilderId {
        /// The id found.
        found: String,
    },
    /// The key is trusted for another builder.
    #[error("the key is trusted for builder {pinned}, the attestation says {found}")]
    BuilderPinned {
        /// The builder of the key.
        pinned: String,
        /// The builder found.
        found: String,
    },
    /// The reader expects another builder.
    #[error("builder {expected} is expected, the attestation says {found}")]
    BuilderUnexpected {
        /// The builder expected.
        expected: String,
        /// The builder found.
        found: String,
    },
    /// A `dev` builder claims nothing.
    #[error("builder {found} is a development builder, which claims nothing")]
    DevBuilder {
        /// The builder found.
        found: String,
    },
    /// The build type is not known.
    #[error("buildType {found:?} is not the sandbox build type of the builder's own host")]
    BuildType {
        /// The type found.
        found: String,
    },
    /// An external parameter is not one of the build type.
    #[error("external parameter {name:?} is not one of the build type")]
    UnknownParameter {
        /// The parameter.
        name: String,
    },
    /// A field breaks its rule.
    #[error("a field breaks its rule")]
    Field(#[from] FieldError),
    /// The expected source is no input.
    #[error("no input has the source {expected:?}")]
    Source {
        /// The source expected.
        expected: String,
    },
    /// A parameter has another value than expected.
    #[error("parameter {name} is {}, {expected:?} is expected", shown_or_missing(found.as_deref()))]
    Param {
        /// The parameter.
        name: String,
        /// The value expected.
        expected: String,
        /// The value found.
        found: Option<String>,
    },
    /// A run attestation holds neither sources nor parameters to expect anything of.
    #[error("a run attestation has no {what} to compare with an expectation")]
    NotInRun {
        /// `source` or `parameters`.
        what: &'static str,
    },
    /// The build ended outside the key's window.
    #[error("the run ended at {at}, outside the time for which the key is trusted")]
    KeyWindow {
        /// When the build ended.
        at: String,
    },
}

fn shown_or_missing(found: Option<&str>) -> String {
    found.map_or_else(|| "not in the attestation".to_owned(), |found| format!("{found:?}"))
}

impl VerifyError {
    /// The code that the command ends with.
    pub fn code(&self) -> Code {
        Code::VerifyRefused
    }
}

/// Verifies an attestation.
///
/// # Errors
/// [`VerifyError`] with the first check that fails.
pub fn verify(request: &VerifyRequest<'_>) -> Result<Verified, VerifyError> {
    let bytes = request.attestation.len();
    if bytes > ATTESTATION_BYTES_MAX {
        return Err(VerifyError::TooLarge { bytes });
    }
    let attestation = Attestation::parse(request.attestation)?;
    let key = authenticate(&attestation, request.trusted)?;
    let value = payload(&attestation, request.kind)?;
    match request.kind {
        Kind::Provenance => verify_provenance(request, key, read(value)?),
        Kind::Run => verify_run(request, key, read(value)?),
    }
}

/// Checks 2 and 3: the key that signed.
fn authenticate<'a>(
    attestation: &Attestation,
    trusted: &'a [TrustedKey],
) -> Result<&'a TrustedKey, VerifyError> {
    if trusted.is_empty() {
        return Err(VerifyError::NoTrustedKey);
    }
    let envelope = attestation.envelope();
    let signature = envelope.signatures().first().ok_or(EnvelopeError::Unsigned)?;
    let pae = envelope.pae();
    let named = match attestation {
        Attestation::Dsse(_) => signature.keyid.as_str(),
        Attestation::Bundle(bundle) => bundle.hint(),
    };
    let is_named = |key: &TrustedKey| match attestation {
        // An envelope need not name its key.
        Attestation::Dsse(_) => named.is_empty() || named == key.key.fingerprint(),
        Attestation::Bundle(_) => named == key.key.hint(),
    };
    let mut candidates = trusted.iter().filter(|key| is_named(key)).peekable();
    if candidates.peek().is_none() {
        return Err(VerifyError::UntrustedKey { named: named.to_owned() });
    }
    let signed = candidates.find(|key| key.key.verify(&pae, &signature.bytes).is_ok());
    signed.ok_or(VerifyError::Signature)
}

/// Checks 4 and 5: what was signed.
fn payload(attestation: &Attestation, kind: Kind) -> Result<Value, VerifyError> {
    let value = parse_strict(attestation.envelope().payload()).map_err(VerifyError::Payload)?;
    if has_null(&value) {
        return Err(VerifyError::Shape { reason: "a value is null".to_owned() });
    }
    let text = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (type_uri, predicate_type) = (text("_type"), text("predicateType"));
    if type_uri != STATEMENT_TYPE {
        return Err(VerifyError::StatementType { found: type_uri });
    }
    let expected = match kind {
        Kind::Provenance => predicate_type == PROVENANCE_PREDICATE_TYPE,
        // The host is compared with the builder's later.
        Kind::Run => {
            predicate_type.strip_suffix("/attestation/run/v1").is_some_and(|b| Authority::parse(b).is_ok())
        }
    };
    if expected {
        Ok(value)
    } else {
        Err(VerifyError::PredicateType { found: predicate_type, expected: kind })
    }
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, VerifyError> {
    serde_json::from_value(value).map_err(|e| VerifyError::Shape { reason: e.to_string() })
}

/// Check 6: the artifact's names among the subjects.
fn bind(
    subjects: &[ResourceDescriptor],
    name_ok: fn(&str) -> bool,
    (artifact, tree): (Sha256, bool),
) -> Result<Vec<String>, VerifyError> {
    rules::check_subjects(subjects, name_ok)?;
    let same = subjects.iter().filter(|s| s.sha256() == Some(artifact) && s.is_tree() == tree);
    let names: Vec<_> = same.filter_map(|subject| subject.name.clone()).collect();
    if names.is_empty() { Err(VerifyError::OtherArtifact { artifact }) } else { Ok(names) }
}

/// Checks 7 and 8: who signed.
fn check_builder(
    request: &VerifyRequest<'_>,
    key: &TrustedKey,
    found: &str,
) -> Result<(Authority, BuilderMode), VerifyError> {
    let owned = || found.to_owned();
    let (authority, mode) =
        Authority::of_builder_id(found).ok_or_else(|| VerifyError::BuilderId { found: owned() })?;
    if let Some(pinned) = key.builder_id.as_ref().filter(|pinned| *pinned != found) {
        return Err(VerifyError::BuilderPinned { pinned: pinned.clone(), found: owned() });
    }
    if let Some(expected) = request.builder.filter(|expected| *expected != found) {
        return Err(VerifyError::BuilderUnexpected { expected: expected.to_owned(), found: owned() });
    }
    if mode == BuilderMode::Dev && !request.allow_dev {
        return Err(VerifyError::DevBuilder { found: owned() });
    }
    Ok((authority, mode))
}

fn verify_provenance(
    request: &VerifyRequest<'_>,
    key: &TrustedKey,
    statement: ProvenanceStatement,
) -> Result<Verified, VerifyError> {
    let subjects = bind(statement.subject(), rules::artifact_name, (request.artifact, request.tree))?;
    let predicate = statement.predicate();
    let (definition, run) = (&predicate.build_definition, &predicate.run_details);
    let (authority, mode) = check_builder(request, key, &run.builder.id)?;
    if definition.build_type != authority.build_type() {
        return Err(VerifyError::BuildType { found: definition.build_type.clone() });
    }
    if let Some(name) = rules::unknown_parameter(&definition.external_parameters) {
        return Err(VerifyError::UnknownParameter { name: name.to_owned() });
    }
    rules::check_provenance(&statement)?;
    let (external, _) = rules::external(&definition.external_parameters, run)?;
    check_source(request.source, &external)?;
    check_params(request.params, &external)?;
    check_window(key, time::parse(&run.metadata.finished_on).unwrap_or_default())?;
    Ok(Verified {
        kind: Kind::Provenance,
        builder: run.builder.id.clone(),
        mode,
        subjects,
        predicate_type: statement.predicate_type().to_owned(),
        build_type: Some(definition.build_type.clone()),
        invocation: run.metadata.invocation_id.clone(),
        outcome: Outcome::Succeeded,
        key_fingerprint: key.key.fingerprint(),
        checks: checks(request, key),
    })
}

fn verify_run(
    request: &VerifyRequest<'_>,
    key: &TrustedKey,
    statement: RunStatement,
) -> Result<Verified, VerifyError> {
    let subjects = bind(statement.subject(), rules::record_name, (request.artifact, request.tree))?;
    let run = statement.predicate();
    let (_, mode) = check_builder(request, key, &run.builder.id)?;
    rules::check_run(&statement)?;
    if request.source.is_some() {
        return Err(VerifyError::NotInRun { what: "source" });
    }
    if !request.params.is_empty() {
        return Err(VerifyError::NotInRun { what: "parameters" });
    }
    check_window(key, rules::latest(run)?)?;
    Ok(Verified {
        kind: Kind::Run,
        builder: run.builder.id.clone(),
        mode,
        subjects,
        predicate_type: statement.predicate_type().to_owned(),
        build_type: None,
        invocation: run.invocation_id.clone(),
        outcome: run.outcome,
        key_fingerprint: key.key.fingerprint(),
        checks: checks(request, key),
    })
}

/// Check 11, the source: an input's URI, or its digest.
fn check_source(expected: Option<&str>, external: &ExternalParameters) -> Result<(), VerifyError> {
    let Some(expected) = expected else { return Ok(()) };
    let git = external.inputs.iter().filter_map(|input| Some((input, input.git.as_ref()?)));
    if git.into_iter().any(|(input, git)| crate::git::is_source(input, git, expected)) {
        return Ok(());
    }
    let found = match expected.strip_prefix("sha256:") {
        Some(hex) => external.inputs.iter().any(|i| i.digest.get("sha256").is_some_and(|found| found == hex)),
        None => {
            let uri = crate::uri::normal_http(expected).unwrap_or_else(|_| expected.to_owned());
            external.inputs.iter().any(|input| input.uri == uri)
        }
    };
    if found { Ok(()) } else { Err(VerifyError::Source { expected: expected.to_owned() }) }
}

/// Check 11, the parameters.
fn check_params(
    expected: &BTreeMap<String, String>,
    external: &ExternalParameters,
) -> Result<(), VerifyError> {
    for (name, value) in expected {
        let mut params = external.params.iter();
        let found = params.find(|(key, _)| key.as_str() == name).map(|(_, param)| param.value.clone());
        if found.as_ref() != Some(value) {
            return Err(VerifyError::Param { name: name.clone(), expected: value.clone(), found });
        }
    }
    Ok(())
}

/// Check 12: the time that the statement itself names, because this crate has no clock.
fn check_window(key: &TrustedKey, at: UnixNanos) -> Result<(), VerifyError> {
    let early = key.valid_from.is_some_and(|from| at < from);
    let late = key.valid_to.is_some_and(|to| at > to);
    if early || late { Err(VerifyError::KeyWindow { at: time::format(at) }) } else { Ok(()) }
}

/// The checks that were made, for the reader.
fn checks(request: &VerifyRequest<'_>, key: &TrustedKey) -> Vec<&'static str> {
    let run = request.kind == Kind::Run;
    let made = [
        (true, "envelope"),
        (true, "key"),
        (true, "signature"),
        (true, "statement type"),
        (true, "predicate type"),
        (true, "subject"),
        (true, "builder id"),
        (key.builder_id.is_some(), "builder pinned to key"),
        (request.builder.is_some(), "builder expected"),
        (!request.allow_dev, "no dev builder"),
        (!run, "build type"),
        (!run, "no unknown parameter"),
        (true, "field rules"),
        (request.source.is_some(), "source"),
        (!request.params.is_empty(), "parameters"),
        (key.valid_from.is_some() || key.valid_to.is_some(), "key window"),
    ];
    made.into_iter().filter_map(|(made, name)| made.then_some(name)).collect()
}
