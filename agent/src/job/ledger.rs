//! The durable ledger of jobs: what was acknowledged is there after whatever dies.
//!
//! One file of frames (`ampoule-journal`; docs/formats.md, "Ledger"), written by one thread. Callers wait; the thread appends
//! everything that waits, syncs **once**, and answers them all. What nobody was told may be lost in a crash, what
//! somebody was told is not, unless it [is found again](Change::is_found_again): a tail is cut only behind the last acknowledged frame, and damage before that keeps the daemon from starting.
//!
//! While it works the file is written anew when it has grown to twice what is kept.
//!
//! Of a job's spec only its place in the file is in memory, and of a finished job not even that.

mod compact;
mod frames;
mod index;
mod load;
mod writer;

use super::model::{IdempotencyKey, Job, State, Submission};
use super::service::{JobsError, Page, Wanted};
use super::state::{Change, Effect, Illegal, Life, sha256};
use ampoule_journal::Medium;
use ampoule_spec::{Code, JobId, JobSpec, Name, UnixNanos};
use compact::Next;
pub use frames::Cut;
pub use index::Retention;
use index::{Full, Index, page};
use load::{Begun, Loaded};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, oneshot};
use writer::{Ask, Room, Scribe};

/// How many may wait to be written down; more wait to wait.
const ASKS_MAX: usize = 1024;
/// How many changes a listener may be behind before it has to read anew.
const CHANGES_MAX: usize = 1024;
/// When to submit again while the disk is full.
const FULL_RETRY: Duration = Duration::from_secs(30);

/// How a ledger is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Which finished jobs are kept.
    pub retention: Retention,
    /// Bytes that stay set aside for the end of jobs when the disk is full.
    pub reserve_bytes: u64,
    /// By how many bytes the file grows at least before it is written anew.
    pub compact_bytes: u64,
    /// The operator accepts the loss of everything from this offset on. Only the offset that the refusal named counts.
    pub accept_loss: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            reserve_bytes: 64 << 20,
            compact_bytes: 64 << 20,
            accept_loss: None,
        }
    }
}

/// Why there is no ledger to work with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another agent works in this directory.
    #[error(
        "another agent works in the state directory {0}; one directory has one agent: stop it, or name another directory"
    )]
    Locked(PathBuf),
    /// Something that was acknowledged cannot be read.
    #[error(
        "the ledger {path} is damaged at byte {offset}: {reason}. Put back a copy of it from a backup; or accept that every \
         job from there on is lost, by starting once with --accept-ledger-loss={offset} (the damaged file is kept beside it)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damage begins; everything before it is whole.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The file cannot be used.
    #[error("the ledger's file {path} cannot be {doing}")]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Why something was not written down. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The same caller has used the key for another request.
    #[error(
        "the idempotency key was used before, for another request (job {job}); use a new key for each job"
    )]
    OtherRequest {
        /// The job that has the key.
        job: JobId,
    },
    /// A later attempt at the same job was seen.
    #[error(
        "attempt {attempt} is refused: attempt {seen} at the same job was seen; submit {seen} or a higher one"
    )]
    LowerAttempt {
        /// What was submitted.
        attempt: u32,
        /// The highest that was seen.
        seen: u32,
    },
    /// There is no such job.
    #[error("there is no job {0}")]
    Unknown(JobId),
    /// The job is not finished.
    #[error("job {0} is not finished")]
    NotFinished(JobId),
    /// The job's state does not allow it.
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// A record would be larger than a frame.
    #[error("the job's record has {bytes} bytes, at most 1048576 can be kept; shorten its spec or labels")]
    Oversize {
        /// Its length.
        bytes: usize,
    },
    /// It cannot be written as JSON.
    #[error("the job cannot be written down: {0}")]
    Format(String),
    /// The disk is full. Jobs that were taken go on to their end.
    #[error("the disk of the state directory is full: no new jobs are taken until there is room again")]
    Full(#[source] io::Error),
    /// The project has as many finished jobs here, or as many bytes of their records, as it may, and none that is old enough to go.
    #[error(
        "project {project} has {kept} here, which is as much as it may have; what is finished and old enough goes by itself, oldest \
         first: submit again in {} s, or have the operator raise [retention]",
        retry_after.as_secs()
    )]
    Kept {
        /// Whose.
        project: Name,
        /// How much of what.
        kept: String,
        /// When to submit again.
        retry_after: Duration,
    },
    /// The ledger was closed.
    #[error("the ledger is closed: the daemon is ending")]
    Closed,
}

