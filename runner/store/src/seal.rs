//! Reading back a finished tree: its digests, and that nothing is in it that an honest worker would not leave.
//!
//! Runs with the launcher's privilege on a tree that a taken-over worker may have made, so it parses nothing:
//! it lists, examines, opens and hashes, by descriptor and single name. Nobody may write to the tree meanwhile:
//! the worker is dead, and had no way to pass a descriptor on.
//!
//! One thread walks and keeps the order; files are read by several (`readers`), which is most of the work.

mod readers;
mod rules;

use crate::beneath;
use crate::digest::{Both, Meta, Node};
use crate::error::StoreError;
use crate::file_list::{FILES, Sink};
use crate::limits::{Limits, TARGET_BYTES_MAX};
use crate::refusal::{Refusal, shown};
use crate::walk::{Step, Walk, WalkError};
use ampoule_spec::Blake3;
use readers::{Readers, Ticket};
use rules::{Content, Rules};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicU64;

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
    content: Content,
    links: u64,
    seen: u64,
}

/// What the walk met, in its order.
enum Event {
    Enter(Meta),
    Leave,
    File(Ticket),
    Known(Content),
    Link(Meta, Vec<u8>),
    Whiteout,
}

/// The most threads for one tree.
const THREADS_MAX: usize = 4;
/// The most events that wait for one before them: what bounds the memory when one file is very large.
const WAITING_MAX: usize = 4096;

pub(crate) struct Sealer {
    rules: Rules,
    /// That read files.
    threads: usize,
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
        let bytes_left = AtomicU64::new(limits.bytes_max);
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        Self { rules: Rules { owner, shape, limits, change, bytes_left }, threads, list: None }
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
        let sealed = self.seal(root)?;
        let list = self.list.map(Sink::finish).transpose().map_err(list_failed)?;
        Ok((sealed, list.flatten()))
    }

    fn seal(&mut self, root: OwnedFd) -> Result<Sealed, StoreError> {
        let zero = Both { sha256: ampoule_spec::Sha256::new([0; 32]), blake3: Blake3::new([0; 32]) };
        let sealed = Sealed { digest: zero, bytes: 0, entries: 0, whiteouts: 0, opaque: 0 };
        std::thread::scope(|scope| {
            let mut reading = Reading {
                rules: &self.rules,
                readers: Readers::new(scope, &self.rules, self.threads),
                inodes: HashMap::new(),
                events: VecDeque::new(),
                nodes: Vec::new(),
                sealed,
                list: self.list.as_mut(),
            };
            let walked = reading.walk(root);
            // What is wrong with an entry before the one that ended the walk is said, whoever reads it when.
            reading.settle(0)?;
            walked?;
            if reading.inodes.values().any(|inode| inode.links != inode.seen) {
                return Err(refuse(b".", "a file has a name outside the tree"));
            }
            Ok(reading.sealed)
        })
    }
}

/// A tree while it is read.
struct Reading<'scope, 'env> {
    rules: &'env Rules,
    readers: Readers<'scope, 'env>,
    inodes: HashMap<u64, Inode>,
    /// What was met and not yet taken, by name and path.
    events: VecDeque<(Vec<u8>, Vec<u8>, Event)>,
    /// From the root to the directory of the event that is taken next.
    nodes: Vec<Node>,
    sealed: Sealed,
    list: Option<&'env mut Sink>,
}

impl Reading<'_, '_> {
    fn walk(&mut self, root: OwnedFd) -> Result<(), StoreError> {
        let entries_max = self.rules.limits.entries_max;
        let walk_failed = |error: WalkError, path: &[u8]| match error {
            WalkError::TooDeep => Refusal::TooDeep { entry: shown(path) }.into(),
            WalkError::TooMany => Refusal::TooMany { entries_max }.into(),
            WalkError::Io(errno) => failed("list", path)(errno),
        };
        let meta = self.rules.directory(root.as_fd(), b".")?;
        self.events.push_back((Vec::new(), Vec::new(), Event::Enter(meta)));
        let mut walk = Walk::new(root, entries_max).map_err(|error| walk_failed(error, b"."))?;
        while let Some(step) = walk.next_step() {
            match step {
                Step::Leave(name) => self.events.push_back((name, Vec::new(), Event::Leave)),
                Step::Name(name) => {
                    let path = walk.path(&name);
                    let (event, dir) = self.entry(&walk, &name, &path)?;
                    self.events.push_back((name.clone(), path.clone(), event));
                    if let Some(dir) = dir {
                        walk.enter(name, dir).map_err(|error| walk_failed(error, &path))?;
                    }
                }
            }
            self.settle(WAITING_MAX)?;
        }
        Ok(())
    }

