//! Whether somebody changed the host's `/usr` since a moment, by the change time of everything in it.
//!
//! The kernel sets a change time at every write to a file, and to a directory when a name in it comes, goes or is
//! renamed; nobody can set one (inode(7)), but whoever sets the clock back.

use crate::host_image::ALTERNATIVES;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

/// More entries than any distribution's `/usr` has.
const ENTRIES_MAX: u64 = 20_000_000;
/// Deeper than any path of a package: each level holds a descriptor.
const DEPTH_MAX: usize = 64;

/// A moment, as the file systems' own clock tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileTime(i64, u32);

impl FileTime {
    /// Now: whatever is written from the next tick on has a later change time.
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Self(now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or_default())
    }
}

/// What a look at the host's files has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostChanges {
    /// Entries that were looked at.
    pub entries: u64,
    /// The first one that was found changed.
    pub changed: Option<String>,
}

/// Looks at everything that `image = "host"` shows of the host: `/usr` and the alternatives, on their own file systems.
///
/// # Errors
/// Any errno of opening, listing or looking; `EOVERFLOW` if there is more than anybody would look at.
pub fn host_changes(since: FileTime) -> Result<HostChanges, Errno> {
    let mut found = HostChanges { entries: 0, changed: None };
    for place in ["/usr", ALTERNATIVES] {
        match openat(rustix::fs::CWD, place, DIRECTORY, Mode::empty()) {
            Ok(dir) => look(place, dir, since, &mut found)?,
            Err(Errno::NOENT) if place == ALTERNATIVES => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One directory whose names are still to be looked at.
struct Level {
    path: String,
    dir: OwnedFd,
    names: Dir,
}

fn look(place: &str, dir: OwnedFd, since: FileTime, found: &mut HostChanges) -> Result<(), Errno> {
    let (device, newer, _) = facts(&dir, c"", since)?;
    note(found, newer, || place.to_owned())?;
    let mut levels = vec![Level { path: place.to_owned(), names: Dir::read_from(&dir)?, dir }];
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { return Ok(()) };
        if found.changed.is_some() {
            return Ok(());
        }
        let Some(entry) = level.names.next() else {
            levels.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let path = || format!("{}/{}", level.path, name.to_string_lossy());
        let (on, newer, is_dir) = match facts(&level.dir, name, since) {
            Ok(facts) => facts,
            // It went away meanwhile, which its directory's own time says, too.
            Err(Errno::NOENT) => (device, true, false),
            Err(errno) => return Err(errno),
        };
        note(found, newer, path)?;
        // What is mounted below is not shown to a job.
        if is_dir && on == device {
            if depth >= DEPTH_MAX {
                return Err(Errno::OVERFLOW);
            }
            let path = path();
            let dir = openat(&level.dir, name, DIRECTORY, Mode::empty())?;
            levels.push(Level { path, names: Dir::read_from(&dir)?, dir });
        }
    }
}

fn note(found: &mut HostChanges, newer: bool, path: impl Fn() -> String) -> Result<(), Errno> {
    found.entries += 1;
    if found.entries > ENTRIES_MAX {
        return Err(Errno::OVERFLOW);
    }
    if newer && found.changed.is_none() {
        found.changed = Some(path());
    }
    Ok(())
}

/// The device it is on, whether its change time is later, whether it is a directory.
fn facts(dir: impl AsFd, name: &std::ffi::CStr, since: FileTime) -> Result<((u32, u32), bool, bool), Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    let stat = statx(dir, name, flags, StatxFlags::CTIME | StatxFlags::TYPE)?;
    let changed = FileTime(stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec);
    let is_dir = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Directory;
    Ok(((stat.stx_dev_major, stat.stx_dev_minor), changed > since, is_dir))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn changed(dir: &std::path::Path, since: FileTime) -> HostChanges {
        let mut found = HostChanges { entries: 0, changed: None };
        let place = dir.to_str().unwrap();
        let opened = openat(rustix::fs::CWD, place, DIRECTORY, Mode::empty()).unwrap();
        look(place, opened, since, &mut found).unwrap();
        found
    }

    #[test]
    fn every_kind_of_change_is_found_and_reading_is_none() {
        let world = tempfile::tempdir().unwrap();
        let dir = world.path().join("usr");
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("a/b/file"), "one").unwrap();
        fs::write(dir.join("a/other"), "two").unwrap();
        std::os::unix::fs::symlink("other", dir.join("a/link")).unwrap();
        let tick = || std::thread::sleep(std::time::Duration::from_millis(20));
        tick();
        let since = FileTime::now();
        fs::read(dir.join("a/b/file")).unwrap();
        assert_eq!(changed(&dir, since), HostChanges { entries: 6, changed: None });
        type Change = fn(&std::path::Path);
        let changes: [(&str, Change); 7] = [
            ("a/b/file", |dir| fs::write(dir.join("a/b/file"), "eno").unwrap()),
            ("a/other", |dir| {
                // Its old times are put back; the change time cannot be.
                let file = fs::File::options().write(true).open(dir.join("a/other")).unwrap();
                file.set_modified(file.metadata().unwrap().modified().unwrap()).unwrap();
            }),
            ("a/b", |dir| fs::write(dir.join("a/b/new"), "").unwrap()),
            ("a/b", |dir| fs::remove_file(dir.join("a/b/new")).unwrap()),
            ("a/b", |dir| {
                fs::rename(dir.join("a/b/file"), dir.join("a/b/name")).unwrap();
                fs::rename(dir.join("a/b/name"), dir.join("a/b/file")).unwrap();
            }),
            ("a/other", |dir| {
                fs::set_permissions(dir.join("a/other"), fs::Permissions::from_mode(0o600)).unwrap();
            }),
            ("a/b/file", |dir| fs::hard_link(dir.join("a/b/file"), dir.with_file_name("outside")).unwrap()),
        ];
        for (at, (path, change)) in changes.into_iter().enumerate() {
            tick();
            let since = FileTime::now();
            tick();
            change(&dir);
            let found = changed(&dir, since).changed;
            assert_eq!(found, Some(dir.join(path).to_str().unwrap().to_owned()), "change {at}");
        }
    }
}
