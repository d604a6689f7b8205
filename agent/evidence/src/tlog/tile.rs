//! Tiles: 256 hashes of one height each, their names, and the right edge of a tree that grows (c2sp.org/tlog-tiles).

use super::tree::{Hash, Nodes, empty_root, node_hash};

/// Hashes or entries in a tile that is full.
pub const TILE_WIDTH: usize = 256;
/// The most bytes of one entry: its length is written in two bytes.
pub const ENTRY_BYTES_MAX: usize = 65_535;
/// Heights of a tree between two levels of tiles.
const TILE_HEIGHT: u32 = 8;

/// What a tile holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TileKind {
    /// Hashes of this level: over 256^level entries each.
    Hashes(u8),
    /// The entries themselves.
    Entries,
}

/// The name of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tile {
    /// What it holds.
    pub kind: TileKind,
    /// Its place from the left.
    pub index: u64,
    /// How many it holds, 1 to 256; with less than 256 it is partial.
    pub width: usize,
}

impl Tile {
    /// Its path below the log's directory.
    pub fn path(&self) -> String {
        let level = match self.kind {
            TileKind::Hashes(level) => level.to_string(),
            TileKind::Entries => "entries".to_owned(),
        };
        let mut groups = vec![format!("{:03}", self.index % 1000)];
        let mut rest = self.index / 1000;
        while rest > 0 {
            groups.push(format!("x{:03}", rest % 1000));
            rest /= 1000;
        }
        groups.reverse();
        let partial = if self.width < TILE_WIDTH { format!(".p/{}", self.width) } else { String::new() };
        format!("tile/{level}/{}{partial}", groups.join("/"))
    }

    /// All tiles of a tree of `size` entries: of each kind from left to right.
    pub fn all(size: u64) -> impl Iterator<Item = Self> {
        let levels =
            (0..8_u8).map(move |level| (TileKind::Hashes(level), size >> (TILE_HEIGHT * u32::from(level))));
        let kinds = std::iter::once((TileKind::Entries, size)).chain(levels);
        kinds.flat_map(|(kind, count)| {
            let full = count / 256;
            let rest = usize::try_from(count % 256).unwrap_or_default();
            let whole = (0..full).map(move |index| Self { kind, index, width: TILE_WIDTH });
            whole.chain((rest > 0).then_some(Self { kind, index: full, width: rest }))
        })
    }
}

/// Why the bytes of a tile of entries are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the tile of entries does not hold {wanted} entries and nothing else")]
pub struct EntriesError {
    /// How many there should be.
    pub wanted: usize,
}

/// Appends an entry to the bytes of a tile: its length, two bytes, big endian, and itself.
///
/// False if the entry is too long; nothing is appended then.
#[must_use]
pub fn encode_entry(entry: &[u8], tile: &mut Vec<u8>) -> bool {
    let Ok(length) = u16::try_from(entry.len()) else { return false };
    tile.extend_from_slice(&length.to_be_bytes());
    tile.extend_from_slice(entry);
    true
}

/// The entries in the bytes of a tile that holds `wanted` of them.
///
/// # Errors
/// [`EntriesError`] if it holds more, fewer or something else.
pub fn decode_entries(mut tile: &[u8], wanted: usize) -> Result<Vec<&[u8]>, EntriesError> {
    let mut entries = Vec::new();
    let error = EntriesError { wanted };
    while entries.len() < wanted.min(TILE_WIDTH) {
        let (length, rest) = tile.split_first_chunk::<2>().ok_or(error)?;
        let (entry, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into()).ok_or(error)?;
        entries.push(entry);
        tile = rest;
    }
    if tile.is_empty() && entries.len() == wanted { Ok(entries) } else { Err(error) }
}

/// The root over a power of two of hashes of one height.
fn complete(hashes: &[Hash]) -> Option<Hash> {
    match hashes {
        [] => None,
        [hash] => Some(*hash),
        _ => {
            let (left, right) = hashes.split_at_checked(hashes.len() / 2)?;
            Some(node_hash(&complete(left)?, &complete(right)?))
        }
    }
}

/// The right edge of a tree: the tile of each level that is not full yet. All that a log needs in memory to grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edge {
    size: u64,
    levels: Vec<Vec<Hash>>,
}

