//! The gate before provenance: a run that ended well, left nothing behind and fits the job it is said to run.

use ampoule_spec::{
    Check, CheckState, Code, Image, JobSpec, Output, OutputReport, Reread, RunReport, Sha256, StepEnd,
};
use std::collections::BTreeSet;

/// The rule that keeps a run from having provenance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unclean {
    /// The spec or the report is of another version of the format.
    #[error("format {found} of the {what} is not known")]
    Format {
        /// `spec` or `report`.
        what: &'static str,
        /// The version found.
        found: u32,
    },
    /// The spec breaks a rule of its own.
    #[error("the spec is invalid")]
    Spec(#[source] ampoule_spec::SpecError),
    /// The report is of another job.
    #[error("the report is of job {report}, the spec of job {spec}")]
    OtherJob {
        /// The spec's id.
        spec: String,
        /// The report's id.
        report: String,
    },
    /// The report is of another spec.
    #[error("the report is of another spec: it names digest {report}, the spec has {spec}")]
    OtherSpec {
        /// The digest of the spec's bytes.
        spec: Sha256,
        /// The digest in the report.
        report: Sha256,
    },
    /// The job did not succeed.
    #[error("the outcome is {outcome}")]
    Outcome {
        /// How it ended.
        outcome: &'static str,
    },
    /// The report names a failure.
    #[error("the report names the failure {code}")]
    Failure {
        /// Its code.
        code: Code,
    },
    /// No check after destruction showed anything to be gone: none was made, or the kernel could confirm none.
    #[error("no check after destruction showed that something is gone")]
    NothingConfirmed,
    /// Something was left behind, or a check contradicts itself.
    #[error("after destruction {left} of {what:?} were left")]
    LeftBehind {
        /// What was looked for.
        what: String,
        /// How many were left.
        left: u64,
    },
    /// The report's steps are not the spec's.
    #[error("step {at} of the report does not fit the spec")]
    Steps {
        /// The first place that differs, from 0.
        at: usize,
    },
    /// A step did not exit with 0.
    #[error("step {name} did not exit with 0")]
    StepFailed {
        /// The step.
        name: String,
    },
    /// A step has a stream twice.
    #[error("step {name} has a log twice")]
    LogTwice {
        /// The step.
        name: String,
    },
    /// An output that must be there is not.
    #[error("output {name} is missing")]
    OutputMissing {
        /// The output.
        name: String,
    },
    /// The report has an output that the spec does not declare so.
    #[error("output {name} is not as the spec declares it")]
    OutputUndeclared {
        /// The output.
        name: String,
    },
    /// The report has an output twice.
    #[error("output {name} is there twice")]
    OutputTwice {
        /// The output.
        name: String,
    },
    /// The report does not say what the image was, or says another one than the spec.
    #[error("the image is not the one that the spec names")]
    Image,
    /// The host changed something that the job used, while it did.
    #[error("{what} was changed while the job used it")]
    Changed {
        /// What, as in the report.
        what: String,
    },
    /// Nobody looked whether something that the job used is still what it was.
    #[error("{what} was not read back after the job")]
    NotReread {
        /// What.
        what: String,
    },
    /// The report lacks something that every completed run has.
    #[error("the report lacks {what}")]
    Lacks {
        /// The field.
        what: &'static str,
    },
    /// The clock went backwards during the run.
    #[error("the times are not in order: {earlier} lies after {later}")]
    Clock {
        /// What came first.
        earlier: &'static str,
        /// What came after it.
        later: &'static str,
    },
}

impl Unclean {
    /// The code of the job's end.
    pub fn code(&self) -> Code {
        Code::ProvenanceRefused
    }
}

/// A run that may have provenance. Only [`CleanRun::check`] makes one.
#[derive(Debug, Clone, Copy)]
pub struct CleanRun<'a> {
    spec: &'a JobSpec,
    report: &'a RunReport,
}

impl<'a> CleanRun<'a> {
    /// Holds a report against its job.
    ///
    /// `spec_sha256` is the digest of the bytes from which `spec` was read.
    ///
    /// # Errors
    /// [`Unclean`] with the first rule that the run breaks.
    pub fn check(spec: &'a JobSpec, spec_sha256: Sha256, report: &'a RunReport) -> Result<Self, Unclean> {
        check_binding(spec, spec_sha256, report)?;
        spec.check_resolved().map_err(Unclean::Spec)?;
        if report.outcome != ampoule_spec::Outcome::Succeeded {
            return Err(Unclean::Outcome { outcome: report.outcome.as_str() });
        }
        if let Some(failure) = &report.failure {
            return Err(Unclean::Failure { code: failure.code });
        }
        check_teardown(&report.teardown.checks)?;
        check_steps(spec, report)?;
        check_outputs(&spec.outputs, &report.outputs)?;
        check_image(&spec.image, report)?;
        check_reread(spec, &report.reread)?;
        check_measured(report)?;
        check_clock(report)?;
        Ok(Self { spec, report })
    }

    /// The job.
    pub fn spec(&self) -> &'a JobSpec {
        self.spec
    }

    /// What was measured of it.
    pub fn report(&self) -> &'a RunReport {
        self.report
    }
}

/// Whether a report is of this very spec, whatever the outcome.
pub(crate) fn check_binding(spec: &JobSpec, spec_sha256: Sha256, report: &RunReport) -> Result<(), Unclean> {
    for (what, found) in [("spec", spec.ampoule), ("report", report.ampoule)] {
        if found != ampoule_spec::FORMAT {
            return Err(Unclean::Format { what, found });
        }
    }
    spec.validate().map_err(Unclean::Spec)?;
    if spec.id != report.job {
        return Err(Unclean::OtherJob { spec: spec.id.to_string(), report: report.job.to_string() });
    }
    if spec_sha256 != report.spec {
        return Err(Unclean::OtherSpec { spec: spec_sha256, report: report.spec });
    }
    Ok(())
}

