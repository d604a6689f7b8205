//! The journal of what was taken from a server for a step: written before it is handed over, so that whatever dies, it is revoked.
//!
//! One append-only file of frames (`ampoule-journal`; docs/formats.md, "Leases"), each synced before the call returns that adds it. There is no
//! value in it and nothing that reads one: accessors and lease ids can renew and revoke. So a cut of power can tear the last frame alone.

use ampoule_journal::{MAGIC, Medium, Next, ReadError, Reader, WriteError, Writer};
use ampoule_spec::{JobId, Name, UnixNanos};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fsync, open};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The file, and the one that takes its place.
const FILE: &str = "leases";
const NEXT: &str = "leases.next";
/// The one kind of frame.
const ENTRY: u8 = 1;
/// The file is written anew when it has grown by so much.
const GROWTH_BYTES: u64 = 1 << 20;

/// A secret of a grant, and what kind of place gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// Its name.
    pub name: String,
    /// `vault:SERVER`, `file` or `systemd-credential`.
    pub provider: String,
}

/// What was taken for a step from one server, or from this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Whose.
    pub job: JobId,
    /// Which of its steps, from 0.
    pub step: u32,
    /// The step's name.
    pub step_name: Name,
    /// The job's project.
    pub project: Name,
    /// From which server; none: from this host, and there is nothing to revoke.
    pub server: Option<Name>,
    /// Which cluster that was, as it said itself; none: it did not.
    pub cluster: Option<String>,
    /// What it gives.
    pub secrets: Vec<Given>,
    /// Whether it is taken anew from time to time, in place of what is there.
    #[serde(default)]
    pub rotates: bool,
    /// By what the token is renewed and revoked.
    pub accessor: Option<String>,
    /// By what leases are.
    pub leases: Vec<String>,
    /// How long the token lives, as the server has said last.
    pub until: UnixNanos,
    /// When the token was made, or the values read.
    pub minted_at: UnixNanos,
    /// When the step had the values; none: not that we know.
    pub given_at: Option<UnixNanos>,
    /// Since when it is to be revoked.
    pub revoking_at: Option<UnixNanos>,
    /// When the server had said that there is nothing left of it.
    pub closed_at: Option<UnixNanos>,
}

impl Grant {
    /// Whether a server may still have something of it.
    pub fn is_open(&self) -> bool {
        self.closed_at.is_none()
    }
}

/// The number of a grant, for as long as the journal has it.
pub type GrantId = u64;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case", deny_unknown_fields)]
enum Entry {
    /// A token was made; also a grant as it is when the file is written anew.
    Minted { id: GrantId, grant: Box<Grant> },
    /// Paths were read that have leases.
    Leased { id: GrantId, leases: Vec<String> },
    /// The token lives longer.
    Renewed { id: GrantId, until: UnixNanos },
    /// The step has the values.
    HandedOver { id: GrantId, at: UnixNanos },
    /// It is to be revoked.
    Revoking { id: GrantId, at: UnixNanos },
    /// The server has said that there is nothing left of it.
    Closed { id: GrantId, at: UnixNanos },
    /// The job's record is signed.
    Forgotten { job: JobId },
}

/// Why there is no journal of leases, or something was not written down. What was not is not to be done.
#[derive(Debug, thiserror::Error)]
pub enum LeasesError {
    /// Another agent works there.
    #[error("another agent works in {0}; one directory has one agent")]
    Locked(PathBuf),
    /// It cannot be read to its end.
    #[error(
        "the journal of leases {path} is damaged at byte {offset}: what was taken from a server and not revoked cannot be known. Put back a copy; or \
         revoke there what the agent's role has made (`vault token list-accessors` by its metadata), and move the file away"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Where.
        offset: u64,
    },
    /// A file cannot be used.
    #[error("{path} of the journal of leases cannot be {doing}")]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It was not written down.
    #[error("the journal of leases cannot be written")]
    Write(#[source] io::Error),
    /// There is no such grant.
    #[error("there is no grant {0}")]
    Unknown(GrantId),
}

