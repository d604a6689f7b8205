//! Where a directory goes that is packed: into an archive, or entry by entry into a directory of the store's.

use crate::archive_out;
use crate::beneath;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// A run of zeros of at least so many bytes becomes a hole.
const HOLE_BYTES_MIN: usize = 4096;

/// Takes entries in the order of a walk. Names are single components, paths are from the root.
pub(crate) trait Target {
    /// A directory, which is the current one from here on.
    fn directory(&mut self, path: &[u8], name: &[u8]) -> io::Result<()>;
    /// The current directory has ended; the root's end is the last call.
    fn leave(&mut self) -> io::Result<()>;
    /// A symbolic link.
    fn link(&mut self, path: &[u8], name: &[u8], target: &[u8]) -> io::Result<()>;
    /// A file, whose bytes follow.
    fn file(&mut self, path: &[u8], name: &[u8], executable: bool, bytes: u64) -> io::Result<()>;
    /// The next of its bytes.
    fn bytes(&mut self, part: &[u8]) -> io::Result<()>;
    /// The file has ended after so many.
    fn file_end(&mut self, bytes: u64) -> io::Result<()>;
}

/// What goes out of a directory.
#[derive(Debug, Clone, Copy)]
pub enum Seen<'a> {
    /// A path, from the directory that is taken, or where a link leads to.
    Name(&'a [u8]),
    /// Bytes of a file.
    Bytes(&'a [u8]),
    /// The file has ended.
    End,
}

/// Sees what goes out, and may end it.
pub type Watch<'a> = dyn FnMut(Seen<'_>) -> io::Result<()> + 'a;

/// Shows somebody what goes on its way.
pub(crate) struct Watched<'a, 'w> {
    pub(crate) out: &'a mut dyn Target,
    pub(crate) watch: &'a mut Watch<'w>,
}

impl Target for Watched<'_, '_> {
    fn directory(&mut self, path: &[u8], name: &[u8]) -> io::Result<()> {
        (self.watch)(Seen::Name(path))?;
        self.out.directory(path, name)
    }

    fn leave(&mut self) -> io::Result<()> {
        self.out.leave()
    }

    fn link(&mut self, path: &[u8], name: &[u8], target: &[u8]) -> io::Result<()> {
        (self.watch)(Seen::Name(path))?;
        (self.watch)(Seen::Name(target))?;
        self.out.link(path, name, target)
    }

    fn file(&mut self, path: &[u8], name: &[u8], executable: bool, bytes: u64) -> io::Result<()> {
        (self.watch)(Seen::Name(path))?;
        self.out.file(path, name, executable, bytes)
    }

    fn bytes(&mut self, part: &[u8]) -> io::Result<()> {
        (self.watch)(Seen::Bytes(part))?;
        self.out.bytes(part)
    }

    fn file_end(&mut self, bytes: u64) -> io::Result<()> {
        (self.watch)(Seen::End)?;
        self.out.file_end(bytes)
    }
}

/// A tar archive.
pub(crate) struct ToArchive<'a> {
    pub(crate) out: &'a mut dyn Write,
    /// The time of every entry, in seconds since 1970.
    pub(crate) epoch: u64,
    /// Directories that have not ended.
    pub(crate) open: usize,
}

impl Target for ToArchive<'_> {
    fn directory(&mut self, path: &[u8], _: &[u8]) -> io::Result<()> {
        self.open += 1;
        archive_out::header(self.out, b'5', path, b"", 0o755, 0, self.epoch)
    }

    fn leave(&mut self) -> io::Result<()> {
        if self.open > 0 {
            self.open -= 1;
            return Ok(());
        }
        self.out.write_all(&archive_out::END)?;
        self.out.flush()
    }

    fn link(&mut self, path: &[u8], _: &[u8], target: &[u8]) -> io::Result<()> {
        archive_out::header(self.out, b'2', path, target, 0o777, 0, self.epoch)
    }

    fn file(&mut self, path: &[u8], _: &[u8], executable: bool, bytes: u64) -> io::Result<()> {
        let mode = if executable { 0o755 } else { 0o644 };
        archive_out::header(self.out, b'0', path, b"", mode, bytes, self.epoch)
    }

    fn bytes(&mut self, part: &[u8]) -> io::Result<()> {
        self.out.write_all(part)
    }

    fn file_end(&mut self, bytes: u64) -> io::Result<()> {
        archive_out::pad(self.out, bytes)
    }
}

