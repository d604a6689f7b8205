//! The keeper of the jobs of this host: the ledger, the queue, the launcher and the records, and one driver per job.
//!
//! Guarantees: what [`Jobs::submit`] has acknowledged ends in one signed run attestation, whatever dies meanwhile; a change
//! is durable before anybody hears of it; what a watcher has had it does not get again after its cursor, also across
//! restarts. Nothing of a job is deleted that the ledger does not know.
//! A call that is given up on the way has been done wholly or not at all.
//! Not guaranteed: that a job that had not reached the runner when the agent or a session died is run; it ends `aborted` then.

mod audience;
mod driver;
mod enter;
mod follow;
mod holds;
mod inner;
mod intake;
mod intake_places;
mod launcher;
mod line;
mod options;
mod proof;
mod records;
mod secrets;
mod sweep;
#[cfg(test)]
mod testing;
mod watching;

pub use enter::Place;
pub use options::{
    Intakes, Keep, Needs, Options, ProjectFiles, Shown, ShownToAll, Sources, Unwitnessed, Witness,
};

use super::ledger::{Ledger, OpenError};
use super::model::{Caller, CancelWish, Job, State, Submission};
use super::queue::{NotQueued, Queue, Rules};
use super::service::{
    EvidenceFiles, Jobs, JobsError, OpenedOutput, Page, Promised, Submitted, Wanted, Watched,
};
use super::state::Change;
use crate::local::{LocalError, evidence};
use ampoule_spec::{Code, JobId};
use audience::{Audience, Reader};
use futures_util::Stream;
use holds::Holds;
use inner::{Inner, Trouble, now, whole};
use intake_places::IntakePlaces;
use launcher::Launcher;
use records::Records;
use std::os::unix::fs::DirBuilderExt;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use watching::Watcher;

/// When to ask again for what a restart or a resumed intake will give.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// How long a turn at opening an output is waited for.
const OPEN_WITHIN: Duration = Duration::from_secs(20);
/// How long the end of our tasks is waited for.
const END_WITHIN: Duration = Duration::from_secs(10);
/// The most characters of the name of who wishes a job's end.
const BY_CHARS_MAX: usize = 256;

/// Why jobs cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeeperError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] OpenError),
    /// The key.
    #[error(transparent)]
    Key(#[from] LocalError),
    /// A directory or file of ours.
    #[error("the state directory cannot be used")]
    State(#[from] std::io::Error),
}

/// How the jobs of this host are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether the launcher answers; if not, jobs wait.
    pub launcher: bool,
    /// Directories of jobs that the ledger does not know: they are left as they are.
    pub unknown: Vec<JobId>,
    /// Jobs whose record cannot be made now.
    pub stuck: Vec<JobId>,
}

/// The jobs of this host. Dropping it ends its tasks; what the runner runs goes on.
#[derive(Debug)]
pub struct Keeper {
    inner: Arc<Inner>,
}

