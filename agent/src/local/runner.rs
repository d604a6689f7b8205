//! The client's end of the runner's socket.

use super::watch::{Watch, Work};
use crate::inputs::scratch_file;
use ampoule_ipc::{Channel, IpcError};
use ampoule_spec::wire::{Content, Imported, ListedJob, Quarantined, Recovered, Reply, Request};
use ampoule_spec::{Code, Isolation, JobId, LimitsRequest, Name, StepUser};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, socketpair};
use std::io::{Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Why the runner did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunnerError {
    /// The executable is not where it is looked for.
    #[error("ampoule-runner is not found beside this program or in its libexec directory ({looked})")]
    NotFound {
        /// Where.
        looked: String,
    },
    /// Somebody else could have changed the executable that is to be run as root.
    #[error(
        "{path} {why}, so others than root can change it, and it is not run as root; make it root's and run chmod go-w {path}"
    )]
    Untrusted {
        /// The executable.
        path: PathBuf,
        /// What gives that away.
        why: String,
    },
    /// The executable cannot be started.
    #[error("{path} cannot be started")]
    Start {
        /// The executable.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Nobody listens, or somebody else may connect and we may not.
    #[error("no launcher takes connections on {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Errno,
    },
    /// The runner refused; its own code and text.
    #[error("{message}")]
    Refused {
        /// The code.
        code: Code,
        /// For people.
        message: String,
    },
    /// The runner died or does not understand.
    #[error("ampoule-runner ended without an answer")]
    Lost(#[source] IpcError),
    /// The runner answered something else.
    #[error("ampoule-runner gave an answer out of turn")]
    OutOfTurn,
}

impl RunnerError {
    /// Says what it is that was refused.
    pub(super) fn within(self, what: &str) -> Self {
        match self {
            Self::Refused { code, message } => Self::Refused { code, message: format!("{what}: {message}") },
            other => other,
        }
    }

    /// The bounded code.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::Untrusted { .. } | Self::Start { .. } => Code::SandboxUnsupported,
            // It may be starting again.
            Self::Connect { .. } => Code::AdmissionBusy,
            Self::Refused { code, .. } => *code,
            Self::Lost(_) => Code::JobAborted,
            Self::OutOfTurn => Code::Internal,
        }
    }
}

/// What the runner measured of this host for a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement {
    /// The layers.
    pub isolation: Isolation,
    /// What the profile demands and the host does not give, with the remedy; empty: it can be met.
    pub missing: Vec<String>,
    /// Slots that are or were in quarantine since the last boot, the latest first.
    pub quarantined: Vec<Quarantined>,
}

/// A running `ampoule-runner`: one of our own, or a connection to one that listens.
#[derive(Debug)]
pub struct Runner {
    channel: Channel,
    /// None: it listens for others too.
    child: Option<Child>,
    recovered: Vec<Recovered>,
    privileged: bool,
    listening: bool,
    version: String,
    /// Who is told how far an import is.
    watch: Watch,
}

/// Where the runner lies: beside this program, or in the libexec directory of its prefix. Never in PATH.
///
/// # Errors
/// [`RunnerError::NotFound`] with the places.
pub fn find_runner() -> Result<PathBuf, RunnerError> {
    let mut looked = Vec::new();
    if let Ok(own) = std::env::current_exe().and_then(std::fs::canonicalize) {
        let beside = own.with_file_name("ampoule-runner");
        let libexec = own.parent().and_then(Path::parent).map(|p| p.join("libexec/ampoule/ampoule-runner"));
        looked.push(beside);
        looked.extend(libexec);
    }
    match looked.iter().find(|path| path.is_file()) {
        Some(found) => Ok(found.clone()),
        None => {
            let looked: Vec<_> = looked.iter().map(|p| p.display().to_string()).collect();
            Err(RunnerError::NotFound { looked: looked.join(", ") })
        }
    }
}

