//! From a step that waits to its values: each thing that a server gives is in the journal before anything comes of it.

use super::fitting::{fitting, too_many};
use super::leases::{Given, Grant, GrantId, LeasesError};
use super::local::{read_credential, read_file};
use super::mapping::{Denied, Source};
use super::plan::{Field, Plan, Reads};
use super::server::{Server, Times};
use super::service::{Secrets, now};
use super::wait::Waiting;
use crate::audit::{Action, AuditEvent, OURSELVES};
use crate::chain::chain;
use crate::job::Caller;
use crate::vault::{Accessor, Data, Lease, Secret, VaultError, by};
use ampoule_spec::{Code, JobId, Name, STEP_SECRET_BYTES_MAX, UnixNanos};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A token and its leases outlive the step's time limit by so much.
const GRACE: Duration = Duration::from_secs(60);
/// The most names of fields in a message.
const FIELDS_SHOWN: usize = 32;
/// What a tenant is told when the reason is the operator's.
const UNAVAILABLE: &str = "a secret of this step cannot be had now; the log of this host's agent says why";

/// A step that names secrets.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its job.
    pub job: JobId,
    /// The job's project.
    pub project: Name,
    /// Who has submitted the job.
    pub caller: Caller,
    /// The job's profile.
    pub profile: Name,
    /// See [`Wanted::is_signed`].
    pub is_signed: bool,
    /// Its place in the job, from 0.
    pub index: u32,
    /// Its name.
    pub name: Name,
    /// Its time limit.
    pub limit: Duration,
    /// What it names, in its order.
    pub secrets: Vec<ampoule_spec::Secret>,
}

/// What a step gets.
#[derive(Debug, Default)]
pub struct Acquired {
    /// In the order of the step's names.
    pub values: Vec<(Name, Secret)>,
    /// What was taken for it and stays.
    pub grants: Vec<GrantId>,
    /// What was taken for it and is to be taken again.
    pub rotating: Vec<GrantId>,
    /// How often some of the values are to be looked for again; none: never.
    pub rotates: Option<Duration>,
}

impl Acquired {
    /// Everything that was taken.
    pub fn ids(&self) -> impl Iterator<Item = GrantId> {
        self.grants.iter().chain(&self.rotating).copied()
    }
}

/// Why a step has no values. What was taken for it is being revoked.
#[derive(Debug)]
pub enum AcquireError {
    /// The rules do not give it.
    Denied(Denied),
    /// It cannot be had; for the operator, and what the tenant is told.
    Unavailable {
        /// Why.
        reason: String,
        /// What the tenant is told.
        told: String,
    },
    /// A server does not serve, and may later.
    Away {
        /// Which.
        server: Name,
        /// Why not.
        reason: String,
        /// How long is waited for it.
        times: Times,
        /// Whether it was asked at all, which the reason is from.
        was_asked: bool,
    },
    /// Nobody wants it any more.
    Over,
}

impl AcquireError {
    /// What ends the job: a code, and what its tenant is told.
    pub fn told(&self) -> (Code, &str) {
        match self {
            Self::Denied(denied) => (Code::SecretDenied, &denied.told),
            Self::Unavailable { told, .. } => (Code::SecretUnavailable, told),
            Self::Away { .. } | Self::Over => (Code::SecretUnavailable, UNAVAILABLE),
        }
    }

    /// Why, for the operator.
    pub fn reason(&self) -> &str {
        match self {
            Self::Denied(denied) => &denied.reason,
            Self::Unavailable { reason, .. } | Self::Away { reason, .. } => reason,
            Self::Over => "the job is over",
        }
    }

    /// Taking it ended early.
    pub(crate) fn defect() -> Self {
        Self::unavailable("a defect: taking secrets ended early".to_owned())
    }

    pub(super) fn unavailable(reason: String) -> Self {
        Self::Unavailable { reason, told: UNAVAILABLE.to_owned() }
    }
}

impl From<LeasesError> for AcquireError {
    fn from(error: LeasesError) -> Self {
        Self::unavailable(chain(&error))
    }
}

#[derive(Debug, Default)]
struct Taken {
    values: BTreeMap<usize, Secret>,
    grants: Vec<GrantId>,
    rotating: Vec<GrantId>,
}

