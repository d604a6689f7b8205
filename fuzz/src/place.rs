//! A store in memory, things around it that nothing may touch, and imports into it.

use ampoule_spec::wire::{Content, Imported};
use ampoule_store::worker::{self, WorkerResult};
use ampoule_store::{Limits, Owner, Store, StoreError, receive};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Small enough that an input which says how much there is cannot fill the machine.
const LIMITS: Limits =
    Limits { bytes_max: 1 << 20, entries_max: 200, ratio_max: 200, ratio_free_bytes: 1 << 20 };

/// A directory with a store in it.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    pub(crate) store: Store,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/passwd"), "root:x:0:0\n").unwrap();
        fs::write(dir.path().join("victim"), "untouched\n").unwrap();
        fs::DirBuilder::new().mode(0o700).create(dir.path().join("store")).unwrap();
        let owner = if rustix::process::geteuid().is_root() { Owner::Mapped { base: 0 } } else { Owner::Own };
        let store = Store::open(&open(&dir.path().join("store")), owner, LIMITS).unwrap();
        Self { dir, store }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a launcher does, without a process of the worker's own.
    pub(crate) fn import(&self, content: &Content, source: &[u8]) -> Result<Imported, StoreError> {
        let staging = self.store.begin(content).unwrap();
        let result = worker::run(content, memory(source), staging.worker_dir().unwrap(), &LIMITS);
        if let WorkerResult::Refused { name, message, .. } = &result {
            // A failing system call would mean that something reached the kernel unchecked.
            assert_ne!(name, "io", "{message}");
        }
        let result = WorkerResult::from_json(&result.to_json()).unwrap();
        let received = receive(source, std::io::sink(), u64::MAX).unwrap();
        let imported = self.store.commit(staging, &result, &received);
        if imported.is_err() {
            assert!(self.store.find(content).unwrap().is_none(), "refused, and found");
        }
        imported
    }

    /// Where a content's tree lies.
    pub(crate) fn tree(&self, content: &Content) -> PathBuf {
        let tree = self.store.tree(content).unwrap().expect("it was imported");
        self.path(&format!("store/trees/{}/tree", tree.blake3))
    }

    /// That nothing outside the store was touched, and nothing is left in staging; then the store is emptied.
    ///
    /// `others` is what a target has put there itself.
    pub(crate) fn check_and_empty(&self, others: &[&str]) {
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            let name = entry.unwrap().file_name();
            let known = ["outside", "store", "victim"].iter().chain(others).any(|other| name == *other);
            assert!(known, "{} is new outside", name.display());
        }
        assert_eq!(fs::read(self.path("victim")).unwrap(), b"untouched\n");
        assert_eq!(fs::read(self.path("outside/passwd")).unwrap(), b"root:x:0:0\n");
        assert_eq!(fs::read_dir(self.path("outside")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(self.path("store/staging")).unwrap().count(), 0, "left in staging");
        self.empty();
    }

    /// How much lies in a part of the store.
    pub(crate) fn entries(&self, part: &str) -> usize {
        fs::read_dir(self.path("store").join(part)).unwrap().count()
    }

    fn empty(&self) {
        for part in ["store/index", "store/trees"] {
            for entry in fs::read_dir(self.path(part)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    fs::remove_dir_all(path).unwrap();
                } else {
                    fs::remove_file(path).unwrap();
                }
            }
        }
    }
}

pub(crate) fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

/// A descriptor from which these bytes can be read.
fn memory(bytes: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("source", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = fs::File::from(fd);
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file.into()
}

/// A directory as `path → kind and content`.
pub(crate) fn listing(root: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_dir() {
                open.push(path);
                b"d".to_vec()
            } else if meta.is_symlink() {
                [b"l", fs::read_link(&path).unwrap().as_os_str().as_bytes()].concat()
            } else if meta.is_file() {
                let kind: &[u8] = if meta.permissions().mode() & 0o100 != 0 { b"x" } else { b"f" };
                [kind, &fs::read(&path).unwrap()].concat()
            } else {
                b"w".to_vec()
            };
            all.insert(name, content);
        }
    }
    all
}

thread_local! {
    static PLACE: Place = Place::new();
}

/// Does something in this thread's place.
pub(crate) fn with<T>(what: impl FnOnce(&Place) -> T) -> T {
    PLACE.with(what)
}
