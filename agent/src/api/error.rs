//! What a caller hears when a call is not done: a status with google.rpc details.

use super::convert::FieldError;
use crate::job::JobsError;
use ampoule_spec::Code;
use std::time::Duration;
use tonic::Status;
use tonic_types::{ErrorDetails, PreconditionViolation, StatusExt};

/// The domain of our error codes.
const DOMAIN: &str = "ampoule.v1";
/// What is said of a defect: the rest is in the log alone, since it may hold paths of the host.
pub(crate) const DEFECT: &str = "a defect of the daemon or its host; its log says more";

/// Why a call was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The bounded code: it decides the status.
    pub code: Code,
    /// For people.
    pub message: String,
    /// The field that is wrong, as in `job.steps[0].cwd`.
    pub field: Option<String>,
    /// When to ask again, if that helps.
    pub retry_after: Option<Duration>,
    /// What has to be there first: its kind and what it is.
    pub lacks: Vec<(&'static str, String)>,
}

impl ApiError {
    /// An error of this code.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: None, retry_after: None, lacks: Vec::new() }
    }

    /// A field that is wrong.
    pub fn field(field: &str, reason: impl std::fmt::Display) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new(Code::JobInvalid, format!("{field}: {reason}")) }
    }

    /// Something that helps itself with time.
    pub fn later(code: Code, message: impl Into<String>, after: Duration) -> Self {
        Self { retry_after: Some(after), ..Self::new(code, message) }
    }

    /// A job that is not there, or of which the caller may not know.
    pub fn no_job() -> Self {
        Self::new(Code::JobUnknown, "there is no such job")
    }

    /// What the policy does not allow.
    pub fn denied() -> Self {
        Self::new(Code::CallDenied, "the policy of this host does not allow it")
    }
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        Self { field: Some(error.field.clone()), ..Self::new(error.code(), error.to_string()) }
    }
}

impl From<JobsError> for ApiError {
    fn from(error: JobsError) -> Self {
        Self { retry_after: error.retry_after, ..Self::new(error.code, error.message) }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let fault = [("fault".to_owned(), error.code.fault().as_str().to_owned())];
        let mut details = ErrorDetails::with_error_info(error.code.as_str(), DOMAIN, fault);
        if let Some(field) = &error.field {
            details.add_bad_request_violation(field, &error.message);
        }
        if let Some(after) = error.retry_after {
            details.set_retry_info(Some(after));
        }
        if !error.lacks.is_empty() {
            let violations = error.lacks.iter().map(|(kind, what)| {
                PreconditionViolation::new(*kind, what.as_str(), "upload it to the project first")
            });
            details.set_precondition_failure(violations.collect::<Vec<_>>());
        }
        let message = match error.code {
            Code::Internal => {
                tracing::error!(reason = error.message, "a call failed by a defect");
                DEFECT.to_owned()
            }
            _ => error.message,
        };
        Status::with_error_details(grpc(error.code), message, details)
    }
}

/// The status that the table of codes names.
pub fn grpc(code: Code) -> tonic::Code {
    use tonic::Code as Grpc;
    match code.grpc() {
        "CANCELLED" => Grpc::Cancelled,
        "INVALID_ARGUMENT" => Grpc::InvalidArgument,
        "DEADLINE_EXCEEDED" => Grpc::DeadlineExceeded,
        "NOT_FOUND" => Grpc::NotFound,
        "ALREADY_EXISTS" => Grpc::AlreadyExists,
        "PERMISSION_DENIED" => Grpc::PermissionDenied,
        "RESOURCE_EXHAUSTED" => Grpc::ResourceExhausted,
        "FAILED_PRECONDITION" => Grpc::FailedPrecondition,
        "ABORTED" => Grpc::Aborted,
        "OUT_OF_RANGE" => Grpc::OutOfRange,
        "UNIMPLEMENTED" => Grpc::Unimplemented,
        "UNAVAILABLE" => Grpc::Unavailable,
        "DATA_LOSS" => Grpc::DataLoss,
        "UNAUTHENTICATED" => Grpc::Unauthenticated,
        "UNKNOWN" => Grpc::Unknown,
        _ => Grpc::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_that_of_the_table_and_details_say_the_rest() {
        for code in Code::ALL {
            let name = format!("{:?}", grpc(*code)).to_lowercase();
            assert_eq!(name, code.grpc().replace('_', "").to_lowercase(), "{code}");
            let status = Status::from(ApiError::new(*code, "text"));
            let details = status.get_error_details();
            let info = details.error_info().unwrap();
            assert_eq!((info.reason.as_str(), info.domain.as_str()), (code.as_str(), "ampoule.v1"));
            assert_eq!(info.metadata["fault"], code.fault().as_str());
            assert!(details.retry_info().is_none() && details.bad_request().is_none());
        }
        let error = ApiError {
            lacks: vec![("CONTENT", "directory:ab".to_owned())],
            ..ApiError::field("job.name", "bad")
        };
        let status = Status::from(ApiError { retry_after: Some(Duration::from_secs(3)), ..error });
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "job.name");
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(3)));
        assert_eq!(details.precondition_failure().unwrap().violations[0].subject, "directory:ab");
    }

    #[test]
    fn defect_tells_nothing_of_the_host() {
        let status = Status::from(ApiError::new(Code::Internal, "/var/lib/ampouled/ledger: no such file"));
        assert!(!status.message().contains('/'), "{}", status.message());
        assert!(!String::from_utf8_lossy(status.details()).contains("/var/lib"));
    }
}
