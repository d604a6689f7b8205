//! The life of a job as pure transitions: what has happened, and what is to be done about it.
//!
//! ```text
//! queued ──began──▶ preparing ──resolved, asked──▶ running ──reported──▶ attesting ──finished──▶ finished
//!    └────────────────┴── cancel wished, refused ──┘─────────────▲
//! ```
//! Nothing here reads a clock or does anything: the ledger applies a change, makes it durable unless it is found again, and only then are its
//! effects anybody's business. A change that a state does not allow is an error and changes nothing.

use super::model::{Caller, CancelWish, End, Job, State, Submission};
use ampoule_spec::{Code, Failure, JobId, JobSpec, Name, Outcome, Sha256, UnixNanos};
use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

/// The most characters of a reason for a cancel that are kept.
const REASON_CHARS_MAX: usize = 1024;
/// The most bytes of a failure's message.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// A job, and what only its driver needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Life {
    /// The job.
    pub job: Job,
    /// SHA-256 of the spec's bytes: its JSON, as the ledger keeps it and the runner gets it. What the job leaves to be found is in
    /// it once it is.
    pub spec: Sha256,
    /// What attempts at one and the same job have in common, see [`fence`].
    pub fence: Sha256,
    /// Milliseconds after which it is cancelled if it still waits; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_timeout_ms: Option<u64>,
    /// The id that the runner was asked to run it under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<JobId>,
    /// Why it never ran; with one, no sandbox was ever made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// What has happened to a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// Its turn has come: its inputs are fetched from here on.
    Began,
    /// Everything that it leaves to be found is, and so it has another spec. Durable before the runner is asked.
    Resolved {
        /// SHA-256 of the bytes of that.
        spec: Sha256,
    },
    /// The runner is about to be asked to run it. Durable before the runner is asked.
    Asked {
        /// Under this id.
        runner: JobId,
    },
    /// The runner has admitted it.
    Admitted {
        /// When.
        at: UnixNanos,
    },
    /// The runner has written its report: the sandbox is gone.
    Reported {
        /// When the runner admitted it, by the report.
        admitted: UnixNanos,
    },
    /// Somebody wishes its end.
    CancelWished {
        /// Who, when and why.
        wish: CancelWish,
    },
    /// It ends without having run.
    Refused {
        /// Why.
        failure: Failure,
    },
    /// Its one signed record is durable.
    Finished {
        /// When.
        at: UnixNanos,
        /// How it ended.
        end: Box<End>,
    },
}

impl Change {
    /// Whether nothing is lost if it is lost: what comes of it is done again or found out again, and nobody outside was promised it.
    ///
    /// A turn comes again; when the runner admitted a job and that it has reported stands in the job's own directory, which is durable.
    pub fn is_found_again(&self) -> bool {
        matches!(self, Self::Began | Self::Admitted { .. } | Self::Reported { .. })
    }

    /// The change's spelling.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Began => "began",
            Self::Resolved { .. } => "resolved",
            Self::Asked { .. } => "asked",
            Self::Admitted { .. } => "admitted",
            Self::Reported { .. } => "reported",
            Self::CancelWished { .. } => "cancel_wished",
            Self::Refused { .. } => "refused",
            Self::Finished { .. } => "finished",
        }
    }
}

/// What is to be done once a change is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// It waits no more: take it out of the queue.
    LeaveQueue,
    /// Fetch its inputs.
    Prepare,
    /// Stop fetching its inputs.
    StopPreparing,
    /// Ask the runner to run it.
    AskRunner,
    /// Ask the runner for its end.
    CancelRun,
    /// What was set aside for it on the host is free again.
    Free,
    /// Make its evidence.
    Attest,
    /// Tell everybody who waits for its end.
    Tell,
}

/// A change that a job's state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {} cannot be {change}: {reason}", state_text(*state))]
pub struct Illegal {
    /// Where the job is.
    pub state: State,
    /// What was to be recorded.
    pub change: &'static str,
    /// Why that cannot be.
    pub reason: &'static str,
}

