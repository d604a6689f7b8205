//! `ampoule run`: one job on this host without a daemon, with the same processes and the same evidence.
//!
//! The calling process stands in the agent's place: it reads, fetches, decides and signs. Everything that
//! needs privilege happens in `ampoule-runner`, which it starts for this one job and which looks up by digest
//! whatever it mounts.

pub mod control;
mod download;
pub(crate) mod evidence;
mod follow;
mod git;
pub mod hand_over;
pub(crate) mod intake;
pub(crate) mod path;
mod place;
mod pulled;
pub(crate) mod record;
pub(crate) mod release;
mod runner;
mod store;
pub(crate) mod take;
pub(crate) mod upstream;
mod watch;

pub use evidence::SigningKey;
pub use follow::Note;
pub(crate) use place::Place;
pub use runner::{Measurement, Runner, RunnerError, find_runner};
pub use store::{Verified, age_seconds, size};
pub use watch::{Progress, Watch, Work};

use crate::files::code_of;
use crate::inputs::InputError;
use crate::jobfile::{JobFileError, JobPlan};
use crate::signing::SigningError;
use crate::sources::Policy;
use ampoule_evidence::Authority;
use ampoule_spec::wire::{CANCEL, Content};
use ampoule_spec::{Code, Failure, JobId, Outcome, OutputForm};
use intake::TakenIn;
use release::Evidence;
pub(crate) use release::exit_of;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a local run needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The runner's executable.
    pub runner: PathBuf,
    /// Where jobs, store and keys lie.
    pub state: PathBuf,
    /// Where outputs and evidence go: a directory that is new or empty. None: below the state directory.
    pub out: Option<PathBuf>,
    /// A directory of compiled profiles, instead of those built in.
    pub profiles: Option<PathBuf>,
    /// The key to sign with.
    pub key: SigningKey,
    /// The base of type URIs and builder ids.
    pub authority: Authority,
    /// Where inputs may come from.
    pub sources: Policy,
    /// Who is told how far something is that lasts.
    pub watch: Watch,
    /// A file of credentials for registries (`config.json` or `auth.json`).
    pub registry_auth: Option<PathBuf>,
}

/// How a local run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed {
    /// The job.
    pub job: JobId,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, unless it succeeded.
    pub failure: Option<Failure>,
    /// Where outputs and evidence are.
    pub out: PathBuf,
    /// The public key by which the evidence verifies.
    pub public_key: PathBuf,
    /// The builder that signed.
    pub builder: String,
    /// Outputs that were released.
    pub outputs: Vec<ReleasedOutput>,
    /// Whether there is provenance.
    pub provenance: bool,
}

/// An output that was released.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReleasedOutput {
    /// Its name: that of its file or directory.
    pub name: String,
    /// How it left.
    pub form: OutputForm,
    /// The length of the file or archive; of a tree, of all its files together.
    pub bytes: u64,
    /// A directory's: how many entries were in it.
    pub entries: Option<u64>,
    /// SHA-256 of the file or archive, or the tree digest.
    pub sha256: String,
}

impl ReleasedOutput {
    fn of(report: &ampoule_spec::OutputReport) -> Self {
        Self {
            name: report.name.to_string(),
            form: report.form,
            bytes: report.bytes,
            entries: report.entries,
            sha256: report.sha256.to_string(),
        }
    }
}

