//! What drivers, watchers and callers share: the ledger, the queue, and one hand for a change and its effects.

use super::audience::Audience;
use super::driver::{Driver, Reins};
use super::holds::Holds;
use super::intake_places::IntakePlaces;
use super::launcher::Launcher;
use super::options::{Options, Sources};
use super::records::Records;
use crate::job::ledger::{Ledger, LedgerError};
use crate::job::model::{CancelWish, State};
use crate::job::queue::{Entry, Queue, Rules};
use crate::job::service::JobsError;
use crate::job::state::{Change, Effect, Life};
use ampoule_spec::{Code, JobId, JobSpec, UnixNanos};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Who ends a job when nobody else does.
pub(super) const OURSELVES: &str = "ampouled";
/// How long the queue is left alone when nothing happens.
const IDLE: Duration = Duration::from_secs(1);
/// How often the launcher is asked what it has.
const PATROL_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) options: Options,
    /// Where inputs may come from now.
    pub(super) sources: RwLock<Sources>,
    pub(super) ledger: Ledger,
    pub(super) launcher: Arc<Launcher>,
    pub(super) records: Records,
    pub(super) places: IntakePlaces,
    /// Why jobs are not taken or not started.
    pub(super) holds: Holds,
    /// Ends every task; jobs go on without us.
    pub(super) ended: CancellationToken,
    /// The queue may have a job to start.
    pub(super) turn: Notify,
    /// Somebody was refused for what is kept of his project: some of it may be old enough to go.
    pub(super) full: Notify,
    pub(super) queue: Mutex<Queue>,
    pub(super) drivers: Mutex<HashMap<JobId, Arc<Reins>>>,
    pub(super) audience: Audience,
    pub(super) trouble: Mutex<Trouble>,
}

/// What an operator should know of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Directories of jobs that the ledger does not know.
    pub(super) unknown: BTreeSet<JobId>,
    /// Jobs whose record cannot be made.
    pub(super) stuck: BTreeSet<JobId>,
}

