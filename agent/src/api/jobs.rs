//! `JobService`: requests checked, the desk asked, and handed on to the jobs.

use super::error::ApiError;
use super::known::Known;
use super::shares::{Shares, WithAnswer};
use super::{download, show, submit};
use crate::admission::{Action, Desk, Question};
use crate::audit;
use crate::content::{Contents, Importer, content_ref};
use crate::fair::Seats;
use crate::inputs::sha256_of;
use crate::job::{
    Caller, EVIDENCE_BYTES_MAX, Job, Jobs, JobsError, Means, Promised, State, Submission, Submitted, Wanted,
};
use ampoule_proto::v1 as wire;
use ampoule_proto::v1::job_service_server::{JobService, JobServiceServer};
use ampoule_spec::{Code, JobId, JobSpec, Name, OutputName};
use futures_util::{Stream, StreamExt};
use prost::Message as _;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Jobs on a page if the request says nothing.
const PAGE_DEFAULT: u32 = 100;
/// The most jobs on a page.
const PAGE_MAX: u32 = 1000;
/// A page ends when it has so many bytes: clients take messages of 4 MiB by default.
const PAGE_BYTES_MAX: usize = 3 << 20;
/// The most bytes of the reason of a wish for a job's end.
const REASON_BYTES_MAX: usize = 256;
/// The most states or outcomes in a filter: more than there are.
const FILTER_MAX: usize = 16;
/// Outputs that are sent at once, and those of one project among them: each costs a thread, or a file of the store.
const DOWNLOADS: (usize, usize) = (16, 8);
/// How long a download waits for its turn, and when it may ask again.
const TURN_WITHIN: Duration = Duration::from_secs(20);
const TURN_AGAIN: Duration = Duration::from_secs(2);
/// Bytes of evidence that are read or on their way to a reader, and those of one project among them.
const EVIDENCE: (usize, usize) = (256 << 20, 64 << 20);
/// The same of lists, and those of one caller: whichever project he names, it is not that one's share.
const LISTS: (usize, usize) = (96 << 20, 16 << 20);

/// Knows which content of a job is not there yet.
pub trait Uploads: Send + Sync + 'static {
    /// What of the content that a job names was not uploaded to the project, as `kind:digest`.
    fn missing(
        &self,
        project: &Name,
        spec: &JobSpec,
    ) -> impl Future<Output = Result<Vec<String>, JobsError>> + Send;
}

impl<I: Importer> Uploads for Contents<I> {
    async fn missing(&self, project: &Name, spec: &JobSpec) -> Result<Vec<String>, JobsError> {
        let missing = self.check(project, spec).await.map_err(|error| JobsError {
            code: error.code,
            message: error.message,
            retry_after: error.retry_after,
        })?;
        let named = missing.iter().filter_map(content_ref).map(|content| {
            let kind = content.kind().as_str_name().trim_start_matches("CONTENT_KIND_").to_lowercase();
            format!("{kind}:{}", content.sha256)
        });
        Ok(named.collect())
    }
}

/// Why a submission was not taken: the caller's key had a job.
const ATTACHED: &str = "job.attached";
/// Why a job's end was not wished: it had ended, or somebody had wished it.
const ENDED: &str = "job.ended";

/// The service over jobs.
#[derive(Debug)]
pub struct JobRpc<J, U> {
    jobs: Arc<J>,
    uploads: Arc<U>,
    desk: Arc<Desk>,
    /// Stands for jobs that are not there when the policy is asked, so that this takes as long.
    nobodys: Arc<Job>,
    /// Turns of projects at downloads.
    downloads: Arc<Seats>,
    evidence: Arc<Shares>,
    lists: Arc<Shares>,
}