impl Keeper {
    /// Opens the jobs below the agent's directory and takes up what is unfinished. Within a runtime; blocks for as long as
    /// the ledger takes.
    ///
    /// # Errors
    /// [`KeeperError`].
    pub fn open(options: Options) -> Result<Self, KeeperError> {
        let keys = options.state.join("keys");
        for dir in [&options.state, &keys] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let ledger = Ledger::open(&options.state, &options.ledger, now())?;
        let signing = evidence::open(&options.key, &options.authority, &keys)?;
        let records = Records::open(&options.state, signing)?;
        let launcher = Arc::new(Launcher::new(options.socket.clone(), options.jobs.clone()));
        let holds = Holds::open(&options.state, options.drifted, launcher.risen())?;
        let inner = Arc::new(Inner {
            ledger,
            launcher,
            records,
            places: IntakePlaces::new(options.intakes),
            holds,
            ended: CancellationToken::new(),
            turn: Notify::new(),
            full: Notify::new(),
            queue: Mutex::new(Queue::new(options.rules.clone())),
            drivers: Mutex::default(),
            audience: Audience::new(options.readers),
            trouble: Mutex::default(),
            sources: RwLock::new(options.sources.clone()),
            options,
        });
        inner.take_up()?;
        inner.take_back_what_is_over();
        let tasks: [std::pin::Pin<Box<dyn Future<Output = ()> + Send>>; 5] = [
            Box::pin(inner.clone().keep_turns()),
            Box::pin(inner.launcher.clone().look_after()),
            Box::pin(inner.clone().patrol()),
            Box::pin(inner.clone().keep_forgetting()),
            Box::pin(inner.clone().keep_sweeping()),
        ];
        for task in tasks {
            let ended = inner.ended.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = task => {}
                    () = ended.cancelled() => {}
                }
            });
        }
        Ok(Self { inner })
    }

    /// What happens to jobs from now on, each as it is after it.
    pub fn changes(&self) -> tokio::sync::broadcast::Receiver<Arc<super::state::Life>> {
        self.inner.ledger.changes()
    }

    /// Other sources of inputs and other rules of the queue from now on. What is being prepared or runs goes on by those before;
    /// a job that waits and would never fit any more ends as cancelled by the daemon.
    pub async fn set(&self, sources: Sources, rules: Rules) {
        self.inner.set(sources, rules).await;
    }

    /// How the jobs are.
    pub fn health(&self) -> Health {
        let Trouble { unknown, stuck } = self.inner.trouble().clone();
        let launcher = self.inner.launcher.is_up();
        Health { launcher, unknown: unknown.into_iter().collect(), stuck: stuck.into_iter().collect() }
    }

    /// How often the launcher has come up. Each time it may be another one, and the host too.
    pub fn launchers(&self) -> watch::Receiver<u64> {
        self.inner.launcher.risen()
    }

    /// Says whether the host is another than it was when its operator looked at it, by a look that began when the launcher had come
    /// up so often. Until it is as it was no jobs are taken and none are started; a drain is another matter.
    pub fn set_drifted(&self, drifted: bool, under: u64) {
        if self.inner.holds.set_drifted(drifted, under) {
            self.inner.turn.notify_one();
        }
    }

    /// The public key by which the evidence of this host verifies (PEM, SubjectPublicKeyInfo).
    pub fn public_key(&self) -> &str {
        self.inner.records.public_key()
    }

    /// Ends every task and gives the directory back. What the runner runs goes on.
    pub async fn close(self) {
        self.inner.end();
        let begun = tokio::time::Instant::now();
        // Threads that are in the middle of something hold on to it as well.
        while Arc::strong_count(&self.inner) > 1 && begun.elapsed() < END_WITHIN {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn job(&self, id: &JobId) -> Result<Job, JobsError> {
        self.get(id).ok_or_else(|| error(Code::JobUnknown, format!("there is no job {id}")))
    }

    /// The end of a job that is finished.
    fn finished(&self, id: &JobId) -> Result<super::model::End, JobsError> {
        let job = self.job(id)?;
        let not_yet =
            || error(Code::JobUnfinished, format!("job {id} is not finished; watch it until it is"));
        job.end.filter(|_| job.state == State::Finished).ok_or_else(not_yet)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.inner.end();
    }
}

fn error(code: Code, message: String) -> JobsError {
    JobsError { code, message, retry_after: None }
}

impl From<NotQueued> for JobsError {
    fn from(refused: NotQueued) -> Self {
        let message = refused.to_string();
        match refused {
            NotQueued::Full { retry_after, .. } | NotQueued::Quota { retry_after, .. } => {
                Self { code: Code::AdmissionBusy, message, retry_after: Some(retry_after) }
            }
            NotQueued::TooLarge { .. } => error(Code::JobInvalid, message),
        }
    }
}

impl Jobs for Keeper {
    type Place = Place;

    async fn promise(&self, submission: &Submission) -> Result<Promised<Place>, JobsError> {
        self.inner.promise(submission).await
    }

    async fn enter(&self, place: Place, submission: Submission) -> Result<Submitted, JobsError> {
        whole(self.inner.clone().write_and_queue(submission, place)).await
    }

    fn attach(&self, submission: &Submission) -> Result<Option<Submitted>, JobsError> {
        self.inner.attach(submission)
    }

    fn get(&self, id: &JobId) -> Option<Job> {
        self.inner.ledger.get(id).map(|life| life.job.clone())
    }

    fn queue_position(&self, id: &JobId) -> Option<u32> {
        self.inner.queue().position(id)
    }

    fn list(&self, wanted: &Wanted, may_read: &(dyn Fn(&Job) -> bool + Sync)) -> Page {
        self.inner.ledger.list(wanted, may_read)
    }

    async fn cancel(&self, id: &JobId, by: &Caller, reason: &str) -> Result<Job, JobsError> {
        self.job(id)?;
        let by = by.subject.chars().take(BY_CHARS_MAX).collect();
        let wish = CancelWish { by, reason: reason.to_owned(), at: now() };
        let life = self.inner.change(id, Change::CancelWished { wish }).await?;
        Ok(life.job.clone())
    }

    fn watch(
        &self,
        id: &JobId,
        after: u64,
        logs: bool,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<Watched, JobsError>> + Send + 'static, JobsError> {
        let project = self.job(id)?.project;
        let Some(reader) = Reader::admit(&self.inner, id, &project) else {
            let text = format!(
                "jobs of project {project} are watched by as many as may be, or those of all together are; watch again later, or end a watch"
            );
            return Err(JobsError { retry_after: Some(RETRY_AFTER), ..error(Code::AdmissionBusy, text) });
        };
        let (out, items) = mpsc::channel(self.inner.audience.waiting());
        tokio::spawn(Watcher { reader, out, cursor: after, logs, follow }.watch());
        Ok(ReceiverStream::new(items))
    }

    fn evidence(&self, id: &JobId) -> Result<EvidenceFiles, JobsError> {
        self.finished(id)?;
        self.inner
            .records
            .read(id)
            .map_err(|e| error(Code::Internal, format!("the evidence of job {id} cannot be read: {e}")))
    }

    async fn open_output(&self, id: &JobId, output: &str) -> Result<OpenedOutput, JobsError> {
        let job = self.job(id)?;
        let end = self.finished(id)?;
        let missing =
            |why: &str| error(Code::InputMissing, format!("job {id} has no output {output:?}{why}"));
        // The name is one that the record has, and no path of a caller's.
        let named = end.outputs.iter().find(|one| one.name == output).ok_or_else(|| missing(""))?;
        let turn = self.inner.options.lookups.take_within(job.project.as_str(), OPEN_WITHIN).await;
        let seat = turn.ok_or_else(|| {
            let text = "as many outputs of the project are opened as may be at once".to_owned();
            JobsError { retry_after: Some(RETRY_AFTER), ..error(Code::AdmissionBusy, text) }
        })?;
        let (inner, of, name) = (self.inner.clone(), id.clone(), named.name.clone());
        let opening = tokio::task::spawn_blocking(move || {
            let _seat = seat;
            inner.records.open_output(&inner.launcher, &of, &name)
        });
        match opening.await.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
            Ok(opened) => Ok(opened),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(missing(" any more: it is not kept longer than that"))
            }
            Err(e) => {
                let text = format!("output {output:?} of job {id} cannot be opened now: {e}");
                Err(JobsError { retry_after: Some(RETRY_AFTER), ..error(Code::AdmissionBusy, text) })
            }
        }
    }

    async fn drain(&self, drain: bool, cancel_queued: bool) -> Result<(u32, u32), JobsError> {
        whole(self.inner.clone().drain(drain, cancel_queued)).await
    }

    fn load(&self) -> (bool, u32, u32) {
        let queue = self.inner.queue();
        (self.inner.holds.refusal().is_none(), queue.running(), queue.queued())
    }
}
