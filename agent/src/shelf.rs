//! Small records by project: a file each, named by hashes, whose modification time is its last use.
//!
//! What is guaranteed: no name that somebody has written is a path; a record that was put is there after a crash, whole or
//! not readable, and one that is not readable is none.

use ampoule_spec::Name;
use aws_lc_rs::digest::{SHA256, digest};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, fsync, mkdirat, openat,
    statat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK);
const WRITE: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
/// A use is remembered once in this time, in seconds: a record that is asked for often is not written often.
const TOUCH_SECONDS: u64 = 3600;
/// The largest record, in bytes.
const RECORD_BYTES_MAX: u64 = 64 << 10;

/// The name of a project's directory, or of what else somebody has named: 64 hexadecimal digits.
pub(crate) fn hashed(bytes: &[u8]) -> String {
    let mut name = String::with_capacity(64);
    for byte in digest(&SHA256, bytes).as_ref() {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// Whether a name is one that [`hashed`] gives.
pub(crate) fn is_ours(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Makes a directory below another one and opens it.
pub(crate) fn below(dir: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
    match mkdirat(&dir, name, Mode::from_raw_mode(0o700)) {
        Err(Errno::EXIST) => {}
        made => {
            made?;
            fsync(&dir)?;
        }
    }
    openat(&dir, name, DIR, Mode::empty())
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The names in a directory that are ours.
pub(crate) fn names(dir: impl AsFd) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if let Ok(text) = entry.file_name().to_str()
            && is_ours(text)
        {
            names.push(text.to_owned());
        }
    }
    Ok(names)
}

/// Why a record is not put.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotPut {
    /// The project has as many as are kept.
    #[error("the project has {0} records, and no more are kept")]
    TooMany(u64),
    /// A file of ours.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for NotPut {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// The records of all projects.
#[derive(Debug)]
pub(crate) struct Shelf {
    dir: OwnedFd,
    max: u64,
    /// How many each project has; counted when it is first asked.
    counts: Mutex<HashMap<String, u64>>,
}

impl Shelf {
    /// Opens the records in a directory, which is made below `parent`. A project has at most `max`.
    pub(crate) fn below(parent: impl AsFd, name: &str, max: u64) -> io::Result<Self> {
        Ok(Self { dir: below(parent, name)?, max, counts: Mutex::default() })
    }

    /// The same by its path.
    pub(crate) fn open(dir: &Path, max: u64) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(Self { dir: openat(CWD, dir, DIR, Mode::empty())?, max, counts: Mutex::default() })
    }

    fn path(project: &Name, name: &str) -> String {
        format!("{}/{name}", hashed(project.as_str().as_bytes()))
    }

    /// Whether the project has a record of this name, which [`hashed`] has given. Counts as a use.
    pub(crate) fn has(&self, project: &Name, name: &str) -> bool {
        let path = Self::path(project, name);
        let Ok(stat) = statat(&self.dir, &path, AtFlags::SYMLINK_NOFOLLOW) else { return false };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return false;
        }
        if u64::try_from(stat.st_mtime).is_ok_and(|used| used.saturating_add(TOUCH_SECONDS) < now()) {
            let time = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            let times = Timestamps { last_access: time, last_modification: time };
            // A use that is not remembered is remembered by the next one.
            let _ = utimensat(&self.dir, &path, &times, AtFlags::SYMLINK_NOFOLLOW);
        }
        true
    }

    /// What is written in a record. Counts as a use.
    pub(crate) fn read(&self, project: &Name, name: &str) -> Option<Vec<u8>> {
        if !self.has(project, name) {
            return None;
        }
        let file = openat(&self.dir, Self::path(project, name), READ, Mode::empty()).ok()?;
        let mut bytes = Vec::new();
        File::from(file).take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
        (bytes.len() as u64 <= RECORD_BYTES_MAX).then_some(bytes)
    }

    /// Puts a record in the place of the one before. Durable when it returns.
    pub(crate) fn put(&self, project: &Name, name: &str, bytes: &[u8]) -> Result<(), NotPut> {
        if bytes.len() as u64 > RECORD_BYTES_MAX {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
        }
        let project = hashed(project.as_str().as_bytes());
        let dir = below(&self.dir, &project)?;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).is_err();
        let count = match counts.get(&project) {
            Some(count) => *count,
            None => names(&dir)?.len() as u64,
        };
        if is_new && count >= self.max {
            return Err(NotPut::TooMany(count));
        }
        // In place: what a crash leaves half is not readable, and what is not readable is none.
        let mut file = File::from(openat(&dir, name, WRITE, Mode::from_raw_mode(0o600))?);
        file.set_len(0)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fsync(&dir)?;
        counts.insert(project, count + u64::from(is_new));
        Ok(())
    }

    /// Removes what was not used for so long.
    pub(crate) fn sweep(&self, age: Duration) {
        let oldest = now().saturating_sub(age.as_secs());
        for project in names(&self.dir).unwrap_or_default() {
            let Ok(dir) = openat(&self.dir, &project, DIR, Mode::empty()) else { continue };
            for record in names(&dir).unwrap_or_default() {
                let used = statat(&dir, &record, AtFlags::SYMLINK_NOFOLLOW).map(|stat| stat.st_mtime);
                if used.is_ok_and(|used| u64::try_from(used).is_ok_and(|used| used < oldest)) {
                    let _ = unlinkat(&dir, &record, AtFlags::empty());
                }
            }
            // Counted anew by the next record.
            self.counts.lock().unwrap_or_else(PoisonError::into_inner).remove(&project);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_of_one_project_replaced_counted_and_swept_by_its_last_use() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(&dir.path().join("s"), 2).unwrap();
        let project = |name: &str| Name::parse(name).unwrap();
        let (a, b) = (project("a"), project("b"));
        let (one, two, three) = (hashed(b"1"), hashed(b"2"), hashed(b"3"));
        shelf.put(&a, &one, b"x").unwrap();
        assert!(shelf.has(&a, &one) && !shelf.has(&b, &one));
        shelf.put(&a, &one, b"longer").unwrap();
        shelf.put(&a, &one, b"y").unwrap();
        assert_eq!(shelf.read(&a, &one).unwrap(), b"y");
        shelf.put(&a, &two, b"").unwrap();
        assert!(matches!(shelf.put(&a, &three, b""), Err(NotPut::TooMany(2))));
        // One that is there may be written anew, and another project has its own.
        shelf.put(&a, &two, b"z").unwrap();
        shelf.put(&b, &three, b"").unwrap();
        let large = vec![0; 65 << 10];
        assert!(matches!(shelf.put(&b, &one, &large), Err(NotPut::Io(_))) && !shelf.has(&b, &one));
        let path = dir.path().join("s").join(hashed(b"a")).join(&one);
        let old = std::time::SystemTime::now() - Duration::from_secs(7200);
        File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        shelf.sweep(Duration::from_secs(7000));
        assert!(!shelf.has(&a, &one) && shelf.has(&a, &two));
        shelf.put(&a, &three, b"").unwrap();
    }
}
