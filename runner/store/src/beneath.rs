//! Opening by descriptor and name, never out of the tree.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// How a path below a directory is resolved: not out of it, not through a link, not onto another file system.
pub(crate) const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Opens `path` below `dir` with [`BENEATH`]; an empty path is `dir` itself.
pub(crate) fn open(dir: impl AsFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    open_as(dir, path, flags, Mode::empty())
}

/// Makes a file that was not there before, for writing; only its owner may touch it.
pub(crate) fn create(dir: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    open_as(dir, path, flags, Mode::RUSR | Mode::WUSR)
}

/// Opens a directory for listing and changing.
pub(crate) fn open_dir(dir: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    open(dir, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens something for reading without waiting for it and without following a link.
pub(crate) fn open_file(dir: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    open(dir, path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)
}

fn open_as(dir: impl AsFd, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    // A rename elsewhere on the host may make openat2 say "again"; it gives no bound, so this does.
    let mut attempts = 0;
    loop {
        match rustix::fs::openat2(&dir, path, flags | OFlags::CLOEXEC, mode, BENEATH) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if attempts < 32 => attempts += 1,
            result => return result,
        }
    }
}
