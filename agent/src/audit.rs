//! The audit log of the daemon: what was called, denied, read and ended, in a log that cannot be edited unseen.
//!
//! A C2SP tlog-tiles log as files (docs/formats.md, "Audit log"; `ampoule_evidence::tlog` has the arithmetic), written by one thread: it takes what
//! waits, makes it durable under one signed checkpoint, and only then tells anybody its index. Tiles are written a moment later, for many at once.
//!
//! Not guaranteed: that whoever has the key and the disk cannot write another log. A checkpoint that was kept elsewhere shows that.

mod disk;
mod event;
mod key;
mod log;
mod pace;
mod pending;
mod refusals;
mod repeats;
mod store;
mod verify;

pub use event::{Action, AuditEvent, Decision, EventError, OURSELVES};
pub use key::LogKey;
use log::Log;
pub use pace::{Pace, Rate};
pub use refusals::{KINDS_MAX, Tally};
pub use repeats::Repeats;
pub use verify::{LogRefused, LogVerified, verify_log};

use ampoule_journal::Medium;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// How many may wait to be written down; more wait to wait.
const ASKS_MAX: usize = 1024;
/// The most events under one checkpoint more.
const BATCH_MAX: usize = 256;
/// The most bytes of them, but for the last one: all fit in a frame.
const BATCH_BYTES_MAX: usize = 768 << 10;

/// Why there is no audit log to write to, or something was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// Another process writes it.
    #[error("another process writes the audit log {0}; one log has one writer: stop it")]
    Locked(PathBuf),
    /// What is on the disk is not what was signed.
    #[error(
        "the audit log {path} is not what its checkpoint says: {reason}. Nothing is written to it. See what is left with `ampoule audit \
         verify`; put back a copy of the whole directory, or move it away, keep it as evidence, and start a new log with a new key"
    )]
    Mismatch {
        /// The log's directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Its key cannot be used.
    #[error("the audit log's key: {0}")]
    Key(String),
    /// A file of it cannot be used.
    #[error("{path} of the audit log cannot be {doing}")]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The event cannot be an entry.
    #[error(transparent)]
    Event(#[from] EventError),
    /// It was not written, for another reason than this event.
    #[error("the audit log was not written: {0}")]
    NotWritten(String),
    /// The caller has more written down than it may.
    #[error("more is written into the audit log for this caller than it may have")]
    TooOften {
        /// When it may have the next entry.
        retry_after: Duration,
    },
    /// The log was closed.
    #[error("the audit log is closed: the daemon is ending")]
    Closed,
}

/// An event to write down, and who waits for its index.
struct Ask {
    entry: Vec<u8>,
    reply: oneshot::Sender<Result<u64, AuditError>>,
}

/// The audit log of a directory. Dropping it ends its thread and frees the directory.
pub struct AuditLog {
    asks: Option<mpsc::Sender<Ask>>,
    thread: Option<JoinHandle<()>>,
    checkpoint: Arc<RwLock<String>>,
    public_key: String,
    /// The directory, locked for as long as this is open.
    _lock: OwnedFd,
}

impl std::fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AuditLog({})", self.public_key)
    }
}

impl AuditLog {
    /// Opens the log of a directory, or begins one there with a key of its own. `origin` is the log's name for good, as
    /// `audit.build7.example`. Blocks.
    ///
    /// # Errors
    /// [`AuditError`] if what is there is not what was signed, or not this log.
    pub fn open(dir: &Path, origin: &str) -> Result<Self, AuditError> {
        Self::open_on(dir, origin, |file| file)
    }

