//! Directories that somebody else may be able to rename things in: everything by descriptor, nothing replaced.
//!
//! Root may be asked to write into a user's directory. Between two system calls that user can swap a name for
//! a link or for a directory of his own; so a directory is made, opened without following, checked to be ours,
//! filled through its descriptor, and after the rename compared with what then has its name.

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, fstat, linkat, mkdirat, openat,
    renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const NEW: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Directories in one another below one of ours: those of an output, and two around it.
const DEPTH_MAX: usize = ampoule_store::DEPTH_MAX + 2;

/// An open directory.
#[derive(Debug)]
pub(crate) struct Place(OwnedFd);

impl Place {
    /// Opens a directory that is there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(openat(CWD, path, DIR, Mode::empty())?))
    }

    /// Makes a directory and opens it; what was opened must be ours.
    pub(crate) fn make(&self, name: &str) -> io::Result<Self> {
        mkdirat(&self.0, name, Mode::from_raw_mode(0o755))?;
        let made = Self(openat(&self.0, name, DIR.union(OFlags::NOFOLLOW), Mode::empty())?);
        let stat = fstat(&made.0)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(swapped(name));
        }
        Ok(made)
    }

    /// The directory as a descriptor.
    pub(crate) fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    /// Makes a new file.
    pub(crate) fn create(&self, name: &str, mode: u32) -> io::Result<File> {
        Ok(File::from(openat(&self.0, name, NEW, Mode::from_raw_mode(mode))?))
    }

    /// Writes a new file, durable once its directory is.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.create(name, 0o644)?;
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Gives a file of this directory another name, or writes its bytes again where the file system has no such thing.
    pub(crate) fn write_also(&self, name: &str, first: &str, bytes: &[u8]) -> io::Result<()> {
        match linkat(&self.0, first, &self.0, name, AtFlags::empty()) {
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => self.write(name, bytes),
            other => Ok(other?),
        }
    }

    /// Writes a file in place of an older one of the same name, which is never written to.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let aside = format!(".{name}.{}", std::process::id());
        let _ = unlinkat(&self.0, &aside, AtFlags::empty());
        self.write(&aside, bytes)?;
        Ok(renameat(&self.0, &aside, &self.0, name)?)
    }

    /// Gives a directory of ours its final name: new, or that of an empty directory.
    pub(crate) fn publish(&self, aside: &str, made: &Self, name: &str) -> io::Result<()> {
        match renameat_with(&self.0, aside, &self.0, name, RenameFlags::NOREPLACE) {
            // Replaces an empty directory, and fails for anything else.
            Err(Errno::EXIST) => {
                made.be_like(&statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?)?;
                renameat(&self.0, aside, &self.0, name)?;
            }
            other => other?,
        }
        let (meant, found) = (fstat(&made.0)?, statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW)?);
        if (meant.st_dev, meant.st_ino) != (found.st_dev, found.st_ino) {
            return Err(swapped(name));
        }
        self.sync()
    }

    /// Takes over who may enter a directory; only root can also take over whose it is.
    fn be_like(&self, other: &Stat) -> io::Result<()> {
        if rustix::process::geteuid().is_root() {
            let (uid, gid) = (Uid::from_raw(other.st_uid), Gid::from_raw(other.st_gid));
            rustix::fs::fchown(&self.0, Some(uid), Some(gid))?;
        }
        Ok(rustix::fs::fchmod(&self.0, Mode::from_raw_mode(other.st_mode & 0o7777))?)
    }

    /// Makes the directory's names durable.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }

    /// Removes a directory that was not finished, as far as it is still the one that we made.
    pub(crate) fn discard(&self, aside: &str, made: &Self) {
        let same = match (fstat(&made.0), statat(&self.0, aside, AtFlags::SYMLINK_NOFOLLOW)) {
            (Ok(meant), Ok(found)) => (meant.st_dev, meant.st_ino) == (found.st_dev, found.st_ino),
            _ => false,
        };
        if same && made.clear(DEPTH_MAX).is_ok() {
            let _ = unlinkat(&self.0, aside, AtFlags::REMOVEDIR);
        }
    }

    fn clear(&self, depth: usize) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                entries.push((entry.file_name().to_owned(), entry.file_type()));
            }
        }
        for (name, kind) in entries {
            if kind == FileType::Directory && depth > 0 {
                Self(openat(&self.0, &name, DIR.union(OFlags::NOFOLLOW), Mode::empty())?).clear(depth - 1)?;
                unlinkat(&self.0, &name, AtFlags::REMOVEDIR)?;
            } else {
                unlinkat(&self.0, &name, AtFlags::empty())?;
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
