//! Single calls about jobs, tried again while the daemon cannot be reached.

use super::channel::Client;
use super::error::ClientError;
use ampoule_proto::v1 as proto;
use ampoule_spec::{Code, Exit};
use std::time::Duration;
use tonic::{Request, Response, Status};

/// How long one attempt to cancel a job may take.
const CANCEL: Duration = Duration::from_secs(2);

fn there(job: Option<proto::Job>) -> Result<proto::Job, ClientError> {
    job.ok_or_else(|| ClientError::Answer { reason: "it has no job".to_owned() })
}

impl Client {
    /// Calls until there is an answer, or an error that does not pass.
    async fn call<T, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, ClientError> {
        let mut backoff = self.backoff();
        loop {
            match call().await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => backoff.wait(status.into()).await?,
            }
        }
    }

    /// Stops or resumes the intake of the host. Jobs that still run, and that wait.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn drain(&self, request: proto::DrainRequest) -> Result<proto::DrainResponse, ClientError> {
        self.call(|| async { self.host().drain(request).await }).await
    }

    /// A page of what steps have of secrets.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn leases(
        &self,
        request: &proto::ListLeasesRequest,
    ) -> Result<proto::ListLeasesResponse, ClientError> {
        self.call(|| async { self.host().list_leases(request.clone()).await }).await
    }

    /// Has something taken back now. Asking again is harmless.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn revoke(
        &self,
        request: &proto::RevokeLeasesRequest,
    ) -> Result<proto::RevokeLeasesResponse, ClientError> {
        self.call(|| async { self.host().revoke_leases(request.clone()).await }).await
    }

    /// Has the servers of secrets looked at.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn check_secrets(
        &self,
        request: &proto::CheckSecretsRequest,
    ) -> Result<proto::CheckSecretsResponse, ClientError> {
        self.call(|| async { self.host().check_secrets(request.clone()).await }).await
    }

    /// Submits a job, or finds the one of the same key. Trying again is harmless: the key says which job is meant.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn submit(&self, request: &proto::SubmitJobRequest) -> Result<(proto::Job, bool), ClientError> {
        let answer = self.call(|| async { self.jobs().submit_job(request.clone()).await }).await?;
        Ok((there(answer.job)?, answer.attached))
    }

    /// A job as it is now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(&self, job_id: &str) -> Result<proto::Job, ClientError> {
        let request = || proto::GetJobRequest { job_id: job_id.to_owned() };
        there(self.call(|| async { self.jobs().get_job(request()).await }).await?.job)
    }

    /// A page of jobs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(
        &self,
        request: &proto::ListJobsRequest,
    ) -> Result<proto::ListJobsResponse, ClientError> {
        self.call(|| async { self.jobs().list_jobs(request.clone()).await }).await
    }

    /// Asks for a job's end. The wish is durable when this returns.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn cancel(&self, job_id: &str, reason: &str) -> Result<proto::Job, ClientError> {
        let request = || {
            let message = proto::CancelJobRequest { job_id: job_id.to_owned(), reason: reason.to_owned() };
            let mut request = Request::new(message);
            request.set_timeout(CANCEL);
            request
        };
        there(self.call(|| async { self.jobs().cancel_job(request()).await }).await?.job)
    }

    /// The evidence of a finished job.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn evidence(&self, job_id: &str) -> Result<proto::GetAttestationResponse, ClientError> {
        let request = || proto::GetAttestationRequest { job_id: job_id.to_owned() };
        self.call(|| async { self.jobs().get_attestation(request()).await }).await
    }
}

/// The exit status of a command that has waited for a finished job: that of its code. A code that this build does not
/// know has the status that the daemon says, which is never success for a job that did not succeed.
pub fn exit_of(job: &proto::Job) -> u8 {
    use proto::JobOutcome as Outcome;
    match (job.outcome(), Code::parse(&job.code)) {
        (Outcome::Quarantined, _) => Code::TeardownUnclean.exit() as u8,
        (_, Some(code)) => code.exit() as u8,
        (Outcome::Succeeded, None) if job.code.is_empty() => Exit::Success as u8,
        _ => u8::try_from(job.exit_code).ok().filter(|exit| *exit != 0).unwrap_or(Exit::Internal as u8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::JobOutcome as Outcome;

    #[test]
    fn only_success_exits_with_zero_whatever_the_daemon_says() {
        let job = |outcome: Outcome, code: &str, exit_code| proto::Job {
            outcome: outcome.into(),
            code: code.to_owned(),
            exit_code,
            ..proto::Job::default()
        };
        for (job, exit) in [
            (job(Outcome::Succeeded, "", 0), 0),
            (job(Outcome::Succeeded, "", 9), 0),
            (job(Outcome::Succeeded, "provenance.refused", 0), 70),
            (job(Outcome::Failed, "step.exit_nonzero", 0), 1),
            (job(Outcome::Failed, "of.the_future", 0), 70),
            (job(Outcome::Failed, "of.the_future", 256), 70),
            (job(Outcome::Failed, "of.the_future", 75), 75),
            (job(Outcome::Cancelled, "job.cancelled", 0), 3),
            (job(Outcome::Quarantined, "step.exit_nonzero", 1), 70),
            (job(Outcome::Unspecified, "", 0), 70),
        ] {
            assert_eq!(exit_of(&job), exit, "{job:?}");
        }
    }
}