impl Secrets {
    /// Takes everything that a step names. To be run as a task of its own and never dropped: what was taken must be handed over or revoked.
    ///
    /// # Errors
    /// [`AcquireError`].
    pub async fn acquire(
        self: &Arc<Self>,
        step: &Step,
        over: &CancellationToken,
    ) -> Result<Acquired, AcquireError> {
        self.take_for(step, over, |_| true, Waiting::of_a_new_step()).await
    }

    /// The same of what is to be looked for again, as new grants.
    ///
    /// # Errors
    /// [`AcquireError`].
    pub async fn acquire_again(
        self: &Arc<Self>,
        step: &Step,
        over: &CancellationToken,
    ) -> Result<Acquired, AcquireError> {
        self.take_for(step, over, |rotate| rotate.is_some(), Waiting::of_a_rotation()).await
    }

    async fn take_for(
        self: &Arc<Self>,
        step: &Step,
        over: &CancellationToken,
        wanted: fn(&Option<Duration>) -> bool,
        mut waiting: Waiting,
    ) -> Result<Acquired, AcquireError> {
        let (plan, taken) = loop {
            // Each time: what the operator takes away meanwhile is not given.
            let mut plan = self.plan(step)?;
            plan.servers.retain(|(_, rotate), _| wanted(rotate));
            if !wanted(&None) {
                plan.host.clear();
            }
            let mut taken = Taken::default();
            let done = self.take_all(step, &plan, over, &mut taken, &waiting).await;
            let bytes: usize = taken.values.values().map(Secret::len).sum();
            let done =
                done.and_then(|()| if bytes > STEP_SECRET_BYTES_MAX { Err(too_many(bytes)) } else { Ok(()) });
            let Err(error) = done else { break (plan, taken) };
            taken.grants.iter().chain(&taken.rotating).for_each(|id| self.revoke(*id));
            unless(over, waiting.after(step, error)).await??;
        };
        let names = step.secrets.iter().map(|secret| secret.name.clone());
        let mut values = taken.values;
        let values = names.enumerate().filter_map(|(at, name)| Some((name, values.remove(&at)?)));
        let rotates = plan.rotates();
        let (grants, rotating) = (taken.grants, taken.rotating);
        Ok(Acquired { values: values.collect(), grants, rotating, rotates })
    }

    async fn take_all(
        self: &Arc<Self>,
        step: &Step,
        plan: &Plan,
        over: &CancellationToken,
        taken: &mut Taken,
        waiting: &Waiting,
    ) -> Result<(), AcquireError> {
        // All of them first: what one has given does not age while another is waited for.
        let mut servers = BTreeMap::new();
        for (name, _) in plan.servers.keys() {
            if !servers.contains_key(name) {
                servers.insert(name, self.ready_server(name, over, waiting).await?);
            }
        }
        for ((name, rotate), reads) in &plan.servers {
            let Some((server, cluster)) = servers.get(name) else { continue };
            let whole = step.limit.saturating_add(GRACE);
            let need = rotate.map_or(whole, |every| whole.min(every.saturating_mul(2).saturating_add(GRACE)));
            let rotates = rotate.is_some();
            let of = Of { step, name, server: &**server, cluster, reads, need, rotates, waiting };
            self.from_server(&of, over, taken).await?;
        }
        self.from_host(step, &plan.host, taken).await?;
        for id in taken.grants.iter().chain(&taken.rotating) {
            self.tell_granted(step, *id).await?;
        }
        Ok(())
    }

    async fn ready_server(
        &self,
        name: &Name,
        over: &CancellationToken,
        waiting: &Waiting,
    ) -> Result<(Arc<dyn Server>, Option<String>), AcquireError> {
        let server = self.rules().servers.get(name).cloned();
        let server =
            server.ok_or_else(|| AcquireError::unavailable(format!("there is no [server.{name}]")))?;
        let asked = by(waiting.to_serve(server.times()), async {
            server.ready().await?;
            server.cluster().await
        });
        let cluster = unless(over, asked).await?.map_err(|error| failed(name, &*server, &error))?;
        Ok((server, cluster))
    }

