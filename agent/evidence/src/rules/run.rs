//! The rules of a run attestation (docs/run-attestation.md).

use super::{
    Checked, broken, check_builder, check_decimal, check_digest, check_invocation, check_subjects,
    check_teardown, check_time,
};
use crate::parameters::LIMITS;
use crate::run::{RunEnd, RunPredicate, RunSandbox, RunStatement, RunStep};
use crate::statement::ResourceDescriptor;
use ampoule_spec::{Name, Outcome, UnixNanos};

/// Holds a run attestation against every rule that needs no expectation of the reader's.
pub(crate) fn check_run(statement: &RunStatement) -> Checked {
    check_subjects(statement.subject(), subject_name).map_err(|e| broken("subject", e.to_string()))?;
    if let Some(at) = statement.subject().iter().position(ResourceDescriptor::is_tree) {
        return Err(broken(format!("subject[{at}]"), "a file: no directory is a subject of it"));
    }
    let run = statement.predicate();
    let (authority, _) = check_builder("builder", &run.builder)?;
    if statement.predicate_type() != authority.run_predicate_type() {
        return Err(broken("predicateType", "the run attestation of the builder's own host"));
    }
    check_invocation("invocationId", &run.invocation_id)?;
    check_decimal("attempt", &run.attempt)?;
    check_digest("request.digest", &run.request.digest)?;
    check_outcome(run)?;
    latest(run)?;
    check_numbers(run)?;
    check_digests(run)?;
    let declared: Vec<&Name> = run.secrets.iter().map(|secret| &secret.name).collect();
    if !run.secrets.iter().all(|secret| secret.secret().is_some()) {
        return Err(broken("secrets", "each delivered by exactly one of file, fd and env"));
    }
    for (at, step) in run.steps.iter().enumerate() {
        check_step(at, step, &declared)?;
    }
    check_teardown("teardown", &run.teardown)?;
    if run.outcome == Outcome::Succeeded && !run.teardown.shows_destruction() {
        return Err(broken("teardown", "a job that succeeded left nothing behind, and a check showed it"));
    }
    check_without_sandbox(run)?;
    check_logs(statement.subject(), run)
}

/// Where there was no sandbox, nothing ran, nothing was measured and nothing came out.
fn check_without_sandbox(run: &RunPredicate) -> Checked {
    let by_agent = run.teardown.checked_by == "agent";
    let Some(RunSandbox::None) = run.sandbox else {
        return if by_agent { Err(broken("sandbox", "none, where the agent alone speaks")) } else { Ok(()) };
    };
    let ran = |step: &RunStep| step.end != RunEnd::NotRun || step.started.is_some() || !step.logs.is_empty();
    let wrong = [
        (
            "outcome",
            matches!(run.outcome, Outcome::Succeeded | Outcome::Quarantined | Outcome::KilledByLimit),
        ),
        ("builder.builderDependencies", !run.builder.builder_dependencies.is_empty()),
        ("timeline.started", run.timeline.started.is_some()),
        ("timeline.destroyed", run.timeline.destroyed.is_some()),
        ("phases", !run.phases.is_empty()),
        ("profileDigest", run.profile_digest.is_some()),
        ("isolation", !run.isolation.is_empty()),
        ("limits", run.limits.is_some()),
        ("image", run.image.is_some()),
        ("steps", run.steps.iter().any(ran)),
        ("outputs", !run.outputs.is_empty()),
        ("teardown.checkedBy", !by_agent),
        ("teardown.checks", !run.teardown.checks.is_empty()),
        ("provenance", run.provenance.is_some()),
    ];
    match wrong.into_iter().find(|(_, wrong)| *wrong) {
        Some((field, _)) => Err(broken(field, "nothing that only a sandbox gives: there was none")),
        None => Ok(()),
    }
}

/// Whether a text may be the name of a subject of a run attestation.
pub(crate) fn subject_name(name: &str) -> bool {
    let log = |name: &str| {
        let (stem, stream) = name.rsplit_once('.')?;
        let (at, step) = stem.split_once('-')?;
        let known = matches!(stream, "stdout" | "stderr");
        (known && at.parse::<u16>().is_ok() && ampoule_spec::Name::parse(step).is_ok()).then_some(())
    };
    name == "report.json" || log(name).is_some()
}

/// The latest time that the run attestation names.
pub(crate) fn latest(run: &RunPredicate) -> Result<UnixNanos, super::FieldError> {
    let mut latest = check_time("timeline.admitted", &run.timeline.admitted)?;
    let rest = [
        ("timeline.started", &run.timeline.started),
        ("timeline.finished", &run.timeline.finished),
        ("timeline.destroyed", &run.timeline.destroyed),
    ];
    for (field, text) in rest {
        if let Some(text) = text {
            latest = latest.max(check_time(field, text)?);
        }
    }
    Ok(latest)
}

fn check_outcome(run: &RunPredicate) -> Checked {
    let succeeded = run.outcome == Outcome::Succeeded;
    if succeeded == run.failure.is_some() {
        return Err(broken("failure", "present for every outcome but succeeded"));
    }
    if let Some(provenance) = &run.provenance {
        check_digest("provenance.digest", &provenance.digest)?;
        if !succeeded {
            return Err(broken("provenance", "only a job that succeeded has provenance"));
        }
    }
    match &run.failure {
        Some(failure) if failure.fault != failure.code.fault() => {
            Err(broken("failure.fault", "the fault that belongs to the code"))
        }
        Some(failure) => failure.step.as_ref().map_or(Ok(()), |step| check_decimal("failure.step", step)),
        None => Ok(()),
    }
}