impl From<WriteError> for LeasesError {
    fn from(error: WriteError) -> Self {
        Self::Write(match error {
            WriteError::Full(error) | WriteError::Broken(error) => error,
            other => io::Error::other(other),
        })
    }
}

type Wrap<M> = Box<dyn FnMut(File) -> M + Send>;
type Apply = Box<dyn FnOnce(&mut Grant)>;

/// What is behind the lock.
struct Book<M> {
    writer: Writer<M>,
    wrap: Wrap<M>,
    grants: BTreeMap<GrantId, Grant>,
    next: GrantId,
    /// At how many bytes the file is written anew.
    due: u64,
    /// Whether nobody can say which file the directory has after a cut of power: nothing more is written until the next start.
    is_unsure: bool,
}

/// The journal of a directory, and all grants that are not forgotten. Its calls block for as long as a disk takes.
pub struct Leases<M = File> {
    dir: PathBuf,
    book: Mutex<Book<M>>,
    /// The directory, locked.
    lock: OwnedFd,
}

impl<M> std::fmt::Debug for Leases<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Leases({})", self.dir.display())
    }
}

impl Leases {
    /// Opens the journal of a directory, or begins one there. Blocks.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub fn open(dir: &Path) -> Result<Self, LeasesError> {
        Self::open_on(dir, |file| file)
    }
}

impl<M: Medium> Leases<M> {
    /// The same with something between the journal and its file, as a test's.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub fn open_on(dir: &Path, wrap: impl FnMut(File) -> M + Send + 'static) -> Result<Self, LeasesError> {
        let failed = |source| LeasesError::File { path: dir.to_owned(), doing: "opened", source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = open(dir, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(LeasesError::Locked(dir.to_owned())),
            other => other.map_err(|e| failed(e.into()))?,
        }
        let (grants, next) = load(&dir.join(FILE))?;
        let mut wrap: Wrap<M> = Box::new(wrap);
        let writer = write_anew(dir, &grants, &mut wrap)?;
        fsync(&lock).map_err(|e| failed(e.into()))?;
        let due = writer.offset().saturating_mul(2).saturating_add(GROWTH_BYTES);
        let book = Mutex::new(Book { writer, wrap, grants, next, due, is_unsure: false });
        Ok(Self { dir: dir.to_owned(), book, lock })
    }

    fn book(&self) -> MutexGuard<'_, Book<M>> {
        // What panicked has not changed what is in memory without having written it down.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token was made, or values of this host were read. Durable when this returns.
    ///
    /// # Errors
    /// [`LeasesError::Write`]: it is to be revoked by who has it.
    pub fn minted(&self, grant: Grant) -> Result<GrantId, LeasesError> {
        let mut book = self.book();
        let id = book.next;
        book.append(&Entry::Minted { id, grant: Box::new(grant.clone()) })?;
        book.next = id.saturating_add(1);
        book.grants.insert(id, grant);
        self.compact_if_due(&mut book);
        Ok(id)
    }

    /// Paths were read that have leases. Durable when this returns.
    ///
    /// # Errors
    /// [`LeasesError`]: what was read must not be handed over.
    pub fn leased(&self, id: GrantId, leases: Vec<String>) -> Result<(), LeasesError> {
        if leases.is_empty() {
            return Ok(());
        }
        self.change(id, Entry::Leased { id, leases: leases.clone() }, |grant| grant.leases.extend(leases))
    }