impl Runner {
    /// Starts the runner with an empty environment and waits for its greeting.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub fn start(path: &Path, state: &Path, profiles: Option<&Path>) -> Result<Self, RunnerError> {
        let start = |source| RunnerError::Start { path: path.to_owned(), source };
        let meta = std::fs::metadata(path).map_err(start)?;
        let why = match (meta.uid(), meta.mode() & 0o7777) {
            (0, mode) if mode & 0o022 == 0 => None,
            (0, mode) => Some(format!("has mode {mode:o}")),
            (uid, _) => Some(format!("belongs to user {uid}")),
        };
        if let Some(why) = why.filter(|_| rustix::process::geteuid().is_root()) {
            return Err(RunnerError::Untrusted { path: path.to_owned(), why });
        }
        let (mine, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|e| start(e.into()))?;
        let state = std::path::absolute(state).map_err(start)?;
        let mut command = Command::new(path);
        command.arg("serve").arg("--state").arg(state).env_clear();
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
        if let Some(profiles) = profiles {
            command.arg("--profiles").arg(std::path::absolute(profiles).map_err(start)?);
        }
        let child = command.spawn().map_err(start)?;
        // The command holds the runner's end until it is dropped; only then is its death an end of file.
        drop(command);
        Self::greeted(Channel::new(mine), Some(child))
    }

    /// Connects to a launcher that listens, and waits for the greeting of its session. Jobs that are
    /// [admitted](Self::admit) over it go on when it ends.
    ///
    /// # Errors
    /// [`RunnerError::Connect`]; [`RunnerError::Refused`] with `admission.busy` if it has as many connections as it
    /// takes; [`RunnerError::Lost`] if it lets another user in and not us.
    pub fn connect(path: &Path) -> Result<Self, RunnerError> {
        let failed = |source| RunnerError::Connect { path: path.to_owned(), source };
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let socket = socket.map_err(failed)?;
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        rustix::io::retry_on_intr(|| connect(&socket, &address)).map_err(failed)?;
        let runner = Self::greeted(Channel::new(socket), None)?;
        if runner.listening { Ok(runner) } else { Err(RunnerError::OutOfTurn) }
    }

    fn greeted(channel: Channel, child: Option<Child>) -> Result<Self, RunnerError> {
        let mut runner = Self {
            channel,
            child,
            recovered: Vec::new(),
            privileged: false,
            listening: false,
            version: String::new(),
            watch: Watch::default(),
        };
        match runner.receive()? {
            Reply::Hello { version, recovered, privileged, listening } => {
                runner.version = version;
                runner.recovered = recovered;
                runner.privileged = privileged;
                runner.listening = listening;
                Ok(runner)
            }
            _ => Err(RunnerError::OutOfTurn),
        }
    }

    /// A launcher that listens, at the other end of a channel that is there.
    #[cfg(test)]
    pub(crate) fn over(channel: Channel) -> Self {
        let (recovered, version) = (Vec::new(), String::new());
        let (privileged, listening, watch) = (false, true, Watch::default());
        Self { channel, child: None, recovered, privileged, listening, version, watch }
    }

    /// Jobs of earlier runs that the runner has cleaned up, and holds for us to sign.
    pub fn recovered(&self) -> &[Recovered] {
        &self.recovered
    }

    /// Has somebody told how far an import is.
    pub(crate) fn watch(&mut self, watch: &Watch) {
        self.watch = watch.clone();
    }

    /// The runner's version, as it says it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether the runner has host root's authority.
    pub fn is_privileged(&self) -> bool {
        self.privileged
    }

    pub(super) fn ask(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Reply, RunnerError> {
        self.send(request, descriptors)?;
        self.receive()
    }

    pub(crate) fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), RunnerError> {
        self.channel.send(request, descriptors).map_err(RunnerError::Lost)
    }

    pub(crate) fn receive(&self) -> Result<Reply, RunnerError> {
        loop {
            let reply = self.receive_any()?;
            // Jobs of a listening launcher are nobody's: whose end it says in between is not waited for here.
            if !(self.listening && matches!(reply, Reply::Finished { .. })) {
                return Ok(reply);
            }
        }
    }

    /// The next message, whatever it is about.
    pub(crate) fn receive_any(&self) -> Result<Reply, RunnerError> {
        match self.channel.receive::<Reply>() {
            Ok((Reply::Refused { code, message }, _)) => Err(RunnerError::Refused { code, message }),
            Ok((reply, _)) => Ok(reply),
            Err(error) => Err(RunnerError::Lost(error)),
        }
    }

    /// Waits for an answer, not for long.
    fn is_answered(&self) -> bool {
        let mut ready = [PollFd::from_borrowed_fd(self.channel(), PollFlags::IN)];
        !matches!(poll(&mut ready, Some(&LOOK_EVERY)), Ok(0) | Err(Errno::INTR))
    }

    /// Readable when the runner has answered or is gone.
    pub(crate) fn channel(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// Looks something up in the store.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub fn find(&self, content: Content) -> Result<Option<Imported>, RunnerError> {
        match self.ask(&Request::Find(content), &[])? {
            Reply::Found { imported } => Ok(imported),
            _ => Err(RunnerError::OutOfTurn),
        }
    }

    /// Imports what `source` gives.
    ///
    /// # Errors
    /// [`RunnerError`]; a refused archive with its own text.
    pub fn import(&self, content: Content, source: OwnedFd) -> Result<Imported, RunnerError> {
        self.import_beside(content, source, None)
    }

    /// Opens a file or directory of the store by its digest, for reading; whoever reads it holds it against that.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub fn open(&self, content: Content) -> Result<Option<OwnedFd>, RunnerError> {
        self.send(&Request::Open(content), &[])?;
        match self.channel.receive::<Reply>() {
            Ok((Reply::Opened { found: false }, _)) => Ok(None),
            Ok((Reply::Opened { found: true }, descriptors)) => {
                descriptors.into_iter().next().map(Some).ok_or(RunnerError::OutOfTurn)
            }
            Ok((Reply::Refused { code, message }, _)) => Err(RunnerError::Refused { code, message }),
            Ok(_) => Err(RunnerError::OutOfTurn),
            Err(error) => Err(RunnerError::Lost(error)),
        }
    }

    fn import_beside(
        &self,
        content: Content,
        source: OwnedFd,
        beside: Option<BorrowedFd<'_>>,
    ) -> Result<Imported, RunnerError> {
        let descriptors: Vec<_> = std::iter::once(source.as_fd()).chain(beside).collect();
        self.send(&Request::Import(content), &descriptors)?;
        let mut meter = self.watch.begin(Work::Import);
        // A file's offset is the runner's too: it shows how far that has read.
        let file = Some(source).filter(|source| self.watch.is_watched() && is_file(source));
        // Else ours must be closed by now: a pipe ends only when nobody else holds it.
        while self.watch.is_watched() && !self.is_answered() {
            if meter.is_due() {
                let (bytes, total) =
                    file.as_ref().map_or_else(|| (self.watch.piped(), self.watch.expected()), how_far);
                meter.at(bytes, total);
            }
        }
        drop((meter, file));
        match self.receive()? {
            Reply::Imported(imported) => Ok(imported),
            _ => Err(RunnerError::OutOfTurn),
        }
    }

    /// Imports the checkout of a commit: its archive, and the [`GitProof`](ampoule_spec::GitProof) as JSON.
    ///
    /// # Errors
    /// [`RunnerError`]; a tree that is not the commit's is `input.digest_mismatch`.
    pub fn import_git(
        &self,
        content: Content,
        source: OwnedFd,
        proof: &[u8],
    ) -> Result<Imported, RunnerError> {
        let file = scratch_file(&std::env::temp_dir()).and_then(|mut file| {
            file.write_all(proof)?;
            file.rewind().map(|()| file)
        });
        let file = file.map_err(|e| RunnerError::Refused {
            code: crate::files::code_of(&e),
            message: format!("a file below {} cannot be written: {e}", std::env::temp_dir().display()),
        })?;
        self.import_beside(content, source, Some(file.as_fd()))
    }

    /// Asks whether a job could be admitted, before anything is taken in for it.
    ///
    /// # Errors
    /// [`RunnerError`]: the refusal that the job would get.
    pub fn demand(&self, profile: Name, user: StepUser, limits: LimitsRequest) -> Result<(), RunnerError> {
        match self.ask(&Request::Demand { profile, user, limits }, &[])? {
            Reply::Possible => Ok(()),
            _ => Err(RunnerError::OutOfTurn),
        }
    }

    /// Measures what this host can isolate for a profile.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub fn doctor(&self, profile: Name) -> Result<Measurement, RunnerError> {
        match self.ask(&Request::Doctor { profile }, &[])? {
            Reply::Measured { isolation, missing, quarantined } => {
                Ok(Measurement { isolation, missing, quarantined })
            }
            _ => Err(RunnerError::OutOfTurn),
        }
    }

    /// Removes a job's directory.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub fn forget(&self, job: &JobId) -> Result<(), RunnerError> {
        match self.ask(&Request::Forget { job: job.clone() }, &[])? {
            Reply::Forgotten => Ok(()),
            _ => Err(RunnerError::OutOfTurn),
        }
    }
}

