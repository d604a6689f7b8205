//! The daemon's jobs as the wire has them.

use crate::job::{Job, State, Watched, WatchedEvent};
use crate::local::{ReleasedOutput, exit_of};
use ampoule_proto::v1 as wire;
use ampoule_spec::{Event, LogChunk, Outcome, OutputForm, StepEnd, Stream, UnixNanos};

/// A job, and how many are ahead of it.
pub(super) fn job(job: &Job, queue_position: Option<u32>) -> wire::Job {
    let end = job.end.as_ref();
    let failure = end.and_then(|end| end.failure.as_ref());
    let exit = end.map_or(0, |end| u32::from(exit_of(end.failure.as_ref(), end.outcome)));
    wire::Job {
        id: job.id.to_string(),
        project: job.project.to_string(),
        name: job.name.to_string(),
        profile: job.profile.to_string(),
        attempt: job.attempt,
        state: state(job.state).into(),
        outcome: end.map_or(wire::JobOutcome::Unspecified, |end| outcome(end.outcome)).into(),
        code: failure.map(|failure| failure.code.to_string()).unwrap_or_default(),
        fault: failure.map(|failure| failure.code.fault().as_str().to_owned()).unwrap_or_default(),
        message: failure.map(|failure| failure.message.clone()).unwrap_or_default(),
        retryable: failure.is_some_and(|failure| failure.code.retryable()),
        exit_code: exit,
        caller: job.caller.subject.clone(),
        idempotency_key: job.key.as_str().to_owned(),
        submitted_at: Some(time(job.submitted_at)),
        started_at: job.started_at.map(time),
        finished_at: job.finished_at.map(time),
        labels: job.labels.clone(),
        priority: u32::from(job.priority),
        queue_position: queue_position.unwrap_or_default(),
        cancel_requested: job.cancel.is_some(),
        outputs: end.map(|end| end.outputs.iter().map(output).collect()).unwrap_or_default(),
        attestation_sha256: end.map(|end| end.attestation.to_string()).unwrap_or_default(),
    }
}

fn output(output: &ReleasedOutput) -> wire::JobOutput {
    let form = match output.form {
        OutputForm::File => wire::OutputForm::File,
        OutputForm::Tree => wire::OutputForm::Tree,
        OutputForm::TarZst => wire::OutputForm::TarZst,
    };
    wire::JobOutput {
        name: output.name.clone(),
        form: form.into(),
        size_bytes: output.bytes,
        sha256: output.sha256.clone(),
        entries: output.entries.unwrap_or_default(),
    }
}

fn state(state: State) -> wire::JobState {
    match state {
        State::Queued => wire::JobState::Queued,
        State::Preparing => wire::JobState::Preparing,
        State::Running => wire::JobState::Running,
        State::Attesting => wire::JobState::Attesting,
        State::Finished => wire::JobState::Finished,
    }
}

/// The state of a number; none for one that is not known.
pub(super) fn state_of(number: i32) -> Option<State> {
    match wire::JobState::try_from(number).ok()? {
        wire::JobState::Unspecified => None,
        wire::JobState::Queued => Some(State::Queued),
        wire::JobState::Preparing => Some(State::Preparing),
        wire::JobState::Running => Some(State::Running),
        wire::JobState::Attesting => Some(State::Attesting),
        wire::JobState::Finished => Some(State::Finished),
    }
}

fn outcome(outcome: Outcome) -> wire::JobOutcome {
    match outcome {
        Outcome::Succeeded => wire::JobOutcome::Succeeded,
        Outcome::Failed => wire::JobOutcome::Failed,
        Outcome::TimedOut => wire::JobOutcome::TimedOut,
        Outcome::KilledByLimit => wire::JobOutcome::KilledByLimit,
        Outcome::Cancelled => wire::JobOutcome::Cancelled,
        Outcome::Aborted => wire::JobOutcome::Aborted,
        Outcome::Quarantined => wire::JobOutcome::Quarantined,
    }
}

/// The outcome of a number; none for one that is not known.
pub(super) fn outcome_of(number: i32) -> Option<Outcome> {
    match wire::JobOutcome::try_from(number).ok()? {
        wire::JobOutcome::Unspecified => None,
        wire::JobOutcome::Succeeded => Some(Outcome::Succeeded),
        wire::JobOutcome::Failed => Some(Outcome::Failed),
        wire::JobOutcome::TimedOut => Some(Outcome::TimedOut),
        wire::JobOutcome::KilledByLimit => Some(Outcome::KilledByLimit),
        wire::JobOutcome::Cancelled => Some(Outcome::Cancelled),
        wire::JobOutcome::Aborted => Some(Outcome::Aborted),
        wire::JobOutcome::Quarantined => Some(Outcome::Quarantined),
    }
}

pub(super) fn time(at: UnixNanos) -> prost_types::Timestamp {
    let (seconds, nanos) = (at.0 / 1_000_000_000, at.0 % 1_000_000_000);
    prost_types::Timestamp {
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: i32::try_from(nanos).unwrap_or_default(),
    }
}

/// Something that has happened; none for an event of the runner's that clients are not told.
pub(super) fn watched(
    watched: &Watched,
    queue_position: impl FnOnce(&Job) -> Option<u32>,
) -> Option<wire::WatchJobResponse> {
    use wire::watch_job_response::Event as Told;
    let told = match &watched.event {
        WatchedEvent::Job(job) => Told::Job(self::job(job, queue_position(job))),
        WatchedEvent::Progress(what) => Told::Progress(wire::ProgressEvent { what: what.clone() }),
        WatchedEvent::Log(chunk) => Told::Log(log(chunk)),
        WatchedEvent::Runner(event) => match event.as_ref() {
            Event::Phase { at, phase } => {
                Told::Phase(wire::PhaseEvent { phase: phase.clone(), at: Some(time(*at)) })
            }
            Event::StepStarted { at, step, name } => Told::Step(wire::StepEvent {
                index: *step,
                name: name.to_string(),
                at: Some(time(*at)),
                end: None,
            }),
            Event::StepFinished { at, step, report } => Told::Step(wire::StepEvent {
                index: *step,
                name: report.name.to_string(),
                at: Some(time(*at)),
                end: Some(step_end(&report.end)),
            }),
            _ => return None,
        },
    };
    Some(wire::WatchJobResponse { cursor: watched.cursor, event: Some(told) })
}

fn step_end(end: &StepEnd) -> wire::StepEnd {
    match end {
        StepEnd::Exited { code } => wire::StepEnd { exit_code: u32::try_from(*code).ok(), signal: None },
        StepEnd::Signalled { signal } => {
            wire::StepEnd { exit_code: None, signal: u32::try_from(*signal).ok() }
        }
        _ => wire::StepEnd::default(),
    }
}

fn log(chunk: &LogChunk) -> wire::LogChunk {
    let stream = match chunk.stream {
        Stream::Stdout => wire::LogStream::Stdout,
        Stream::Stderr => wire::LogStream::Stderr,
    };
    wire::LogChunk {
        step: chunk.step,
        stream: stream.into(),
        offset: chunk.offset,
        data: chunk.bytes.clone(),
    }
}