type Result<T, E = ApiError> = std::result::Result<T, E>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
///
/// # Errors
/// None that can happen: a name that is fixed.
pub fn service<J: Jobs, U: Uploads>(
    jobs: Arc<J>,
    uploads: Arc<U>,
    desk: Arc<Desk>,
) -> Result<JobServiceServer<JobRpc<J, U>>> {
    let nobodys = Arc::new(nobodys().map_err(|e| ApiError::new(Code::Internal, e))?);
    let downloads = Seats::new(DOWNLOADS.0, DOWNLOADS.1);
    let (evidence, lists) = (Shares::new(EVIDENCE.0, EVIDENCE.1), Shares::new(LISTS.0, LISTS.1));
    let rpc = JobRpc { jobs, uploads, desk, nobodys, downloads, evidence, lists };
    Ok(JobServiceServer::new(rpc))
}

fn nobodys() -> Result<Job, String> {
    let name = Name::parse("nobodys").map_err(|e| e.to_string())?;
    Ok(Job {
        id: JobId::parse("00000000-0000-7000-8000-000000000000").map_err(|e| e.to_string())?,
        project: name.clone(),
        name: name.clone(),
        profile: name,
        attempt: 1,
        key: crate::job::IdempotencyKey::parse("nobodys")?,
        caller: Caller { means: Means::Peer, subject: String::new(), claims: BTreeMap::new() },
        request: sha256_of(&[0; 32]).map_err(|e| e.to_string())?,
        priority: 0,
        labels: BTreeMap::new(),
        submitted_at: ampoule_spec::UnixNanos(0),
        state: State::Finished,
        started_at: None,
        finished_at: None,
        cancel: None,
        end: None,
    })
}

/// Does something that blocks, away from the threads that serve.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::new(Code::Internal, "work on a call ended early")))
}

/// There is no share of the memory that answers take.
fn too_much() -> ApiError {
    let text = "too many bytes of answers are not read yet";
    ApiError::later(Code::CallBusy, text, TURN_AGAIN)
}

fn job_id(text: &str) -> Result<JobId> {
    JobId::parse(text).map_err(|e| ApiError::field("job_id", e))
}

impl<J: Jobs, U: Uploads> JobRpc<J, U> {
    /// The job, if the caller may know of it and do that with it.
    fn job_for(&self, known: &Known, id: &JobId, action: Action) -> Result<Job> {
        let found = self.jobs.get(id);
        let asked = found.as_ref().unwrap_or(&self.nobodys);
        let may_read =
            self.desk.allows(&Question::job(&known.caller, Action::Read, asked), known.scene(), Some(id));
        let job = found.filter(|_| may_read).ok_or_else(ApiError::no_job)?;
        known.span.about(&job.id, &job.project);
        if action != Action::Read {
            known.ask(&self.desk, &Question::job(&known.caller, action, &job), Some(id))?;
        }
        Ok(job)
    }

    /// Writes down that something of a job is read.
    async fn read(
        &self,
        known: &Known,
        action: audit::Action,
        job: &Job,
        output: Option<&str>,
    ) -> Result<()> {
        let entry = about(known, action, &job.project, &job.id);
        let entry = output.into_iter().fold(entry, |entry, output| entry.with("output", output));
        known.read(&self.desk, &entry).await
    }

    /// Counts a submission that is not taken. A job is named that there is, or that was written down.
    fn not_taken(&self, known: &Known, project: &Name, job: Option<&JobId>, reason: &str) {
        let question = Question::project(&known.caller, Action::Submit, project.as_str());
        self.desk.not_done(&question, known.scene(), job, reason);
    }

    /// Has a job taken, if there is a place for it: that it is stands in the audit log before, and nothing does of one for which
    /// there is none.
    async fn take(&self, known: &Known, submission: Submission) -> Result<Submitted> {
        let (id, project) = (submission.spec.id.clone(), submission.project.clone());
        let place = match self.jobs.promise(&submission).await {
            Ok(Promised::Place(place)) => place,
            Ok(Promised::Attached(attached)) => return Ok(self.attached(known, *attached)),
            Err(error) => {
                self.not_taken(known, &project, None, error.code.as_str());
                return Err(error.into());
            }
        };
        let entry = about(known, audit::Action::JobSubmitted, &project, &id);
        known.write(&self.desk, &entry.with("request", submission.request.to_string())).await?;
        known.span.submits(&id);
        let submitted = self.jobs.enter(place, submission).await;
        let reason = match &submitted {
            // Another call under the key came first: there is no job of this id.
            Ok(submitted) => submitted.attached.then_some(ATTACHED),
            Err(error) => Some(error.code.as_str()),
        };
        if let Some(reason) = reason {
            known.span.submits_not(&id);
            self.not_taken(known, &project, Some(&id), reason);
        }
        Ok(submitted?)
    }

