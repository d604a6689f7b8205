//! Directories that somebody else may be able to rename things in: everything by descriptor, nothing replaced.
//!
//! Root may be asked to write into a user's directory. Between two system calls that user can swap a name for
//! a link or for a directory of his own; so a directory is made, opened without following, checked to be ours,
//! filled through its descriptor, and after the rename compared with what then has its name.

use rustix::fs::{
    Advice, AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, fadvise, fstat, linkat,
    mkdirat, openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const NEW: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Directories in one another below one of ours: those of an output, and two around it.
const DEPTH_MAX: usize = ampoule_store::DEPTH_MAX + 2;

/// How many files are kept open until they are synced.
const UNSYNCED_MAX: usize = 32;

/// An open directory.
#[derive(Debug)]
pub(crate) struct Place {
    dir: OwnedFd,
    /// What was written here and is not durable yet.
    unsynced: RefCell<Vec<File>>,
}

impl Place {
    fn of(dir: OwnedFd) -> Self {
        Self { dir, unsynced: RefCell::default() }
    }

    /// Opens a directory that is there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::of(openat(CWD, path, DIR, Mode::empty())?))
    }

    /// Makes a directory and opens it; what was opened must be ours.
    pub(crate) fn make(&self, name: &str) -> io::Result<Self> {
        mkdirat(&self.dir, name, Mode::from_raw_mode(0o755))?;
        let made = Self::of(openat(&self.dir, name, DIR.union(OFlags::NOFOLLOW), Mode::empty())?);
        let stat = fstat(&made.dir)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(swapped(name));
        }
        Ok(made)
    }

    /// The directory as a descriptor.
    pub(crate) fn into_descriptor(self) -> OwnedFd {
        self.dir
    }

    /// Makes a new file.
    pub(crate) fn create(&self, name: &str, mode: u32) -> io::Result<File> {
        Ok(File::from(openat(&self.dir, name, NEW, Mode::from_raw_mode(mode))?))
    }

    /// Writes a new file, durable once its directory is [synced](Self::sync).
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.create(name, 0o644)?;
        file.write_all(bytes)?;
        self.unsynced.borrow_mut().push(file);
        if self.unsynced.borrow().len() >= UNSYNCED_MAX { self.sync_files() } else { Ok(()) }
    }

    /// Makes what was written here durable. All begin to be written before the first is waited for: a journal that commits one then
    /// commits all, where each alone would have a commit of its own.
    fn sync_files(&self) -> io::Result<()> {
        let files = self.unsynced.take();
        for file in &files {
            // The kernel begins to write what it is told to drop; where it does not, it does when it is waited for.
            let _ = fadvise(file, 0, None, Advice::DontNeed);
        }
        files.iter().try_for_each(File::sync_all)
    }

    /// Gives a file of this directory another name, or writes its bytes again where the file system has no such thing.
    pub(crate) fn write_also(&self, name: &str, first: &str, bytes: &[u8]) -> io::Result<()> {
        match linkat(&self.dir, first, &self.dir, name, AtFlags::empty()) {
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => self.write(name, bytes),
            other => Ok(other?),
        }
    }

    /// Writes a file in place of an older one of the same name, which is never written to.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let aside = format!(".{name}.{}", std::process::id());
        let _ = unlinkat(&self.dir, &aside, AtFlags::empty());
        self.write(&aside, bytes)?;
        self.sync_files()?;
        Ok(renameat(&self.dir, &aside, &self.dir, name)?)
    }

    /// Gives a directory of ours its final name: new, or that of an empty directory.
    pub(crate) fn publish(&self, aside: &str, made: &Self, name: &str) -> io::Result<()> {
        match renameat_with(&self.dir, aside, &self.dir, name, RenameFlags::NOREPLACE) {
            // Replaces an empty directory, and fails for anything else.
            Err(Errno::EXIST) => {
                made.be_like(&statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?)?;
                renameat(&self.dir, aside, &self.dir, name)?;
            }
            other => other?,
        }
        let (meant, found) = (fstat(&made.dir)?, statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?);
        if (meant.st_dev, meant.st_ino) != (found.st_dev, found.st_ino) {
            return Err(swapped(name));
        }
        self.sync()
    }

    /// Takes over who may enter a directory; only root can also take over whose it is.
    fn be_like(&self, other: &Stat) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = (Uid::from_raw(other.st_uid), Gid::from_raw(other.st_gid));
            rustix::fs::fchown(&self.dir, Some(uid), Some(gid))?;
        }
        Ok(rustix::fs::fchmod(&self.dir, Mode::from_raw_mode(other.st_mode & 0o7777))?)
    }

    /// Makes the files that were written here durable, and the directory's names.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.sync_files()?;
        Ok(rustix::fs::fsync(&self.dir)?)
    }

    /// Removes a directory that was not finished, as far as it is still the one that we made.
    pub(crate) fn discard(&self, aside: &str, made: &Self) {
        let same = match (fstat(&made.dir), statat(&self.dir, aside, AtFlags::SYMLINK_NOFOLLOW)) {
            (Ok(meant), Ok(found)) => (meant.st_dev, meant.st_ino) == (found.st_dev, found.st_ino),
            _ => false,
        };
        if same && made.clear(DEPTH_MAX).is_ok() {
            let _ = unlinkat(&self.dir, aside, AtFlags::REMOVEDIR);
        }
    }

    fn clear(&self, depth: usize) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                entries.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        for (name, kind) in entries {
            if kind == FileType::Directory && depth > 0 {
                let within = openat(&self.dir, &name, DIR.union(OFlags::NOFOLLOW), Mode::empty())?;
                Self::of(within).clear(depth - 1)?;
                unlinkat(&self.dir, &name, AtFlags::REMOVEDIR)?;
            } else {
                unlinkat(&self.dir, &name, AtFlags::empty())?;
            }
        }
        Ok(())
    }
}

