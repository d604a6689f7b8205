//! What can go wrong on the launcher's side.

use crate::refusal::Refusal;
use ampoule_spec::Code;
use rustix::io::Errno;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The content breaks a rule.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The worker refused the content.
    #[error("{message}")]
    Worker {
        /// The code for the reply.
        code: Code,
        /// [`Refusal::name`], or `io`.
        name: String,
        /// For people.
        message: String,
    },
    /// The store's directory is not one that it may use.
    #[error("the store's directory {what}")]
    Directory {
        /// What is wrong with it.
        what: &'static str,
    },
    /// What lies in the store is not what was put there.
    #[error("the store's entry {entry} is damaged: {reason}")]
    Damaged {
        /// The file in the store.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Another import would leave too little room for what runs.
    #[error(
        "the store's file system has {free} bytes free and {reserve} of them are kept for the records of jobs; remove what \
         is not needed (ampoule store gc --max-size SIZE), or give the state directory more room"
    )]
    Full {
        /// Bytes that are free.
        free: u64,
        /// Bytes that imports leave.
        reserve: u64,
    },
    /// A system call failed.
    #[error("{entry}: cannot {doing} in the store: {errno}")]
    Io {
        /// What was to be done.
        doing: &'static str,
        /// To which entry.
        entry: String,
        /// Why not.
        errno: Errno,
    },
}

impl StoreError {
    /// The code for the reply.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Worker { code, .. } => *code,
            Self::Full { .. } | Self::Io { errno: Errno::NOSPC | Errno::DQUOT, .. } => Code::StoreFull,
            Self::Directory { .. } | Self::Damaged { .. } | Self::Io { .. } => Code::Internal,
        }
    }

    /// The refusal's bounded name, or `io`, `damaged`, `directory`, `full`.
    pub fn name(&self) -> &str {
        match self {
            Self::Refused(refusal) => refusal.name(),
            Self::Worker { name, .. } => name,
            Self::Directory { .. } => "directory",
            Self::Damaged { .. } => "damaged",
            Self::Full { .. } => "full",
            Self::Io { .. } => "io",
        }
    }

    /// For `map_err` on a system call on a file of the store's own.
    pub(crate) fn io(doing: &'static str, entry: &str) -> impl FnOnce(Errno) -> Self {
        let entry = entry.to_owned();
        move |errno| Self::Io { doing, entry, errno }
    }
}
