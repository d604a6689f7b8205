//! The rules of every field that Ampoule writes, held against its own statements before they are signed and
//! against every statement that is verified.

mod provenance;
mod run;

pub(crate) use provenance::{check_provenance, external, subject_name as artifact_name, unknown_parameter};
pub(crate) use run::{check_run, latest, subject_name as record_name};

use crate::authority::{Authority, BuilderMode};
use crate::run::TeardownRecord;
use crate::slsa::Builder;
use crate::statement::{ResourceDescriptor, SUBJECTS_MAX};
use crate::time;
use crate::uri::check_absolute;
use ampoule_spec::{CheckState, JobId, OutputForm, Sha256, UnixNanos};
use std::collections::{BTreeMap, BTreeSet};

/// A field that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct FieldError {
    /// The field, as in `runDetails.metadata.startedOn`.
    pub field: String,
    /// The rule it breaks.
    pub rule: String,
}

/// A rule that the subjects break.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubjectError {
    /// There is none.
    #[error("there is no subject")]
    None,
    /// There are more than readers take.
    #[error("there are {count} subjects, at most {SUBJECTS_MAX} are read")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A name is missing or odd.
    #[error("subject {at} has no name of the allowed form")]
    Name {
        /// Its place, from 0.
        at: usize,
    },
    /// A name is there twice.
    #[error("subject {name:?} is there twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// The digest is not exactly one SHA-256 in 64 lower-case hexadecimal digits.
    #[error("subject {at} does not have exactly one sha256 digest of 64 lower-case hexadecimal digits")]
    Digest {
        /// Its place, from 0.
        at: usize,
    },
    /// There is more than a name, a digest and the media type of a tree.
    #[error("subject {at} has more than a name and a digest")]
    Extra {
        /// Its place, from 0.
        at: usize,
    },
}

pub(crate) type Checked = Result<(), FieldError>;

pub(crate) fn broken(field: impl Into<String>, rule: impl Into<String>) -> FieldError {
    FieldError { field: field.into(), rule: rule.into() }
}

/// Holds the subjects against their rules; `name_ok` says which names the kind of statement allows.
pub(crate) fn check_subjects(
    subjects: &[ResourceDescriptor],
    name_ok: fn(&str) -> bool,
) -> Result<(), SubjectError> {
    if subjects.is_empty() {
        return Err(SubjectError::None);
    }
    if subjects.len() > SUBJECTS_MAX {
        return Err(SubjectError::TooMany { count: subjects.len() });
    }
    let mut names = BTreeSet::new();
    for (at, subject) in subjects.iter().enumerate() {
        let name = subject.name.as_deref().filter(|n| name_ok(n)).ok_or(SubjectError::Name { at })?;
        if !names.insert(name) {
            return Err(SubjectError::Twice { name: name.to_owned() });
        }
        let sha256 = subject.sha256().ok_or(SubjectError::Digest { at })?;
        let bare = ResourceDescriptor::named(name, sha256);
        if *subject != bare && *subject != bare.with_form(OutputForm::Tree) {
            return Err(SubjectError::Extra { at });
        }
    }
    Ok(())
}

/// Exactly one SHA-256.
fn check_digest(field: &str, digest: &BTreeMap<String, String>) -> Checked {
    let hex = digest.get("sha256").filter(|_| digest.len() == 1);
    match hex.map(|hex| Sha256::parse(hex)) {
        Some(Ok(_)) => Ok(()),
        _ => Err(broken(field, "exactly one sha256 digest of 64 lower-case hexadecimal digits")),
    }
}

/// A whole number as text, as `u64` prints it.
fn check_decimal(field: impl Into<String>, text: &str) -> Checked {
    let same = text.parse::<u64>().is_ok_and(|number| number.to_string() == text);
    if same { Ok(()) } else { Err(broken(field, "a whole number of 64 bits as a string")) }
}

fn check_time(field: &str, text: &str) -> Result<UnixNanos, FieldError> {
    let rule = "RFC 3339 in UTC with a literal Z and at most nine digits of the fraction";
    time::parse(text).ok_or_else(|| broken(field, rule))
}

fn check_invocation(field: &str, text: &str) -> Checked {
    match text.strip_prefix("urn:uuid:").map(JobId::parse) {
        Some(Ok(_)) => Ok(()),
        _ => Err(broken(field, "urn:uuid: and a lower-case UUID of version 7")),
    }
}

/// The teardown, which both kinds of statement carry.
fn check_teardown(field: &str, record: &TeardownRecord) -> Checked {
    check_decimal(format!("{field}.micros"), &record.micros)?;
    for (at, check) in record.checks.iter().enumerate() {
        let left = format!("{field}.checks[{at}].left");
        check_decimal(&left, &check.left)?;
        if check.state != CheckState::Left && check.left != "0" {
            return Err(broken(left, "0 unless the state is left"));
        }
    }
    if record.clean == record.checks.iter().all(|check| check.state != CheckState::Left) {
        Ok(())
    } else {
        Err(broken(format!("{field}.clean"), "true when no check says left, else false"))
    }
}

/// The base and mode of a builder, whose other fields are held against their rules.
fn check_builder(field: &str, builder: &Builder) -> Result<(Authority, BuilderMode), FieldError> {
    let (authority, mode) = Authority::of_builder_id(&builder.id)
        .ok_or_else(|| broken(format!("{field}.id"), "https://HOST/builders/{hermetic|host|dev}/v1"))?;
    let runner = builder.version.get("ampoule-runner").filter(|text| !text.is_empty());
    let version =
        runner.ok_or_else(|| broken(format!("{field}.version"), "the version of ampoule-runner"))?;
    // A job that never got a sandbox has an empty kernel in its run attestation; provenance asks for more.
    if builder.version.len() != 2 || !builder.version.contains_key("kernel") {
        return Err(broken(format!("{field}.version"), "exactly ampoule-runner and kernel"));
    }
    for (at, dependency) in builder.builder_dependencies.iter().enumerate() {
        let field = format!("{field}.builderDependencies[{at}]");
        check_digest(&format!("{field}.digest"), &dependency.digest)?;
        let uri = dependency.uri.as_deref().unwrap_or_default();
        check_absolute(uri).map_err(|rule| broken(format!("{field}.uri"), rule))?;
        if uri != authority.runner_uri(version) {
            return Err(broken(
                format!("{field}.uri"),
                "the runner of the version that builder.version names",
            ));
        }
    }
    Ok((authority, mode))
}