    /// The same with something between the log and the file that makes its entries durable, as a test's.
    ///
    /// # Errors
    /// As [`AuditLog::open`].
    pub fn open_on<M: Medium + Send + 'static>(
        dir: &Path,
        origin: &str,
        wrap: impl FnMut(File) -> M + Send + 'static,
    ) -> Result<Self, AuditError> {
        let lock = lock(dir)?;
        let log = Log::open_on(dir, origin, Box::new(wrap))?;
        let checkpoint = Arc::new(RwLock::new(log.checkpoint().to_owned()));
        let public_key = log.public_key().to_string();
        let (asks, waiting) = mpsc::channel(ASKS_MAX);
        let shared = checkpoint.clone();
        let failed = |source| AuditError::File { path: dir.to_owned(), doing: "written by a thread", source };
        let clock = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
        let thread = std::thread::Builder::new().name("audit".to_owned());
        let thread = thread.spawn(move || write(log, waiting, &shared, &clock)).map_err(failed)?;
        Ok(Self { asks: Some(asks), thread: Some(thread), checkpoint, public_key, _lock: lock })
    }

    /// Writes an event down. When this returns its index, the event is durable under a signed checkpoint.
    ///
    /// # Errors
    /// [`AuditError`]: then it is not in the log, and what it was to tell of must not happen.
    pub async fn append(&self, event: &AuditEvent) -> Result<u64, AuditError> {
        let entry = event.entry()?;
        let (reply, answer) = oneshot::channel();
        let asks = self.asks.as_ref().ok_or(AuditError::Closed)?;
        asks.send(Ask { entry, reply }).await.map_err(|_| AuditError::Closed)?;
        answer.await.map_err(|_| AuditError::Closed)?
    }

    /// The newest checkpoint, a signed note: to keep elsewhere.
    pub fn checkpoint(&self) -> String {
        self.checkpoint.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The key that its checkpoints are verified with, as `NAME+HASH+KEY`.
    pub fn public_key(&self) -> &str {
        &self.public_key
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The one thread that writes.
fn write<M: Medium>(
    mut log: Log<M>,
    mut asks: mpsc::Receiver<Ask>,
    checkpoint: &RwLock<String>,
    clock: &Runtime,
) {
    let guard = AbortOnPanic;
    loop {
        // A channel of tokio's waits until a time within a runtime alone.
        let next = clock.block_on(async {
            match log.due() {
                Some(due) => tokio::time::timeout_at(due, asks.recv()).await,
                None => Ok(asks.recv().await),
            }
        });
        let Ok(first) = next else {
            publish(&mut log);
            continue;
        };
        let Some(first) = first else { break };
        let (mut bytes, mut batch) = (first.entry.len(), vec![first]);
        while batch.len() < BATCH_MAX
            && bytes < BATCH_BYTES_MAX
            && let Ok(ask) = asks.try_recv()
        {
            bytes += ask.entry.len();
            batch.push(ask);
        }
        let begin = log.size();
        let (entries, replies): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|ask| (ask.entry, ask.reply)).unzip();
        let written = log.append(&entries);
        if written.is_ok() {
            log.checkpoint().clone_into(&mut checkpoint.write().unwrap_or_else(PoisonError::into_inner));
        }
        for (index, reply) in (begin..).zip(replies) {
            let answer = written.as_ref().map(|()| index).map_err(|e| AuditError::NotWritten(chain(e)));
            let _ = reply.send(answer); // Whoever asked may be gone.
        }
        if log.due().is_some_and(|due| due <= Instant::now()) {
            publish(&mut log);
        }
    }
    publish(&mut log);
    std::mem::forget(guard);
}

fn publish<M: Medium>(log: &mut Log<M>) {
    if let Err(error) = log.publish() {
        tracing::error!(
            error = chain(&error),
            "what is pending cannot be brought into the tiles of the audit log now"
        );
    }
}

fn chain(error: &AuditError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

/// A daemon whose audit log is not written must not look alive.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        fatal("its thread has panicked");
    }
}

/// Ends the process: what is on the disk is not known, and the next start finds out.
fn fatal(reason: &str) -> ! {
    let _ = writeln!(io::stderr(), "the audit log cannot be made durable: {reason}; this process ends now");
    std::process::abort()
}

fn lock(dir: &Path) -> Result<OwnedFd, AuditError> {
    let failed = |source: rustix::io::Errno| AuditError::File {
        path: dir.to_owned(),
        doing: "locked",
        source: source.into(),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = open(dir, flags, Mode::empty()).map_err(failed)?;
    match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(fd),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AuditError::Locked(dir.to_owned())),
        Err(error) => Err(failed(error)),
    }
}