/// What only a launcher that listens does.
impl Runner {
    /// Has a job run that belongs to no connection. When this returns it is durable: it ends in a report in its
    /// directory, and [`super::control::cancel`] ends it sooner.
    ///
    /// `spec` is a file with the spec, at its beginning.
    ///
    /// # Errors
    /// [`RunnerError::Refused`]; after [`RunnerError::Lost`] only [`Runner::fence`] of another connection says
    /// whether it was admitted, and sees that it is not.
    pub fn admit(&self, job: &JobId, spec: BorrowedFd<'_>) -> Result<(), RunnerError> {
        match self.ask(&Request::Run { lifetime: false }, &[spec])? {
            Reply::Admitted { job: admitted } if admitted == *job => Ok(()),
            _ => Err(RunnerError::OutOfTurn),
        }
    }

    /// All jobs that have a directory, in the order of their ids. What is neither alive nor reported could not be
    /// recovered now.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub fn jobs(&self) -> Result<Vec<ListedJob>, RunnerError> {
        let mut all = Vec::new();
        loop {
            let after = all.last().map(|job: &ListedJob| job.id.clone());
            match self.ask(&Request::Jobs { after: after.clone(), only: None }, &[])? {
                Reply::Jobs { jobs, more } => {
                    // Each page goes on: else it would be asked for without end.
                    let goes_on = jobs.last().is_some_and(|job| Some(&job.id) > after.as_ref());
                    all.extend(jobs);
                    if !more {
                        return Ok(all);
                    }
                    if !goes_on {
                        return Err(RunnerError::OutOfTurn);
                    }
                }
                _ => return Err(RunnerError::OutOfTurn),
            }
        }
    }

    /// Sees to it that a job is never admitted, whoever has still a request for it; whether that is so. Else it has a directory.
    ///
    /// # Errors
    /// [`RunnerError`]: it is not known.
    pub fn fence(&self, job: &JobId) -> Result<bool, RunnerError> {
        match self.ask(&Request::Fence { job: job.clone() }, &[])? {
            Reply::Fenced { never } => Ok(never),
            _ => Err(RunnerError::OutOfTurn),
        }
    }

    /// One of them; none: it was never admitted, or is forgotten.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub fn job(&self, job: &JobId) -> Result<Option<ListedJob>, RunnerError> {
        match self.ask(&Request::Jobs { after: None, only: Some(job.clone()) }, &[])? {
            Reply::Jobs { jobs, .. } => Ok(jobs.into_iter().next()),
            _ => Err(RunnerError::OutOfTurn),
        }
    }
}

/// How often an import is looked at.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

fn is_file(fd: &OwnedFd) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

/// How much of a file was read, and how long it is.
fn how_far(file: &OwnedFd) -> (u64, Option<u64>) {
    let length = rustix::fs::fstat(file).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
    (rustix::fs::tell(file).unwrap_or(0), length)
}

impl Drop for Runner {
    /// Ends the conversation, upon which a runner of our own exits and is reaped.
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Both);
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}
