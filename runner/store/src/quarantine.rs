//! What is damaged is moved aside: never removed unasked, never mounted again.
//!
//! Index entries of an object in quarantine stay: they say nothing while it is away, and are right again when the
//! same content has been taken in once more.

use crate::beneath;
use crate::commit::random_name;
use crate::error::StoreError;
use crate::lease::Lease;
use crate::store::Store;
use ampoule_spec::{Blake3, UnixNanos};
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, Dir, FlockOperation, RenameFlags};
use rustix::io::Errno;
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// The file in an object's directory that says that it is damaged. Whoever still uses the object sees it there.
pub(crate) const DAMAGED: &str = "damaged.json";

#[derive(Serialize)]
struct Finding<'a> {
    at: UnixNanos,
    reason: &'a str,
}

impl Store {
    /// Puts an object into quarantine. One that is gone already is fine.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it cannot be moved; then it says itself that it is damaged, and is not used either.
    pub fn quarantine(&self, object: Blake3, reason: &str) -> Result<(), StoreError> {
        let name = object.to_string();
        let dir = match beneath::open_dir(&self.trees, name.as_bytes()) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(StoreError::io("open", &name)(errno)),
        };
        // A full disk keeps nobody from moving it.
        let _ = mark(&dir, reason);
        let aside = format!("{name}.{}", random_name()?.get(..8).unwrap_or_default());
        let _alone = self.trees_gate(FlockOperation::LockExclusive)?;
        if !self.is_still(&name, &dir)? {
            return Ok(());
        }
        self.move_aside(self.trees.as_fd(), &name, &aside)
    }

    /// The same, of an object that somebody has a lease of.
    ///
    /// # Errors
    /// As [`Store::quarantine`].
    pub fn quarantine_leased(&self, lease: &Lease, reason: &str) -> Result<(), StoreError> {
        let _ = mark(lease, reason);
        if !self.is_still(&lease.object().to_string(), &lease.dir)? {
            return Ok(());
        }
        self.quarantine(lease.object(), reason)
    }

    /// Moves an index entry aside that cannot be read.
    pub(crate) fn quarantine_entry(&self, key: &str) -> Result<(), StoreError> {
        let aside = format!("{key}.{}", random_name()?.get(..8).unwrap_or_default());
        self.move_aside(self.index.as_fd(), key, &aside)
    }

    fn move_aside(
        &self,
        from: rustix::fd::BorrowedFd<'_>,
        name: &str,
        aside: &str,
    ) -> Result<(), StoreError> {
        match rustix::fs::renameat_with(from, name, &self.quarantine, aside, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(StoreError::io("move into quarantine", name)(errno)),
        }
        rustix::fs::fsync(&self.quarantine).map_err(StoreError::io("sync", "quarantine"))?;
        rustix::fs::fsync(from).map_err(StoreError::io("sync", name))
    }

    /// How many things are in quarantine.
    pub(crate) fn quarantined(&self) -> Result<u64, StoreError> {
        let failed = |errno| StoreError::io("list", "quarantine")(errno);
        let mut count = 0;
        for entry in Dir::read_from(&self.quarantine).map_err(failed)? {
            if !matches!(entry.map_err(failed)?.file_name().to_bytes(), b"." | b"..") {
                count += 1;
            }
        }
        Ok(count)
    }
}

impl Lease {
    /// Says of an object that it is damaged, for whoever has no store at hand: the next who looks it up moves it aside.
    ///
    /// # Errors
    /// If that cannot be written.
    pub fn condemn(&self, reason: &str) -> Result<(), StoreError> {
        mark(self, reason).map_err(StoreError::io("mark as damaged", &self.object().to_string()))
    }
}

fn mark(dir: impl AsFd, reason: &str) -> Result<(), Errno> {
    if rustix::fs::accessat(&dir, DAMAGED, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok() {
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = UnixNanos(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    let bytes = serde_json::to_vec(&Finding { at, reason }).unwrap_or_default();
    let file = beneath::create(dir, DAMAGED.as_bytes())?;
    File::from(file).write_all(&bytes).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}
