//! What a finished tree may hold, entry by entry, and whose it becomes.

use super::{OPAQUE_BY_ROOT, OPAQUE_BY_USER, OWNERS, Owner, Shape, failed, refuse};
use crate::digest::{Both, FileHasher, Meta};
use crate::error::StoreError;
use crate::limits::Limits;
use crate::refusal::Refusal;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Gid, Stat, Uid, XattrFlags};
use rustix::io::Errno;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

/// The rules for one tree. Several threads read files by them.
pub(super) struct Rules {
    pub(super) owner: Owner,
    pub(super) shape: Shape,
    pub(super) limits: Limits,
    /// Whether owners are shifted and opaque marks made the launcher's own. Once: when a tree is committed.
    pub(super) change: bool,
    /// Bytes that files may still have, each counted once.
    pub(super) bytes_left: AtomicU64,
}

/// A regular file that was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content {
    pub(super) meta: Meta,
    pub(super) digest: Both,
    pub(super) bytes: u64,
}

impl Rules {
    pub(super) fn directory(&self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<Meta, StoreError> {
        let stat = rustix::fs::fstat(dir).map_err(failed("examine", path))?;
        let owners = self.owners(&stat, path, |uid, gid| rustix::fs::fchown(dir, Some(uid), Some(gid)))?;
        let opaque = self.opaque(dir, path)?;
        let mode = stat.st_mode & 0o7777;
        let good = match self.shape {
            Shape::Input { .. } => mode == 0o755,
            Shape::Image | Shape::Layer => mode & 0o6700 == 0o700,
        };
        if !good {
            return Err(refuse(path, "a directory with an odd mode"));
        }
        // A directory's links are its subdirectories, as some file systems count them and others do not.
        Ok(Meta { links: 0, opaque, ..self.meta(&stat, mode, owners, path)? })
    }

    /// What is asked of a file before its bytes are.
    pub(super) fn examine(&self, file: BorrowedFd<'_>, path: &[u8]) -> Result<Stat, StoreError> {
        let stat = rustix::fs::fstat(file).map_err(failed("examine", path))?;
        let mode = mode_of(&stat);
        let good = match self.shape {
            Shape::Input { .. } => matches!(mode, 0o644 | 0o755),
            Shape::Image | Shape::Layer => mode & 0o6400 == 0o400,
        };
        if !good || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refuse(path, "a file with an odd mode"));
        }
        if !self.attributes(file, path)?.is_empty() {
            return Err(refuse(path, "a file with extended attributes"));
        }
        Ok(stat)
    }

    /// Reads an examined file.
    pub(super) fn read(
        &self,
        hasher: &mut FileHasher,
        file: OwnedFd,
        stat: &Stat,
        path: &[u8],
    ) -> Result<Content, StoreError> {
        let owners = self.owners(stat, path, |uid, gid| rustix::fs::fchown(&file, Some(uid), Some(gid)))?;
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        self.bytes_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(size))
            .map_err(|_| Refusal::TooLarge { bytes_max: self.limits.bytes_max })?;
        let meta = self.meta(stat, mode_of(stat), owners, path)?;
        let (digest, bytes) = hasher
            .hash(File::from(file), size)
            .map_err(|error| failed("read", path)(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        if bytes != size {
            return Err(refuse(path, "a file that changes while it is read"));
        }
        Ok(Content { meta, digest, bytes })
    }

    pub(super) fn meta(
        &self,
        stat: &Stat,
        mode: u32,
        owners: (u32, u32),
        path: &[u8],
    ) -> Result<Meta, StoreError> {
        let mtime_nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        if let Shape::Input { epoch } = self.shape
            && (i64::try_from(epoch) != Ok(stat.st_mtime) || mtime_nanos != 0)
        {
            return Err(refuse(path, "a time that is not the input's"));
        }
        Ok(Meta {
            mode,
            uid: owners.0,
            gid: owners.1,
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            mtime: stat.st_mtime,
            mtime_nanos,
            opaque: false,
        })
    }

    /// The ids as they are on disk when the tree is committed; `shift` gives them to the entry if they change.
    pub(super) fn owners(
        &self,
        stat: &Stat,
        path: &[u8],
        shift: impl FnOnce(Uid, Gid) -> Result<(), Errno>,
    ) -> Result<(u32, u32), StoreError> {
        let (Owner::Mapped { base }, true) = (self.owner, self.change) else {
            return self.shifted(stat, path);
        };
        let own = |id: u32| id.checked_sub(base).filter(|id| *id < OWNERS);
        let (Some(uid), Some(gid)) = (own(stat.st_uid), own(stat.st_gid)) else {
            return Err(refuse(path, "an owner outside the worker's range"));
        };
        if base != 0 {
            shift(Uid::from_raw(uid), Gid::from_raw(gid)).map_err(failed("set the owner", path))?;
        }
        self.allowed((uid, gid), path)
    }

    /// The ids of an entry that was shifted before.
    pub(super) fn shifted(&self, stat: &Stat, path: &[u8]) -> Result<(u32, u32), StoreError> {
        match self.owner {
            Owner::Own if stat.st_uid == rustix::process::geteuid().as_raw() => Ok((0, 0)),
            Owner::Mapped { .. } if stat.st_uid < OWNERS && stat.st_gid < OWNERS => {
                self.allowed((stat.st_uid, stat.st_gid), path)
            }
            _ => Err(refuse(path, "an owner that is not the store's")),
        }
    }

    fn allowed(&self, owners: (u32, u32), path: &[u8]) -> Result<(u32, u32), StoreError> {
        match self.shape {
            Shape::Input { .. } if owners != (0, 0) => Err(refuse(path, "an owner on an input")),
            _ => Ok(owners),
        }
    }

    /// Whether a directory is opaque; a launcher's mark is put in place of the worker's.
    fn opaque(&self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<bool, StoreError> {
        let names = self.attributes(dir, path)?;
        let change = self.change && self.owner != Owner::Own;
        let wanted = if self.change || self.owner == Owner::Own { OPAQUE_BY_USER } else { OPAQUE_BY_ROOT };
        match names.as_slice() {
            [] => return Ok(false),
            [one] if self.shape == Shape::Layer && one == wanted.as_bytes() => {}
            _ => return Err(refuse(path, "a directory with extended attributes")),
        }
        let mut value = [0_u8; 2];
        let length = rustix::fs::fgetxattr(dir, wanted, &mut value).map_err(failed("examine", path))?;
        if value.get(..length) != Some(b"y") {
            return Err(refuse(path, "an opaque mark with an odd value"));
        }
        if change {
            rustix::fs::fsetxattr(dir, OPAQUE_BY_ROOT, b"y", XattrFlags::empty())
                .and_then(|()| rustix::fs::fremovexattr(dir, OPAQUE_BY_USER))
                .map_err(failed("mark a directory opaque", path))?;
        }
        Ok(true)
    }

    /// The names of an entry's extended attributes, without the label that a security module gives everything.
    fn attributes(&self, fd: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut buffer = [0_u8; 1024];
        let length = match rustix::fs::flistxattr(fd, &mut buffer) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => 0,
            Err(Errno::RANGE | Errno::TOOBIG) => return Err(refuse(path, "many extended attributes")),
            Err(errno) => return Err(failed("examine", path)(errno)),
        };
        let names = buffer.get(..length).unwrap_or_default().split(|byte| *byte == 0);
        let ours =
            |name: &&[u8]| !name.is_empty() && !matches!(*name, b"security.selinux" | b"security.SMACK64");
        Ok(names.filter(ours).map(<[u8]>::to_vec).collect())
    }
}

/// The bits of a mode without the type.
pub(super) fn mode_of(stat: &Stat) -> u32 {
    stat.st_mode & 0o7777
}
