//! What a file system has in it from the start, as inodes with numbers and places.
//!
//! Inode 2 is the root directory, inode 11 `lost+found`, and from 12 on they are the entries of a list, in its order.
//! Their blocks follow each other in the same order: one for each directory, one extent for each file.

use super::layout::{BLOCK_BYTES, INODES_RESERVED};
use super::records::{self, BLOCK};
use crate::skeleton::{Entry, Kind};
use ampoule_spec::Code;
use std::collections::BTreeMap;

/// The most bytes of a file: as many blocks as one extent has (`EXT_INIT_MAX_LEN`, fs/ext4/ext4_extents.h).
pub const FILE_BYTES_MAX: usize = BLOCK << 15;
/// The most bytes of a link's target: one block, and one byte of it for the end.
pub const TARGET_BYTES_MAX: usize = BLOCK - 1;
/// The most bytes of a target that are in the inode, where other files have their extents.
const TARGET_BYTES_INSIDE: usize = 59;
/// The most bytes of a name (`EXT4_NAME_LEN`).
pub const NAME_BYTES_MAX: usize = 255;

const ROOT: u32 = 2;

/// Why a list of entries is not what a file system can begin with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContentsError {
    /// Something that is no name, or a name that is too long.
    #[error("{0:?} is not made of names of 1 to {NAME_BYTES_MAX} bytes; give a relative path without dots")]
    Path(String),
    /// Two entries are at the same place.
    #[error("{0:?} is in the list twice; leave one out")]
    Twice(String),
    /// The directory is missing in the list, comes later, or is no directory.
    #[error("{0:?} comes before its directory; put that first")]
    NoDirectory(String),
    /// More names than the one block of a directory takes.
    #[error("{0:?} does not fit into the one block of its directory; put it elsewhere")]
    Full(String),
    /// A file, a target or all of them together are too long, or a target is empty.
    #[error("{0:?} has a length that is not written; files have at most {FILE_BYTES_MAX} bytes")]
    Length(String),
    /// Permissions beyond 0o7777, or a target with a NUL byte.
    #[error("{0:?} has a mode or a target that does not exist")]
    Value(String),
}

impl ContentsError {
    /// The bounded code.
    pub fn code(&self) -> Code {
        Code::SandboxSetupFailed
    }
}

/// Everything that is in a file system from the start.
#[derive(Debug)]
pub struct Contents<'a> {
    nodes: Vec<Node<'a>>,
    blocks: u32,
}

/// What an inode is of.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) inode: u32,
    /// At most 0o7777.
    pub(super) permissions: u16,
    /// The owner, as in-sandbox id; none: host root.
    pub(super) id: Option<u32>,
    pub(super) links: u16,
    /// Its first block, counted from the first of all contents.
    pub(super) block: u32,
    pub(super) body: Body<'a>,
}

/// What an inode has.
#[derive(Debug)]
pub(super) enum Body<'a> {
    Directory {
        parent: u32,
        names: Vec<Name<'a>>,
    },
    File(&'a [u8]),
    Link(&'a [u8]),
    /// A character device by its numbers.
    Device(u8, u8),
}

/// A name in a directory, and what it leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    pub(super) inode: u32,
    pub(super) kind: Type,
    pub(super) name: &'a [u8],
}

/// The types of [`Body`], as a directory has them (`EXT4_FT_REG_FILE` and so on).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    File = 1,
    Directory = 2,
    Device = 3,
    Link = 7,
}

impl Type {
    /// The upper bits of `i_mode`.
    pub(super) fn mode(self) -> u16 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
            Self::Link => 0o120_000,
            Self::Device => 0o020_000,
        }
    }
}

impl Node<'_> {
    pub(super) fn kind(&self) -> Type {
        match self.body {
            Body::Directory { .. } => Type::Directory,
            Body::File(_) => Type::File,
            Body::Link(_) => Type::Link,
            Body::Device(..) => Type::Device,
        }
    }

    /// Whether what it has is in the inode.
    pub(super) fn is_inside(&self) -> bool {
        match self.body {
            Body::Link(target) => target.len() <= TARGET_BYTES_INSIDE,
            Body::Device(..) => true,
            Body::Directory { .. } | Body::File(_) => false,
        }
    }

    /// Its length.
    pub(super) fn bytes(&self) -> u32 {
        match self.body {
            Body::Directory { .. } => BLOCK_BYTES,
            Body::File(bytes) | Body::Link(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            Body::Device(..) => 0,
        }
    }

    /// Blocks that it has.
    pub(super) fn blocks(&self) -> u32 {
        if self.is_inside() { 0 } else { self.bytes().div_ceil(BLOCK_BYTES) }
    }
}

