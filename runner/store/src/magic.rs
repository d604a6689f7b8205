//! Beginnings that other programs take for something else than a plain tar archive.

/// How many bytes of a source are looked at: a first header.
pub(crate) const LOOKED_AT: usize = 512;

/// What libarchive decompresses or decodes before it looks for a tar header (`archive_read_support_filter_*.c`), and
/// we do not read. The first name of a tar archive may begin so too: to read that as a name would be to read
/// the archive differently.
const BEGINNINGS: &[(&[u8], &str)] = &[
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
    (b"\x1f\x9d", "compress"),
    (b"\x04\"M\x18", "lz4"),
    (b"\x02!L\x18", "lz4"),
    (b"LZIP", "lzip"),
    (b"LRZI", "lrzip"),
    (b"\x89LZO", "lzop"),
    (b"\xed\xab\xee\xdb", "rpm"),
];

/// The format of a source that begins like this, if it is none that is read here.
pub(crate) fn unread(bytes: &[u8]) -> Option<&'static str> {
    if let Some((_, format)) = BEGINNINGS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some(format);
    }
    // Text may come before it, so that a newline in a name is enough.
    let text = bytes.iter().take(LOOKED_AT).position(|byte| *byte == 0).unwrap_or(bytes.len().min(LOOKED_AT));
    let mut lines = bytes.get(..text)?.split(|byte| matches!(byte, b'\n' | b'\r'));
    lines.any(|line| line.starts_with(b"begin ") || line.starts_with(b"begin-base64 ")).then_some("uuencode")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_formats_are_named_and_a_name_is_a_name() {
        assert_eq!(unread(b"LZIP\x01"), Some("lzip"));
        assert_eq!(unread(b"a\nbegin 644 b\n"), Some("uuencode"));
        assert_eq!(unread(b"beginning\0"), None);
        assert_eq!(unread(b"a\0\nbegin 644 b\n"), None);
        assert_eq!(unread(b""), None);
    }
}
