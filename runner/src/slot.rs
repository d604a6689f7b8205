//! A slot from the launcher's side, and what it and the supervisor in it say to each other.
//!
//! A slot is a block of user ids, a directory with a durable intent, and a supervisor that makes a sandbox as far as it
//! can without knowing for which job. It is used once.

use crate::admission::{self, Refusal, refuse};
use crate::clock;
use crate::facts::Facts;
use crate::jobdir::{JobDir, JobLock, State, slot_name};
use crate::lifetime::Leash;
use crate::profiles::Loaded;
use crate::recorder::Recorder;
use crate::recovery;
use crate::reread::ObjectName;
use crate::supervisor::{self, Post};
use ampoule_ipc::{Channel, IpcError};
use ampoule_sandbox::cgroup::Hierarchies;
use ampoule_sandbox::identity::Authority;
use ampoule_sandbox::uid_block::Claim;
use ampoule_spec::{Code, Damage, Event, JobId, Limits, Sha256, SlotId, UnixNanos};
use ampoule_store::Store;
use ampoule_sys::process::{Child, Keep, Namespaces, Waited, Which, spawn, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;
use std::rc::Rc;

/// What a sandbox is prepared for: a job that wants anything else needs another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    profile: Sha256,
    /// Whether the root is over the host's `/usr`.
    pub(crate) host_image: bool,
    disk_bytes: u64,
    disk_inodes: u64,
}

impl Kind {
    pub(crate) fn of(profile: &Loaded, host_image: bool, limits: &Limits) -> Self {
        let (disk_bytes, disk_inodes) = (limits.disk_bytes, limits.disk_inodes);
        Self { profile: profile.sha256, host_image, disk_bytes, disk_inodes }
    }
}

/// What the launcher says to a slot's supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToSlot {
    /// There is a job; its spec lies in the slot's directory, which has the job's name now. Descriptors: the lifetime
    /// pipe or control socket, the image's layers, each input's tree.
    Assign(Assignment),
    /// What the job uses of the store, in parts of at most [`crate::reread::OBJECTS_MAX`]. Descriptors: a lease of each.
    Objects(Vec<ObjectName>),
    /// What a build can see of the host, gathered meanwhile.
    Facts(Facts),
}

/// A job, as far as its spec does not say it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Assignment {
    pub(crate) at: UnixNanos,
    pub(crate) job: JobId,
    pub(crate) spec: Sha256,
    pub(crate) limits: Limits,
    /// By what it can be ended from outside.
    pub(crate) leash: Leash,
    /// How many layers the image has; none: the host's.
    pub(crate) layers: Option<usize>,
    /// For each input, whether it is a single file.
    pub(crate) files: Vec<bool>,
    /// How many objects of the store it uses: they follow.
    pub(crate) objects: usize,
    /// What was found damaged while they were looked up.
    pub(crate) damaged: Vec<Damage>,
}

/// What a slot's supervisor says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromSlot {
    /// The sandbox is prepared.
    Ready,
    /// It could not be prepared; what was made is destroyed again.
    Failed(String),
    /// The job's report is durable.
    Done,
}

/// A slot with its supervisor.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) kind: Kind,
    pub(crate) channel: Channel,
    pub(crate) dir: JobDir,
    /// None once the job is its supervisor's alone: only that keeps it from being recovered then.
    pub(crate) lock: Option<JobLock>,
    pub(crate) recorder: Option<Recorder>,
    pub(crate) child: Child,
    /// Whether the supervisor has said that its sandbox is there.
    pub(crate) is_ready: bool,
}

/// The name of a new slot: a UUIDv7 (RFC 9562 §5.7).
pub(crate) fn new_id() -> Result<SlotId, Refusal> {
    let failed = |e: &dyn std::fmt::Display| refuse(Code::Internal, format!("a slot's name: {e}"));
    let mut random = [0_u8; 10];
    let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    filled.map_err(|e| failed(&e))?;
    let [a, b, c, d, rest @ ..] = random;
    let rest = rest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let millis = clock::now().0 / 1_000_000;
    let (high, low) = (millis >> 16 & 0xffff_ffff, millis & 0xffff);
    let text = format!("{high:08x}-{low:04x}-7{:01x}{b:02x}-{:02x}{d:02x}-{rest}", a & 15, c & 0x3f | 0x80);
    SlotId::parse(&text).map_err(|e| failed(&e))
}

/// What a slot is made from.
pub(crate) struct Making<'a> {
    pub(crate) state: &'a State,
    pub(crate) store: &'a Store,
    pub(crate) profile: &'a Rc<Loaded>,
    pub(crate) host_image: bool,
    pub(crate) limits: &'a Limits,
}

/// A job for which a slot is made on the spot: its records stand beside the intent, and all are made durable at once.
pub(crate) struct FirstJob<'a> {
    pub(crate) job: &'a JobId,
    pub(crate) admitted: &'a Event,
    pub(crate) spec: &'a [u8],
}

