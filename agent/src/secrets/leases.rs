//! The journal of what was taken from a server for a step: written before it is handed over, so that whatever dies, it is revoked.
//!
//! One append-only file of frames (`ampoule-journal`; docs/formats.md, "Leases"), written by a thread of its own: callers wait for their entry, and
//! what waits together shares a frame and a sync. A cut of power can tear the last frame alone, and of that nobody was told. There is no value in it
//! and nothing that reads one: accessors and lease ids can renew and revoke.
//!
//! Guarantees: who reads never waits for a disk, and sees what is durable and nothing else; who waits for an entry holds no thread. After a failed
//! sync nothing more is written, until the next start.

mod file;
mod writer;

use ampoule_journal::{Medium, WriteError};
use ampoule_spec::{JobId, Name, UnixNanos};
use file::{Entry, Grants};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};
use writer::{Ask, Scribe};

/// How many entries may wait to be written down; more wait to wait.
const ASKS_MAX: usize = 1024;

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

/// The number of a grant: no other in the same directory has it, before or after.
pub type GrantId = u64;

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

/// The journal of a directory, and all grants that are not forgotten. Dropping it waits for what is asked, ends its thread and frees the directory.
pub struct Leases {
    dir: PathBuf,
    asks: Option<mpsc::Sender<Ask>>,
    thread: Option<JoinHandle<()>>,
    /// What is durable.
    grants: Arc<RwLock<Grants>>,
}

impl std::fmt::Debug for Leases {
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

    /// The same with something between the journal and its file, as a test's.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub fn open_on<M: Medium + Send + 'static>(
        dir: &Path,
        wrap: impl FnMut(File) -> M + Send + 'static,
    ) -> Result<Self, LeasesError> {
        Self::begin(dir, Scribe::open(dir, Box::new(wrap))?)
    }

    fn begin<M: Medium + Send + 'static>(dir: &Path, scribe: Scribe<M>) -> Result<Self, LeasesError> {
        let (grants, (asks, waiting)) = (scribe.shared(), mpsc::channel(ASKS_MAX));
        let thread = std::thread::Builder::new().name("leases".to_owned()).spawn(move || scribe.run(waiting));
        let failed =
            |source| LeasesError::File { path: dir.to_owned(), doing: "written by a thread", source };
        Ok(Self { dir: dir.to_owned(), asks: Some(asks), thread: Some(thread.map_err(failed)?), grants })
    }

    /// A token was made, or values of this host were read. Durable when this returns.
    ///
    /// # Errors
    /// [`LeasesError::Write`]: it is to be revoked by who has it.
    pub async fn minted(&self, grant: Grant) -> Result<GrantId, LeasesError> {
        match self.write(Entry::Minted { id: 0, grant: Box::new(grant) }).await? {
            Entry::Minted { id, .. } => Ok(id),
            _ => Err(ended()),
        }
    }

    /// Paths were read that have leases. Durable when this returns.
    ///
    /// # Errors
    /// [`LeasesError`]: what was read must not be handed over.
    pub async fn leased(&self, id: GrantId, leases: Vec<String>) -> Result<(), LeasesError> {
        if leases.is_empty() {
            return Ok(());
        }
        self.write(Entry::Leased { id, leases }).await.map(drop)
    }

    /// The token lives longer.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub async fn renewed(&self, id: GrantId, until: UnixNanos) -> Result<(), LeasesError> {
        self.write(Entry::Renewed { id, until }).await.map(drop)
    }

    /// The step has the values.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub async fn handed_over(&self, id: GrantId, at: UnixNanos) -> Result<(), LeasesError> {
        self.write(Entry::HandedOver { id, at }).await.map(drop)
    }

    /// It is to be revoked, whatever comes. The first time counts.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub async fn revoking(&self, id: GrantId, at: UnixNanos) -> Result<(), LeasesError> {
        if self.get(id).is_some_and(|grant| grant.revoking_at.is_some()) {
            return Ok(());
        }
        self.write(Entry::Revoking { id, at }).await.map(drop)
    }

    /// The server has said that there is nothing left of it.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub async fn closed(&self, id: GrantId, at: UnixNanos) -> Result<(), LeasesError> {
        self.write(Entry::Closed { id, at }).await.map(drop)
    }

    /// A job's record is signed: its closed grants need not be told of any more. What is open stays.
    ///
    /// # Errors
    /// [`LeasesError`].
    pub async fn forget(&self, job: &JobId) -> Result<(), LeasesError> {
        if !self.grants().values().any(|grant| grant.job == *job && !grant.is_open()) {
            return Ok(());
        }
        self.write(Entry::Forgotten { job: job.clone() }).await.map(drop)
    }

    /// A grant.
    pub fn get(&self, id: GrantId) -> Option<Grant> {
        self.grants().get(&id).cloned()
    }

    /// Everything of a job.
    pub fn of_job(&self, job: &JobId) -> Vec<(GrantId, Grant)> {
        self.select(|grant| grant.job == *job)
    }

    /// Whose grants there are, open or not.
    pub fn jobs(&self) -> BTreeSet<JobId> {
        self.grants().values().map(|grant| grant.job.clone()).collect()
    }

    /// Everything that a server may still have.
    pub fn open_grants(&self) -> Vec<(GrantId, Grant)> {
        self.select(Grant::is_open)
    }

    /// How many a server may still have, and how many of them are to be revoked.
    pub fn count(&self) -> (usize, usize) {
        let grants = self.grants();
        let open = || grants.values().filter(|grant| grant.is_open());
        (open().count(), open().filter(|grant| grant.revoking_at.is_some()).count())
    }

    fn select(&self, wanted: impl Fn(&Grant) -> bool) -> Vec<(GrantId, Grant)> {
        let grants = self.grants();
        let found = grants.iter().filter(|(_, grant)| wanted(grant));
        found.map(|(id, grant)| (*id, grant.clone())).collect()
    }

    /// Held for as long as it takes to copy something, and by the writer for as long as it takes to change something: never while a disk works.
    fn grants(&self) -> RwLockReadGuard<'_, Grants> {
        self.grants.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an entry written down, and gives it back as it was, when it is durable. What was asked is written also when nobody waits for it any more.
    async fn write(&self, entry: Entry) -> Result<Entry, LeasesError> {
        let (reply, answer) = oneshot::channel();
        let asks = self.asks.as_ref().ok_or_else(ended)?;
        asks.send(Ask { entry, reply }).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ended() -> LeasesError {
    LeasesError::Write(io::Error::other("its thread has ended"))
}

#[cfg(test)]
#[path = "leases_tests.rs"]
mod tests;
