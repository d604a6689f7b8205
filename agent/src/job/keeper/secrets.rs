//! The secrets of a job that runs: what its steps wait for is taken and handed over, kept alive, and taken back when a step has ended.
//!
//! What is followed are the job's own events, from their beginning: so whoever begins in the middle of a job, after a restart, knows as
//! much as who was there all the time. Nothing here holds what the journal of leases does not have.

mod held;

use super::follow::{Tail, What};
use super::inner::Inner;
use super::records::HadSecrets;
use crate::job::state::Life;
use crate::local::hand_over::{Told, fail, give};
use crate::secrets::{AcquireError, Acquired, Grant, GrantId, Secrets, Step, is_signed};
use ampoule_spec::{Event, JobId, JobSpec, UnixNanos};
use aws_lc_rs::digest::{SHA256, digest};
use held::{Held, answered};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often a job's events are looked at.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
/// Bytes of events that are read in one go.
const BATCH_BYTES: u64 = 256 << 10;
/// How often what was taken back of jobs that are over is forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(5);
/// How long a job's record waits for its secrets to be taken back. Then it has no provenance.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// What took longer to be taken is renewed when its step runs: its life counts from when it was taken.
const SLOW: Duration = Duration::from_secs(10);

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
        match &self.options.secrets {
            Some(secrets) => all_back(secrets, &life.job.id, tended, BACK_WITHIN).await,
            None => true,
        }
    }

    /// What a job's record says of the secrets that it had.
    pub(super) fn had_secrets(&self, id: &JobId, is_back: bool) -> HadSecrets {
        let claim = self.options.secrets.as_ref().and_then(|secrets| secrets.claims(id));
        let withheld = (!is_back).then(|| {
            "secrets.revoke_pending: what a step had of a server's is not taken back yet, and may still be used".to_owned()
        });
        HadSecrets { claim, withheld }
    }

    /// Takes back what no job needs that still runs. Within a runtime.
    pub(super) fn take_back_what_is_over(&self) {
        use crate::job::model::State;
        let Some(secrets) = &self.options.secrets else { return };
        for (id, grant) in secrets.open_grants() {
            let is_over = || self.ledger.get(&grant.job).is_none_or(|life| life.job.state != State::Running);
            // One that an agent before us was about to take back too, whatever its job does.
            if grant.revoking_at.is_some() || is_over() {
                secrets.revoke(id);
            }
        }
    }

    /// Forgets what was taken back of jobs that are over, now and then: no end of a job waits for that. For as long as it is polled.
    pub(super) async fn keep_forgetting(self: Arc<Self>) {
        use crate::job::model::State;
        let Some(secrets) = &self.options.secrets else { return };
        loop {
            let is_over =
                |job: &JobId| self.ledger.get(job).is_none_or(|life| life.job.state == State::Finished);
            let over: Vec<_> = secrets.jobs().into_iter().filter(is_over).collect();
            // Together, so that they share what it costs.
            futures_util::future::join_all(over.iter().map(|job| secrets.forget(job))).await;
            tokio::time::sleep(FORGET_EVERY).await;
        }
    }
}

/// Takes back what a job has; whether nothing is left after so long at most. What is not back then is taken back all the same.
async fn all_back(secrets: &Arc<Secrets>, id: &JobId, tended: Option<Tended>, within: Duration) -> bool {
    // What it has goes at once, whatever a server holds up.
    secrets.revoke_job(id);
    let (tending, of) = (secrets.clone(), id.clone());
    // In a task of its own: what it was about to take is taken back, also when nobody waits for that any more.
    let ended = tokio::spawn(async move {
        if let Some(mut tended) = tended {
            tended.over.cancel();
            let _ = (&mut tended.task).await;
            tending.revoke_job(&of);
        }
    });
    let all = async {
        let _ = ended.await;
        secrets.until_closed(id, within).await
    };
    tokio::time::timeout(within, all).await.unwrap_or(false)
}

/// What is being taken, for a step, and whether it is a rotation.
struct Acquiring {
    step: u32,
    again: bool,
    begun: Instant,
    result: oneshot::Receiver<Result<Acquired, AcquireError>>,
}

struct Tending {
    secrets: Arc<Secrets>,
    dir: PathBuf,
    life: Life,
    spec: JobSpec,
    over: CancellationToken,
    /// The same for the step.
    step_over: CancellationToken,
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
        let over = CancellationToken::new();
        Self {
            secrets,
            dir,
            life,
            spec,
            step_over: over.child_token(),
            over,
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
        let (mut heard, mut looked) = (Heard::default(), Instant::now());
        while !self.over.is_cancelled() {
            let more = self.read(&mut heard).await;
            if more {
                looked = Instant::now();
            }
            if heard.is_settled(more) {
                self.settle();
            }
            // Nothing is looked for again while something is being taken.
            let due = self.held.due(self.acquiring.is_none());
            let pause =
                if more { Duration::ZERO } else { super::audience::pause(looked.elapsed(), LOOK_EVERY) };
            let over = self.over.clone();
            tokio::select! {
                () = over.cancelled() => {}
                done = finished(&mut self.acquiring) => self.take(done).await,
                renewed = answered(&mut self.held.renewing) => self.held.note(renewed),
                () = at(due) => self.keep_alive(),
                () = tokio::time::sleep(pause) => {}
            }
        }
        // It ends soon: it looks whether anybody wants it before each thing that it does.
        if let Some(Acquiring { result, .. }) = self.acquiring.take()
            && let Ok(Ok(acquired)) = result.await
        {
            acquired.ids().for_each(|id| self.secrets.revoke(id));
        }
        self.secrets.revoke_job(&self.life.job.id);
    }

