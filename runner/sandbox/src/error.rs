//! Why a sandbox could not be made or destroyed.

use ampoule_spec::Code;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A stage that failed, with the kernel's answer. It crosses from init to the supervisor as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageError {
    /// The stage, as in `rootfs: overlay`.
    pub stage: String,
    /// The errno, 0 where there is none.
    pub errno: i32,
    /// What the host lacks, if that is the reason: then the job is refused as unsupported.
    pub unsupported: Option<String>,
}

impl StageError {
    /// The bounded code.
    pub fn code(&self) -> Code {
        if self.unsupported.is_some() { Code::SandboxUnsupported } else { Code::SandboxSetupFailed }
    }

    /// A stage that failed because the host cannot do it; `remedy` says what would help.
    pub fn unsupported(stage: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { stage: stage.into(), errno: 0, unsupported: Some(remedy.into()) }
    }
}

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(remedy) = &self.unsupported {
            return write!(f, "{}: {remedy}", self.stage);
        }
        write!(f, "stage {:?} failed", self.stage)?;
        if self.errno != 0 {
            write!(f, ": {}", std::io::Error::from_raw_os_error(self.errno))?;
        }
        Ok(())
    }
}

impl std::error::Error for StageError {}

/// Names the stage of a failed call.
pub trait Stage<T> {
    /// Turns the error into a [`StageError`] of this stage.
    ///
    /// # Errors
    /// The call's own, named.
    fn stage(self, stage: &str) -> Result<T, StageError>;
}

/// Errors that carry an errno.
pub trait Errno {
    /// The errno, 0 if unknown.
    fn errno(&self) -> i32;
}

impl Errno for std::io::Error {
    fn errno(&self) -> i32 {
        self.raw_os_error().unwrap_or(0)
    }
}

impl Errno for rustix::io::Errno {
    fn errno(&self) -> i32 {
        self.raw_os_error()
    }
}

impl Errno for nix::errno::Errno {
    fn errno(&self) -> i32 {
        *self as i32
    }
}

impl Errno for ampoule_ipc::IpcError {
    fn errno(&self) -> i32 {
        self.errno()
    }
}

impl<T, E: Errno> Stage<T> for Result<T, E> {
    fn stage(self, stage: &str) -> Result<T, StageError> {
        match self {
            Ok(value) => crate::fault::point(stage).map(|()| value),
            Err(e) => Err(StageError { stage: stage.to_owned(), errno: e.errno(), unsupported: None }),
        }
    }
}
