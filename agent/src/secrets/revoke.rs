//! Taking back: whatever came of a step, and as long as it takes. And having it live until then.

use super::acquire::{about, after};
use super::held::{names, shown};
use super::leases::{Grant, GrantId};
use super::server::Server;
use super::service::{Secrets, now};
use crate::audit::Action;
use crate::chain::chain;
use crate::vault::{Accessor, LeaseId, VaultError};
use ampoule_spec::{JobId, Name, UnixNanos};
use std::sync::Arc;
use std::time::Duration;

/// How long to wait before a revoke is tried again: doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// When a renewal that failed is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(5);
/// When a renewal comes next at the soonest, whatever life a server grants.
const RENEW_SOONEST: Duration = Duration::from_secs(1);
/// What is left of a life when it is renewed has a jitter of so many parts of a hundred, so that not all come at once.
const JITTER: u64 = 10;

/// When a token is over for sure: a renewal that was journaled may have been under way for so long, the longest budget of a call.
const OVER_AFTER: Duration = Duration::from_secs(3600);

/// The server that was found to have given a grant which names no cluster: when the token is gone it cannot be found any more.
type Found = Option<Arc<dyn Server>>;

impl Secrets {
    /// Takes a grant back, for as long as it takes; who asks again changes nothing. Returns at once.
    pub fn revoke(self: &Arc<Self>, id: GrantId) {
        self.begin_revoke(id);
    }

    /// The same; whether it was not under way yet.
    pub(super) fn begin_revoke(self: &Arc<Self>, id: GrantId) -> bool {
        {
            let mut all = self.being_revoked();
            if !all.insert(id) {
                return false;
            }
            // Under the lock: who finds it under way finds where to leave a wish, too.
            self.under_way.begins(id);
        }
        let being = BeingRevoked(self.clone(), id);
        tokio::spawn(async move { being.0.until_revoked(id).await });
        true
    }

    /// Takes back everything of a job.
    pub fn revoke_job(self: &Arc<Self>, job: &JobId) {
        self.open_of(job).into_iter().for_each(|(id, _)| self.revoke(id));
    }

