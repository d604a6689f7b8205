//! Why an export did not happen.

use crate::files::code_of;
use crate::inputs::InputError;
use ampoule_spec::Code;

/// Why an export did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// There is nothing that may leave: no provenance was released for it.
    #[error("nothing is exported: {reason}")]
    NotReleased {
        /// What is missing.
        reason: String,
    },
    /// The output directory is not what the run has left.
    #[error("nothing is exported: {reason}")]
    Changed {
        /// What differs.
        reason: String,
    },
    /// The registry.
    #[error(transparent)]
    Registry(#[from] InputError),
    /// The destination is not one that can be written.
    #[error("{reason}")]
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// A file cannot be read or written.
    #[error("{what} cannot be read or written")]
    File {
        /// Which.
        what: String,
        /// Why not.
        source: std::io::Error,
    },
}

impl ExportError {
    pub(super) fn refused(reason: String) -> Self {
        Self::Refused { reason }
    }

    pub(super) fn file(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::File { what: what.into(), source }
    }

    /// The bounded code.
    pub fn code(&self) -> Code {
        match self {
            Self::NotReleased { .. } | Self::Changed { .. } | Self::Refused { .. } => Code::ExportRefused,
            Self::File { source, .. } => code_of(source),
            // The registry's answers have codes of their own where something is brought out.
            Self::Registry(error) => match error.code() {
                Code::InputUnreachable => Code::ExportUnreachable,
                Code::InputSourceDenied => Code::ExportDenied,
                code @ (Code::FileUnusable | Code::FileFull) => code,
                _ => Code::ExportRefused,
            },
        }
    }
}
