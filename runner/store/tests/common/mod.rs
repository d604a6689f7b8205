//! Building raw archives, importing them as a launcher would, and looking at what became of everything around.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

use ampoule_spec::Sha256;
use ampoule_spec::wire::{Content, Imported};
use ampoule_store::worker::WorkerResult;
use ampoule_store::{Limits, Owner, Received, Store, StoreError, receive, worker};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub const EPOCH: u64 = 1_700_000_000;

pub fn sha(bytes: &[u8]) -> Sha256 {
    Sha256::new(sha2::Sha256::digest(bytes).into())
}

/// One raw header with its data; every field can be set to any bytes.
#[derive(Clone)]
pub struct H {
    pub block: [u8; 512],
    pub data: Vec<u8>,
    pub pad: bool,
    pub sum: bool,
}

impl H {
    pub fn new(flag: u8, name: impl AsRef<[u8]>) -> Self {
        let header = Self { block: [0; 512], data: Vec::new(), pad: true, sum: true };
        let mode = if flag == b'5' { "0000755\0" } else { "0000644\0" };
        header
            .put(0, name)
            .put(100, mode)
            .put(108, "0000000\0")
            .put(116, "0000000\0")
            .put(124, "00000000000\0")
            .put(136, "14524655000\0")
            .put(156, [flag])
            .put(257, b"ustar\x0000")
    }

    pub fn put(mut self, at: usize, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let length = bytes.len().min(512 - at);
        self.block[at..at + length].copy_from_slice(&bytes[..length]);
        self
    }

    pub fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        let size = format!("{:011o}\0", self.data.len());
        self.put(124, size)
    }

    /// Announces a size without having the data.
    pub fn size(self, bytes: u64) -> Self {
        self.put(124, format!("{bytes:011o}\0"))
    }

    pub fn link(self, target: impl AsRef<[u8]>) -> Self {
        self.put(157, target)
    }

    pub fn mode(self, mode: u32) -> Self {
        self.put(100, format!("{mode:07o}\0"))
    }

    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.put(108, format!("{uid:07o}\0")).put(116, format!("{gid:07o}\0"))
    }

    pub fn mtime(self, seconds: u64) -> Self {
        self.put(136, format!("{seconds:011o}\0"))
    }

    pub fn gnu(self) -> Self {
        self.put(257, b"ustar  \0")
    }

    pub fn v7(self) -> Self {
        self.put(257, [0; 8])
    }

    pub fn no_sum(mut self) -> Self {
        self.sum = false;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut block = self.block;
        if self.sum {
            fix(&mut block);
        }
        let mut out = block.to_vec();
        out.extend_from_slice(&self.data);
        if self.pad {
            out.resize(out.len().next_multiple_of(512), 0);
        }
        out
    }
}

/// Writes the right checksum into a header.
pub fn fix(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> H {
    H::new(b'0', name).data(data)
}

pub fn dir(name: impl AsRef<[u8]>) -> H {
    H::new(b'5', name)
}

pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> H {
    H::new(b'2', name).link(target)
}

pub fn hardlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> H {
    H::new(b'1', name).link(target)
}

/// One well-formed PAX record.
pub fn record(key: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A PAX header.
pub fn pax(records: impl AsRef<[u8]>) -> H {
    H::new(b'x', "PaxHeaders/x").data(records)
}

/// A GNU long name (`L`) or target (`K`).
pub fn long(flag: u8, text: impl AsRef<[u8]>) -> H {
    H::new(flag, "././@LongLink").gnu().data([text.as_ref(), b"\0"].concat())
}

/// The headers without an end.
pub fn headers(entries: &[H]) -> Vec<u8> {
    entries.iter().flat_map(H::bytes).collect()
}

/// A whole archive.
pub fn tar(entries: &[H]) -> Vec<u8> {
    let mut out = headers(entries);
    out.resize(out.len() + 1024, 0);
    out
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).unwrap()
}

/// A directory with a store, and things around it that an archive must not touch.
pub struct World {
    pub temp: tempfile::TempDir,
    pub store: Store,
}

impl World {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        Self::on(tempfile::tempdir().unwrap(), limits)
    }

    /// In memory where that will do, for tests with many imports.
    pub fn fast(limits: Limits) -> Self {
        Self::on(memory_dir(), limits)
    }

    fn on(temp: tempfile::TempDir, limits: Limits) -> Self {
        let outside = temp.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("passwd"), "root:x:0:0\n").unwrap();
        fs::write(temp.path().join("victim"), "untouched\n").unwrap();
        fs::DirBuilder::new().mode(0o700).create(temp.path().join("store")).unwrap();
        let store = open(&temp.path().join("store"), limits).unwrap();
        Self { temp, store }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.temp.path().join(below)
    }

    /// What a launcher does: a worker on the other end of a pipe, the digest taken on this end.
    pub fn import(&self, content: &Content, source: &[u8]) -> Result<Imported, StoreError> {
        let staging = self.store.begin(content).unwrap();
        let dir = staging.worker_dir().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let limits = *self.store.limits();
        let (result, received) = std::thread::scope(|scope| {
            let worker = scope.spawn(|| worker::run(content, reader.into(), dir, &limits));
            let received = receive(source, writer, u64::MAX).unwrap();
            (worker.join().expect("the worker panicked"), received)
        });
        let result = WorkerResult::from_json(&result.to_json()).unwrap();
        self.store.commit(staging, &result, &received)
    }

    pub fn archive(&self, source: &[u8]) -> Result<Imported, StoreError> {
        self.import(&archive(source), source)
    }

    pub fn layer(&self, source: &[u8]) -> Result<Imported, StoreError> {
        self.import(&Content::OciLayer { sha256: sha(source) }, source)
    }

    /// Where a content's tree lies, by a path: for looking at it only.
    pub fn tree(&self, content: &Content) -> PathBuf {
        let tree = self.store.tree(content).unwrap().expect("the content is in the store");
        self.path(&format!("store/trees/{}/tree", tree.blake3))
    }

    /// A content's tree as `path → description`.
    pub fn listing(&self, content: &Content) -> BTreeMap<String, String> {
        listing(&self.tree(content))
    }

    /// Everything below the temporary directory: names, inodes, modes, owners, times, contents.
    pub fn snapshot(&self) -> BTreeMap<PathBuf, String> {
        let mut all = BTreeMap::new();
        walk(self.temp.path(), &mut |path| {
            let meta = fs::symlink_metadata(path).unwrap();
            let content = if meta.is_file() { fs::read(path).unwrap() } else { Vec::new() };
            let link = fs::read_link(path).ok();
            let changing = path.ends_with("store/staging");
            let times = if changing { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) };
            let size = if changing { 0 } else { meta.len() };
            let text = format!(
                "{:o} {}:{} {} {size} {times:?} {} {link:?}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.ino(),
                sha(&content)
            );
            all.insert(path.to_owned(), text);
        });
        all
    }
}

