//! Walking a tree by descriptor: in order of names, without recursion, with bounded descriptors and memory.

use crate::limits::DEPTH_MAX;
use rustix::fd::OwnedFd;
use rustix::fs::{Dir, FileType};
use rustix::io::Errno;
use std::sync::Arc;

/// Why a walk cannot go on.
#[derive(Debug)]
pub(crate) enum WalkError {
    TooDeep,
    TooMany,
    Io(Errno),
}

impl From<Errno> for WalkError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno)
    }
}

/// What comes next.
pub(crate) enum Step {
    /// A name in the current directory. A directory is entered by [`Walk::enter`].
    Name(Vec<u8>),
    /// The directory of this name is finished; the root's name is empty.
    Leave(Vec<u8>),
}

struct Frame {
    dir: Arc<OwnedFd>,
    name: Vec<u8>,
    /// Names not given yet, the smallest last.
    names: Vec<(Vec<u8>, FileType)>,
}

/// A walk. The caller decides what is a directory and how it is opened.
pub(crate) struct Walk {
    frames: Vec<Frame>,
    entries_left: u64,
    kind: FileType,
}

impl Walk {
    /// Begins in a directory; more than `entries_max` names end the walk before they are kept.
    pub(crate) fn new(root: OwnedFd, entries_max: u64) -> Result<Self, WalkError> {
        let mut walk = Self { frames: Vec::new(), entries_left: entries_max, kind: FileType::Unknown };
        walk.enter(Vec::new(), root)?;
        Ok(walk)
    }

    /// Enters the directory that the last [`Step::Name`] named.
    pub(crate) fn enter(&mut self, name: Vec<u8>, dir: OwnedFd) -> Result<(), WalkError> {
        if self.frames.len() > DEPTH_MAX {
            return Err(WalkError::TooDeep);
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            self.entries_left = self.entries_left.checked_sub(1).ok_or(WalkError::TooMany)?;
            names.push((name.to_vec(), entry.file_type()));
        }
        names.sort_unstable_by(|a, b| b.0.cmp(&a.0));
        self.frames.push(Frame { dir: Arc::new(dir), name, names });
        Ok(())
    }

    /// The next step; nothing after the root was left.
    pub(crate) fn next_step(&mut self) -> Option<Step> {
        if let Some((name, kind)) = self.frames.last_mut()?.names.pop() {
            self.kind = kind;
            return Some(Step::Name(name));
        }
        self.frames.pop().map(|frame| Step::Leave(frame.name))
    }

    /// What the last [`Step::Name`] was when its directory was listed; unknown where the file system does not say.
    pub(crate) fn kind(&self) -> FileType {
        self.kind
    }

    /// The current directory.
    pub(crate) fn dir(&self) -> Result<&Arc<OwnedFd>, Errno> {
        self.frames.last().map(|frame| &frame.dir).ok_or(Errno::BADF)
    }

    /// The path of a name in the current directory.
    pub(crate) fn path(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::new();
        for frame in self.frames.iter().skip(1) {
            path.extend_from_slice(&frame.name);
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }
}
