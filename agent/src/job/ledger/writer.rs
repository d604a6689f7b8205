//! The one thread that writes: it takes what waits, appends it, syncs once, and only then tells anybody. What would be found
//! again after a loss is told when it is appended, and durable with whatever is synced next.

use super::compact::Next;
use super::frames::{self, Changed, Forgotten};
use super::index::{Index, Kept, Retention, SpecAt};
use super::load::{io_of, length, spec_kind};
use super::{Entered, LedgerError, Shared};
use crate::job::model::{State, Submission};
use crate::job::state::{Change, Effect, Life};
use ampoule_journal::{HEADER_BYTES, Medium, WriteError, Writer};
use ampoule_spec::{JobId, UnixNanos};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::{mpsc, oneshot};

/// The most that one sync makes durable.
const BATCH_MAX: usize = 256;
/// The most bytes that one sync makes durable, roughly.
const BATCH_BYTES_MAX: u64 = 8 << 20;
/// By how much what is set aside grows.
const STEP_BYTES: u64 = 1 << 20;

type Reply<T> = oneshot::Sender<Result<T, LedgerError>>;

/// What is asked of the writer.
pub(super) enum Ask {
    Submit {
        submission: Box<Submission>,
        at: UnixNanos,
        reply: Reply<Entered>,
    },
    /// With the bytes of the spec that a job has from then on, where that is the change.
    Change {
        id: JobId,
        change: Change,
        spec: Option<Vec<u8>>,
        reply: Reply<(Arc<Life>, Vec<Effect>)>,
    },
    Forget {
        id: JobId,
        reply: Reply<()>,
    },
}

/// What is set aside beyond the end of the file, so that a full disk stops the intake and not the end of jobs.
pub(super) struct Room {
    file: File,
    reserve: u64,
    until: u64,
}

impl Room {
    pub(super) fn new(file: File, reserve: u64) -> Self {
        Self { file, reserve, until: 0 }
    }

    /// Sets aside the reserve and `bytes` before it, from `end` on.
    pub(super) fn make(&mut self, end: u64, bytes: u64) -> io::Result<()> {
        let wanted = end.saturating_add(bytes).saturating_add(self.reserve);
        if wanted > self.until {
            let step = STEP_BYTES.min(self.reserve.max(4096));
            let until = wanted.next_multiple_of(step);
            fallocate(&self.file, FallocateFlags::KEEP_SIZE, end, until.saturating_sub(end))?;
            self.until = until;
        }
        Ok(())
    }
}

/// The writer's side of the ledger.
pub(super) struct Scribe<M> {
    pub(super) writer: Writer<M>,
    pub(super) room: Room,
    pub(super) nonce: u64,
    pub(super) shared: Arc<Shared>,
    pub(super) retention: Retention,
    /// The file that is written to, for the places of specs.
    pub(super) file: Arc<File>,
    pub(super) next: Next<M>,
}

/// What was appended and is not durable yet.
#[derive(Default)]
struct Batch {
    /// Whether anything in it must be durable before anybody is told.
    must_last: bool,
    index: Index,
    /// Jobs after each change, in order.
    changed: Vec<Kept>,
    forgotten: Vec<JobId>,
    replies: Vec<Box<dyn FnOnce() + Send>>,
}

