//! The one thread that writes: it takes what waits, appends it as one frame, syncs once, and only then shows and tells it. Nobody else waits for
//! a disk.

use super::LeasesError;
use super::file::{ENTRY, Entry, FILE, Grants, LOT, Wrap, load, write_anew};
use ampoule_journal::{Medium, WriteError, Writer};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, fsync, open};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::{mpsc, oneshot};

/// The most entries that one sync makes durable. They fit in a frame: one has a few KiB at most.
const LOT_MAX: usize = 128;
/// The file is written anew when it has grown by so much.
pub(super) const GROWTH_BYTES: u64 = 1 << 20;

/// An entry to write down, and who waits for it.
pub(super) struct Ask {
    /// The number of a new grant is the writer's to give.
    pub(super) entry: Entry,
    pub(super) reply: oneshot::Sender<Result<Entry, LeasesError>>,
}

/// The writer's side of the journal.
pub(super) struct Scribe<M> {
    dir: PathBuf,
    /// The directory, locked for as long as anything is written.
    lock: OwnedFd,
    writer: Writer<M>,
    wrap: Wrap<M>,
    /// With what is being written.
    grants: Grants,
    /// What is durable: all that anybody else sees.
    shared: Arc<RwLock<Grants>>,
    next: super::GrantId,
    /// At how many bytes the file is written anew.
    due: u64,
    /// Whether nobody can say which file the directory has after a cut of power: nothing more is written until the next start.
    pub(super) is_unsure: bool,
}

impl<M: Medium> Scribe<M> {
    /// Opens the journal of a directory, or begins one there. Blocks.
    pub(super) fn open(dir: &Path, mut wrap: Wrap<M>) -> Result<Self, LeasesError> {
        let failed = |source| LeasesError::File { path: dir.to_owned(), doing: "opened", source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let lock = open(dir, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(LeasesError::Locked(dir.to_owned())),
            other => other.map_err(|e| failed(e.into()))?,
        }
        let (grants, next) = load(&dir.join(FILE))?;
        let writer = write_anew(dir, (&grants, next), &mut wrap)?;
        fsync(&lock).map_err(|e| failed(e.into()))?;
        let (due, shared) = (due_after(writer.offset()), Arc::new(RwLock::new(grants.clone())));
        Ok(Self { dir: dir.to_owned(), lock, writer, wrap, grants, shared, next, due, is_unsure: false })
    }

    pub(super) fn shared(&self) -> Arc<RwLock<Grants>> {
        self.shared.clone()
    }

    /// Works until nobody can ask any more.
    pub(super) fn run(mut self, mut asks: mpsc::Receiver<Ask>) {
        while let Some(first) = asks.blocking_recv() {
            let mut lot = vec![first];
            while lot.len() < LOT_MAX
                && let Ok(ask) = asks.try_recv()
            {
                lot.push(ask);
            }
            self.commit(lot);
        }
    }

    /// Makes entries durable, then shows them, then tells who waits.
    fn commit(&mut self, asks: Vec<Ask>) {
        let mut lot = Vec::with_capacity(asks.len());
        for mut ask in asks {
            if let Entry::Minted { id, .. } = &mut ask.entry {
                *id = self.next;
                self.next = self.next.saturating_add(1);
            }
            match ask.entry.clone().apply(&mut self.grants) {
                Ok(()) => lot.push(ask),
                Err(id) => ask.answer(Err(LeasesError::Unknown(id))),
            }
        }
        if lot.is_empty() {
            return;
        }
        match self.append(&lot) {
            Ok(()) => {
                let mut shown = self.shared.write().unwrap_or_else(PoisonError::into_inner);
                for ask in &lot {
                    // It was done to the same grants above.
                    let _ = ask.entry.clone().apply(&mut shown);
                }
                drop(shown);
                lot.into_iter().for_each(|ask| ask.answer(Ok(())));
                // Never after a failure: a new file would be believed in place of one of which nobody knows what the disk has.
                self.compact_if_due();
            }
            Err(error) => {
                self.grants = self.shared.read().unwrap_or_else(PoisonError::into_inner).clone();
                let may_fit = matches!(error, WriteError::Full(_) | WriteError::Oversize { .. });
                if may_fit && lot.len() > 1 {
                    // There may be room for a part.
                    lot.into_iter().for_each(|ask| self.commit(vec![ask]));
                } else {
                    lot.into_iter().for_each(|ask| ask.answer(Err(told(&error))));
                }
            }
        }
    }

    /// One frame: a cut of power leaves all of it or nothing, and never a whole one behind a torn one.
    fn append(&mut self, lot: &[Ask]) -> Result<(), WriteError> {
        if self.is_unsure {
            return Err(WriteError::Broken(io::Error::other("its directory could not be synced")));
        }
        let entries: Vec<&Entry> = lot.iter().map(|ask| &ask.entry).collect();
        let (kind, bytes) = match entries.as_slice() {
            [one] => (ENTRY, serde_json::to_vec(one)),
            many => (LOT, serde_json::to_vec(many)),
        };
        self.writer.append(kind, &bytes.map_err(|e| WriteError::Full(e.into()))?)?;
        self.writer.sync()
    }

    /// Writes the file anew when it is due. What cannot be done now is done later: the file that is there is whole.
    fn compact_if_due(&mut self) {
        if self.writer.offset() < self.due {
            return;
        }
        match write_anew(&self.dir, (&self.grants, self.next), &mut self.wrap) {
            Ok(writer) => {
                // The old file has no name any more, whatever comes of the sync.
                self.writer = writer;
                if let Err(error) = fsync(&self.lock) {
                    self.is_unsure = true;
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
        self.due = due_after(self.writer.offset());
    }
}

impl Ask {
    /// Whoever asked may be gone.
    fn answer(self, done: Result<(), LeasesError>) {
        let _ = self.reply.send(done.map(|()| self.entry));
    }
}

fn due_after(bytes: u64) -> u64 {
    bytes.saturating_mul(2).saturating_add(GROWTH_BYTES)
}

/// One error for many.
fn told(error: &WriteError) -> LeasesError {
    LeasesError::Write(match error {
        WriteError::Full(error) | WriteError::Broken(error) => {
            io::Error::new(error.kind(), error.to_string())
        }
        other => io::Error::other(other.to_string()),
    })
}