    fn attached(&self, known: &Known, attached: Submitted) -> Submitted {
        self.not_taken(known, &attached.job.project, Some(&attached.job.id), ATTACHED);
        attached
    }

    fn shown(&self, job: &Job) -> wire::Job {
        shown(self.jobs.as_ref(), job)
    }

    async fn submit(
        &self,
        known: &Known,
        request: wire::SubmitJobRequest,
    ) -> Result<wire::SubmitJobResponse> {
        let submission = submit::submission(request, &known.caller)?;
        known.ask(&self.desk, &Question::submission(&submission), None)?;
        // A job that is there already needs its content no more, and is submitted no second time.
        let submitted = match self.jobs.attach(&submission)? {
            Some(attached) => self.attached(known, attached),
            None => {
                let lacks = self.uploads.missing(&submission.project, &submission.spec).await?;
                if !lacks.is_empty() {
                    let text = "content that the job names was not uploaded to the project";
                    let lacks = lacks.into_iter().map(|what| ("CONTENT", what)).collect();
                    return Err(ApiError { lacks, ..ApiError::new(Code::ContentMissing, text) });
                }
                self.take(known, submission).await?
            }
        };
        known.span.about(&submitted.job.id, &submitted.job.project);
        let job = Some(self.shown(&submitted.job));
        Ok(wire::SubmitJobResponse { job, attached: submitted.attached })
    }

    async fn list(
        &self,
        known: &Known,
        request: wire::ListJobsRequest,
    ) -> Result<Response<wire::ListJobsResponse>> {
        let wanted = wanted(&request)?;
        let share = self.lists.take(&known.caller.subject, PAGE_BYTES_MAX).ok_or_else(too_much)?;
        let (jobs, desk, caller) =
            (Arc::clone(&self.jobs), Arc::clone(&self.desk), Arc::clone(&known.caller));
        blocking(move || {
            let mut share = share;
            let page = jobs.list(&wanted, &desk.reader(&caller));
            let (mut answer, mut bytes) = (wire::ListJobsResponse::default(), 0);
            let mut last = None;
            let count = page.jobs.len();
            for job in &page.jobs {
                let shown = shown(jobs.as_ref(), job);
                bytes += shown.encoded_len() + 8;
                if bytes > PAGE_BYTES_MAX && last.is_some() {
                    break;
                }
                last = Some(job.id.to_string());
                answer.jobs.push(shown);
            }
            if page.more || answer.jobs.len() < count {
                answer.next_page_token = last.unwrap_or_default();
            }
            share.shrink_to(bytes.max(1));
            Ok(WithAnswer::holds(answer, share))
        })
        .await
    }

    async fn watch(
        &self,
        known: &Known,
        request: &wire::WatchJobRequest,
    ) -> Result<BoxStream<wire::WatchJobResponse>> {
        let id = job_id(&request.job_id)?;
        let job = self.job_for(known, &id, Action::Read)?;
        if request.logs {
            self.read(known, audit::Action::LogsRead, &job, None).await?;
        }
        let watched = self.jobs.watch(&id, request.after_cursor, request.logs, request.follow)?;
        let jobs = Arc::clone(&self.jobs);
        let told = watched.filter_map(move |watched| {
            let told = match watched {
                Ok(watched) => show::watched(&watched, |job| jobs.queue_position(&job.id)).map(Ok),
                Err(error) => Some(Err(Status::from(ApiError::from(error)))),
            };
            std::future::ready(told)
        });
        Ok(Box::pin(told))
    }

