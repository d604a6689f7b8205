//! Who a job is on the host: a block of user ids of its own, or the calling user.

use ampoule_spec::BUILD_ID;

/// The host ids that Ampoule uses: above systemd's container range (524288–1879048191) and far above any
/// subordinate range that useradd(8) hands out, below systemd's foreign range (2147352576).
pub const RANGE_FIRST: u32 = 1_879_048_192;
/// Ids in a block. The kernel maps ids by ranges, and 65,536 covers every id that an image may hold.
pub const BLOCK_IDS: u32 = 65_536;
/// The first host id of the import workers' block.
pub const IMPORT_BASE: u32 = RANGE_FIRST;

/// Under which authority a sandbox is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// By host root, for a block of ids that begins here. Host id 0 is mapped nowhere.
    Root {
        /// The first host id of the block.
        base: u32,
    },
    /// By an ordinary user, who is the only id that is mapped.
    User {
        /// The user's id.
        uid: u32,
        /// The user's group.
        gid: u32,
    },
}

impl Authority {
    /// The lines of `/proc/PID/uid_map` and `gid_map` (user_namespaces(7)).
    pub fn id_maps(self) -> (String, String) {
        match self {
            Self::Root { base } => {
                let line = format!("0 {base} {BLOCK_IDS}\n");
                (line.clone(), line)
            }
            Self::User { uid, gid } => (format!("{BUILD_ID} {uid} 1\n"), format!("{BUILD_ID} {gid} 1\n")),
        }
    }

    /// The line of the map of the user namespace that the steps have inside the job's: every id as it is.
    pub fn inner_map(self) -> String {
        match self {
            Self::Root { .. } => format!("0 0 {BLOCK_IDS}\n"),
            Self::User { .. } => format!("{BUILD_ID} {BUILD_ID} 1\n"),
        }
    }

    /// The host id that stands for an id inside.
    pub fn host_id(self, inside: u32) -> u32 {
        match self {
            Self::Root { base } => base + inside,
            Self::User { uid, .. } => uid,
        }
    }

    /// The first of the block of host ids; none for an ordinary user.
    pub fn base(self) -> Option<u32> {
        match self {
            Self::Root { base } => Some(base),
            Self::User { .. } => None,
        }
    }

    /// Whether host root makes the sandbox.
    pub fn is_root(self) -> bool {
        matches!(self, Self::Root { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uid_block::BLOCKS_MAX;

    #[test]
    fn host_root_is_mapped_nowhere_and_the_range_ends_below_systemds_foreign_ids() {
        let (uids, gids) = Authority::Root { base: RANGE_FIRST }.id_maps();
        assert_eq!((uids.as_str(), gids.as_str()), ("0 1879048192 65536\n", "0 1879048192 65536\n"));
        assert!(u64::from(RANGE_FIRST) + u64::from(BLOCKS_MAX) * u64::from(BLOCK_IDS) < 2_147_352_576);
    }
}
