//! Who a job is on the host: a block of user ids of its own, or the calling user.

use crate::error::{Stage, StageError};
use ampoule_spec::BUILD_ID;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, mkdirat, openat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The host ids that Ampoule uses: above systemd's container range (524288–1879048191) and far above any
/// subordinate range that useradd(8) hands out, below systemd's foreign range (2147352576).
pub const RANGE_FIRST: u32 = 1_879_048_192;
/// Ids in a block. The kernel maps ids by ranges, and 65,536 covers every id that an image may hold.
pub const BLOCK_IDS: u32 = 65_536;
/// Blocks for jobs; block 0 is the import workers'.
pub const BLOCKS_MAX: u32 = 4_000;
/// Where blocks are taken from, one lock file each. On a tmpfs: no id is remembered beyond a boot.
pub const BLOCKS_DIR: &str = "/run/ampoule/uid-blocks";
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

/// A block of host user ids that one job holds.
///
/// The lock lives as long as the descriptor, which only the job's supervisor keeps; so a block is free
/// again exactly when the supervisor is gone and has not marked it.
#[derive(Debug)]
pub struct UidBlock {
    /// The first host id of the block.
    pub base: u32,
    _lock: File,
}

impl AsFd for UidBlock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self._lock.as_fd()
    }
}

/// Mark of a block that a teardown left unclean.
const QUARANTINED: u8 = b'q';

impl UidBlock {
    /// Takes the free block that was used longest ago, or a new one.
    ///
    /// # Errors
    /// `EAGAIN` when every block is held or quarantined.
    pub fn take() -> Result<Self, StageError> {
        Self::take_in(BLOCKS_DIR)
    }

    fn take_in(blocks: &str) -> Result<Self, StageError> {
        let dir = open_dir_all(blocks).stage("identity: open the directory of user id blocks")?;
        let pool = openat(&dir, ".lock", OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR)
            .stage("identity: open the pool's lock")?;
        flock(&pool, FlockOperation::LockExclusive).stage("identity: lock the pool")?;
        let mut used = used_blocks(dir.as_fd()).stage("identity: list user id blocks")?;
        used.sort_unstable();
        // A block is used again only after 64 others: an id that is new to the host finds nothing of its
        // own even if a check of ours had a hole.
        let fresh = (1..BLOCKS_MAX).find(|n| used.iter().all(|(_, u)| u != n));
        let oldest = used.iter().map(|(_, n)| *n);
        let candidates: Vec<u32> = if used.len() < 64 {
            fresh.into_iter().chain(oldest).collect()
        } else {
            oldest.chain(fresh).collect()
        };
        for number in candidates {
            if let Some(block) = try_block(dir.as_fd(), number).stage("identity: take a user id block")? {
                return Ok(block);
            }
        }
        Err(Errno::AGAIN).stage("identity: every user id block is in use or quarantined")
    }
}

/// Takes the block that begins at `base` out of use until it is released: something of its job may be left.
///
/// # Errors
/// What writing the mark says.
pub fn quarantine(base: u32) -> std::io::Result<()> {
    quarantine_in(BLOCKS_DIR, base)
}

fn quarantine_in(blocks: &str, base: u32) -> std::io::Result<()> {
    let number = base.saturating_sub(RANGE_FIRST) / BLOCK_IDS;
    let dir = open_dir_all(blocks)?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mut file = File::from(openat(&dir, number.to_string(), flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(&[QUARANTINED])?;
    file.sync_all()
}

/// Puts the block that begins at `base` back into use: a later look has found nothing any more.
///
/// # Errors
/// What removing the mark says.
pub fn release(base: u32) -> std::io::Result<()> {
    release_in(BLOCKS_DIR, base)
}

fn release_in(blocks: &str, base: u32) -> std::io::Result<()> {
    let number = base.saturating_sub(RANGE_FIRST) / BLOCK_IDS;
    let dir = open_dir_all(blocks)?;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(openat(&dir, number.to_string(), flags, Mode::empty())?);
    file.set_len(0)
}

fn open_dir_all(path: &str) -> Result<OwnedFd, Errno> {
    let mut dir =
        openat(rustix::fs::CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for part in path.split('/').filter(|p| !p.is_empty()) {
        match mkdirat(&dir, part, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        dir = openat(&dir, part, flags, Mode::empty())?;
    }
    Ok(dir)
}

/// Seconds and nanoseconds since 1970.
type LastUse = (i64, u64);

/// When each block was used last, and its number.
fn used_blocks(dir: BorrowedFd<'_>) -> Result<Vec<(LastUse, u32)>, Errno> {
    let mut blocks = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let number = entry.file_name().to_str().ok().and_then(|n| n.parse::<u32>().ok());
        let Some(number) = number.filter(|n| (1..BLOCKS_MAX).contains(n)) else { continue };
        let stat = rustix::fs::statat(dir, entry.file_name(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        #[allow(clippy::useless_conversion, reason = "the field's type differs between C libraries")]
        blocks.push(((i64::from(stat.st_mtime), u64::from(stat.st_mtime_nsec)), number));
    }
    Ok(blocks)
}

fn try_block(dir: BorrowedFd<'_>, number: u32) -> Result<Option<UidBlock>, Errno> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = openat(dir, number.to_string(), flags, Mode::RUSR | Mode::WUSR)?;
    match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    let mut lock = File::from(fd);
    let mut mark = [0];
    if lock.read(&mut mark).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))? != 0 {
        return Ok(None);
    }
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    rustix::fs::futimens(&lock, &rustix::fs::Timestamps { last_access: now, last_modification: now })?;
    Ok(Some(UidBlock { base: RANGE_FIRST + number * BLOCK_IDS, _lock: lock }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_that_is_held_or_in_quarantine_is_not_given_again() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().to_str().unwrap();
        let held = UidBlock::take_in(place).unwrap();
        let bad = UidBlock::take_in(place).unwrap().base;
        quarantine_in(place, bad).unwrap();
        // Enough of them that free ones are used again.
        let mut again = 0;
        for _ in 0..300 {
            let block = UidBlock::take_in(place).unwrap();
            assert!(block.base != held.base && block.base != bad, "{}", block.base);
            again += u32::from(block.base == held.base + 2 * BLOCK_IDS);
        }
        assert!(again > 1);
        release_in(place, bad).unwrap();
        assert!((0..300).any(|_| UidBlock::take_in(place).unwrap().base == bad));
    }

    #[test]
    fn host_root_is_mapped_nowhere_and_the_range_ends_below_systemds_foreign_ids() {
        let (uids, gids) = Authority::Root { base: RANGE_FIRST }.id_maps();
        assert_eq!((uids.as_str(), gids.as_str()), ("0 1879048192 65536\n", "0 1879048192 65536\n"));
        assert!(u64::from(RANGE_FIRST) + u64::from(BLOCKS_MAX) * u64::from(BLOCK_IDS) < 2_147_352_576);
    }
}
