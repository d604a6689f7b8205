//! The store on disk, as the launcher sees it (docs/formats.md, "Store").

use crate::beneath;
use crate::check::{Budget, Checked};
use crate::error::StoreError;
use crate::limits::Limits;
use crate::record::{self, Record};
use crate::remove::remove;
use crate::seal::{Owner, Shape};
use ampoule_spec::wire::{Content, Imported};
use ampoule_spec::{Blake3, ReadPolicy};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;

/// The directory within a stored tree's own that is mounted.
pub(crate) const TREE: &str = "tree";
/// The file beside it.
pub(crate) const META: &str = "meta.json";

/// The store: trees named by a digest, and an index from contents to trees.
///
/// Everything is reached from one directory's descriptor; no path of the host is resolved. Only the launcher
/// (and the processes that it trusts as itself) may write to it; [`Store::open`] refuses a directory that others
/// can enter.
#[derive(Debug)]
pub struct Store {
    pub(crate) index: OwnedFd,
    pub(crate) trees: OwnedFd,
    pub(crate) staging: OwnedFd,
    pub(crate) quarantine: OwnedFd,
    pub(crate) owner: Owner,
    pub(crate) limits: Limits,
}

/// A tree of the store, ready to be mounted.
#[derive(Debug)]
pub struct StoredTree {
    /// The tree's root (`O_PATH`). For a single file it is the directory that holds it as `content`.
    pub fd: OwnedFd,
    /// The digest that names it in the store.
    pub blake3: Blake3,
    /// What the index says of it.
    pub imported: Imported,
    /// The length of the source as it came: of a layer, as it is distributed.
    pub source_bytes: u64,
}

/// What [`Store::sweep_staging`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Leftovers of imports that died; removed.
    pub removed: u64,
    /// Imports that are under way; left alone.
    pub live: u64,
}

