//! The launcher: one connection, one request at a time, any number of jobs, one supervisor for each.

use crate::admission::{self, Admitted, Refusal, refuse};
use crate::duty::{Duty, hear_no_more};
use crate::facts::Facts;
use crate::holdings::Holdings;
use crate::jobdir::{JobLock, State};
use crate::pool::Pool;
use crate::profiles::Profiles;
use crate::slot::{FirstJob, FromSlot, Kind, Making, Slot, ToSlot, admit};
use crate::{doctor, handover, import, jobs, kept, quarantine, recovery, store_requests};
use ampoule_ipc::{Channel, IpcError};
use ampoule_spec::wire::{Content, Reply, Request};
use ampoule_spec::{Code, Event, Image, JobId, Name, ReadPolicy, SPEC_BYTES_MAX};
use ampoule_store::Store;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FileType;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// The most jobs at a time on one connection.
const JOBS_MAX: usize = 64;

/// What the launcher was started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) state: PathBuf,
    pub(crate) profiles: Option<PathBuf>,
    /// How many sandboxes are kept ready.
    pub(crate) pool: usize,
    /// Whom it serves as the session of a listener. None: whoever started it.
    pub(crate) agent: Option<Agent>,
}

/// The one user, besides root, that a listening launcher serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) uid: u32,
    /// The group that reads jobs.
    pub(crate) group: Option<u32>,
}

/// The launcher's state while it serves a connection.
struct Launcher {
    state: State,
    store: Store,
    /// What imports and collections that died had left in it.
    swept: u64,
    profiles: Profiles,
    channel: Channel,
    /// As the session of a listener: jobs are not the connection's.
    agent: Option<Agent>,
    duty: Duty,
    /// The client has closed the connection: what runs is seen to its end, nothing is begun.
    is_closing: bool,
    pool: Pool,
    running: Vec<(JobId, Slot)>,
    /// What the client was told is in the store.
    holdings: Holdings,
    /// Locks of jobs whose evidence is not yet durable elsewhere: nobody else recovers or forgets them.
    held: BTreeMap<JobId, JobLock>,
}

/// Serves requests until the client closes the connection and the last job of the connection's has ended.
pub(crate) fn serve(options: Options, channel: Channel, duty: Duty) -> Result<(), String> {
    let state = open_state(&options)?;
    let store = Store::open(&state.store, import::owner(), ampoule_store::Limits::default())
        .map_err(|e| admission::chain(&e))?;
    let swept = store.sweep_staging().map_err(|e| admission::chain(&e))?.removed;
    let mut launcher = Launcher {
        state,
        store,
        swept,
        profiles: Profiles::new(options.profiles),
        channel,
        agent: options.agent,
        duty,
        is_closing: false,
        pool: if options.agent.is_some() { Pool::shy(options.pool) } else { Pool::new(options.pool) },
        running: Vec::new(),
        holdings: Holdings::default(),
        held: BTreeMap::new(),
    };
    launcher.greet()?;
    while !launcher.has_ended() {
        launcher.turn()?;
    }
    launcher.pool.close(&launcher.state);
    Ok(())
}

/// Opens the state directory as the options say.
pub(crate) fn open_state(options: &Options) -> Result<State, String> {
    let readers = options.agent.and_then(|agent| agent.group);
    State::open(&options.state, readers)
        .map_err(|e| format!("the state directory {} cannot be used: {e}", options.state.display()))
}

