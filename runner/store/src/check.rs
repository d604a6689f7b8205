//! Reading an object back, by sample or whole.
//!
//! What a sample compares: every inode's change time with that of the object's `meta.json`, which was made last. The
//! kernel sets it whenever somebody writes to a file, changes its attributes or its name, and nobody can set it back
//! without setting the clock. Bytes that changed behind the kernel's back (a disk that lost them, a page cache
//! written to through a hole in the kernel) do not show there, so small files drawn at random are hashed too.

use crate::beneath;
use crate::error::StoreError;
use crate::file_list::{self, Listed, Reader, Sink};
use crate::lease::{Lease, touch};
use crate::limits::Limits;
use crate::quarantine::DAMAGED;
use crate::record::{self, TreeMeta};
use crate::seal::{Owner, Sealer, Shape};
use crate::store::{META, TREE, read_capped};
use ampoule_spec::{HowRead, ReadPolicy};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::io::Read;
use std::time::Duration;

/// How much a sample may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Files and directories that are looked at.
    pub files: u64,
    /// Bytes that are hashed.
    pub bytes: u64,
}

impl Budget {
    /// Of one object.
    pub const OBJECT: Self = Self { files: 16, bytes: 1 << 20 };

    /// The share of one of several that are used together, as the layers of an image.
    pub fn share(self, count: usize) -> Self {
        let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
        Self { files: (self.files / count).max(2), bytes: (self.bytes / count).max(64 << 10) }
    }
}

/// What was read of an object that is sound, as far as that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadBack {
    /// How much of it.
    pub how: HowRead,
    /// Files that were looked at.
    pub files: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checked {
    /// It is what its name says, as far as it was read.
    Sound(ReadBack),
    /// It is not, for this reason.
    Damaged(String),
}

/// How often a time is set until the kernel's clock for files has gone on, a millisecond apart.
const TICKS_MAX: u32 = 1000;

/// What a sample says.
enum Sample {
    Fits(ReadBack),
    /// The whole object must be read.
    Suspicious,
}

impl Lease {
    /// Reads the object back.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be looked at for want of memory or descriptors. What the disk does not give
    /// back is damage.
    pub fn check(
        &self,
        policy: ReadPolicy,
        budget: Budget,
        owner: Owner,
        limits: Limits,
    ) -> Result<Checked, StoreError> {
        if rustix::fs::accessat(&self.dir, DAMAGED, rustix::fs::Access::EXISTS, AtFlags::empty()).is_ok() {
            return Ok(Checked::Damaged("somebody found it damaged before".to_owned()));
        }
        if policy != ReadPolicy::Always
            && let Sample::Fits(read) = self.sample(policy, budget)
        {
            return Ok(Checked::Sound(read));
        }
        let checked = match self.read_all(owner, limits) {
            Err(StoreError::Damaged { reason, .. }) => Ok(Checked::Damaged(reason)),
            Err(StoreError::Refused(refusal)) => Ok(Checked::Damaged(refusal.to_string())),
            Err(StoreError::Io { doing, entry, errno }) if is_damage(errno) => {
                Ok(Checked::Damaged(format!("{entry}: cannot {doing}: {errno}")))
            }
            other => other.map(Checked::Sound),
        };
        match &checked {
            Ok(Checked::Sound(_)) => {}
            // The time by which a sample judges was set anew for a reading that showed nothing good.
            Ok(Checked::Damaged(reason)) => {
                let marked = self.condemn(reason);
                marked.or_else(|_| self.unsettle())?;
            }
            Err(_) => self.unsettle()?,
        }
        checked
    }

