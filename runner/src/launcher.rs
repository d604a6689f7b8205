//! The launcher: one connection, one request at a time, one supervisor per job.

use crate::admission::{self, Admitted, Refusal, refuse};
use crate::clock;
use crate::facts::{self, FactsReader};
use crate::import;
use crate::jobdir::{JobDir, JobLock, State};
use crate::lifetime::Lifetime;
use crate::recorder::Recorder;
use crate::{doctor, recovery, supervisor};
use ampoule_ipc::{Channel, IpcError};
use ampoule_sandbox::identity::UidBlock;
use ampoule_spec::wire::{Reply, Request};
use ampoule_spec::{Code, Event, JobId, Name, SPEC_BYTES_MAX};
use ampoule_store::Store;
use ampoule_sys::process::{Keep, Namespaces, Which, spawn, wait};
use rustix::fs::FileType;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// What the launcher was started with.
pub(crate) struct Options {
    pub(crate) state: PathBuf,
    pub(crate) profiles: Option<PathBuf>,
}

/// The launcher's state while it serves a connection.
struct Launcher {
    options: Options,
    state: State,
    store: Store,
    channel: Channel,
    /// Locks of jobs whose evidence is not yet durable elsewhere: nobody else recovers or forgets them.
    held: BTreeMap<JobId, JobLock>,
}

/// Serves requests until the client closes the connection.
pub(crate) fn serve(options: Options, channel: Channel) -> Result<(), String> {
    let state = State::open(&options.state)
        .map_err(|e| format!("the state directory {} cannot be used: {e}", options.state.display()))?;
    let store = Store::open(&state.store, import::owner(), ampoule_store::Limits::default())
        .map_err(|e| admission::chain(&e))?;
    store.sweep_staging().map_err(|e| admission::chain(&e))?;
    let mut launcher = Launcher { options, state, store, channel, held: BTreeMap::new() };
    launcher.greet()?;
    loop {
        let (request, descriptors) = match launcher.channel.receive::<Request>() {
            Ok(received) => received,
            Err(IpcError::Closed) => return Ok(()),
            Err(IpcError::Malformed(error)) => {
                launcher.say(&refusal(refuse(
                    Code::JobInvalid,
                    format!("a request that cannot be read: {error}"),
                )))?;
                continue;
            }
            Err(error) => return Err(admission::chain(&error)),
        };
        let reply = launcher.answer(request, descriptors).unwrap_or_else(refusal);
        launcher.say(&reply)?;
    }
}

/// The most bytes of a refusal's text: some of it may be the client's own.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

fn refusal(refusal: Refusal) -> Reply {
    let mut message = refusal.message;
    if message.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    Reply::Refused { code: refusal.code, message }
}

/// A client's descriptor must be what the protocol says: reading another may wait for ever.
fn of_type(descriptor: &OwnedFd, wanted: FileType, what: &str) -> Result<(), Refusal> {
    let stat = rustix::fs::fstat(descriptor).map_err(|e| refuse(Code::JobInvalid, format!("{what}: {e}")))?;
    if FileType::from_raw_mode(stat.st_mode) == wanted {
        Ok(())
    } else {
        Err(refuse(Code::JobInvalid, format!("{what} came as a descriptor of another type")))
    }
}

impl Launcher {
    /// Cleans up after earlier runs, then says hello with what was found.
    fn greet(&mut self) -> Result<(), String> {
        // What cannot be removed now is no job any more; the next run tries again.
        let _ = self.state.sweep();
        let (recovered, locks) = recovery::recover(&self.state);
        self.held.extend(locks);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.say(&Reply::Hello { version, privileged: admission::is_privileged(), recovered })
    }

    fn say(&self, reply: &Reply) -> Result<(), String> {
        match self.channel.send(reply, &[]) {
            // A client that is gone does not need the answer; the next receive ends the connection.
            Ok(()) | Err(IpcError::Closed) => Ok(()),
            Err(error) => Err(admission::chain(&error)),
        }
    }