fn check_numbers(run: &RunPredicate) -> Checked {
    for (at, phase) in run.phases.iter().enumerate() {
        check_decimal(format!("phases[{at}].micros"), &phase.micros)?;
    }
    if let Some(limits) = &run.limits {
        if limits.len() != LIMITS.len() || !LIMITS.iter().all(|name| limits.contains_key(*name)) {
            return Err(broken("limits", "all limits"));
        }
        for (name, value) in limits {
            check_decimal(format!("limits.{name}"), value)?;
        }
    }
    for (at, output) in run.outputs.iter().enumerate() {
        check_decimal(format!("outputs[{at}].bytes"), &output.bytes)?;
        if let Some(entries) = &output.entries {
            check_decimal(format!("outputs[{at}].entries"), entries)?;
        }
        if output.form.is_file() != output.entries.is_none() {
            return Err(broken(format!("outputs[{at}].entries"), "present for directories alone"));
        }
    }
    Ok(())
}

fn check_digests(run: &RunPredicate) -> Checked {
    if let Some(profile) = &run.profile_digest {
        check_digest("profileDigest", profile)?;
    }
    if let Some(image) = &run.image {
        check_digest("image.digest", &image.digest)?;
        if !matches!(image.kind.as_str(), "host" | "oci" | "tar") {
            return Err(broken("image.kind", "host, oci or tar"));
        }
    }
    for (at, input) in run.inputs.iter().enumerate() {
        // A job that never ran may have ended before its commit was fetched.
        let unfetched = run.sandbox == Some(RunSandbox::None) && crate::git::is_commit(&input.digest);
        if !unfetched {
            check_digest(&format!("inputs[{at}].digest"), &input.digest)?;
        }
    }
    for (at, output) in run.outputs.iter().enumerate() {
        check_digest(&format!("outputs[{at}].digest"), &output.digest)?;
    }
    Ok(())
}

fn check_step(at: usize, step: &RunStep, declared: &[&Name]) -> Checked {
    let field = |name: &str| format!("steps[{at}].{name}");
    let said = (step.exit_code.is_some(), step.signal.is_some(), step.code.is_some(), step.reason.is_some());
    let expected = match step.end {
        RunEnd::Exited => (true, false, false, false),
        RunEnd::Signalled => (false, true, false, false),
        RunEnd::KilledByLimit => (false, false, true, false),
        RunEnd::NotStarted => (false, false, false, true),
        RunEnd::TimedOut | RunEnd::Cancelled | RunEnd::Aborted | RunEnd::NotRun => {
            (false, false, false, false)
        }
    };
    if said != expected {
        return Err(broken(field("end"), "exactly what belongs to how it ended"));
    }
    for (name, text) in [("exitCode", &step.exit_code), ("signal", &step.signal)] {
        let odd = text.as_ref().is_some_and(|t| t.parse::<i32>().map_or(true, |n| n.to_string() != *t));
        if odd {
            return Err(broken(field(name), "a whole number as a string"));
        }
    }
    for (name, text) in [("started", &step.started), ("finished", &step.finished)] {
        if let Some(text) = text {
            check_time(&field(name), text)?;
        }
    }
    check_decimal(field("cpuMicros"), &step.cpu_micros)?;
    check_decimal(field("memoryPeakBytes"), &step.memory_peak_bytes)?;
    check_decimal(field("survivorsKilled"), &step.survivors_killed)?;
    if !step.secrets.iter().all(|name| declared.contains(&name)) {
        return Err(broken(field("secrets"), "secrets of the job"));
    }
    for log in &step.logs {
        if log.name != format!("{at}-{}.{}", step.name, log.stream.as_str()) {
            return Err(broken(field("logs"), "a log is named <n>-<step>.<stream>"));
        }
        check_digest(&field("logs"), &log.digest)?;
        check_decimal(field("logs"), &log.bytes)?;
        check_decimal(field("logs"), &log.cut_bytes)?;
        if let Some(masked) = &log.masked {
            check_decimal(field("logs"), masked)?;
            if masked == "0" || step.secrets.is_empty() {
                return Err(broken(field("logs"), "masked only where a secret stood"));
            }
        }
    }
    Ok(())
}

/// The subjects are the report and exactly the logs of the steps.
fn check_logs(subjects: &[ResourceDescriptor], run: &RunPredicate) -> Checked {
    let mut rest = subjects.iter();
    if rest.next().and_then(|s| s.name.as_deref()) != Some("report.json") {
        return Err(broken("subject[0]", "report.json"));
    }
    for log in run.steps.iter().flat_map(|step| &step.logs) {
        let subject = rest.next();
        if !subject.is_some_and(|s| s.name.as_ref() == Some(&log.name) && s.digest == log.digest) {
            return Err(broken("subject", "the report, then every log of the steps"));
        }
    }
    match rest.next() {
        Some(_) => Err(broken("subject", "the report, then every log of the steps, and nothing else")),
        None => Ok(()),
    }
}