/// What an entry of an input has besides its bytes: 0755 or 0644, one time, no owner.
pub(crate) struct Attributes {
    times: Timestamps,
    /// Whose everything becomes, where that is not whose it is made by itself.
    give: Option<(Uid, Gid)>,
}

impl Attributes {
    pub(crate) fn new(epoch: u64, give: Option<(Uid, Gid)>) -> Self {
        let time = Timespec { tv_sec: i64::try_from(epoch).unwrap_or(i64::MAX), tv_nsec: 0 };
        Self { times: Timestamps { last_access: time, last_modification: time }, give }
    }

    /// Gives them to a file or directory that is complete.
    pub(crate) fn set(&self, fd: &impl rustix::fd::AsFd, executable: bool) -> rustix::io::Result<()> {
        if let Some((uid, gid)) = self.give {
            rustix::fs::fchown(fd, Some(uid), Some(gid))?;
        }
        let mode = if executable { 0o755 } else { 0o644 };
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?;
        rustix::fs::futimens(fd, &self.times)
    }
}

/// A file that is written once, from its beginning to its end. Zeros become holes, so that a sparse file does not fill
/// the host.
#[derive(Debug)]
pub struct Holey {
    file: File,
    bytes: u64,
}

impl Holey {
    /// A new file, which is empty.
    pub fn new(file: File) -> Self {
        Self { file, bytes: 0 }
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds bytes at its end.
    ///
    /// # Errors
    /// As writing.
    pub fn add(&mut self, part: &[u8]) -> io::Result<()> {
        let bytes = self.bytes.saturating_add(part.len() as u64);
        if part.len() >= HOLE_BYTES_MIN && part.iter().all(|byte| *byte == 0) {
            self.file.seek(SeekFrom::Start(bytes))?;
        } else {
            self.file.write_all(part)?;
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Gives the file its length.
    ///
    /// # Errors
    /// As `ftruncate`.
    pub fn finish(self) -> io::Result<File> {
        self.file.set_len(self.bytes)?;
        Ok(self.file)
    }
}

/// A directory that nobody else can reach, and that was empty.
pub(crate) struct ToTree<'a> {
    dirs: Vec<OwnedFd>,
    file: Option<(Holey, bool)>,
    attributes: Attributes,
    /// Hears of bytes as they are written, and may end it.
    passed: &'a mut dyn FnMut(u64) -> io::Result<()>,
}

impl<'a> ToTree<'a> {
    pub(crate) fn new(
        root: OwnedFd,
        attributes: Attributes,
        passed: &'a mut dyn FnMut(u64) -> io::Result<()>,
    ) -> Self {
        Self { dirs: vec![root], file: None, attributes, passed }
    }

    fn current(&self) -> io::Result<&OwnedFd> {
        self.dirs.last().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Target for ToTree<'_> {
    fn directory(&mut self, _: &[u8], name: &[u8]) -> io::Result<()> {
        (self.passed)(0)?;
        let parent = self.current()?;
        rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
        let dir = beneath::open_dir(parent, name)?;
        self.dirs.push(dir);
        Ok(())
    }

    fn leave(&mut self) -> io::Result<()> {
        let Some(dir) = self.dirs.pop() else { return Ok(()) };
        Ok(self.attributes.set(&dir, true)?)
    }

    fn link(&mut self, _: &[u8], name: &[u8], target: &[u8]) -> io::Result<()> {
        (self.passed)(0)?;
        let dir = self.current()?;
        rustix::fs::symlinkat(target, dir, name)?;
        if let Some((uid, gid)) = self.attributes.give {
            rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(rustix::fs::utimensat(dir, name, &self.attributes.times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn file(&mut self, _: &[u8], name: &[u8], executable: bool, _: u64) -> io::Result<()> {
        (self.passed)(0)?;
        let file = beneath::create(self.current()?, name)?;
        self.file = Some((Holey::new(File::from(file)), executable));
        Ok(())
    }

    fn bytes(&mut self, part: &[u8]) -> io::Result<()> {
        (self.passed)(part.len() as u64)?;
        match &mut self.file {
            Some((file, _)) => file.add(part),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn file_end(&mut self, _: u64) -> io::Result<()> {
        let Some((file, executable)) = self.file.take() else { return Ok(()) };
        Ok(self.attributes.set(&file.finish()?, executable)?)
    }
}