    fn answer(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> Result<Reply, Refusal> {
        let mut descriptors = descriptors.into_iter();
        let internal = |e: &dyn std::error::Error| refuse(Code::Internal, admission::chain(e));
        match request {
            Request::Find(content) => {
                Ok(Reply::Found { imported: self.store.find(&content).map_err(|e| internal(&e))? })
            }
            Request::Import(content) => {
                let source =
                    descriptors.next().ok_or_else(|| refuse(Code::JobInvalid, "no bytes came with it"))?;
                import::import(&self.store, &content, source).map(Reply::Imported)
            }
            Request::Run { lifetime } => {
                let spec =
                    descriptors.next().ok_or_else(|| refuse(Code::JobInvalid, "no spec came with it"))?;
                let pipe = if lifetime { descriptors.next() } else { None };
                if let Some(pipe) = &pipe {
                    of_type(pipe, FileType::Fifo, "the lifetime pipe")?;
                }
                if lifetime && pipe.is_none() {
                    return Err(refuse(Code::JobInvalid, "no lifetime pipe came with it"));
                }
                self.run(spec, Lifetime::new(pipe))
            }
            Request::Doctor { profile } => self.doctor(&profile),
            Request::Forget { job } => {
                if !self.held.contains_key(&job) {
                    return Err(refuse(
                        Code::JobInvalid,
                        format!("job {job} is not held by this connection"),
                    ));
                }
                self.state.forget(&job).map_err(|e| internal(&e))?;
                self.held.remove(&job);
                Ok(Reply::Forgotten)
            }
        }
    }

    fn doctor(&self, profile: &Name) -> Result<Reply, Refusal> {
        let (isolation, missing) = doctor::measure(profile, self.options.profiles.as_deref())?;
        Ok(Reply::Measured { isolation, missing })
    }

    fn run(&mut self, spec: OwnedFd, lifetime: Lifetime) -> Result<Reply, Refusal> {
        of_type(&spec, FileType::RegularFile, "the spec")?;
        let mut bytes = Vec::new();
        File::from(spec)
            .take(SPEC_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| refuse(Code::JobInvalid, format!("the spec cannot be read: {e}")))?;
        let (admitted, block) = admission::admit(&bytes, &self.store, self.options.profiles.as_deref())?;
        let job = admitted.job.id.clone();
        let (dir, lock, recorder) =
            self.make_durable(&admitted, &bytes, block.as_ref()).map_err(|error| {
                // AlreadyExists: a job of this id was run; its record stands.
                let code = if error.kind() == std::io::ErrorKind::AlreadyExists {
                    Code::JobInvalid
                } else {
                    Code::Internal
                };
                refuse(code, format!("the job's directory cannot be made: {error}"))
            })?;
        self.say(&Reply::Admitted { job: job.clone() }).map_err(|e| refuse(Code::Internal, e))?;
        let (facts, gatherer) = facts::pipe().map_err(|e| refuse(Code::Internal, format!("a pipe: {e}")))?;
        let image = admitted.job.image.clone();
        let closed = [self.channel.as_fd(), gatherer.0.as_fd()];
        let supervisor = start_supervisor(&closed, admitted, &dir, recorder, lifetime, facts)
            .map_err(|e| refuse(Code::Internal, format!("the supervisor cannot be started: {e}")))?;
        gatherer.gather(&image);
        let _ = wait(Which::Pid(supervisor), true);
        if !dir.has_report() {
            recovery::abort(&dir);
        }
        recovery::quarantine_if_unclean(&dir);
        if !dir.has_report() {
            let text = "the job's report cannot be written; the next run tries again";
            return Err(refuse(Code::Internal, text));
        }
        self.held.insert(job.clone(), lock);
        Ok(Reply::Finished { job })
    }

    /// Writes the spec and the intent; durable when this returns.
    fn make_durable(
        &self,
        admitted: &Admitted,
        spec: &[u8],
        block: Option<&UidBlock>,
    ) -> std::io::Result<(JobDir, JobLock, Recorder)> {
        let (dir, lock) = self.state.create_job(&admitted.job.id)?;
        dir.write_spec(spec)?;
        let mut recorder = Recorder::new(dir.create_events()?);
        let cgroups = admitted.hierarchies.iter().flat_map(|h| h.job_paths(&admitted.job.id));
        let intent = Event::Admitted {
            at: clock::now(),
            job: admitted.job.id.clone(),
            spec: admitted.spec_sha256,
            uid_base: block.map(|b| b.base),
            cgroups: cgroups.map(|path| path.display().to_string()).collect(),
        };
        recorder.event_durable(&intent).map_err(std::io::Error::other)?;
        dir.sync_new(&self.state)?;
        Ok((dir, lock, recorder))
    }
}

/// Starts the supervisor. Of the launcher's descriptors it has all but `closed`: the client's connection, so
/// that a client sees the launcher's death, and the launcher's end of the facts; the job's lock and block of ids live as long as it does.
fn start_supervisor(
    closed: &[BorrowedFd<'_>],
    admitted: Admitted,
    dir: &JobDir,
    recorder: Recorder,
    lifetime: Lifetime,
    facts: FactsReader,
) -> std::io::Result<i32> {
    let child = spawn(Namespaces::default(), None, Keep::AllBut(closed), || {
        // Its own session: a signal to the client's terminal is not for it.
        let _ = rustix::process::setsid();
        supervisor::run(admitted, dir, recorder, lifetime, facts)
    })?;
    Ok(child.pid)
}
