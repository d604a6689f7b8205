//! The way back of [`crate::pack`]: a tree from the archive that it wrote, hashed while it is written. No privilege.
//!
//! Whoever releases an output has the runner's archive of it, whose names and contents are a tenant's. Everything is
//! made by descriptor and by single name in a directory that was empty, and nothing is followed. The digest is that
//! of what was written, so it is the one to compare with what was announced.

use crate::digest::{NodeKind, WorldNode};
use crate::entry_path::EntryPath;
use crate::limits::{BUFFER_BYTES, Limits};
use crate::pack::Packed;
use crate::refusal::{Refusal, shown};
use crate::stream::Stream;
use crate::tar::{Archive, Entry, Kind};
use crate::worker::WorkError;
use ampoule_spec::Sha256;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use sha2::Digest as _;
use std::fs::File;
use std::io::{self, Write};

/// Up to so many entries each is made durable by itself; more by one sync of the whole file system.
const SYNCED_ALONE_MAX: u64 = 16;

/// Why a tree was not unpacked.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct UnpackError {
    text: String,
    kind: io::ErrorKind,
}

impl UnpackError {
    /// What kind of system call's failure it is; [`io::ErrorKind::Other`] for what is wrong with the archive.
    pub fn kind(&self) -> io::ErrorKind {
        self.kind
    }

    fn archive(text: String) -> Self {
        Self { text, kind: io::ErrorKind::Other }
    }
}

impl From<WorkError> for UnpackError {
    fn from(error: WorkError) -> Self {
        let kind = match &error {
            WorkError::Store { errno, .. } => errno.kind(),
            _ => io::ErrorKind::Other,
        };
        Self { text: error.to_string(), kind }
    }
}

impl From<Refusal> for UnpackError {
    fn from(refusal: Refusal) -> Self {
        Self::archive(refusal.to_string())
    }
}

/// A directory that is being filled.
struct Level {
    /// Its path from the root, empty for that.
    path: Vec<u8>,
    name: Vec<u8>,
    dir: OwnedFd,
    node: WorldNode,
}

struct Unpacker {
    archive: Archive,
    levels: Vec<Level>,
    buffer: Vec<u8>,
    times: Timestamps,
    alone: bool,
    packed: Packed,
}

/// Fills `into`, an empty directory of the caller's own, with the tree in `archive`, and makes it durable.
///
/// Modes are 0755 and 0644 as far as the caller's umask lets them be, but an owner's own bits are always there. Times
/// are `epoch`, in seconds since 1970. `entries` is how many are announced; `passed` hears of bytes of files as they are
/// written.
///
/// # Errors
/// [`UnpackError`]; what was made so far stays.
pub fn unpack(
    archive: File,
    into: OwnedFd,
    epoch: u64,
    entries: u64,
    passed: &mut dyn FnMut(u64),
) -> Result<Packed, UnpackError> {
    let limits = Limits { bytes_max: u64::MAX, entries_max: entries, ..Limits::default() };
    let time = Timespec { tv_sec: i64::try_from(epoch).unwrap_or(i64::MAX), tv_nsec: 0 };
    let root = Level { path: Vec::new(), name: Vec::new(), dir: into, node: WorldNode::new() };
    let mut unpacker = Unpacker {
        archive: Archive::new(Stream::plain(archive.into(), limits)),
        levels: vec![root],
        buffer: vec![0; BUFFER_BYTES],
        times: Timestamps { last_access: time, last_modification: time },
        alone: entries <= SYNCED_ALONE_MAX,
        packed: Packed { tree: Sha256::new([0; 32]), bytes: 0, entries: 0 },
    };
    while let Some(entry) = unpacker.archive.next_entry()? {
        if unpacker.packed.entries >= entries {
            return Err(Refusal::TooMany { entries_max: entries }.into());
        }
        unpacker.packed.entries += 1;
        unpacker.entry(&entry, passed)?;
    }
    while unpacker.levels.len() > 1 {
        unpacker.leave()?;
    }
    let Some(root) = unpacker.levels.pop() else { return Err(odd(b".")) };
    rustix::fs::futimens(&root.dir, &unpacker.times).map_err(WorkError::store("set the time", b"."))?;
    let synced = if unpacker.alone { rustix::fs::fsync(&root.dir) } else { rustix::fs::syncfs(&root.dir) };
    synced.map_err(WorkError::store("make durable", b"."))?;
    unpacker.packed.tree = root.node.finish();
    Ok(unpacker.packed)
}

fn odd(path: &[u8]) -> UnpackError {
    UnpackError::archive(format!("{}: not what the runner packs", shown(path)))
}

