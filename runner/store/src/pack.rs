//! Streaming a directory as a deterministic tar archive. No privilege, no store.
//!
//! Equal trees give equal bytes: entries in ascending order of their names' bytes, modes 0755 and 0644, no owners,
//! no times. The tree digest is computed on the way, so a client knows what the store must answer.
//!
//! [`pack_output`] is for the way out: what a job left in a directory, with rules of its own. [`copy_output`] takes the
//! same, by the same rules, into a directory of the store's.

use crate::beneath;
use crate::digest::{FileHasher, NodeKind, WorldNode};
use crate::entry_path::EntryPath;
use crate::limits::{Limits, TARGET_BYTES_MAX};
use crate::outward;
use crate::refusal::{Refusal, shown};
use crate::target::{Target, ToArchive, Watched};
use crate::walk::{Step, Walk, WalkError};
use ampoule_spec::Sha256;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};

pub use crate::target::{Seen, Watch};
pub use crate::tree_digest::tree_digest;

/// Why a directory was not packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// A name, depth, count or size that an import would refuse.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A socket, FIFO or device.
    #[error("{path}: a {kind} cannot be an input; remove or exclude it")]
    Special {
        /// Which.
        path: String,
        /// What it is.
        kind: &'static str,
    },
    /// A file changed while it was read.
    #[error("{path}: the file changed while it was read")]
    Changed {
        /// Which.
        path: String,
    },
    /// A file cannot be read.
    #[error("{path}: cannot be read: {errno}")]
    Io {
        /// Which.
        path: String,
        /// Why not.
        errno: Errno,
    },
    /// An output's link that leads out of it, or could.
    #[error("{path}: the link to {target} {reason}")]
    Link {
        /// Which.
        path: String,
        /// Where to.
        target: String,
        /// What is wrong with that, and what to do.
        reason: &'static str,
    },
    /// A file of an output with a set-user-id or set-group-id bit.
    #[error("{path} has a set-user-id or set-group-id bit; remove it with chmod")]
    SetId {
        /// Which.
        path: String,
    },
    /// Something is mounted in an output.
    #[error("{path}: something else is mounted there; name a directory without it")]
    Mounted {
        /// Where.
        path: String,
    },
    /// The caller wants it no more.
    #[error("it was not read to its end")]
    Stopped,
    /// The archive cannot be written.
    #[error("the archive cannot be written")]
    Write(#[source] io::Error),
}

/// What was packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// The tree digest that the import of the archive will have.
    pub tree: Sha256,
    /// Bytes of all files.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

/// What an archive is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// An input: times are 0, and what is mounted in the directory belongs to it.
    Input,
    /// An output: nothing leads out.
    Output,
}

struct Packer<'a> {
    out: &'a mut dyn Target,
    purpose: Purpose,
    limits: Limits,
    hasher: FileHasher,
    packed: Packed,
}

/// Writes the directory as a tar archive and returns its tree digest. For the digest alone there is [`tree_digest`].
///
/// `exclude` is asked for each path below the directory (components joined by `/`); an excluded directory is not
/// entered. Links are kept as they are and never followed.
///
/// # Errors
/// [`PackError`]; the archive is incomplete then.
pub fn pack(
    dir: BorrowedFd<'_>,
    out: &mut dyn Write,
    exclude: &dyn Fn(&[u8]) -> bool,
    limits: &Limits,
) -> Result<Packed, PackError> {
    pack_filtered(dir, out, &|path, _| exclude(path), limits)
}

/// As [`pack`], where `exclude` is told whether a path is a directory.
///
/// # Errors
/// [`PackError`]; the archive is incomplete then.
pub fn pack_filtered(
    dir: BorrowedFd<'_>,
    out: &mut dyn Write,
    exclude: &dyn Fn(&[u8], bool) -> bool,
    limits: &Limits,
) -> Result<Packed, PackError> {
    pack_for(Purpose::Input, dir, &mut ToArchive { out, epoch: 0, open: 0 }, exclude, limits)
}

