//! Digests of files and trees (docs/formats.md, "Tree digest").

use crate::limits::BUFFER_BYTES;
use ampoule_spec::{Blake3, GitId, Sha256};
use sha2::Digest as _;
use std::io::{self, Read};
use std::sync::mpsc::sync_channel;

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

/// From this size on a file's two digests are taken by two threads.
const BESIDE_BYTES: u64 = 16 << 20;
/// Buffers on their way between those threads.
const IN_FLIGHT: usize = 3;

/// Hashes streams one after another with one buffer.
pub(crate) struct FileHasher {
    buffer: Vec<u8>,
}

/// Both digests of everything that can be read, and how many bytes that was; at most `bytes_max` + 1 are read.
///
/// # Errors
/// Those of reading.
pub fn digests(from: impl Read, bytes_max: u64) -> io::Result<(Sha256, Blake3, u64)> {
    let (both, bytes) = FileHasher::new().hash_beside(from, bytes_max)?;
    Ok((both.sha256, both.blake3, bytes))
}

impl FileHasher {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES] }
    }

    /// Both digests and the length of everything that can be read, at most `bytes_max` + 1 bytes of it.
    pub(crate) fn hash(&mut self, from: impl Read, bytes_max: u64) -> io::Result<(Both, u64)> {
        if bytes_max >= BESIDE_BYTES {
            return self.hash_beside(from, bytes_max);
        }
        self.hash_here(from, bytes_max)
    }

    /// SHA-256 alone.
    pub(crate) fn sha256(&mut self, from: impl Read, bytes_max: u64) -> io::Result<(Sha256, u64)> {
        let mut sha256 = sha2::Sha256::new();
        let bytes = self.each(from, bytes_max, |part| sha256.update(part))?;
        Ok((Sha256::new(sha256.finalize().into()), bytes))
    }

    /// The same as [`FileHasher::hash`], with BLAKE3 on another thread: the two together take as long as SHA-256.
    /// Both still see each byte as it was read once.
    fn hash_beside(&mut self, from: impl Read, bytes_max: u64) -> io::Result<(Both, u64)> {
        let (full, to_hash) = sync_channel::<Vec<u8>>(IN_FLIGHT);
        let (used, empty) = sync_channel::<Vec<u8>>(IN_FLIGHT);
        std::thread::scope(|scope| {
            let beside = move || {
                let mut blake3 = blake3::Hasher::new();
                for part in to_hash {
                    blake3.update(&part);
                    // Nobody wants it any more when the last of the file was read.
                    let _ = used.try_send(part);
                }
                blake3
            };
            let Ok(beside) = std::thread::Builder::new().spawn_scoped(scope, beside) else {
                return self.hash_here(from, bytes_max);
            };
            let mut sha256 = sha2::Sha256::new();
            let mut sent = 0;
            let bytes = self.each(from, bytes_max, |part| {
                // The thread gives back what it took, so there are never more buffers than these.
                let mut copy = if sent < IN_FLIGHT { Vec::new() } else { empty.recv().unwrap_or_default() };
                sent += 1;
                copy.clear();
                copy.extend_from_slice(part);
                // It ends only after us; if it panicked, joining it says so.
                let _ = full.send(copy);
                sha256.update(part);
            });
            drop(full);
            let blake3 = beside.join().map_err(|_| io::Error::other("a hashing thread failed"))?;
            Ok((both(sha256, &blake3), bytes?))
        })
    }

    fn hash_here(&mut self, from: impl Read, bytes_max: u64) -> io::Result<(Both, u64)> {
        let (mut sha256, mut blake3) = (sha2::Sha256::new(), blake3::Hasher::new());
        let bytes = self.each(from, bytes_max, |part| {
            sha256.update(part);
            blake3.update(part);
        })?;
        Ok((both(sha256, &blake3), bytes))
    }

    /// Reads everything, at most `bytes_max` + 1 bytes of it, and says how much that was.
    fn each(&mut self, from: impl Read, bytes_max: u64, mut take: impl FnMut(&[u8])) -> io::Result<u64> {
        let mut from = from.take(bytes_max.saturating_add(1));
        let mut bytes = 0_u64;
        loop {
            let count = match from.read(&mut self.buffer) {
                Ok(0) => return Ok(bytes),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            take(self.buffer.get(..count).unwrap_or_default());
            bytes = bytes.saturating_add(count as u64);
        }
    }
}

fn both(sha256: sha2::Sha256, blake3: &blake3::Hasher) -> Both {
    let sha256 = Sha256::new(sha256.finalize().into());
    Both { sha256, blake3: Blake3::new(*blake3.finalize().as_bytes()) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_on_two_threads_are_those_of_one() {
        for length in [0, 1, BUFFER_BYTES - 1, 5 * BUFFER_BYTES + 3, BESIDE_BYTES as usize + 1] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let sha256 = Sha256::new(sha2::Sha256::digest(&bytes).into());
            let blake3 = Blake3::new(*blake3::hash(&bytes).as_bytes());
            let mut hasher = FileHasher::new();
            let expected = (Both { sha256, blake3 }, length as u64);
            assert_eq!(hasher.hash(bytes.as_slice(), 1 << 20).unwrap().1, expected.1.min((1 << 20) + 1));
            assert_eq!(hasher.hash_beside(bytes.as_slice(), u64::MAX).unwrap(), expected);
            assert_eq!(digests(bytes.as_slice(), u64::MAX).unwrap(), (sha256, blake3, expected.1));
            assert_eq!(hasher.sha256(bytes.as_slice(), u64::MAX).unwrap(), (sha256, expected.1));
        }
    }

    #[test]
    fn error_of_reading_is_passed_on_by_both_ways() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let mut hasher = FileHasher::new();
        for bytes_max in [1, BESIDE_BYTES] {
            assert_eq!(hasher.hash(Broken, bytes_max).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }
}
