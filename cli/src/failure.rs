//! A command's failure: its code decides the exit status, its text is for people.

use crate::show;
use ampoule_agent::chain::chain;
use ampoule_agent::client::ClientError;
use ampoule_agent::files::code_of;
use ampoule_agent::inputs::InputError;
use ampoule_agent::jobfile::JobFileError;
use ampoule_agent::local::{LocalError, RunnerError};
use ampoule_agent::pin::PinError;
use ampoule_spec::Code;
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;

/// Why a command ends with another status than 0.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Failed {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A file that a command was given and cannot use.
    pub(crate) fn file(path: &Path, error: &std::io::Error) -> Self {
        Self::new(code_of(error), format!("{}: {error}", path.display()))
    }

    /// An error with its causes.
    pub(crate) fn of(code: Code, error: &dyn Error) -> Self {
        Self { code, message: chain(error) }
    }

    /// The same for a program: the last object on stdout of a command that ends so.
    pub(crate) fn as_json(&self) -> Value {
        json!({
            "event": "error", "code": self.code, "fault": self.code.fault().as_str(),
            "retryable": self.code.retryable(), "exit": self.code.exit() as u8, "message": self.message,
        })
    }

    pub(crate) fn print(&self) {
        show::line(&format!("ampoule: {} [{}]", self.message, self.code));
    }
}

impl From<JobFileError> for Failed {
    fn from(error: JobFileError) -> Self {
        Self::of(error.code(), &error)
    }
}

impl From<InputError> for Failed {
    fn from(error: InputError) -> Self {
        Self::of(error.code(), &error)
    }
}

impl From<PinError> for Failed {
    fn from(error: PinError) -> Self {
        Self::of(error.code(), &error)
    }
}

impl From<LocalError> for Failed {
    fn from(error: LocalError) -> Self {
        Self::of(error.code(), &error)
    }
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Self {
        Self::of(error.code(), &error)
    }
}

impl From<RunnerError> for Failed {
    fn from(error: RunnerError) -> Self {
        Self::of(error.code(), &error)
    }
}
