//! What is left out of a directory: patterns with the meaning of .gitignore (gitignore(5)).
//!
//! The last pattern that matches decides; one with `!` takes back in. A directory that is left out is not entered, so
//! nothing in it can be taken back in. Patterns are one file's at the top of the directory; no file named
//! `.gitignore` is read, and none of Git's own defaults hold.

use gix_glob::pattern::{Case, Mode};
use gix_glob::{Pattern, wildmatch};

/// Patterns in the order in which they were written.
#[derive(Debug, Clone, Default)]
pub struct Excludes(Vec<Pattern>);

impl Excludes {
    /// Takes patterns that [`check_pattern`] accepts. Another one matches nothing.
    pub fn new(patterns: &[String]) -> Self {
        Self(patterns.iter().filter_map(|text| Pattern::from_bytes(text.as_bytes())).collect())
    }

    /// Whether a path below the directory (components joined by `/`) is left out.
    pub fn has(&self, path: &[u8], is_dir: bool) -> bool {
        let base = path.iter().rposition(|byte| *byte == b'/').map(|at| at + 1);
        let deciding = self.0.iter().rev().find(|pattern| {
            let mode = wildmatch::Mode::NO_MATCH_SLASH_LITERAL;
            pattern.matches_repo_relative_path(path.into(), base, Some(is_dir), Case::Sensitive, mode)
        });
        deciding.is_some_and(|pattern| !pattern.mode.contains(Mode::NEGATIVE))
    }
}

/// Refuses what would be no pattern in a .gitignore, or another one than it seems.
///
/// # Errors
/// What is wrong and what to write.
pub fn check_pattern(text: &str) -> Result<(), &'static str> {
    let escaped = text.bytes().rev().skip(1).take_while(|byte| *byte == b'\\').count() % 2 == 1;
    let open_escape = text.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
    if text.trim_matches(['!', '/']).is_empty() {
        return Err("it names nothing; write a pattern such as \"target/\"");
    }
    if text.starts_with('#') {
        return Err("it would be a comment; write \\\\# for a name that begins with '#'");
    }
    if text.chars().any(char::is_control) {
        return Err("it holds a control character; use '?' in its place");
    }
    if text.ends_with(' ') && !escaped {
        return Err("it ends with a blank, which would not count; write \\\\ and a blank, or none");
    }
    if open_escape {
        return Err("it ends with a backslash that escapes nothing; write two");
    }
    if Pattern::from_bytes(text.as_bytes()).is_none() {
        return Err("it is no pattern as in .gitignore");
    }
    Ok(())
}
