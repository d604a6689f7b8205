//! `HostService`: what the host can do, and its going out of service.

use super::error::ApiError;
use super::known::Known;
use crate::admission::{Action, Desk, Question};
use crate::audit;
use crate::job::Jobs;
use ampoule_proto::v1 as wire;
use ampoule_proto::v1::host_service_server::{HostService, HostServiceServer};
use std::future::Future;
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// What a host is, as measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The agent's version.
    pub agent_version: String,
    /// The runner's; empty if it cannot be reached.
    pub runner_version: String,
    /// Profiles by name, and what each demands that the host does not give.
    pub profiles: Vec<(String, Vec<String>)>,
    /// Processors that jobs may be promised, in thousandths.
    pub cpu_millis: u64,
    /// Memory that jobs may be promised, in bytes.
    pub memory_bytes: u64,
    /// Disk that jobs may be promised, in bytes.
    pub disk_bytes: u64,
}

/// Knows the host.
pub trait Host: Send + Sync + 'static {
    /// What it is now.
    fn facts(&self) -> impl Future<Output = HostFacts> + Send;
}

/// The service over jobs and host.
#[derive(Debug)]
pub struct HostRpc<J, H> {
    jobs: Arc<J>,
    host: Arc<H>,
    desk: Arc<Desk>,
}

/// The service.
pub fn service<J: Jobs, H: Host>(
    jobs: Arc<J>,
    host: Arc<H>,
    desk: Arc<Desk>,
) -> HostServiceServer<HostRpc<J, H>> {
    HostServiceServer::new(HostRpc { jobs, host, desk })
}

impl<J: Jobs, H: Host> HostRpc<J, H> {
    fn ask<T>(&self, request: &Request<T>, action: Action) -> Result<Known, ApiError> {
        let known = Known::of(request.extensions())?;
        known.ask(&self.desk, &Question::host(&known.caller, action), None)?;
        Ok(known)
    }
}

#[tonic::async_trait]
impl<J: Jobs, H: Host> HostService for HostRpc<J, H> {
    async fn get_capabilities(
        &self,
        request: Request<wire::GetCapabilitiesRequest>,
    ) -> Result<Response<wire::GetCapabilitiesResponse>, Status> {
        self.ask(&request, Action::Capabilities)?;
        let facts = self.host.facts().await;
        let (accepting, running, queued) = self.jobs.load();
        // How much all projects have here is for whoever may drain the host, and for nobody else.
        let known = Known::of(request.extensions())?;
        let is_operator = self.desk.would_allow(&Question::host(&known.caller, Action::Drain));
        let (running, queued) = if is_operator { (running, queued) } else { (0, 0) };
        let profiles = facts.profiles.into_iter();
        Ok(Response::new(wire::GetCapabilitiesResponse {
            agent_version: facts.agent_version,
            runner_version: facts.runner_version,
            profiles: profiles
                .map(|(profile, missing)| wire::ProfileCapability { profile, missing })
                .collect(),
            running,
            queued,
            accepting,
            cpu_millis: facts.cpu_millis,
            memory_bytes: facts.memory_bytes,
            disk_bytes: facts.disk_bytes,
        }))
    }

    async fn drain(
        &self,
        request: Request<wire::DrainRequest>,
    ) -> Result<Response<wire::DrainResponse>, Status> {
        let known = self.ask(&request, Action::Drain)?;
        let request = request.get_ref();
        let entry = known.entry(audit::Action::Drained).with("drain", request.drain.to_string());
        known.write(&self.desk, &entry.with("cancel_queued", request.cancel_queued.to_string())).await?;
        let (running, queued) =
            self.jobs.drain(request.drain, request.cancel_queued).await.map_err(ApiError::from)?;
        Ok(Response::new(wire::DrainResponse { running, queued }))
    }
}
