//! A job's record as it lies on disk: `spec.json` and `report.json`, read strictly, with their digests.

use crate::clean::{CleanRun, Unclean};
use crate::statement::sha256;
use crate::strict::{StrictError, parse_strict};
use ampoule_spec::{
    Code, FORMAT, Failure, HostFacts, Isolation, JobSpec, Outcome, REPORT_BYTES_MAX, RunReport,
    SPEC_BYTES_MAX, Sha256, StepEnd, StepReport, TeardownReport, Timeline, UnixNanos, Usage,
};
use serde::de::DeserializeOwned;

/// Why bytes are not a job's record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A file is larger than either side accepts.
    #[error("{file} has {bytes} bytes, at most {max} are read")]
    TooLarge {
        /// The file.
        file: &'static str,
        /// Its length.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// A file is not strict JSON.
    #[error("{file} is not strict JSON")]
    Json {
        /// The file.
        file: &'static str,
        /// Why.
        #[source]
        cause: StrictError,
    },
    /// A file does not hold what it should.
    #[error("{file} does not hold what it should")]
    Shape {
        /// The file.
        file: &'static str,
        /// Why.
        #[source]
        cause: serde_json::Error,
    },
}

/// A job's spec and report with the digests of their bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    spec: JobSpec,
    spec_sha256: Sha256,
    report: RunReport,
    report_sha256: Sha256,
    sandbox: bool,
}

/// A job that ended before the runner took it: there was no sandbox, and so nothing was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unstarted {
    /// When it was acknowledged.
    pub acknowledged: UnixNanos,
    /// When it ended.
    pub ended: UnixNanos,
    /// Why. Its outcome is what its code gives; one that only a sandbox can give is `failed`.
    pub failure: Failure,
}

impl JobRecord {
    /// Reads a record from the bytes of its two files.
    ///
    /// # Errors
    /// [`RecordError`] if a file is too large, not strict JSON or of another shape.
    pub fn read(spec: &[u8], report: &[u8]) -> Result<Self, RecordError> {
        Ok(Self {
            spec: parse("spec.json", spec, SPEC_BYTES_MAX)?,
            spec_sha256: sha256(spec),
            report: parse("report.json", report, REPORT_BYTES_MAX)?,
            report_sha256: sha256(report),
            sandbox: true,
        })
    }

    /// Makes the record of a job that never had a sandbox, and the bytes of its `report.json`: the agent's word, which is
    /// all that there is.
    ///
    /// # Errors
    /// [`RecordError`] if the spec is too large, not strict JSON or of another shape.
    pub fn unstarted(spec: &[u8], end: &Unstarted) -> Result<(Self, Vec<u8>), RecordError> {
        let (spec_sha256, spec) = (sha256(spec), parse::<JobSpec>("spec.json", spec, SPEC_BYTES_MAX)?);
        let report = unstarted_report(&spec, spec_sha256, end);
        let bytes = serde_json::to_vec_pretty(&report)
            .map_err(|cause| RecordError::Shape { file: "report.json", cause })?;
        let report_sha256 = sha256(&bytes);
        Ok((Self { spec, spec_sha256, report, report_sha256, sandbox: false }, bytes))
    }

    /// Whether the runner took the job. If not, the report is the agent's.
    pub fn had_sandbox(&self) -> bool {
        self.sandbox
    }

    /// The job.
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// SHA-256 of the bytes of `spec.json`.
    pub fn spec_sha256(&self) -> Sha256 {
        self.spec_sha256
    }

    /// What was measured.
    pub fn report(&self) -> &RunReport {
        &self.report
    }

    /// SHA-256 of the bytes of `report.json`.
    pub fn report_sha256(&self) -> Sha256 {
        self.report_sha256
    }

    /// The run, if it may have provenance.
    ///
    /// # Errors
    /// [`Unclean`] with the first rule that the run breaks.
    pub fn clean(&self) -> Result<CleanRun<'_>, Unclean> {
        CleanRun::check(&self.spec, self.spec_sha256, &self.report)
    }
}

fn unstarted_report(spec: &JobSpec, spec_sha256: Sha256, end: &Unstarted) -> RunReport {
    let steps = spec.steps.iter().map(|step| StepReport {
        name: step.name.clone(),
        end: StepEnd::NotRun,
        started: None,
        finished: None,
        usage: Usage::default(),
        logs: Vec::new(),
        survivors_killed: 0,
    });
    let failure = Failure { step: None, teardown: None, ..end.failure.clone() };
    RunReport {
        ampoule: FORMAT,
        job: spec.id.clone(),
        spec: spec_sha256,
        // That of the build that made the report.
        runner_version: env!("CARGO_PKG_VERSION").to_owned(),
        runner_sha256: None,
        outcome: unstarted_outcome(failure.code),
        failure: Some(failure),
        timeline: Timeline {
            admitted: end.acknowledged,
            finished: Some(end.ended.max(end.acknowledged)),
            ..Timeline::default()
        },
        profile_sha256: None,
        limits: None,
        isolation: Isolation::default(),
        host: HostFacts::default(),
        image: None,
        steps: steps.collect(),
        outputs: Vec::new(),
        damaged: Vec::new(),
        reread: Vec::new(),
        teardown: TeardownReport { checked_by: "agent".to_owned(), checks: Vec::new(), micros: 0 },
        phases: Vec::new(),
    }
}

/// Where nothing was made, nothing can have reached a limit of its own or have been left behind.
fn unstarted_outcome(code: Code) -> Outcome {
    match Outcome::of(code) {
        outcome @ (Outcome::Cancelled | Outcome::Aborted | Outcome::TimedOut) => outcome,
        Outcome::Failed | Outcome::Succeeded | Outcome::KilledByLimit | Outcome::Quarantined => {
            Outcome::Failed
        }
    }
}

fn parse<T: DeserializeOwned>(file: &'static str, bytes: &[u8], max: u64) -> Result<T, RecordError> {
    let length = bytes.len() as u64;
    if length > max {
        return Err(RecordError::TooLarge { file, bytes: length, max });
    }
    let value = parse_strict(bytes).map_err(|cause| RecordError::Json { file, cause })?;
    serde_json::from_value(value).map_err(|cause| RecordError::Shape { file, cause })
}
