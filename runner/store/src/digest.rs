//! Digests of files and trees (docs/formats.md, "Tree digest").

use crate::limits::BUFFER_BYTES;
use ampoule_spec::{Blake3, GitId, Sha256};
use sha2::Digest as _;
use std::io::{self, Read};

/// The domain of a directory's digest for the world.
const WORLD: &[u8] = b"ampoule tree v1\0";
/// The domain of a directory's digest inside the store.
const STORE: &[u8] = b"ampoule store tree v1\0";

/// Both digests of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Both {
    pub(crate) sha256: Sha256,
    pub(crate) blake3: Blake3,
}

/// Hashes streams one after another with one buffer.
pub(crate) struct FileHasher {
    buffer: Vec<u8>,
}

impl FileHasher {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES] }
    }

    /// Both digests and the length of everything that can be read, at most `bytes_max` + 1 bytes of it.
    pub(crate) fn hash(&mut self, from: impl Read, bytes_max: u64) -> io::Result<(Both, u64)> {
        let mut from = from.take(bytes_max.saturating_add(1));
        let (mut sha256, mut blake3) = (sha2::Sha256::new(), blake3::Hasher::new());
        let mut bytes = 0_u64;
        loop {
            let count = match from.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let part = self.buffer.get(..count).unwrap_or_default();
            sha256.update(part);
            blake3.update(part);
            bytes = bytes.saturating_add(count as u64);
        }
        let sha256 = Sha256::new(sha256.finalize().into());
        Ok((Both { sha256, blake3: Blake3::new(*blake3.finalize().as_bytes()) }, bytes))
    }
}

/// What a name in a directory is. The bytes are those of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum NodeKind {
    Directory = b'd',
    File = b'f',
    Executable = b'x',
    Symlink = b'l',
    Whiteout = b'w',
}

/// The digest of a directory for the world: names, kinds, executable bits, contents and targets.
///
/// Entries are added in ascending order of their names' bytes.
pub(crate) struct WorldNode(sha2::Sha256);

impl WorldNode {
    pub(crate) fn new() -> Self {
        Self(sha2::Sha256::new_with_prefix(WORLD))
    }

    /// A directory or file by its digest, or a whiteout, which has none.
    pub(crate) fn add(&mut self, kind: NodeKind, name: &[u8], digest: Option<&Sha256>) {
        self.head(kind, name);
        if let Some(digest) = digest {
            self.0.update(digest.as_bytes());
        }
    }

    /// A symbolic link by its target.
    pub(crate) fn add_link(&mut self, name: &[u8], target: &[u8]) {
        self.head(NodeKind::Symlink, name);
        self.0.update(length(target));
        self.0.update(target);
    }

    fn head(&mut self, kind: NodeKind, name: &[u8]) {
        self.0.update([kind as u8]);
        self.0.update(length(name));
        self.0.update(name);
    }

    pub(crate) fn finish(self) -> Sha256 {
        Sha256::new(self.0.finalize().into())
    }
}

/// Names and targets have at most 4,095 bytes, so two bytes say their length.
fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes()
}

/// What the store's own digest covers of an entry besides its content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u32,
    pub(crate) mtime: i64,
    pub(crate) mtime_nanos: u32,
    pub(crate) opaque: bool,
}

impl Meta {
    fn feed(&self, hash: &mut blake3::Hasher) {
        for word in [self.mode, self.uid, self.gid, self.links] {
            hash.update(&word.to_be_bytes());
        }
        hash.update(&self.mtime.to_be_bytes());
        hash.update(&self.mtime_nanos.to_be_bytes());
        hash.update(&[u8::from(self.opaque)]);
    }
}

/// A directory in both digests.
pub(crate) struct Node {
    world: WorldNode,
    store: Box<blake3::Hasher>,
}

impl Node {
    /// Begins a directory with its own metadata.
    pub(crate) fn new(meta: &Meta) -> Self {
        let mut store = Box::new(blake3::Hasher::new());
        store.update(STORE);
        meta.feed(&mut store);
        Self { world: WorldNode::new(), store }
    }

    pub(crate) fn add_file(&mut self, executable: bool, name: &[u8], meta: &Meta, digest: &Both) {
        let kind = if executable { NodeKind::Executable } else { NodeKind::File };
        self.world.add(kind, name, Some(&digest.sha256));
        self.head(NodeKind::File, name);
        meta.feed(&mut self.store);
        self.store.update(digest.blake3.as_bytes());
    }

    /// A directory, whose metadata its own digest covers.
    pub(crate) fn add_dir(&mut self, name: &[u8], digest: &Both) {
        self.world.add(NodeKind::Directory, name, Some(&digest.sha256));
        self.head(NodeKind::Directory, name);
        self.store.update(digest.blake3.as_bytes());
    }

    pub(crate) fn add_link(&mut self, name: &[u8], meta: &Meta, target: &[u8]) {
        self.world.add_link(name, target);
        self.head(NodeKind::Symlink, name);
        meta.feed(&mut self.store);
        self.store.update(&length(target));
        self.store.update(target);
    }

    pub(crate) fn add_whiteout(&mut self, name: &[u8]) {
        self.world.add(NodeKind::Whiteout, name, None);
        self.head(NodeKind::Whiteout, name);
    }

    fn head(&mut self, kind: NodeKind, name: &[u8]) {
        self.store.update(&[kind as u8]);
        self.store.update(&length(name));
        self.store.update(name);
    }

    pub(crate) fn finish(self) -> Both {
        Both { sha256: self.world.finish(), blake3: Blake3::new(*self.store.finalize().as_bytes()) }
    }
}

/// Ids of git objects: SHA-1 of `<kind> <length>\0<bytes>`, none where the bytes are one half of a collision
/// (Stevens' counter-cryptanalysis; SHAttered, 2017).
pub(crate) struct Git {
    buffer: Vec<u8>,
}

impl Git {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES] }
    }

    /// The id of an object in memory.
    pub(crate) fn object(kind: &str, bytes: &[u8]) -> Option<GitId> {
        let mut hash = Self::begin(kind, bytes.len() as u64);
        sha1_checked::Digest::update(&mut hash, bytes);
        Self::end(hash)
    }

    /// The id of an object of `size` bytes that is read.
    ///
    /// # Errors
    /// As reading; one with another size is an error too.
    pub(crate) fn stream(&mut self, kind: &str, from: impl Read, size: u64) -> io::Result<Option<GitId>> {
        let mut hash = Self::begin(kind, size);
        let mut left = size;
        let mut from = from.take(size.saturating_add(1));
        loop {
            let count = match from.read(&mut self.buffer) {
                Ok(0) if left == 0 => return Ok(Self::end(hash)),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            left =
                left.checked_sub(count as u64).filter(|_| count > 0).ok_or(io::ErrorKind::UnexpectedEof)?;
            sha1_checked::Digest::update(&mut hash, self.buffer.get(..count).unwrap_or_default());
        }
    }

    fn begin(kind: &str, size: u64) -> sha1_checked::Sha1 {
        let mut hash = sha1_checked::Sha1::new();
        sha1_checked::Digest::update(&mut hash, format!("{kind} {size}\0"));
        hash
    }

    fn end(hash: sha1_checked::Sha1) -> Option<GitId> {
        match hash.try_finalize() {
            sha1_checked::CollisionResult::Ok(id) => Some(GitId::new(id.into())),
            _ => None,
        }
    }
}
