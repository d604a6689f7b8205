//! Reading back a finished tree: its digests, and that nothing is in it that an honest worker would not leave.
//!
//! Runs with the launcher's privilege on a tree that a taken-over worker may have made, so it parses nothing:
//! it lists, examines, opens and hashes, by descriptor and single name. Nobody may write to the tree meanwhile:
//! the worker is dead, and had no way to pass a descriptor on.

use crate::beneath;
use crate::digest::{Both, FileHasher, Meta, Node};
use crate::error::StoreError;
use crate::file_list::{FILES, Sink};
use crate::limits::{Limits, TARGET_BYTES_MAX};
use crate::refusal::{Refusal, shown};
use crate::walk::{Step, Walk, WalkError};
use ampoule_spec::Blake3;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Stat, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fs::File;

/// How a worker marks a directory opaque, and how an ordinary user's store keeps it (overlayfs `userxattr`).
pub(crate) const OPAQUE_BY_USER: &str = "user.overlay.opaque";
/// How a privileged launcher marks it.
pub(crate) const OPAQUE_BY_ROOT: &str = "trusted.overlay.opaque";
/// Ids that a worker has.
const OWNERS: u32 = 65_536;

/// Whose the files of a store are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// All belong to the user who runs this: an ordinary user's store. Owners of images are not kept.
    Own,
    /// The host's root keeps the store, and workers have 65,536 ids of their own.
    ///
    /// On disk a committed tree has the archive's own ids (0 for inputs), for mounting with an id mapping.
    Mapped {
        /// The host id under which a worker's id 0 reaches the disk; 0 if it writes through an idmapped mount.
        base: u32,
    },
}

/// What a finished tree may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Normalised modes, one time.
    Input { epoch: u64 },
    /// Any modes but set-id, any times.
    Image,
    /// An image with whiteouts and opaque directories.
    Layer,
}

/// What was read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) digest: Both,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) whiteouts: u64,
    pub(crate) opaque: u64,
}

/// A regular file with several names.
struct Inode {
    digest: Both,
    bytes: u64,
    links: u64,
    seen: u64,
}

pub(crate) struct Sealer {
    owner: Owner,
    shape: Shape,
    limits: Limits,
    /// Whether owners are shifted and opaque marks made the launcher's own. Once: when a tree is committed.
    change: bool,
    hasher: FileHasher,
    inodes: HashMap<u64, Inode>,
    sealed: Sealed,
    /// Bytes that files may still have, each counted once.
    bytes_left: u64,
    /// Where the list of files goes, if somebody wants one.
    list: Option<Sink>,
}

fn refuse(path: &[u8], reason: &'static str) -> StoreError {
    Refusal::Shape { entry: shown(path), reason }.into()
}