impl Store {
    /// Opens the store in a directory, laying it out if it is new.
    ///
    /// # Errors
    /// [`StoreError::Directory`] if the directory belongs to another user or others may enter it.
    pub fn open(dir: &OwnedFd, owner: Owner, limits: Limits) -> Result<Self, StoreError> {
        private(dir)?;
        let part = |name: &'static str| -> Result<OwnedFd, StoreError> {
            match rustix::fs::mkdirat(dir, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(StoreError::io("make a directory", name)(errno)),
            }
            let part = beneath::open_dir(dir, name.as_bytes()).map_err(StoreError::io("open", name))?;
            private(&part)?;
            Ok(part)
        };
        let (index, trees, staging) = (part("index")?, part("trees")?, part("staging")?);
        let quarantine = part("quarantine")?;
        rustix::fs::fsync(dir).map_err(StoreError::io("sync", "."))?;
        Ok(Self { index, trees, staging, quarantine, owner, limits })
    }

    /// What another process needs to use the store as this one.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 4] {
        [self.index.as_fd(), self.trees.as_fd(), self.staging.as_fd(), self.quarantine.as_fd()]
    }

    /// Whose the files are.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// The limits of an import; [`Store::limits_now`] are those for its worker.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether a content is in the store. A content without a digest never is.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the index is; it does not look at the tree's bytes.
    pub fn find(&self, content: &Content) -> Result<Option<Imported>, StoreError> {
        Ok(self.tree(content)?.map(|tree| tree.imported))
    }

    /// A content's tree, for mounting.
    ///
    /// # Errors
    /// As [`Store::find`].
    pub fn tree(&self, content: &Content) -> Result<Option<StoredTree>, StoreError> {
        let Some(record) = self.record(content)? else { return Ok(None) };
        let name = record.tree.to_string();
        let path = format!("{name}/{TREE}");
        let fd = match beneath::open(&self.trees, path.as_bytes(), OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            // Its object is in quarantine, or was collected by somebody who died in between.
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(StoreError::io("open", &name)(errno)),
        };
        let (imported, source_bytes) = (record.imported, record.source_bytes);
        Ok(Some(StoredTree { fd, blake3: record.tree, imported, source_bytes }))
    }

    /// Reads a content's tree back and compares it with its name, byte for byte and attribute for attribute.
    ///
    /// False: it is not in the store.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the tree is not what was committed.
    pub fn verify(&self, content: &Content) -> Result<bool, StoreError> {
        let Some(record) = self.record(content)? else { return Ok(false) };
        let Some(lease) = self.lease(record.tree)? else { return Ok(false) };
        match lease.check(ReadPolicy::Always, Budget::OBJECT, self.owner, self.limits)? {
            Checked::Sound(_) => Ok(true),
            Checked::Damaged(reason) => Err(StoreError::Damaged { entry: record.tree.to_string(), reason }),
        }
    }

    /// Removes what imports left behind that died. Imports under way hold a lock and are left alone.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn sweep_staging(&self) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let _gate = self.gate(FlockOperation::LockExclusive)?;
        let failed = |errno| StoreError::io("sweep", "staging")(errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.staging).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(name) => names.push(name.to_owned()),
                Err(_) => {
                    return Err(StoreError::Damaged {
                        entry: "staging".to_owned(),
                        reason: "it holds a name that is not ours".to_owned(),
                    });
                }
            }
        }
        for name in names {
            let lock = match beneath::open_file(&self.staging, name.as_bytes()) {
                Ok(lock) => lock,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(StoreError::io("open", &name)(errno)),
            };
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    remove(self.staging.as_fd(), &name).map_err(StoreError::io("remove", &name))?;
                    swept.removed += 1;
                }
                Err(Errno::WOULDBLOCK) => swept.live += 1,
                Err(errno) => return Err(StoreError::io("lock", &name)(errno)),
            }
        }
        Ok(swept)
    }

    /// Keeps sweeps out while something is made in staging that has no lock of its own yet, and the other way round.
    pub(crate) fn gate(&self, operation: FlockOperation) -> Result<OwnedFd, StoreError> {
        // Its own open file description: a lock belongs to that, and ours is every launcher's child's too.
        let gate = beneath::open_dir(&self.staging, b".").map_err(StoreError::io("open", "staging"))?;
        rustix::fs::flock(&gate, operation).map_err(StoreError::io("lock", "staging"))?;
        Ok(gate)
    }

    /// Keeps collections and quarantine out while an object gets its names, and the other way round. Whoever takes an
    /// object's lock besides takes this first.
    pub(crate) fn trees_gate(&self, operation: FlockOperation) -> Result<OwnedFd, StoreError> {
        let gate = beneath::open_dir(&self.trees, b".").map_err(StoreError::io("open", "trees"))?;
        rustix::fs::flock(&gate, operation).map_err(StoreError::io("lock", "trees"))?;
        Ok(gate)
    }

    pub(crate) fn record(&self, content: &Content) -> Result<Option<Record>, StoreError> {
        let Some(key) = record::key(content) else { return Ok(None) };
        let Some(bytes) = self.read_small(&self.index, &key)? else { return Ok(None) };
        let record: Record = record::read(&key, &bytes)?;
        if record.content != *content {
            let reason = "it is of another content".to_owned();
            return Err(StoreError::Damaged { entry: key, reason });
        }
        Ok(Some(record))
    }

    /// The root of a stored tree, for reading.
    pub(crate) fn open_tree(&self, tree: Blake3) -> Result<OwnedFd, StoreError> {
        let path = format!("{tree}/{TREE}");
        beneath::open_dir(&self.trees, path.as_bytes()).map_err(StoreError::io("open", &path))
    }

    /// One of the small JSON files; one byte more than the largest is enough to refuse it.
    pub(crate) fn read_small(&self, dir: &OwnedFd, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let file = match beneath::open_file(dir, name.as_bytes()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(StoreError::io("open", name)(errno)),
        };
        read_capped(file, 64 << 10).map(Some).map_err(StoreError::io("read", name))
    }
}

/// Reads at most `bytes_max` + 1 bytes.
pub(crate) fn read_capped(file: File, bytes_max: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    match file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
    }
}

/// What a content's tree may hold.
pub(crate) fn shape(content: &Content) -> Shape {
    match content {
        Content::Directory { epoch, .. }
        | Content::File { epoch, .. }
        | Content::Archive { epoch, .. }
        | Content::Git { epoch, .. } => Shape::Input { epoch: *epoch },
        Content::OciManifest { .. } | Content::OciConfig { .. } => Shape::Input { epoch: 0 },
        Content::ImageTar { .. } => Shape::Image,
        Content::OciLayer { .. } => Shape::Layer,
    }
}

fn private(dir: &OwnedFd) -> Result<(), StoreError> {
    let stat = rustix::fs::fstat(dir).map_err(StoreError::io("examine", "."))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(StoreError::Directory { what: "belongs to another user" });
    }
    if stat.st_mode & 0o077 != 0 {
        return Err(StoreError::Directory { what: "can be entered by others; make it 0700" });
    }
    Ok(())
}
