//! Small files of the caller's, bounded before they are in memory.

use crate::jobfile::JobFileError;
use ampoule_spec::Code;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The largest file in which an operator decides something, in bytes.
const OPERATORS_BYTES_MAX: u64 = 1 << 20;

/// Reads a text that decides something: root's or our own, and nobody else's to write.
///
/// # Errors
/// `file.unusable` with the remedy.
pub(crate) fn read_operators(path: &Path) -> Result<String, JobFileError> {
    let name = path.display().to_string();
    let unusable =
        |reason: String, remedy: &str| JobFileError::whole(Code::FileUnusable, &name, "", reason, remedy);
    let cannot = |e: io::Error| unusable(format!("cannot be read: {e}"), "");
    let file = File::open(path).map_err(cannot)?;
    let meta = file.metadata().map_err(cannot)?;
    let owner = meta.uid();
    if !meta.is_file() {
        return Err(unusable("not a file".to_owned(), ""));
    }
    if meta.mode() & 0o022 != 0 || owner != 0 && owner != rustix::process::geteuid().as_raw() {
        let reason = "belongs to somebody else or can be written by others, and they would decide";
        return Err(unusable(reason.to_owned(), "chown it to yourself or root, and chmod go-w"));
    }
    let bytes = read_capped(file, OPERATORS_BYTES_MAX).map_err(cannot)?;
    String::from_utf8(bytes)
        .map_err(|e| unusable(format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to()), ""))
}

/// Reads a whole file.
///
/// # Errors
/// As of opening and reading it; [`io::ErrorKind::FileTooLarge`] if it has more than `bytes_max` bytes.
pub fn read_file(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_capped(File::open(path)?, bytes_max)
}

/// Reads everything that is left of something.
///
/// # Errors
/// As [`read_file`].
pub fn read_capped(from: impl Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        let reason = format!("more than {bytes_max} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

/// The code of a local file that cannot be read or written.
pub fn code_of(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::FileFull,
        _ => Code::FileUnusable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_too_many_is_an_error() {
        assert_eq!(read_capped(&b"abc"[..], 3).unwrap(), b"abc");
        let error = read_capped(&b"abcd"[..], 3).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(read_capped(io::repeat(0), 1 << 10).is_err());
    }
}