/// A state's spelling.
pub fn state_text(state: State) -> &'static str {
    match state {
        State::Queued => "queued",
        State::Preparing => "preparing",
        State::Running => "running",
        State::Attesting => "attesting",
        State::Finished => "finished",
    }
}

/// What all attempts at one job have in common: caller, project, and the spec without its id and attempt.
///
/// The job's name alone will not do: every commit's build may be called `build`, and a first attempt at the next commit's is no
/// older attempt at this one's.
///
/// # Errors
/// When the spec has no JSON form.
pub fn fence(caller: &Caller, project: &Name, spec: &JobSpec) -> Result<Sha256, serde_json::Error> {
    let mut spec = serde_json::to_value(spec)?;
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("id");
        fields.remove("attempt");
    }
    let text = serde_json::to_vec(&(&caller.subject, project, spec))?;
    sha256(&text)
}

/// SHA-256 of some bytes.
///
/// # Errors
/// Never; the type of a digest is read from its text, and that can fail.
pub fn sha256(bytes: &[u8]) -> Result<Sha256, serde_json::Error> {
    let text: String = digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    serde_json::from_value(serde_json::Value::String(text))
}

/// A failure as it is kept: what a message repeats of a tenant's URLs may be as long as the tenant likes, and a job must fit into a
/// frame of the ledger whatever became of it.
pub fn kept(failure: Failure) -> Failure {
    let Failure { mut message, .. } = failure;
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push('…');
    }
    Failure { message, ..failure }
}

impl Change {
    /// The change as it is written down.
    #[must_use]
    pub fn bounded(self) -> Self {
        match self {
            Self::Refused { failure } => Self::Refused { failure: kept(failure) },
            Self::Finished { at, end } => {
                Self::Finished { at, end: Box::new(End { failure: end.failure.clone().map(kept), ..*end }) }
            }
            other => other,
        }
    }
}

impl Life {
    /// A job that was just submitted: queued. The second value is its spec's bytes.
    ///
    /// # Errors
    /// When the spec has no JSON form.
    pub fn submitted(submission: &Submission, at: UnixNanos) -> Result<(Self, Vec<u8>), serde_json::Error> {
        let spec = serde_json::to_vec(&submission.spec)?;
        let life = Self {
            spec: sha256(&spec)?,
            fence: fence(&submission.caller, &submission.project, &submission.spec)?,
            queue_timeout_ms: submission.queue_timeout_ms,
            runner: None,
            failure: None,
            job: Job {
                id: submission.spec.id.clone(),
                project: submission.project.clone(),
                name: submission.spec.name.clone(),
                profile: submission.spec.profile.clone(),
                attempt: submission.spec.attempt,
                key: submission.key.clone(),
                caller: submission.caller.clone(),
                request: submission.request,
                priority: submission.priority,
                labels: submission.labels.clone(),
                submitted_at: at,
                state: State::Queued,
                started_at: None,
                finished_at: None,
                cancel: None,
                end: None,
            },
        };
        Ok((life, spec))
    }

    /// The job after a change, and what is to be done about it.
    ///
    /// # Errors
    /// [`Illegal`] if the job's state does not allow the change.
    pub fn after(&self, change: &Change) -> Result<(Self, Vec<Effect>), Illegal> {
        let mut next = self.clone();
        let effects = next.apply(change).map_err(|reason| Illegal {
            state: self.job.state,
            change: change.as_str(),
            reason,
        })?;
        Ok((next, effects))
    }

    /// Whether a second wish for its end, or a wish after its end, would change nothing.
    pub fn ignores_wish(&self) -> bool {
        self.job.cancel.is_some() || self.job.state == State::Finished
    }

