//! The rules of provenance (docs/provenance.md).

use super::{
    Checked, FieldError, broken, check_builder, check_decimal, check_digest, check_invocation,
    check_subjects, check_teardown, check_time,
};
use crate::authority::{Authority, BuilderMode, Issuer};
use crate::canonical::canonical_json;
use crate::dependencies;
use crate::parameters::{ExternalParameters, InternalParameters, LIMITS};
use crate::provenance::CONTENT_BYTES_MAX;
use crate::run::TeardownRecord;
use crate::slsa::{BuildDefinition, PROVENANCE_PREDICATE_TYPE, ProvenanceStatement, RunDetails};
use crate::statement::{ResourceDescriptor, sha256};
use crate::strict::parse_strict;
use ampoule_spec::{ImageReport, JobSpec, OutputForm, OutputKind, OutputName, Sha256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// The keys of the external parameters of the build type.
const EXTERNAL: [&str; 13] = [
    "name",
    "profile",
    "image",
    "user",
    "sourceDateEpoch",
    "env",
    "params",
    "inputs",
    "secrets",
    "steps",
    "outputs",
    "limits",
    "logOverflow",
];

/// The first external parameter that the build type does not have.
pub(crate) fn unknown_parameter(parameters: &Map<String, Value>) -> Option<&str> {
    parameters.keys().map(String::as_str).find(|key| !EXTERNAL.contains(key))
}

/// Reads the external parameters, and with them the job that was asked for.
pub(crate) fn external(
    parameters: &Map<String, Value>,
    run: &RunDetails,
) -> Result<(ExternalParameters, JobSpec), FieldError> {
    const FIELD: &str = "buildDefinition.externalParameters";
    let read: ExternalParameters = serde_json::from_value(Value::Object(parameters.clone()))
        .map_err(|e| broken(FIELD, e.to_string()))?;
    let invocation = &run.metadata.invocation_id;
    check_invocation("runDetails.metadata.invocationId", invocation)?;
    let spec = read.to_spec(invocation).ok_or_else(|| broken(FIELD, "a value is not one a job can have"))?;
    spec.validate().map_err(|e| broken(format!("{FIELD}.{}", e.field), e.reason))?;
    match ExternalParameters::of(&spec) {
        Ok(again) if again == read => Ok((read, spec)),
        Ok(_) => Err(broken(FIELD, "the parameters are not as a job with these values gives them")),
        Err(e) => Err(broken(format!("{FIELD}.{}", e.field), e.rule)),
    }
}

/// Holds a provenance statement against every rule that needs no expectation of the reader's.
pub(crate) fn check_provenance(statement: &ProvenanceStatement) -> Checked {
    if statement.predicate_type() != PROVENANCE_PREDICATE_TYPE {
        return Err(broken("predicateType", PROVENANCE_PREDICATE_TYPE));
    }
    check_subjects(statement.subject(), subject_name).map_err(|e| broken("subject", e.to_string()))?;
    let predicate = statement.predicate();
    let (authority, mode) = check_builder("runDetails.builder", &predicate.run_details.builder)?;
    let definition = &predicate.build_definition;
    if definition.build_type != authority.build_type() {
        return Err(broken("buildDefinition.buildType", "the sandbox build type of the builder's own host"));
    }
    let (external, spec) = external(&definition.external_parameters, &predicate.run_details)?;
    check_mode(authority, mode, &spec)?;
    check_outputs(&external, statement.subject())?;
    check_internal(definition, &external, mode)?;
    check_dependencies(definition, &external)?;
    check_run_details(&predicate.run_details, &spec)
}

/// Whether a text may be the name of a subject of provenance.
pub(crate) fn subject_name(name: &str) -> bool {
    OutputName::parse(name).is_ok()
}

fn check_mode(authority: Authority, mode: BuilderMode, spec: &JobSpec) -> Checked {
    let issuer = Issuer { authority, development_key: mode == BuilderMode::Dev };
    if issuer.mode(spec) == Ok(mode) {
        Ok(())
    } else {
        Err(broken("runDetails.builder.id", "the mode does not follow from profile and image"))
    }
}

fn check_outputs(external: &ExternalParameters, subjects: &[ResourceDescriptor]) -> Checked {
    let names: BTreeSet<&str> = subjects.iter().filter_map(|s| s.name.as_deref()).collect();
    let artifacts = || external.outputs.iter().filter(|output| output.kind == OutputKind::Artifact);
    if names.iter().any(|name| !artifacts().any(|output| output.name.as_str() == *name)) {
        return Err(broken("subject", "a subject is no output of kind artifact"));
    }
    let asked = |subject: &ResourceDescriptor| {
        artifacts().find(|output| Some(output.name.as_str()) == subject.name.as_deref()).and_then(|o| o.form)
    };
    // What a job leaves open is what lay there.
    let other = |subject: &&ResourceDescriptor| {
        asked(subject).is_some_and(|form| (form == OutputForm::Tree) != subject.is_tree())
    };
    if subjects.iter().any(|subject| other(&subject)) {
        return Err(broken("subject", "a subject has another form than the job asked for"));
    }
    if artifacts().any(|output| !output.optional && !names.contains(output.name.as_str())) {
        return Err(broken("subject", "an output that must be there is no subject"));
    }
    Ok(())
}

fn check_internal(definition: &BuildDefinition, external: &ExternalParameters, mode: BuilderMode) -> Checked {
    const FIELD: &str = "buildDefinition.internalParameters";
    let map = Value::Object(definition.internal_parameters.clone());
    let internal: InternalParameters =
        serde_json::from_value(map).map_err(|e| broken(FIELD, e.to_string()))?;
    check_digest(&format!("{FIELD}.profileDigest"), &internal.profile_digest)?;
    let limits = &internal.effective_limits;
    if limits.len() != LIMITS.len() {
        return Err(broken(format!("{FIELD}.effectiveLimits"), "all limits"));
    }
    for name in LIMITS {
        let field = format!("{FIELD}.effectiveLimits.{name}");
        let value = limits.get(name).ok_or_else(|| broken(&field, "all limits"))?;
        check_decimal(&field, value)?;
        if mode != BuilderMode::Dev && external.limits.get(name).is_some_and(|asked| asked != value) {
            return Err(broken(field, "the limit that the job asked for"));
        }
    }
    let overlap = internal.isolation.keys().any(|layer| internal.isolation_absent.contains_key(layer));
    if overlap || (mode != BuilderMode::Dev && internal.isolation.is_empty()) {
        return Err(broken(
            format!("{FIELD}.isolation"),
            "each layer is in force or absent, and one is in force",
        ));
    }
    Ok(())
}

/// Derives the dependencies again and compares.
fn check_dependencies(definition: &BuildDefinition, external: &ExternalParameters) -> Checked {
    const FIELD: &str = "buildDefinition.resolvedDependencies";
    let found = &definition.resolved_dependencies;
    let image = found.first().ok_or_else(|| broken(FIELD, "the image and every input"))?;
    let sha256 = image.sha256().ok_or_else(|| broken(format!("{FIELD}[0].digest"), "exactly one sha256"))?;
    let named_by = image.annotations.get("ampoule_named_by").cloned().unwrap_or_default();
    let asked = external.image.digest.as_ref();
    if asked.is_some_and(|asked| *asked != image.digest) || (asked.is_none() && named_by.is_empty()) {
        return Err(broken(format!("{FIELD}[0]"), "the image that externalParameters name"));
    }
    let report = ImageReport { kind: external.image.kind.clone(), sha256, named_by };
    let expected = dependencies::resolved(external, &report)
        .ok_or_else(|| broken(FIELD, "a digest of an input is not one sha256"))?;
    if *found == expected {
        return Ok(());
    }
    let at = found.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
    Err(broken(format!("{FIELD}[{at}]"), "it does not follow from externalParameters"))
}

fn check_run_details(run: &RunDetails, spec: &JobSpec) -> Checked {
    if run.builder.version.get("kernel").is_none_or(String::is_empty) {
        return Err(broken("runDetails.builder.version", "the kernel's version"));
    }
    let started = check_time("runDetails.metadata.startedOn", &run.metadata.started_on)?;
    let finished = check_time("runDetails.metadata.finishedOn", &run.metadata.finished_on)?;
    if started > finished {
        return Err(broken("runDetails.metadata.finishedOn", "not before startedOn"));
    }
    let mut names = BTreeSet::new();
    for (at, byproduct) in run.byproducts.iter().enumerate() {
        let field = format!("runDetails.byproducts[{at}]");
        check_digest(&format!("{field}.digest"), &byproduct.digest)?;
        let name = byproduct.name.as_deref().unwrap_or_default();
        if !byproduct_name(name, spec) || !names.insert(name) {
            return Err(broken(format!("{field}.name"), "a log, report or record of the run, once"));
        }
        let bare = byproduct.uri.is_none()
            && byproduct.download_location.is_none()
            && byproduct.annotations.is_empty();
        if !bare || (byproduct.content.is_some() && name != "teardown") {
            return Err(broken(field, "more fields than a byproduct has"));
        }
        if name == "teardown" {
            check_content(&field, byproduct)?;
        }
    }
    for name in ["report.json", "teardown"] {
        if !names.contains(name) {
            return Err(broken("runDetails.byproducts", format!("{name} is missing")));
        }
    }
    Ok(())
}

fn byproduct_name(name: &str, spec: &JobSpec) -> bool {
    let log = || {
        spec.steps.iter().enumerate().any(|(at, step)| {
            let stream = name.strip_prefix(&format!("{at}-{}.", step.name));
            matches!(stream, Some("stdout" | "stderr"))
        })
    };
    let report = |name: &str| {
        spec.outputs.iter().any(|output| output.kind == OutputKind::Report && output.name.as_str() == name)
    };
    matches!(name, "report.json" | "teardown") || name.strip_prefix("output:").is_some_and(report) || log()
}

/// The record of the teardown, where it is short enough to stand in the statement itself.
fn check_content(field: &str, byproduct: &ResourceDescriptor) -> Checked {
    let Some(content) = &byproduct.content else { return Ok(()) };
    let field = format!("{field}.content");
    let bytes = STANDARD.decode(content).map_err(|_| broken(&field, "standard base64"))?;
    let digest: Option<Sha256> = byproduct.sha256();
    if bytes.len() > CONTENT_BYTES_MAX || digest != Some(sha256(&bytes)) {
        return Err(broken(field, "fewer than 1024 bytes with the digest beside them"));
    }
    let value = parse_strict(&bytes).map_err(|e| broken(&field, e.to_string()))?;
    let record: TeardownRecord = serde_json::from_value(value).map_err(|e| broken(&field, e.to_string()))?;
    check_teardown(&field, &record)?;
    let canonical = canonical_json(&record).is_ok_and(|again| again == bytes);
    if canonical && record.shows_destruction() {
        Ok(())
    } else {
        Err(broken(field, "the canonical record of a clean teardown that shows something to be gone"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_keys_are_those_of_the_type_and_no_internal_one() {
        let record = crate::tests::fixture::record();
        let external = crate::parameters::to_map(&ExternalParameters::of(record.spec()).unwrap()).unwrap();
        let mut keys: BTreeSet<_> = external.keys().map(String::as_str).collect();
        // There where there are any.
        assert!(keys.insert("secrets"));
        assert_eq!(keys, BTreeSet::from(EXTERNAL));
        let internal = crate::parameters::to_map(&InternalParameters::of(record.report()).unwrap()).unwrap();
        assert!(internal.keys().all(|key| !EXTERNAL.contains(&key.as_str())));
        let limits = record.report().limits.as_ref().unwrap().entries();
        assert_eq!(limits.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), LIMITS);
    }
}