impl Edge {
    /// How many entries there are.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The edge of a tree of `size` entries from its partial tiles; none if one is missing or has another width.
    pub fn from_tiles(size: u64, mut read: impl FnMut(&Tile) -> Option<Vec<Hash>>) -> Option<Self> {
        let mut levels = Vec::new();
        for level in 0..8_u8 {
            let count = size >> (TILE_HEIGHT * u32::from(level));
            if count == 0 {
                break;
            }
            let width = usize::try_from(count % 256).ok()?;
            let tile = Tile { kind: TileKind::Hashes(level), index: count / 256, width };
            let hashes = if width == 0 { Vec::new() } else { read(&tile)? };
            if hashes.len() != width {
                return None;
            }
            levels.push(hashes);
        }
        Some(Self { size, levels })
    }

    /// Adds an entry's hash. Tiles that are full with it are given out, and are no longer on the edge.
    pub fn push(&mut self, leaf: Hash) -> Vec<(Tile, Vec<Hash>)> {
        let mut full = Vec::new();
        let mut carry = Some(leaf);
        self.size = self.size.saturating_add(1);
        for level in 0..8_u8 {
            let Some(hash) = carry.take() else { break };
            let at = usize::from(level);
            if self.levels.len() <= at {
                self.levels.push(Vec::new());
            }
            let Some(hashes) = self.levels.get_mut(at) else { break };
            hashes.push(hash);
            if hashes.len() == TILE_WIDTH {
                let hashes = std::mem::take(hashes);
                carry = complete(&hashes);
                let count = self.size >> (TILE_HEIGHT * u32::from(level));
                let index = (count / 256).saturating_sub(1);
                full.push((Tile { kind: TileKind::Hashes(level), index, width: TILE_WIDTH }, hashes));
            }
        }
        full
    }

    /// The tiles that are not full.
    pub fn partial(&self) -> impl Iterator<Item = (Tile, &[Hash])> {
        let levels = (0..8_u8).zip(&self.levels).filter(|(_, hashes)| !hashes.is_empty());
        levels.map(|(level, hashes)| {
            let index = (self.size >> (TILE_HEIGHT * u32::from(level))) / 256;
            (Tile { kind: TileKind::Hashes(level), index, width: hashes.len() }, hashes.as_slice())
        })
    }

    /// The tree's root.
    pub fn root(&self) -> Hash {
        let mut root = None;
        // From right to left: the smallest complete subtree is the last.
        for hashes in &self.levels {
            let mut rest = hashes.as_slice();
            while !rest.is_empty() {
                let width = 1 << rest.len().trailing_zeros();
                let Some((before, last)) = rest.split_at_checked(rest.len().saturating_sub(width)) else {
                    break;
                };
                rest = before;
                let Some(subtree) = complete(last) else { break };
                root = Some(root.map_or(subtree, |right| node_hash(&subtree, &right)));
            }
        }
        root.unwrap_or_else(empty_root)
    }
}

/// Nodes from tiles of hashes that somebody reads: of a log with `size` entries.
pub(super) struct FromTiles<R> {
    pub(super) size: u64,
    pub(super) read: R,
}

impl<R: Fn(&Tile) -> Option<Vec<Hash>>> Nodes for FromTiles<R> {
    fn node(&self, height: u32, index: u64) -> Option<Hash> {
        let level = u8::try_from(height / TILE_HEIGHT).ok()?;
        let below = height % TILE_HEIGHT;
        let first = index.checked_shl(below)?;
        let count = self.size >> (TILE_HEIGHT * u32::from(level));
        let at = first / 256;
        let width = usize::try_from(count.checked_sub(at.checked_mul(256)?)?.min(256)).ok()?;
        let hashes = (self.read)(&Tile { kind: TileKind::Hashes(level), index: at, width })?;
        let from = usize::try_from(first % 256).ok()?;
        complete(hashes.get(from..from.checked_add(1 << below)?)?)
    }
}

/// Nodes from the tiles of a log with `size` entries: `read` gives a tile's hashes.
pub fn nodes_from_tiles(size: u64, read: impl Fn(&Tile) -> Option<Vec<Hash>>) -> impl Nodes {
    FromTiles { size, read }
}
