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
    // A rename elsewhere on the host may make openat2 say "again", and one of the very entry out of `dir` makes it
    // say that this is not below; asked again, it is where it was or not there. Neither gives a bound, so this does.
    let mut attempts = 0;
    loop {
        match rustix::fs::openat2(&dir, path, flags | OFlags::CLOEXEC, mode, BENEATH) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::XDEV) if attempts < 32 => attempts += 1,
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// What a collection does to an object while somebody opens it.
    #[test]
    fn entry_that_is_moved_away_meanwhile_is_there_or_not() {
        let world = tempfile::tempdir().unwrap();
        let [trees, aside] = ["trees", "aside"].map(|name| world.path().join(name));
        std::fs::create_dir_all(trees.join("a")).unwrap();
        std::fs::create_dir(&aside).unwrap();
        let dir = std::fs::File::open(&trees).unwrap();
        let over = AtomicBool::new(false);
        let mut wrong = std::collections::BTreeSet::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::fs::rename(trees.join("a"), aside.join("a")).unwrap();
                    std::fs::rename(aside.join("a"), trees.join("a")).unwrap();
                }
            });
            for _ in 0..200_000 {
                let error = open_dir(&dir, b"a").err().filter(|error| *error != Errno::NOENT);
                wrong.extend(error.map(|error| error.to_string()));
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
