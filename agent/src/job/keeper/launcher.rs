//! The launcher as jobs see it: a socket that may be gone for a while, and the job directories beside it.

use super::line::{Ending, Ends, Line};
use crate::local::control::cancel;
use crate::local::{Runner, RunnerError};
use ampoule_spec::wire::ListedJob;
use ampoule_spec::{Code, JobId};
use rustix::fs::{MemfdFlags, memfd_create};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long to wait before a launcher that is down is asked again: doubled each time.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// All jobs that have a directory.
pub(super) type Listed = BTreeMap<JobId, ListedJob>;

/// What became of the question whether the runner takes a job.
#[derive(Debug)]
pub(super) enum Answer {
    /// It is admitted.
    Admitted,
    /// It is not, and the launcher says why.
    Refused { code: Code, message: String },
    /// Nobody was asked: the launcher is down.
    NotThere,
    /// Nobody answered. It may be admitted, or not.
    Silent,
}

#[derive(Debug)]
pub(super) struct Launcher {
    socket: PathBuf,
    jobs: PathBuf,
    up: watch::Sender<bool>,
    /// How often it has come up: each time it may be another one.
    risen: watch::Sender<u64>,
    /// The process that listens, as the kernel says; none before one was seen. Behind a socket of systemd's it is always that.
    listener: Mutex<Option<i32>>,
    /// The session that takes our jobs.
    line: Mutex<Option<Line>>,
    ends: Arc<Ends>,
}

impl Launcher {
    /// The launcher that listens on `socket` and keeps its job directories in `jobs`. It counts as down until it has answered.
    pub(super) fn new(socket: PathBuf, jobs: PathBuf) -> Self {
        let (up, risen) = (watch::Sender::new(false), watch::Sender::new(0));
        Self {
            socket,
            jobs,
            up,
            risen,
            listener: Mutex::new(None),
            line: Mutex::new(None),
            ends: Arc::default(),
        }
    }

    /// Where a job's directory is, if it has one.
    pub(super) fn job_dir(&self, id: &JobId) -> PathBuf {
        self.jobs.join(id.as_str())
    }

    pub(super) fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// How often it has come up so far.
    pub(super) fn risen(&self) -> watch::Receiver<u64> {
        self.risen.subscribe()
    }

    /// Whoever sees it up has the count of that time.
    fn set_up(&self, is_up: bool) {
        self.up.send_if_modified(|up| {
            if is_up && !*up {
                self.risen.send_modify(|risen| *risen += 1);
            }
            std::mem::replace(up, is_up) != is_up
        });
    }

    /// Whether another process listens than before: a launcher can be replaced before anybody sees it down.
    fn is_another(&self, runner: &Runner) -> bool {
        let Ok(peer) = rustix::net::sockopt::socket_peercred(runner.channel()) else { return true };
        let pid = peer.pid.as_raw_nonzero().get();
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        listener.replace(pid).is_some_and(|before| before != pid)
    }

    fn line(&self) -> MutexGuard<'_, Option<Line>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the launcher answers, as far as anybody knows.
    pub(super) async fn until_up(&self) {
        let mut up = self.up.subscribe();
        // The sender is ours, so this ends with the launcher up.
        let _ = up.wait_for(|up| *up).await;
    }

    /// Looks after a launcher that is down until it is up again, for as long as it is polled.
    pub(super) async fn look_after(self: std::sync::Arc<Self>) {
        let mut up = self.up.subscribe();
        loop {
            if up.wait_for(|up| !up).await.is_err() {
                return;
            }
            // A listener that was told to end waits for its last session.
            let this = std::sync::Arc::clone(&self);
            let _ = tokio::task::spawn_blocking(move || drop(this.line().take())).await;
            let mut pause = BACK_OFF.0;
            loop {
                let this = std::sync::Arc::clone(&self);
                let error = match tokio::task::spawn_blocking(move || this.connect().map(drop)).await {
                    Ok(Ok(())) => break,
                    Ok(Err(error)) => crate::chain::chain(&error),
                    Err(error) => error.to_string(),
                };
                if self.is_up() {
                    break;
                }
                if pause == BACK_OFF.0 {
                    tracing::warn!(socket = %self.socket.display(), error, "the launcher does not answer; jobs wait");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACK_OFF.1);
            }
            tracing::info!("the launcher answers");
        }
    }

