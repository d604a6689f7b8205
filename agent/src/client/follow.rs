//! Following a job until it is finished, over connections that may be lost.

use super::channel::Client;
use super::error::ClientError;
use super::retry::Backoff;
use ampoule_proto::v1::{self as proto, watch_job_response::Event};
use ampoule_spec::{LogChunk, Stream, UnixNanos};
use std::collections::BTreeMap;

/// What there is to tell of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// The job as it is now.
    Job(Box<proto::Job>),
    /// A phase of the runner.
    Phase(String),
    /// A step has begun or ended.
    Step(proto::StepEvent),
    /// Bytes of a log: none is told twice.
    Log(LogChunk),
    /// The host fetches something.
    Progress(String),
    /// The connection was lost, and is tried again.
    Lost(String),
}

/// Follows one job. It may be asked again after an error: it goes on where it was.
#[derive(Debug)]
pub struct Follow {
    client: Client,
    job_id: String,
    /// The cursor of the last message.
    cursor: u64,
    /// Whether log bytes are wanted.
    logs: bool,
    /// Whether what is to come is waited for.
    follow: bool,
    reached: BTreeMap<(u32, Stream), u64>,
}

impl Follow {
    /// From the beginning.
    pub fn new(client: Client, job_id: &str, logs: bool, follow: bool) -> Self {
        let (job_id, cursor, reached) = (job_id.to_owned(), 0, BTreeMap::new());
        Self { client, job_id, cursor, logs, follow, reached }
    }

    /// Tells everything up to the end, and gives the job as it was told last.
    ///
    /// # Errors
    /// [`ClientError`] if the daemon refuses, or cannot be reached for ten minutes.
    pub async fn run(&mut self, tell: &mut (dyn FnMut(Told) + Send)) -> Result<proto::Job, ClientError> {
        let mut backoff = Backoff::default();
        let mut last = None;
        loop {
            let before = self.cursor;
            match self.stream(&mut last, tell).await {
                Ok(()) => match last.take() {
                    Some(job) if !self.follow || is_finished(&job) => return Ok(job),
                    // A daemon that is going ends its streams; the job does not end with it.
                    job => {
                        last = job;
                        let reason = "the stream ended before the job".to_owned();
                        backoff.wait(ClientError::Lost { reason }).await?;
                    }
                },
                Err(error) => {
                    if self.cursor > before {
                        backoff.reset();
                    }
                    if error.passes() {
                        tell(Told::Lost(error.to_string()));
                    }
                    backoff.wait(error).await?;
                }
            }
        }
    }

    async fn stream(
        &mut self,
        last: &mut Option<proto::Job>,
        tell: &mut (dyn FnMut(Told) + Send),
    ) -> Result<(), ClientError> {
        let request = proto::WatchJobRequest {
            job_id: self.job_id.clone(),
            after_cursor: self.cursor,
            logs: self.logs,
            follow: self.follow,
        };
        let mut stream = self.client.jobs().watch_job(request).await?.into_inner();
        while let Some(message) = stream.message().await? {
            if message.cursor < self.cursor {
                let reason = format!("cursor {} after {}", message.cursor, self.cursor);
                return Err(ClientError::Answer { reason });
            }
            if let Some(told) = message.event.and_then(|event| self.told(event, last)) {
                tell(told);
            }
            // Only what was told has been received.
            self.cursor = message.cursor;
        }
        Ok(())
    }

    fn told(&mut self, event: Event, last: &mut Option<proto::Job>) -> Option<Told> {
        match event {
            Event::Job(job) if job.id != self.job_id => None,
            Event::Job(job) => {
                // Each connection begins with the job: it is told again only if it is another.
                let is_new = last.as_ref() != Some(&job);
                *last = Some(job.clone());
                is_new.then(|| Told::Job(Box::new(job)))
            }
            Event::Phase(phase) => Some(Told::Phase(phase.phase)),
            Event::Step(step) => Some(Told::Step(step)),
            Event::Log(log) => self.fresh(log).map(Told::Log),
            Event::Progress(progress) => Some(Told::Progress(progress.what)),
        }
    }

    /// What of a chunk was not told before.
    fn fresh(&mut self, log: proto::LogChunk) -> Option<LogChunk> {
        let stream = match log.stream() {
            proto::LogStream::Stdout => Stream::Stdout,
            proto::LogStream::Stderr => Stream::Stderr,
            proto::LogStream::Unspecified => return None,
        };
        let reached = self.reached.entry((log.step, stream)).or_default();
        let end = log.offset.saturating_add(log.data.len() as u64);
        let known = usize::try_from(reached.saturating_sub(log.offset)).unwrap_or(usize::MAX);
        let bytes = log.data.get(known..).unwrap_or_default().to_vec();
        let offset = log.offset.max(*reached);
        *reached = end.max(*reached);
        let chunk = LogChunk { step: log.step, stream, at: UnixNanos(0), offset, bytes };
        (!chunk.bytes.is_empty()).then_some(chunk)
    }
}

/// Whether a job's record is durable.
pub fn is_finished(job: &proto::Job) -> bool {
    job.state() == proto::JobState::Finished
}