    async fn from_server(
        self: &Arc<Self>,
        of: &Of<'_>,
        over: &CancellationToken,
        taken: &mut Taken,
    ) -> Result<(), AcquireError> {
        let (server, need) = (of.server, of.need);
        let failed = |error: VaultError| failed(of.name, server, &error);
        let minted = match of.by(server.mint(of.step, &self.identity)).await {
            Ok(minted) => minted,
            Err(VaultError::Unfit { accessor, ttl, reason, doing }) => {
                // It could not be taken back at once.
                let id = self.journal_minted(of, &accessor, ttl).await?;
                self.revoke(id);
                return Err(failed(VaultError::Answer { doing, reason }));
            }
            Err(error) => return Err(failed(error)),
        };
        let id = self.journal_minted(of, &minted.accessor, minted.ttl).await?;
        if of.rotates {
            taken.rotating.push(id)
        } else {
            taken.grants.push(id)
        }
        let renewed = unless(over, of.by(server.renew(&minted.accessor, need))).await?;
        let renewed = renewed.map_err(|error| failed(error.without(&[minted.accessor.as_str()])))?;
        let until = after(now(), renewed.ttl);
        self.journal(self.leases().renewed(id, until)).await?;
        if !renewed.covers(need) {
            return Err(AcquireError::unavailable(format!(
                "server {}: the step's token may live for {:?}, and the step for {need:?} with its grace; raise token_max_ttl of its role, or \
                 lower the step's timeout",
                of.name, renewed.ttl
            )));
        }
        for (read, fields) in of.reads {
            let found = unless(over, of.by(server.read(&minted.token, read))).await?.map_err(failed)?;
            if let Some(lease) = found.lease {
                let leases = vec![lease.id.to_string()];
                self.journal(self.leases().leased(id, leases)).await?;
                unless(over, self.outlast(of, &lease)).await??;
            }
            for Field { at, name, field } in fields {
                let value = match field {
                    Some(field) => found.data.field(field),
                    None => Some(found.data.whole()),
                };
                let value = value.ok_or_else(|| {
                    AcquireError::unavailable(without_field(name, field.as_deref(), &found.data))
                })?;
                taken.values.insert(*at, fitting(name, value)?);
            }
        }
        Ok(())
    }

    async fn journal_minted(
        self: &Arc<Self>,
        of: &Of<'_>,
        minted: &Accessor,
        ttl: Duration,
    ) -> Result<GrantId, AcquireError> {
        let provider = format!("vault:{}", of.name);
        let names = of.reads.values().flatten().map(|field| field.name.to_string());
        let secrets = names.map(|name| Given { name, provider: provider.clone() }).collect();
        let at = now();
        let accessor = Some(minted.as_str().to_owned());
        // A crash may come between its renewal and the entry of that. Of a server without a cluster's id nothing but its time says that it is over.
        let lives = if of.cluster.is_none() { ttl.saturating_add(of.need) } else { ttl };
        let grant = Grant {
            server: Some(of.name.clone()),
            cluster: of.cluster.clone(),
            rotates: of.rotates,
            accessor,
            until: after(at, lives),
            ..grant(of.step, secrets, at)
        };
        match self.journal(self.leases().minted(grant)).await {
            Ok(id) => Ok(id),
            Err(error) => {
                // It has seconds to live; nobody else knows of it.
                let _ = of.server.revoke(minted).await;
                Err(error.into())
            }
        }
    }

    /// Sees to it that a lease lasts as long as the step may.
    async fn outlast(&self, of: &Of<'_>, lease: &Lease) -> Result<(), AcquireError> {
        let Of { need, name, .. } = *of;
        if lease.duration >= need {
            return Ok(());
        }
        let short = |lasts: Duration| {
            let remedy = "raise its role's max_ttl, lower the step's timeout, or let it rotate";
            let what = format!(
                "server {name}: a lease lasts for {lasts:?}, and the step for {need:?} with its grace"
            );
            Err(AcquireError::unavailable(format!("{what}; {remedy}")))
        };
        if !lease.renewable {
            return short(lease.duration);
        }
        match of.by(of.server.renew_lease(&lease.id, need)).await {
            Ok(renewed) if renewed.covers(need) => Ok(()),
            Ok(renewed) => short(renewed.ttl),
            Err(error) => Err(failed(name, of.server, &error.without(&[lease.id.as_str()]))),
        }
    }