fn failed(doing: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> StoreError {
    let entry = shown(path);
    move |errno| StoreError::Io { doing, entry, errno }
}

fn list_failed(error: std::io::Error) -> StoreError {
    StoreError::io("write the list of files", FILES)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

impl Sealer {
    pub(crate) fn new(owner: Owner, shape: Shape, limits: Limits, change: bool) -> Self {
        let zero = Both { sha256: ampoule_spec::Sha256::new([0; 32]), blake3: Blake3::new([0; 32]) };
        let sealed = Sealed { digest: zero, bytes: 0, entries: 0, whiteouts: 0, opaque: 0 };
        Self {
            owner,
            shape,
            limits,
            change,
            hasher: FileHasher::new(),
            inodes: HashMap::new(),
            sealed,
            bytes_left: limits.bytes_max,
            list: None,
        }
    }

    /// Has a list of the files written.
    pub(crate) fn list_to(&mut self, sink: Sink) {
        self.list = Some(sink);
    }

    /// Reads the whole tree; gives the digest of the list of files too, if that is where it went.
    pub(crate) fn seal_listed(
        mut self,
        root: OwnedFd,
    ) -> Result<(Sealed, Option<(Blake3, Blake3)>), StoreError> {
        self.note(b"", None)?;
        let sealed = self.seal(root)?;
        let list = self.list.map(Sink::finish).transpose().map_err(list_failed)?;
        Ok((sealed, list.flatten()))
    }

    fn note(&mut self, path: &[u8], file: Option<(u64, Blake3)>) -> Result<(), StoreError> {
        match &mut self.list {
            Some(list) => list.add(path, file).map_err(list_failed),
            None => Ok(()),
        }
    }

    fn seal(&mut self, root: OwnedFd) -> Result<Sealed, StoreError> {
        let entries_max = self.limits.entries_max;
        let walk_failed = |error: WalkError, path: &[u8]| match error {
            WalkError::TooDeep => Refusal::TooDeep { entry: shown(path) }.into(),
            WalkError::TooMany => Refusal::TooMany { entries_max }.into(),
            WalkError::Io(errno) => failed("list", path)(errno),
        };
        let mut nodes = vec![Node::new(&self.directory(root.as_fd(), b".")?)];
        let mut walk = Walk::new(root, entries_max).map_err(|error| walk_failed(error, b"."))?;
        while let Some(step) = walk.next_step() {
            match step {
                Step::Leave(name) => {
                    let Some(digest) = nodes.pop().map(Node::finish) else { break };
                    match nodes.last_mut() {
                        Some(parent) => parent.add_dir(&name, &digest),
                        None => self.sealed.digest = digest,
                    }
                }
                Step::Name(name) => {
                    self.sealed.entries += 1;
                    let path = walk.path(&name);
                    let entered = match nodes.last_mut() {
                        Some(node) => self.entry(&walk, node, &name, &path)?,
                        None => None,
                    };
                    if let Some((dir, meta)) = entered {
                        nodes.push(Node::new(&meta));
                        walk.enter(name, dir).map_err(|error| walk_failed(error, &path))?;
                    }
                }
            }
        }
        if self.inodes.values().any(|inode| inode.links != inode.seen) {
            return Err(refuse(b".", "a file has a name outside the tree"));
        }
        Ok(self.sealed)
    }

    /// One name: added to its directory's node, unless it is a directory to enter.
    fn entry(
        &mut self,
        walk: &Walk,
        node: &mut Node,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<(OwnedFd, Meta)>, StoreError> {
        let dir = walk.dir().map_err(failed("examine", path))?;
        let stat =
            rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("examine", path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let entered = beneath::open_dir(dir, name).map_err(failed("open", path))?;
                let meta = self.directory(entered.as_fd(), path)?;
                self.note(path, None)?;
                return Ok(Some((entered, meta)));
            }
            FileType::RegularFile => {
                let file = beneath::open_file(dir, name).map_err(failed("open", path))?;
                let (meta, digest) = self.file(file, path)?;
                self.note(path, Some((u64::try_from(stat.st_size).unwrap_or(u64::MAX), digest.blake3)))?;
                node.add_file(meta.mode & 0o100 != 0, name, &meta, &digest);
            }
            FileType::Symlink => {
                let (uid, gid) = self.owners(&stat, path, |uid, gid| {
                    rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                })?;
                let target =
                    rustix::fs::readlinkat(dir, name, Vec::new()).map_err(failed("read a link", path))?;
                let target = target.to_bytes();
                if target.is_empty() || target.len() > TARGET_BYTES_MAX || stat.st_nlink != 1 {
                    return Err(refuse(path, "a link with an odd target or several names"));
                }
                // Linux has no modes for links; some file systems invent them.
                node.add_link(name, &self.meta(&stat, 0o777, (uid, gid), path)?, target);
            }
            FileType::CharacterDevice
                if self.shape == Shape::Layer && stat.st_rdev == 0 && stat.st_nlink == 1 =>
            {
                self.sealed.whiteouts += 1;
                node.add_whiteout(name);
            }
            _ => return Err(refuse(path, "a device, FIFO or socket")),
        }
        Ok(None)
    }

    fn directory(&mut self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<Meta, StoreError> {
        let stat = rustix::fs::fstat(dir).map_err(failed("examine", path))?;
        let owners = self.owners(&stat, path, |uid, gid| rustix::fs::fchown(dir, Some(uid), Some(gid)))?;
        let opaque = self.opaque(dir, path)?;
        if opaque {
            self.sealed.opaque += 1;
        }
        let mode = stat.st_mode & 0o7777;
        let good = match self.shape {
            Shape::Input { .. } => mode == 0o755,
            Shape::Image | Shape::Layer => mode & 0o6700 == 0o700,
        };
        if !good {
            return Err(refuse(path, "a directory with an odd mode"));
        }
        // A directory's links are its subdirectories, as some file systems count them and others do not.
        Ok(Meta { links: 0, opaque, ..self.meta(&stat, mode, owners, path)? })
    }

    fn file(&mut self, file: OwnedFd, path: &[u8]) -> Result<(Meta, Both), StoreError> {
        let stat = rustix::fs::fstat(&file).map_err(failed("examine", path))?;
        let mode = stat.st_mode & 0o7777;
        let good = match self.shape {
            Shape::Input { .. } => matches!(mode, 0o644 | 0o755),
            Shape::Image | Shape::Layer => mode & 0o6400 == 0o400,
        };
        if !good || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refuse(path, "a file with an odd mode"));
        }
        if !self.attributes(file.as_fd(), path)?.is_empty() {
            return Err(refuse(path, "a file with extended attributes"));
        }
        if let Some(inode) = self.inodes.get_mut(&stat.st_ino) {
            inode.seen += 1;
            let (digest, bytes) = (inode.digest, inode.bytes);
            self.sealed.bytes = self.sealed.bytes.saturating_add(bytes);
            // Its owner was shifted under its first name.
            let owners = self.shifted(&stat, path)?;
            return Ok((self.meta(&stat, mode, owners, path)?, digest));
        }
        let owners = self.owners(&stat, path, |uid, gid| rustix::fs::fchown(&file, Some(uid), Some(gid)))?;
        let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        // Counted under each of its names: nothing else is the same for equal trees.
        self.sealed.bytes = self.sealed.bytes.saturating_add(size);
        self.bytes_left = self
            .bytes_left
            .checked_sub(size)
            .ok_or(Refusal::TooLarge { bytes_max: self.limits.bytes_max })?;
        let meta = self.meta(&stat, mode, owners, path)?;
        let (digest, bytes) = self
            .hasher
            .hash(File::from(file), size)
            .map_err(|error| failed("read", path)(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        if bytes != size {
            return Err(refuse(path, "a file that changes while it is read"));
        }
        if meta.links > 1 {
            self.inodes.insert(stat.st_ino, Inode { digest, bytes, links: meta.links.into(), seen: 1 });
        }
        Ok((meta, digest))
    }

    fn meta(&self, stat: &Stat, mode: u32, owners: (u32, u32), path: &[u8]) -> Result<Meta, StoreError> {
        let mtime_nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        if let Shape::Input { epoch } = self.shape
            && (i64::try_from(epoch) != Ok(stat.st_mtime) || mtime_nanos != 0)
        {
            return Err(refuse(path, "a time that is not the input's"));
        }
        Ok(Meta {
            mode,
            uid: owners.0,
            gid: owners.1,
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            mtime: stat.st_mtime,
            mtime_nanos,
            opaque: false,
        })
    }

    /// The ids as they are on disk when the tree is committed; `shift` gives them to the entry if they change.
    fn owners(
        &self,
        stat: &Stat,
        path: &[u8],
        shift: impl FnOnce(Uid, Gid) -> Result<(), Errno>,
    ) -> Result<(u32, u32), StoreError> {
        let (Owner::Mapped { base }, true) = (self.owner, self.change) else {
            return self.shifted(stat, path);
        };
        let own = |id: u32| id.checked_sub(base).filter(|id| *id < OWNERS);
        let (Some(uid), Some(gid)) = (own(stat.st_uid), own(stat.st_gid)) else {
            return Err(refuse(path, "an owner outside the worker's range"));
        };
        if base != 0 {
            shift(Uid::from_raw(uid), Gid::from_raw(gid)).map_err(failed("set the owner", path))?;
        }
        self.allowed((uid, gid), path)
    }

    /// The ids of an entry that was shifted before.
    fn shifted(&self, stat: &Stat, path: &[u8]) -> Result<(u32, u32), StoreError> {
        match self.owner {
            Owner::Own if stat.st_uid == rustix::process::geteuid().as_raw() => Ok((0, 0)),
            Owner::Mapped { .. } if stat.st_uid < OWNERS && stat.st_gid < OWNERS => {
                self.allowed((stat.st_uid, stat.st_gid), path)
            }
            _ => Err(refuse(path, "an owner that is not the store's")),
        }
    }

    fn allowed(&self, owners: (u32, u32), path: &[u8]) -> Result<(u32, u32), StoreError> {
        match self.shape {
            Shape::Input { .. } if owners != (0, 0) => Err(refuse(path, "an owner on an input")),
            _ => Ok(owners),
        }
    }

    /// Whether a directory is opaque; a launcher's mark is put in place of the worker's.
    fn opaque(&self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<bool, StoreError> {
        let names = self.attributes(dir, path)?;
        let change = self.change && self.owner != Owner::Own;
        let wanted = if self.change || self.owner == Owner::Own { OPAQUE_BY_USER } else { OPAQUE_BY_ROOT };
        match names.as_slice() {
            [] => return Ok(false),
            [one] if self.shape == Shape::Layer && one == wanted.as_bytes() => {}
            _ => return Err(refuse(path, "a directory with extended attributes")),
        }
        let mut value = [0_u8; 2];
        let length = rustix::fs::fgetxattr(dir, wanted, &mut value).map_err(failed("examine", path))?;
        if value.get(..length) != Some(b"y") {
            return Err(refuse(path, "an opaque mark with an odd value"));
        }
        if change {
            rustix::fs::fsetxattr(dir, OPAQUE_BY_ROOT, b"y", XattrFlags::empty())
                .and_then(|()| rustix::fs::fremovexattr(dir, OPAQUE_BY_USER))
                .map_err(failed("mark a directory opaque", path))?;
        }
        Ok(true)
    }

    /// The names of an entry's extended attributes, without the label that a security module gives everything.
    fn attributes(&self, fd: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut buffer = [0_u8; 1024];
        let length = match rustix::fs::flistxattr(fd, &mut buffer) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => 0,
            Err(Errno::RANGE | Errno::TOOBIG) => return Err(refuse(path, "many extended attributes")),
            Err(errno) => return Err(failed("examine", path)(errno)),
        };
        let names = buffer.get(..length).unwrap_or_default().split(|byte| *byte == 0);
        let ours =
            |name: &&[u8]| !name.is_empty() && !matches!(*name, b"security.selinux" | b"security.SMACK64");
        Ok(names.filter(ours).map(<[u8]>::to_vec).collect())
    }
}
