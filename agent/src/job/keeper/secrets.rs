//! The secrets of a job that runs: what its steps wait for is taken and handed over, kept alive, and taken back when a step has ended.
//!
//! What is followed are the job's own events, from their beginning: so whoever begins in the middle of a job, after a restart, knows as
//! much as who was there all the time. Nothing here holds what the journal of leases does not have.

use super::follow::{Tail, What};
use super::inner::Inner;
use super::records::HadSecrets;
use crate::job::state::Life;
use crate::local::hand_over::{Told, fail, give, rotate};
use crate::secrets::{AcquireError, Acquired, GrantId, Secrets, Step, is_signed};
use ampoule_spec::{Event, JobId, JobSpec, Name, UnixNanos};
use aws_lc_rs::digest::{Digest, SHA256, digest};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often a job's events are looked at.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// Bytes of events that are read in one go.
const BATCH_BYTES: u64 = 256 << 10;
/// What a step has lives longer than it may run by so much.
const GRACE: Duration = Duration::from_secs(60);
/// How long a job's record waits for its secrets to be taken back. Then it has no provenance.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// When something that failed for a step that runs is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// A task that sees to a job's secrets. Dropped, it ends and takes nothing back: the job may go on without this agent.
#[derive(Debug)]
pub(super) struct Tended {
    over: CancellationToken,
    task: JoinHandle<()>,
}

impl Drop for Tended {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inner {
    /// Begins to see to the secrets of a job that runs; none if it names none.
    pub(super) fn tend(self: &Arc<Self>, life: &Life) -> Option<Tended> {
        let secrets = self.options.secrets.clone()?;
        let spec = self.ledger.spec(&life.job.id).ok().flatten()?;
        if spec.steps.iter().all(|step| step.secrets.is_empty()) {
            return None;
        }
        let dir = self.launcher.job_dir(&life.job.id);
        Some(Tending::of(secrets, dir, life.clone(), spec).begin())
    }

    /// Takes back what a job has, and waits for it for a while; whether nothing is left.
    pub(super) async fn take_back(&self, life: &Life, tended: Option<Tended>) -> bool {
        let Some(secrets) = &self.options.secrets else { return true };
        let id = &life.job.id;
        let all = async {
            if let Some(mut tended) = tended {
                tended.over.cancel();
                // What it was about to take is taken back by it.
                let _ = (&mut tended.task).await;
            }
            secrets.revoke_job(id);
            secrets.until_closed(id, BACK_WITHIN).await
        };
        tokio::time::timeout(BACK_WITHIN * 2, all).await.unwrap_or(false)
    }

    /// What a job's record says of the secrets that it had.
    pub(super) fn had_secrets(&self, id: &JobId, is_back: bool) -> HadSecrets {
        let claim = self.options.secrets.as_ref().and_then(|secrets| secrets.claims(id));
        let withheld = (!is_back).then(|| {
            "secrets.revoke_pending: what a step had of a server's is not taken back yet, and may still be used".to_owned()
        });
        HadSecrets { claim, withheld }
    }

    /// Takes back what no job needs that still runs.
    pub(super) fn take_back_what_is_over(&self) {
        use crate::job::model::State;
        let Some(secrets) = &self.options.secrets else { return };
        for (id, grant) in secrets.open_grants() {
            if self.ledger.get(&grant.job).is_none_or(|life| life.job.state != State::Running) {
                secrets.revoke(id);
            }
        }
    }
}

/// What a step that runs has.
#[derive(Default)]
struct Held {
    /// When each is to be renewed; none: it lives long enough.
    grants: BTreeMap<GrantId, Option<Instant>>,
    /// Those that are taken anew.
    rotating: Vec<GrantId>,
    rotates: Option<(Duration, Instant)>,
    /// Of the values, to know another one by.
    digests: BTreeMap<Name, Digest>,
}

/// What is being taken, for a step, and whether it is a rotation.
struct Acquiring {
    step: u32,
    again: bool,
    task: JoinHandle<Result<Acquired, AcquireError>>,
}

struct Tending {
    secrets: Arc<Secrets>,
    dir: PathBuf,
    life: Life,
    spec: JobSpec,
    over: CancellationToken,
    acquiring: Option<Acquiring>,
    /// The step that waits for its secrets.
    waiting: Option<u32>,
    /// The step that runs, and since when.
    running: Option<(u32, UnixNanos)>,
    /// Steps that were told something.
    answered: BTreeSet<u32>,
    held: Held,
}

impl Tending {
    fn of(secrets: Arc<Secrets>, dir: PathBuf, life: Life, spec: JobSpec) -> Self {
        Self {
            secrets,
            dir,
            life,
            spec,
            over: CancellationToken::new(),
            acquiring: None,
            waiting: None,
            running: None,
            answered: BTreeSet::new(),
            held: Held::default(),
        }
    }

    fn begin(self) -> Tended {
        Tended { over: self.over.clone(), task: tokio::spawn(self.tend()) }
    }

