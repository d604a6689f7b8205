//! What a step that runs has: kept alive, and taken anew where the operator wants that.

use super::{Tending, is_of};
use crate::local::hand_over::{Told, rotate};
use crate::secrets::{Acquired, GrantId};
use crate::vault::Secret;
use ampoule_spec::{Name, UnixNanos};
use aws_lc_rs::digest::{Digest, SHA256, digest};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What a step has lives longer than it may run by so much.
const GRACE: Duration = Duration::from_secs(60);
/// When something that failed for a step that runs is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// After so many rotations in a row that the step did not take, or may not have taken, there are no more: of the latter each leaves
/// something that lives as long as the step.
pub(super) const FAILED_MAX: u32 = 3;
/// When a renewal is looked at again of which nothing is heard.
const LOST: Duration = Duration::from_secs(120);

/// When each is to be renewed next; none: it lives long enough.
pub(super) type Renewed = Vec<(GrantId, Option<Duration>)>;

/// What a step that runs has.
#[derive(Default)]
pub(super) struct Held {
    /// When each is to be renewed; none: it lives long enough.
    pub(super) grants: BTreeMap<GrantId, Option<Instant>>,
    /// Those that are taken anew.
    pub(super) rotating: Vec<GrantId>,
    pub(super) rotates: Option<(Duration, Instant)>,
    /// Rotations in a row that the step did not take, as far as anybody knows.
    pub(super) failed: u32,
    /// What is being renewed.
    pub(super) renewing: Option<oneshot::Receiver<Renewed>>,
    /// Of the values, to know another one by.
    pub(super) digests: BTreeMap<Name, Digest>,
}

impl Held {
    /// Looks for other values again in a while.
    pub(super) fn try_again(&mut self) {
        self.rotates = self.rotates.map(|(every, _)| (every, Instant::now() + AGAIN));
    }

    pub(super) fn due(&self, with_rotation: bool) -> Option<Instant> {
        let rotates = self.rotates.map(|(_, at)| at).filter(|_| with_rotation);
        let renews = self.grants.values().copied().flatten().filter(|_| self.renewing.is_none());
        renews.chain(rotates).min()
    }

    /// Takes in what came of a renewal.
    pub(super) fn note(&mut self, renewed: Renewed) {
        for (id, again) in renewed {
            if let Some(at) = self.grants.get_mut(&id) {
                *at = again.map(|again| Instant::now() + again);
            }
        }
    }

    fn has_failed(&mut self) {
        self.failed = self.failed.saturating_add(1);
        if self.failed >= FAILED_MAX {
            self.rotates = None;
        }
    }

    fn put_off(&mut self) {
        let later = Instant::now() + AGAIN;
        self.grants.values_mut().flatten().for_each(|at| *at = later.max(*at));
        if let Some((_, at)) = &mut self.rotates {
            *at = later.max(*at);
        }
    }
}

impl Tending {
    /// Goes on with what an agent before us has given to a step that runs.
    pub(super) fn take_over(&mut self, step: u32) {
        let open = self.secrets.open_of(&self.life.job.id);
        let now = Instant::now();
        for (id, grant) in open.into_iter().filter(|(_, grant)| is_of(grant, step)) {
            self.held.grants.insert(id, Some(now));
            if grant.rotates {
                self.held.rotating.push(id);
            }
        }
        if !self.held.rotating.is_empty() {
            let every = self.step(step).and_then(|step| self.secrets.rotates(&step));
            self.held.rotates = every.map(|every| (every, now + every));
        }
    }