    /// A session of its own. Blocks.
    ///
    /// # Errors
    /// [`RunnerError`]; the launcher then counts as down.
    pub(super) fn connect(&self) -> Result<Runner, RunnerError> {
        let connected = Runner::connect(&self.socket);
        let is_up = !matches!(&connected, Err(error) if !matches!(error, RunnerError::Refused { .. }));
        if connected.as_ref().is_ok_and(|runner| self.is_another(runner)) {
            // Not down in between: what the one before was asked it may still answer.
            self.risen.send_modify(|risen| *risen += 1);
        }
        self.set_up(is_up);
        connected
    }

    /// Every job that has a directory; what was neither alive nor reported has been recovered. Blocks.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub(super) fn jobs(&self) -> Result<Listed, RunnerError> {
        let jobs = self.connect()?.jobs()?;
        Ok(jobs.into_iter().map(|job| (job.id.clone(), job)).collect())
    }

    /// Whether a job has a directory. Blocks.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub(super) fn has(&self, id: &JobId) -> Result<bool, RunnerError> {
        Ok(self.connect()?.job(id)?.is_some())
    }

    /// Sees to it that a job is never admitted, unless it has a directory; whether that is so. Blocks.
    ///
    /// # Errors
    /// [`RunnerError`]: it is not known.
    pub(super) fn fence(&self, id: &JobId) -> Result<bool, RunnerError> {
        self.connect()?.fence(id)
    }

    /// Removals of directories, all by one session.
    pub(super) fn removals(&self) -> Removals<'_> {
        Removals { launcher: self, session: None }
    }

    /// Asks the runner to take a job that then belongs to nobody's connection, unless it may not: that is looked at last, when it
    /// is clear which launcher is asked. The answer is waited for. Blocks until it is asked.
    ///
    /// # Errors
    /// The answer, where nobody was asked.
    pub(super) fn ask(
        &self,
        spec: &[u8],
        id: &JobId,
        may: impl FnOnce() -> bool,
    ) -> Result<oneshot::Receiver<Answer>, Answer> {
        // For want of descriptors, memory or threads; there may be some in a moment.
        let wanting = |error: io::Error| {
            tracing::warn!(job = %id, %error, "the launcher cannot be asked now");
            Answer::NotThere
        };
        let file = in_memory(spec).map_err(wanting)?;
        let mut line = self.line();
        if line.take_if(|line| !line.is_open()).is_some() {
            // A launcher that was replaced before anybody saw it down is another one all the same.
            self.set_up(false);
        }
        if line.is_none() {
            let runner = self.connect().map_err(|error| match error {
                RunnerError::Refused { code, message } => Answer::Refused { code, message },
                _ => Answer::NotThere,
            })?;
            *line = Some(Line::begin(runner, self.ends.clone()).map_err(wanting)?);
        }
        if !may() {
            return Err(Answer::NotThere);
        }
        line.as_ref().and_then(|line| line.ask(id, &file)).ok_or(Answer::NotThere)
    }

    /// Has somebody told of a job's end, from now on.
    pub(super) fn ending(&self, id: &JobId) -> Ending {
        self.ends.of(id)
    }

    /// Asks a job's supervisor for its end.
    ///
    /// # Errors
    /// When nobody could be told now.
    pub(super) fn cancel(&self, id: &JobId) -> io::Result<()> {
        cancel(&self.job_dir(id)).map(drop)
    }
}

/// Removes directories of jobs. The session begins with the first and ends with this.
#[derive(Debug)]
pub(super) struct Removals<'a> {
    launcher: &'a Launcher,
    session: Option<Runner>,
}

impl Removals<'_> {
    /// Removes a job's directory. Blocks.
    ///
    /// # Errors
    /// [`RunnerError`]; the next one is asked of another session.
    pub(super) fn forget(&mut self, id: &JobId) -> Result<(), RunnerError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => self.launcher.connect()?,
        };
        session.forget(id)?;
        self.session = Some(session);
        Ok(())
    }
}

/// A file of these bytes, at its beginning.
fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("spec", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind().map(|()| file)
}

/// Whether the same question may be answered otherwise in a moment: the launcher or its session is gone, or it is busy.
pub(super) fn passes(error: &RunnerError) -> bool {
    match error {
        RunnerError::Refused { code, .. } => *code == Code::AdmissionBusy,
        RunnerError::OutOfTurn => false,
        _ => true,
    }
}
