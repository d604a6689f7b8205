//! Room on the disk: imports leave a reserve, so that what runs can still be recorded.

use crate::error::StoreError;
use crate::limits::Limits;
use crate::store::Store;
use rustix::fd::AsFd;

/// No more than this is kept free by imports, however large the file system is.
const RESERVE_MAX: u64 = 2 << 30;
/// No less, if that is not more than a quarter of it.
const RESERVE_MIN: u64 = 128 << 20;
/// Files that imports leave to others.
const FILES_RESERVE: u64 = 1024;

/// The room on a store's file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes that are free for this user.
    pub free: u64,
    /// Bytes that imports leave free.
    pub reserve: u64,
    /// Whether it has inodes left for an import.
    pub has_inodes: bool,
}

impl Room {
    /// What an import may take; nothing if it may not begin.
    pub fn for_import(&self) -> Option<u64> {
        self.free.checked_sub(self.reserve).filter(|left| *left > 0 && self.has_inodes)
    }

    /// The room on the file system that a descriptor is on.
    ///
    /// # Errors
    /// As of fstatvfs(3).
    pub fn at(file: impl AsFd) -> rustix::io::Result<Self> {
        let stat = rustix::fs::fstatvfs(file)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        // A file system without a fixed number of inodes says 0.
        let has_inodes = stat.f_files == 0 || stat.f_favail > FILES_RESERVE;
        Ok(Self::of(bytes(stat.f_bavail), bytes(stat.f_blocks), has_inodes))
    }

    fn of(free: u64, total: u64, has_inodes: bool) -> Self {
        let reserve = (total / 20).clamp(RESERVE_MIN, RESERVE_MAX).min(total / 4);
        Self { free, reserve, has_inodes }
    }
}

impl Store {
    /// The room that there is now: a twentieth of the file system is kept free, at least 128 MiB and at most 2 GiB, but
    /// never more than a quarter of it.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn room(&self) -> Result<Room, StoreError> {
        Room::at(&self.staging).map_err(StoreError::io("examine", "staging"))
    }

    /// What an import may take now, for its worker: no more than there is room for.
    ///
    /// # Errors
    /// [`StoreError::Full`] if there is none.
    pub fn limits_now(&self) -> Result<Limits, StoreError> {
        let room = self.room()?;
        let left = room.for_import().ok_or(StoreError::Full { free: room.free, reserve: room.reserve })?;
        Ok(Limits { bytes_max: self.limits.bytes_max.min(left), ..self.limits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_leave_a_reserve_that_fits_the_disk() {
        let (mib, gib) = (1 << 20, 1 << 30);
        for (total, reserve) in [
            (64 * mib, 16 * mib),
            (gib, 128 * mib),
            (10 * gib, 512 * mib),
            (40 * gib, 2 * gib),
            (4096 * gib, 2 * gib),
        ] {
            assert_eq!(Room::of(total, total, true).reserve, reserve, "{total}");
            assert_eq!(Room::of(reserve, total, true).for_import(), None);
            assert_eq!(Room::of(reserve + 1, total, true).for_import(), Some(1));
            assert_eq!(Room::of(total, total, false).for_import(), None);
        }
    }
}