/// The time, by the host's clock.
pub(super) fn now() -> UnixNanos {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixNanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Does something to its end, whoever stops waiting for it. A call's future is dropped at the caller's deadline or reset, wherever it
/// is: what is durable must not be parted there from what follows from it.
pub(super) async fn whole<T, E>(work: impl Future<Output = Result<T, E>> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<LedgerError> + Send + 'static,
{
    // It is not heard of any more when the runtime ends, or after a defect in it.
    tokio::spawn(work).await.unwrap_or_else(|_| Err(LedgerError::Closed.into()))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        locked(&self.queue)
    }

    pub(super) fn trouble(&self) -> MutexGuard<'_, Trouble> {
        locked(&self.trouble)
    }

    /// Where inputs may come from now.
    pub(super) fn sources(&self) -> Sources {
        self.sources.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Other sources and rules from now on. What is being prepared or runs goes on by those before; what waits and would never
    /// fit any more is ended.
    pub(super) async fn set(self: &Arc<Self>, sources: Sources, rules: Rules) {
        *self.sources.write().unwrap_or_else(PoisonError::into_inner) = sources;
        let unfit = {
            let mut queue = self.queue();
            queue.set_rules(rules);
            queue.unfit()
        };
        for id in unfit {
            let reason = "it needs more than this host promises since its limits were changed".to_owned();
            let wish = CancelWish { by: OURSELVES.to_owned(), reason, at: now() };
            self.settle(&id, Change::CancelWished { wish }).await;
        }
        self.turn.notify_one();
    }

    /// Ends every task of ours.
    pub(super) fn end(&self) {
        // None that ends by the first of these is missed by the second.
        let drivers = locked(&self.drivers);
        for reins in drivers.values() {
            reins.cancel.cancel();
        }
        self.ended.cancel();
    }

    /// Says whether a job's record cannot be made.
    pub(super) fn stuck(&self, id: &JobId, stuck: bool) {
        let mut trouble = self.trouble();
        if stuck {
            trouble.stuck.insert(id.clone());
        } else {
            trouble.stuck.remove(id);
        }
    }

    /// What is fetched for a job now.
    pub(super) fn progress(&self, id: &JobId) -> Option<String> {
        locked(&self.drivers).get(id).and_then(|reins| reins.progress.borrow().clone())
    }

    /// Writes a change down, and sees to its effects: both, also if nobody waits for it any more.
    ///
    /// # Errors
    /// [`LedgerError`]: nothing has changed then.
    pub(super) async fn change(
        self: &Arc<Self>,
        id: &JobId,
        change: Change,
    ) -> Result<Arc<Life>, LedgerError> {
        let (inner, id) = (self.clone(), id.clone());
        whole(async move {
            let (life, effects) = inner.ledger.change(&id, change.bounded()).await?;
            inner.audience.tell(&id);
            for effect in effects {
                inner.see_to(&life, effect);
            }
            Ok(life)
        })
        .await
    }

    fn see_to(self: &Arc<Self>, life: &Arc<Life>, effect: Effect) {
        let id = &life.job.id;
        match effect {
            Effect::LeaveQueue => drop(self.queue().leave(id)),
            Effect::Free => {
                self.queue().free(id);
                self.turn.notify_one();
            }
            Effect::StopPreparing | Effect::CancelRun => {
                if let Some(reins) = locked(&self.drivers).get(id) {
                    if effect == Effect::StopPreparing {
                        reins.cancel.cancel();
                    }
                    reins.wished.notify_one();
                }
            }
            Effect::Prepare | Effect::Attest => self.drive(id),
            // The driver does that next by itself; and whoever waits was told.
            Effect::AskRunner | Effect::Tell => {}
        }
    }

    /// Sees to it that a job has a driver.
    pub(super) fn drive(self: &Arc<Self>, id: &JobId) {
        let mut drivers = locked(&self.drivers);
        if drivers.contains_key(id) || self.ended.is_cancelled() {
            return;
        }
        let reins = Arc::new(Reins::new());
        drivers.insert(id.clone(), reins.clone());
        drop(drivers);
        let (inner, id) = (self.clone(), id.clone());
        tokio::spawn(async move {
            let driver =
                Driver { inner: inner.clone(), id: id.clone(), reins, asked_here: false, tended: None };
            let ended = inner.ended.clone();
            tokio::select! {
                () = driver.drive() => {}
                () = ended.cancelled() => {}
            }
            locked(&inner.drivers).remove(&id);
        });
    }

    /// How a job waits.
    pub(super) fn entry(&self, life: &Life, spec: &JobSpec) -> Entry {
        Entry {
            id: life.job.id.clone(),
            project: life.job.project.clone(),
            priority: life.job.priority,
            since: life.job.submitted_at,
            needs: self.options.needs.of(spec),
            timeout_ms: life.queue_timeout_ms,
        }
    }

    /// Takes up what is unfinished: the table of 0017. Blocks.
    pub(super) fn take_up(self: &Arc<Self>) -> std::io::Result<()> {
        for life in self.ledger.unfinished() {
            let spec = self.ledger.spec(&life.job.id)?;
            let Some(spec) = spec else {
                let text = format!("the ledger has no spec of the unfinished job {}", life.job.id);
                return Err(std::io::Error::other(text));
            };
            let entry = self.entry(&life, &spec);
            match life.job.state {
                State::Queued => self.queue().enter(entry),
                State::Preparing | State::Running => {
                    self.queue().resume(&entry.id, &entry.project, entry.needs);
                    self.drive(&entry.id);
                }
                State::Attesting => self.drive(&entry.id),
                State::Finished => {}
            }
        }
        self.turn.notify_one();
        Ok(())
    }

    /// Starts jobs whose turn it is, and ends those that have waited too long, for as long as it is polled.
    pub(super) async fn keep_turns(self: Arc<Self>) {
        loop {
            let pause = match self.queue().next_timeout() {
                Some(at) => Duration::from_nanos(at.0.saturating_sub(now().0)).min(IDLE),
                None => IDLE,
            };
            let up = self.launcher.is_up();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.turn.notified() => {}
                () = self.launcher.until_up(), if !up => {}
            }
            let late = self.queue().timed_out(now());
            for id in late {
                let reason = "it has waited longer than its queue timeout".to_owned();
                let wish = CancelWish { by: OURSELVES.to_owned(), reason, at: now() };
                self.settle(&id, Change::CancelWished { wish }).await;
            }
            while self.launcher.is_up() && self.holds.is_steady() {
                let next = self.queue().next(now());
                let Some(id) = next else { break };
                if !self.settle(&id, Change::Began).await {
                    self.queue().free(&id);
                }
            }
        }
    }

    /// Stops or resumes the intake, and ends jobs that wait if that is wanted. Jobs that run and that wait.
    ///
    /// # Errors
    /// [`JobsError`] if it is not durable.
    pub(super) async fn drain(
        self: Arc<Self>,
        drain: bool,
        cancel_queued: bool,
    ) -> Result<(u32, u32), JobsError> {
        self.holds.drain(drain).await.map_err(|e| {
            let (now, kept) =
                if drain { ("", "would not stay so over a restart") } else { ("still ", "goes on") };
            let message =
                format!("the host is {now}drained, which {kept}: the state directory: {e}; ask again");
            JobsError { code: Code::Internal, message, retry_after: None }
        })?;
        if drain && cancel_queued {
            let waiting = self.ledger.unfinished();
            for life in waiting.iter().filter(|life| life.job.state == State::Queued) {
                let reason = "this host is being drained".to_owned();
                let wish = CancelWish { by: OURSELVES.to_owned(), reason, at: now() };
                match self.change(&life.job.id, Change::CancelWished { wish }).await {
                    Ok(_) | Err(LedgerError::Illegal(_)) => {}
                    Err(error) => {
                        tracing::warn!(job = %life.job.id, %error, "a job that waits is not cancelled")
                    }
                }
            }
        }
        let queue = self.queue();
        Ok((queue.running(), queue.queued()))
    }

    /// Writes down a change of the queue's; whether it was.
    async fn settle(self: &Arc<Self>, id: &JobId, change: Change) -> bool {
        match self.change(id, change).await {
            Ok(_) => true,
            // Somebody has ended the job at the same moment.
            Err(LedgerError::Illegal(_) | LedgerError::Closed | LedgerError::Unknown(_)) => false,
            Err(error) => {
                tracing::error!(job = %id, %error, "a job that waits cannot be started or ended now");
                self.wait_again(id);
                tokio::time::sleep(IDLE).await;
                false
            }
        }
    }

    /// Puts a job back that still waits.
    fn wait_again(&self, id: &JobId) {
        let Some(life) = self.ledger.get(id).filter(|life| life.job.state == State::Queued) else { return };
        if let Ok(Some(spec)) = self.ledger.spec(id) {
            let mut queue = self.queue();
            queue.free(id);
            queue.enter(self.entry(&life, &spec));
        }
    }

    /// Asks the launcher now and then what it has, so that it recovers jobs whose supervisor has died, and so that one that
    /// has ended is noticed. For as long as it is polled.
    pub(super) async fn patrol(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PATROL_EVERY).await;
            self.take_back_what_is_over();
            if self.launcher.is_up() {
                let launcher = self.launcher.clone();
                // What it cannot say now it says the next time.
                let _ = tokio::task::spawn_blocking(move || launcher.jobs().map(drop)).await;
            }
        }
    }
}
