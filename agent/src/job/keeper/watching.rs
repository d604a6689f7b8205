//! One watcher of a job: reads at its own pace, holds up nobody, and keeps nothing in memory that lies in a file.

use super::follow::{Found, Tail, TailError, What};
use super::inner::Inner;
use crate::job::model::{Job, State};
use crate::job::service::{JobsError, Watched, WatchedEvent};
use ampoule_spec::{Code, JobId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How many things may wait for a watcher that is slow.
pub(super) const WAITING_MAX: usize = 16;
/// How often a job is looked at.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(25));
/// By how much its readers together slow that down, each.
const EACH: Duration = Duration::from_micros(25);

/// Counts a job's watchers for as long as it is held.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) inner: Arc<Inner>,
    pub(super) id: JobId,
}

impl Seat {
    /// How many read the job.
    fn readers(&self) -> u32 {
        let taken = self.inner.seats().get(&self.id).copied().unwrap_or_default();
        u32::try_from(taken).unwrap_or(u32::MAX)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.inner.seats();
        if let Some(taken) = seats.get_mut(&self.id) {
            *taken = taken.saturating_sub(1);
            if *taken == 0 {
                seats.remove(&self.id);
            }
        }
    }
}

/// How long to wait before something is looked at again in which nothing has happened for so long.
pub(super) fn pause(idle: Duration, (least, most): (Duration, Duration)) -> Duration {
    (idle / 8).clamp(least, most.max(least))
}

pub(super) type Item = Result<Watched, JobsError>;

pub(super) struct Watcher {
    pub(super) seat: Seat,
    pub(super) out: mpsc::Sender<Item>,
    pub(super) cursor: u64,
    pub(super) logs: bool,
    pub(super) follow: bool,
}

/// Nobody listens any more.
struct Gone;

impl Watcher {
    /// Tells until the job is finished, or nobody listens.
    pub(super) async fn watch(mut self) {
        // Who has gone needs no answer.
        let _ = self.tell_all().await;
    }

    async fn tell_all(&mut self) -> Result<(), Gone> {
        let (mut tail, mut last, mut said) = (None, None, None);
        let (mut news, mut before) = (tokio::time::Instant::now(), self.cursor);
        loop {
            let Some(life) = self.seat.inner.ledger.get(&self.seat.id) else {
                return self.fail(Code::JobUnknown, "the job's retention is over".to_owned()).await;
            };
            if last.is_none() {
                self.job(&life.job).await?;
                last = Some(life.job.clone());
            }
            // What led to the state first: it was in the events before the state was written down.
            match self.events(tail.take()).await {
                Ok(rest) => tail = rest,
                Err(Some(error)) => return self.fail_tail(error).await,
                Err(None) => return Err(Gone),
            }
            let finished = life.job.state == State::Finished;
            if last.as_ref() != Some(&life.job) || self.cursor != before {
                (news, before) = (tokio::time::Instant::now(), self.cursor);
            }
            if last.as_ref() != Some(&life.job) || finished {
                self.job(&life.job).await?;
                last = Some(life.job.clone());
            }
            let progress = self.seat.inner.progress(&self.seat.id);
            if progress != said {
                if let Some(text) = &progress {
                    self.send(WatchedEvent::Progress(text.clone())).await?;
                }
                said = progress;
            }
            if finished || !self.follow {
                return Ok(());
            }
            let least = LOOK_EVERY.0 + EACH * self.seat.readers();
            let pause = pause(news.elapsed(), (least, LOOK_EVERY.1));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.out.closed() => return Err(Gone),
                () = self.seat.inner.ended.cancelled() => {
                    return self.fail(Code::AdmissionBusy, "the daemon ends; watch again from the last cursor".to_owned()).await;
                }
            }
        }
    }

    /// Tells what is in the events now. Fails with nothing when nobody listens.
    async fn events(&mut self, tail: Option<Tail>) -> Result<Option<Tail>, Option<TailError>> {
        let mut tail = match tail {
            Some(tail) => tail,
            None => {
                let dir = self.seat.inner.launcher.job_dir(&self.seat.id);
                let cursor = self.cursor;
                match blocking(move || Tail::open(&dir, cursor)).await? {
                    Some(tail) => tail,
                    None => return Ok(None),
                }
            }
        };
        while tail.has_grown() {
            let (before, logs) = (tail.at, self.logs);
            let (read, found) = blocking(move || {
                let found = tail.batch(logs)?;
                Ok((tail, found))
            })
            .await?;
            tail = read;
            for Found { end, what } in found {
                self.cursor = end;
                let event = match what {
                    What::Event(event) => WatchedEvent::Runner(event),
                    What::Log(chunk) => WatchedEvent::Log(chunk),
                };
                self.send(event).await.map_err(|Gone| None)?;
            }
            self.cursor = tail.at;
            if tail.at == before {
                break;
            }
        }
        Ok(Some(tail))
    }

    async fn job(&mut self, job: &Job) -> Result<(), Gone> {
        self.send(WatchedEvent::Job(Box::new(job.clone()))).await
    }

    async fn send(&mut self, event: WatchedEvent) -> Result<(), Gone> {
        self.out.send(Ok(Watched { cursor: self.cursor, event })).await.map_err(|_| Gone)
    }

    async fn fail_tail(&mut self, error: TailError) -> Result<(), Gone> {
        let code = match &error {
            TailError::Cursor(_) => Code::CallInvalid,
            TailError::Damaged(_) | TailError::Io(_) => Code::Internal,
        };
        self.fail(code, error.to_string()).await
    }

    async fn fail(&mut self, code: Code, message: String) -> Result<(), Gone> {
        let error = JobsError { code, message, retry_after: None };
        self.out.send(Err(error)).await.map_err(|_| Gone)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TailError> + Send + 'static,
) -> Result<T, Option<TailError>> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(TailError::Io(std::io::Error::other("the reading ended early"))))
        .map_err(Some)
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
        // So many readers that the least is more than the most: they wait for the least.
        assert_eq!(pause(ms(60_000), (ms(40), ms(25))), ms(40));
    }
}
