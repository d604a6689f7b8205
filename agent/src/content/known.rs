//! Which content a project has: an empty file for each, named by hashes. Its modification time is its last use.

use super::{ContentError, Result, name};
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, Name};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, fsync, mkdirat, openat, statat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
const RECORD: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
/// A use is remembered once in this time, in seconds: a record that is asked for often is not written often.
const TOUCH_SECONDS: u64 = 3600;

/// The records of all projects.
#[derive(Debug)]
pub(super) struct Known {
    dir: OwnedFd,
    max: u64,
    /// How many each project has; counted when it is first asked.
    counts: Mutex<HashMap<String, u64>>,
}

/// Makes a directory below another one and opens it.
pub(super) fn below(dir: impl AsFd, name: &str) -> rustix::io::Result<OwnedFd> {
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
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The names in a directory that are ours.
pub(super) fn names(dir: impl AsFd) -> rustix::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if let Ok(text) = entry.file_name().to_str()
            && name::is_ours(text)
        {
            names.push(text.to_owned());
        }
    }
    Ok(names)
}

impl Known {
    pub(super) fn open(dir: &OwnedFd, max: u64) -> std::io::Result<Self> {
        Ok(Self { dir: below(dir, "known")?, max, counts: Mutex::default() })
    }

    /// Whether the project has it. Counts as a use.
    pub(super) fn has(&self, project: &Name, content: &Content) -> bool {
        let path = format!("{}/{}", name::of_project(project), name::of_content(content));
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

    /// Records it. Durable when it returns.
    pub(super) fn record(&self, project: &Name, content: &Content) -> Result<()> {
        if self.has(project, content) {
            return Ok(());
        }
        let failed = |e: Errno| ContentError::io("the record of a content", e);
        let project = name::of_project(project);
        let dir = below(&self.dir, &project).map_err(failed)?;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = match counts.get(&project) {
            Some(count) => *count,
            None => names(&dir).map_err(failed)?.len() as u64,
        };
        if count >= self.max {
            let text = format!("the project has {count} contents, and no more are kept");
            return Err(ContentError::new(Code::AdmissionBusy, text));
        }
        let file = openat(&dir, name::of_content(content), RECORD, Mode::from_raw_mode(0o600));
        let file = file.map_err(failed)?;
        fsync(&file).and_then(|()| fsync(&dir)).map_err(failed)?;
        counts.insert(project, count + 1);
        Ok(())
    }

    /// Removes what was not used for so long.
    pub(super) fn sweep(&self, age: Duration) {
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
