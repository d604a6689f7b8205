//! Why an input cannot be had.

use ampoule_spec::{Code, Sha256};

/// Why an input or image cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The URL is not one that is fetched.
    #[error("{url:?}: {reason}")]
    Url {
        /// The URL as it was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Policy does not let anything be fetched there.
    #[error("{url}: {reason}")]
    Denied {
        /// The URL, or the one that answered with a redirect.
        url: String,
        /// Why not, by which rule, and what to do.
        reason: String,
    },
    /// The source says that it does not have it, or a file is not there.
    #[error("{what}: {reason}")]
    Missing {
        /// The URL or path.
        what: String,
        /// What the source said.
        reason: String,
    },
    /// The source did not answer, or not completely.
    #[error("{url}: {reason}")]
    Unreachable {
        /// The URL that was asked.
        url: String,
        /// What happened.
        reason: String,
        /// The cause below.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The source has more than is accepted.
    #[error("{url}: more than the {bytes_max} bytes that are accepted")]
    TooLarge {
        /// The URL.
        url: String,
        /// The cap.
        bytes_max: u64,
    },
    /// The bytes are not those that the job names.
    #[error("{what}: expected sha256:{expected}, found sha256:{found}")]
    DigestMismatch {
        /// The URL or path.
        what: String,
        /// What the job names.
        expected: Sha256,
        /// What came.
        found: Sha256,
    },
    /// Several places were asked, and none gave the bytes.
    #[error("{url}: no place has it: {}", reasons.join("; "))]
    Nowhere {
        /// The URL that the job names.
        url: String,
        /// What counts.
        code: Code,
        /// What each place did.
        reasons: Vec<String>,
    },
    /// A repository's objects, or what lies at a path, are not those that the job names.
    #[error("{what}: {reason}")]
    OtherObjects {
        /// The URL or path.
        what: String,
        /// What came instead.
        reason: String,
    },
    /// A commit is not signed by whom the job demands.
    #[error("{what}: {reason}")]
    Unsigned {
        /// The URL or path.
        what: String,
        /// Why its signature does not count.
        reason: String,
    },
    /// The content is of a kind that is not accepted.
    #[error("{what}: {reason}")]
    Refused {
        /// The path.
        what: String,
        /// What is not accepted, and what to do.
        reason: String,
    },
    /// A local file cannot be read or written.
    #[error("{what}: cannot be read or written")]
    File {
        /// The path.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The client for downloads cannot be set up: the host has no certificate authorities.
    #[error("downloads cannot be set up; install the host's CA certificates (package ca-certificates)")]
    Client {
        /// The cause.
        source: reqwest::Error,
    },
}

impl InputError {
    /// What to do about a path that is not what the job names.
    pub(crate) fn pin_anew(input: impl std::fmt::Display) -> String {
        format!("if that is meant to be so, run `ampoule pin --path {input}` on the job file")
    }

    /// The bounded code; it decides the exit status.
    pub fn code(&self) -> Code {
        match self {
            Self::Url { .. } => Code::JobInvalid,
            Self::Denied { .. } => Code::InputSourceDenied,
            Self::Missing { .. } => Code::InputMissing,
            Self::Unreachable { .. } => Code::InputUnreachable,
            Self::TooLarge { .. } | Self::Refused { .. } => Code::InputRefused,
            Self::Nowhere { code, .. } => *code,
            Self::Unsigned { .. } => Code::InputUnsigned,
            Self::DigestMismatch { .. } | Self::OtherObjects { .. } => Code::InputDigestMismatch,
            Self::File { source, .. } => crate::files::code_of(source),
            Self::Client { .. } => Code::FileUnusable,
        }
    }
}
