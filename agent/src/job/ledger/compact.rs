//! The next file of a ledger that works: written when what is over outweighs what is kept, so that it does not grow for ever.
//!
//! The old file is the ledger until the new one is synced, has its name, and the name is synced; nothing is acknowledged in
//! between, because it is the writer's thread that does this. A file that was replaced is there for as long as somebody reads from it.

use super::frames::Opened;
use super::load::{self, Begun};
use super::writer::{Room, Scribe, fatal};
use super::{OpenError, Shared};
use ampoule_journal::{Medium, WriteError};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// What the next file is made of.
pub(super) struct Next<M> {
    pub(super) dir: PathBuf,
    pub(super) opened: Opened,
    pub(super) wrap: Box<dyn FnMut(File) -> M + Send>,
    /// Bytes that stay set aside.
    pub(super) reserve: u64,
    /// By how many bytes the file grows at least before the next one.
    pub(super) growth: u64,
    /// The length from which on the next one is due.
    pub(super) due: u64,
}

impl<M: Medium> Next<M> {
    /// From a file of this length on it may grow to twice that, and by `growth` in any case.
    pub(super) fn after(&mut self, length: u64) {
        self.due = length.saturating_add(length.max(self.growth));
    }

    fn write(&mut self, shared: &Shared) -> Result<(Begun<M>, Room, Opened), OpenError> {
        let failed =
            |source: io::Error| OpenError::File { path: self.dir.clone(), doing: "compacted", source };
        let opened = Opened { nonce: load::nonce().map_err(failed)?, ..self.opened.clone() };
        let begun = load::write_next(&self.dir, &shared.read(), &opened, &mut *self.wrap)?;
        // Without it a full disk would stop the end of jobs, for which the old file has room.
        let mut room = Room::new(begun.file.try_clone().map_err(failed)?, self.reserve);
        room.make(begun.writer.offset(), 0).map_err(failed)?;
        load::put_in_place(&self.dir)?;
        Ok((begun, room, opened))
    }
}

impl<M: Medium> Scribe<M> {
    /// Goes on in a new file if it is time. What keeps it from that is told and tried again after the same growth.
    pub(super) fn compact_if_due(&mut self) {
        let length = self.writer.offset();
        if length < self.next.due {
            return;
        }
        let (begun, room, opened) = match self.next.write(&self.shared) {
            Ok(written) => written,
            Err(error) => {
                tracing::warn!(
                    error = crate::chain::chain(&error),
                    "the ledger is not compacted now; it works and grows"
                );
                let _ = load::remove_next(&self.next.dir);
                self.next.due = length.saturating_add(self.next.growth);
                return;
            }
        };
        // Nobody can say which of the two files a crash would leave the name to.
        if let Err(error) = load::sync(&self.next.dir) {
            fatal(&WriteError::Broken(error));
        }
        (self.writer, self.room, self.file) = (begun.writer, room, begun.file);
        (self.nonce, self.next.opened) = (opened.nonce, opened);
        let before = std::mem::replace(&mut *self.shared.write(), begun.index);
        drop(before);
        let now = self.writer.offset();
        self.next.after(now);
        self.shared.compactions.fetch_add(1, Ordering::Relaxed);
        tracing::info!(before = length, now, "the ledger was compacted");
    }
}
