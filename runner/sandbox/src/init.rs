//! Process 1 of a sandbox: enters the root that was prepared for it, then makes, ends and reaps the steps'
//! processes.
//!
//! It holds no secret, has no environment of the host's, cannot be traced or signalled by a step, and obeys
//! nothing but its channel to the supervisor. When the supervisor dies, the kernel kills it, and with it every
//! process of the sandbox (pid_namespaces(7)).

use crate::clock::StageClock;
use crate::confine::Confinement;
use crate::enter::{self, Entered};
use crate::error::{Stage, StageError};
use crate::fault;
use crate::identity::Authority;
use crate::inner::Inner;
use crate::prepared::{self, Streams};
use crate::protocol::{Answer, Order, PreparePlan};
use crate::rootfs::PROBE_DIR;
use crate::secrets::{self, SecretsPlace};
use ampoule_ipc::{Channel, IpcError};
use ampoule_spec::{BUILD_ID, Namespace, Profile};
use ampoule_sys::process::{Child, End, Reaped, Waited, Which, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Orphans are reaped at this pace even when nothing else happens.
const REAP_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Runs as process 1 until the channel closes. Returns the exit status.
pub(crate) fn run(channel: &Channel, profile: &Profile, authority: Authority) -> i32 {
    fault::role("init");
    let mut init = Init {
        channel,
        profile,
        authority,
        entered: None,
        inner: None,
        secrets: None,
        step: None,
        tally: Tally::default(),
        is_leaving: false,
    };
    match init.serve() {
        Ok(()) => 0,
        Err(Ended::Gone) => 70,
        Err(Ended::Failed(error)) => {
            let _ = channel.send_all(&Answer::Failed(error), &[]);
            70
        }
    }
}

/// Why init ends before its time.
enum Ended {
    Gone,
    Failed(StageError),
}

impl From<StageError> for Ended {
    fn from(error: StageError) -> Self {
        Self::Failed(error)
    }
}

impl From<IpcError> for Ended {
    fn from(_: IpcError) -> Self {
        Self::Gone
    }
}

/// What a step's processes used.
#[derive(Default)]
struct Tally {
    cpu_micros: u64,
    memory_peak_bytes: u64,
}

impl Tally {
    fn add(&mut self, reaped: &Reaped) {
        self.cpu_micros = self.cpu_micros.saturating_add(reaped.cpu_micros);
        self.memory_peak_bytes = self.memory_peak_bytes.max(reaped.memory_peak_bytes);
    }
}

struct Init<'a> {
    channel: &'a Channel,
    profile: &'a Profile,
    authority: Authority,
    entered: Option<Entered>,
    /// The steps' namespaces: copies of the mounts as they were when it was made.
    inner: Option<Inner>,
    /// Where the files of a step's secrets are.
    secrets: Option<SecretsPlace>,
    /// The process of the step.
    step: Option<Child>,
    tally: Tally,
    /// Whether to end with the step.
    is_leaving: bool,
}

