//! A daemon's jobs, as far as a client sees them: one job with a script of what happens, told in parts that break off.

#![allow(unreachable_pub, dead_code, reason = "shared by tests")]

use ampoule_proto::v1::job_service_server::{JobService, JobServiceServer};
use ampoule_proto::v1::{self as proto, watch_job_response::Event};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

#[derive(Default)]
pub struct Script {
    pub job: proto::Job,
    /// What happens, in its order; the cursor of each is its place from 1.
    pub events: Vec<Event>,
    /// After how many messages the next streams break off, and how many of those before are told again.
    pub breaks: VecDeque<(usize, u64)>,
    pub evidence: proto::GetAttestationResponse,
    pub submitted: Vec<proto::SubmitJobRequest>,
    pub cancelled: Vec<String>,
    pub watched: Vec<u64>,
    /// Whether a follower waits for a cancel, and then for this.
    pub end: Option<proto::Job>,
    /// Whether a cancel is without effect.
    pub deaf: bool,
}

#[derive(Clone, Default)]
pub struct FakeJobs(pub Arc<Mutex<Script>>);

impl FakeJobs {
    pub fn serve(&self, socket: &Path) -> tokio::task::JoinHandle<()> {
        let listener = tokio::net::UnixListener::bind(socket).unwrap();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let service = JobServiceServer::new(self.clone());
        tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        })
    }

    fn job(&self) -> Option<proto::Job> {
        Some(self.0.lock().unwrap().job.clone())
    }
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl JobService for FakeJobs {
    type WatchJobStream = Stream<proto::WatchJobResponse>;
    type DownloadOutputStream = Stream<proto::DownloadOutputResponse>;

    async fn submit_job(
        &self,
        request: Request<proto::SubmitJobRequest>,
    ) -> Result<Response<proto::SubmitJobResponse>, Status> {
        let attached = {
            let mut script = self.0.lock().unwrap();
            let request = request.into_inner();
            let attached = script.submitted.iter().any(|r| r.idempotency_key == request.idempotency_key);
            script.submitted.push(request);
            attached
        };
        Ok(Response::new(proto::SubmitJobResponse { job: self.job(), attached }))
    }

    async fn get_job(
        &self,
        _: Request<proto::GetJobRequest>,
    ) -> Result<Response<proto::GetJobResponse>, Status> {
        Ok(Response::new(proto::GetJobResponse { job: self.job() }))
    }

    async fn list_jobs(
        &self,
        _: Request<proto::ListJobsRequest>,
    ) -> Result<Response<proto::ListJobsResponse>, Status> {
        let jobs = self.job().into_iter().collect();
        Ok(Response::new(proto::ListJobsResponse { jobs, next_page_token: String::new() }))
    }

    async fn watch_job(
        &self,
        request: Request<proto::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let request = request.into_inner();
        let mut script = self.0.lock().unwrap();
        script.watched.push(request.after_cursor);
        let cut = script.breaks.pop_front();
        let from = request.after_cursor.saturating_sub(cut.map_or(0, |(_, again)| again));
        let message =
            |cursor, event: &Event| Ok(proto::WatchJobResponse { cursor, event: Some(event.clone()) });
        let mut messages = vec![message(request.after_cursor, &Event::Job(script.job.clone()))];
        let events = (1_u64..).zip(&script.events).filter(|(cursor, _)| *cursor > from);
        // What is told again has the cursor of what was received: cursors never go back.
        messages.extend(events.map(|(cursor, event)| message(cursor.max(request.after_cursor), event)));
        if let Some((count, _)) = cut {
            messages.truncate(count);
            messages.push(Err(Status::unavailable("cut")));
        }
        let last = script.events.len() as u64 + 1;
        let waits = script.end.is_some() && request.follow;
        let (sender, receiver) = tokio::sync::mpsc::channel(messages.len().max(1));
        messages.into_iter().for_each(|message| sender.try_send(message).unwrap());
        drop(script);
        let jobs = self.clone();
        tokio::spawn(async move {
            while waits && !sender.is_closed() {
                let end = {
                    let script = jobs.0.lock().unwrap();
                    script.end.clone().filter(|_| !script.cancelled.is_empty() && !script.deaf)
                };
                if let Some(job) = end {
                    let event = Some(Event::Job(job));
                    let _ = sender.send(Ok(proto::WatchJobResponse { cursor: last, event })).await;
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn cancel_job(
        &self,
        request: Request<proto::CancelJobRequest>,
    ) -> Result<Response<proto::CancelJobResponse>, Status> {
        self.0.lock().unwrap().cancelled.push(request.into_inner().reason);
        Ok(Response::new(proto::CancelJobResponse { job: self.job() }))
    }

    async fn get_attestation(
        &self,
        _: Request<proto::GetAttestationRequest>,
    ) -> Result<Response<proto::GetAttestationResponse>, Status> {
        Ok(Response::new(self.0.lock().unwrap().evidence.clone()))
    }

    async fn download_output(
        &self,
        _: Request<proto::DownloadOutputRequest>,
    ) -> Result<Response<Self::DownloadOutputStream>, Status> {
        Err(Status::not_found("there is no output"))
    }
}
