//! Paths inside a sandbox.

use serde::{Deserialize, Deserializer, Serialize, de};
use std::fmt;

/// Why a text is not a path inside a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with `/`.
    #[error("{0:?} is not absolute; begin it with '/'")]
    Relative(String),
    /// It has an empty, `.` or `..` component, or a trailing slash.
    #[error("{0:?} is not in normal form; write it without '.', '..', '//' or a trailing '/'")]
    NotNormal(String),
    /// A component has more than 255 bytes, or the whole has more than 4,000.
    #[error("the path is too long: at most 255 bytes a component and 4000 in all")]
    TooLong,
    /// It holds a control character.
    #[error("{0:?} holds a control character")]
    Control(String),
}

/// An absolute path inside a sandbox in normal form: no `.`, `..`, empty component or control character.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SandboxPath(String);

impl SandboxPath {
    /// Checks a text and takes it as a path.
    ///
    /// # Errors
    /// [`PathError`] with the rule that the text breaks.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let shown = || text.chars().take(80).collect::<String>();
        let Some(rest) = text.strip_prefix('/') else {
            return Err(PathError::Relative(shown()));
        };
        if text.len() > 4000 || rest.split('/').any(|c| c.len() > 255) {
            return Err(PathError::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(PathError::Control(shown()));
        }
        if !rest.is_empty() && rest.split('/').any(|c| matches!(c, "" | "." | "..")) {
            return Err(PathError::NotNormal(shown()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The path as text, beginning with `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path relative to the sandbox's root, empty for the root itself.
    pub fn relative(&self) -> &str {
        self.0.strip_prefix('/').unwrap_or(&self.0)
    }

    /// The components from the root down.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.relative().split('/').filter(|c| !c.is_empty())
    }

    /// Whether `self` is `other` or lies beneath it.
    pub fn is_within(&self, other: &Self) -> bool {
        let mut mine = self.components();
        other.components().all(|c| mine.next() == Some(c))
    }
}

impl fmt::Display for SandboxPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SandboxPath {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_escapes_are_refused() {
        for text in ["", "a", "/..", "/a/../b", "/a//b", "/a/", "/./a", "/a\0b", "/a\nb"] {
            assert!(SandboxPath::parse(text).is_err(), "{text:?}");
        }
        assert!(SandboxPath::parse(&format!("/{}", "a".repeat(256))).is_err());
        assert!(SandboxPath::parse("/build/src").is_ok());
        assert!(SandboxPath::parse("/").is_ok());
    }

    #[test]
    fn is_within_compares_components_not_prefixes() {
        let p = |t| SandboxPath::parse(t).unwrap();
        assert!(p("/build/src").is_within(&p("/build")));
        assert!(p("/build").is_within(&p("/build")));
        assert!(!p("/builder").is_within(&p("/build")));
        assert!(p("/x").is_within(&p("/")));
    }
}
