//! The log as its one writer has it: what is durable in front, and the tiles that it is brought into for many at once.

use super::pending::{self, PENDING_BYTES_MAX, Pending, Wrap};
use super::store::Store;
use super::{AuditError, fatal};
use ampoule_evidence::tlog::{Edge, NoteKey, leaf_hash};
use ampoule_journal::Medium;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// When nothing has come for so long, or the first has waited for so long, what is pending is brought into the tiles.
const QUIET: Duration = Duration::from_millis(20);
const LATE: Duration = Duration::from_millis(250);
/// When that is tried again after it failed.
const AGAIN: Duration = Duration::from_secs(1);
/// What is pending at most while it cannot be brought into the tiles: a lot more may come.
const WAITING_BYTES_MAX: u64 = PENDING_BYTES_MAX / 2;
/// Entries that are brought into the tiles under one checkpoint.
const AT_ONCE: usize = 4096;

pub(super) struct Log<M = File> {
    store: Store,
    pending: Pending<M>,
    /// The tree with what is pending.
    ahead: Edge,
    note: String,
    waiting: Vec<Vec<u8>>,
    /// When that is brought into the tiles, at the latest.
    due: Option<Instant>,
    quiet: Option<Instant>,
}

impl<M: Medium> Log<M> {
    /// Opens a log, and brings into the tiles what a crash has left pending. `wrap` is what its journal is written to.
    pub(super) fn open_on(dir: &Path, origin: &str, wrap: Wrap<M>) -> Result<Self, AuditError> {
        let mut store = Store::open(dir, origin)?;
        let mut pending = Pending::open(dir, wrap)?;
        // Its name is durable before anything is in it.
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| AuditError::File { path: dir.to_owned(), doing: "synced", source })?;
        let mut edge = store.edge().clone();
        let wrong = |reason| AuditError::Mismatch {
            path: dir.to_owned(),
            reason: format!("{} {reason}", pending::PENDING),
        };
        let bytes = pending::load(dir).map_err(wrong)?;
        let lots = pending::read(&bytes, &mut edge, store.public_key(), wrong, |_| Ok(()))?;
        for part in lots.entries.chunks(AT_ONCE) {
            store.commit(part)?;
        }
        pending.clear()?;
        let (ahead, note) = (store.edge().clone(), store.checkpoint().to_owned());
        Ok(Self { store, pending, ahead, note, waiting: Vec::new(), due: None, quiet: None })
    }

    pub(super) fn size(&self) -> u64 {
        self.ahead.size()
    }

    /// The newest checkpoint: what is pending is under it.
    pub(super) fn checkpoint(&self) -> &str {
        &self.note
    }

    pub(super) fn public_key(&self) -> &NoteKey {
        self.store.public_key()
    }

    /// Adds entries: durable under a signed checkpoint when this returns. On an error nothing was added.
    pub(super) fn append(&mut self, batch: &[Vec<u8>]) -> Result<(), AuditError> {
        if self.pending.bytes() >= WAITING_BYTES_MAX {
            self.publish()?;
        }
        let mut ahead = self.ahead.clone();
        for entry in batch {
            ahead.push(leaf_hash(entry));
        }
        let note = self.store.note(&ahead)?;
        match self.pending.add(&note, batch) {
            // The second: there was room for a part.
            Err(AuditError::File { source, .. })
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::WriteZero) =>
            {
                self.store.give_up_reserve();
                self.pending.add(&note, batch)?;
            }
            other => other?,
        }
        (self.ahead, self.note) = (ahead, note);
        self.waiting.extend_from_slice(batch);
        let now = Instant::now();
        self.quiet = Some(now + QUIET);
        self.due.get_or_insert(now + LATE);
        Ok(())
    }

    /// When what is pending is to be brought into the tiles; none: there is nothing.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.map(|due| self.quiet.map_or(due, |quiet| due.min(quiet)))
    }

    /// Brings what is pending into the tiles, under the checkpoint that it has.
    pub(super) fn publish(&mut self) -> Result<(), AuditError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        // Nothing is lost while it does not work: it is pending.
        (self.due, self.quiet) = (Some(Instant::now() + AGAIN), None);
        self.store.commit(&self.waiting)?;
        if self.store.checkpoint() != self.note {
            fatal("its tiles have another checkpoint than was told");
        }
        self.waiting = Vec::new();
        self.due = None;
        self.pending.clear()
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