impl Unpacker {
    fn entry(&mut self, entry: &Entry, passed: &mut dyn FnMut(u64)) -> Result<(), UnpackError> {
        let path = EntryPath::parse(&entry.name)?;
        let (parent, name) = path.split().ok_or_else(|| odd(&entry.name))?;
        // Depth first: whatever is not the current directory is finished.
        while self.levels.last().is_some_and(|level| level.path != parent) && self.levels.len() > 1 {
            self.leave()?;
        }
        let Some(level) = self.levels.last_mut().filter(|level| level.path == parent) else {
            return Err(odd(&entry.name));
        };
        match entry.kind {
            Kind::Directory => {
                let make = WorkError::store("make a directory", path.bytes());
                rustix::fs::mkdirat(&level.dir, name, Mode::from_raw_mode(0o755)).map_err(make)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let open = WorkError::store("open a directory", path.bytes());
                let dir = rustix::fs::openat(&level.dir, name, flags, Mode::empty()).map_err(open)?;
                own_bits(&dir, 0o700).map_err(WorkError::store("set the mode", path.bytes()))?;
                let (path, name) = (path.bytes().to_vec(), name.to_vec());
                self.levels.push(Level { path, name, dir, node: WorldNode::new() });
                Ok(())
            }
            Kind::File => self.file(entry, &path, name, passed),
            Kind::Symlink => {
                rustix::fs::symlinkat(entry.link.as_slice(), &level.dir, name)
                    .map_err(WorkError::store("make a link", path.bytes()))?;
                let (dir, flags) = (&level.dir, AtFlags::SYMLINK_NOFOLLOW);
                rustix::fs::utimensat(dir, name, &self.times, flags)
                    .map_err(WorkError::store("set the time", path.bytes()))?;
                level.node.add_link(name, &entry.link);
                Ok(())
            }
            _ => Err(odd(&entry.name)),
        }
    }

    fn file(
        &mut self,
        entry: &Entry,
        path: &EntryPath,
        name: &[u8],
        passed: &mut dyn FnMut(u64),
    ) -> Result<(), UnpackError> {
        let Some(level) = self.levels.last_mut() else { return Err(odd(&entry.name)) };
        let failed = |doing| WorkError::store(doing, path.bytes());
        let executable = entry.mode & 0o100 != 0;
        let mode = if executable { 0o755 } else { 0o644 };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&level.dir, name, flags, Mode::from_raw_mode(mode))
            .map_err(failed("make a file"))?;
        let mut file = File::from(file);
        let mut sha256 = sha2::Sha256::new();
        loop {
            let count = self.archive.read(&mut self.buffer)?;
            let part = self.buffer.get(..count).unwrap_or_default();
            if part.is_empty() {
                break;
            }
            sha256.update(part);
            file.write_all(part).map_err(|error| UnpackError {
                text: format!("{}: {error}", shown(path.bytes())),
                kind: error.kind(),
            })?;
            passed(count as u64);
        }
        own_bits(&file, mode & 0o700).map_err(failed("set the mode"))?;
        rustix::fs::futimens(&file, &self.times).map_err(failed("set the time"))?;
        if self.alone {
            rustix::fs::fsync(&file).map_err(failed("make durable"))?;
        }
        self.packed.bytes = self.packed.bytes.saturating_add(entry.size);
        let kind = if executable { NodeKind::Executable } else { NodeKind::File };
        level.node.add(kind, name, Some(&Sha256::new(sha256.finalize().into())));
        Ok(())
    }

    /// Finishes the current directory.
    fn leave(&mut self) -> Result<(), UnpackError> {
        let Some(level) = self.levels.pop() else { return Ok(()) };
        let failed = |doing| WorkError::store(doing, &level.path);
        rustix::fs::futimens(&level.dir, &self.times).map_err(failed("set the time"))?;
        if self.alone {
            rustix::fs::fsync(&level.dir).map_err(failed("make durable"))?;
        }
        if let Some(parent) = self.levels.last_mut() {
            parent.node.add(NodeKind::Directory, &level.name, Some(&level.node.finish()));
        }
        Ok(())
    }
}

/// Gives an owner the bits that the caller's umask may have taken: whether a file can be executed belongs to
/// the tree, and a directory has to be entered.
fn own_bits(fd: impl rustix::fd::AsFd, bits: u32) -> Result<(), rustix::io::Errno> {
    let mode = rustix::fs::fstat(&fd)?.st_mode & 0o777;
    if mode & bits == bits {
        return Ok(());
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode | bits))
}