    /// Gives a step that runs the values that are others now.
    pub(super) async fn rotate(&mut self, step: u32, acquired: Acquired) {
        self.held.rotates = self.held.rotates.map(|(every, _)| (every, Instant::now() + every));
        if self.running.is_none_or(|(running, _)| running != step) {
            acquired.ids().for_each(|id| self.secrets.revoke(id));
            return;
        }
        let of_before = |(name, value): &(Name, Secret)| {
            let now = digest(&SHA256, value.expose());
            self.held.digests.get(name).is_some_and(|before| before.as_ref() == now.as_ref())
        };
        let new: Vec<GrantId> = acquired.ids().collect();
        let values: Vec<_> = acquired.values.into_iter().filter(|value| !of_before(value)).collect();
        if values.is_empty() {
            new.into_iter().for_each(|id| self.secrets.revoke(id));
            self.prolong();
            return;
        }
        let digests: Vec<_> =
            values.iter().map(|(name, value)| (name.clone(), digest(&SHA256, value.expose()))).collect();
        let dir = self.dir.clone();
        let told = tokio::task::spawn_blocking(move || rotate_all(&dir, step, &values));
        match told.await.unwrap_or_else(|e| Rotated::Unsure(e.to_string())) {
            Rotated::All => {
                self.secrets.handed_over(&new).await;
                self.held.digests.extend(digests);
                self.held.failed = 0;
                for id in std::mem::replace(&mut self.held.rotating, new.clone()) {
                    self.held.grants.remove(&id);
                    self.secrets.revoke(id);
                }
                self.held.grants.extend(new.into_iter().map(|id| (id, None)));
            }
            Rotated::None(why) => {
                tracing::warn!(job = %self.life.job.id, step, why, "a step does not take other values; those that it has stay for now");
                new.into_iter().for_each(|id| self.secrets.revoke(id));
                self.held.has_failed();
                self.prolong();
            }
            Rotated::Unsure(why) => {
                // It may have some of both.
                tracing::warn!(job = %self.life.job.id, step, why, "whether a step took other values is not known; both stay to its end");
                self.held.rotating.extend(new);
                self.held.has_failed();
                self.prolong();
            }
        }
    }

    /// What stays for now is renewed.
    pub(super) fn prolong(&mut self) {
        let now = Instant::now();
        for id in &self.held.rotating {
            self.held.grants.insert(*id, Some(now));
        }
    }

    /// Renews in a task of its own: a server that hangs holds up no other's, and nothing else of the job.
    fn renew(&mut self, due: Vec<GrantId>, until: UnixNanos) {
        for id in &due {
            self.held.grants.insert(*id, Some(Instant::now() + LOST));
        }
        let (secrets, over) = (self.secrets.clone(), self.step_over.clone());
        let (tell, answer) = oneshot::channel();
        self.held.renewing = Some(answer);
        tokio::spawn(async move {
            let each = due.into_iter().map(|id| {
                let secrets = secrets.clone();
                async move { (id, secrets.renew(id, until).await) }
            });
            tokio::select! {
                renewed = futures_util::future::join_all(each) => drop(tell.send(renewed)),
                () = over.cancelled() => {}
            }
        });
    }

    /// Renews what is due, and looks for other values when it is time.
    pub(super) fn keep_alive(&mut self) {
        let Some((step, since)) = self.running else {
            // It is about to run: nothing that it has ends so soon.
            self.held.put_off();
            return;
        };
        let limit = self.step(step).map_or(GRACE, |step| step.limit.saturating_add(GRACE));
        let until = UnixNanos(since.0.saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX)));
        let now = Instant::now();
        let due: Vec<_> = self
            .held
            .grants
            .iter()
            .filter(|(_, at)| at.is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        if self.held.renewing.is_none() && !due.is_empty() {
            self.renew(due, until);
        }
        if let Some((every, at)) = self.held.rotates
            && at <= now
            && self.acquiring.is_none()
        {
            self.held.rotates = Some((every, now + every));
            self.acquire(step, true);
        }
    }
}

/// Waits for what is being renewed; for ever if nothing is.
pub(super) async fn answered(renewing: &mut Option<oneshot::Receiver<Renewed>>) -> Renewed {
    let Some(answer) = renewing else { return std::future::pending().await };
    let renewed = answer.await.unwrap_or_default();
    *renewing = None;
    renewed
}

/// What became of other values.
enum Rotated {
    All,
    /// The step has what it had.
    None(String),
    Unsure(String),
}

/// Gives a step other values, one after the other. Blocks.
fn rotate_all(dir: &Path, step: u32, values: &[(Name, Secret)]) -> Rotated {
    for (at, (name, value)) in values.iter().enumerate() {
        match rotate(dir, step, name, value) {
            Ok(Told::Took) => {}
            Ok(Told::Refused(why)) if at == 0 => return Rotated::None(why),
            Ok(Told::Refused(why)) => return Rotated::Unsure(why),
            Err(error) => return Rotated::Unsure(error.to_string()),
        }
    }
    Rotated::All
}