    /// Takes in some of what is new of the events; whether anything was. Reads away from the threads that serve.
    async fn read(&mut self, heard: &mut Heard) -> bool {
        let mut tail = heard.tail.take();
        if tail.as_ref().is_some_and(|tail| !tail.has_grown()) {
            heard.tail = tail;
            return false;
        }
        let dir = self.dir.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut there = None;
            if tail.is_none() {
                tail = Tail::open(&dir, 0).ok().flatten();
                there = tail.as_ref().map(Tail::bytes);
            }
            let before = tail.as_ref().map_or(0, |tail| tail.at);
            let found =
                tail.as_mut().and_then(|tail| tail.batch(false, BATCH_BYTES).ok()).unwrap_or_default();
            let more = tail.as_ref().is_some_and(|tail| tail.at != before);
            (tail, there, found, more)
        });
        let Ok((tail, there, found, more)) = read.await else { return false };
        heard.tail = tail;
        heard.there = there.unwrap_or(heard.there);
        for one in found {
            if let What::Event(event) = one.what {
                self.hear(&event);
            }
        }
        more
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
                let open = self.secrets.open_of(&self.life.job.id).into_iter();
                open.filter(|(_, grant)| grant.step == *step).for_each(|(id, _)| self.secrets.revoke(id));
                // What is under way for it ends, and holds no step up that comes after it.
                self.step_over.cancel();
                self.step_over = self.over.child_token();
                self.held = Held::default();
            }
            Event::Failed { .. } | Event::Closed { .. } => self.waiting = None,
            _ => {}
        }
    }

    fn open_of(&self, step: u32) -> Vec<GrantId> {
        let open = self.secrets.open_of(&self.life.job.id);
        open.into_iter().filter(|(_, grant)| is_of(grant, step)).map(|(id, _)| id).collect()
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
                self.take_over(step);
            }
            _ => {}
        }
    }

    fn acquire(&mut self, step: u32, again: bool) {
        let Some(of) = self.step(step) else { return };
        let (secrets, over) = (self.secrets.clone(), self.step_over.clone());
        let (tell, result) = oneshot::channel();
        // A task of its own: whoever is dropped in the middle forgets what it has taken.
        tokio::spawn(async move {
            let taken = if again {
                secrets.acquire_again(&of, &over).await
            } else {
                secrets.acquire(&of, &over).await
            };
            // Nobody is there any more who would hand it over.
            if let Err(Ok(unread)) = tell.send(taken) {
                unread.ids().for_each(|id| secrets.revoke(id));
            }
        });
        self.acquiring = Some(Acquiring { step, again, begun: Instant::now(), result });
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
        let Done { step, again, took, result } = done;
        match result {
            Ok(acquired) if again => self.rotate(step, acquired).await,
            Ok(acquired) => self.hand_over(step, acquired, took).await,
            Err(error) => self.refuse(step, again, error).await,
        }
    }

    async fn hand_over(&mut self, step: u32, acquired: Acquired, took: Duration) {
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
                let renew = (took > SLOW).then(Instant::now);
                let grants = grants.into_iter().map(|id| (id, renew)).collect();
                self.held = Held { grants, rotating, rotates, digests, ..Held::default() };
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
                self.held.try_again();
                self.prolong();
            }
            return;
        }
        self.answered.insert(step);
        if matches!(error, AcquireError::Over) {
            return;
        }
        let (code, message) = error.told();
        let (dir, message) = (self.dir.clone(), message.to_owned());
        let told = tokio::task::spawn_blocking(move || fail(&dir, step, code, &message)).await;
        match told.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
            Ok(Told::Took) => {}
            // An agent before us has given it what it waited for, or it is over: it is refused nothing.
            Ok(Told::Refused(_)) => return self.take_over(step),
            Err(error) => {
                tracing::warn!(job = %id, step, %error, "a step is not told that it gets no secrets; it waits in vain");
            }
        }
        if let Some(of) = self.step(step) {
            self.secrets.tell_refused(&of, &error).await;
        }
    }
}

/// Whether a step has something that is not to be taken back.
fn is_of(grant: &Grant, step: u32) -> bool {
    grant.step == step && grant.revoking_at.is_none()
}

/// The events, and how far they went when they were opened: what follows from a part of the past is not done.
#[derive(Default)]
struct Heard {
    tail: Option<Tail>,
    there: u64,
}

impl Heard {
    fn is_settled(&self, more: bool) -> bool {
        self.tail.as_ref().is_some_and(|tail| !more || tail.at >= self.there)
    }
}

/// What came of an acquisition.
struct Done {
    step: u32,
    again: bool,
    took: Duration,
    result: Result<Acquired, AcquireError>,
}

/// Waits for what is being taken; for ever if nothing is.
async fn finished(acquiring: &mut Option<Acquiring>) -> Done {
    let Some(Acquiring { step, again, begun, result }) = acquiring else {
        return std::future::pending().await;
    };
    let result = result.await.unwrap_or_else(|_| Err(AcquireError::defect()));
    let (step, again, took) = (*step, *again, begun.elapsed());
    *acquiring = None;
    Done { step, again, took, result }
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
