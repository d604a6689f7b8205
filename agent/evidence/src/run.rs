//! The run attestation: what happened in a job that was admitted, whatever its outcome (docs/run-attestation.md).
//!
//! Everything in it is the runner's measurement but `agentClaims`, which is what the agent says and the
//! signer cannot check. Counters are strings, because many readers keep only 53 bits.

use crate::parameters::HostFactsParameter;
use crate::secrets::SecretParameter;
use crate::slsa::Builder;
use crate::statement::Statement;
use ampoule_spec::{
    CheckState, Code, Fault, Name, Outcome, OutputForm, OutputKind, OutputName, SandboxPath, Stream,
    TeardownReport,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A run attestation.
pub type RunStatement = Statement<RunPredicate>;

/// What only the agent knows, by name. The signer cannot check it.
pub type AgentClaims = BTreeMap<Name, String>;

/// Algorithm to lower-case hex; exactly `sha256`.
pub(crate) type Digests = BTreeMap<String, String>;

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunPredicate {
    /// `urn:uuid:` and the job's id.
    pub invocation_id: String,
    /// Which attempt at the job this was, from 1.
    pub attempt: String,
    /// Who ran it.
    pub builder: Builder,
    /// What was asked for.
    pub request: Request,
    /// How it ended.
    pub outcome: Outcome,
    /// `none`: the runner never took the job. Absent otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<RunSandbox>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<RunFailure>,
    /// When what began and ended.
    pub timeline: RunTimeline,
    /// Where the time went.
    pub phases: Vec<RunPhase>,
    /// The profile's digest, where it got so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile_digest: Option<Digests>,
    /// The isolation layers that were measured.
    pub isolation: BTreeMap<String, RunLayer>,
    /// What the build could see of the host.
    pub host: HostFactsParameter,
    /// The limits in force, where it got so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<BTreeMap<String, String>>,
    /// The image, where it got so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<RunImage>,
    /// The inputs that the job names.
    pub inputs: Vec<RunInput>,
    /// The secrets that steps could have; absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretParameter>,
    /// The steps of the report.
    pub steps: Vec<RunStep>,
    /// The outputs that were taken out.
    pub outputs: Vec<RunOutput>,
    /// What was checked after destruction.
    pub teardown: TeardownRecord,
    /// The provenance statement, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<RunProvenance>,
    /// What the agent says.
    pub agent_claims: AgentClaims,
}

/// Which sandbox a job had, where that is not what every job has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunSandbox {
    /// None at all: it ended before the runner took it, and everything in its record is the agent's word.
    None,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// The job's name.
    pub name: Name,
    /// The profile's name.
    pub profile: Name,
    /// Of the bytes of `spec.json`.
    pub digest: Digests,
}

/// Why a job did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunFailure {
    /// The bounded code.
    pub code: Code,
    /// Who has to act.
    pub fault: Fault,
    /// For people.
    pub message: String,
    /// The step's place in the job, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// What went wrong while cleaning up after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teardown: Option<String>,
}

/// When what began and ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunTimeline {
    /// The job was admitted.
    pub admitted: String,
    /// The first step's process began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// The last step's last process ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<String>,
    /// Destruction was verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroyed: Option<String>,
}

/// How long a phase took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunPhase {
    /// The phase.
    pub phase: String,
    /// Microseconds.
    pub micros: String,
}

/// One isolation layer as measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunLayer {
    /// Whether it is in force.
    pub in_force: bool,
    /// What exactly is, or why not.
    pub detail: String,
}

/// The image as the launcher found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunImage {
    /// `host`, `oci` or `tar`.
    pub kind: String,
    /// Host: of the package list. OCI: of the manifest. Tar: of the archive.
    pub digest: Digests,
    /// Host: what the package list is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named_by: Option<String>,
}

/// An input that the job names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunInput {
    /// Its name.
    pub name: Name,
    /// Where it appeared.
    pub mount: SandboxPath,
    /// The digest that the job demands.
    pub digest: Digests,
}

