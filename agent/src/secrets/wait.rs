//! Waiting for servers that are away: one time for all that is asked of one for a step, from when the step has been ready on.

use super::acquire::{AcquireError, Step};
use super::server::Times;
use ampoule_spec::Name;
use ampoule_spec::control::SECRETS_WAIT_SECONDS;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// A step waits for five minutes and no longer; the last seconds of that are for telling it why in vain.
const NEW_STEP_MAX: Duration = Duration::from_secs(SECRETS_WAIT_SECONDS - 5);
/// A step that runs has what it had until then, which must be renewed: its rotation is tried again later.
const ROTATION_MAX: Duration = Duration::from_secs(30);
/// How long to wait before a server is asked again: doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// With less left nothing more is begun.
const LEAST: Duration = Duration::from_millis(50);

/// What is waited for, for one step.
#[derive(Debug)]
pub(super) struct Waiting {
    begun: Instant,
    most: Duration,
    pause: Duration,
    /// What was told of each server, by the last try in which it was asked something.
    told: BTreeMap<Name, String>,
}

impl Waiting {
    pub(super) fn of_a_new_step() -> Self {
        Self::at_most(NEW_STEP_MAX)
    }

    pub(super) fn of_a_rotation() -> Self {
        Self::at_most(ROTATION_MAX)
    }

    fn at_most(most: Duration) -> Self {
        Self { begun: Instant::now(), most, pause: PAUSE.0, told: BTreeMap::new() }
    }

    fn whole(&self, times: Times) -> Duration {
        times.wait.min(self.most)
    }

    fn end(&self, times: Times) -> Instant {
        self.begun + self.whole(times)
    }

    /// Until when it is asked whether a server serves: the first time for one request's time, so that it is soon said what is waited for.
    pub(super) fn to_serve(&self, times: Times) -> Instant {
        let end = self.end(times);
        if self.told.is_empty() { end.min(Instant::now() + times.request) } else { end }
    }

    /// Until when something may take of a server that serves: a request that is begun late has its time still.
    pub(super) fn to_answer(&self, times: Times) -> Instant {
        self.end(times).max(Instant::now() + times.request)
    }

    /// Waits until it is tried again, and tells once for each server what is waited for.
    ///
    /// # Errors
    /// What failed, if waiting does not help or has taken its time.
    pub(super) async fn after(&mut self, step: &Step, error: AcquireError) -> Result<(), AcquireError> {
        let AcquireError::Away { server, mut reason, times, was_asked } = error else { return Err(error) };
        // A try that had no time for a request knows nothing of why.
        if let Some(before) = self.told.get(&server).filter(|_| !was_asked) {
            reason.clone_from(before);
        }
        let whole = self.whole(times);
        let left = self.end(times).saturating_duration_since(Instant::now());
        if left < LEAST {
            let reason = format!("{reason}; it was waited for, for {whole:?} in all");
            return Err(AcquireError::unavailable(reason));
        }
        if !self.told.contains_key(&server) {
            let (job, name) = (&step.job, step.name.as_str());
            tracing::warn!(%job, step = name, %server, reason, within = ?whole, "a step waits for a server of secrets");
        }
        self.told.insert(server, reason);
        tokio::time::sleep(self.pause.min(left - LEAST / 2)).await;
        self.pause = (self.pause * 2).min(PAUSE.1);
        Ok(())
    }
}

#[cfg(test)]
#[path = "wait_tests.rs"]
mod tests;
