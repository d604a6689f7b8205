//! What a git input may take; each is checked before it is spent.

/// The bounds of one git input, its submodules included where it says "in all".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GitLimits {
    /// Bytes of one pack.
    pub pack_bytes_max: u64,
    /// Objects in one pack.
    pub objects_max: u32,
    /// Bytes of one object; it is held in memory.
    pub object_bytes_max: u64,
    /// Bytes that may be decompressed and rebuilt from one pack, each time that it is done.
    pub work_bytes_max: u64,
    /// Deltas between an object and the one it is stored with.
    pub delta_depth_max: usize,
    /// Names in all trees of a checkout, in all.
    pub entries_max: u64,
    /// Bytes of all files, in all.
    pub bytes_max: u64,
}

impl Default for GitLimits {
    /// 4 GiB and a million objects a pack, 512 MiB an object, 128 GiB of work, 4,095 deltas (git's own limit), and an
    /// import's 1,000,000 names and 16 GiB.
    fn default() -> Self {
        let import = ampoule_store::Limits::default();
        Self {
            pack_bytes_max: 4 << 30,
            objects_max: 1_000_000,
            object_bytes_max: 512 << 20,
            work_bytes_max: 128 << 30,
            delta_depth_max: 4095,
            entries_max: import.entries_max,
            bytes_max: import.bytes_max,
        }
    }
}

/// The most bytes of one tree object.
pub(crate) const TREE_BYTES_MAX: u64 = 64 << 20;
/// The deepest nesting of submodules.
pub(crate) const SUBMODULE_DEPTH_MAX: usize = 8;
