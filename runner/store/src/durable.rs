//! Making a finished staging directory durable.

use crate::beneath;
use crate::walk::{Step, Walk, WalkError};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

/// Up to so many entries are synced one by one.
const EACH_MAX: u64 = 16;

/// Flushes everything below `dir`, which has about `entries` entries, and reports the errors of writing it.
///
/// Many files: one `syncfs` instead of an fsync for each of up to a million; it waits for everybody's dirty pages
/// on that file system. Few, as a document or a single file: each by itself, so that a busy host costs nothing.
pub(crate) fn flush(dir: &OwnedFd, entries: u64) -> Result<(), Errno> {
    if entries > EACH_MAX {
        return rustix::fs::syncfs(dir);
    }
    match each(dir, entries) {
        Err(WalkError::Io(errno)) => Err(errno),
        Err(WalkError::TooDeep | WalkError::TooMany) => rustix::fs::syncfs(dir),
        Ok(()) => Ok(()),
    }
}

fn each(dir: &OwnedFd, entries: u64) -> Result<(), WalkError> {
    rustix::fs::fsync(dir)?;
    // The launcher's own four names come on top.
    let mut walk = Walk::new(beneath::open_dir(dir, b"")?, entries.saturating_add(4))?;
    while let Some(step) = walk.next_step() {
        let Step::Name(name) = step else { continue };
        let current = walk.dir()?;
        let stat = rustix::fs::statat(current, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let below = beneath::open_dir(current, &name)?;
                rustix::fs::fsync(&below)?;
                walk.enter(name, below)?;
            }
            FileType::RegularFile => rustix::fs::fsync(beneath::open_file(current, &name)?)?,
            // Links and whiteouts are part of their directory.
            _ => {}
        }
    }
    Ok(())
}
