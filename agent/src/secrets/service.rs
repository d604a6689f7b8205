//! The service: the operator's rules, the journal, the identity, and what is known of grants.

use super::acquire::{AcquireError, Step};
use super::file::SecretsFile;
use super::held::UnderWay;
use super::identity::{Identity, IdentityError};
use super::leases::{Grant, GrantId, Leases, LeasesError};
use super::logout;
use super::mapping::{Denied, Mapping, Wanted};
use super::server::{OfAgent, Server};
use super::unwrapped::Unwrapped;
use crate::audit::{Action, AuditEvent, OURSELVES};
use crate::audit_sink::{AuditSink, Refusal, Refused};
use crate::job::Submission;
use crate::vault::{Assertions, Vault};
use ampoule_evidence::rfc3339;
use ampoule_spec::{InputSource, JobId, JobSpec, Name, UnixNanos};
use futures_util::future::join_all;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;

/// How many clients before are kept.
const BEFORE_MAX: usize = 64;
/// For how long it is waited until it is written down that a step has its secrets.
const HANDED_OVER_WAIT: Duration = Duration::from_secs(2);

/// What is counted.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// What was taken for a step and not given back yet.
    pub open: Gauge,
    /// What of that is to be revoked.
    pub pending: Gauge,
    /// What was handed over.
    pub granted: Counter,
    /// Steps and submissions that the rules gave nothing.
    pub denied: Counter,
    /// Steps whose secrets could not be had.
    pub unavailable: Counter,
    /// Revokes that failed, and are tried again.
    pub revoke_failures: Counter,
    /// Renewals that failed, and are tried again.
    pub renew_failures: Counter,
    /// 1 for each server where the agent is logged in and that serves. The configuration bounds how many there are.
    pub up: Family<[(&'static str, String); 1], Gauge>,
}

/// Why there is no service.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal.
    #[error(transparent)]
    Leases(#[from] LeasesError),
    /// The identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// How the service is opened.
pub struct Options {
    /// Its directory, below the agent's.
    pub dir: PathBuf,
    /// The issuer of the tokens that it signs.
    pub issuer: String,
    /// The directory of systemd's credentials, as systemd has said when the daemon started; none: there is none.
    pub credentials: Option<PathBuf>,
    /// Where it tells what it gives, denies and takes back.
    pub audit: Arc<dyn AuditSink>,
    /// What it counts into.
    pub counts: Counts,
}

/// What is in force.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub(super) mapping: Mapping,
    pub(super) servers: BTreeMap<Name, Arc<dyn Server>>,
    /// Clients before a reload, for what they have given and may know alone.
    pub(super) before: Vec<(Name, Arc<dyn Server>)>,
}

impl Rules {
    /// Who may have given what is under a server's name: first who has it now.
    pub(super) fn all_of(&self, name: &Name) -> Vec<Arc<dyn Server>> {
        let before = self.before.iter().rev().filter(|(of, _)| of == name).map(|(_, server)| server);
        self.servers.get(name).into_iter().chain(before).cloned().collect()
    }
}

/// Rules that were read, with the clients of their servers; not in force yet.
#[derive(Debug)]
pub struct NewRules(pub(super) Rules);

/// The secrets of this host's steps.
pub struct Secrets {
    rules: RwLock<Arc<Rules>>,
    leases: Leases,
    unwrapped: Arc<Unwrapped>,
    pub(super) identity: Arc<Identity>,
    credentials: Option<PathBuf>,
    audit: Arc<dyn AuditSink>,
    counts: Counts,
    /// What is being revoked.
    pub(super) revoking: Mutex<BTreeSet<GrantId>>,
    pub(super) closed: Notify,
    /// Rules were taken.
    pub(super) taken: Notify,
    /// Revokes that failed so far.
    pub(super) under_way: UnderWay,
    /// When the configuration was read last, and why it is not in force.
    pub(super) read: Mutex<(UnixNanos, Result<(), String>)>,
    /// One check of servers at a time.
    pub(super) checking: Arc<tokio::sync::Mutex<()>>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("leases", &self.leases).finish_non_exhaustive()
    }
}