    /// The token lives longer.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub fn renewed(&self, id: GrantId, until: UnixNanos) -> Result<(), LeasesError> {
        self.change(id, Entry::Renewed { id, until }, |grant| grant.until = until)
    }

    /// The step has the values.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub fn handed_over(&self, id: GrantId, at: UnixNanos) -> Result<(), LeasesError> {
        self.change(id, Entry::HandedOver { id, at }, |grant| grant.given_at = Some(at))
    }

    /// It is to be revoked, whatever comes. The first time counts.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub fn revoking(&self, id: GrantId, at: UnixNanos) -> Result<(), LeasesError> {
        if self.get(id).is_some_and(|grant| grant.revoking_at.is_some()) {
            return Ok(());
        }
        self.change(id, Entry::Revoking { id, at }, |grant| grant.revoking_at = Some(at))
    }

    /// The server has said that there is nothing left of it.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub fn closed(&self, id: GrantId, at: UnixNanos) -> Result<(), LeasesError> {
        self.change(id, Entry::Closed { id, at }, |grant| grant.closed_at = Some(at))
    }

    /// A job's record is signed: its closed grants need not be told of any more. What is open stays.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub fn forget(&self, job: &JobId) -> Result<(), LeasesError> {
        let mut book = self.book();
        if !book.grants.values().any(|grant| grant.job == *job && !grant.is_open()) {
            return Ok(());
        }
        book.append(&Entry::Forgotten { job: job.clone() })?;
        forget(&mut book.grants, job);
        self.compact_if_due(&mut book);
        Ok(())
    }

    /// A grant.
    pub fn get(&self, id: GrantId) -> Option<Grant> {
        self.book().grants.get(&id).cloned()
    }

    /// Everything of a job.
    pub fn of_job(&self, job: &JobId) -> Vec<(GrantId, Grant)> {
        self.select(|grant| grant.job == *job)
    }

    /// Whose grants there are, open or not.
    pub fn jobs(&self) -> BTreeSet<JobId> {
        self.book().grants.values().map(|grant| grant.job.clone()).collect()
    }

    /// Everything that a server may still have.
    pub fn open_grants(&self) -> Vec<(GrantId, Grant)> {
        self.select(Grant::is_open)
    }

    fn select(&self, wanted: impl Fn(&Grant) -> bool) -> Vec<(GrantId, Grant)> {
        let book = self.book();
        let found = book.grants.iter().filter(|(_, grant)| wanted(grant));
        found.map(|(id, grant)| (*id, grant.clone())).collect()
    }

    fn change(&self, id: GrantId, entry: Entry, apply: impl FnOnce(&mut Grant)) -> Result<(), LeasesError> {
        let mut book = self.book();
        if !book.grants.contains_key(&id) {
            return Err(LeasesError::Unknown(id));
        }
        book.append(&entry)?;
        if let Some(grant) = book.grants.get_mut(&id) {
            apply(grant);
        }
        self.compact_if_due(&mut book);
        Ok(())
    }

    /// Writes the file anew when it is due. What cannot be done now is done later: the file that is there is whole.
    fn compact_if_due(&self, book: &mut Book<M>) {
        if book.writer.offset() < book.due {
            return;
        }
        match write_anew(&self.dir, &book.grants, &mut book.wrap) {
            Ok(writer) => {
                // The old file has no name any more, whatever comes of the sync.
                book.writer = writer;
                if let Err(error) = fsync(&self.lock) {
                    book.is_unsure = true;
                    tracing::error!(%error, "the journal of leases: its directory is not durable; no step gets secrets until the agent starts again");
                }
            }
            Err(error) => {
                tracing::warn!(
                    error = crate::chain::chain(&error),
                    "the journal of leases is not written anew"
                );
            }
        }
        book.due = book.writer.offset().saturating_mul(2).saturating_add(GROWTH_BYTES);
    }
}

impl<M: Medium> Book<M> {
    fn append(&mut self, entry: &Entry) -> Result<(), LeasesError> {
        if self.is_unsure {
            return Err(LeasesError::Write(io::Error::other("its directory could not be synced")));
        }
        let bytes = serde_json::to_vec(entry).map_err(|e| LeasesError::Write(e.into()))?;
        self.writer.append(ENTRY, &bytes)?;
        Ok(self.writer.sync()?)
    }
}

fn forget(grants: &mut BTreeMap<GrantId, Grant>, job: &JobId) {
    grants.retain(|_, grant| grant.job != *job || grant.is_open());
}