/// Writes a directory that a job leaves as a tar archive. Nobody may change the directory meanwhile.
///
/// As [`pack`], with `epoch` (seconds since 1970) as the time of every entry. Refused are besides: what is mounted in
/// the directory, files with set-id bits, and links that lead out of it or could. Hard links become files of their own,
/// extended attributes are left behind.
///
/// # Errors
/// [`PackError`]; the archive is incomplete then.
pub fn pack_output(
    dir: BorrowedFd<'_>,
    out: &mut dyn Write,
    epoch: u64,
    limits: &Limits,
) -> Result<Packed, PackError> {
    pack_for(Purpose::Output, dir, &mut ToArchive { out, epoch, open: 0 }, &|_, _| false, limits)
}

/// As [`pack_output`]; `watch` sees what goes into the archive, and may end it.
///
/// # Errors
/// As [`pack_output`].
pub fn pack_output_watched(
    dir: BorrowedFd<'_>,
    out: &mut dyn Write,
    epoch: u64,
    limits: &Limits,
    watch: &mut Watch<'_>,
) -> Result<Packed, PackError> {
    let mut out = Watched { out: &mut ToArchive { out, epoch, open: 0 }, watch };
    pack_for(Purpose::Output, dir, &mut out, &|_, _| false, limits)
}

/// As [`pack_output_watched`], into whatever takes the entries.
pub(crate) fn copy_output(
    dir: BorrowedFd<'_>,
    out: &mut dyn Target,
    limits: &Limits,
    watch: &mut Watch<'_>,
) -> Result<Packed, PackError> {
    pack_for(Purpose::Output, dir, &mut Watched { out, watch }, &|_, _| false, limits)
}

fn pack_for(
    purpose: Purpose,
    dir: BorrowedFd<'_>,
    out: &mut dyn Target,
    exclude: &dyn Fn(&[u8], bool) -> bool,
    limits: &Limits,
) -> Result<Packed, PackError> {
    let packed = Packed { tree: Sha256::new([0; 32]), bytes: 0, entries: 0 };
    let mut packer = Packer { out, purpose, limits: *limits, hasher: FileHasher::new(), packed };
    packer.run(dir, exclude)?;
    Ok(packer.packed)
}

pub(crate) fn failed(path: &[u8]) -> impl FnOnce(Errno) -> PackError {
    let path = shown(path);
    move |errno| match errno {
        // Only `beneath` answers so.
        Errno::XDEV => PackError::Mounted { path },
        errno => PackError::Io { path, errno },
    }
}

