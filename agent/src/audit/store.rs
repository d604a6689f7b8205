//! The log's files: entries, then tiles, then the checkpoint, each durable before the next is written.

use super::disk::{Disk, Real};
use super::verify::Reading;
use super::{AuditError, LogKey, fatal};
use ampoule_evidence::tlog::{
    Checkpoint, Edge, NOTE_BYTES_MAX, NoteKey, Tile, TileKind, encode_entry, leaf_hash,
};
use rustix::fs::{FallocateFlags, fallocate};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The newest checkpoint.
pub(super) const CHECKPOINT: &str = "checkpoint";
const CHECKPOINT_NEXT: &str = "checkpoint.new";
/// What is set aside for a full disk.
const RESERVE: &str = "reserve";
const RESERVE_BYTES: u64 = 1 << 20;
const KEY: &str = "key.pem";
/// The public key, for whoever verifies.
const PUBLIC_KEY: &str = "key.pub";

/// Tiles and what is written for them.
type Files = Vec<(Tile, Vec<u8>)>;

/// A log in its directory. One thread of one process has it.
pub(super) struct Store<D = Real> {
    dir: PathBuf,
    disk: D,
    key: LogKey,
    edge: Edge,
    /// The bytes of the tile of entries that is not full.
    entries: Vec<u8>,
    note: String,
}

impl Store {
    pub(super) fn open(dir: &Path, origin: &str) -> Result<Self, AuditError> {
        Self::open_on(Real, dir, origin)
    }
}

impl<D: Disk> Store<D> {
    pub(super) fn open_on(disk: D, dir: &Path, origin: &str) -> Result<Self, AuditError> {
        let path = dir.join(CHECKPOINT);
        let mismatch =
            |reason: &str| AuditError::Mismatch { path: dir.to_owned(), reason: reason.to_owned() };
        let failed = |path: &Path, doing| {
            let path = path.to_owned();
            move |source| AuditError::File { path, doing, source }
        };
        let mut note = Vec::new();
        match File::open(&path) {
            Ok(file) => {
                let bound = u64::try_from(NOTE_BYTES_MAX).unwrap_or(u64::MAX);
                file.take(bound).read_to_end(&mut note).map_err(failed(&path, "read"))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if dir.join("tile").exists() {
                    return Err(mismatch("there are tiles and no checkpoint"));
                }
                return Self::begin(disk, dir, origin);
            }
            Err(error) => return Err(failed(&path, "read")(error)),
        }
        let key = LogKey::load(&dir.join(KEY), origin)?;
        let checkpoint = Checkpoint::open(&note, key.public()).map_err(|e| mismatch(&e.to_string()))?;
        let edge = Edge::from_tiles(checkpoint.size, |tile| Reading::of(dir).hashes(tile).ok());
        let edge = edge.ok_or_else(|| mismatch("a tile of its right edge is missing or has another size"))?;
        if edge.root() != checkpoint.root {
            return Err(mismatch("its tiles have another root"));
        }
        let mut store =
            Self { dir: dir.to_owned(), disk, key, edge, entries: Vec::new(), note: String::new() };
        store.note = String::from_utf8(note).map_err(|_| mismatch("its checkpoint is not UTF-8"))?;
        store.read_last_entries().map_err(|reason| mismatch(&reason))?;
        store.set_aside();
        Ok(store)
    }

    fn begin(disk: D, dir: &Path, origin: &str) -> Result<Self, AuditError> {
        let key = LogKey::load_or_create(&dir.join(KEY), origin)?;
        let mut store = Self {
            dir: dir.to_owned(),
            disk,
            key,
            edge: Edge::default(),
            entries: Vec::new(),
            note: String::new(),
        };
        let public = dir.join(PUBLIC_KEY);
        store
            .write(&public, format!("{}\n", store.key.public()).as_bytes())
            .map_err(|source| AuditError::File { path: public, doing: "written", source })?;
        store.sign(&Edge::default())?;
        store.set_aside();
        Ok(store)
    }

    /// The last entries, which new ones are written behind: each must be what its hash says.
    fn read_last_entries(&mut self) -> Result<(), String> {
        let Some((tile, hashes)) = self.edge.partial().find(|(tile, _)| tile.kind == TileKind::Hashes(0))
        else {
            return Ok(());
        };
        let tile = Tile { kind: TileKind::Entries, ..tile };
        let entries = Reading::of(&self.dir).entries(&tile)?;
        if entries.iter().map(|entry| leaf_hash(entry)).ne(hashes.iter().copied()) {
            return Err(format!("{} has other entries than were signed", tile.path()));
        }
        for entry in entries {
            if !encode_entry(&entry, &mut self.entries) {
                return Err(format!("{} has an entry that is too long", tile.path()));
            }
        }
        Ok(())
    }

    pub(super) fn edge(&self) -> &Edge {
        &self.edge
    }

    pub(super) fn checkpoint(&self) -> &str {
        &self.note
    }

    pub(super) fn public_key(&self) -> &NoteKey {
        self.key.public()
    }

