//! What the runner reports of a job: the only source of provenance.

use crate::event::Stream;
use crate::limits::Limits;
use crate::store::{Damage, Reread};
use crate::{Blake3, Code, JobId, Name, OutputForm, OutputKind, OutputName, SandboxPath, Sha256};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixNanos(pub u64);

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Every step exited with 0 and every output is there.
    Succeeded,
    /// A step or an output failed.
    Failed,
    /// A time limit ended it.
    TimedOut,
    /// Another limit ended it.
    KilledByLimit,
    /// The client ended it.
    Cancelled,
    /// A process of Ampoule's died, or a sandbox could not be made.
    Aborted,
    /// Something was left behind, or could not be shown to be gone.
    Quarantined,
}

impl Outcome {
    /// The outcome's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::KilledByLimit => "killed_by_limit",
            Self::Cancelled => "cancelled",
            Self::Aborted => "aborted",
            Self::Quarantined => "quarantined",
        }
    }

    /// The outcome that a failure with this code gives.
    pub fn of(code: Code) -> Self {
        match code {
            Code::LimitTimeout => Self::TimedOut,
            Code::LimitOom | Code::LimitPids | Code::LimitDisk | Code::LimitLog => Self::KilledByLimit,
            Code::JobCancelled => Self::Cancelled,
            Code::TeardownUnclean => Self::Quarantined,
            Code::JobAborted
            | Code::SandboxSetupFailed
            | Code::SandboxUnsupported
            | Code::InputChanged
            | Code::StoreFull
            | Code::SecretUnavailable
            | Code::Internal => Self::Aborted,
            _ => Self::Failed,
        }
    }
}

/// `report.json`: everything that the runner measured of one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunReport {
    /// The version of this format: [`crate::FORMAT`].
    pub ampoule: u32,
    /// The job.
    pub job: JobId,
    /// SHA-256 of `spec.json`.
    pub spec: Sha256,
    /// The runner's version.
    pub runner_version: String,
    /// SHA-256 of the runner's own executable.
    pub runner_sha256: Option<Sha256>,
    /// How the job ended.
    pub outcome: Outcome,
    /// Why, unless it succeeded.
    pub failure: Option<Failure>,
    /// When what began and ended.
    pub timeline: Timeline,
    /// The profile's digest: SHA-256 of its compiled bytes.
    pub profile_sha256: Option<Sha256>,
    /// The limits that were in force.
    pub limits: Option<Limits>,
    /// The layers that were measured.
    pub isolation: Isolation,
    /// What of the host a build can see and that cannot be withheld.
    pub host: HostFacts,
    /// The image as the launcher found it.
    pub image: Option<ImageReport>,
    /// One entry per step of the spec, in its order.
    pub steps: Vec<StepReport>,
    /// The outputs that were taken out.
    pub outputs: Vec<OutputReport>,
    /// Objects of the store that were found damaged while the job's inputs were looked up, and are in quarantine.
    pub damaged: Vec<Damage>,
    /// What the job used, read back after its last step. Empty: the job failed before, or nobody could look.
    pub reread: Vec<Reread>,
    /// What was checked after destruction.
    pub teardown: TeardownReport,
    /// Where the time went.
    pub phases: Vec<PhaseTime>,
}

/// Why a job did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// The bounded code.
    pub code: Code,
    /// For people; no host path and no secret.
    pub message: String,
    /// The step it happened in, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// What went wrong while cleaning up after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teardown: Option<String>,
}

impl Failure {
    /// One that belongs to no step, with nothing that went wrong afterwards.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), step: None, teardown: None }
    }

    /// The same, of a step, from 0.
    #[must_use]
    pub fn in_step(self, step: u32) -> Self {
        Self { step: Some(step), ..self }
    }
}

/// When what began and ended, by the host's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// The job was admitted.
    pub admitted: UnixNanos,
    /// The first step's process began.
    pub started: Option<UnixNanos>,
    /// The last step's last process ended.
    pub finished: Option<UnixNanos>,
    /// Destruction was verified.
    pub destroyed: Option<UnixNanos>,
}

/// How long a phase took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseTime {
    /// The phase.
    pub phase: String,
    /// Microseconds on the monotonic clock.
    pub micros: u64,
}

/// The layers of isolation, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Isolation {
    /// What was measured, by layer.
    pub layers: BTreeMap<String, Measured>,
}

/// One layer as measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Whether it is in force.
    pub in_force: bool,
    /// What exactly is in force, or why it is not.
    pub detail: String,
}

/// What a build can see of the host although nobody declared it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostFacts {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub machine: String,
    /// The processor's model name.
    pub cpu_model: String,
}

