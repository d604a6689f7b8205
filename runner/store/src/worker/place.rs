//! Putting entries where they belong, below one directory.
//!
//! The file system itself is the index of what was placed: a name that exists is a duplicate, a parent that is
//! a link or file is refused by `openat2`. So no archive makes this process remember its names.

use super::WorkError;
use crate::beneath;
use crate::entry_path::{EntryPath, split};
use crate::limits::Limits;
use crate::refusal::{Refusal, shown};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// What becomes of modes, owners and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Modes 0755 and 0644, no owners, one time for everything.
    Input { epoch: u64 },
    /// Modes without set-id bits, owners and times as they are.
    Image,
    /// As an image, with whiteouts.
    Layer,
}

/// What an entry says of itself, as it will be applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) mtime: (i64, u32),
}

/// The directory that was worked in last, and the time that it shall have when work moves on.
struct Current {
    path: Vec<u8>,
    dir: OwnedFd,
    times: Timestamps,
}

/// The tree under construction.
pub(crate) struct Place {
    root: OwnedFd,
    current: Option<Current>,
    policy: Policy,
    limits: Limits,
    entries: u64,
    pub(crate) owners_left: u64,
    pub(crate) implied: u64,
}

/// Both times the same: the time of access says nothing.
pub(crate) fn times(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

impl Place {
    pub(crate) fn new(root: OwnedFd, policy: Policy, limits: Limits) -> Result<Self, WorkError> {
        let place = Self { root, current: None, policy, limits, entries: 0, owners_left: 0, implied: 0 };
        let implied = place.implied_attributes();
        rustix::fs::fchmod(&place.root, Mode::from_raw_mode(implied.mode))
            .map_err(WorkError::store("set the mode", b"."))?;
        rustix::fs::futimens(&place.root, &times(implied.mtime))
            .map_err(WorkError::store("set the time", b"."))?;
        Ok(place)
    }

    pub(crate) fn policy(&self) -> Policy {
        self.policy
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What a directory gets that nobody described.
    fn implied_attributes(&self) -> Attributes {
        let mtime = match self.policy {
            Policy::Input { epoch } => (i64::try_from(epoch).unwrap_or(i64::MAX), 0),
            Policy::Image | Policy::Layer => (0, 0),
        };
        Attributes { mode: 0o755, owner: None, mtime }
    }

    /// A directory; one that is there already gets the new attributes.
    pub(crate) fn directory(&mut self, path: &EntryPath, with: Attributes) -> Result<(), WorkError> {
        let Some((parent, name)) = path.split() else {
            self.leave()?;
            let root = beneath::open_dir(&self.root, b"").map_err(WorkError::store("open", b"."))?;
            return self.attributes(&root, b".", with);
        };
        self.enter(parent, path.bytes())?;
        self.make_directory(path.bytes(), name, with)
    }

    /// Makes `name` in the current directory and makes it the current one.
    fn make_directory(&mut self, path: &[u8], name: &[u8], with: Attributes) -> Result<(), WorkError> {
        let parent = self.dir()?;
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) => self.count()?,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(WorkError::store("make a directory", path)(errno)),
        }
        let dir = match beneath::open_dir(self.dir()?, name) {
            Ok(dir) => dir,
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(Refusal::Duplicate { entry: shown(path) }.into()),
            Err(errno) => return Err(WorkError::store("open a directory", path)(errno)),
        };
        self.leave()?;
        self.attributes(&dir, path, with)?;
        self.current = Some(Current { path: path.to_vec(), dir, times: times(with.mtime) });
        Ok(())
    }

    /// A new regular file, open for writing; [`Place::finish_file`] ends it.
    pub(crate) fn file(&mut self, path: &EntryPath) -> Result<OwnedFd, WorkError> {
        let name = self.enter_parent(path)?;
        let file = beneath::create(self.dir()?, name).map_err(made("make a file", path))?;
        self.count()?;
        Ok(file)
    }

    pub(crate) fn finish_file(
        &mut self,
        file: &OwnedFd,
        path: &EntryPath,
        with: Attributes,
    ) -> Result<(), WorkError> {
        self.attributes(file, path.bytes(), with)
    }

    pub(crate) fn symlink(
        &mut self,
        path: &EntryPath,
        target: &[u8],
        with: Attributes,
    ) -> Result<(), WorkError> {
        let name = self.enter_parent(path)?;
        rustix::fs::symlinkat(target, self.dir()?, name).map_err(made("make a link", path))?;
        self.count()?;
        if let Some((uid, gid)) = with.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let done =
                rustix::fs::chownat(self.dir()?, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
            self.owned(done, path.bytes())?;
        }
        self.times_of(name, path, with.mtime)
    }

    /// Another name for a regular file that was placed before.
    pub(crate) fn hard_link(&mut self, path: &EntryPath, raw_target: &[u8]) -> Result<(), WorkError> {
        let entry = || shown(path.bytes());
        let missing = || Refusal::HardLinkMissing { entry: entry(), target: shown(raw_target) };
        let target = EntryPath::parse(raw_target).map_err(|refusal| match refusal {
            Refusal::AbsolutePath { .. } | Refusal::ParentPath { .. } => {
                Refusal::HardLinkOutside { entry: entry(), target: shown(raw_target) }
            }
            other => other,
        })?;
        let other = || Refusal::HardLinkToOther { entry: entry(), target: shown(raw_target) };
        let (target_parent, target_name) = target.split().ok_or_else(other)?;
        let from = match beneath::open_dir(&self.root, target_parent) {
            Ok(from) => from,
            Err(Errno::NOENT) => return Err(missing().into()),
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(other().into()),
            Err(errno) => return Err(WorkError::store("open a link's target", path.bytes())(errno)),
        };
        match rustix::fs::statat(&from, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
            Ok(_) => return Err(other().into()),
            Err(Errno::NOENT) => return Err(missing().into()),
            Err(errno) => return Err(WorkError::store("examine a link's target", path.bytes())(errno)),
        }
        let name = self.enter_parent(path)?;
        rustix::fs::linkat(&from, target_name, self.dir()?, name, AtFlags::empty())
            .map_err(made("make a hard link", path))?;
        self.count()
    }

    /// A name that hides what lower layers have there: a character device 0:0, which needs no privilege.
    pub(crate) fn whiteout(
        &mut self,
        parent: &[u8],
        name: &[u8],
        entry: &EntryPath,
    ) -> Result<(), WorkError> {
        self.enter(parent, entry.bytes())?;
        rustix::fs::mknodat(self.dir()?, name, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(made("make a whiteout", entry))?;
        self.count()
    }

    /// A directory that hides everything that lower layers have in it.
    ///
    /// A worker cannot set `trusted.*`; the launcher makes it that when it seals the tree.
    pub(crate) fn opaque(&mut self, parent: &[u8], entry: &EntryPath) -> Result<(), WorkError> {
        self.enter(parent, entry.bytes())?;
        rustix::fs::fsetxattr(self.dir()?, crate::seal::OPAQUE_BY_USER, b"y", XattrFlags::empty())
            .map_err(WorkError::store("mark a directory opaque", entry.bytes()))
    }

    /// Ends the work: the last directory gets its time.
    pub(crate) fn finish(&mut self) -> Result<(), WorkError> {
        self.leave()
    }

    fn enter_parent<'a>(&mut self, path: &'a EntryPath) -> Result<&'a [u8], WorkError> {
        let (parent, name) = path.split().ok_or_else(|| Refusal::EmptyName { entry: shown(path.bytes()) })?;
        self.enter(parent, path.bytes())?;
        Ok(name)
    }

    /// Makes `path` the current directory; `entry` wants it, and implies those that are missing.
    fn enter(&mut self, path: &[u8], entry: &[u8]) -> Result<(), WorkError> {
        if self.enter_existing(path, entry)? {
            return Ok(());
        }
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in slashes.chain([path.len()]) {
            let part = path.get(..end).unwrap_or(path);
            if self.enter_existing(part, entry)? {
                continue;
            }
            let (parent, name) = split(part).ok_or_else(|| Refusal::EmptyName { entry: shown(entry) })?;
            if !self.enter_existing(parent, entry)? {
                return Err(WorkError::store("find a parent", entry)(Errno::NOENT));
            }
            self.make_directory(part, name, self.implied_attributes())?;
            self.implied += 1;
        }
        Ok(())
    }

    fn enter_existing(&mut self, path: &[u8], entry: &[u8]) -> Result<bool, WorkError> {
        if self.current.as_ref().is_some_and(|current| current.path == path) {
            return Ok(true);
        }
        let dir = match beneath::open_dir(&self.root, path) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::LOOP) => return Err(Refusal::ThroughSymlink { entry: shown(entry) }.into()),
            Err(Errno::NOTDIR) => return Err(Refusal::BelowFile { entry: shown(entry) }.into()),
            Err(errno) => return Err(WorkError::store("open a parent", entry)(errno)),
        };
        self.leave()?;
        let stat = rustix::fs::fstat(&dir).map_err(WorkError::store("examine a parent", entry))?;
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        self.current = Some(Current { path: path.to_vec(), dir, times: times(mtime) });
        Ok(true)
    }

    /// Gives the current directory the time that it had before something was made in it.
    fn leave(&mut self) -> Result<(), WorkError> {
        if let Some(current) = self.current.take() {
            rustix::fs::futimens(&current.dir, &current.times)
                .map_err(WorkError::store("set the time", &current.path))?;
        }
        Ok(())
    }

    fn dir(&self) -> Result<rustix::fd::BorrowedFd<'_>, WorkError> {
        let current = self.current.as_ref().map(|current| current.dir.as_fd());
        current.ok_or_else(|| WorkError::store("find the current directory", b".")(Errno::BADF))
    }

    /// Owner first: changing it clears bits of the mode. Time last.
    fn attributes(&mut self, fd: &OwnedFd, path: &[u8], with: Attributes) -> Result<(), WorkError> {
        if let Some((uid, gid)) = with.owner {
            let done = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            self.owned(done, path)?;
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(with.mode))
            .map_err(WorkError::store("set the mode", path))?;
        rustix::fs::futimens(fd, &times(with.mtime)).map_err(WorkError::store("set the time", path))
    }

    /// An ordinary user has one id to give: what cannot be kept is counted.
    fn owned(&mut self, done: Result<(), Errno>, path: &[u8]) -> Result<(), WorkError> {
        match done {
            Err(Errno::PERM | Errno::INVAL) => self.owners_left += 1,
            Err(errno) => return Err(WorkError::store("set the owner", path)(errno)),
            Ok(()) => {}
        }
        Ok(())
    }

    fn times_of(&mut self, name: &[u8], path: &EntryPath, mtime: (i64, u32)) -> Result<(), WorkError> {
        rustix::fs::utimensat(self.dir()?, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(WorkError::store("set the time", path.bytes()))
    }

    fn count(&mut self) -> Result<(), WorkError> {
        self.entries += 1;
        let entries_max = self.limits.entries_max;
        if self.entries > entries_max { Err(Refusal::TooMany { entries_max }.into()) } else { Ok(()) }
    }
}

/// For `map_err` on a call that makes a name: a name that exists is the archive's fault.
fn made(doing: &'static str, path: &EntryPath) -> impl FnOnce(Errno) -> WorkError {
    let path = path.bytes();
    move |errno| match errno {
        Errno::EXIST => Refusal::Duplicate { entry: shown(path) }.into(),
        _ => WorkError::store(doing, path)(errno),
    }
}
