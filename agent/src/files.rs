//! Small files of the caller's, bounded before they are in memory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

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