/// Reads a journal. A last frame that was cut short was told to nobody.
fn load(path: &Path) -> Result<(BTreeMap<GrantId, Grant>, GrantId), LeasesError> {
    let failed = |source| LeasesError::File { path: path.to_owned(), doing: "read", source };
    let (mut grants, mut next) = (BTreeMap::new(), 0);
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((grants, next)),
        other => other.map_err(failed)?,
    };
    let mut reader = Reader::new(io::BufReader::new(file));
    loop {
        let damaged = |offset| LeasesError::Damaged { path: path.to_owned(), offset };
        let frame = match reader.next_frame() {
            Ok(Next::Frame(frame)) => frame,
            Ok(Next::End { .. } | Next::TornTail { .. }) => return Ok((grants, next)),
            Err(ReadError::Damaged { offset }) if is_last(path, offset).map_err(failed)? => {
                return Ok((grants, next));
            }
            Err(ReadError::Damaged { offset }) => return Err(damaged(offset)),
            Err(ReadError::Io(error)) => return Err(failed(error)),
            Err(error) => return Err(failed(io::Error::other(error))),
        };
        let entry = serde_json::from_slice(&frame.payload).ok().filter(|_| frame.kind == ENTRY);
        let entry = entry.ok_or_else(|| damaged(frame.offset))?;
        let (id, apply): (GrantId, Apply) = match entry {
            Entry::Minted { id, grant } => {
                next = next.max(id.saturating_add(1));
                grants.insert(id, *grant);
                continue;
            }
            Entry::Forgotten { job } => {
                forget(&mut grants, &job);
                continue;
            }
            Entry::Leased { id, leases } => (id, Box::new(move |grant| grant.leases.extend(leases))),
            Entry::Renewed { id, until } => (id, Box::new(move |grant| grant.until = until)),
            Entry::HandedOver { id, at } => (id, Box::new(move |grant| grant.given_at = Some(at))),
            Entry::Revoking { id, at } => (id, Box::new(move |grant| grant.revoking_at = Some(at))),
            Entry::Closed { id, at } => (id, Box::new(move |grant| grant.closed_at = Some(at))),
        };
        apply(grants.get_mut(&id).ok_or_else(|| damaged(frame.offset))?);
    }
}

/// Whether there is no whole frame behind what cannot be read: then nobody was told of it, since each is durable before the next is begun.
fn is_last(path: &Path, offset: u64) -> io::Result<bool> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut rest = Vec::new();
    file.read_to_end(&mut rest)?;
    let mut later = (1..rest.len()).filter_map(|at| rest.get(at..)).filter(|bytes| bytes.starts_with(&MAGIC));
    Ok(!later.any(|bytes| matches!(Reader::new(bytes).next_frame(), Ok(Next::Frame(_)))))
}

/// Writes what is kept into a new file, makes it durable, and gives it the name; that is durable when the directory has been synced.
fn write_anew<M: Medium>(
    dir: &Path,
    grants: &BTreeMap<GrantId, Grant>,
    wrap: &mut Wrap<M>,
) -> Result<Writer<M>, LeasesError> {
    let path = dir.join(NEXT);
    let failed = |doing| {
        let path = path.clone();
        move |source| LeasesError::File { path, doing, source }
    };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("removed")(error)),
        _ => {}
    }
    let file =
        File::options().append(true).create_new(true).mode(0o600).open(&path).map_err(failed("made"))?;
    let mut writer = Writer::on(wrap(file));
    for (id, grant) in grants {
        let entry = Entry::Minted { id: *id, grant: Box::new(grant.clone()) };
        let bytes = serde_json::to_vec(&entry).map_err(|e| LeasesError::Write(e.into()))?;
        writer.append(ENTRY, &bytes)?;
    }
    writer.sync()?;
    std::fs::rename(&path, dir.join(FILE)).map_err(failed("renamed"))?;
    Ok(writer)
}

#[cfg(test)]
#[path = "leases_tests.rs"]
mod tests;