impl Init<'_> {
    fn serve(&mut self) -> Result<(), Ended> {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .stage("init: death signal")?;
        self.answer(&Answer::Made, &[])?;
        loop {
            if self.wait()? {
                match self.channel.receive_all::<Order>() {
                    Ok((order, descriptors)) => self.obey(order, descriptors)?,
                    Err(IpcError::Closed) => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
            self.reap()?;
            if self.is_leaving && self.step.is_none() {
                return Ok(());
            }
        }
    }

    /// Waits for an order or the end of a process. True if there is an order.
    fn wait(&self) -> Result<bool, Ended> {
        let mut ready = vec![PollFd::new(self.channel, PollFlags::IN)];
        ready.extend(self.step.iter().map(|step| PollFd::new(&step.pidfd, PollFlags::IN)));
        let timeout = self.step.is_some().then_some(&REAP_EVERY);
        match poll(&mut ready, timeout) {
            Ok(_) => Ok(ready.first().is_some_and(|channel| !channel.revents().is_empty())),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno).stage("init: wait").map_err(Ended::from),
        }
    }

    fn answer(&self, answer: &Answer, descriptors: &[BorrowedFd<'_>]) -> Result<(), Ended> {
        Ok(self.channel.send_all(answer, descriptors)?)
    }

    fn obey(&mut self, order: Order, descriptors: Vec<OwnedFd>) -> Result<(), Ended> {
        let mut clock = StageClock::start();
        match order {
            Order::Join => {
                let cgroup_namespace = enter::join(descriptors, self.authority, self.profile, &mut clock)?;
                self.answer(&Answer::Joined { cgroup_namespace, stages: clock.stages }, &[])
            }
            Order::Enter(plan) => {
                let entered = enter::enter(plan, descriptors, self.authority, self.profile, &mut clock)?;
                self.answer(&Answer::Entered { stages: clock.stages }, &[entered.root.as_fd()])?;
                self.entered = Some(entered);
                Ok(())
            }
            Order::Attach { targets } => {
                let Some(entered) = &self.entered else { return Err(out_of_turn()) };
                enter::attach_all(entered.root.as_fd(), &targets, &descriptors)?;
                // The steps' copy of the mounts is one without these.
                self.inner = None;
                self.answer(&Answer::Attached, &[])
            }
            Order::Secrets => {
                let (Some(entered), Some(mount)) = (&self.entered, descriptors.into_iter().next()) else {
                    return Err(out_of_turn());
                };
                self.secrets = Some(SecretsPlace::attach(entered.root.as_fd(), &mount)?);
                self.inner = None;
                self.answer(&Answer::Attached, &[])
            }
            Order::NoSecrets => {
                let (Some(place), None) = (self.secrets.take(), &self.step) else {
                    return Err(out_of_turn());
                };
                place.detach()?;
                // The copy of the mounts that the last step had has them still.
                self.inner = None;
                self.answer(&Answer::Attached, &[])
            }
            Order::Rotated { signal } => {
                if let Some(step) = self.step.as_ref().and_then(|c| rustix::process::Pid::from_raw(c.pid)) {
                    let _ = rustix::process::kill_process(step, secrets::signal(signal));
                }
                Ok(())
            }
            Order::Prepare(plan) => self.prepare(&plan, descriptors, clock),
            Order::Discard => {
                self.step = None;
                kill_all(&mut Tally::default());
                self.answer(&Answer::Discarded, &[])
            }
            Order::Terminate => {
                if let Some(group) = self.step.as_ref().and_then(|c| rustix::process::Pid::from_raw(c.pid)) {
                    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::TERM);
                }
                Ok(())
            }
            Order::Kill => {
                signal_all();
                Ok(())
            }
            Order::Leave => {
                self.is_leaving = true;
                Ok(())
            }
        }
    }

    fn prepare(
        &mut self,
        plan: &PreparePlan,
        descriptors: Vec<OwnedFd>,
        mut clock: StageClock,
    ) -> Result<(), Ended> {
        let mut descriptors = descriptors.into_iter();
        let streams = match (descriptors.next(), descriptors.next(), descriptors.next()) {
            (Some(out), Some(err), Some(plan)) => Streams { out, err, plan: Channel::new(plan) },
            _ => return Err(out_of_turn()),
        };
        let (Some(entered), None) = (&self.entered, &self.step) else { return Err(out_of_turn()) };
        let is_new = self.inner.is_none() && self.profile.has(Namespace::Steps);
        if is_new {
            self.inner = Some(Inner::make(&entered.gate, self.authority)?);
        }
        let inner = self.inner.as_ref();
        clock.mark("namespaces of the steps");
        let confinement = Confinement::prepare(self.profile, self.authority, plan)?;
        clock.mark("landlock ruleset");
        let place = if plan.measure { Some(ProbePlace::make(self.authority)?) } else { None };
        let (child, layers) = prepared::prepare(&confinement, inner, &streams, plan.measure)?;
        drop(place);
        clock.mark("confined process");
        let namespaces = inner.filter(|_| is_new).map(|inner| [inner.user.as_fd(), inner.mount.as_fd()]);
        let namespaces: &[BorrowedFd<'_>] = namespaces.as_ref().map_or(&[], |both| both.as_slice());
        let answer = Answer::Prepared { layers, stages: clock.stages };
        let said = self.channel.send_all(&answer, namespaces);
        self.tally = Tally::default();
        self.step = Some(child);
        Ok(said?)
    }

    /// Reaps what has ended; answers when it was the step's process.
    fn reap(&mut self) -> Result<(), Ended> {
        while let Ok(Waited::Reaped(reaped)) = wait(Which::Any, false) {
            self.tally.add(&reaped);
            if self.step.as_ref().is_some_and(|step| step.pid == reaped.pid) {
                self.step = None;
                // The program is gone; what it left behind must not see the next step, nor hold its log open.
                let survivors = kill_all(&mut self.tally);
                let (status, signal) = match reaped.end {
                    End::Exited(status) => (Some(status), None),
                    End::Signalled(signal) => (None, Some(signal)),
                };
                let Tally { cpu_micros, memory_peak_bytes } = self.tally;
                let ended = Answer::Ended { status, signal, cpu_micros, memory_peak_bytes, survivors };
                return self.answer(&ended, &[]);
            }
        }
        Ok(())
    }
}

/// The directory [`PROBE_DIR`], while a process measures itself.
struct ProbePlace;

impl ProbePlace {
    fn make(authority: Authority) -> Result<Self, StageError> {
        let stage = "probe: make its directory";
        rustix::fs::mkdir(Self::path(), Mode::RWXU).stage(stage)?;
        let place = Self;
        if authority.is_root() {
            let (uid, gid) = (Uid::from_raw(BUILD_ID), Gid::from_raw(BUILD_ID));
            rustix::fs::chown(Self::path(), Some(uid), Some(gid)).stage(stage)?;
        }
        Ok(place)
    }

    fn path() -> String {
        format!("/{PROBE_DIR}")
    }
}

impl Drop for ProbePlace {
    fn drop(&mut self) {
        let _ = rustix::fs::rmdir(Self::path());
    }
}

fn out_of_turn() -> Ended {
    Ended::Failed(StageError { stage: "init: an order out of turn".into(), errno: 0, unsupported: None })
}

/// Signals every process of the sandbox but the caller: kill(2) with -1, in our own pid namespace.
fn signal_all() {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::Signal::SIGKILL);
}

/// Kills and reaps until no child is left; returns how many there were. A process that forks while it is
/// being killed is met in the next round.
fn kill_all(usage: &mut Tally) -> u32 {
    let mut count = 0;
    let mut patience = 0_u64;
    loop {
        match wait(Which::Any, false) {
            Ok(Waited::Reaped(reaped)) => {
                usage.add(&reaped);
                count += 1;
            }
            Ok(Waited::Running) => {
                signal_all();
                // Most die at once; what does not is not worth a processor.
                std::thread::sleep(std::time::Duration::from_micros(patience));
                patience = (patience + 50).min(2_000);
            }
            Ok(Waited::None) | Err(_) => return count,
        }
    }
}
