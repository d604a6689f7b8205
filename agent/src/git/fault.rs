//! Why objects of a repository cannot be had.

use crate::inputs::InputError;
use ampoule_spec::GitId;

/// Why an object cannot be had.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It is not there.
    Missing(GitId),
    /// It, or what it came in, is not accepted.
    Refused(String),
    /// A file cannot be read or written.
    File(std::io::Error),
    /// The run was cancelled.
    Stopped,
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Refused(reason)
    }
}

impl Fault {
    /// The error for whoever asked for `what`. A server that answered without an object has not told the truth; a
    /// repository here simply does not have it.
    pub(crate) fn of(self, what: &str, is_here: bool) -> InputError {
        let what = what.to_owned();
        match self {
            Self::Missing(id) if is_here => InputError::Missing {
                what,
                reason: format!("the repository does not have the object {id}; fetch it first"),
            },
            Self::Missing(id) => {
                InputError::OtherObjects { what, reason: format!("the answer does not have the object {id}") }
            }
            Self::Refused(reason) => InputError::Refused { what, reason },
            Self::File(source) => InputError::File { what, source },
            Self::Stopped => {
                InputError::Unreachable { url: what, reason: "cancelled".to_owned(), source: None }
            }
        }
    }

    /// Says where in the repository it was.
    pub(crate) fn at(self, path: &[u8]) -> Self {
        match self {
            Self::Refused(reason) => Self::Refused(format!("{}: {reason}", super::object::shown(path))),
            other => other,
        }
    }
}
