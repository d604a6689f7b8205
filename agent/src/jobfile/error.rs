//! What is wrong with a job file, where, and what to write instead.

use ampoule_spec::Code;
use std::fmt;

/// The most characters of a tenant's text that a message repeats.
const SHOWN_CHARS_MAX: usize = 80;

/// A place in a text file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: u32,
    /// The column, in characters.
    pub column: u32,
}

impl Position {
    /// The position of a byte offset in `text`.
    pub(crate) fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line = before.bytes().filter(|b| *b == b'\n').count();
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).saturating_add(1);
        Self { line: count(line), column: count(column) }
    }
}

/// One thing that is wrong with a job file or its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFileError {
    /// The bounded code; it decides the exit status.
    pub code: Code,
    /// The file, as the caller named it.
    pub file: String,
    /// Where; none when it belongs to no line, as for a missing `--param`.
    pub position: Option<Position>,
    /// The field, as in `step[0].timeout`; empty for the whole file.
    pub field: String,
    /// What is wrong.
    pub reason: String,
    /// What to write or do instead; may be empty.
    pub remedy: String,
}

impl JobFileError {
    /// An error that belongs to no line.
    pub(crate) fn whole(
        code: Code,
        file: &str,
        field: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            code,
            file: file.to_owned(),
            position: None,
            field: field.to_owned(),
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    /// The bounded code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The line, counted from 1.
    pub fn line(&self) -> Option<u32> {
        self.position.map(|p| p.line)
    }
}

impl fmt::Display for JobFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A file name may hold control bytes as well; a message never drives the terminal.
        for c in self.file.chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        if let Some(at) = self.position {
            write!(f, ":{}:{}", at.line, at.column)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.reason)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

impl std::error::Error for JobFileError {}

/// A tenant's text as a message repeats it: quoted, escaped and cut.
pub(crate) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{dots}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_one_line_with_place_field_and_remedy() {
        let mut error = JobFileError::whole(
            Code::JobInvalid,
            "job.toml",
            "step[0].timout",
            "unknown key",
            "did you mean \"timeout\"?",
        );
        error.position = Some(Position { line: 12, column: 3 });
        assert_eq!(
            error.to_string(),
            "job.toml:12:3: step[0].timout: unknown key; did you mean \"timeout\"?"
        );
    }

    #[test]
    fn position_counts_lines_and_characters_from_one() {
        assert_eq!(Position::of("", 0), Position { line: 1, column: 1 });
        assert_eq!(Position::of("a\néb", 4), Position { line: 2, column: 2 });
        assert_eq!(Position::of("a", 99), Position { line: 1, column: 2 });
    }

    #[test]
    fn shown_control_bytes_are_escaped_and_long_texts_cut() {
        assert_eq!(shown("a\u{1b}[2J"), "\"a\\u{1b}[2J\"");
        assert!(shown(&"x".repeat(500)).chars().count() < 90);
    }
}
