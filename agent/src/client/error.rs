//! Why a daemon did not do what a client wanted.

use super::trust::Distrust;
use crate::local::LocalError;
use ampoule_spec::Code;
use std::path::PathBuf;
use std::time::Duration;
use tonic::Status;
use tonic_types::StatusExt;

/// The most characters of a daemon's text that are shown.
const TEXT_CHARS_MAX: usize = 2000;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address, or something else that was set.
    #[error("{what}: {reason}")]
    Setting {
        /// What.
        what: &'static str,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A file of the client's.
    #[error("{what} {path} cannot be used: {reason}")]
    File {
        /// What it is for.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The daemon refused.
    #[error("{message}")]
    Refused {
        /// The bounded code.
        code: Code,
        /// The daemon's text.
        message: String,
        /// The gRPC status.
        status: tonic::Code,
        /// When to ask again, if that helps.
        retry_after: Option<Duration>,
    },
    /// There is no connection.
    #[error("the daemon cannot be reached: {reason}")]
    Lost {
        /// Why.
        reason: String,
    },
    /// The daemon says something that makes no sense.
    #[error("the daemon's answer is refused: {reason}")]
    Answer {
        /// What.
        reason: String,
    },
    /// What came is not what was signed, or nobody who is believed signed it. Nothing of it is left.
    #[error("refused: {reason}")]
    Unverified {
        /// Which check.
        reason: String,
    },
    /// On this host.
    #[error(transparent)]
    Local(#[from] LocalError),
}

impl ClientError {
    /// The bounded code.
    pub fn code(&self) -> Code {
        match self {
            Self::Setting { .. } => Code::Usage,
            Self::File { .. } => Code::FileUnusable,
            Self::Refused { code, .. } => *code,
            Self::Lost { .. } => Code::ServerUnreachable,
            Self::Answer { .. } => Code::Internal,
            Self::Unverified { .. } => Code::VerifyRefused,
            Self::Local(error) => error.code(),
        }
    }

    /// Whether the same call may succeed in a moment.
    pub fn passes(&self) -> bool {
        match self {
            Self::Lost { .. } => true,
            Self::Refused { status: tonic::Code::Unavailable, .. } => true,
            Self::Refused { retry_after, .. } => retry_after.is_some(),
            _ => false,
        }
    }
}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        if let Some(distrust) = distrust(&status) {
            let (code, message) = (distrust.code(), distrust.to_string());
            return Self::Refused { code, message, status: tonic::Code::Unauthenticated, retry_after: None };
        }
        let details = status.get_error_details();
        let message: String = status.message().chars().take(TEXT_CHARS_MAX).collect();
        let named = details.error_info().and_then(|info| Code::parse(&info.reason));
        if named.is_none() && is_lost(&status) {
            return Self::Lost { reason: message };
        }
        let code = named.unwrap_or_else(|| code_of(status.code()));
        let retry_after = details.retry_info().and_then(|info| info.retry_delay);
        Self::Refused { code, message, status: status.code(), retry_after }
    }
}

/// Whether a status is that one of the two does not believe the other's certificate.
fn distrust(status: &Status) -> Option<Distrust> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(status);
    while let Some(error) = cause {
        if let Some(distrust) = error.downcast_ref::<Distrust>() {
            return Some(distrust.clone());
        }
        cause = error.source();
    }
    None
}

/// Whether a status was not said by the daemon, or says that it is going.
fn is_lost(status: &Status) -> bool {
    use tonic::Code as Grpc;
    matches!(status.code(), Grpc::Unavailable | Grpc::Cancelled | Grpc::DeadlineExceeded)
        || std::error::Error::source(status).is_some()
}

/// The code of a status that says none.
fn code_of(status: tonic::Code) -> Code {
    use tonic::Code as Grpc;
    match status {
        Grpc::PermissionDenied | Grpc::Unauthenticated => Code::AdmissionDenied,
        Grpc::ResourceExhausted => Code::AdmissionBusy,
        Grpc::InvalidArgument | Grpc::AlreadyExists | Grpc::OutOfRange | Grpc::Unimplemented => {
            Code::JobInvalid
        }
        Grpc::NotFound => Code::InputMissing,
        Grpc::Aborted => Code::JobAborted,
        _ => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    #[test]
    fn code_of_the_details_outweighs_the_status() {
        let mut details = ErrorDetails::with_error_info("input.digest_mismatch", "ampoule.v1", []);
        details.set_retry_info(Some(Duration::from_secs(3)));
        let status = Status::with_error_details(tonic::Code::InvalidArgument, "no", details);
        let error = ClientError::from(status);
        assert_eq!((error.code(), error.passes()), (Code::InputDigestMismatch, true));
    }

    #[test]
    fn status_without_details_has_the_nearest_code() {
        let lost = ClientError::from(Status::unavailable("gone"));
        assert_eq!((lost.code(), lost.passes()), (Code::ServerUnreachable, true));
        let denied = ClientError::from(Status::unauthenticated("who?"));
        assert_eq!((denied.code(), denied.passes()), (Code::AdmissionDenied, false));
        let long = ClientError::from(Status::internal("x".repeat(99_999)));
        assert_eq!(long.to_string().len(), TEXT_CHARS_MAX);
    }
}