    fn apply(&mut self, change: &Change) -> Result<Vec<Effect>, &'static str> {
        let state = self.job.state;
        match change {
            Change::Began if state == State::Queued => {
                self.job.state = State::Preparing;
                Ok(vec![Effect::LeaveQueue, Effect::Prepare])
            }
            Change::Began => Err("only a job that waits can begin"),
            Change::Resolved { spec } if state == State::Preparing => {
                self.spec = *spec;
                Ok(Vec::new())
            }
            Change::Resolved { .. } => Err("what a job asks for is found while its inputs are fetched"),
            Change::Asked { runner } if state == State::Preparing => {
                self.job.state = State::Running;
                self.runner = Some(runner.clone());
                Ok(vec![Effect::AskRunner])
            }
            Change::Asked { .. } => Err("only a job whose inputs are there is given to the runner, and once"),
            Change::Admitted { at } if state == State::Running && self.job.started_at.is_none() => {
                self.job.started_at = Some(*at);
                Ok(Vec::new())
            }
            Change::Admitted { .. } => Err("only a job that the runner was asked for is admitted, and once"),
            Change::Reported { admitted } if state == State::Running => {
                self.job.started_at.get_or_insert(*admitted);
                self.job.state = State::Attesting;
                Ok(vec![Effect::Free, Effect::Attest])
            }
            Change::Reported { .. } => Err("only a job that the runner has is reported, and once"),
            Change::CancelWished { wish } => self.wished(wish),
            Change::Refused { failure } => self.refused(failure.clone()),
            Change::Finished { at, end } if state == State::Attesting => self.finished(*at, end),
            Change::Finished { .. } => Err("only a job whose evidence is made finishes, and once"),
        }
    }

    /// A wish ends a job that does not run yet at once: nothing can start it any more.
    fn wished(&mut self, wish: &CancelWish) -> Result<Vec<Effect>, &'static str> {
        if self.job.state == State::Finished {
            return Err("it stays as it ended");
        }
        if self.job.cancel.is_some() {
            return Err("its end was wished before");
        }
        let reason: String = wish.reason.chars().take(REASON_CHARS_MAX).collect();
        self.job.cancel = Some(CancelWish { reason, ..wish.clone() });
        match self.job.state {
            State::Queued | State::Preparing => self.refused(cancelled(wish)),
            State::Running => Ok(vec![Effect::CancelRun]),
            State::Attesting | State::Finished => Ok(Vec::new()),
        }
    }

    fn refused(&mut self, failure: Failure) -> Result<Vec<Effect>, &'static str> {
        let first = match self.job.state {
            State::Queued => Effect::LeaveQueue,
            State::Preparing => Effect::StopPreparing,
            State::Running if self.job.started_at.is_none() => Effect::Free,
            State::Running => return Err("the runner has admitted it, so its report says how it ended"),
            State::Attesting | State::Finished => return Err("it has come to its end before"),
        };
        let mut effects = vec![first, Effect::Attest];
        if first == Effect::StopPreparing {
            effects.insert(1, Effect::Free);
        }
        self.failure = Some(failure);
        self.job.state = State::Attesting;
        Ok(effects)
    }

    fn finished(&mut self, at: UnixNanos, end: &End) -> Result<Vec<Effect>, &'static str> {
        if (end.outcome == Outcome::Succeeded) != end.failure.is_none() {
            return Err("a job has a failure if and only if it did not succeed");
        }
        let code = |failure: &Option<Failure>| failure.as_ref().map(|failure| failure.code);
        if self.failure.is_some() && (code(&self.failure) != code(&end.failure) || !end.outputs.is_empty()) {
            return Err(
                "a job that never ran ends with the failure that kept it from it, and without outputs",
            );
        }
        self.job.finished_at = Some(at);
        self.job.end = Some(end.clone());
        self.job.state = State::Finished;
        Ok(vec![Effect::Tell])
    }
}

/// The failure of a job that was cancelled before it ran.
fn cancelled(wish: &CancelWish) -> Failure {
    let reason: String = wish.reason.chars().take(REASON_CHARS_MAX).collect();
    let message = match reason.as_str() {
        "" => format!("cancelled by {} before it ran", wish.by),
        reason => format!("cancelled by {} before it ran: {reason}", wish.by),
    };
    Failure::new(Code::JobCancelled, message)
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