impl<M: Medium> Scribe<M> {
    /// Works until nobody can ask any more.
    pub(super) fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        let guard = AbortOnPanic;
        while let Some(first) = asks.blocking_recv() {
            let (start, mut batch) = (self.writer.offset(), Batch::default());
            self.take(first, &mut batch);
            while batch.replies.len() < BATCH_MAX
                && self.writer.offset().saturating_sub(start) < BATCH_BYTES_MAX
                && let Ok(ask) = asks.try_recv()
            {
                self.take(ask, &mut batch);
            }
            if batch.must_last {
                self.commit();
            }
            self.publish(&batch);
            batch.replies.into_iter().for_each(|reply| reply());
            self.compact_if_due();
        }
        std::mem::forget(guard);
    }

    /// Makes everything durable, or ends the process: after a failed sync nobody can say what is on the disk, and the
    /// next sync may report success for pages that the kernel has dropped.
    fn commit(&mut self) {
        if let Err(error) = self.writer.sync() {
            fatal(&error);
        }
        self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        let durable = self.writer.offset();
        // Not durable itself, and need not be: without it, at worst damage in the last batch passes for a torn tail.
        let marked = self.writer.append(frames::MARK, &frames::mark(self.nonce, durable));
        if let Err(error @ (WriteError::Broken(_) | WriteError::Unusable)) = marked {
            fatal(&error);
        }
    }

    fn publish(&self, batch: &Batch) {
        let mut index = self.shared.write();
        for kept in &batch.changed {
            index.put(kept.clone());
            // That nobody listens is no error.
            let _ = self.shared.changes.send(kept.life.clone());
        }
        batch.forgotten.iter().for_each(|id| index.remove(id));
    }

    fn take(&mut self, ask: Ask, batch: &mut Batch) {
        match ask {
            Ask::Submit { submission, at, reply } => {
                let answer = self.submit(&submission, at, batch);
                batch.replies.push(Box::new(move || drop(reply.send(answer))));
            }
            Ask::Change { id, change, spec, reply } => {
                let answer = self.change(id, change, spec, batch);
                batch.replies.push(Box::new(move || drop(reply.send(answer))));
            }
            Ask::Forget { id, reply } => {
                let answer = self.forget(id, batch);
                batch.replies.push(Box::new(move || drop(reply.send(answer))));
            }
        }
    }

    fn submit(
        &mut self,
        submission: &Submission,
        at: UnixNanos,
        batch: &mut Batch,
    ) -> Result<Entered, LedgerError> {
        let (subject, key) = (&submission.caller.subject, &submission.key);
        let before = batch.index.by_key(subject, key).cloned();
        let before = before.or_else(|| self.shared.read().by_key(subject, key).cloned());
        if let Some(Kept { life, .. }) = before {
            if life.job.request != submission.request {
                return Err(LedgerError::OtherRequest { job: life.job.id.clone() });
            }
            return Ok(Entered { life, attached: true });
        }
        let (life, spec) = Life::submitted(submission, at).map_err(|e| LedgerError::Format(e.to_string()))?;
        self.shared.room(&life.job.project, &self.retention, at)?;
        let (id, attempt) = (&life.job.id, life.job.attempt);
        if batch.index.kept(id).is_some() || self.shared.read().kept(id).is_some() {
            return Err(LedgerError::Format(format!("the id {id} is another job's")));
        }
        let seen = batch.index.attempt(&life.fence).max(self.shared.read().attempt(&life.fence));
        if let Some(seen) = seen.filter(|seen| attempt < *seen) {
            return Err(LedgerError::LowerAttempt { attempt, seen });
        }
        let job = serde_json::to_vec(&life).map_err(|e| LedgerError::Format(e.to_string()))?;
        let bytes = spec.len().saturating_add(job.len()).saturating_add(3 * HEADER_BYTES + 16);
        self.room
            .make(self.writer.offset(), bytes.try_into().unwrap_or(u64::MAX))
            .map_err(LedgerError::full)?;
        let spec = self.append_spec(&spec, submission.spec.check_resolved().is_err())?;
        self.append(frames::JOB, &job)?;
        batch.must_last = true;
        let life = Arc::new(life);
        batch.put(Kept { life: life.clone(), spec: Some(spec) });
        Ok(Entered { life, attached: false })
    }

    fn change(
        &mut self,
        id: JobId,
        change: Change,
        spec: Option<Vec<u8>>,
        batch: &mut Batch,
    ) -> Result<(Arc<Life>, Vec<Effect>), LedgerError> {
        let kept = self.current(&id, batch).ok_or_else(|| LedgerError::Unknown(id.clone()))?;
        if matches!(change, Change::CancelWished { .. }) && kept.life.ignores_wish() {
            return Ok((kept.life, Vec::new()));
        }
        let (life, effects) = kept.life.after(&change)?;
        let resolves = matches!(change, Change::Resolved { .. });
        let changed = Changed { job: id, what: change };
        let payload = serde_json::to_vec(&changed).map_err(|e| LedgerError::Format(e.to_string()))?;
        let spec = match spec {
            // A crash between the two leaves a spec that is nobody's.
            Some(spec) if resolves => {
                // Not of what is set aside: the job can wait.
                let bytes = length(&spec).saturating_add(length(&payload));
                self.room.make(self.writer.offset(), bytes).map_err(LedgerError::full)?;
                Some(self.append_spec(&spec, false)?)
            }
            None if !resolves => kept.spec.filter(|_| life.job.state != State::Finished),
            _ => {
                return Err(LedgerError::Format(
                    "a spec belongs to the change that says it is another".to_owned(),
                ));
            }
        };
        self.append(frames::CHANGE, &payload)?;
        batch.must_last |= !changed.what.is_found_again();
        let life = Arc::new(life);
        batch.put(Kept { life: life.clone(), spec });
        Ok((life, effects))
    }

    fn forget(&mut self, id: JobId, batch: &mut Batch) -> Result<(), LedgerError> {
        let kept = self.current(&id, batch).ok_or_else(|| LedgerError::Unknown(id.clone()))?;
        if kept.life.job.state != State::Finished {
            return Err(LedgerError::NotFinished(id));
        }
        let payload = serde_json::to_vec(&Forgotten { job: id.clone() })
            .map_err(|e| LedgerError::Format(e.to_string()))?;
        self.append(frames::FORGOTTEN, &payload)?;
        batch.must_last = true;
        batch.index.remove(&id);
        batch.forgotten.push(id);
        Ok(())
    }

    /// A job with what this batch has changed of it.
    fn current(&self, id: &JobId, batch: &Batch) -> Option<Kept> {
        if batch.forgotten.contains(id) {
            return None;
        }
        batch.index.kept(id).cloned().or_else(|| self.shared.read().kept(id).cloned())
    }

    fn append_spec(&mut self, spec: &[u8], is_open: bool) -> Result<SpecAt, LedgerError> {
        let offset = self.append(spec_kind(is_open), spec)?;
        Ok(SpecAt { file: self.file.clone(), offset, is_open, bytes: length(spec) })
    }

    fn append(&mut self, kind: u8, payload: &[u8]) -> Result<u64, LedgerError> {
        match self.writer.append(kind, payload) {
            Ok(at) => Ok(at),
            Err(WriteError::Oversize { bytes }) => Err(LedgerError::Oversize { bytes }),
            Err(error @ WriteError::Full(_)) => {
                self.room.until = 0; // A frame that was written in part was cut off, and what was set aside with it.
                Err(LedgerError::full(io_of(error)))
            }
            Err(error) => fatal(&error),
        }
    }
}

impl Batch {
    fn put(&mut self, kept: Kept) {
        self.index.put(kept.clone());
        self.changed.push(kept);
    }
}

/// A ledger without its writer acknowledges nothing and must not look alive.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        fatal(&WriteError::Unusable);
    }
}

/// Ends the process: what is on the disk is not known, and the next start finds out.
pub(super) fn fatal(error: &WriteError) -> ! {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let _ = writeln!(
        io::stderr(),
        "the ledger cannot be made durable: {error}{cause}; this process ends now, and what it has acknowledged is read at \
         the next start"
    );
    std::process::abort()
}