/// The image as the launcher found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageReport {
    /// `host`, `oci` or `tar`.
    pub kind: String,
    /// Host: of the package list. OCI: of the manifest. Tar: of the archive.
    pub sha256: Sha256,
    /// Host: what the package list is, as in `dpkg`. Else empty.
    pub named_by: String,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case", deny_unknown_fields)]
pub enum StepEnd {
    /// Its program exited.
    Exited {
        /// With this status.
        code: i32,
    },
    /// Its program was ended by a signal.
    Signalled {
        /// This one.
        signal: i32,
    },
    /// It ran longer than a time limit.
    TimedOut,
    /// Another limit ended it.
    KilledByLimit {
        /// This one.
        code: Code,
    },
    /// The client ended it.
    Cancelled,
    /// Its program could not be started.
    NotStarted {
        /// Why.
        reason: String,
    },
    /// Ampoule lost it.
    Aborted,
    /// An earlier step ended the job.
    NotRun,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepReport {
    /// Its name.
    pub name: Name,
    /// How it ended.
    pub end: StepEnd,
    /// When its program began.
    pub started: Option<UnixNanos>,
    /// When its last process ended.
    pub finished: Option<UnixNanos>,
    /// What it used.
    pub usage: Usage,
    /// Its streams.
    pub logs: Vec<LogReport>,
    /// Processes that outlived its program and were killed.
    pub survivors_killed: u32,
}

/// What a step used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Processor time of all its processes, in microseconds.
    pub cpu_micros: u64,
    /// The highest memory use in bytes: of the control group, or of the largest process where there is none.
    pub memory_peak_bytes: u64,
}

/// One stream of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogReport {
    /// Which.
    pub stream: Stream,
    /// All bytes of the stream, cut ones included.
    pub bytes: u64,
    /// SHA-256 of the whole stream, cut bytes included.
    pub sha256: Sha256,
    /// Bytes cut from the middle of what is kept.
    pub cut_bytes: u64,
    /// Places where a secret stood. Length and digest are of the stream without them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub masked: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// An output that was taken out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputReport {
    /// Its name.
    pub name: OutputName,
    /// Where it lay in the sandbox.
    pub path: SandboxPath,
    /// Whether it is a subject.
    pub kind: OutputKind,
    /// How it leaves.
    #[serde(default, skip_serializing_if = "OutputForm::is_file")]
    pub form: OutputForm,
    /// The length of the file or archive; of a tree, of all its files together.
    pub bytes: u64,
    /// A directory's: how many entries are in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// SHA-256 of the bytes that were copied; of a tree, its tree digest.
    pub sha256: Sha256,
    /// The object of the store that holds it, if nothing was left behind of the job.
    pub blake3: Blake3,
    /// Whether its owner may execute it. A directory: false.
    pub executable: bool,
}

/// What was checked after destruction. Clean = no check found anything left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeardownReport {
    /// Who checked: the job's supervisor, or the launcher after its death.
    pub checked_by: String,
    /// The checks, in the order in which they were made. None: nothing had been made.
    pub checks: Vec<Check>,
    /// How long destruction took, in microseconds.
    pub micros: u64,
}

impl TeardownReport {
    /// Whether no check found anything left.
    pub fn is_clean(&self) -> bool {
        self.checks.iter().all(|check| check.state != CheckState::Left)
    }

    /// What was found to be left, for people: empty if it is clean.
    pub fn left_behind(&self) -> String {
        let left = self.checks.iter().filter(|check| check.state == CheckState::Left);
        left.map(|check| format!("{} {}", check.left, check.what)).collect::<Vec<_>>().join(", ")
    }
}

/// One thing that was looked for after destruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What was looked for.
    pub what: String,
    /// What was found.
    pub state: CheckState,
    /// How many were left.
    pub left: u64,
    /// How it was checked, or why it could not be.
    pub how: String,
}

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    /// It was looked for, and none of it is there.
    Gone,
    /// Some of it is still there.
    Left,
    /// Nobody could look; how says why: this kernel has no way to, or whoever had the handle is dead.
    Unconfirmed,
}

impl CheckState {
    /// The state's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Left => "left",
            Self::Unconfirmed => "unconfirmed",
        }
    }
}

impl RunReport {
    /// The steps' logs with their file names `<n>-<step>.<stream>`.
    pub fn logs(&self) -> impl Iterator<Item = (String, &LogReport)> {
        self.steps.iter().enumerate().flat_map(|(at, step)| {
            step.logs.iter().map(move |log| (format!("{at}-{}.{}", step.name, log.stream.as_str()), log))
        })
    }
}
