//! The audit log of the daemon: what was called, denied, read and ended, in a log that cannot be edited unseen.
//!
//! A C2SP tlog-tiles log as files (docs/formats.md, "Audit log"; `ampoule_evidence::tlog` has the arithmetic), written by one thread: it takes what
//! waits, makes it durable under one signed checkpoint, and only then tells anybody its index.
//!
//! Not guaranteed: that whoever has the key and the disk cannot write another log. A checkpoint that was kept elsewhere shows that.

mod disk;
mod event;
mod key;
mod pace;
mod refusals;
mod repeats;
mod store;
mod verify;

pub use event::{Action, AuditEvent, Decision, EventError, OURSELVES};
pub use key::LogKey;
pub use pace::{Pace, Rate};
pub use refusals::{KINDS_MAX, Tally};
pub use repeats::Repeats;
use store::Store;
pub use verify::{LogRefused, LogVerified, verify_log};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How many may wait to be written down; more wait to wait.
const ASKS_MAX: usize = 1024;
/// The most events under one checkpoint more.
const BATCH_MAX: usize = 256;

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
        let lock = lock(dir)?;
        let store = Store::open(dir, origin)?;
        let checkpoint = Arc::new(RwLock::new(store.checkpoint().to_owned()));
        let public_key = store.public_key().to_string();
        let (asks, waiting) = mpsc::channel(ASKS_MAX);
        let shared = checkpoint.clone();
        let thread = std::thread::Builder::new().name("audit".to_owned());
        let thread = thread.spawn(move || write(store, waiting, &shared)).map_err(|source| {
            AuditError::File { path: dir.to_owned(), doing: "written by a thread", source }
        })?;
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
fn write(mut store: Store, mut asks: mpsc::Receiver<Ask>, checkpoint: &RwLock<String>) {
    let guard = AbortOnPanic;
    while let Some(first) = asks.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(ask) = asks.try_recv()
        {
            batch.push(ask);
        }
        let begin = store.size();
        let (entries, replies): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|ask| (ask.entry, ask.reply)).unzip();
        let written = store.commit(&entries);
        if written.is_ok() {
            store.checkpoint().clone_into(&mut checkpoint.write().unwrap_or_else(PoisonError::into_inner));
        }
        for (index, reply) in (begin..).zip(replies) {
            let answer = written.as_ref().map(|()| index).map_err(|e| AuditError::NotWritten(chain(e)));
            let _ = reply.send(answer); // Whoever asked may be gone.
        }
    }
    std::mem::forget(guard);
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
