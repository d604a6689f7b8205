//! A transparency log as files: the arithmetic of C2SP tlog-tiles, and none of its storage.
//!
//! Leaves and nodes are hashed as in RFC 6962 §2.1; 256 hashes of one height make a tile, whose path is its name; a checkpoint is a
//! signed note. Any tool that reads such logs can check one of these, and so can anybody with SHA-256 and Ed25519.
//!
//! Guaranteed: two different sequences of entries have different roots; a proof that verifies says that an entry is in a tree, or that
//! one tree begins with another. Not guaranteed: that nobody was shown another tree. For that, a checkpoint must be kept elsewhere.

mod checkpoint;
mod note;
mod proof;
mod tile;
mod tree;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use note::{NOTE_BYTES_MAX, Note, NoteError, NoteKey, NoteSigner, sign_note};
pub use proof::{ProofError, verify_consistency, verify_inclusion};
pub use tile::{
    ENTRY_BYTES_MAX, Edge, EntriesError, TILE_WIDTH, Tile, TileKind, decode_entries, encode_entry,
    nodes_from_tiles,
};
pub use tree::{
    Hash, Nodes, consistency_proof, empty_root, inclusion_proof, leaf_hash, node_hash, tree_root,
};

#[cfg(test)]
mod tests;
