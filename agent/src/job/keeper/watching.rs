//! One watcher of a job: reads at its own pace, holds up nobody, and keeps nothing in memory that lies in a file.

use super::audience::Reader;
use super::follow::{Found, Tail, TailError, What};
use crate::job::model::{Job, State};
use crate::job::service::{JobsError, Watched, WatchedEvent};
use ampoule_spec::Code;
use std::pin::pin;
use tokio::sync::mpsc;

pub(super) type Item = Result<Watched, JobsError>;

pub(super) struct Watcher {
    pub(super) reader: Reader,
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
        let news = self.reader.news.clone();
        loop {
            // What comes while we look rings too.
            let mut told = pin!(news.notified());
            told.as_mut().enable();
            let Some(life) = self.reader.inner.ledger.get(&self.reader.id) else {
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
            if last.as_ref() != Some(&life.job) || finished {
                self.job(&life.job).await?;
                last = Some(life.job.clone());
            }
            let progress = self.reader.inner.progress(&self.reader.id);
            if progress != said {
                if let Some(text) = &progress {
                    self.send(WatchedEvent::Progress(text.clone())).await?;
                }
                said = progress;
            }
            if finished || !self.follow {
                return Ok(());
            }
            tokio::select! {
                () = told => {}
                () = self.out.closed() => return Err(Gone),
                () = self.reader.inner.ended.cancelled() => {
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
                let dir = self.reader.inner.launcher.job_dir(&self.reader.id);
                let cursor = self.cursor;
                match self.read(move || Tail::open(&dir, cursor)).await? {
                    Some(tail) => tail,
                    None => return Ok(None),
                }
            }
        };
        while tail.has_grown() {
            let (before, logs, bytes) = (tail.at, self.logs, self.reader.inner.audience.batch_bytes());
            let read = move || {
                let found = tail.batch(logs, bytes)?;
                Ok((tail, found))
            };
            let (read, found) = self.read(read).await?;
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

    /// Reads when it is our turn: the files are read by few, and sent to all.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, TailError> + Send + 'static,
    ) -> Result<T, Option<TailError>> {
        let turn = tokio::select! {
            turn = self.reader.turn() => turn,
            // Whoever has gone has nothing read.
            () = self.out.closed() => return Err(None),
        };
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        })
        .await;
        done.unwrap_or_else(|_| Err(TailError::Io(std::io::Error::other("the reading ended early"))))
            .map_err(Some)
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