/// The time, by the host's clock.
pub(super) fn now() -> UnixNanos {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixNanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The same in seconds.
pub(super) fn seconds() -> u64 {
    now().0 / 1_000_000_000
}

impl Secrets {
    /// Opens the journal and the identity; no step has anything until rules are [taken](Self::take). Blocks.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(options: Options) -> Result<Arc<Self>, OpenError> {
        Self::on(Leases::open(&options.dir)?, options)
    }

    /// The same with a journal that is open.
    pub(super) fn on(leases: Leases, options: Options) -> Result<Arc<Self>, OpenError> {
        let identity = Identity::open(&options.dir.join("identity"), &options.issuer, seconds())?;
        let this = Self {
            rules: RwLock::default(),
            leases,
            unwrapped: Arc::new(Unwrapped::new(&options.dir)),
            identity: Arc::new(identity),
            credentials: options.credentials,
            audit: options.audit,
            counts: options.counts,
            revoking: Mutex::default(),
            closed: Notify::new(),
            taken: Notify::new(),
            under_way: UnderWay::default(),
            read: Mutex::new((now(), Ok(()))),
            checking: Arc::default(),
        };
        this.count_open();
        Ok(Arc::new(this))
    }

    /// Makes the clients of what a file names; asks no server. One whose configuration is as it was stays, with its login. Blocks for a
    /// moment.
    ///
    /// # Errors
    /// Which server's configuration cannot be used, and why.
    pub fn ready(&self, file: &SecretsFile) -> Result<NewRules, String> {
        let mut servers: BTreeMap<Name, Arc<dyn Server>> = BTreeMap::new();
        let rules = self.rules();
        for (name, config) in &file.servers {
            let old = rules.servers.get(name);
            if let Some(same) = old.filter(|old| old.vault().is_some_and(|vault| vault.is_as(config))) {
                servers.insert(name.clone(), same.clone());
                continue;
            }
            let assertions: Arc<dyn Assertions> = Arc::new(OfAgent(self.identity.clone()));
            let vault = Vault::new(config.clone(), Some(assertions));
            let vault = vault.map_err(|e| format!("server.{name}: {}", crate::chain::chain(&e)))?;
            let mut vault = vault.remembering(self.unwrapped.clone());
            if let Some(old) = old.and_then(|old| old.vault()) {
                vault = vault.after(old);
            }
            servers.insert(name.clone(), Arc::new(vault));
        }
        Ok(NewRules(Rules { mapping: file.mapping.clone(), servers, before: Vec::new() }))
    }

    /// Puts rules in force. What steps have stays theirs, and is revoked by who has given it: the clients before serve for that, as long as
    /// there is something to revoke.
    pub fn take(&self, NewRules(mut new): NewRules) {
        let open: BTreeSet<_> =
            self.leases.open_grants().into_iter().filter_map(|(_, grant)| grant.server).collect();
        let mut over = Vec::new();
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        let before = rules.before.iter().map(|(name, server)| (name, server)).chain(&rules.servers);
        for (name, server) in before {
            let stays = new.servers.get(name).is_some_and(|new| Arc::ptr_eq(new, server));
            // Somebody may be taking something from it just now.
            if stays {
                continue;
            } else if open.contains(name) || Arc::strong_count(server) > 1 {
                new.before.push((name.clone(), server.clone()));
            } else {
                over.push((name.clone(), server.clone()));
            }
        }
        let surplus = new.before.len().saturating_sub(BEFORE_MAX);
        new.before.drain(..surplus);
        *rules = Arc::new(new);
        self.taken.notify_one();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(logout::end_all(over));
        }
    }

    pub(super) fn rules(&self) -> Arc<Rules> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(super) fn credentials(&self) -> Option<&Path> {
        self.credentials.as_deref()
    }

    pub(super) fn audit(&self) -> &dyn AuditSink {
        &*self.audit
    }

    pub(super) fn being_revoked(&self) -> MutexGuard<'_, BTreeSet<GrantId>> {
        self.revoking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agent as an issuer.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Makes the next key of the identity when it is time. Blocks.
    pub fn look_at_identity(&self) {
        if let Err(error) = self.identity.look(seconds()) {
            tracing::error!(
                error = crate::chain::chain(&error),
                "the keys of the workload identity stay those before"
            );
        }
    }

    /// What is counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether a job may be taken by what its steps name. A no is told to the audit log.
    ///
    /// # Errors
    /// [`Denied`] for the first that it may not have.
    pub fn check(&self, submission: &Submission) -> Result<(), Denied> {
        let spec = &submission.spec;
        let rules = self.rules();
        for secret in &spec.secrets {
            let wanted = Wanted {
                project: &submission.project,
                name: &secret.name,
                caller: &submission.caller,
                profile: &spec.profile,
                is_signed: is_signed(spec),
                delivery: &secret.delivery,
            };
            if let Err(denied) = rules.mapping.decide(&wanted) {
                self.counts.denied.inc();
                self.audit.record(&Refused {
                    refusal: Refusal::Denied,
                    peer: "",
                    caller: Some(&submission.caller.subject),
                    call: "ampoule.v1.JobService/SubmitJob",
                    action: Some("secret"),
                    project: Some(submission.project.as_str()),
                    job: None,
                    reason: &denied.reason,
                });
                return Err(denied);
            }
        }
        Ok(())
    }

    /// Steps have what was taken for them. Returns when that is written down, or after seconds: whoever waits hears of no step's end meanwhile.
    pub async fn handed_over(self: &Arc<Self>, grants: &[GrantId]) {
        let written = tokio::spawn(self.clone().write_handed_over(grants.to_vec()));
        let _ = tokio::time::timeout(HANDED_OVER_WAIT, written).await;
    }

    async fn write_handed_over(self: Arc<Self>, grants: Vec<GrantId>) {
        let at = now();
        // Together, so that they share what it costs.
        let written = grants.iter().map(|id| self.journal(self.leases.handed_over(*id, at)));
        for done in join_all(written).await {
            self.counts.granted.inc();
            if let Err(error) = done {
                tracing::warn!(
                    error = crate::chain::chain(&error),
                    "that a step has its secrets is not written down"
                );
            }
        }
    }

    /// A step gets nothing: told to the audit log and counted.
    pub async fn tell_refused(&self, step: &Step, error: &AcquireError) {
        let (job, name) = (&step.job, step.name.as_str());
        let reason = error.reason();
        tracing::warn!(%job, step = name, reason, "a step gets no secrets");
        match error {
            AcquireError::Denied(_) => self.counts.denied.inc(),
            _ => self.counts.unavailable.inc(),
        };
        let mut event = AuditEvent::now(Action::SecretDenied, OURSELVES).denied(reason);
        event = event
            .with("step", name)
            .with("caller", &step.caller.subject)
            .with("code", error.told().0.as_str());
        (event.project, event.job) = (Some(step.project.clone()), Some(job.clone()));
        if let Err(error) = self.audit.write(&event).await {
            tracing::warn!(error = crate::chain::chain(&error), "a denial is not in the audit log");
        }
    }

    /// Everything of a job that a server may still have.
    pub fn open_of(&self, job: &JobId) -> Vec<(GrantId, Grant)> {
        self.leases.of_job(job).into_iter().filter(|(_, grant)| grant.is_open()).collect()
    }

    /// Everything that a server may still have.
    pub fn open_grants(&self) -> Vec<(GrantId, Grant)> {
        self.leases.open_grants()
    }

    pub(super) fn count_open(&self) {
        let (open, pending) = self.leases.count();
        self.counts.open.set(i64::try_from(open).unwrap_or(i64::MAX));
        self.counts.pending.set(i64::try_from(pending).unwrap_or(i64::MAX));
    }

    /// Waits until nothing of a job is open, for so long at most; whether that is so.
    pub async fn until_closed(&self, job: &JobId, within: Duration) -> bool {
        let all = async {
            loop {
                let mut told = std::pin::pin!(self.closed.notified());
                told.as_mut().enable();
                if self.open_of(job).is_empty() {
                    return;
                }
                told.await;
            }
        };
        tokio::time::timeout(within, all).await.is_ok()
    }

    /// What the run attestation says of a job's secrets: JSON, no values; none: it had none.
    pub fn claims(&self, job: &JobId) -> Option<String> {
        let grants = self.leases.of_job(job);
        if grants.is_empty() {
            return None;
        }
        let told: Vec<_> = grants.iter().map(|(_, grant)| Told::of(grant)).collect();
        serde_json::to_string(&told).ok()
    }

    /// Writes down that a grant is to be revoked, and does no more: as an agent that dies then.
    #[cfg(test)]
    pub(crate) async fn begin_revoking(&self, id: GrantId) {
        self.leases.revoking(id, now()).await.expect("the journal");
    }

    /// Whose grants are known, open or not.
    pub fn jobs(&self) -> BTreeSet<JobId> {
        self.leases.jobs()
    }

    /// The job's record is signed.
    pub async fn forget(&self, job: &JobId) {
        if let Err(error) = self.leases.forget(job).await {
            tracing::warn!(job = %job, error = crate::chain::chain(&error), "what a job had of secrets is kept for longer");
        }
    }
}

/// Whether a job has git inputs, and each is signed or demands to be.
pub fn is_signed(spec: &JobSpec) -> bool {
    let mut commits = spec.inputs.iter().filter_map(|input| match &input.source {
        InputSource::Git { signer, .. } => Some(signer.is_some()),
        _ => None,
    });
    commits.next().is_some_and(|first| first && commits.all(|signed| signed))
}

/// A grant as evidence tells it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    step: String,
    secrets: Vec<super::leases::Given>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accessor_sha256: Option<String>,
    leases: usize,
    minted_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    handed_over_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    revoke_pending: bool,
}

impl Told {
    fn of(grant: &Grant) -> Self {
        Self {
            step: grant.step_name.to_string(),
            secrets: grant.secrets.clone(),
            accessor_sha256: grant.accessor.as_deref().map(super::digest_of),
            leases: grant.leases.len(),
            minted_at: rfc3339(grant.minted_at),
            handed_over_at: grant.given_at.map(rfc3339),
            revoked_at: grant.closed_at.map(rfc3339),
            revoke_pending: grant.is_open(),
        }
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