/// Not at all.
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// How long nothing may be heard of running jobs before the next sandbox is made.
const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Whether only the host's root may do that.
fn needs_root(request: &Request) -> bool {
    // Whose a tree is, is judged by what this process is. Root of a user namespace would find others' damaged.
    !matches!(
        request,
        Request::StoreStat
            | Request::StoreList { .. }
            | Request::Forget { .. }
            | Request::Fence { .. }
            | Request::Jobs { .. }
    )
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
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let (privileged, listening) = (admission::is_privileged(), self.agent.is_some());
        if listening {
            // The listener sees to it.
            return self.say(&Reply::Hello { version, privileged, recovered: Vec::new(), listening });
        }
        // What cannot be removed now is no job any more; the next run tries again.
        let _ = self.state.sweep();
        quarantine::recheck();
        let (recovered, locks) = recovery::recover(&self.state);
        self.held.extend(locks);
        self.say(&Reply::Hello { version, privileged, recovered, listening })
    }

    /// Whether the client is gone, and with it every job that is waited for. Those of a listener's session are not.
    fn has_ended(&self) -> bool {
        self.is_closing && (self.agent.is_some() || self.running.is_empty())
    }

    fn say(&self, reply: &Reply) -> Result<(), String> {
        match self.channel.send(reply, &[]) {
            // A client that is gone does not need the answer; the next receive ends the connection.
            Ok(()) | Err(IpcError::Closed) => Ok(()),
            Err(error) => Err(admission::chain(&error)),
        }
    }

    /// Waits for whatever comes next, and sees to it. The pool is filled when nothing else is to be done: making a
    /// sandbox takes a processor and locks of the kernel's that a job which has just begun wants too.
    fn turn(&mut self) -> Result<(), String> {
        let limit = if self.running.is_empty() { NOW } else { QUIET };
        let sources = match !self.is_closing && self.pool.wants_more() {
            true => self.wait(Some(&limit))?,
            false => self.wait(self.duty.patience().as_ref())?,
        };
        if sources.is_empty() && self.duty == Duty::Desk {
            // Somebody else may want this place.
            hear_no_more(&self.channel);
        } else if sources.is_empty() {
            self.pool.make_one(&self.state, &self.store, &mut self.profiles);
        }
        for source in sources {
            match source {
                Source::Client => self.request()?,
                Source::Job(job) => self.hear(&job)?,
                Source::Pool => self.pool.hear(),
            }
        }
        Ok(())
    }

    /// What is ready to be heard.
    fn wait(&self, limit: Option<&Timespec>) -> Result<Vec<Source>, String> {
        let mut sources = Vec::new();
        let mut ready = Vec::new();
        for (job, slot) in &self.running {
            sources.push(Source::Job(job.clone()));
            ready.push(PollFd::new(&slot.channel, PollFlags::IN));
        }
        for slot in self.pool.waiting() {
            sources.push(Source::Pool);
            ready.push(PollFd::new(&slot.channel, PollFlags::IN));
        }
        if !self.is_closing && (self.agent.is_some() || self.running.len() < JOBS_MAX) {
            sources.push(Source::Client);
            ready.push(PollFd::new(&self.channel, PollFlags::IN));
        }
        match poll(&mut ready, limit) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(format!("waiting failed: {errno}")),
        }
        let heard = sources.into_iter().zip(&ready).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(heard.map(|(source, _)| source).collect())
    }

    fn request(&mut self) -> Result<(), String> {
        let reply = match self.channel.receive::<Request>() {
            Ok((request, descriptors)) => match self.answer(request, descriptors) {
                Ok(Some(reply)) => reply,
                Ok(None) => return Ok(()),
                Err(refused) => refusal(refused),
            },
            Err(IpcError::Closed) => {
                self.is_closing = true;
                return Ok(());
            }
            Err(IpcError::Malformed(error)) => {
                refusal(refuse(Code::JobInvalid, format!("a request that cannot be read: {error}")))
            }
            Err(error) => return Err(admission::chain(&error)),
        };
        self.say(&reply)
    }

    fn answer(&mut self, request: Request, descriptors: Vec<OwnedFd>) -> Result<Option<Reply>, Refusal> {
        let mut descriptors = descriptors.into_iter();
        if let Err(refused) = self.duty.demand(&request) {
            // Who came for something else leaves the place to those whom it is kept for.
            hear_no_more(&self.channel);
            return Err(refused);
        }
        if needs_root(&request) {
            admission::demand_host_root()?;
        }
        match request {
            Request::Find(content) => {
                let found = self.holdings.take(&self.store, &content, ReadPolicy::default())?;
                let imported = found.and_then(|needed| needed.into_iter().next()).map(|own| own.imported);
                Ok(Some(Reply::Found { imported }))
            }
            Request::Import(content) => {
                let source =
                    descriptors.next().ok_or_else(|| refuse(Code::JobInvalid, "no bytes came with it"))?;
                import::examine(&source, &self.store)?;
                let proof = match (&content, descriptors.next()) {
                    (Content::Git { .. }, Some(file)) => {
                        of_type(&file, FileType::RegularFile, "the commit objects")?;
                        Some(import::proof(file)?)
                    }
                    _ => None,
                };
                let imported = import::import(&self.store, &mut self.holdings, &content, source, proof)?;
                Ok(Some(Reply::Imported(imported)))
            }
            Request::Open(content) => {
                store_requests::open(&self.store, &mut self.holdings, &self.channel, &content)
            }
            Request::Demand { profile, user, limits } => {
                admission::possible(&profile, user, &limits, &mut self.profiles)?;
                Ok(Some(Reply::Possible))
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
                if self.running.len() >= JOBS_MAX {
                    let text = format!("this connection has {JOBS_MAX} jobs already; open another, or wait");
                    return Err(refuse(Code::AdmissionBusy, text));
                }
                self.run(spec, pipe).map(|()| None)
            }
            Request::Doctor { profile } => self.doctor(&profile).map(Some),
            Request::Jobs { after, only } => self.jobs(after.as_ref(), only).map(Some),
            Request::Forget { job } => self.forget(&job).map(Some),
            Request::Fence { job } => self.fence(&job).map(Some),
            Request::StoreStat => store_requests::stat(&self.state, &self.store, self.swept).map(Some),
            Request::StoreList { after, named } => {
                store_requests::list(&self.store, after, named.as_deref()).map(Some)
            }
            Request::StoreVerify { object, quarantine } => {
                store_requests::verify(&self.store, object, quarantine).map(Some)
            }
            Request::StoreCollect(wanted) => {
                store_requests::collect(&self.state, &self.store, &wanted).map(Some)
            }
        }
    }

    fn demand_listening(&self) -> Result<(), Refusal> {
        let text = "only a launcher that listens knows of jobs that are not the connection's";
        self.agent.map(drop).ok_or_else(|| refuse(Code::JobInvalid, text))
    }

    fn fence(&self, job: &JobId) -> Result<Reply, Refusal> {
        self.demand_listening()?;
        jobs::fence(&self.state, job)
    }

    fn jobs(&self, after: Option<&JobId>, only: Option<JobId>) -> Result<Reply, Refusal> {
        self.demand_listening()?;
        match only {
            Some(job) => jobs::one(&self.state, job),
            None => jobs::list(&self.state, after),
        }
    }

    fn forget(&mut self, job: &JobId) -> Result<Reply, Refusal> {
        if self.agent.is_some() {
            return jobs::forget(&self.state, job);
        }
        if !self.held.contains_key(job) {
            return Err(refuse(Code::JobInvalid, format!("job {job} is not held by this connection")));
        }
        kept::remember(&self.state, job).map_err(|text| refuse(Code::Internal, text))?;
        self.state.forget(job.as_str()).map_err(|e| refuse(Code::Internal, admission::chain(&e)))?;
        self.held.remove(job);
        Ok(Reply::Forgotten)
    }

    fn doctor(&mut self, profile: &Name) -> Result<Reply, Refusal> {
        let profile = admission::usable(profile, &mut self.profiles)?;
        let (isolation, missing) = doctor::measure(&profile, &self.state)?;
        Ok(Reply::Measured { isolation, missing, quarantined: quarantine::list() })
    }

    /// Admits a job and hands it to a supervisor. The client is answered when the admission is durable.
    fn run(&mut self, spec: OwnedFd, lifetime: Option<OwnedFd>) -> Result<(), Refusal> {
        of_type(&spec, FileType::RegularFile, "the spec")?;
        let mut bytes = Vec::new();
        File::from(spec)
            .take(SPEC_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| refuse(Code::JobInvalid, format!("the spec cannot be read: {e}")))?;
        let admitted = admission::admit(&bytes, &self.store, &mut self.holdings, &mut self.profiles)?;
        let job = admitted.job.id.clone();
        let event = Event::Admitted { at: admitted.at, job: job.clone(), spec: admitted.spec_sha256 };
        let first = FirstJob { job: &job, admitted: &event, spec: &bytes };
        let host_image = matches!(admitted.job.image, Image::Host);
        let kind = Kind::of(&admitted.profile, host_image, &admitted.limits);
        let mut slot = self.slot_for(&kind, &first, &admitted, lifetime.as_ref())?;
        if self.agent.is_some() {
            // From here on it lives as long as its supervisor, whatever becomes of us.
            slot.lock = None;
        }
        drop(lifetime);
        // The supervisor has them.
        self.holdings.clear();
        let said = self.say(&Reply::Admitted { job: job.clone() });
        // What it will want to know of the host; by now it is busy.
        let facts = ToSlot::Facts(Facts::gather(&admitted.job.image));
        match slot.channel.send_all(&facts, &[]) {
            Ok(()) | Err(IpcError::Closed) => {}
            // It would wait for them; its end is noticed, and the job recorded as aborted.
            Err(_) => slot.kill(),
        }
        self.pool.wish(&admitted, kind, &self.state);
        self.running.push((job, slot));
        said.map_err(|e| refuse(Code::Internal, e))
    }

    /// A slot that has the job: one that waits, or a new one.
    fn slot_for(
        &mut self,
        kind: &Kind,
        first: &FirstJob<'_>,
        admitted: &Admitted,
        lifetime: Option<&OwnedFd>,
    ) -> Result<Slot, Refusal> {
        while let Some(slot) = self.pool.take(kind) {
            if let Some(slot) = self.assign(slot, first, admitted, lifetime)? {
                return Ok(slot);
            }
        }
        let making = Making {
            state: &self.state,
            store: &self.store,
            profile: &admitted.profile,
            host_image: kind.host_image,
            limits: &admitted.limits,
        };
        let slot = Slot::make(&making, Some(first))?;
        handover::hand_over(&slot, admitted, self.holdings.damaged(), lifetime, self.agent)
            .map_err(|message| self.abandon(&slot, message))?;
        Ok(slot)
    }

    /// Gives a job to a slot that waits; none if it is gone, which it had no time to say. The supervisor begins at
    /// once: what it makes stands in the slot's own intent, which is durable, and the client is not told of the job
    /// before that is.
    fn assign(
        &mut self,
        mut slot: Slot,
        first: &FirstJob<'_>,
        admitted: &Admitted,
        lifetime: Option<&OwnedFd>,
    ) -> Result<Option<Slot>, Refusal> {
        if let Err(error) = self.state.assign(&mut slot.dir, first.job) {
            if error.kind() == std::io::ErrorKind::NotFound {
                self.pool.dismiss(slot);
                return Ok(None);
            }
            self.pool.give_back(slot);
            let exists = error.kind() == std::io::ErrorKind::AlreadyExists;
            let code = if exists { Code::JobInvalid } else { Code::Internal };
            return Err(refuse(code, format!("the job's directory cannot be made: {error}")));
        }
        let made = (|| {
            let mut recorder = slot.recorder.take().ok_or("the slot has no recorder")?;
            admit(&slot.dir, &mut recorder, first)?;
            handover::hand_over(&slot, admitted, self.holdings.damaged(), lifetime, self.agent)?;
            recorder.sync()?;
            self.state.sync().map_err(|e| format!("the job's name cannot be made durable: {e}"))
        })();
        match made {
            Ok(()) => Ok(Some(slot)),
            Err(message) => Err(self.abandon(&slot, message)),
        }
    }

    /// Gives up a slot whose job nobody was told of. After a failed sync nothing is to be believed any more, and a
    /// supervisor that has half of its job would wait for the rest.
    fn abandon(&self, slot: &Slot, message: String) -> Refusal {
        slot.kill();
        let _ = recovery::discard(&self.state, &slot.dir);
        refuse(Code::Internal, message)
    }

    /// Listens to a supervisor that has a job.
    fn hear(&mut self, job: &JobId) -> Result<(), String> {
        let Some(at) = self.running.iter().position(|(id, _)| id == job) else { return Ok(()) };
        let Some((_, slot)) = self.running.get(at) else { return Ok(()) };
        match slot.receive() {
            // What it says of its sandbox stands in the report.
            Ok(FromSlot::Ready | FromSlot::Failed(_)) => return Ok(()),
            Ok(FromSlot::Done) => {}
            Err(_) if self.agent.is_none() => {
                slot.reap();
                recovery::end(&slot.dir);
            }
            Err(_) => {}
        }
        let (job, slot) = self.running.remove(at);
        let has_ended = if self.agent.is_some() {
            // Who is told that the job has ended may forget it: its lock is free by then.
            slot.reap();
            recovery::see_to(&self.state, &job)
        } else {
            slot.dir.has_report()
        };
        let reply = if has_ended {
            Reply::Finished { job: job.clone() }
        } else if self.agent.is_some() {
            // Nothing that could be taken for an answer: who asks for the jobs sees what became of it.
            return Ok(());
        } else {
            let text = "the job's report cannot be written; the next run tries again";
            refusal(refuse(Code::Internal, text))
        };
        self.say(&reply)?;
        let lock =
            self.pool.retire(slot, &self.state).map_err(|e| format!("a job's lock cannot be kept: {e}"))?;
        self.held.extend(lock.map(|lock| (job, lock)));
        Ok(())
    }
}

/// Something that can be ready to be heard.
#[derive(Debug, Clone)]
enum Source {
    Client,
    Job(JobId),
    Pool,
}
