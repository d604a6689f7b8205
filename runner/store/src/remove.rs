//! Removing a tree that may be hostile: as deep and as wide as a worker could make it.

use crate::beneath;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, RenameFlags};
use rustix::io::Errno;

/// Removes `name` and everything in it from `parent`.
///
/// Every directory that is not empty is first moved up next to `name`'s own children, so that neither depth nor
/// descriptors nor paths grow with the tree; what is kept in memory is one listing buffer.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    let top = beneath::open_dir(parent, name.as_bytes())?;
    let mut moved = 0_u64;
    loop {
        let mut empty = true;
        for entry in Dir::read_from(&top)? {
            let entry = entry?;
            let child = entry.file_name().to_bytes();
            if matches!(child, b"." | b"..") {
                continue;
            }
            empty = false;
            if is_directory(top.as_fd(), child, entry.file_type())? {
                flatten(top.as_fd(), child, &mut moved)?;
            } else {
                unlink(top.as_fd(), child)?;
            }
        }
        if empty {
            break;
        }
    }
    drop(top);
    ignore_missing(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR))
}

/// Empties the directory `child` of `top`, moving its directories up into `top`, and removes it.
fn flatten(top: BorrowedFd<'_>, child: &[u8], moved: &mut u64) -> Result<(), Errno> {
    match rustix::fs::unlinkat(top, child, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        result => return ignore_missing(result),
    }
    let dir = open_any(top, child)?;
    loop {
        let mut empty = true;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            empty = false;
            if !is_directory(dir.as_fd(), name, entry.file_type())? {
                unlink(dir.as_fd(), name)?;
                continue;
            }
            // To be moved, a directory must be writable for its owner: its ".." changes.
            drop(open_any(dir.as_fd(), name)?);
            loop {
                *moved += 1;
                let target = format!(".removed-{moved}");
                match rustix::fs::renameat_with(&dir, name, top, &target, RenameFlags::NOREPLACE) {
                    Err(Errno::EXIST) => {}
                    result => break result?,
                }
            }
        }
        if empty {
            break;
        }
    }
    ignore_missing(rustix::fs::unlinkat(top, child, AtFlags::REMOVEDIR))
}

/// Opens a directory of ours whatever its mode is, and leaves it usable.
fn open_any(parent: BorrowedFd<'_>, name: &[u8]) -> Result<rustix::fd::OwnedFd, Errno> {
    if let Ok(dir) = beneath::open_dir(parent, name) {
        rustix::fs::fchmod(&dir, Mode::RWXU)?;
        return Ok(dir);
    }
    // Nothing else writes here and `name` is a directory, so that a link cannot be followed.
    rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
    beneath::open_dir(parent, name)
}

fn is_directory(dir: BorrowedFd<'_>, name: &[u8], listed: FileType) -> Result<bool, Errno> {
    if listed != FileType::Unknown {
        return Ok(listed == FileType::Directory);
    }
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    ignore_missing(rustix::fs::unlinkat(dir, name, AtFlags::empty()))
}

fn ignore_missing(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
