//! Why something about content was not done, and what a caller hears of it.

use super::import::ImportError;
use crate::api::convert::FieldError;
use ampoule_spec::Code;
use std::time::Duration;

/// Why something about content was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ContentError {
    /// The bounded code.
    pub code: Code,
    /// For people.
    pub message: String,
    /// The field that is wrong, as in `content.sha256`.
    pub field: Option<String>,
    /// When to ask again, if that helps.
    pub retry_after: Option<Duration>,
    /// The gRPC status, where the schema says another one than the code's.
    pub status: Option<tonic::Code>,
}

impl ContentError {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: None, retry_after: None, status: None }
    }

    /// A defect of ours or of the machine.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// A file of ours that cannot be used.
    pub(super) fn io(what: &str, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::later(Code::StoreFull, format!("{what}: the disk is full"), Duration::from_secs(60))
            }
            _ => Self::internal(format!("{what}: {error}")),
        }
    }

    /// Something that helps itself with time.
    pub(super) fn later(code: Code, message: impl Into<String>, after: Duration) -> Self {
        Self { retry_after: Some(after), ..Self::new(code, message) }
    }

    /// A request that is wrong.
    pub(super) fn wrong(field: &str, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { field: Some(field.to_owned()), ..Self::new(Code::JobInvalid, format!("{field}: {reason}")) }
    }

    /// Bytes that are not what they were said to be.
    pub(super) fn bytes(code: Code, message: impl Into<String>) -> Self {
        Self { status: Some(tonic::Code::InvalidArgument), ..Self::new(code, message) }
    }

    /// What the importer said. What it says of the content is handed on; what it says of the host stays there.
    pub(super) fn import(error: ImportError) -> Self {
        let ImportError { code, message } = error;
        match code {
            Code::InputDigestMismatch | Code::InputRefused => return Self::bytes(code, message),
            Code::InputMissing => return Self::new(code, message),
            _ => tracing::warn!(%code, reason = message, "content is not taken in or looked for"),
        }
        let text = match code {
            Code::StoreFull => "the host has no room for it now",
            Code::AdmissionBusy => "the host cannot take content in or look for it now",
            _ => "it was not taken in, and that is not its fault",
        };
        match code.retryable() {
            true => Self::later(code, text, Duration::from_secs(10)),
            false => Self::internal(message),
        }
    }

    /// What a caller hears: of a defect no more than that there is one, since the text may hold paths of the host.
    pub(super) fn heard(&self) -> &str {
        match self.code {
            Code::Internal | Code::FileUnusable => {
                tracing::error!(reason = self.message, "a call about content failed by a defect");
                crate::api::DEFECT
            }
            _ => &self.message,
        }
    }
}

impl From<FieldError> for ContentError {
    fn from(error: FieldError) -> Self {
        Self { field: Some(error.field.clone()), ..Self::new(error.code(), error.to_string()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[test]
    fn what_the_host_says_of_itself_stays_there() {
        const PATH: &str = "/var/lib/ampoule/store";
        for code in Code::ALL {
            let of_content =
                matches!(code, Code::InputDigestMismatch | Code::InputRefused | Code::InputMissing);
            let said = ImportError { code: *code, message: format!("{PATH}: entry a/b") };
            let status = Status::from(ContentError::import(said));
            let heard = format!("{} {}", status.message(), String::from_utf8_lossy(status.details()));
            assert_eq!(heard.contains(PATH), of_content, "{code}: {heard}");
        }
        let broken = std::io::Error::other(format!("{PATH}: no"));
        let status = Status::from(ContentError::io("an upload", broken));
        assert!(!status.message().contains('/'), "{status}");
    }
}
