//! Blocks of host user ids: each is one slot's, from the moment it is taken until a teardown has shown that nothing
//! of the slot is left.
//!
//! A block is a file whose content is the slot that has it; an empty one is free. So whatever dies in between, the ids
//! are not given away again before somebody has looked. Until the intent that names it is durable, a block is only
//! claimed: a mark before the slot says so, and a claim whose owner is dead counts for nothing. Nothing here outlives a
//! boot, and neither does a process.

use crate::error::{Stage, StageError};
use crate::identity::{BLOCK_IDS, RANGE_FIRST};
use ampoule_spec::SlotId;
use rustix::fs::{FlockOperation, Mode, OFlags, fstat, mkdirat, openat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Blocks for jobs; block 0 is the import workers'.
pub const BLOCKS_MAX: u32 = 4_000;
/// Where the blocks' files are, in [`run_dir`].
const BLOCKS_DIR: &str = "uid-blocks";
/// So many blocks are used before one is used again: an id that is new to the host finds nothing of its own, even if a
/// check of ours had a hole.
const ROUND: usize = 64;

/// Opens `/run/ampoule`, where host root keeps what nobody needs after a boot; makes it if it is not there.
///
/// # Errors
/// `EPERM` if somebody else could write to it; what openat(2) and mkdirat(2) say.
pub fn run_dir() -> Result<OwnedFd, Errno> {
    let run =
        openat(rustix::fs::CWD, "/run", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    own_dir(run.as_fd(), "ampoule")
}

/// A directory that the caller alone can write to.
fn own_dir(parent: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    let stat = fstat(&dir)?;
    let ours = stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o022 == 0;
    if ours { Ok(dir) } else { Err(Errno::PERM) }
}

/// A block that nothing has the ids of yet. It is free again when this is dropped.
#[derive(Debug)]
pub struct Claim {
    /// The first host id.
    pub base: u32,
    slot: SlotId,
    /// Locked as long as the claim stands.
    file: File,
}

impl Claim {
    /// Makes the block the slot's: its intent is durable.
    ///
    /// # Errors
    /// What the file says; the block is free then.
    pub fn confirm(mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all(self.slot.as_str().as_bytes())
    }
}

/// Stands before the slot while a block is claimed.
const CLAIMED: u8 = b'?';

/// Claims the free block that was given back longest ago, or a new one, for a slot.
///
/// # Errors
/// `EAGAIN` when every block is taken; `EPERM` when somebody else can write where they are kept.
pub fn claim(slot: &SlotId) -> Result<Claim, StageError> {
    let dir = blocks().stage("identity: open /run/ampoule/uid-blocks")?;
    claim_in(dir.as_fd(), slot)
}

/// Gives a block back, if it is still the slot's: nothing of the slot is left.
///
/// # Errors
/// What the file says; the block stays out of use then.
pub fn give_back(base: u32, slot: &SlotId) -> std::io::Result<()> {
    give_back_in(blocks()?.as_fd(), base, slot)
}

/// Whether a block is still a slot's. One that is not was given back after a teardown that found nothing left.
///
/// # Errors
/// What the file says.
pub fn is_of(base: u32, slot: &SlotId) -> std::io::Result<bool> {
    is_of_in(blocks()?.as_fd(), base, slot)
}

fn blocks() -> Result<OwnedFd, Errno> {
    own_dir(run_dir()?.as_fd(), BLOCKS_DIR)
}

/// Whoever reads a block and writes it afterwards has this lock.
fn lock(dir: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = openat(dir, ".lock", flags, Mode::RUSR)?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
    Ok(lock)
}

fn claim_in(dir: BorrowedFd<'_>, slot: &SlotId) -> Result<Claim, StageError> {
    let _lock = lock(dir).stage("identity: lock the blocks of user ids")?;
    let mut used = used_blocks(dir).stage("identity: list the blocks of user ids")?;
    used.sort_unstable();
    let fresh = (1..BLOCKS_MAX).find(|n| used.iter().all(|(_, u)| u != n));
    let oldest = used.iter().map(|(_, n)| *n);
    let candidates: Vec<u32> = match used.len() < ROUND {
        true => fresh.into_iter().chain(oldest).collect(),
        false => oldest.chain(fresh).collect(),
    };
    for number in candidates {
        let mut file = open(dir, number).stage("identity: open a block of user ids")?;
        if is_free(&mut file).stage("identity: read a block of user ids")? {
            file.set_len(0).stage("identity: claim a block of user ids")?;
            let claim = [&[CLAIMED], slot.as_str().as_bytes()].concat();
            file.write_all(&claim).stage("identity: claim a block of user ids")?;
            return Ok(Claim { base: RANGE_FIRST + number * BLOCK_IDS, slot: slot.clone(), file });
        }
    }
    Err(Errno::AGAIN).stage("identity: every block of user ids is in use or in quarantine")
}

fn give_back_in(dir: BorrowedFd<'_>, base: u32, slot: &SlotId) -> std::io::Result<()> {
    let _lock = lock(dir)?;
    let mut file = open(dir, number(base))?;
    // Truncating a file also sets the time by which it is chosen again.
    if holder(&mut file)? == slot.as_str().as_bytes() { file.set_len(0) } else { Ok(()) }
}

fn is_of_in(dir: BorrowedFd<'_>, base: u32, slot: &SlotId) -> std::io::Result<bool> {
    let mut file = open(dir, number(base))?;
    Ok(holder(&mut file)? == slot.as_str().as_bytes())
}

fn number(base: u32) -> u32 {
    base.saturating_sub(RANGE_FIRST) / BLOCK_IDS
}

fn open(dir: BorrowedFd<'_>, number: u32) -> Result<File, Errno> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(dir, number.to_string(), flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

/// Whether nobody has a block, nor claims it and lives; then it is locked now.
fn is_free(file: &mut File) -> std::io::Result<bool> {
    match rustix::fs::flock(&*file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(false),
        other => other?,
    }
    Ok(holder(file)?.first().is_none_or(|first| *first == CLAIMED))
}

fn holder(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Seconds and nanoseconds since 1970.
type LastUse = (i64, u64);

/// When each block was taken or given back last, and its number.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn slot(number: u32) -> SlotId {
        SlotId::parse(&format!("01890a5d-ac96-774b-bcce-{number:012x}")).unwrap()
    }

    #[test]
    fn claim_is_confirmed_or_counts_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dir = File::open(folder.path()).unwrap();
        let claim = claim_in(dir.as_fd(), &slot(1)).unwrap();
        let base = claim.base;
        assert_ne!(claim_in(dir.as_fd(), &slot(2)).unwrap().base, base);
        assert!(!is_of_in(dir.as_fd(), base, &slot(1)).unwrap());
        // Its owner is dead.
        drop(claim);
        let used = (10..200).any(|number| claim_in(dir.as_fd(), &slot(number)).unwrap().base == base);
        assert!(used);
        let claim = claim_in(dir.as_fd(), &slot(3)).unwrap();
        let base = claim.base;
        claim.confirm().unwrap();
        assert!(is_of_in(dir.as_fd(), base, &slot(3)).unwrap());
        assert!((10..200).all(|number| claim_in(dir.as_fd(), &slot(number)).unwrap().base != base));
    }

    fn take_in(dir: BorrowedFd<'_>, slot: &SlotId) -> Result<u32, StageError> {
        let claim = claim_in(dir, slot)?;
        let base = claim.base;
        claim.confirm().unwrap();
        Ok(base)
    }

    #[test]
    fn block_is_a_slots_until_that_slot_gives_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let dir = File::open(folder.path()).unwrap();
        let dir = dir.as_fd();
        let (held, other) = (slot(1), slot(2));
        let base = take_in(dir, &held).unwrap();
        assert!(is_of_in(dir, base, &held).unwrap() && !is_of_in(dir, base, &other).unwrap());
        // Enough of them that free ones are used again.
        let mut again = 0;
        for number in 10..300 {
            let next = take_in(dir, &slot(number)).unwrap();
            assert_ne!(next, base);
            again += u32::from(next == base + BLOCK_IDS);
            // Somebody else's word counts for nothing.
            give_back_in(dir, base, &slot(number)).unwrap();
            give_back_in(dir, next, &slot(number)).unwrap();
        }
        assert!(again > 1);
        give_back_in(dir, base, &held).unwrap();
        let mut given = (300..600).map(slot).map(|slot| {
            let next = take_in(dir, &slot).unwrap();
            give_back_in(dir, next, &slot).unwrap();
            next
        });
        assert!(given.any(|next| next == base));
    }

    #[test]
    fn directory_that_others_can_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let parent = File::open(folder.path()).unwrap();
        own_dir(parent.as_fd(), "blocks").unwrap();
        std::fs::set_permissions(folder.path().join("blocks"), PermissionsExt::from_mode(0o777)).unwrap();
        assert_eq!(own_dir(parent.as_fd(), "blocks").unwrap_err(), Errno::PERM);
        std::os::unix::fs::symlink("blocks", folder.path().join("link")).unwrap();
        assert!(own_dir(parent.as_fd(), "link").is_err());
    }
}