impl Packer<'_> {
    fn open(&self, dir: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match self.purpose {
            Purpose::Input => rustix::fs::openat(dir, name, flags, Mode::empty()),
            Purpose::Output => beneath::open(dir, name, flags),
        }
    }

    fn run(&mut self, dir: BorrowedFd<'_>, exclude: &dyn Fn(&[u8], bool) -> bool) -> Result<(), PackError> {
        let entries_max = self.limits.entries_max;
        let walk_failed = |error: WalkError, path: &[u8]| match error {
            WalkError::TooDeep => Refusal::TooDeep { entry: shown(path) }.into(),
            WalkError::TooMany => Refusal::TooMany { entries_max }.into(),
            WalkError::Io(errno) => failed(path)(errno),
        };
        let root = self.open(dir, b".", OFlags::DIRECTORY).map_err(failed(b"."))?;
        let mut walk = Walk::new(root, entries_max).map_err(|error| walk_failed(error, b"."))?;
        let mut nodes = vec![WorldNode::new()];
        while let Some(step) = walk.next_step() {
            match step {
                Step::Leave(name) => {
                    self.out.leave().map_err(PackError::Write)?;
                    let Some(digest) = nodes.pop().map(WorldNode::finish) else { break };
                    match nodes.last_mut() {
                        Some(parent) => parent.add(NodeKind::Directory, &name, Some(&digest)),
                        None => self.packed.tree = digest,
                    }
                }
                Step::Name(name) => {
                    let path = walk.path(&name);
                    let current = walk.dir().map_err(failed(&path))?;
                    let stat = rustix::fs::statat(current, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(failed(&path))?;
                    let kind = FileType::from_raw_mode(stat.st_mode);
                    if exclude(&path, kind == FileType::Directory) {
                        continue;
                    }
                    EntryPath::parse(&path)?;
                    let entered = match nodes.last_mut() {
                        Some(node) => self.entry(kind, current.as_fd(), node, &name, &path)?,
                        None => None,
                    };
                    self.packed.entries += 1;
                    if let Some(dir) = entered {
                        nodes.push(WorldNode::new());
                        walk.enter(name, dir).map_err(|error| walk_failed(error, &path))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        kind: FileType,
        dir: BorrowedFd<'_>,
        node: &mut WorldNode,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<OwnedFd>, PackError> {
        let kind = match kind {
            FileType::Directory => {
                let entered = self.open(dir, name, OFlags::DIRECTORY).map_err(failed(path))?;
                self.out.directory(path, name).map_err(PackError::Write)?;
                return Ok(Some(entered));
            }
            FileType::RegularFile => {
                self.file(dir, node, name, path)?;
                return Ok(None);
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new()).map_err(failed(path))?;
                let target = target.to_bytes();
                if target.is_empty() || target.len() > TARGET_BYTES_MAX {
                    return Err(Refusal::LinkTooLong { entry: shown(path) }.into());
                }
                if self.purpose != Purpose::Input {
                    outward::check_link(path, target)?;
                }
                self.out.link(path, name, target).map_err(PackError::Write)?;
                node.add_link(name, target);
                return Ok(None);
            }
            FileType::Fifo => "FIFO",
            FileType::Socket => "socket",
            _ => "device",
        };
        Err(PackError::Special { path: shown(path), kind })
    }

    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        node: &mut WorldNode,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), PackError> {
        let changed = || PackError::Changed { path: shown(path) };
        // Without O_NONBLOCK, a FIFO that took the file's place would hang us.
        let file = self.open(dir, name, OFlags::NONBLOCK).map_err(failed(path))?;
        let before = rustix::fs::fstat(&file).map_err(failed(path))?;
        if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
            return Err(changed());
        }
        if self.purpose != Purpose::Input && before.st_mode & 0o6000 != 0 {
            return Err(PackError::SetId { path: shown(path) });
        }
        let executable = before.st_mode & 0o100 != 0;
        let size = u64::try_from(before.st_size).unwrap_or(0);
        self.packed.bytes = self.packed.bytes.saturating_add(size);
        if self.packed.bytes > self.limits.bytes_max {
            return Err(Refusal::TooLarge { bytes_max: self.limits.bytes_max }.into());
        }
        self.out.file(path, name, executable, size).map_err(PackError::Write)?;
        let file = File::from(file);
        let mut tee = Tee { from: (&file).take(size), to: &mut *self.out, broken: None };
        let hashed = self.hasher.sha256(&mut tee, size);
        if let Some(error) = tee.broken {
            return Err(PackError::Write(error));
        }
        let (digest, bytes) =
            hashed.map_err(|error| failed(path)(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let after = rustix::fs::fstat(&file).map_err(failed(path))?;
        if bytes != size || !same(&before, &after) {
            return Err(changed());
        }
        self.out.file_end(size).map_err(PackError::Write)?;
        let kind = if executable { NodeKind::Executable } else { NodeKind::File };
        node.add(kind, name, Some(&digest));
        Ok(())
    }
}

/// Whether a file is still the one that was announced.
pub(crate) fn same(before: &Stat, after: &Stat) -> bool {
    let key = |s: &Stat| (s.st_size, s.st_mtime, s.st_mtime_nsec, s.st_ctime, s.st_ctime_nsec, s.st_mode);
    key(before) == key(after)
}

/// Passes on what is read, and remembers if that failed.
struct Tee<'a, R> {
    from: R,
    to: &'a mut dyn Target,
    broken: Option<io::Error>,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        if let Err(error) = self.to.bytes(buffer.get(..count).unwrap_or_default()) {
            self.broken = Some(error);
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(count)
    }
}
