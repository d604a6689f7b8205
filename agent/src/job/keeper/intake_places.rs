//! How long the intake of a job may keep its place.
//!
//! There are few places, and a source is whatever a tenant names: one that gives a byte now and then would keep others out
//! for as long as all of a job's downloads may last.

use super::options::Intakes;
use crate::fair::{Seat, Seats};
use crate::local::Progress;
use ampoule_spec::{Code, Failure};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

/// The places of jobs that fetch.
#[derive(Debug)]
pub(super) struct IntakePlaces {
    seats: Arc<Seats>,
    limits: Intakes,
    /// One gives way at a time, and the next only if somebody waits still.
    giving_way: Mutex<()>,
}

/// What an intake has had, as it is told.
#[derive(Debug, Default)]
pub(super) struct Had(StdMutex<(u64, u64)>);

impl Had {
    /// Hears how far something is.
    pub(super) fn hear(&self, progress: &Progress) {
        let mut had = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        had.1 = progress.bytes;
        if progress.ended {
            *had = (had.0.saturating_add(had.1), 0);
        }
    }

    fn bytes(&self) -> u64 {
        let had = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        had.0.saturating_add(had.1)
    }
}

/// Why an intake has to end; nobody else has to until it has ended.
pub(super) struct GivesWay<'a> {
    pub(super) failure: Failure,
    _alone: Option<MutexGuard<'a, ()>>,
}

impl IntakePlaces {
    pub(super) fn new(limits: Intakes) -> Self {
        // Whoever has half keeps nobody out who comes alone.
        let seats = Seats::new(limits.places, limits.places / 2);
        Self { seats, limits, giving_way: Mutex::new(()) }
    }

    pub(super) async fn take(&self, holder: &str) -> Seat {
        self.seats.take(holder).await
    }

    /// Returns when an intake that has had so much since now has to end.
    pub(super) async fn until_over(&self, holder: &str, had: &Had) -> GivesWay<'_> {
        let Intakes { whole, patience, .. } = self.limits;
        let begun = Instant::now();
        let is_slow = || {
            let lasted = begun.elapsed();
            let wanted = || self.seats.is_wanted_of(holder);
            lasted >= patience && had.bytes() < self.limits.slow.saturating_mul(lasted.as_secs()) && wanted()
        };
        let often = (patience / 8).clamp(Duration::from_millis(10), Duration::from_secs(1));
        loop {
            tokio::time::sleep(often).await;
            let (seconds, bytes) = (begun.elapsed().as_secs(), had.bytes());
            if begun.elapsed() >= whole {
                return GivesWay {
                    failure: unreachable(format!(
                        "inputs are not there after {seconds} s, which is as long as that may last; name a nearer mirror, or upload them"
                    )),
                    _alone: None,
                };
            }
            if !is_slow() {
                continue;
            }
            let alone = self.giving_way.lock().await;
            if is_slow() {
                let text = format!(
                    "of inputs {bytes} bytes came in {seconds} s, which is too slow while another project waits; submit again later, name a nearer mirror, or upload them"
                );
                return GivesWay { failure: unreachable(text), _alone: Some(alone) };
            }
        }
    }
}

fn unreachable(message: String) -> Failure {
    Failure::new(Code::InputUnreachable, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::Work;
    use futures_util::FutureExt;
    use futures_util::future::select_all;

    #[tokio::test]
    async fn no_more_give_way_than_are_waited_for() {
        let patience = Duration::from_millis(80);
        let places = IntakePlaces::new(Intakes { places: 2, patience, ..Intakes::default() });
        let mut seats = vec![places.take("a").await, places.take("b").await];
        let had = [Had::default(), Had::default()];
        let both = || ["a", "b"].iter().zip(&had).map(|(of, had)| places.until_over(of, had).boxed());
        // Nobody waits; and then somebody does, and they are not slow.
        assert!(tokio::time::timeout(patience * 8, select_all(both())).await.is_err());
        let mut c = places.take("c").boxed();
        assert!((&mut c).now_or_never().is_none());
        let progress =
            |bytes, ended| Progress { work: Work::Fetch, what: String::new(), bytes, total: None, ended };
        had.iter().for_each(|had| had.hear(&progress(1 << 40, false)));
        had.iter().for_each(|had| had.hear(&progress(1 << 40, true)));
        assert_eq!(had[0].bytes(), 1 << 40);
        assert!(tokio::time::timeout(patience * 8, select_all(both())).await.is_err());
        let had = [Had::default(), Had::default()];
        let both = || ["a", "b"].iter().zip(&had).map(|(of, had)| places.until_over(of, had).boxed());
        let (gives_way, which, other) = select_all(both()).await;
        assert!(gives_way.failure.message.contains("too slow"), "{:?}", gives_way.failure);
        // Until its place is there the other one keeps his; and then nobody waits any more.
        let mut other = select_all(other);
        assert!(tokio::time::timeout(patience * 8, &mut other).await.is_err(), "both give way");
        drop((seats.remove(which), gives_way));
        let c = c.now_or_never().expect("the place that was given up");
        assert!(tokio::time::timeout(patience * 8, &mut other).await.is_err(), "nobody waits for it");
        drop(c);
    }
}