    async fn until_revoked(self: &Arc<Self>, id: GrantId) {
        // Beside the tries: a disk that hangs keeps nothing alive at a server.
        let mut writing = Some(tokio::spawn(self.clone().write_revoking(id, now())));
        let (mut pause, mut is_told, mut found) = (PAUSE.0, false, None);
        loop {
            let Some(grant) = self.leases().get(id).filter(Grant::is_open) else { return };
            let failed = match self.try_revoke(&grant, &mut found).await {
                Ok(()) => {
                    // Before it is closed: whoever dies in between revokes and tells it once more, and never not at all.
                    if !is_told {
                        is_told = true;
                        self.tell_revoked(&grant).await;
                    }
                    // That it is to go comes before that it is gone, also in the journal. What could not be written, or not at all, is no matter.
                    if let Some(writing) = writing.take() {
                        let _ = writing.await;
                    }
                    // What was read meanwhile may have waited for the same disk.
                    if self.leases().get(id).is_some_and(|now| now.leases.len() > grant.leases.len()) {
                        continue;
                    }
                    match self.journal(self.leases().closed(id, now())).await {
                        Ok(()) => return,
                        Err(error) => chain(&error),
                    }
                }
                Err(error) => error,
            };
            self.counts().revoke_failures.inc();
            let (job, step) = (&grant.job, grant.step_name.as_str());
            let failed = shown(&grant, &failed);
            tracing::warn!(%job, step, error = failed, "what a step had is not revoked yet; it is tried again");
            self.under_way.failed(id, &grant, &failed);
            self.under_way.pause(id, jittered(pause)).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn write_revoking(self: Arc<Self>, id: GrantId, at: UnixNanos) {
        if let Err(error) = self.journal(self.leases().revoking(id, at)).await {
            tracing::warn!(error = chain(&error), "that a lease is to be revoked is not written down");
        }
    }

    /// Who has given a grant. To anybody else it is unknown, and what is unknown counts as revoked.
    async fn giver(&self, name: &Name, grant: &Grant) -> Result<Arc<dyn Server>, String> {
        let mut why = format!(
            "there is no [server.{name}] in secrets.toml any more; put it back until nothing of it is open"
        );
        for server in self.rules().all_of(name) {
            let Some(cluster) = &grant.cluster else { return Ok(server) };
            why = match server.cluster().await {
                Ok(Some(found)) if found == *cluster => return Ok(server),
                Ok(found) => format!(
                    "[server.{name}] is cluster {} now, and it was {cluster} that gave it; name that one again until nothing of it is open",
                    found.as_deref().unwrap_or("without an id")
                ),
                Err(error) => format!("server {name}: {}", chain(&error)),
            };
        }
        Err(why)
    }

    /// The same of a grant that names no cluster. Whoever knows its token has given it; when nobody does, it may be anybody else's who is asked,
    /// and only its time says that it is over.
    async fn giver_of_nameless(
        &self,
        name: &Name,
        grant: &Grant,
        found: &mut Found,
    ) -> Result<Arc<dyn Server>, String> {
        if let Some(server) = found {
            return Ok(server.clone());
        }
        let accessor = grant.accessor.clone().and_then(Accessor::new);
        let mut first = self.giver(name, grant).await;
        for server in self.rules().all_of(name) {
            let knows = match &accessor {
                Some(accessor) => server.knows(accessor).await,
                None => Ok(false),
            };
            let why = match knows {
                Ok(true) => {
                    *found = Some(server.clone());
                    return Ok(server);
                }
                Ok(false) => format!(
                    "[server.{name}] did not say which cluster it is, and knows nothing of the token, as any other server would: it counts as revoked an \
                     hour after its time"
                ),
                Err(error) => format!("server {name}: {}", chain(&error.without(&names(grant)))),
            };
            if now() < after(grant.until, OVER_AFTER) {
                first = Err(why);
            }
        }
        first
    }

    async fn tell_revoked(&self, grant: &Grant) {
        if grant.server.is_some()
            && let Err(error) = self.audit().write(&about(Action::SecretRevoked, grant)).await
        {
            tracing::warn!(error = chain(&error), "a revoke is not in the audit log");
        }
    }

    /// The token first, so that nothing more can be had with it; then each lease, until its backend has taken it back.
    async fn try_revoke(&self, grant: &Grant, found: &mut Found) -> Result<(), String> {
        let Some(name) = &grant.server else { return Ok(()) };
        let server = match grant.cluster {
            Some(_) => self.giver(name, grant).await?,
            None => self.giver_of_nameless(name, grant, found).await?,
        };
        let named = names(grant);
        let failed = |error: VaultError| format!("server {name}: {}", chain(&error.without(&named)));
        if let Some(accessor) = grant.accessor.clone().and_then(Accessor::new) {
            server.revoke(&accessor).await.map_err(failed)?;
        }
        for lease in grant.leases.iter().filter_map(|lease| LeaseId::new(lease.clone())) {
            server.revoke_lease(&lease).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Has everything of a grant live until a time; says when to ask for that again, none: not at all.
    pub async fn renew(self: &Arc<Self>, id: GrantId, until: UnixNanos) -> Option<Duration> {
        // What is to go is not prolonged, also while that is being written down.
        if self.being_revoked().contains(&id) {
            return None;
        }
        let grant = self.leases().get(id).filter(|grant| grant.is_open() && grant.revoking_at.is_none())?;
        let need = Duration::from_nanos(until.0.saturating_sub(now().0));
        let mut server = self.giver(grant.server.as_ref()?, &grant).await;
        if grant.cluster.is_none() && grant.until < until {
            // Before it lives for longer, as at its making.
            let written = self.journal(self.leases().renewed(id, until)).await;
            server = server.and_then(|server| written.map_err(|error| chain(&error)).map(|()| server));
        }
        let server = match server {
            Ok(server) => server,
            Err(error) => {
                self.counts().renew_failures.inc();
                let (job, step) = (&grant.job, grant.step_name.as_str());
                tracing::warn!(%job, step, error, "what a step has is not renewed; it is tried again");
                return Some(RENEW_AGAIN);
            }
        };
        let (mut least, named) = (need, names(&grant));
        let mut again = |renewed: Result<crate::vault::Renewed, VaultError>| match renewed {
            Ok(renewed) if renewed.covers(need) => {}
            Ok(renewed) => least = least.min(renewed.ttl),
            // What cannot be renewed was held against the step's time before it was handed over.
            Err(VaultError::Refused { .. }) => {}
            Err(error) => {
                self.counts().renew_failures.inc();
                let (job, step) = (&grant.job, grant.step_name.as_str());
                let error = chain(&error.without(&named));
                tracing::warn!(%job, step, error, "what a step has is not renewed; it is tried again");
                least = least.min(RENEW_AGAIN);
            }
        };
        if let Some(accessor) = grant.accessor.clone().and_then(Accessor::new) {
            let renewed = server.renew(&accessor, need).await;
            let ttl = renewed.as_ref().ok().map(|renewed| renewed.ttl);
            again(renewed);
            if let Some(ttl) = ttl {
                let _ = self.journal(self.leases().renewed(id, after(now(), ttl))).await;
            }
        }
        for lease in grant.leases.iter().filter_map(|lease| LeaseId::new(lease.clone())) {
            again(server.renew_lease(&lease, need).await);
        }
        (least < need).then(|| jittered(least * 2 / 3).max(RENEW_SOONEST))
    }
}

/// A grant whose revoke is under way, also if it ends early.
struct BeingRevoked(Arc<Secrets>, GrantId);

impl Drop for BeingRevoked {
    fn drop(&mut self) {
        let Self(secrets, id) = self;
        let mut all = secrets.being_revoked();
        all.remove(id);
        secrets.under_way.over(*id);
        drop(all);
        secrets.count_open();
        secrets.closed.notify_waiters();
    }
}

/// A little less, by chance.
fn jittered(of: Duration) -> Duration {
    let mut byte = [0];
    let _ = aws_lc_rs::rand::fill(&mut byte);
    let [byte] = byte;
    let part = u64::from(byte).saturating_mul(JITTER) / 255;
    of.mul_f64(1.0 - f64::from(u32::try_from(part).unwrap_or(0)) / 100.0)
}
