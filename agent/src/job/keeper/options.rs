//! How jobs are kept.

use crate::fair::Seats;
use crate::job::{End, Job, ledger, queue};
use crate::local::SigningKey;
use crate::secrets::Secrets;
use crate::sources::Policy;
use crate::visits::{Source, Visit};
use ampoule_evidence::Authority;
use ampoule_spec::wire::Content;
use ampoule_spec::{JobSpec, Name};
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What each project has shown to have of what jobs name by digest.
pub trait Shown: Debug + Send + Sync + 'static {
    /// Whether the project has shown this. May block for a moment.
    fn has(&self, project: &Name, content: &Content) -> bool;

    /// It was fetched for the project. May block for a moment.
    fn record(&self, project: &Name, content: &Content);

    /// When the project has fetched this from there, if it has. May block for a moment.
    fn visit(&self, project: &Name, source: &Source) -> Option<Visit>;

    /// The project has fetched this from there. May block for a moment.
    fn record_visit(&self, project: &Name, source: &Source, visit: &Visit);
}

/// One for all: what the store has, every project has. Nobody has fetched anything before.
#[derive(Debug, Clone, Copy, Default)]
pub struct ShownToAll;

impl Shown for ShownToAll {
    fn has(&self, _: &Name, _: &Content) -> bool {
        true
    }

    fn record(&self, _: &Name, _: &Content) {}

    fn visit(&self, _: &Name, _: &Source) -> Option<Visit> {
        None
    }

    fn record_visit(&self, _: &Name, _: &Source, _: &Visit) {}
}

/// Hears of the end of every job before anybody else does.
pub trait Witness: Debug + Send + Sync + 'static {
    /// Writes down that a job ends so; durable when it returns. Until then the job has not ended. It may hear of the same end
    /// again after a restart.
    ///
    /// # Errors
    /// For people; it is asked again.
    fn ends<'a>(&'a self, job: &'a Job, end: &'a End) -> BoxFuture<'a, Result<(), String>>;
}

/// Nobody wants to hear.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwitnessed;

impl Witness for Unwitnessed {
    fn ends<'a>(&'a self, _: &'a Job, _: &'a End) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Where inputs of a project's jobs may come from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Of a project that has none of its own.
    pub all: Policy,
    /// Of projects.
    pub projects: BTreeMap<Name, Policy>,
    /// What the operator has given projects; whoever is not in it has nothing.
    pub files: BTreeMap<Name, ProjectFiles>,
}

/// Files of the operator's that are for one project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProjectFiles {
    /// Credentials for registries.
    pub registry_auth: Option<PathBuf>,
    /// Who may sign its commits, in the form of ssh-keygen(1).
    pub allowed_signers: Option<PathBuf>,
    /// Whose provenance its jobs believe: a trust file.
    pub trust: Option<PathBuf>,
}

impl Sources {
    pub(super) fn of(&self, project: &Name) -> Policy {
        self.projects.get(project).unwrap_or(&self.all).clone()
    }

    pub(super) fn files_of(&self, project: &Name) -> ProjectFiles {
        self.files.get(project).cloned().unwrap_or_default()
    }
}

/// What a job that does not say what it needs is taken to need, so that the queue has something to go by.
#[derive(Debug, Clone)]
pub struct Needs {
    /// With a profile that is not named here.
    pub other: queue::Amount,
    /// By profile: its defaults.
    pub profiles: BTreeMap<Name, queue::Amount>,
}

impl Needs {
    pub(super) fn of(&self, spec: &JobSpec) -> queue::Amount {
        let default = self.profiles.get(&spec.profile).copied().unwrap_or(self.other);
        queue::Amount {
            cpu_millis: spec.limits.cpu_millis.unwrap_or(default.cpu_millis),
            memory_bytes: spec.limits.memory_bytes.unwrap_or(default.memory_bytes),
            disk_bytes: spec.limits.disk_bytes.unwrap_or(default.disk_bytes),
        }
    }
}

/// How long the directories of finished jobs are kept: logs and outputs are served from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// At most this long after the job's end.
    pub age: Duration,
    /// At most this many bytes, all directories together; of the project that has the most the oldest go first.
    pub bytes: u64,
    /// How often that is looked at.
    pub every: Duration,
}

impl Default for Keep {
    /// A week, 20 GiB, looked at every minute.
    fn default() -> Self {
        Self { age: Duration::from_secs(7 * 24 * 60 * 60), bytes: 20 << 30, every: Duration::from_secs(60) }
    }
}

/// How many jobs fetch at the same time, and how long each may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intakes {
    /// Places. One project has at most half of them.
    pub places: usize,
    /// How long an intake may last.
    pub whole: Duration,
    /// How long it may be slow while another project waits for a place.
    pub patience: Duration,
    /// Bytes a second since its beginning; fewer is slow.
    pub slow: u64,
}

impl Default for Intakes {
    /// Four places; an hour; five minutes of less than 1 MiB/s.
    fn default() -> Self {
        let (whole, patience) = (Duration::from_secs(60 * 60), Duration::from_secs(5 * 60));
        Self { places: 4, whole, patience, slow: 1 << 20 }
    }
}

/// Everything that jobs need to be kept and driven.
#[derive(Debug, Clone)]
pub struct Options {
    /// The agent's own directory: ledger, keys, records. It is made; only its owner may enter.
    pub state: PathBuf,
    /// The launcher's socket.
    pub socket: PathBuf,
    /// The launcher's job directories: `<its state>/jobs`.
    pub jobs: PathBuf,
    /// The key to sign with.
    pub key: SigningKey,
    /// The base of type URIs and builder ids.
    pub authority: Authority,
    /// Where inputs may come from.
    pub sources: Sources,
    /// What projects have uploaded.
    pub shown: Arc<dyn Shown>,
    /// Who hears of ends before they are told.
    pub witness: Arc<dyn Witness>,
    /// What the queue goes by.
    pub rules: queue::Rules,
    /// What a job needs that does not say it.
    pub needs: Needs,
    /// How the ledger is opened, and how long it has finished jobs.
    pub ledger: ledger::Options,
    /// How long directories of finished jobs are kept.
    pub keep: Keep,
    /// The bounds of what is fetched for jobs.
    pub intakes: Intakes,
    /// Turns of projects at what is only looked up in the store or opened there.
    pub lookups: Arc<Seats>,
    /// What steps may have that name secrets; none: nothing.
    pub secrets: Option<Arc<Secrets>>,
    /// Readers of a project's jobs at the same time; of all together twice as many.
    pub readers: usize,
    /// Whether the host is known to be another than it was when its operator looked at it, see [`super::Keeper::set_drifted`]. None:
    /// nobody looks at it, and no job waits for that.
    pub drifted: Option<bool>,
}