/// Why a local run has no record of its own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// The job file or the command line.
    #[error(transparent)]
    Job(#[from] JobFileError),
    /// An input.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The key.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The runner.
    #[error(transparent)]
    Runner(#[from] RunnerError),
    /// The job was cancelled before it was admitted.
    #[error("cancelled before there was a job")]
    Cancelled,
    /// An input has in it what a step must not see.
    #[error("input {input} has {what} in it ({path}), and a step could read that; keep it elsewhere")]
    Exposed {
        /// The input.
        input: String,
        /// What.
        what: &'static str,
        /// Where.
        path: PathBuf,
    },
    /// What another job has made is not used: its provenance is refused.
    #[error("{file}: {reason}")]
    Upstream {
        /// Why.
        code: Code,
        /// The attestation, or what says who is believed.
        file: PathBuf,
        /// For people.
        reason: String,
    },
    /// A file of the run's own.
    #[error("{what} {path} cannot be used: {reason}")]
    File {
        /// `file.unusable` or `file.full`.
        code: Code,
        /// What it is for.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// The launcher died, and another run ends the job.
    #[error("the launcher died, and another run beside this one ends the job; its record will be {record}")]
    TakenOver {
        /// Where.
        record: PathBuf,
    },
    /// The job has run, and its outputs and evidence are not where they were wanted.
    #[error("--out {out} cannot be used: {reason}; outputs and evidence are in {kept}")]
    Elsewhere {
        /// As of [`LocalError::File`].
        code: Code,
        /// Where they were wanted.
        out: PathBuf,
        /// Why they are not there.
        reason: String,
        /// Where they are.
        kept: PathBuf,
    },
    /// A daemon does not take what it was given.
    #[error("{message}")]
    Server {
        /// Its code.
        code: Code,
        /// For people.
        message: String,
    },
    /// The evidence cannot be made; nothing was released.
    #[error("nothing was released: {reason}")]
    Evidence {
        /// Why.
        code: Code,
        /// For people.
        reason: String,
    },
}

impl Completed {
    /// The exit status of the command that ran the job.
    pub fn exit(&self) -> u8 {
        release::exit_of(self.failure.as_ref(), self.outcome)
    }
}

impl LocalError {
    /// A file that a system call failed for.
    pub(crate) fn file(what: &'static str, path: &Path, error: &std::io::Error) -> Self {
        Self::File { code: code_of(error), what, path: path.to_owned(), reason: error.to_string() }
    }

    /// The bounded code.
    pub fn code(&self) -> Code {
        match self {
            Self::Job(error) => error.code(),
            Self::Input(error) => error.code(),
            Self::Signing(error) => error.code(),
            Self::File { code, .. } | Self::Elsewhere { code, .. } => *code,
            Self::Runner(error) => error.code(),
            Self::Cancelled => Code::JobCancelled,
            Self::Exposed { .. } => Code::InputRefused,
            Self::Upstream { code, .. } | Self::Server { code, .. } => *code,
            Self::TakenOver { .. } => Code::JobAborted,
            Self::Evidence { code, .. } => *code,
        }
    }
}

/// Ends a run from another thread.
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    state: Arc<Mutex<CancelState>>,
    /// What ends this one too.
    above: Option<Arc<Mutex<CancelState>>>,
}

#[derive(Debug, Default)]
struct CancelState {
    wished: bool,
    pipe: Option<std::os::fd::OwnedFd>,
}

impl Cancel {
    /// One for a part of what this one ends: it ends that part alone.
    pub(crate) fn of_a_part(&self) -> Self {
        Self { state: Arc::default(), above: Some(Arc::clone(&self.state)) }
    }

    fn state(&self) -> MutexGuard<'_, CancelState> {
        locked(&self.state)
    }

    /// Cancels: before admission the run ends at once, afterwards the runner ends the job.
    pub fn cancel(&self) {
        let mut state = self.state();
        state.wished = true;
        if let Some(pipe) = &state.pipe {
            // A runner that has ended meanwhile needs no wish.
            let _ = rustix::io::write(pipe, &[CANCEL]);
        }
    }

    /// Whether somebody cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.state().wished || self.above.as_ref().is_some_and(|above| locked(above).wished)
    }

    /// Hands over the pipe by which the job can be ended; its end of file ends the job too.
    fn arm(&self, pipe: std::os::fd::OwnedFd) {
        let mut state = self.state();
        if state.wished {
            let _ = rustix::io::write(&pipe, &[CANCEL]);
        }
        state.pipe = Some(pipe);
    }

    /// Drops the pipe: the job ends if it still runs.
    fn disarm(&self) {
        self.state().pipe = None;
    }
}