    /// Makes the tree newer than what describes it, so that no sample fits before everything is read again.
    fn unsettle(&self) -> Result<(), StoreError> {
        let failed = |errno| StoreError::io("set the time of", TREE)(errno);
        let meta = rustix::fs::statat(&self.dir, META, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let root = beneath::open_dir(&self.dir, TREE.as_bytes()).map_err(failed)?;
        for _ in 0..TICKS_MAX {
            let stat = rustix::fs::fstat(&root).map_err(failed)?;
            if is_newer(&stat, &meta) {
                return Ok(());
            }
            // The mode that it has: that sets the time of change and nothing else. The kernel's clock for files goes in
            // steps of some milliseconds.
            rustix::fs::fchmod(&root, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(failed)?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(failed(Errno::TIMEDOUT))
    }

    fn sample(&self, policy: ReadPolicy, budget: Budget) -> Sample {
        self.try_sample(policy, budget).map_or(Sample::Suspicious, Sample::Fits)
    }

    /// None: something does not fit, or cannot be read.
    fn try_sample(&self, policy: ReadPolicy, budget: Budget) -> Option<ReadBack> {
        let meta = beneath::open_file(&self.dir, META.as_bytes()).ok()?;
        let sealed = rustix::fs::fstat(&meta).ok()?;
        let bytes = read_capped(File::from(meta), 64 << 10).ok()?;
        let meta: TreeMeta = record::read(META, &bytes).ok()?;
        let root = beneath::open_dir(&self.dir, TREE.as_bytes()).ok()?;
        if meta.blake3 != self.object || is_newer(&rustix::fs::fstat(&root).ok()?, &sealed) {
            return None;
        }
        let list = Reader::open(&self.dir)?;
        let list_is_newer = list.stats()?.iter().any(|stat| is_newer(stat, &sealed));
        if list_is_newer || list.count() == 0 {
            return None;
        }
        let with_bytes = policy == ReadPolicy::Sampled;
        let how = if with_bytes { HowRead::Sample } else { HowRead::Attributes };
        let mut read = ReadBack { how, files: 0, bytes: 0 };
        for number in drawn(list.count(), budget.files)? {
            let listed = list.get(number)?;
            let left = if with_bytes { budget.bytes.saturating_sub(read.bytes) } else { 0 };
            read.files += 1;
            read.bytes += fits(&root, &listed, &sealed, left)?;
        }
        Some(read)
    }

    /// Reads everything; the object's own name decides.
    fn read_all(&self, owner: Owner, limits: Limits) -> Result<ReadBack, StoreError> {
        let name = self.object.to_string();
        let damaged = |reason: &str| StoreError::Damaged { entry: name.clone(), reason: reason.to_owned() };
        let meta = beneath::open_file(&self.dir, META.as_bytes()).map_err(StoreError::io("open", META))?;
        // Before the reading: what changes from here on is newer than this again.
        touch(&meta).map_err(StoreError::io("set the time of", META))?;
        let bytes = read_capped(File::from(meta), 64 << 10).map_err(StoreError::io("read", META))?;
        let meta: TreeMeta = record::read(META, &bytes)?;
        let root = beneath::open_dir(&self.dir, TREE.as_bytes()).map_err(StoreError::io("open", TREE))?;
        // What a job left may be larger than an import may be.
        let limits = Limits { bytes_max: limits.bytes_max.max(meta.bytes), ..limits };
        // The store's digest covers whatever the narrower shapes demand.
        let mut sealer = Sealer::new(owner, Shape::Layer, limits, false);
        sealer.list_to(Sink::digest());
        let (sealed, list) = sealer.seal_listed(root)?;
        if sealed.digest.blake3 != self.object {
            return Err(damaged(&format!("its digest is {}", sealed.digest.blake3)));
        }
        if meta.tree_sha256 != sealed.digest.sha256 || meta.blake3 != self.object {
            return Err(damaged("its meta file is of another tree"));
        }
        if list != Some(file_list::digests(&self.dir).map_err(StoreError::io("read", file_list::FILES))?) {
            return Err(damaged("its list of files is another tree's"));
        }
        Ok(ReadBack { how: HowRead::All, files: sealed.entries, bytes: sealed.bytes })
    }
}

/// Whether an error says something of the object and not of this process.
fn is_damage(errno: Errno) -> bool {
    !matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR)
}

/// Whether something was changed after the object was finished.
fn is_newer(stat: &Stat, sealed: &Stat) -> bool {
    (stat.st_ctime, stat.st_ctime_nsec) > (sealed.st_ctime, sealed.st_ctime_nsec)
}

/// Looks at one name, and hashes the file if it is not larger than what may still be hashed. Says how much that was;
/// nothing if it does not fit.
fn fits(root: &OwnedFd, listed: &Listed, sealed: &Stat, bytes_left: u64) -> Option<u64> {
    let file = beneath::open_file(root, &listed.path).ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if is_newer(&stat, sealed) {
        return None;
    }
    let kind = FileType::from_raw_mode(stat.st_mode);
    let Some((bytes, digest)) = listed.file else {
        return (kind == FileType::Directory).then_some(0);
    };
    if kind != FileType::RegularFile || u64::try_from(stat.st_size).ok()? != bytes {
        return None;
    }
    if bytes > bytes_left {
        return Some(0);
    }
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; usize::try_from(bytes.clamp(1, 64 << 10)).ok()?];
    let mut file = File::from(file);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(buffer.get(..count)?),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return None,
        };
    }
    (hasher.finalize().as_bytes() == digest.as_bytes()).then_some(bytes)
}

/// Numbers below `count`, at most `wanted`: all of them if that is enough, else drawn at random.
fn drawn(count: u64, wanted: u64) -> Option<Vec<u64>> {
    if count <= wanted {
        return Some((0..count).collect());
    }
    let mut numbers = Vec::new();
    for _ in 0..wanted {
        let mut bytes = [0_u8; 8];
        // So few bytes come whole (getrandom(2)).
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).ok()?;
        numbers.push(u64::from_ne_bytes(bytes) % count);
    }
    Some(numbers)
}