fn swapped(name: &str) -> io::Error {
    io::Error::other(format!("{name} was exchanged while it was being made; use a directory of your own"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn link_in_the_way_is_neither_followed_nor_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "theirs").unwrap();
        let place = Place::open(dir.path()).unwrap();
        symlink(&victim, dir.path().join("new")).unwrap();
        assert!(place.write("new", b"ours").is_err());
        symlink(dir.path(), dir.path().join("d")).unwrap();
        assert!(place.make("d").is_err());
        symlink(&victim, dir.path().join("key.pub")).unwrap();
        place.replace("key.pub", b"key").unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "theirs");
        assert_eq!(std::fs::read_to_string(dir.path().join("key.pub")).unwrap(), "key");
    }

    #[test]
    fn exchanged_directory_is_noticed_and_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(dir.path()).unwrap();
        let made = place.make("aside").unwrap();
        std::fs::rename(dir.path().join("aside"), dir.path().join("stolen")).unwrap();
        std::fs::create_dir(dir.path().join("aside")).unwrap();
        std::fs::write(dir.path().join("aside/theirs"), "x").unwrap();
        place.discard("aside", &made);
        assert!(dir.path().join("aside/theirs").exists());
        assert!(place.publish("aside", &made, "out").is_err());
    }

    #[test]
    fn publish_takes_a_new_or_empty_name_only() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::open(dir.path()).unwrap();
        for (name, good) in [("new", true), ("empty", true), ("full", false)] {
            if name != "new" {
                std::fs::create_dir(dir.path().join(name)).unwrap();
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o710);
                std::fs::set_permissions(dir.path().join(name), mode).unwrap();
            }
            if name == "full" {
                std::fs::write(dir.path().join("full/x"), "x").unwrap();
            }
            let made = place.make("aside").unwrap();
            made.write("f", b"f").unwrap();
            assert_eq!(place.publish("aside", &made, name).is_ok(), good, "{name}");
            place.discard("aside", &made);
            assert!(!dir.path().join("aside").exists());
            let mode = std::fs::metadata(dir.path().join(name)).unwrap().mode() & 0o777;
            assert_eq!(mode == 0o710, name != "new");
        }
    }
}
