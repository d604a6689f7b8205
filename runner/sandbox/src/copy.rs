//! A copy of a sealed tree, where an ordinary user can have no layer to write to over it.
//!
//! An overlay keeps in extended attributes of its upper layer that a directory stands for itself and not for the one
//! below. Before Linux 6.6 a tmpfs, which is all that an ordinary user can have as an upper layer, keeps none of users',
//! and the overlay answers EIO to `rm -r` and `mkdir`. So the tree is copied to the tmpfs: it costs memory and time,
//! and does what was asked for.

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat, Timespec, Timestamps, mkdirat, openat,
    openat2, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A directory that was made, by its name in the copy, and what its original looks like.
struct Made {
    name: CString,
    meta: Stat,
}

/// Copies directories, files and symbolic links, with their modes and times, into an empty directory.
///
/// # Errors
/// That of the first entry that cannot be copied; `EINVAL` for one that no sealed tree has.
pub(crate) fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut made = vec![Made { name: c".".to_owned(), meta: statat(from, c".", AtFlags::empty())? }];
    let mut at = 0;
    while let Some(dir) = made.get(at).map(|made| made.name.clone()) {
        at += 1;
        let (source, target) = (open_dir(from, &dir)?, open_dir(to, &dir)?);
        for entry in Dir::read_from(&source)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let meta = statat(&source, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(meta.st_mode) {
                FileType::Directory => {
                    mkdirat(&target, name, Mode::RWXU)?;
                    made.push(Made { name: below(&dir, name)?, meta });
                }
                FileType::RegularFile => file(&source, &target, name, &meta)?,
                FileType::Symlink => {
                    symlinkat(&*readlinkat(&source, name, Vec::new())?, &target, name)?;
                    utimensat(&target, name, &times(&meta), AtFlags::SYMLINK_NOFOLLOW)?;
                }
                _ => return Err(Errno::INVAL),
            }
        }
    }
    // The innermost first: what is made in a directory changes its time.
    for Made { name, meta } in made.iter().rev() {
        rustix::fs::chmodat(to, name, mode(meta), AtFlags::empty())?;
        utimensat(to, name, &times(meta), AtFlags::empty())?;
    }
    Ok(())
}

fn file(source: &OwnedFd, target: &OwnedFd, name: &CStr, meta: &Stat) -> Result<(), Errno> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut from = File::from(openat(source, name, flags | OFlags::RDONLY, Mode::empty())?);
    let create = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut to = File::from(openat(target, name, create, Mode::RUSR | Mode::WUSR)?);
    std::io::copy(&mut from, &mut to).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    rustix::fs::fchmod(&to, mode(meta))?;
    rustix::fs::futimens(to.as_fd(), &times(meta))
}

fn open_dir(root: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(root, name, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
}

fn below(dir: &CStr, name: &CStr) -> Result<CString, Errno> {
    CString::new([dir.to_bytes(), b"/", name.to_bytes()].concat()).map_err(|_| Errno::INVAL)
}

fn mode(meta: &Stat) -> Mode {
    Mode::from_raw_mode(meta.st_mode as RawMode & 0o777)
}

fn times(meta: &Stat) -> Timestamps {
    let time = |tv_sec, nanos: u64| Timespec { tv_sec, tv_nsec: i64::try_from(nanos).unwrap_or(0) };
    Timestamps {
        last_access: time(meta.st_atime, meta.st_atime_nsec),
        last_modification: time(meta.st_mtime, meta.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::Path;

    fn copy(from: &Path, to: &Path) -> Result<(), Errno> {
        tree(File::open(from).unwrap().as_fd(), File::open(to).unwrap().as_fd())
    }

    #[test]
    fn tree_is_copied_with_modes_times_and_links_as_they_are() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("a/b")).unwrap();
        fs::write(from.path().join("a/b/run"), "#!/bin/sh\n").unwrap();
        fs::set_permissions(from.path().join("a/b/run"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", from.path().join("a/link")).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_234_567_890, 5);
        for name in ["a/b/run", "a/b", "a"] {
            File::open(from.path().join(name)).unwrap().set_modified(long_ago).unwrap();
        }
        copy(from.path(), to.path()).unwrap();
        for name in ["a", "a/b", "a/b/run"] {
            let [original, copied] = [&from, &to].map(|dir| fs::metadata(dir.path().join(name)).unwrap());
            assert_eq!(original.mode(), copied.mode(), "{name}");
            assert_eq!(copied.modified().unwrap(), long_ago, "{name}");
        }
        assert_eq!(fs::read_to_string(to.path().join("a/b/run")).unwrap(), "#!/bin/sh\n");
        assert_eq!(fs::read_link(to.path().join("a/link")).unwrap(), Path::new("/etc/passwd"));
    }

    #[test]
    fn entry_that_no_sealed_tree_has_is_refused() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        rustix::fs::mkfifoat(rustix::fs::CWD, from.path().join("fifo"), Mode::RUSR).unwrap();
        assert_eq!(copy(from.path(), to.path()), Err(Errno::INVAL));
    }
}