    /// Adds entries: durable under a signed checkpoint when this returns. On an error nothing was added.
    pub(super) fn commit(&mut self, batch: &[Vec<u8>]) -> Result<(), AuditError> {
        let (mut edge, mut entries) = (self.edge.clone(), self.entries.clone());
        let (mut first, mut second): (Files, Files) = (Vec::new(), Vec::new());
        for entry in batch {
            if !encode_entry(entry, &mut entries) {
                return Err(AuditError::NotWritten("an entry is too long".to_owned()));
            }
            for (tile, hashes) in edge.push(leaf_hash(entry)) {
                if tile.kind == TileKind::Hashes(0) {
                    first.push((Tile { kind: TileKind::Entries, ..tile }, std::mem::take(&mut entries)));
                }
                second.push((tile, hashes.concat()));
            }
        }
        let before: BTreeSet<Tile> = self.edge.partial().map(|(tile, _)| tile).collect();
        let now: BTreeSet<Tile> = edge.partial().map(|(tile, _)| tile).collect();
        for (tile, hashes) in edge.partial().filter(|(tile, _)| !before.contains(tile)) {
            if tile.kind == TileKind::Hashes(0) {
                first.push((Tile { kind: TileKind::Entries, ..tile }, entries.clone()));
            }
            second.push((tile, hashes.concat()));
        }
        first.append(&mut second);
        match self.write_tree(&first, &edge) {
            Err(AuditError::File { source, .. }) if source.kind() == io::ErrorKind::StorageFull => {
                self.give_up_reserve();
                self.write_tree(&first, &edge)?;
            }
            other => other?,
        }
        (self.edge, self.entries) = (edge, entries);
        self.drop_partial(before.difference(&now));
        Ok(())
    }

    fn write_tree(&mut self, files: &Files, edge: &Edge) -> Result<(), AuditError> {
        for (tile, bytes) in files {
            let path = self.dir.join(tile.path());
            let written = self.write(&path, bytes);
            written.map_err(|source| AuditError::File { path, doing: "written", source })?;
        }
        self.sign(edge)
    }

    /// Sets room aside, if there is any: what it is for is a disk that fills.
    fn set_aside(&self) {
        let file =
            File::options().create(true).write(true).truncate(true).mode(0o600).open(self.dir.join(RESERVE));
        let allocated =
            file.and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES)?));
        if let Err(error) = allocated {
            tracing::warn!(%error, "no room can be set aside for the audit log; on a full disk it stops with all calls");
        }
    }

    /// What was set aside is for this: calls are written down while the disk is full.
    pub(super) fn give_up_reserve(&self) {
        let _ = std::fs::remove_file(self.dir.join(RESERVE));
    }

    /// The signed checkpoint of a tree.
    pub(super) fn note(&self, edge: &Edge) -> Result<String, AuditError> {
        let origin = self.key.public().name().to_owned();
        let checkpoint = Checkpoint { origin, size: edge.size(), root: edge.root() };
        checkpoint.sign(&self.key).map_err(|e| AuditError::Key(e.to_string()))
    }

    /// Signs the checkpoint of a tree whose files are durable, and puts it in its place.
    fn sign(&mut self, edge: &Edge) -> Result<(), AuditError> {
        let note = self.note(edge)?;
        let next = self.dir.join(CHECKPOINT_NEXT);
        let failed = |source| AuditError::File { path: next.clone(), doing: "written", source };
        let file = self.disk.write(&next, note.as_bytes()).map_err(failed)?;
        // Its first name need not be durable: the rename replaces it, and that is.
        if let Err(error) = self.disk.sync(&file, &next) {
            fatal(&format!("{}: {error}", next.display()));
        }
        self.disk.rename(&next, &self.dir.join(CHECKPOINT)).map_err(failed)?;
        // From here on the new checkpoint may be what a restart finds: there is no way back.
        if let Err(error) = self.disk.sync_dir(&self.dir) {
            fatal(&format!("{}: {error}", self.dir.display()));
        }
        self.note = note;
        Ok(())
    }

    /// Writes a file that no checkpoint speaks of yet, and makes it durable.
    fn write(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let parent = path.parent().unwrap_or(path);
        self.make_dirs(parent)?;
        let file = self.disk.write(path, bytes)?;
        // The next sync may report success for pages that the kernel has dropped.
        if let Err(error) = self.disk.sync(&file, path).and_then(|()| self.disk.sync_dir(parent)) {
            fatal(&format!("{}: {error}", path.display()));
        }
        Ok(())
    }

    fn make_dirs(&mut self, dir: &Path) -> io::Result<()> {
        let missing: Vec<_> = dir.ancestors().take_while(|dir| !dir.exists()).collect();
        for dir in missing.into_iter().rev() {
            self.disk.make_dir(dir)?;
            if let Some(parent) = dir.parent() {
                self.disk.sync_dir(parent)?;
            }
        }
        Ok(())
    }

    /// Removes partial tiles in whose place there are wider ones. What is left of them after a crash does no harm.
    fn drop_partial<'a>(&mut self, tiles: impl Iterator<Item = &'a Tile>) {
        for tile in tiles {
            let entries =
                (tile.kind == TileKind::Hashes(0)).then_some(Tile { kind: TileKind::Entries, ..*tile });
            for tile in std::iter::once(*tile).chain(entries) {
                let path = self.dir.join(tile.path());
                let _ = self.disk.remove(&path);
                if let Some(parent) = path.parent() {
                    // Only when it is empty.
                    let _ = self.disk.remove_dir(parent);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
