//! Who else than the runner reads what it writes: the group of the agent that a listening launcher serves.
//!
//! The state directory, `jobs/` and each job's directory can then be entered by that group, and not listed: whoever
//! could open one for reading could take the lock by which jobs are known to live. A file in such a directory is as
//! readable for the group as for its owner, and nothing is writable.

use rustix::fs::{Gid, Mode, OFlags, fchmod, fchown, fstat, openat};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// A directory that can be entered.
const ENTER: Mode = Mode::RWXU.union(Mode::XGRP);

/// Lets a group enter a directory.
pub(crate) fn admit(dir: impl AsFd, group: u32) -> io::Result<()> {
    fchown(&dir, None, Some(Gid::from_raw(group)))?;
    Ok(fchmod(&dir, ENTER)?)
}

/// The group that may enter a directory, if one may.
pub(crate) fn of(dir: BorrowedFd<'_>) -> io::Result<Option<Gid>> {
    let stat = fstat(dir)?;
    let can_enter = Mode::from_raw_mode(stat.st_mode).contains(Mode::XGRP);
    Ok(can_enter.then(|| Gid::from_raw(stat.st_gid)))
}

/// Lets the group that may enter a directory read a file or directory in it.
pub(crate) fn share(dir: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    let Some(group) = of(dir)? else { return Ok(()) };
    let own = Mode::from_raw_mode(fstat(file)?.st_mode);
    let mut mode = own & Mode::RWXU;
    mode.set(Mode::RGRP, own.contains(Mode::RUSR));
    mode.set(Mode::XGRP, own.contains(Mode::XUSR));
    fchown(file, None, Some(group))?;
    Ok(fchmod(file, mode)?)
}

/// Makes a directory for its owner, as readable as the one it lies in.
pub(crate) fn make_dir(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    rustix::fs::mkdirat(dir, name, Mode::RWXU)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    share(dir, openat(dir, name, flags, Mode::empty())?.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &std::path::Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn group_reads_what_its_owner_reads_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let open = File::open(dir.path()).unwrap();
        let path = dir.path().join("x");
        let put = |bits: u32| {
            let file = File::create(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
            share(open.as_fd(), file.as_fd()).unwrap();
            mode(&path)
        };
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!([put(0o600), put(0o700)], [0o600, 0o700], "nobody else may enter");
        admit(&open, rustix::process::getegid().as_raw()).unwrap();
        assert_eq!(mode(dir.path()), 0o710);
        assert_eq!([put(0o600), put(0o700), put(0o666)], [0o640, 0o750, 0o640]);
        make_dir(open.as_fd(), "outputs").unwrap();
        assert_eq!(mode(&dir.path().join("outputs")), 0o750);
    }
}