    async fn cancel(
        &self,
        known: &Known,
        request: wire::CancelJobRequest,
    ) -> Result<wire::CancelJobResponse> {
        let id = job_id(&request.job_id)?;
        if request.reason.len() > REASON_BYTES_MAX {
            return Err(ApiError::field("reason", format!("at most {REASON_BYTES_MAX} bytes")));
        }
        let job = self.job_for(known, &id, Action::Cancel)?;
        if job.cancel.is_some() || job.state == State::Finished {
            // It stays so, and nothing is done that would be written down.
            let question = Question::job(&known.caller, Action::Cancel, &job);
            self.desk.not_done(&question, known.scene(), Some(&id), ENDED);
            return Ok(wire::CancelJobResponse { job: Some(self.shown(&job)) });
        }
        let entry = about(known, audit::Action::JobCancelled, &job.project, &id);
        known.write(&self.desk, &entry.with("reason", &request.reason)).await?;
        let job = self.jobs.cancel(&id, &known.caller, &request.reason).await?;
        Ok(wire::CancelJobResponse { job: Some(self.shown(&job)) })
    }

    async fn evidence(
        &self,
        known: &Known,
        request: wire::GetAttestationRequest,
    ) -> Result<Response<wire::GetAttestationResponse>> {
        let id = job_id(&request.job_id)?;
        let job = self.job_for(known, &id, Action::Evidence)?;
        let Some(end) = &job.end else {
            let text = format!("job {id} is not finished; watch it until it is");
            return Err(ApiError::new(Code::JobUnfinished, text));
        };
        // Before any of it is read. What was not counted may be as large as any.
        let bytes = if end.record_bytes == 0 { EVIDENCE_BYTES_MAX } else { end.record_bytes };
        let bytes = usize::try_from(bytes.min(EVIDENCE_BYTES_MAX)).unwrap_or(usize::MAX);
        let share = self.evidence.take(job.project.as_str(), bytes).ok_or_else(too_much)?;
        let jobs = Arc::clone(&self.jobs);
        let (evidence, share) = blocking(move || Ok((jobs.evidence(&id)?, share))).await?;
        self.read(known, audit::Action::EvidenceRead, &job, None).await?;
        let files = evidence.files.into_iter().map(|file| {
            let mut names = file.names.into_iter();
            let name = names.next().unwrap_or_default();
            wire::EvidenceFile { name, data: file.bytes, also: names.collect() }
        });
        let (files, public_key_pem) = (files.collect(), evidence.public_key);
        Ok(WithAnswer::holds(wire::GetAttestationResponse { files, public_key_pem }, share))
    }

    async fn download(
        &self,
        known: &Known,
        request: wire::DownloadOutputRequest,
    ) -> Result<BoxStream<wire::DownloadOutputResponse>> {
        let id = job_id(&request.job_id)?;
        let output = OutputName::parse(&request.output).map_err(|e| ApiError::field("output", e))?;
        let job = self.job_for(known, &id, Action::Download)?;
        let turn = self.downloads.take_within(job.project.as_str(), TURN_WITHIN).await;
        let seat = turn.ok_or_else(|| {
            let text = "as many outputs of the project are sent as may at once";
            ApiError::later(Code::CallBusy, text, TURN_AGAIN)
        })?;
        let opened = self.jobs.open_output(&id, output.as_str()).await?;
        download::check(&opened, request.offset)?;
        self.read(known, audit::Action::OutputsRead, &job, Some(output.as_str())).await?;
        download::parts(opened, request.offset, seat)
    }
}

/// An entry about a job.
fn about(known: &Known, action: audit::Action, project: &Name, job: &JobId) -> audit::AuditEvent {
    let mut entry = known.entry(action);
    (entry.project, entry.job) = (Some(project.clone()), Some(job.clone()));
    entry
}

fn shown<J: Jobs>(jobs: &J, job: &Job) -> wire::Job {
    let position = if job.state == State::Queued { jobs.queue_position(&job.id) } else { None };
    show::job(job, position)
}

