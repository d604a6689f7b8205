//! A log read from its first entry on, offline: by whoever has its directory and its public key.

use super::pending::{self, PENDING};
use super::store::CHECKPOINT;
use ampoule_evidence::tlog::{
    Checkpoint, ENTRY_BYTES_MAX, Edge, Hash, NOTE_BYTES_MAX, NoteKey, TILE_WIDTH, Tile, TileKind,
    decode_entries, leaf_hash,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How often a log is read that is another each time.
const READINGS: usize = 8;

/// What was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogVerified {
    /// The checkpoint that everything was held against.
    pub checkpoint: Checkpoint,
    /// The size of the log when the older checkpoint was kept.
    pub since: Option<u64>,
}

/// Why a log is not what its checkpoint, or one that was kept, says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogRefused {
    /// A file cannot be read, or is not what it should be.
    #[error("{file}: {reason}")]
    File {
        /// Which, below the log's directory.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The checkpoint is of another tree than the entries make.
    #[error("the entries have another root than the checkpoint says: it was made for other entries")]
    Root,
    /// The checkpoint that was kept is none of this log.
    #[error("the older checkpoint: {0}")]
    Older(String),
    /// The log is shorter than it was.
    #[error("the log has {size} entries and had {older}: it was rolled back")]
    RolledBack {
        /// Entries now.
        size: u64,
        /// Entries when the checkpoint was kept.
        older: u64,
    },
    /// The log does not begin with what it had.
    #[error(
        "the first {older} entries are not those that the log had when the older checkpoint was kept: they were changed"
    )]
    Changed {
        /// Entries when the checkpoint was kept.
        older: u64,
    },
}

/// The files of a log, as they lie there or as they were read before.
pub(super) struct Reading<'a> {
    dir: &'a Path,
    held: BTreeMap<String, Vec<u8>>,
}

impl<'a> Reading<'a> {
    pub(super) fn of(dir: &'a Path) -> Self {
        Self { dir, held: BTreeMap::new() }
    }

    fn read(&self, file: &str, bound: usize) -> Result<Vec<u8>, String> {
        if let Some(bytes) = self.held.get(file) {
            return Ok(bytes.clone());
        }
        let mut bytes = Vec::new();
        let limit = u64::try_from(bound).unwrap_or(u64::MAX).saturating_add(1);
        let read = File::open(self.dir.join(file)).and_then(|file| file.take(limit).read_to_end(&mut bytes));
        match read {
            Err(error) => Err(format!("cannot be read: {error}")),
            Ok(_) if bytes.len() > bound => Err(format!("is larger than {bound} bytes")),
            Ok(_) => Ok(bytes),
        }
    }

    /// Reads the tiles that are not full: a log that is written meanwhile removes them, and no others.
    fn hold(&mut self, size: u64) -> Result<(), LogRefused> {
        for tile in Tile::all(size).filter(|tile| tile.width < TILE_WIDTH) {
            let (file, bound) = (tile.path(), TILE_WIDTH * (ENTRY_BYTES_MAX + 2));
            let bytes = self.read(&file, bound);
            let bytes = bytes.map_err(|reason| LogRefused::File { file: file.clone(), reason })?;
            self.held.insert(file, bytes);
        }
        Ok(())
    }

    /// The hashes of a tile, as many as it is wide.
    pub(super) fn hashes(&self, tile: &Tile) -> Result<Vec<Hash>, String> {
        let bytes = self.read(&tile.path(), TILE_WIDTH * 32)?;
        let (hashes, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() || hashes.len() != tile.width {
            return Err(format!("does not have {} hashes", tile.width));
        }
        Ok(hashes.to_vec())
    }

    /// The entries of a tile, as many as it is wide.
    pub(super) fn entries(&self, tile: &Tile) -> Result<Vec<Vec<u8>>, String> {
        let bytes = self.read(&tile.path(), TILE_WIDTH * (ENTRY_BYTES_MAX + 2))?;
        let entries = decode_entries(&bytes, tile.width).map_err(|e| e.to_string())?;
        Ok(entries.into_iter().map(<[u8]>::to_vec).collect())
    }
}

/// Verifies the log in a directory: the checkpoint's signature, every entry, every tile, the root, and what is pending. With an older
/// checkpoint that was kept elsewhere, that the log still begins with what it had then. A log that is written meanwhile is read again.
///
/// # Errors
/// [`LogRefused`] for the first thing that is wrong.
pub fn verify_log(dir: &Path, key: &NoteKey, older: Option<&[u8]>) -> Result<LogVerified, LogRefused> {
    let note = || Reading::of(dir).read(CHECKPOINT, NOTE_BYTES_MAX);
    let mut before = note();
    for _ in 0..READINGS {
        let verified = verify_once(dir, key, older);
        let now = note();
        if verified.is_ok() || now == before {
            return verified;
        }
        before = now;
    }
    verify_once(dir, key, older)
}

fn verify_once(dir: &Path, key: &NoteKey, older: Option<&[u8]>) -> Result<LogVerified, LogRefused> {
    let wrong = |file: String| move |reason| LogRefused::File { file: file.clone(), reason };
    // Before the checkpoint: of a log that is written meanwhile, what was pending is in it by then or goes on from it.
    let pending = pending::load(dir).map_err(wrong(PENDING.to_owned()))?;
    let mut files = Reading::of(dir);
    let note = files.read(CHECKPOINT, NOTE_BYTES_MAX).map_err(wrong(CHECKPOINT.to_owned()))?;
    let checkpoint =
        Checkpoint::open(&note, key).map_err(|e| e.to_string()).map_err(wrong(CHECKPOINT.to_owned()))?;
    files.hold(checkpoint.size)?;
    let older = older.map(|note| Checkpoint::open(note, key)).transpose();
    let older = older.map_err(|e| LogRefused::Older(e.to_string()))?;
    let mut edge = Edge::default();
    let hold = |edge: &Edge| match &older {
        Some(older) if older.size == edge.size() && older.root != edge.root() => {
            Err(LogRefused::Changed { older: older.size })
        }
        _ => Ok(()),
    };
    hold(&edge)?;
    for tile in Tile::all(checkpoint.size).take_while(|tile| tile.kind == TileKind::Entries) {
        for entry in files.entries(&tile).map_err(wrong(tile.path()))? {
            for (full, hashes) in edge.push(leaf_hash(&entry)) {
                same(&files, &full, &hashes)?;
            }
            hold(&edge)?;
        }
    }
    for (partial, hashes) in edge.partial() {
        same(&files, &partial, hashes)?;
    }
    if edge.root() != checkpoint.root {
        return Err(LogRefused::Root);
    }
    let lots = pending::read(&pending, &mut edge, key, wrong(PENDING.to_owned()), hold)?;
    let checkpoint = lots.newest.unwrap_or(checkpoint);
    if let Some(older) = older.as_ref().filter(|older| older.size > checkpoint.size) {
        return Err(LogRefused::RolledBack { size: checkpoint.size, older: older.size });
    }
    Ok(LogVerified { checkpoint, since: older.map(|older| older.size) })
}

/// A tile on the disk has the hashes that the entries have.
fn same(files: &Reading<'_>, tile: &Tile, hashes: &[Hash]) -> Result<(), LogRefused> {
    let there = files.hashes(tile).map_err(|reason| LogRefused::File { file: tile.path(), reason })?;
    if there != hashes {
        let reason = "its hashes are not those of the entries: one or the other was changed".to_owned();
        return Err(LogRefused::File { file: tile.path(), reason });
    }
    Ok(())
}
