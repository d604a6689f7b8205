//! How a server is, how long one that fails is left alone, and how long is waited between tries.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// How an address answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServerState {
    /// It is initialized, unsealed and active (or forwards to the one that is).
    Up,
    /// Its key is not there (503).
    Sealed,
    /// It is a standby that does not serve this (429 of its health, 472, 473, or it sends elsewhere).
    Standby,
    /// It was never initialized (501).
    Uninitialized,
    /// No connection: refused, no route, no such name, or a certificate of another authority.
    Unreachable,
    /// It took the connection or the request and did not answer in time.
    Hung,
    /// A quota is used up (429).
    Limited,
    /// It fails (another 5xx, 412, or it broke off).
    Failing,
}

impl ServerState {
    /// Its name in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Sealed => "sealed",
            Self::Standby => "standby",
            Self::Uninitialized => "uninitialized",
            Self::Unreachable => "unreachable",
            Self::Hung => "hung",
            Self::Limited => "limited",
            Self::Failing => "failing",
        }
    }

    /// What a status of `sys/health` says.
    pub(super) const fn of_health(status: u16) -> Self {
        match status {
            200 => Self::Up,
            429 | 472 | 473 => Self::Standby,
            501 => Self::Uninitialized,
            503 => Self::Sealed,
            _ => Self::Failing,
        }
    }

    /// What a status of any other call says: none, if trying again does not help.
    pub(super) const fn of_status(status: u16) -> Option<Self> {
        match status {
            412 => Some(Self::Failing),
            429 => Some(Self::Limited),
            472 | 473 => Some(Self::Standby),
            501 => Some(Self::Uninitialized),
            503 => Some(Self::Sealed),
            500..=599 => Some(Self::Failing),
            _ => None,
        }
    }
}

impl std::fmt::Display for ServerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// After so many failures in a row an address is left alone.
const FAILURES_MAX: u32 = 4;
/// How long, at first; each time twice as long.
const ALONE_FIRST: Duration = Duration::from_millis(500);
/// How long at most: less than any budget, so that each call gets a try.
const ALONE_MAX: Duration = Duration::from_secs(3);

/// The circuit breaker of one address: whoever fails again and again is asked by one call at a time, and rarely.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<Failures>);

#[derive(Debug, Default)]
struct Failures {
    in_a_row: u32,
    alone_until: Option<Instant>,
}

impl Breaker {
    /// When it may be asked: none, now. Whoever is let in after a pause is let in alone, for `probe`.
    pub(super) fn admit(&self, now: Instant, probe: Duration) -> Option<Instant> {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match failures.alone_until {
            Some(until) if until > now => Some(until),
            Some(_) => {
                failures.alone_until = now.checked_add(probe);
                None
            }
            None => None,
        }
    }

    pub(super) fn succeeded(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Failures::default();
    }

    pub(super) fn failed(&self, now: Instant) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.in_a_row = failures.in_a_row.saturating_add(1);
        let over = failures.in_a_row.checked_sub(FAILURES_MAX);
        failures.alone_until = over.and_then(|over| {
            let pause = ALONE_FIRST.saturating_mul(2_u32.saturating_pow(over.min(10))).min(ALONE_MAX);
            now.checked_add(jittered(pause / 2, pause))
        });
    }
}

/// The first wait between tries, at most.
const WAIT_FIRST: Duration = Duration::from_millis(100);
/// The longest.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Waits between tries: with full jitter, so that those who failed together do not come back together.
#[derive(Debug, Default)]
pub(super) struct Backoff(u32);

impl Backoff {
    pub(super) fn next(&mut self) -> Duration {
        let most = WAIT_FIRST.saturating_mul(2_u32.saturating_pow(self.0.min(10))).min(WAIT_MAX);
        self.0 = self.0.saturating_add(1);
        jittered(Duration::ZERO, most)
    }
}

/// Some time between the two. Without randomness, the longer.
pub(super) fn jittered(least: Duration, most: Duration) -> Duration {
    let mut bytes = [0_u8; 4];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        return most;
    }
    let part = f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX);
    least + most.saturating_sub(least).mul_f64(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn breaker_opens_lets_one_in_and_closes() {
        let breaker = Breaker::default();
        let probe = Duration::from_secs(5);
        for _ in 1..FAILURES_MAX {
            breaker.failed(Instant::now());
            assert_eq!(breaker.admit(Instant::now(), probe), None);
        }
        breaker.failed(Instant::now());
        let until = breaker.admit(Instant::now(), probe).unwrap();
        assert!(until - Instant::now() <= ALONE_FIRST);
        tokio::time::advance(ALONE_FIRST).await;
        assert_eq!(breaker.admit(Instant::now(), probe), None);
        assert!(breaker.admit(Instant::now(), probe).is_some(), "a second one was let in beside the first");
        for _ in 0..40 {
            breaker.failed(Instant::now());
        }
        assert!(breaker.admit(Instant::now(), probe).unwrap() - Instant::now() <= ALONE_MAX);
        breaker.succeeded();
        assert_eq!(breaker.admit(Instant::now(), probe), None);
    }

    #[test]
    fn waits_grow_to_a_bound_and_differ() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..60).map(|_| backoff.next()).collect();
        assert!(waits.iter().all(|wait| *wait <= WAIT_MAX) && waits.first().unwrap() <= &WAIT_FIRST);
        assert!(waits.iter().skip(10).max() != waits.iter().skip(10).min());
    }

    #[test]
    fn statuses_that_are_tried_again_are_these() {
        for status in [412, 429, 472, 473, 500, 501, 502, 503, 504] {
            assert!(ServerState::of_status(status).is_some(), "{status}");
        }
        for status in [200, 204, 307, 400, 403, 404, 405, 422] {
            assert!(ServerState::of_status(status).is_none(), "{status}");
        }
    }
}