/// Checks what is asked of a list.
fn wanted(request: &wire::ListJobsRequest) -> Result<Wanted> {
    submit::labels(&request.labels)?;
    if request.states.len() > FILTER_MAX || request.outcomes.len() > FILTER_MAX {
        let field = if request.states.len() > FILTER_MAX { "states" } else { "outcomes" };
        return Err(ApiError::field(field, format!("at most {FILTER_MAX}")));
    }
    let number = |field: &str, at: usize, number: i32| {
        ApiError::field(&format!("{field}[{at}]"), format!("{number} is not known"))
    };
    let states = request.states.iter().enumerate();
    let states = states.map(|(at, n)| show::state_of(*n).ok_or_else(|| number("states", at, *n)));
    let outcomes = request.outcomes.iter().enumerate();
    let outcomes = outcomes.map(|(at, n)| show::outcome_of(*n).ok_or_else(|| number("outcomes", at, *n)));
    let limit = match request.page_size {
        0 => PAGE_DEFAULT,
        size @ 1..=PAGE_MAX => size,
        _ => return Err(ApiError::field("page_size", format!("at most {PAGE_MAX}"))),
    };
    let before = match request.page_token.as_str() {
        "" => None,
        token => {
            let wrong = |_| ApiError::field("page_token", "not one that an answer had");
            Some(JobId::parse(token).map_err(wrong)?)
        }
    };
    let project = match request.project.as_str() {
        "" => None,
        text => Some(submit::project(text)?),
    };
    Ok(Wanted {
        project,
        states: states.collect::<Result<_>>()?,
        outcomes: outcomes.collect::<Result<_>>()?,
        labels: request.labels.clone(),
        before,
        limit: limit as usize,
    })
}

#[tonic::async_trait]
impl<J: Jobs, U: Uploads> JobService for JobRpc<J, U> {
    async fn submit_job(
        &self,
        request: Request<wire::SubmitJobRequest>,
    ) -> Result<Response<wire::SubmitJobResponse>, Status> {
        let known = Known::of(request.extensions())?;
        Ok(Response::new(self.submit(&known, request.into_inner()).await?))
    }

    async fn get_job(
        &self,
        request: Request<wire::GetJobRequest>,
    ) -> Result<Response<wire::GetJobResponse>, Status> {
        let known = Known::of(request.extensions())?;
        let id = job_id(&request.get_ref().job_id)?;
        let job = self.job_for(&known, &id, Action::Read)?;
        Ok(Response::new(wire::GetJobResponse { job: Some(self.shown(&job)) }))
    }

    async fn list_jobs(
        &self,
        request: Request<wire::ListJobsRequest>,
    ) -> Result<Response<wire::ListJobsResponse>, Status> {
        let known = Known::of(request.extensions())?;
        Ok(self.list(&known, request.into_inner()).await?)
    }

    type WatchJobStream = BoxStream<wire::WatchJobResponse>;

    async fn watch_job(
        &self,
        request: Request<wire::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let known = Known::of(request.extensions())?;
        Ok(Response::new(self.watch(&known, request.get_ref()).await?))
    }

    async fn cancel_job(
        &self,
        request: Request<wire::CancelJobRequest>,
    ) -> Result<Response<wire::CancelJobResponse>, Status> {
        let known = Known::of(request.extensions())?;
        Ok(Response::new(self.cancel(&known, request.into_inner()).await?))
    }

    async fn get_attestation(
        &self,
        request: Request<wire::GetAttestationRequest>,
    ) -> Result<Response<wire::GetAttestationResponse>, Status> {
        let known = Known::of(request.extensions())?;
        Ok(self.evidence(&known, request.into_inner()).await?)
    }

    type DownloadOutputStream = BoxStream<wire::DownloadOutputResponse>;

    async fn download_output(
        &self,
        request: Request<wire::DownloadOutputRequest>,
    ) -> Result<Response<Self::DownloadOutputStream>, Status> {
        let known = Known::of(request.extensions())?;
        Ok(Response::new(self.download(&known, request.into_inner()).await?))
    }
}