    async fn from_host(
        self: &Arc<Self>,
        step: &Step,
        wanted: &[(usize, Name, Source)],
        taken: &mut Taken,
    ) -> Result<(), AcquireError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let mut secrets = Vec::new();
        for (at, name, source) in wanted {
            let (of, this) = (source.clone(), self.clone());
            let read = move || match &of {
                Source::File(path) => Some(read_file(path)),
                Source::Credential(credential) => Some(read_credential(this.credentials(), credential)),
                Source::Vault { .. } => None,
            };
            let read = tokio::task::spawn_blocking(read).await.map_err(|_| AcquireError::defect())?;
            let Some(value) = read else { continue };
            let value =
                value.map_err(|e| AcquireError::unavailable(format!("secret {name}: {}", chain(&e))))?;
            taken.values.insert(*at, fitting(name, value)?);
            secrets.push(Given { name: name.to_string(), provider: source.provider() });
        }
        let grant = grant(step, secrets, now());
        taken.grants.push(self.journal(self.leases().minted(grant)).await?);
        Ok(())
    }

    /// Who gets what stands in the audit log before it does.
    async fn tell_granted(&self, step: &Step, id: GrantId) -> Result<(), AcquireError> {
        let Some(grant) = self.leases().get(id) else { return Ok(()) };
        let event = about(Action::SecretGranted, &grant).with("caller", &step.caller.subject);
        let written = self.audit().write(&event).await;
        written.map_err(|e| AcquireError::unavailable(format!("the audit log: {}", chain(&e))))
    }

    /// Has something written down, and waits until it is durable.
    pub(super) async fn journal<T>(
        &self,
        written: impl Future<Output = Result<T, LeasesError>>,
    ) -> Result<T, LeasesError> {
        let done = written.await;
        self.count_open();
        done
    }
}

/// What one server is asked for a step.
struct Of<'a> {
    step: &'a Step,
    name: &'a Name,
    server: &'a dyn Server,
    cluster: &'a Option<String>,
    reads: &'a Reads,
    /// How long it must live.
    need: Duration,
    /// Whether it is to be taken again.
    rotates: bool,
    waiting: &'a Waiting,
}

impl Of<'_> {
    /// Has a call take as long as the server is waited for, and no longer.
    async fn by<T>(&self, call: impl Future<Output = T>) -> T {
        by(self.waiting.to_answer(self.server.times()), call).await
    }
}

fn failed(name: &Name, server: &dyn Server, error: &VaultError) -> AcquireError {
    let reason = format!("server {name}: {}", chain(error));
    if error.retryable() {
        let (times, was_asked) = (server.times(), error.was_asked());
        return AcquireError::Away { server: name.clone(), reason, times, was_asked };
    }
    AcquireError::unavailable(reason)
}

/// Waits for something that may be dropped: not for a new token, of which nobody would know.
async fn unless<T>(over: &CancellationToken, wanted: impl Future<Output = T>) -> Result<T, AcquireError> {
    tokio::select! {
        biased;
        () = over.cancelled() => Err(AcquireError::Over),
        done = wanted => Ok(done),
    }
}

fn grant(step: &Step, secrets: Vec<Given>, at: UnixNanos) -> Grant {
    Grant {
        job: step.job.clone(),
        step: step.index,
        step_name: step.name.clone(),
        project: step.project.clone(),
        server: None,
        cluster: None,
        secrets,
        rotates: false,
        accessor: None,
        leases: Vec::new(),
        until: at,
        minted_at: at,
        given_at: None,
        revoking_at: None,
        closed_at: None,
    }
}

/// Why there is no value for a secret: what fields there are is the operator's to know, as their names are no values.
fn without_field(name: &Name, field: Option<&str>, data: &Data) -> String {
    let names: Vec<&str> = data.names().take(FIELDS_SHOWN).collect();
    format!(
        "secret {name}: the answer has no field {}; it has {}",
        field.unwrap_or_default(),
        names.join(", ")
    )
}

pub(super) fn after(at: UnixNanos, ttl: Duration) -> UnixNanos {
    UnixNanos(at.0.saturating_add(u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX)))
}

/// An entry of the audit log about a grant.
pub(super) fn about(action: Action, grant: &Grant) -> AuditEvent {
    let names: Vec<_> = grant.secrets.iter().map(|given| given.name.as_str()).collect();
    let mut event = AuditEvent::now(action, OURSELVES)
        .with("step", grant.step_name.as_str())
        .with("secrets", names.join(","))
        .with("provider", grant.secrets.first().map_or("", |given| given.provider.as_str()));
    if let Some(accessor) = &grant.accessor {
        event = event.with("accessor_sha256", super::digest_of(accessor));
    }
    (event.project, event.job) = (Some(grant.project.clone()), Some(grant.job.clone()));
    event
}
