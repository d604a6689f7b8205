//! Making entries by system calls, in a directory that is still ours alone.

use crate::identity::Authority;
use crate::skeleton::{Entry, Kind};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chmodat, chownat, fchmod, mkdirat, openat, symlinkat};
use rustix::io::Errno;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;

/// A directory of the writable layer before any byte of a tenant's is below it, and to whom new entries belong.
pub(crate) struct Place<'a> {
    pub(crate) dir: BorrowedFd<'a>,
    pub(crate) authority: Authority,
}

impl Place<'_> {
    /// Makes what a list says, in its order.
    ///
    /// # Errors
    /// `EEXIST` if something is there already, `ENOENT` if an entry comes before its directory.
    pub(crate) fn make(&self, entries: &[Entry]) -> Result<(), Errno> {
        for Entry { path, id, kind } in entries {
            match kind {
                Kind::Directory { mode } => self.new_dir(path, *mode, *id)?,
                Kind::File { mode, bytes } => self.new_file(path, bytes, *mode, *id)?,
                // Only host root can make one, whose list is part of an image.
                Kind::Device { .. } => return Err(Errno::PERM),
                Kind::Link { target } => {
                    let target = CString::new(target.as_ref()).map_err(|_| Errno::INVAL)?;
                    symlinkat(target, self.dir, path)?;
                    self.chown(path, *id)?;
                }
            }
        }
        Ok(())
    }

    /// Makes a directory, with its parents.
    pub(crate) fn dir(&self, path: &str, mode: u16, id: u32) -> Result<(), Errno> {
        let mut parent = String::new();
        for part in path.split('/') {
            if !parent.is_empty() {
                parent.push('/');
            }
            parent.push_str(part);
            let last = parent.len() == path.len();
            let (mode, id) = if last { (mode, id) } else { (0o755, 0) };
            match self.new_dir(&parent, mode, id) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Makes an empty file of in-sandbox root's.
    pub(crate) fn empty_file(&self, path: &str) -> Result<(), Errno> {
        self.new_file(path, b"", 0o644, 0)
    }

    /// Gives an entry to an in-sandbox id; an ordinary user owns everything.
    pub(crate) fn chown(&self, path: &str, id: u32) -> Result<(), Errno> {
        let Authority::Root { base } = self.authority else { return Ok(()) };
        let id = base + id;
        chownat(self.dir, path, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn new_dir(&self, path: &str, mode: u16, id: u32) -> Result<(), Errno> {
        mkdirat(self.dir, path, Mode::from_raw_mode(0o755))?;
        self.chown(path, id)?;
        // Whatever the umask.
        chmodat(self.dir, path, Mode::from_raw_mode(mode.into()), AtFlags::empty())
    }

    fn new_file(&self, path: &str, bytes: &[u8], mode: u16, id: u32) -> Result<(), Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let fd = openat(self.dir, path, flags, Mode::from_raw_mode(0o644))?;
        let mut file = File::from(fd);
        file.write_all(bytes).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        self.chown(path, id)?;
        fchmod(&file, Mode::from_raw_mode(mode.into()))
    }
}
