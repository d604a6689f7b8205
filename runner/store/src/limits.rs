//! What an import may take.

use serde::{Deserialize, Serialize};

/// The most components in a path.
pub const DEPTH_MAX: usize = 64;
/// The most bytes in a component.
pub const NAME_BYTES_MAX: usize = 255;
/// The most bytes in a path.
pub const PATH_BYTES_MAX: usize = 4096;
/// The most bytes in the target of a link.
pub const TARGET_BYTES_MAX: usize = 4095;
/// The most bytes in an image's manifest or configuration.
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// The buffer for reading, hashing and writing.
pub(crate) const BUFFER_BYTES: usize = 256 << 10;

/// What one import may take; each is checked before it is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes of all files.
    pub bytes_max: u64,
    /// Entries, parents that are only implied included.
    pub entries_max: u64,
    /// How many bytes may come out of one compressed byte.
    pub ratio_max: u64,
    /// How many bytes may come out before the ratio counts.
    pub ratio_free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_max: 16 << 30, entries_max: 1_000_000, ratio_max: 200, ratio_free_bytes: 16 << 20 }
    }
}

impl Limits {
    /// The most bytes of a tar stream: all files, and 4 KiB of headers and padding for each entry.
    pub fn stream_bytes_max(&self) -> u64 {
        self.bytes_max.saturating_add(self.entries_max.saturating_mul(4 << 10)).saturating_add(1 << 20)
    }
}
