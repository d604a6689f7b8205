//! `HostService`: what the host can do, its going out of service, and what steps have of secrets.

use super::error::ApiError;
use super::known::Known;
use super::leases::{self, ANSWER_BYTES_MAX, Leases};
use super::shares::{Shares, WithAnswer};
use crate::admission::{Action, Desk, Question};
use crate::audit;
use crate::job::Jobs;
use crate::secrets::Which;
use ampoule_proto::v1 as wire;
use ampoule_proto::v1::host_service_server::{HostService, HostServiceServer};
use ampoule_spec::Code;
use prost::Message as _;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
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

/// Bytes of answers about secrets that are not read yet, and those of one caller.
const ANSWERS: (usize, usize) = (24 << 20, 12 << 20);
/// When whoever has too many of them asks again.
const ANSWER_AGAIN: Duration = Duration::from_secs(2);

/// The service over jobs, host and leases.
#[derive(Debug)]
pub struct HostRpc<J, H, L> {
    jobs: Arc<J>,
    host: Arc<H>,
    leases: Arc<L>,
    desk: Arc<Desk>,
    answers: Arc<Shares>,
}

/// The service.
pub fn service<J: Jobs, H: Host, L: Leases>(
    jobs: Arc<J>,
    host: Arc<H>,
    leases: Arc<L>,
    desk: Arc<Desk>,
) -> HostServiceServer<HostRpc<J, H, L>> {
    let answers = Shares::new(ANSWERS.0, ANSWERS.1);
    HostServiceServer::new(HostRpc { jobs, host, leases, desk, answers })
}

impl<J: Jobs, H: Host, L: Leases> HostRpc<J, H, L> {
    fn ask<T>(&self, request: &Request<T>, action: Action) -> Result<Known, ApiError> {
        let known = Known::of(request.extensions())?;
        known.ask(&self.desk, &Question::host(&known.caller, action), None)?;
        Ok(known)
    }

    async fn list(
        &self,
        known: &Known,
        request: &wire::ListLeasesRequest,
    ) -> Result<Response<wire::ListLeasesResponse>, ApiError> {
        let wanted = leases::wanted(request)?;
        let mut share = self.answers.take(&known.caller.subject, ANSWER_BYTES_MAX).ok_or_else(too_much)?;
        let mut entry = known.entry(audit::Action::LeasesRead);
        (entry.project, entry.job) = (wanted.project.clone(), wanted.job.clone());
        known.read(&self.desk, &entry).await?;
        let answer = leases::page(self.leases.held(&wanted));
        share.shrink_to(answer.encoded_len().max(1));
        Ok(WithAnswer::holds(answer, share))
    }

    async fn revoke(
        &self,
        known: &Known,
        request: &wire::RevokeLeasesRequest,
    ) -> Result<wire::RevokeLeasesResponse, ApiError> {
        let which = leases::which(request)?;
        let mut entry = known.entry(audit::Action::RevokeWished);
        if let Some((project, job)) = self.leases.whose(&which) {
            (entry.project, entry.job) = (Some(project), Some(job));
        }
        let entry = match &which {
            Which::Job(job) => entry.with("of", job.as_str()),
            Which::Grant(id) => entry.with("grant", id.to_string()),
        };
        known.write(&self.desk, &entry).await?;
        let asked = self.leases.clone().revoke(which).await;
        let number = |of: usize| u32::try_from(of).unwrap_or(u32::MAX);
        Ok(wire::RevokeLeasesResponse { asked: number(asked.asked), open: number(asked.open) })
    }

    async fn check(
        &self,
        known: &Known,
        request: &wire::CheckSecretsRequest,
    ) -> Result<Response<wire::CheckSecretsResponse>, ApiError> {
        let project = leases::project(&request.project)?;
        let mut share = self.answers.take(&known.caller.subject, ANSWER_BYTES_MAX).ok_or_else(too_much)?;
        let mut entry = known.entry(audit::Action::SecretsChecked);
        entry.project = project.clone();
        known.write(&self.desk, &entry).await?;
        let answer = leases::checked(self.leases.clone().look(project).await.map_err(leases::busy)?);
        share.shrink_to(answer.encoded_len().max(1));
        Ok(WithAnswer::holds(answer, share))
    }
}

/// There is no share of the memory that answers take.
fn too_much() -> ApiError {
    ApiError::later(Code::CallBusy, "too many bytes of answers are not read yet", ANSWER_AGAIN)
}

#[tonic::async_trait]
impl<J: Jobs, H: Host, L: Leases> HostService for HostRpc<J, H, L> {
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

    async fn list_leases(
        &self,
        request: Request<wire::ListLeasesRequest>,
    ) -> Result<Response<wire::ListLeasesResponse>, Status> {
        let known = self.ask(&request, Action::Leases)?;
        Ok(self.list(&known, request.get_ref()).await?)
    }

    async fn revoke_leases(
        &self,
        request: Request<wire::RevokeLeasesRequest>,
    ) -> Result<Response<wire::RevokeLeasesResponse>, Status> {
        let known = self.ask(&request, Action::Revoke)?;
        Ok(Response::new(self.revoke(&known, request.get_ref()).await?))
    }

    async fn check_secrets(
        &self,
        request: Request<wire::CheckSecretsRequest>,
    ) -> Result<Response<wire::CheckSecretsResponse>, Status> {
        let known = self.ask(&request, Action::Check)?;
        Ok(self.check(&known, request.get_ref()).await?)
    }
}
