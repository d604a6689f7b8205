//! Leases: what somebody uses is not removed.
//!
//! A lease is a shared lock on an object's directory. It belongs to an open file, so it goes to another process with
//! the descriptor, and ends with the last process that has it: a job's supervisor keeps its objects whatever becomes
//! of the launcher. A collection removes only what it can lock alone.

use crate::beneath;
use crate::error::StoreError;
use crate::store::{Store, TREE};
use ampoule_spec::{Blake3, UnixNanos};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FlockOperation, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long somebody else may have an object alone.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOCK_STEP: Duration = Duration::from_millis(2);

/// An object that stays as long as this, or another descriptor of the same lock, is open.
#[derive(Debug)]
pub struct Lease {
    pub(crate) dir: OwnedFd,
    pub(crate) object: Blake3,
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Lease {
    /// A lease whose descriptor came from another process of the runner's.
    pub fn of(dir: OwnedFd, object: Blake3) -> Self {
        Self { dir, object }
    }

    /// The object's name.
    pub fn object(&self) -> Blake3 {
        self.object
    }

    /// The root of its tree (`O_PATH`), for mounting.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be opened.
    pub fn tree(&self) -> Result<OwnedFd, StoreError> {
        beneath::open(&self.dir, TREE.as_bytes(), OFlags::PATH | OFlags::DIRECTORY)
            .map_err(StoreError::io("open", &self.object.to_string()))
    }

    /// Another descriptor of the same lease.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the process has no descriptor left.
    pub fn duplicate(&self) -> Result<Self, StoreError> {
        let dir = self.dir.try_clone().map_err(|error| {
            StoreError::io("duplicate", TREE)(Errno::from_io_error(&error).unwrap_or(Errno::MFILE))
        })?;
        Ok(Self { dir, object: self.object })
    }
}

impl Store {
    /// Takes a lease of an object, and says that it is used now; nothing if it is not there.
    ///
    /// The time of use is the modification time of the object's directory. It is written when the kernel likes: a cut
    /// of power may take it back some seconds, and a job's start waits for no disk.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn lease(&self, object: Blake3) -> Result<Option<Lease>, StoreError> {
        let Some(lease) = self.peek(object)? else { return Ok(None) };
        touch(&lease.dir).map_err(StoreError::io("set the time of", &object.to_string()))?;
        Ok(Some(lease))
    }

    /// The same without saying that it is used.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn peek(&self, object: Blake3) -> Result<Option<Lease>, StoreError> {
        let name = object.to_string();
        let dir = match beneath::open_dir(&self.trees, name.as_bytes()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(StoreError::io("open", &name)(errno)),
        };
        Ok(self.lock_shared(&name, &dir)?.then_some(Lease { dir, object }))
    }

    /// Waits for a shared lock; false if the object went away. Who has it alone is about to remove it, or has just made
    /// it: either is soon over, but the lock of one that is being removed lasts longer than its name.
    fn lock_shared(&self, name: &str, dir: &OwnedFd) -> Result<bool, StoreError> {
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            match rustix::fs::flock(dir, FlockOperation::NonBlockingLockShared) {
                Ok(()) => return self.is_still(name, dir),
                Err(Errno::WOULDBLOCK) if !self.is_still(name, dir)? => return Ok(false),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_STEP),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(StoreError::io("lock", name)(errno)),
            }
        }
    }

    /// Whether an open directory still has its name.
    pub(crate) fn is_still(&self, name: &str, dir: &OwnedFd) -> Result<bool, StoreError> {
        let own = rustix::fs::fstat(dir).map_err(StoreError::io("examine", name))?;
        match rustix::fs::statat(&self.trees, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok((stat.st_dev, stat.st_ino) == (own.st_dev, own.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(StoreError::io("examine", name)(errno)),
        }
    }
}

/// Says that an object is used now. By the clock's nanoseconds and not the kernel's ticks, so that two uses differ.
pub(crate) fn touch(dir: impl AsFd) -> Result<(), Errno> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let last_access = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let last_modification = Timespec { tv_sec: seconds, tv_nsec: now.subsec_nanos().into() };
    rustix::fs::futimens(dir, &Timestamps { last_access, last_modification })
}

/// When an object was used last.
pub(crate) fn used(stat: &rustix::fs::Stat) -> UnixNanos {
    let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
    UnixNanos(seconds.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec))
}