impl LedgerError {
    fn full(source: io::Error) -> Self {
        Self::Full(source)
    }
}

impl From<LedgerError> for JobsError {
    fn from(error: LedgerError) -> Self {
        let (code, retry_after) = match &error {
            LedgerError::OtherRequest { .. } => (Code::JobKeyReused, None),
            LedgerError::Unknown(_) => (Code::JobUnknown, None),
            LedgerError::NotFinished(_) => (Code::JobUnfinished, None),
            LedgerError::LowerAttempt { .. } | LedgerError::Oversize { .. } => (Code::JobInvalid, None),
            LedgerError::Full(_) => (Code::AdmissionBusy, Some(FULL_RETRY)),
            LedgerError::Kept { retry_after, .. } => (Code::AdmissionBusy, Some(*retry_after)),
            LedgerError::Closed => (Code::AdmissionBusy, Some(Duration::from_secs(1))),
            LedgerError::Illegal(_) | LedgerError::Format(_) => (Code::Internal, None),
        };
        Self { code, message: error.to_string(), retry_after }
    }
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    /// The job.
    pub life: Arc<Life>,
    /// Whether it was there before.
    pub attached: bool,
}

/// What readers and the writer share.
struct Shared {
    /// Durable jobs, but for changes that are found again.
    index: RwLock<Index>,
    changes: broadcast::Sender<Arc<Life>>,
    syncs: AtomicU64,
    compactions: AtomicU64,
}

impl Shared {
    // A panic while the lock is held leaves the index as it is; the writer's own ends the process.
    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(&self, project: &Name, retention: &Retention, at: UnixNanos) -> Result<(), LedgerError> {
        let Some(full) = self.read().full(project, retention, at) else { return Ok(()) };
        let Full { kept, retry_after } = full;
        Err(LedgerError::Kept { project: project.clone(), kept, retry_after })
    }
}

/// The ledger of a state directory. Dropping it ends its thread and frees the directory.
pub struct Ledger {
    shared: Arc<Shared>,
    asks: Option<mpsc::Sender<Ask>>,
    thread: Option<JoinHandle<()>>,
    generation: u64,
    cut: Option<Cut>,
    /// The state directory, locked for as long as this is open.
    _lock: OwnedFd,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ledger(generation {})", self.generation)
    }
}

impl Ledger {
    /// Opens the ledger of a state directory, or begins one there: takes the directory for this process, reads the ledger and
    /// compacts it. Blocks.
    ///
    /// # Errors
    /// [`OpenError`] with what to do about it.
    pub fn open(dir: &Path, options: &Options, at: UnixNanos) -> Result<Self, OpenError> {
        Self::open_on(dir, options, at, |file| file)
    }