    async fn tend(mut self) {
        let (mut tail, mut looked) = (None, Instant::now());
        while !self.over.is_cancelled() {
            if self.read(&mut tail) {
                looked = Instant::now();
                self.settle();
            }
            // Nothing is looked for again while something is being taken.
            let due = self.held.due(self.acquiring.is_none());
            let pause = super::audience::pause(looked.elapsed(), LOOK_EVERY);
            let over = self.over.clone();
            tokio::select! {
                () = over.cancelled() => {}
                done = finished(&mut self.acquiring) => self.take(done).await,
                () = at(due) => self.keep_alive().await,
                () = tokio::time::sleep(pause) => {}
            }
        }
        // It ends soon: it looks whether anybody wants it before each thing that it does.
        if let Some(Acquiring { task, .. }) = self.acquiring.take()
            && let Ok(Ok(acquired)) = task.await
        {
            acquired.ids().for_each(|id| self.secrets.revoke(id));
        }
        self.secrets.revoke_job(&self.life.job.id);
    }

    /// Takes in what is new of the events; whether anything was.
    fn read(&mut self, tail: &mut Option<Tail>) -> bool {
        if tail.is_none() {
            *tail = Tail::open(&self.dir, 0).ok().flatten();
        }
        let Some(opened) = tail.as_mut() else { return false };
        let mut any = false;
        while opened.has_grown() {
            let before = opened.at;
            let Ok(found) = opened.batch(false, BATCH_BYTES) else { break };
            for one in found {
                if let What::Event(event) = one.what {
                    any = true;
                    self.hear(&event);
                }
            }
            if opened.at == before {
                break;
            }
        }
        any
    }

    fn hear(&mut self, event: &Event) {
        match event {
            Event::StepReady { step, .. } => self.waiting = Some(*step),
            Event::StepStarted { step, at, .. } => {
                self.waiting = None;
                self.running = Some((*step, *at));
            }
            Event::StepFinished { step, .. } => {
                (self.waiting, self.running) = (None, None);
                let of_step = self.open_of(*step);
                of_step.into_iter().for_each(|id| self.secrets.revoke(id));
                self.held = Held::default();
            }
            Event::Failed { .. } | Event::Closed { .. } => self.waiting = None,
            _ => {}
        }
    }

    fn open_of(&self, step: u32) -> Vec<GrantId> {
        let open = self.secrets.open_of(&self.life.job.id);
        let of_step = open.into_iter().filter(|(_, grant)| grant.step == step && grant.revoking_at.is_none());
        of_step.map(|(id, _)| id).collect()
    }

    /// Does what follows from all that was heard.
    fn settle(&mut self) {
        match (self.waiting, self.running) {
            (Some(step), _) if self.acquiring.is_none() && !self.answered.contains(&step) => {
                self.acquire(step, false);
            }
            // An agent before us has handed it over.
            (None, Some((step, _))) if !self.answered.contains(&step) => {
                self.answered.insert(step);
                let now = Instant::now();
                self.held.grants.extend(self.open_of(step).into_iter().map(|id| (id, Some(now))));
            }
            _ => {}
        }
    }

    fn acquire(&mut self, step: u32, again: bool) {
        let Some(of) = self.step(step) else { return };
        let (secrets, over) = (self.secrets.clone(), self.over.clone());
        // A task of its own: whoever is dropped in the middle forgets what it has taken.
        let task = tokio::spawn(async move {
            if again { secrets.acquire_again(&of, &over).await } else { secrets.acquire(&of, &over).await }
        });
        self.acquiring = Some(Acquiring { step, again, task });
    }

    fn step(&self, index: u32) -> Option<Step> {
        let step = self.spec.steps.get(usize::try_from(index).ok()?)?;
        let job = &self.life.job;
        Some(Step {
            job: job.id.clone(),
            project: job.project.clone(),
            caller: job.caller.clone(),
            profile: job.profile.clone(),
            is_signed: is_signed(&self.spec),
            index,
            name: step.name.clone(),
            limit: Duration::from_millis(step.timeout_ms),
            secrets: self.spec.secrets_of(step).into_iter().cloned().collect(),
        })
    }

    /// What was taken goes to the step that waits for it or runs, and else back.
    async fn take(&mut self, done: Done) {
        let Done { step, again, result } = done;
        match result {
            Ok(acquired) if again => self.rotate(step, acquired).await,
            Ok(acquired) => self.hand_over(step, acquired).await,
            Err(error) => self.refuse(step, again, error).await,
        }
    }