    /// One name; a directory is to be entered.
    fn entry(
        &mut self,
        walk: &Walk,
        name: &[u8],
        path: &[u8],
    ) -> Result<(Event, Option<OwnedFd>), StoreError> {
        let dir = walk.dir().map_err(failed("examine", path))?;
        let stat =
            rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("examine", path))?;
        let event = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let entered = beneath::open_dir(dir, name).map_err(failed("open", path))?;
                let meta = self.rules.directory(entered.as_fd(), path)?;
                return Ok((Event::Enter(meta), Some(entered)));
            }
            FileType::RegularFile if stat.st_nlink == 1 => {
                let bytes = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
                Event::File(self.readers.want(dir, name, path, bytes))
            }
            FileType::RegularFile => {
                let file = beneath::open_file(dir, name).map_err(failed("open", path))?;
                Event::Known(self.file_of_many_names(file, path)?)
            }
            FileType::Symlink => {
                let owners = self.rules.owners(&stat, path, |uid, gid| {
                    rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                })?;
                let target =
                    rustix::fs::readlinkat(dir, name, Vec::new()).map_err(failed("read a link", path))?;
                let target = target.to_bytes();
                if target.is_empty() || target.len() > TARGET_BYTES_MAX || stat.st_nlink != 1 {
                    return Err(refuse(path, "a link with an odd target or several names"));
                }
                // Linux has no modes for links; some file systems invent them.
                Event::Link(self.rules.meta(&stat, 0o777, owners, path)?, target.to_vec())
            }
            FileType::CharacterDevice
                if self.rules.shape == Shape::Layer && stat.st_rdev == 0 && stat.st_nlink == 1 =>
            {
                Event::Whiteout
            }
            _ => return Err(refuse(path, "a device, FIFO or socket")),
        };
        Ok((event, None))
    }

    /// Read under its first name, here: under the others it must be known already.
    fn file_of_many_names(&mut self, file: OwnedFd, path: &[u8]) -> Result<Content, StoreError> {
        let stat = self.rules.examine(file.as_fd(), path)?;
        if let Some(inode) = self.inodes.get_mut(&stat.st_ino) {
            inode.seen += 1;
            // Its owner was shifted under its first name.
            let owners = self.rules.shifted(&stat, path)?;
            let meta = self.rules.meta(&stat, rules::mode_of(&stat), owners, path)?;
            return Ok(Content { meta, ..inode.content });
        }
        let content = self.readers.read_now(file, &stat, path)?;
        self.inodes.insert(stat.st_ino, Inode { content, links: content.meta.links.into(), seen: 1 });
        Ok(content)
    }

    /// Takes events in their order as far as they are known, and waits for those that are not until no more than so
    /// many are left.
    fn settle(&mut self, waiting_max: usize) -> Result<(), StoreError> {
        while let Some((name, path, event)) = self.events.pop_front() {
            let event = match event {
                Event::File(ticket) => match self.readers.take(ticket) {
                    Some(content) => content.map(Event::Known),
                    None if self.events.len() < waiting_max => {
                        self.events.push_front((name, path, Event::File(ticket)));
                        return Ok(());
                    }
                    None => self.readers.wait(ticket).map(Event::Known),
                },
                other => Ok(other),
            };
            let taken = event.and_then(|event| self.take(&name, &path, event));
            if taken.is_err() {
                // What comes behind is of no interest: the first in order is said.
                self.events.clear();
                return taken;
            }
        }
        Ok(())
    }

    fn take(&mut self, name: &[u8], path: &[u8], event: Event) -> Result<(), StoreError> {
        if let Event::Enter(meta) = &event {
            self.note(path, None)?;
            self.sealed.entries += u64::from(!self.nodes.is_empty());
            self.sealed.opaque += u64::from(meta.opaque);
            self.nodes.push(Node::new(meta));
            return Ok(());
        }
        if let Event::Leave = event {
            let Some(digest) = self.nodes.pop().map(Node::finish) else { return Ok(()) };
            match self.nodes.last_mut() {
                Some(parent) => parent.add_dir(name, &digest),
                None => self.sealed.digest = digest,
            }
            return Ok(());
        }
        self.sealed.entries += 1;
        if let Event::Known(content) = &event {
            self.note(path, Some((content.bytes, content.digest.blake3)))?;
            // Counted under each of its names: nothing else is the same for equal trees.
            self.sealed.bytes = self.sealed.bytes.saturating_add(content.bytes);
        }
        let Some(node) = self.nodes.last_mut() else { return Ok(()) };
        match &event {
            Event::Known(content) => {
                node.add_file(content.meta.mode & 0o100 != 0, name, &content.meta, &content.digest);
            }
            Event::Link(meta, target) => node.add_link(name, meta, target),
            Event::Whiteout => {
                self.sealed.whiteouts += 1;
                node.add_whiteout(name);
            }
            // Taken above, or known before it comes here.
            Event::Enter(_) | Event::Leave | Event::File(_) => {}
        }
        Ok(())
    }

    fn note(&mut self, path: &[u8], file: Option<(u64, Blake3)>) -> Result<(), StoreError> {
        match &mut self.list {
            Some(list) => list.add(path, file).map_err(list_failed),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