pub fn archive(source: &[u8]) -> Content {
    Content::Archive { sha256: sha(source), epoch: EPOCH }
}

/// A directory in memory, if that file system has user attributes (Linux 6.6); else one like any other.
pub fn memory_dir() -> tempfile::TempDir {
    let in_memory = tempfile::Builder::new().tempdir_in("/dev/shm").ok();
    let good = in_memory.filter(|dir| {
        rustix::fs::setxattr(dir.path(), "user.test", b"y", rustix::fs::XattrFlags::empty()).is_ok()
    });
    good.unwrap_or_else(|| tempfile::tempdir().unwrap())
}

/// A store as these tests' user may have it.
pub fn open(path: &Path, limits: Limits) -> Result<Store, StoreError> {
    let owner = if is_root() { Owner::Mapped { base: 0 } } else { Owner::Own };
    Store::open(&open_dir(path), owner, limits)
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn open_dir(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

pub fn walk(root: &Path, visit: &mut dyn FnMut(&Path)) {
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            visit(&path);
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                open.push(path);
            }
        }
    }
}

/// A tree as `path → kind mode [size sha256 | target]`, with every time checked against `mtime` elsewhere.
pub fn listing(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    walk(root, &mut |path| {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().escape_ascii().to_string();
        let meta = fs::symlink_metadata(path).unwrap();
        let mode = meta.permissions().mode() & 0o7777;
        let kind = meta.file_type();
        let text = if kind.is_symlink() {
            format!("l {}", fs::read_link(path).unwrap().as_os_str().as_bytes().escape_ascii())
        } else if kind.is_dir() {
            format!("d {mode:04o}")
        } else if kind.is_file() {
            format!("f {mode:04o} {}", fs::read(path).unwrap().escape_ascii())
        } else {
            format!("special {:o} {}", meta.mode(), meta.rdev())
        };
        all.insert(name, text);
    });
    all
}

pub fn received(source: &[u8]) -> Received {
    receive(source, std::io::sink(), u64::MAX).unwrap()
}

/// A file descriptor from which these bytes can be read.
pub fn memory(bytes: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("source", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = fs::File::from(fd);
    file.write_all(bytes).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(0)).unwrap();
    file.into()
}

/// A small random generator with a seed, so that a failure comes again.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        // xorshift64*, Vigna 2016
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap() % end.max(1)
    }

    /// An archive with one to three bytes of its headers or extensions changed, and checksums that fit.
    pub fn header_mutation(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut source = seeds[self.below(seeds.len())].clone();
        let blocks = source.len() / 512;
        for _ in 0..=self.below(3) {
            let block = self.below(blocks);
            let field =
                [0, 0, 1, 100, 108, 124, 130, 135, 136, 156, 156, 157, 257, 263, 345, 500][self.below(16)];
            let at = block * 512 + (field + self.below(4)).min(511);
            let pool = *b"\0\0 01235789xgLKSa/.=\n\x80\xff";
            source[at] =
                if self.below(4) == 0 { self.next().to_le_bytes()[3] } else { pool[self.below(pool.len())] };
            let end = (block + 1) * 512;
            let header = &mut source[block * 512..end];
            // What looks like a header stays one.
            if header[148..156].iter().all(|b| matches!(b, b'0'..=b'7' | b' ' | 0)) && header[148] != 0 {
                fix(header);
            }
        }
        source
    }
}

impl World {
    /// Sweeps until no more than `live` imports seem alive: processes that other tests are about to start hold
    /// copies of every descriptor for a moment.
    pub fn sweep(&self, live: u64) -> u64 {
        let mut removed = 0;
        for _ in 0..500 {
            let swept = self.store.sweep_staging().unwrap();
            removed += swept.removed;
            if swept.live <= live {
                assert_eq!(swept.live, live);
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        removed
    }
}