    async fn hand_over(&mut self, step: u32, acquired: Acquired) {
        self.answered.insert(step);
        let before: Vec<_> =
            self.open_of(step).into_iter().filter(|id| !acquired.ids().any(|new| new == *id)).collect();
        let (dir, id) = (self.dir.clone(), &self.life.job.id);
        let digests =
            acquired.values.iter().map(|(name, value)| (name.clone(), digest(&SHA256, value.expose())));
        let digests = digests.collect();
        let (grants, rotating, rotates) =
            (acquired.ids().collect::<Vec<_>>(), acquired.rotating.clone(), acquired.rotates);
        let values = acquired.values;
        let given = tokio::task::spawn_blocking(move || give(&dir, step, &values)).await;
        match given.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
            Ok(Told::Took) => {
                self.secrets.handed_over(&grants).await;
                before.into_iter().for_each(|id| self.secrets.revoke(id));
                let rotates = rotates.map(|every| (every, Instant::now() + every));
                self.held = Held {
                    grants: grants.into_iter().map(|id| (id, None)).collect(),
                    rotating,
                    rotates,
                    digests,
                };
            }
            // It waits no more: over, or an agent before us has given it what it waited for.
            Ok(Told::Refused(why)) => {
                tracing::info!(job = %id, step, why, "a step does not take its secrets, and they are taken back");
                grants.into_iter().for_each(|id| self.secrets.revoke(id));
                let now = Instant::now();
                self.held.grants.extend(before.into_iter().map(|id| (id, Some(now))));
            }
            // Nobody knows whether it has them: they are taken back with the step.
            Err(error) => {
                tracing::warn!(job = %id, step, %error, "whether a step has its secrets is not known");
            }
        }
    }

    async fn refuse(&mut self, step: u32, again: bool, error: AcquireError) {
        let id = &self.life.job.id;
        if again {
            if !matches!(error, AcquireError::Over) {
                tracing::warn!(job = %id, step, error = error.reason(), "a step's secrets are not looked for again now");
                self.held.rotates = self.held.rotates.map(|(every, _)| (every, Instant::now() + AGAIN));
                self.prolong();
            }
            return;
        }
        self.answered.insert(step);
        if matches!(error, AcquireError::Over) {
            return;
        }
        if let Some(of) = self.step(step) {
            self.secrets.tell_refused(&of, &error).await;
        }
        let (code, message) = error.told();
        let (dir, message) = (self.dir.clone(), message.to_owned());
        let told = tokio::task::spawn_blocking(move || fail(&dir, step, code, &message)).await;
        if let Err(error) = told.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
            tracing::warn!(job = %id, step, %error, "a step is not told that it gets no secrets; it waits in vain");
        }
    }

    /// Gives a step that runs the values that are others now.
    async fn rotate(&mut self, step: u32, acquired: Acquired) {
        self.held.rotates = self.held.rotates.map(|(every, _)| (every, Instant::now() + every));
        if self.running.is_none_or(|(running, _)| running != step) {
            acquired.ids().for_each(|id| self.secrets.revoke(id));
            return;
        }
        let of_before = |(name, value): &(Name, crate::vault::Secret)| {
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
        let told = tokio::task::spawn_blocking(move || {
            values.iter().try_for_each(|(name, value)| match rotate(&dir, step, name, value)? {
                Told::Took => Ok(()),
                Told::Refused(why) => Err(std::io::Error::other(why)),
            })
        });
        let told = told.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        let before = std::mem::take(&mut self.held.rotating);
        self.held.grants.extend(new.iter().map(|id| (*id, None)));
        match told {
            Ok(()) => {
                self.secrets.handed_over(&new).await;
                self.held.digests.extend(digests);
                for id in before {
                    self.held.grants.remove(&id);
                    self.secrets.revoke(id);
                }
                self.held.rotating = new;
            }
            Err(error) => {
                // It may have some of both.
                tracing::warn!(job = %self.life.job.id, step, %error, "a step did not take another value");
                self.held.rotating = before.into_iter().chain(new).collect();
                self.prolong();
            }
        }
    }

    /// What stays for now is renewed.
    fn prolong(&mut self) {
        let now = Instant::now();
        for id in &self.held.rotating {
            self.held.grants.insert(*id, Some(now));
        }
    }

    /// Renews what is due, and looks for other values when it is time.
    async fn keep_alive(&mut self) {
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
        for id in due {
            let again = self.secrets.renew(id, until).await;
            self.held.grants.insert(id, again.map(|again| Instant::now() + again));
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

impl Held {
    fn due(&self, with_rotation: bool) -> Option<Instant> {
        let rotates = self.rotates.map(|(_, at)| at).filter(|_| with_rotation);
        self.grants.values().copied().flatten().chain(rotates).min()
    }

    fn put_off(&mut self) {
        let later = Instant::now() + AGAIN;
        self.grants.values_mut().flatten().for_each(|at| *at = later.max(*at));
        if let Some((_, at)) = &mut self.rotates {
            *at = later.max(*at);
        }
    }
}

/// What came of an acquisition.
struct Done {
    step: u32,
    again: bool,
    result: Result<Acquired, AcquireError>,
}

/// Waits for what is being taken; for ever if nothing is.
async fn finished(acquiring: &mut Option<Acquiring>) -> Done {
    let Some(Acquiring { step, again, task }) = acquiring else { return std::future::pending().await };
    let result = task.await.unwrap_or_else(|_| Err(AcquireError::defect()));
    let (step, again) = (*step, *again);
    *acquiring = None;
    Done { step, again, result }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[path = "secrets_tests.rs"]
mod tests;
