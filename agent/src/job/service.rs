//! What the API asks of the jobs: the seam between what speaks gRPC and what keeps and drives jobs.
//!
//! Who may ask was decided before; nothing here judges a caller, but everything records one.

use super::model::{Caller, Job, Labels, State, Submission};
use ampoule_spec::{Code, JobId, LogChunk, Name, Outcome};
use futures_util::Stream;
use std::fs::File;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Why something that was asked of the jobs was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct JobsError {
    /// The bounded code.
    pub code: Code,
    /// For people.
    pub message: String,
    /// When to ask again, if that helps.
    pub retry_after: Option<Duration>,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// The job.
    pub job: Job,
    /// Whether it was there before.
    pub attached: bool,
}

/// What a submission has before anything of it is written down.
#[derive(Debug)]
pub enum Promised<P> {
    /// The job that the same caller has submitted under the key.
    Attached(Box<Submitted>),
    /// A place for a job: it counts until it is used, and is given back if it is dropped.
    Place(P),
}

/// Which jobs a list is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Only those of this project.
    pub project: Option<Name>,
    /// Only those in one of these states; empty: in any.
    pub states: Vec<State>,
    /// Only those with one of these outcomes; empty: with any.
    pub outcomes: Vec<Outcome>,
    /// Only those with all of these labels.
    pub labels: Labels,
    /// Only those before this one.
    pub before: Option<JobId>,
    /// At most this many.
    pub limit: usize,
}

/// A page of a list, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// Whether there are more after the last.
    pub more: bool,
}

/// Something that has happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Watched {
    /// Where to resume after this.
    pub cursor: u64,
    /// What.
    pub event: WatchedEvent,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchedEvent {
    /// The job as it is now: first, at each change of state, and last.
    Job(Box<Job>),
    /// The runner's own event.
    Runner(Box<ampoule_spec::Event>),
    /// Bytes of a log.
    Log(LogChunk),
    /// Something is fetched.
    Progress(String),
}

/// The most bytes of evidence that are read into memory for an answer. A spec, a report and two statements have no more, and
/// whatever the number of artifacts there is one of each.
pub const EVIDENCE_BYTES_MAX: u64 = 60 << 20;

/// One file of evidence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EvidenceFile {
    /// Its names in `DIR/evidence/` of `ampoule run`, at least one: all artifacts share one statement.
    pub names: Vec<String>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The signed evidence of a finished job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EvidenceFiles {
    /// The files, by their first names.
    pub files: Vec<EvidenceFile>,
    /// The public key (PEM, SubjectPublicKeyInfo).
    pub public_key: String,
}

/// An output that is there: nothing of it was read.
#[derive(Debug)]
pub enum OpenedOutput {
    /// A file from its beginning.
    File {
        /// It.
        file: File,
        /// Its length in bytes.
        length: u64,
    },
    /// A directory. A client has it as a plain tar archive, which is the same each time that it is made.
    Tree {
        /// Its root.
        root: OwnedFd,
        /// The time of each entry, in seconds since 1970.
        epoch: u64,
    },
}

/// The jobs of this host.
pub trait Jobs: Send + Sync + 'static {
    /// A place for a job that is about to be written down.
    type Place: Send;

    /// Promises a place to a submission, or finds the job that the same caller has submitted under the same key. Nothing is written.
    ///
    /// # Errors
    /// `job.key_reused` for another request under the key; `admission.busy` with a time for a full queue, quota or retention.
    fn promise(
        &self,
        submission: &Submission,
    ) -> impl Future<Output = Result<Promised<Self::Place>, JobsError>> + Send;

    /// Takes a job into its place, or finds the one that was first under the same key. Durable when it returns.
    ///
    /// # Errors
    /// As [`Jobs::promise`]: something may have come in between.
    fn enter(
        &self,
        place: Self::Place,
        submission: Submission,
    ) -> impl Future<Output = Result<Submitted, JobsError>> + Send;

    /// Both at once, for whoever writes nothing down in between.
    ///
    /// # Errors
    /// As [`Jobs::promise`].
    fn submit(&self, submission: Submission) -> impl Future<Output = Result<Submitted, JobsError>> + Send {
        async move {
            match self.promise(&submission).await? {
                Promised::Attached(attached) => Ok(*attached),
                Promised::Place(place) => self.enter(place, submission).await,
            }
        }
    }

    /// The job that the caller has submitted under the key, if there is one: what it names need not be asked for again.
    ///
    /// # Errors
    /// `job.key_reused` for another request under the key.
    fn attach(&self, submission: &Submission) -> Result<Option<Submitted>, JobsError>;

    /// A job as it is now.
    fn get(&self, id: &JobId) -> Option<Job>;

    /// How many jobs of its project are ahead of it; none if it does not wait. Of other projects it says nothing.
    fn queue_position(&self, id: &JobId) -> Option<u32>;

    /// Jobs, newest first, of those that `may_read` lets through.
    fn list(&self, wanted: &Wanted, may_read: &(dyn Fn(&Job) -> bool + Sync)) -> Page;

    /// Asks for a job's end. Durable when it returns; a finished job stays as it is.
    ///
    /// # Errors
    /// `job.unknown` if there is no such job; others if the wish could not be made durable.
    fn cancel(
        &self,
        id: &JobId,
        by: &Caller,
        reason: &str,
    ) -> impl Future<Output = Result<Job, JobsError>> + Send;

    /// What happens to a job, from a cursor on; `follow`: until it is finished.
    ///
    /// # Errors
    /// `job.unknown` if there is no such job, `call.invalid` for a cursor that is none of its.
    fn watch(
        &self,
        id: &JobId,
        after: u64,
        logs: bool,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<Watched, JobsError>> + Send + 'static, JobsError>;

    /// The evidence of a finished job.
    ///
    /// # Errors
    /// `job.unknown` if there is no such job, `job.unfinished` if it has not finished.
    fn evidence(&self, id: &JobId) -> Result<EvidenceFiles, JobsError>;

    /// An output of a finished job. It is opened in the store, which the launcher has: projects take turns at that.
    ///
    /// # Errors
    /// [`JobsError`] if there is no such output, it is not kept any more, or its turn does not come.
    fn open_output(
        &self,
        id: &JobId,
        output: &str,
    ) -> impl Future<Output = Result<OpenedOutput, JobsError>> + Send;

    /// Stops or resumes the intake, durably. Jobs that run and that wait.
    ///
    /// # Errors
    /// `internal` if that is not durable.
    fn drain(
        &self,
        drain: bool,
        cancel_queued: bool,
    ) -> impl Future<Output = Result<(u32, u32), JobsError>> + Send;

    /// Whether new jobs are taken; jobs that run; jobs that wait. Those of all projects: for operators.
    fn load(&self) -> (bool, u32, u32);
}