    /// The same on something that stands between the ledger and its file, as a test's.
    ///
    /// # Errors
    /// As [`Ledger::open`].
    pub fn open_on<M: Medium + Send + 'static>(
        dir: &Path,
        options: &Options,
        at: UnixNanos,
        wrap: impl FnMut(File) -> M + Send + 'static,
    ) -> Result<Self, OpenError> {
        let failed = |doing| move |source| OpenError::File { path: dir.join(load::FILE), doing, source };
        let lock = lock(dir)?;
        let path = dir.join(load::FILE);
        let old = match File::options().read(true).write(true).open(&path) {
            Ok(file) => Some(Arc::new(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("opened")(error)),
        };
        let loaded = match &old {
            Some(file) => load::load(&path, file, options)?,
            None => Loaded::default(),
        };
        let opened = load::opening(&loaded, at).map_err(failed("begun"))?;
        let mut wrap: Box<dyn FnMut(File) -> M + Send> = Box::new(wrap);
        let mut begun = load::begin(dir, &loaded, &opened, &mut *wrap);
        if let (Err(OpenError::File { source, .. }), Some(old)) = (&begun, &old)
            && source.kind() == io::ErrorKind::StorageFull
        {
            load::give_back(old).map_err(failed("shortened"))?;
            begun = load::begin(dir, &loaded, &opened, &mut *wrap);
        }
        let begun = begun?;
        let mut room = Room::new(begun.file.try_clone().map_err(failed("opened"))?, options.reserve_bytes);
        match room.make(begun.writer.offset(), 0) {
            // Then nothing is taken in until there is room.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {}
            other => other.map_err(failed("given room"))?,
        }
        let (changes, _) = broadcast::channel(CHANGES_MAX);
        let index = RwLock::new(begun.index);
        let (syncs, compactions) = (AtomicU64::new(0), AtomicU64::new(0));
        let shared = Arc::new(Shared { index, changes, syncs, compactions });
        let (generation, cut, nonce) = (opened.generation, opened.cut.clone(), opened.nonce);
        let (reserve, growth) = (options.reserve_bytes, options.compact_bytes.max(1));
        let mut next = Next { dir: dir.to_owned(), opened, wrap, reserve, growth, due: 0 };
        next.after(begun.writer.offset());
        let Begun { writer, file, .. } = begun;
        let (retention, shared_with) = (options.retention, shared.clone());
        let scribe = Scribe { writer, room, nonce, shared: shared_with, retention, file, next };
        let (asks, waiting) = mpsc::channel(ASKS_MAX);
        let thread = std::thread::Builder::new().name("ledger".to_owned()).spawn(|| scribe.run(waiting));
        Ok(Self {
            shared,
            asks: Some(asks),
            thread: Some(thread.map_err(failed("written by a thread"))?),
            generation,
            cut,
            _lock: lock,
        })
    }

    /// Grows by one with each start in this directory.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What was cut off the end of the file at start.
    pub fn cut(&self) -> Option<&Cut> {
        self.cut.as_ref()
    }

    /// How often it was synced since it was opened.
    pub fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    /// How often it was written anew since it was opened.
    pub fn compactions(&self) -> u64 {
        self.shared.compactions.load(Ordering::Relaxed)
    }

    /// Writes a job down, or finds the one that the caller has submitted under the same key. Durable when it returns.
    ///
    /// # Errors
    /// [`LedgerError`] for another request under the key, a lower attempt, a full disk, or a project that has as much here as it may.
    pub async fn submit(&self, submission: Submission, at: UnixNanos) -> Result<Entered, LedgerError> {
        let submission = Box::new(submission);
        self.ask(|reply| Ask::Submit { submission, at, reply }).await
    }

    /// Whether a project may have one more job here, as it is now: asked again when one is written down.
    ///
    /// # Errors
    /// [`LedgerError::Kept`].
    pub fn has_room(&self, project: &Name, retention: &Retention, at: UnixNanos) -> Result<(), LedgerError> {
        self.shared.room(project, retention, at)
    }

    /// Writes a change down. Durable when it returns, unless it [is found again](Change::is_found_again); the effects are the caller's to see to. A wish for the end of a job
    /// that is finished or whose end was wished before changes nothing and has no effects.
    ///
    /// # Errors
    /// [`LedgerError`] if there is no such job, or its state does not allow the change.
    pub async fn change(&self, id: &JobId, change: Change) -> Result<(Arc<Life>, Vec<Effect>), LedgerError> {
        let id = id.clone();
        self.ask(|reply| Ask::Change { id, change, spec: None, reply }).await
    }

    /// Writes down the spec of a job whose inputs are fetched, with everything in it that was left to be found. Durable when it
    /// returns.
    ///
    /// # Errors
    /// As [`Ledger::change`], and [`LedgerError::Oversize`] if what was found makes the spec larger than one may be.
    pub async fn resolve(&self, id: &JobId, spec: &JobSpec) -> Result<Arc<Life>, LedgerError> {
        let format = |e: serde_json::Error| LedgerError::Format(e.to_string());
        spec.check_resolved().map_err(|e| LedgerError::Format(e.to_string()))?;
        let bytes = serde_json::to_vec(spec).map_err(format)?;
        let (id, change) = (id.clone(), Change::Resolved { spec: sha256(&bytes).map_err(format)? });
        let (life, _) = self.ask(|reply| Ask::Change { id, change, spec: Some(bytes), reply }).await?;
        Ok(life)
    }

    /// Forgets a finished job, after whatever else is kept of it was removed.
    ///
    /// # Errors
    /// [`LedgerError`] if there is no such job or it is not finished.
    pub async fn forget(&self, id: &JobId) -> Result<(), LedgerError> {
        let id = id.clone();
        self.ask(|reply| Ask::Forget { id, reply }).await
    }

    async fn ask<T>(
        &self,
        ask: impl FnOnce(oneshot::Sender<Result<T, LedgerError>>) -> Ask,
    ) -> Result<T, LedgerError> {
        let (reply, answer) = oneshot::channel();
        let asks = self.asks.as_ref().ok_or(LedgerError::Closed)?;
        asks.send(ask(reply)).await.map_err(|_| LedgerError::Closed)?;
        answer.await.map_err(|_| LedgerError::Closed)?
    }

    /// A job as it is now.
    pub fn get(&self, id: &JobId) -> Option<Arc<Life>> {
        self.shared.read().kept(id).map(|kept| kept.life.clone())
    }

    /// The job that a caller has submitted under a key.
    pub fn find(&self, subject: &str, key: &IdempotencyKey) -> Option<Arc<Life>> {
        self.shared.read().by_key(subject, key).map(|kept| kept.life.clone())
    }

    /// How many jobs there are.
    pub fn len(&self) -> usize {
        self.shared.read().len()
    }

    /// Whether there is no job.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The spec of a job that is not finished, as bytes: those that its digest is of. Blocks on the disk.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn spec_bytes(&self, id: &JobId) -> io::Result<Option<Vec<u8>>> {
        let at = self.shared.read().kept(id).and_then(|kept| kept.spec.clone());
        at.map(|at| load::spec_bytes(&at)).transpose()
    }

    /// The same as a spec.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn spec(&self, id: &JobId) -> io::Result<Option<JobSpec>> {
        let bytes = self.spec_bytes(id)?;
        bytes.map(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from)).transpose()
    }

    /// Jobs, newest first, of those that `may_read` lets through.
    pub fn list(&self, wanted: &Wanted, may_read: &(dyn Fn(&Job) -> bool + Sync)) -> Page {
        let candidates = self.shared.read().candidates(wanted);
        page(&candidates, wanted, may_read)
    }

    /// Jobs that are not finished, oldest first: what a driver takes up at start.
    pub fn unfinished(&self) -> Vec<Arc<Life>> {
        let index = self.shared.read();
        let lives = index.iter().map(|kept| &kept.life);
        lives.filter(|life| life.job.state != State::Finished).cloned().collect()
    }

    /// Finished jobs whose retention is over: remove what else is kept of them, then [`Ledger::forget`] them.
    pub fn expired(&self, retention: &Retention, now: UnixNanos) -> Vec<JobId> {
        self.shared.read().expired(retention, now)
    }

    /// Every job after each of its changes, from now on. Who falls behind is told so, and reads anew.
    pub fn changes(&self) -> broadcast::Receiver<Arc<Life>> {
        self.shared.changes.subscribe()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Takes a state directory for this process.
fn lock(dir: &Path) -> Result<OwnedFd, OpenError> {
    let failed = |source: rustix::io::Errno| OpenError::File {
        path: dir.to_owned(),
        doing: "locked",
        source: source.into(),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir_fd = open(dir, flags, Mode::empty()).map_err(failed)?;
    match flock(&dir_fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(dir_fd),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked(dir.to_owned())),
        Err(error) => Err(failed(error)),
    }
}
