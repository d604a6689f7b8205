//! Which wrapping tokens this agent has used, over restarts: by SHA-256, which gives nothing away of what is random.
//!
//! So that the daemon's own restart is told apart from somebody else who was first. What is lost of it is a false alarm, and no more.

use crate::vault::Memory;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The file, and the one that takes its place.
const FILE: &str = "unwrapped";
const NEXT: &str = "unwrapped.next";
/// How many are kept: those used last.
const KEPT: usize = 64;

/// The memory of a directory.
#[derive(Debug)]
pub(super) struct Unwrapped {
    dir: PathBuf,
    writing: Mutex<()>,
}

impl Unwrapped {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), writing: Mutex::default() }
    }

    fn known(&self) -> io::Result<Vec<String>> {
        match std::fs::read_to_string(self.dir.join(FILE)) {
            Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn add(&self, sha256: &str) -> io::Result<()> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // What cannot be read is begun anew.
        let mut known = self.known().unwrap_or_default();
        known.push(sha256.to_owned());
        let surplus = known.len().saturating_sub(KEPT);
        let text: String = known.iter().skip(surplus).flat_map(|line| [line.as_str(), "\n"]).collect();
        let (next, path) = (self.dir.join(NEXT), self.dir.join(FILE));
        let mut open = std::fs::File::options();
        let mut file = open.create(true).truncate(true).write(true).mode(0o600).open(&next)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(next, path)?;
        std::fs::File::open(&self.dir)?.sync_all()
    }
}

impl Memory for Unwrapped {
    fn used(&self, sha256: &str) {
        if let Err(error) = self.add(sha256) {
            tracing::warn!(
                %error,
                "that a wrapping token was used is not written down; after a restart it will look as if somebody else had"
            );
        }
    }

    fn has_used(&self, sha256: &str) -> bool {
        self.known().is_ok_and(|known| known.iter().any(|line| line == sha256))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_used_is_known_after_a_restart_to_its_owner_and_within_bounds() {
        let dir = tempfile::tempdir().unwrap();
        let before = Unwrapped::new(dir.path());
        assert!(!before.has_used("00"));
        for number in 0..=KEPT {
            before.used(&format!("{number:02}"));
        }
        let next = Unwrapped::new(dir.path());
        assert!(next.has_used("64") && next.has_used("01") && !next.has_used("00") && !next.has_used("6"));
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // What it says of anything else is no excuse for what somebody else has used.
        std::fs::write(dir.path().join(FILE), [0xff, b'\n']).unwrap();
        assert!(!next.has_used("64"));
        next.used("65");
        assert!(next.has_used("65"));
    }
}
