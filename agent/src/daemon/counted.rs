//! What happens to jobs, counted.

use super::metrics::Part;
use super::record::{Recorder, ours};
use super::vitals::Vitals;
use crate::audit::{Action, AuditEvent};
use crate::job::State;
use crate::job::state::Life;
use ampoule_spec::JobId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// Counts changes until there are no more. What a restart has interrupted is counted from there on: times of parts are those
/// that this process has seen begin.
pub(super) async fn count(mut changes: Receiver<Arc<Life>>, vitals: Arc<Vitals>, recorder: Recorder) {
    let mut seen = Seen::default();
    loop {
        match changes.recv().await {
            Ok(life) => {
                if let Some(event) = seen.change(&life, &vitals, Instant::now()) {
                    recorder.soon(event);
                }
            }
            // What was missed is not guessed; beginnings may be among it.
            Err(RecvError::Lagged(_)) => seen.since.clear(),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Unfinished jobs, and since when they are in their state.
#[derive(Default)]
struct Seen {
    since: HashMap<JobId, (State, Instant)>,
}

impl Seen {
    fn change(&mut self, life: &Life, vitals: &Vitals, now: Instant) -> Option<AuditEvent> {
        let mut event = None;
        let (job, metrics) = (&life.job, &vitals.metrics);
        let before = self.since.get(&job.id).copied();
        match before {
            Some((state, _)) if state == job.state => return None,
            Some((state, since)) => {
                if let Some(part) = part(state) {
                    metrics.part_ended(part, now.saturating_duration_since(since));
                }
            }
            None if job.state == State::Queued => {
                metrics.submitted.inc();
                event = Some(about(life, Action::JobSubmitted));
            }
            None => {}
        }
        if job.state == State::Finished {
            self.since.remove(&job.id);
            if let Some(end) = &job.end {
                metrics.job_finished(end.outcome, end.failure.as_ref().map(|failure| failure.code));
                let mut finished = about(life, Action::JobFinished);
                finished.detail.insert("outcome".to_owned(), end.outcome.as_str().to_owned());
                finished.detail.insert("attestation".to_owned(), end.attestation.to_string());
                event = Some(finished);
            }
        } else {
            self.since.insert(job.id.clone(), (job.state, now));
        }
        event
    }
}

fn about(life: &Life, action: Action) -> AuditEvent {
    let job = &life.job;
    let mut event = ours(action, "");
    event.actor.clone_from(&job.caller.subject);
    (event.project, event.job) = (Some(job.project.clone()), Some(job.id.clone()));
    event
}

fn part(state: State) -> Option<Part> {
    match state {
        State::Queued => Some(Part::Queued),
        State::Preparing => Some(Part::Preparing),
        State::Running => Some(Part::Running),
        State::Attesting => Some(Part::Attesting),
        State::Finished => None,
    }
}