impl Slot {
    /// Makes a slot: its intent is durable when its supervisor starts.
    pub(crate) fn make(making: &Making<'_>, first: Option<&FirstJob<'_>>) -> Result<Self, Refusal> {
        let Making { state, store, profile, host_image, limits } = making;
        let hierarchies = admission::demand(&profile.profile)?;
        let id = new_id()?;
        let (authority, dir, lock, recorder) = intend(state, &id, hierarchies.as_ref(), first)?;
        let started = Channel::pair().map_err(|e| admission::chain(&e)).and_then(|(mine, theirs)| {
            let post = Post {
                slot: id.clone(),
                authority,
                hierarchies: hierarchies.as_ref(),
                profile,
                limits,
                host_image: *host_image,
                state,
                store,
                dir: &dir,
                channel: &theirs,
            };
            // Nothing of the launcher's, and nothing of another slot's: a supervisor whose launcher dies is told by
            // the end of its channel.
            let (jobs, scratch) = (state.as_fd(), state.scratch.as_fd());
            let kept = [jobs, scratch, dir.as_fd(), lock.as_fd(), theirs.as_fd()];
            let kept: Vec<_> = kept.into_iter().chain(store.descriptors()).collect();
            let child = spawn(Namespaces::default(), None, Keep::Only(&kept), || supervisor::run(&post));
            child.map(|child| (child, mine)).map_err(|e| e.to_string())
        });
        let (child, channel) = started.map_err(|reason| {
            // Nobody was told of a job.
            let _ = recovery::discard(state, &dir);
            refuse(Code::Internal, format!("the supervisor cannot be started: {reason}"))
        })?;
        let kind = Kind::of(profile, *host_image, limits);
        Ok(Self { kind, channel, dir, lock: Some(lock), recorder: Some(recorder), child, is_ready: false })
    }

    /// Whether there is a message, or an end.
    pub(crate) fn has_something_to_say(&self) -> bool {
        let mut ready = [PollFd::new(&self.channel, PollFlags::IN)];
        poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|count| count > 0)
    }

    /// Says that there will be no job.
    pub(crate) fn close(&self) {
        let _ = rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Both);
    }

    /// The slot's next message.
    pub(crate) fn receive(&self) -> Result<FromSlot, IpcError> {
        self.channel.receive_all().map(|(message, _)| message)
    }

    /// Whether the supervisor has ended; it is reaped then.
    pub(crate) fn has_ended(&self) -> bool {
        !matches!(wait(Which::Pid(self.child.pid), false), Ok(Waited::Running))
    }

    /// Waits for the supervisor's end.
    pub(crate) fn reap(&self) {
        let _ = wait(Which::Pid(self.child.pid), true);
    }

    /// Kills the supervisor: its sandbox dies with it.
    pub(crate) fn kill(&self) {
        let _ = pidfd_send_signal(&self.child.pidfd, Signal::KILL);
        self.reap();
    }
}

/// Takes ids for a slot and makes its directory, or that of its first job, with the intent in it; durable when this
/// returns. Of what fails, nothing is left.
pub(crate) fn intend(
    state: &State,
    id: &SlotId,
    hierarchies: Option<&Hierarchies>,
    first: Option<&FirstJob<'_>>,
) -> Result<(Authority, JobDir, JobLock, Recorder), Refusal> {
    let name = first.map_or_else(|| slot_name(id), |first| first.job.to_string());
    let (dir, lock) = state.create(&name).map_err(|e| cannot_be_made(&e))?;
    let made = admission::identity(id).and_then(|(authority, claim)| {
        let cgroups = paths(hierarchies, id);
        let uid_base = authority.base();
        let intent = Event::Intent { at: clock::now(), slot: id.clone(), uid_base, cgroups };
        let recorder =
            record(state, &dir, &intent, first).map_err(|reason| refuse(Code::Internal, reason))?;
        let failed = |e| refuse(Code::Internal, format!("the block of user ids cannot be taken: {e}"));
        claim.map(Claim::confirm).transpose().map_err(failed)?;
        Ok((authority, recorder))
    });
    match made {
        Ok((authority, recorder)) => Ok((authority, dir, lock, recorder)),
        Err(refusal) => {
            let _ = state.forget(dir.name());
            Err(refusal)
        }
    }
}

fn cannot_be_made(error: &std::io::Error) -> Refusal {
    // AlreadyExists: a job of this id was run; its record stands.
    let exists = error.kind() == std::io::ErrorKind::AlreadyExists;
    let code = if exists { Code::JobInvalid } else { Code::Internal };
    refuse(code, format!("the job's directory cannot be made: {error}"))
}

fn paths(hierarchies: Option<&Hierarchies>, slot: &SlotId) -> Vec<String> {
    let paths = hierarchies.into_iter().flat_map(|h| h.paths(slot));
    paths.map(|path| path.display().to_string()).collect()
}

/// Writes the intent, and the job's spec and admission if there is one; durable when this returns.
fn record(
    state: &State,
    dir: &JobDir,
    intent: &Event,
    first: Option<&FirstJob<'_>>,
) -> Result<Recorder, String> {
    let io = |e: std::io::Error| format!("the job's directory cannot be written: {e}");
    let mut recorder = Recorder::new(dir.create_events().map_err(io)?);
    recorder.event(intent)?;
    if let Some(first) = first {
        admit(dir, &mut recorder, first)?;
    }
    recorder.sync()?;
    dir.sync().map_err(io)?;
    state.sync().map_err(io)?;
    Ok(recorder)
}

/// Writes a job's spec and admission; durable with the recorder and the state.
pub(crate) fn admit(dir: &JobDir, recorder: &mut Recorder, job: &FirstJob<'_>) -> Result<(), String> {
    recorder.spec(job.spec)?;
    recorder.event(job.admitted)?;
    dir.publish("spec.json", job.spec).map_err(|e| format!("spec.json cannot be written: {e}"))
}