fn locked(state: &Mutex<CancelState>) -> MutexGuard<'_, CancelState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a job. Blocks until its evidence is durable; not to be called on an async worker thread.
///
/// # Errors
/// [`LocalError`] if there is no record of the job in `out`: it was refused before it was admitted, or its
/// evidence could not be written (then the next run signs it).
pub fn run(
    plan: JobPlan,
    options: &Options,
    cancel: &Cancel,
    say: &mut dyn FnMut(Note),
) -> Result<Completed, LocalError> {
    plan.demands_no_secret()?;
    make_state(&options.state)?;
    if let Some(out) = &options.out {
        release::check_out(out)?;
    }
    let signing = evidence::open(&options.key, &options.authority, &options.state.join("keys"))?;
    let mut runner = Runner::start(&options.runner, &options.state, options.profiles.as_deref())?;
    runner.watch(&options.watch);
    for recovered in runner.recovered().to_vec() {
        evidence::sign_recovered(&mut runner, options, &signing, &recovered, say);
    }
    runner.demand(plan.profile.clone(), plan.user, plan.limits.clone())?;
    let TakenIn { spec: spec_bytes, id, claims } = intake::take_in(plan, &mut runner, options, cancel, say)?;
    if cancel.is_cancelled() {
        return Err(LocalError::Cancelled);
    }
    let ended = follow::run_job(&mut runner, options, &id, &spec_bytes, cancel, say);
    if let Err(LocalError::Runner(RunnerError::Lost(_))) = &ended {
        runner = take_over(options, &signing, &id, say)?;
    } else {
        ended?;
    }
    let kept = options.state.join("runs").join(id.as_str());
    let out = options.out.clone().unwrap_or_else(|| kept.clone());
    let job_dir = options.state.join("jobs").join(id.as_str());
    let evidence = Evidence::read(&job_dir)?.with_claims(claims);
    let runner = RefCell::new(runner);
    let open = |content: &Content| open_output(&runner, options, content);
    let from = release::From { job_dir: &job_dir, open: &open };
    let released = match release::release(&evidence, &from, &out, &signing, &options.watch) {
        // Somebody else has taken it meanwhile, or it is full: what the job made is not lost for that.
        Err(LocalError::File { code, reason, .. }) if options.out.is_some() => {
            release::release(&evidence, &from, &kept, &signing, &options.watch)?;
            forget(runner.into_inner(), options, &id);
            return Err(LocalError::Elsewhere { code, out, reason, kept });
        }
        released => released?,
    };
    forget(runner.into_inner(), options, &id);
    let report = evidence.record.report();
    Ok(Completed {
        job: id,
        outcome: report.outcome,
        failure: released.refused.or_else(|| report.failure.clone()),
        out,
        public_key: signing.public_key_file.clone(),
        builder: released.builder,
        outputs: released.outputs,
        provenance: released.provenance,
    })
}

/// Opens an output in the store. If the launcher died meanwhile, another one finds the job, and has the same store.
fn open_output(
    runner: &RefCell<Runner>,
    options: &Options,
    content: &Content,
) -> std::io::Result<std::os::fd::OwnedFd> {
    let opened = runner.borrow().open(content.clone());
    let opened = match opened {
        Err(RunnerError::Lost(_)) => {
            let again = Runner::start(&options.runner, &options.state, options.profiles.as_deref());
            again.and_then(|again| {
                let opened = again.open(content.clone());
                runner.replace(again);
                opened
            })
        }
        other => other,
    };
    let opened = opened.map_err(|error| std::io::Error::other(crate::chain::chain(&error)))?;
    opened.ok_or_else(|| std::io::Error::other("an output is not in the store any more"))
}

/// The launcher is dead. A new one ends the job if its supervisor could not, and holds it for us; unless another run was
/// first, which then signs it as it signs everything that it finds.
fn take_over(
    options: &Options,
    signing: &evidence::Signing,
    id: &JobId,
    say: &mut dyn FnMut(Note),
) -> Result<Runner, LocalError> {
    let mut runner = Runner::start(&options.runner, &options.state, options.profiles.as_deref())?;
    let (ours, others): (Vec<_>, Vec<_>) =
        runner.recovered().iter().cloned().partition(|recovered| recovered.job == *id);
    for recovered in others {
        evidence::sign_recovered(&mut runner, options, signing, &recovered, say);
    }
    if ours.is_empty() {
        return Err(LocalError::TakenOver { record: options.state.join("records").join(id.as_str()) });
    }
    Ok(runner)
}

/// The evidence is durable, so the runner may forget the job. If the launcher died meanwhile, another one
/// finds the job and gives it to us; what fails here is left to the next run, which signs once more.
fn forget(runner: Runner, options: &Options, id: &JobId) {
    if runner.forget(id).is_err() {
        drop(runner);
        let again = Runner::start(&options.runner, &options.state, options.profiles.as_deref());
        let _ = again.and_then(|runner| runner.forget(id));
    }
}

/// Makes the state directory, which only its owner may enter.
///
/// # Errors
/// [`LocalError::File`] if it cannot be made.
pub fn make_state(state: &Path) -> Result<(), LocalError> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    let failed = |code: Code, reason: String| LocalError::File {
        code,
        what: "the state directory",
        path: state.to_owned(),
        reason: format!("{reason}; name another with --state"),
    };
    let unusable = |reason: String| failed(Code::FileUnusable, reason);
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    // From the outside in: nothing is written below a directory that is not ours.
    for dir in [state.to_owned(), state.join("keys"), state.join("runs"), state.join("records")] {
        builder.create(&dir).map_err(|e| failed(code_of(&e), e.to_string()))?;
        let meta = std::fs::symlink_metadata(&dir).map_err(|e| unusable(e.to_string()))?;
        let ours = meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o022 == 0;
        if !meta.is_dir() {
            return Err(unusable(format!("{} is a link or a file", dir.display())));
        }
        if !ours {
            return Err(unusable(format!(
                "{} belongs to somebody else or can be written by others",
                dir.display()
            )));
        }
    }
    Ok(())
}
