//! Trying again, with pauses that grow.

use super::error::ClientError;
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(5);
/// How long a daemon may be away before a client gives up.
const PATIENCE: Duration = Duration::from_secs(600);

/// Hears why something is tried again.
pub(super) type Say = fn(&ClientError);

/// Pauses between attempts.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    pause: Duration,
    since: Option<Instant>,
    patience: Duration,
    say: Option<Say>,
    /// What was said last.
    said: String,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: FIRST, since: None, patience: PATIENCE, say: None, said: String::new() }
    }
}

impl Backoff {
    /// Says each reason once, and again only after another.
    pub(super) fn saying(say: Option<Say>) -> Self {
        Self { say, ..Self::default() }
    }

    /// Begins anew: something has come.
    pub(super) fn reset(&mut self) {
        (self.pause, self.since) = (FIRST, None);
    }

    /// Waits, or gives the error back: it does not pass, or has lasted too long.
    pub(super) async fn wait(&mut self, error: ClientError) -> Result<(), ClientError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if !error.passes() || since.elapsed() >= self.patience {
            return Err(error);
        }
        self.tell(&error);
        let asked = match &error {
            ClientError::Refused { retry_after, .. } => retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        tokio::time::sleep(self.pause.max(asked.min(Duration::from_secs(60)))).await;
        self.pause = (self.pause * 2).min(LONGEST);
        Ok(())
    }

    fn tell(&mut self, error: &ClientError) {
        let Some(say) = self.say else { return };
        let text = error.to_string();
        if text != self.said {
            say(error);
            self.said = text;
        }
    }
}
