//! What happens to jobs, counted.

use super::metrics::Part;
use super::vitals::Vitals;
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
pub(super) async fn count(mut changes: Receiver<Arc<Life>>, vitals: Arc<Vitals>) {
    let mut seen = Seen::default();
    loop {
        match changes.recv().await {
            Ok(life) => seen.change(&life, &vitals, Instant::now()),
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
    fn change(&mut self, life: &Life, vitals: &Vitals, now: Instant) {
        let (job, metrics) = (&life.job, &vitals.metrics);
        let before = self.since.get(&job.id).copied();
        match before {
            Some((state, _)) if state == job.state => return,
            Some((state, since)) => {
                if let Some(part) = part(state) {
                    metrics.part_ended(part, now.saturating_duration_since(since));
                }
            }
            None if job.state == State::Queued => {
                metrics.submitted.inc();
            }
            None => {}
        }
        if job.state == State::Finished {
            self.since.remove(&job.id);
            if let Some(end) = &job.end {
                metrics.job_finished(end.outcome, end.failure.as_ref().map(|failure| failure.code));
            }
        } else {
            self.since.insert(job.id.clone(), (job.state, now));
        }
    }
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
