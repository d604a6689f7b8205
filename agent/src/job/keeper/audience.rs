//! Who watches which job. What is new is looked for once for all of them, and they are told.

use super::inner::Inner;
use crate::fair::{Seat, Seats};
use crate::job::model::State;
use ampoule_spec::{JobId, Name};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How often a job that is watched is looked at.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(25));
/// How many read at the same time, and of one project's jobs among them. A thread each: what they have read is sent without one.
const READING: (usize, usize) = (8, 4);
/// About how many things wait for all readers together, and how many for one at most.
const WAITING: (usize, usize) = (512, 16);
/// What all readers together read in one go, about, and the least and the most of one.
const BATCH_BYTES: (u64, u64, u64) = (16 << 20, 16 << 10, 256 << 10);

/// Everybody who watches.
#[derive(Debug)]
pub(super) struct Audience {
    seats: Arc<Seats>,
    jobs: Mutex<HashMap<JobId, Watched>>,
    reading: Arc<Seats>,
}

#[derive(Debug, Default)]
struct Watched {
    readers: usize,
    news: Arc<Notify>,
}

/// One who watches a job, for as long as he does.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) inner: Arc<Inner>,
    pub(super) id: JobId,
    /// Rings when the job may have something new.
    pub(super) news: Arc<Notify>,
    project: Name,
    _seat: Seat,
}

impl Audience {
    /// With `readers` of a project's jobs at the same time, and twice as many of all.
    pub(super) fn new(readers: usize) -> Self {
        let seats = Seats::new(readers.max(1).saturating_mul(2), readers);
        Self { seats, jobs: Mutex::default(), reading: Seats::new(READING.0, READING.1) }
    }

    fn jobs(&self) -> MutexGuard<'_, HashMap<JobId, Watched>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has everybody look who watches the job.
    pub(super) fn tell(&self, id: &JobId) {
        if let Some(watched) = self.jobs().get(id) {
            watched.news.notify_waiters();
        }
    }

    /// How many things may wait for one who comes now, so that slow readers do not hold more the more they are.
    pub(super) fn waiting(&self) -> usize {
        let (all, most) = WAITING;
        (all / self.seats.load().0.max(1)).clamp(1, most)
    }

    /// How many bytes one reads in one go, so that slow readers do not hold more the more they are.
    pub(super) fn batch_bytes(&self) -> u64 {
        let readers = u64::try_from(self.seats.load().0.max(1)).unwrap_or(u64::MAX);
        let (all, least, most) = BATCH_BYTES;
        (all / readers).clamp(least, most)
    }
}

impl Reader {
    /// One more, if there may be one more of the project's.
    pub(super) fn admit(inner: &Arc<Inner>, id: &JobId, project: &Name) -> Option<Self> {
        let seat = inner.audience.seats.try_take(project.as_str())?;
        let mut jobs = inner.audience.jobs();
        let watched = jobs.entry(id.clone()).or_default();
        watched.readers += 1;
        let (news, is_first) = (watched.news.clone(), watched.readers == 1);
        drop(jobs);
        if is_first {
            tokio::spawn(look(inner.clone(), id.clone(), news.clone()));
        }
        Some(Self { inner: inner.clone(), id: id.clone(), news, project: project.clone(), _seat: seat })
    }

    /// Waits for a turn to read.
    pub(super) async fn turn(&self) -> Seat {
        self.inner.audience.reading.take(self.project.as_str()).await
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut jobs = self.inner.audience.jobs();
        if let Some(watched) = jobs.get_mut(&self.id) {
            watched.readers = watched.readers.saturating_sub(1);
            if watched.readers == 0 {
                jobs.remove(&self.id);
            }
        }
    }
}

/// Looks for what comes without a change of the job's state, for as long as somebody watches it.
async fn look(inner: Arc<Inner>, id: JobId, news: Arc<Notify>) {
    let events = inner.launcher.job_dir(&id).join("events");
    let (mut since, mut last) = (Instant::now(), None);
    loop {
        let is_watched = inner.audience.jobs().get(&id).is_some_and(|now| Arc::ptr_eq(&now.news, &news));
        let is_over = inner.ledger.get(&id).is_none_or(|life| life.job.state == State::Finished);
        if !is_watched || is_over || inner.ended.is_cancelled() {
            // Whoever has looked before this tells the rest.
            news.notify_waiters();
            return;
        }
        let length = std::fs::metadata(&events).map(|meta| meta.len()).ok();
        let now = Some((length, inner.progress(&id)));
        if now != last {
            (since, last) = (Instant::now(), now);
            news.notify_waiters();
        }
        tokio::time::sleep(pause(since.elapsed(), LOOK_EVERY)).await;
    }
}

/// How long to wait before something is looked at again in which nothing has happened for so long.
pub(super) fn pause(idle: Duration, (least, most): (Duration, Duration)) -> Duration {
    (idle / 8).clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_grows_with_silence_and_stays_in_its_bounds() {
        let ms = Duration::from_millis;
        for (idle, expected) in [(0, 1), (8, 1), (80, 10), (160, 20), (60_000, 25)] {
            assert_eq!(pause(ms(idle), LOOK_EVERY), ms(expected), "{idle} ms");
        }
    }

    #[test]
    fn many_readers_have_less_in_memory_each() {
        let audience = Audience::new(4096);
        let seats: Vec<_> = (0..2000).map(|_| audience.seats.try_take("p").unwrap()).collect();
        assert_eq!((audience.batch_bytes(), audience.waiting()), (16 << 10, 1));
        drop(seats);
        assert_eq!((audience.batch_bytes(), audience.waiting()), (256 << 10, 16));
    }
}
