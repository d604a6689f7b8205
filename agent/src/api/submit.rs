//! A submission, from the message to what is asked of the jobs.

use super::convert::{FieldError, job_spec};
use super::error::ApiError;
use crate::inputs::sha256_of;
use crate::job::{Caller, IdempotencyKey, Labels, Proofs, Submission};
use ampoule_proto::v1 as wire;
use ampoule_spec::{Code, JobId, Name, Sha256};
use prost::Message as _;

/// The most labels of a job or a filter.
const LABELS_MAX: usize = 32;
/// The most bytes of a label's key, and of its value.
const LABEL_BYTES_MAX: usize = 128;
/// The most bytes of provenance in one request.
const PROOFS_BYTES_MAX: usize = 1 << 20;
/// The highest priority.
const PRIORITY_MAX: u32 = 9;

/// Checks a request.
///
/// # Errors
/// The first field that is wrong.
pub(super) fn submission(request: wire::SubmitJobRequest, caller: &Caller) -> Result<Submission, ApiError> {
    let request_digest = digest(&request)?;
    let key =
        IdempotencyKey::parse(&request.idempotency_key).map_err(|e| ApiError::field("idempotency_key", e))?;
    let project = project(&request.project)?;
    let priority = match u8::try_from(request.priority) {
        Ok(priority) if request.priority <= PRIORITY_MAX => priority,
        _ => return Err(ApiError::field("priority", format!("0 to {PRIORITY_MAX}"))),
    };
    labels(&request.labels)?;
    let mut job = request.job.ok_or_else(|| ApiError::field("job", "missing"))?;
    let proofs = proofs(&mut job).map_err(in_job)?;
    let id = JobId::parse(&uuid::Uuid::now_v7().to_string())
        .map_err(|e| ApiError::new(Code::Internal, e.to_string()))?;
    let spec = job_spec(job, id).map_err(in_job)?;
    Ok(Submission {
        caller: caller.clone(),
        key,
        project,
        spec,
        proofs,
        request: request_digest,
        priority,
        labels: request.labels,
        queue_timeout_ms: Some(request.queue_timeout_ms).filter(|ms| *ms > 0),
    })
}

/// SHA-256 of the canonical encoding: prost writes fields by number, and our maps are ordered.
fn digest(request: &wire::SubmitJobRequest) -> Result<Sha256, ApiError> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &request.encode_to_vec());
    sha256_of(digest.as_ref()).map_err(|e| ApiError::new(Code::Internal, e.to_string()))
}

/// A field of the job's as a field of the request's.
fn in_job(error: FieldError) -> ApiError {
    FieldError { field: format!("job.{}", error.field), ..error }.into()
}

/// Takes the provenance out of a request: it is no part of a job.
///
/// # Errors
/// The field at which there is none, or more than may be.
fn proofs(job: &mut wire::JobRequest) -> Result<Proofs, FieldError> {
    let (mut proofs, mut bytes) = (Proofs::new(), 0_usize);
    for (at, input) in job.inputs.iter_mut().enumerate() {
        let Some(wire::input::Source::Attestation(made)) = &mut input.source else { continue };
        bytes = bytes.saturating_add(made.provenance.len());
        let wrong = match made.provenance.len() {
            0 => "missing; send the attestation of what was made".to_owned(),
            _ if bytes > PROOFS_BYTES_MAX => format!("all together have at most {PROOFS_BYTES_MAX} bytes"),
            _ => String::new(),
        };
        if !wrong.is_empty() {
            return Err(FieldError { field: format!("inputs[{at}].attestation.provenance"), reason: wrong });
        }
        proofs.insert(at, std::mem::take(&mut made.provenance));
    }
    Ok(proofs)
}

/// A project's name.
pub(super) fn project(text: &str) -> Result<Name, ApiError> {
    Name::parse(text).map_err(|e| ApiError::field("project", e))
}

/// Checks labels of a job or a filter.
pub(super) fn labels(labels: &Labels) -> Result<(), ApiError> {
    if labels.len() > LABELS_MAX {
        return Err(ApiError::field("labels", format!("at most {LABELS_MAX}")));
    }
    for (key, value) in labels {
        if key.is_empty() || key.len() > LABEL_BYTES_MAX || value.len() > LABEL_BYTES_MAX {
            let reason = format!("keys of 1 to {LABEL_BYTES_MAX} bytes, values of at most {LABEL_BYTES_MAX}");
            return Err(ApiError::field("labels", reason));
        }
    }
    Ok(())
}