/// How a step ended; the spelling of `report.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunEnd {
    /// Its program exited with `exitCode`.
    Exited,
    /// Its program was ended by `signal`.
    Signalled,
    /// It ran longer than a time limit.
    TimedOut,
    /// The limit named by `code` ended it.
    KilledByLimit,
    /// The client ended it.
    Cancelled,
    /// Its program could not be started, for `reason`.
    NotStarted,
    /// Ampoule lost it.
    Aborted,
    /// An earlier step ended the job.
    NotRun,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunStep {
    /// Its name.
    pub name: Name,
    /// How it ended.
    pub end: RunEnd,
    /// With `exited`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<String>,
    /// With `signalled`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// With `killed_by_limit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// With `not_started`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When its program began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// When its last process ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<String>,
    /// Processor time of all its processes, in microseconds.
    pub cpu_micros: String,
    /// The highest memory use, in bytes.
    pub memory_peak_bytes: String,
    /// Processes that outlived its program and were killed.
    pub survivors_killed: String,
    /// The secrets that it names; absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Name>,
    /// Its streams.
    pub logs: Vec<RunLog>,
}

/// One stream of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunLog {
    /// Its file name, `<n>-<step>.<stream>`: a subject of the statement.
    pub name: String,
    /// Which.
    pub stream: Stream,
    /// Of the whole stream, cut bytes included.
    pub digest: Digests,
    /// All bytes of the stream.
    pub bytes: String,
    /// Bytes cut from the middle of what is kept.
    pub cut_bytes: String,
    /// Places where a secret stood; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masked: Option<String>,
}

/// An output that was taken out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunOutput {
    /// Its name.
    pub name: OutputName,
    /// Where it lay in the sandbox.
    pub path: SandboxPath,
    /// Whether it is a subject of provenance.
    pub kind: OutputKind,
    /// How it left, unless as a file: `tree` or `tar.zst`.
    #[serde(default, skip_serializing_if = "OutputForm::is_file")]
    pub form: OutputForm,
    /// The length of the file or archive; of a tree, of all its files together.
    pub bytes: String,
    /// With another form than `file`: how many entries the directory had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<String>,
    /// Of the bytes that were copied; of a tree, its tree digest.
    pub digest: Digests,
    /// Whether its owner may execute it.
    pub executable: bool,
}

/// What was checked after destruction. Provenance carries the digest of its canonical JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TeardownRecord {
    /// Who checked.
    pub checked_by: String,
    /// Whether no check found anything left.
    pub clean: bool,
    /// The checks, in the order in which they were made.
    pub checks: Vec<TeardownCheck>,
    /// How long destruction took, in microseconds.
    pub micros: String,
}

/// One thing that was looked for after destruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TeardownCheck {
    /// What was looked for.
    pub what: String,
    /// What was found: `gone`, `left` or `unconfirmed`.
    pub state: CheckState,
    /// How many were left; 0 unless `state` is `left`.
    pub left: String,
    /// How it was checked, or why it could not be.
    pub how: String,
}

/// The provenance statement of the same run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunProvenance {
    /// Of the statement's bytes, before the envelope.
    pub digest: Digests,
}

impl TeardownRecord {
    pub(crate) fn of(report: &TeardownReport) -> Self {
        let checks = report.checks.iter().map(|check| TeardownCheck {
            what: check.what.clone(),
            state: check.state,
            left: check.left.to_string(),
            how: check.how.clone(),
        });
        Self {
            checked_by: report.checked_by.clone(),
            clean: report.is_clean(),
            checks: checks.collect(),
            micros: report.micros.to_string(),
        }
    }

    /// Whether it shows that something is gone and that nothing was found to be left.
    pub(crate) fn shows_destruction(&self) -> bool {
        self.clean && self.checks.iter().any(|check| check.state == CheckState::Gone)
    }
}
