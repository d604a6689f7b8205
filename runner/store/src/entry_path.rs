//! Names from archives, normalised once.

use crate::limits::{DEPTH_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX};
use crate::refusal::{Refusal, shown};

/// A path below a tree's root: plain components joined by `/`; empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EntryPath {
    bytes: Vec<u8>,
    /// The name was written as a directory's: it ended with `/` or `/.`.
    pub(crate) as_directory: bool,
}

impl EntryPath {
    /// The one place where an archive's spelling of a name becomes a path.
    ///
    /// `.` and empty components vanish, wherever they are; everything else that is not plain is refused.
    pub(crate) fn parse(raw: &[u8]) -> Result<Self, Refusal> {
        let entry = || shown(raw);
        if raw.is_empty() {
            return Err(Refusal::EmptyName { entry: entry() });
        }
        if raw.contains(&0) {
            return Err(Refusal::NulInName { entry: entry() });
        }
        if raw.len() > PATH_BYTES_MAX {
            return Err(Refusal::PathTooLong { entry: entry() });
        }
        if raw.starts_with(b"/") {
            return Err(Refusal::AbsolutePath { entry: entry() });
        }
        let mut bytes = Vec::with_capacity(raw.len());
        let mut depth = 0_usize;
        let mut as_directory = false;
        for component in raw.split(|byte| *byte == b'/') {
            as_directory = matches!(component, b"" | b".");
            if as_directory {
                continue;
            }
            if component == b".." {
                return Err(Refusal::ParentPath { entry: entry() });
            }
            if component.len() > NAME_BYTES_MAX {
                return Err(Refusal::NameTooLong { entry: entry() });
            }
            depth += 1;
            if depth > DEPTH_MAX {
                return Err(Refusal::TooDeep { entry: entry() });
            }
            if !bytes.is_empty() {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(component);
        }
        Ok(Self { bytes, as_directory })
    }

    /// Parent and last component; nothing for the root.
    pub(crate) fn split(&self) -> Option<(&[u8], &[u8])> {
        split(&self.bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Parent and last component of normalised bytes; nothing for the root.
pub(crate) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => Some((path.get(..at)?, path.get(at + 1..)?)),
        None => Some((&[], path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(raw: &[u8]) -> &'static str {
        EntryPath::parse(raw).unwrap_err().name()
    }

    #[test]
    fn parse_spellings_of_one_path_are_one_path() {
        for raw in ["a/b", "./a/b", "a//b", "a/./b", "a/b/", "a/b/.", "./a//./b//", "a/b/./"] {
            let path = EntryPath::parse(raw.as_bytes()).unwrap();
            assert_eq!(path.bytes(), b"a/b", "{raw}");
            assert_eq!(path.split(), Some((&b"a"[..], &b"b"[..])));
            assert_eq!(path.as_directory, !raw.ends_with('b'), "{raw}");
        }
        for raw in ["./", ".", ".//."] {
            assert_eq!(EntryPath::parse(raw.as_bytes()).unwrap().split(), None);
        }
        assert_eq!(EntryPath::parse(b"a").unwrap().split(), Some((&b""[..], &b"a"[..])));
    }

    #[test]
    fn parse_what_is_not_plain_is_refused_by_name() {
        assert_eq!(name(b""), "empty_name");
        assert_eq!(name(b"/"), "absolute_path");
        assert_eq!(name(b"/etc/passwd"), "absolute_path");
        assert_eq!(name(b".."), "parent_path");
        assert_eq!(name(b"a/../b"), "parent_path");
        assert_eq!(name(b"a/.."), "parent_path");
        assert_eq!(name(b"a\0b"), "nul_in_name");
        assert_eq!(name(&[b'a'; 256]), "name_too_long");
        assert_eq!(name(&b"a/".repeat(65)), "too_deep");
        assert_eq!(name(&b"ab/".repeat(1366)), "path_too_long");
        assert!(EntryPath::parse(&b"a/".repeat(64)).is_ok());
        assert!(EntryPath::parse(b"..a/b..").is_ok());
    }

    #[test]
    fn shown_names_have_no_control_character_and_an_end() {
        assert_eq!(shown(b"a\x1b[2J\n\xff"), "a\\x1b[2J\\n\\xff");
        assert!(shown(&[b'a'; 5000]).len() < 300);
    }
}