fn check_teardown(checks: &[Check]) -> Result<(), Unclean> {
    if let Some(check) = checks.iter().find(|check| check.state == CheckState::Left || check.left > 0) {
        return Err(Unclean::LeftBehind { what: check.what.clone(), left: check.left });
    }
    // What the kernel cannot confirm is no finding, but it shows nothing either.
    if checks.iter().any(|check| check.state == CheckState::Gone) {
        Ok(())
    } else {
        Err(Unclean::NothingConfirmed)
    }
}

fn check_steps(spec: &JobSpec, report: &RunReport) -> Result<(), Unclean> {
    let differs = spec.steps.iter().zip(&report.steps).position(|(asked, ran)| asked.name != ran.name);
    if let Some(at) = differs {
        return Err(Unclean::Steps { at });
    }
    if spec.steps.len() != report.steps.len() {
        return Err(Unclean::Steps { at: spec.steps.len().min(report.steps.len()) });
    }
    for step in &report.steps {
        if step.end != (StepEnd::Exited { code: 0 }) {
            return Err(Unclean::StepFailed { name: step.name.to_string() });
        }
        let mut streams = BTreeSet::new();
        if !step.logs.iter().all(|log| streams.insert(log.stream)) {
            return Err(Unclean::LogTwice { name: step.name.to_string() });
        }
    }
    Ok(())
}

fn check_outputs(asked: &[Output], taken: &[OutputReport]) -> Result<(), Unclean> {
    let mut names = BTreeSet::new();
    for output in taken {
        let name = || output.name.to_string();
        if !names.insert(&output.name) {
            return Err(Unclean::OutputTwice { name: name() });
        }
        let declared = asked.iter().any(|a| {
            a.name == output.name
                && a.path == output.path
                && a.kind == output.kind
                && a.form.is_none_or(|form| form == output.form)
        });
        if !declared || output.form.is_file() != output.entries.is_none() {
            return Err(Unclean::OutputUndeclared { name: name() });
        }
    }
    match asked.iter().find(|a| !a.optional && !names.contains(&a.name)) {
        Some(missing) => Err(Unclean::OutputMissing { name: missing.name.to_string() }),
        None => Ok(()),
    }
}

fn check_image(asked: &Image, report: &RunReport) -> Result<(), Unclean> {
    let found = report.image.as_ref().ok_or(Unclean::Image)?;
    let same = match asked {
        Image::Host => found.kind == "host" && !found.named_by.is_empty(),
        Image::Oci { manifest, .. } => found.kind == "oci" && found.sha256 == *manifest,
        Image::Tar { sha256 } => found.kind == "tar" && found.sha256 == *sha256,
    };
    if same { Ok(()) } else { Err(Unclean::Image) }
}

/// Everything that the job used was read back, and is what it was.
fn check_reread(spec: &JobSpec, reread: &[Reread]) -> Result<(), Unclean> {
    if let Some(changed) = reread.iter().find(|one| !one.unchanged) {
        return Err(Unclean::Changed { what: changed.what.clone() });
    }
    let image = match &spec.image {
        // The package list's digest is the report's own; that it names one is checked with the image.
        Image::Host => ("host".to_owned(), None),
        Image::Oci { manifest, .. } => ("image".to_owned(), Some(*manifest)),
        Image::Tar { sha256 } => ("image".to_owned(), Some(*sha256)),
    };
    let inputs = spec.inputs.iter().map(|i| (format!("input {}", i.name), i.source.sha256()));
    for (what, sha256) in std::iter::once(image).chain(inputs) {
        let is_there = |one: &Reread| one.what == what && sha256.is_none_or(|sha256| one.sha256 == sha256);
        if !reread.iter().any(is_there) {
            return Err(Unclean::NotReread { what });
        }
    }
    // A layer is not named by the spec, and an image has at least one.
    let has_layer = reread.iter().any(|one| one.what.starts_with("image layer "));
    if matches!(spec.image, Image::Oci { .. }) && !has_layer {
        return Err(Unclean::NotReread { what: "image layer 0".to_owned() });
    }
    Ok(())
}

fn check_measured(report: &RunReport) -> Result<(), Unclean> {
    let lacks = [
        ("profile_sha256", report.profile_sha256.is_none()),
        ("limits", report.limits.is_none()),
        ("isolation", report.isolation.layers.is_empty()),
        ("host.kernel", report.host.kernel.is_empty()),
        ("runner_version", report.runner_version.is_empty()),
        ("timeline.started", report.timeline.started.is_none()),
        ("timeline.finished", report.timeline.finished.is_none()),
        ("timeline.destroyed", report.timeline.destroyed.is_none()),
    ];
    match lacks.into_iter().find(|(_, missing)| *missing) {
        Some((what, _)) => Err(Unclean::Lacks { what }),
        None => Ok(()),
    }
}

fn check_clock(report: &RunReport) -> Result<(), Unclean> {
    let times = report.timeline;
    let order = [
        (Some(times.admitted), "admitted", times.started, "started"),
        (times.started, "started", times.finished, "finished"),
        (times.finished, "finished", times.destroyed, "destroyed"),
    ];
    match order.into_iter().find(|(before, _, after, _)| before > after) {
        Some((_, earlier, _, later)) => Err(Unclean::Clock { earlier, later }),
        None => Ok(()),
    }
}