impl<'a> Contents<'a> {
    /// Takes a list in which each directory comes before what is in it.
    ///
    /// # Errors
    /// [`ContentsError`] with the path of the first entry that is wrong.
    pub fn of(entries: &'a [Entry]) -> Result<Self, ContentsError> {
        let directory = |inode, permissions, id, links, block, names| {
            let body = Body::Directory { parent: ROOT, names };
            Node { inode, permissions, id, links, block, body }
        };
        let lost = Name { inode: INODES_RESERVED, kind: Type::Directory, name: b"lost+found" };
        let mut made = Self {
            nodes: vec![
                directory(ROOT, 0o755, Some(0), 3, 0, vec![lost]),
                // What e2fsck(8) misses where it is not. Host root alone may enter it.
                directory(INODES_RESERVED, 0o700, None, 2, 1, Vec::new()),
            ],
            blocks: 2,
        };
        // The index of each directory by its path; none for everything else.
        let mut places = BTreeMap::from([("", Some(0)), ("lost+found", None)]);
        for entry in entries {
            let at = made.add(entry, &places)?;
            if places.insert(&entry.path, at).is_some() {
                return Err(ContentsError::Twice(entry.path.clone()));
            }
        }
        Ok(made)
    }

    /// Adds an entry, and returns its index if it is a directory.
    fn add(
        &mut self,
        entry: &'a Entry,
        places: &BTreeMap<&str, Option<usize>>,
    ) -> Result<Option<usize>, ContentsError> {
        let path = || entry.path.clone();
        let is_name = |name: &str| {
            !matches!(name, "" | "." | "..") && name.len() <= NAME_BYTES_MAX && !name.contains('\0')
        };
        if !entry.path.split('/').all(is_name) {
            return Err(ContentsError::Path(path()));
        }
        let (directory, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
        let index = self.nodes.len();
        let inode = u32::try_from(index - 1).ok().and_then(|more| more.checked_add(INODES_RESERVED));
        let inode = inode.ok_or_else(|| ContentsError::Length(path()))?;
        let parent = places.get(directory).copied().flatten().and_then(|at| self.nodes.get_mut(at));
        let Some(Node { inode: parent, links, body: Body::Directory { names, .. }, .. }) = parent else {
            return Err(ContentsError::NoDirectory(path()));
        };
        let (permissions, body) = body(entry, *parent)?;
        let mut node = Node { inode, permissions, id: Some(entry.id), links: 1, block: self.blocks, body };
        let kind = node.kind();
        if kind == Type::Directory {
            node.links = 2;
            *links += 1;
        }
        names.push(Name { inode, kind, name: name.as_bytes() });
        if records::directory_bytes(names) > BLOCK {
            return Err(ContentsError::Full(path()));
        }
        self.blocks = self.blocks.checked_add(node.blocks()).ok_or_else(|| ContentsError::Length(path()))?;
        self.nodes.push(node);
        Ok((kind == Type::Directory).then_some(index))
    }

    /// Inodes that are taken, those of the format included: all up to this number.
    pub(super) fn inodes(&self) -> u32 {
        self.nodes.last().map_or(INODES_RESERVED, |node| node.inode)
    }

    /// Blocks that are taken.
    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The inodes with something in them, by their numbers.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node<'a>> {
        self.nodes.iter()
    }
}

/// The permissions of an entry, and what it has.
fn body(entry: &Entry, parent: u32) -> Result<(u16, Body<'_>), ContentsError> {
    let wrong = |what: fn(String) -> ContentsError| Err(what(entry.path.clone()));
    match &entry.kind {
        Kind::Directory { mode } | Kind::File { mode, .. } | Kind::Device { mode, .. } if *mode > 0o7777 => {
            wrong(ContentsError::Value)
        }
        Kind::Directory { mode } => Ok((*mode, Body::Directory { parent, names: Vec::new() })),
        Kind::File { bytes, .. } if bytes.len() > FILE_BYTES_MAX => wrong(ContentsError::Length),
        Kind::File { mode, bytes } => Ok((*mode, Body::File(bytes))),
        Kind::Link { target } if !(1..=TARGET_BYTES_MAX).contains(&target.len()) => {
            wrong(ContentsError::Length)
        }
        Kind::Link { target } if target.contains(&0) => wrong(ContentsError::Value),
        Kind::Link { target } => Ok((0o777, Body::Link(target))),
        Kind::Device { mode, major, minor } => Ok((*mode, Body::Device(*major, *minor))),
    }
}
