//! What the log does to its directory, one system call's worth at a time: a test plays back what is left of them when the
//! power is cut.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Where a log writes.
pub(super) trait Disk: Send {
    /// Makes a directory, mode 0750.
    fn make_dir(&mut self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o750).create(path)
    }

    /// Makes a file with these bytes, or makes it empty first.
    fn write(&mut self, path: &Path, bytes: &[u8]) -> io::Result<File> {
        let mut file = File::options().create(true).write(true).truncate(true).mode(0o640).open(path)?;
        file.write_all(bytes).map(|()| file)
    }

    /// Makes a file's bytes durable.
    fn sync(&mut self, file: &File, _path: &Path) -> io::Result<()> {
        file.sync_all()
    }

    /// Makes the names in a directory durable.
    fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    /// Renames a file over another.
    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    /// Removes a file.
    fn remove(&mut self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    /// Removes an empty directory.
    fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)
    }
}

/// The file system itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Real;

impl Disk for Real {}
