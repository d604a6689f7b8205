//! A clock for the stages of a set-up.

use std::time::Instant;

/// Where the time of a set-up went.
#[derive(Debug)]
pub(crate) struct StageClock {
    last: Instant,
    /// Stage and microseconds since the one before.
    pub(crate) stages: Vec<(String, u64)>,
}

impl StageClock {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self { last: Instant::now(), stages: Vec::new() }
    }

    /// Ends a stage.
    pub(crate) fn mark(&mut self, stage: &str) {
        let micros = u64::try_from(self.last.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.stages.push((stage.to_owned(), micros));
        self.last = Instant::now();
    }
}
