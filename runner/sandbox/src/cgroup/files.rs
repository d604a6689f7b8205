//! Files of control groups: written, and read back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The kernel rounds bytes down to pages, of which the largest that it has is this.
pub(super) const PAGE_BYTES_MAX: u64 = 65_536;

/// Writes a limit in bytes and reads it back; the kernel rounds down to pages.
pub(super) fn write_bytes(path: &Path, bytes: u64) -> io::Result<()> {
    write(path.to_owned(), &bytes.to_string())?;
    let set = number(path)?;
    if set <= bytes && bytes - set < PAGE_BYTES_MAX {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(rustix::io::Errno::RANGE.raw_os_error()))
    }
}

pub(super) fn write(path: PathBuf, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

/// Writes a limit and reads it back: a limit that is not in force is worse than none.
pub(super) fn write_exact(path: &Path, text: &str) -> io::Result<()> {
    write(path.to_owned(), text)?;
    if fs::read_to_string(path)?.trim() == text {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(rustix::io::Errno::RANGE.raw_os_error()))
    }
}

pub(super) fn number(path: &Path) -> io::Result<u64> {
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

pub(super) fn field(path: &Path, key: &str) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let value = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
    let value = value.ok_or_else(|| io::Error::other(format!("{} has no field {key}", path.display())))?;
    value.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_takes_whole_keys_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("events");
        fs::write(&file, "oom_kill_disable 0\noom_kill 3\n").unwrap();
        assert_eq!(field(&file, "oom_kill").unwrap(), 3);
        assert!(field(&file, "oom").is_err());
    }
}
