//! Process 1 of a sandbox: enters the root that was prepared, then starts, ends and reaps the steps.
//!
//! It holds no secret, has no environment of the host's, cannot be traced by a step, and obeys nothing but
//! its channel to the supervisor. When the supervisor dies, the kernel kills it, and with it every process
//! of the sandbox (pid_namespaces(7)).

use crate::confine::Confinement;
use crate::enter::{self, Entered};
use crate::error::{Stage, StageError};
use crate::probe::{self, Layers};
use ampoule_ipc::{Channel, IpcError};
use ampoule_spec::{Profile, SandboxPath};
use ampoule_sys::process::{Child, End, Keep, Namespaces, Reaped, Waited, Which, spawn, wait};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a step needs to be started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepPlan {
    /// The program and its arguments.
    pub run: Vec<String>,
    /// The working directory.
    pub cwd: SandboxPath,
    /// The whole environment, `NAME=value`.
    pub env: Vec<String>,
}

/// What the supervisor asks of init.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// Enter the sandbox. Descriptors as [`enter::Descriptors`] counts them.
    Enter(enter::EnterPlan),
    /// Start the step with this number. Descriptors: standard output, standard error.
    Step {
        /// Its place in the plan.
        number: u32,
    },
    /// Ask the step's program to end (SIGTERM).
    Terminate,
    /// Kill every process of the sandbox but init.
    Kill,
}

/// What init answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Made; waits for its id maps.
    Made,
    /// Entered. Descriptor: the root directory.
    Ready {
        /// What the self-probe measured.
        layers: Layers,
        /// The inode number of init's control group namespace.
        cgroup_namespace: u64,
        /// Where the time went: stage and microseconds since the one before.
        stages: Vec<(String, u64)>,
    },
    /// Something failed; init ends.
    Failed(StageError),
    /// The step's program runs.
    Started,
    /// The step's program could not be run.
    NotStarted {
        /// Why.
        reason: String,
    },
    /// The step ended and no process of it is left.
    Ended {
        /// Exit status, if it exited.
        status: Option<i32>,
        /// Signal, if one ended it.
        signal: Option<i32>,
        /// Processor time of all its processes in microseconds.
        cpu_micros: u64,
        /// Resident set of its largest process in bytes.
        memory_peak_bytes: u64,
        /// Processes that outlived its program.
        survivors: u32,
    },
}

/// Runs as process 1 until the channel closes. Returns the exit status.
pub fn run(channel: &Channel, profile: &Profile, steps: &[StepPlan]) -> i32 {
    match start(channel, profile) {
        Ok(confinement) => serve(channel, &confinement, steps).map_or(70, |()| 0),
        Err(error) => {
            let _ = channel.send(&Answer::Failed(error), &[]);
            70
        }
    }
}

fn start<'a>(channel: &Channel, profile: &'a Profile) -> Result<Confinement<'a>, StageError> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .stage("init: death signal")?;
    channel.send(&Answer::Made, &[]).stage("init: answer")?;
    let (order, descriptors) = channel.receive::<Order>().stage("init: wait for the plan")?;
    let Order::Enter(plan) = order else { return Err(out_of_turn()) };
    let mut clock = enter::StageClock::start();
    let authority = plan.authority();
    let (open_files, writable) = (plan.open_files, plan.writable.clone());
    let Entered { root, cgroup_namespace } = enter::enter(plan, descriptors, &mut clock)?;
    let confinement = Confinement::prepare(profile, authority, open_files, &writable)?;
    clock.mark("landlock ruleset");
    let layers = probe::run(&confinement);
    let _ = std::fs::remove_dir(format!("/{}", crate::rootfs::PROBE_DIR));
    clock.mark("self-probe");
    channel
        .send(&Answer::Ready { layers, cgroup_namespace, stages: clock.stages }, &[root.as_fd()])
        .stage("init: answer")?;
    Ok(confinement)
}

fn out_of_turn() -> StageError {
    StageError { stage: "init: an order out of turn".into(), errno: 0, unsupported: None }
}

fn serve(channel: &Channel, confinement: &Confinement<'_>, steps: &[StepPlan]) -> Result<(), IpcError> {
    loop {
        let (order, descriptors) = match channel.receive::<Order>() {
            Ok(received) => received,
            Err(IpcError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        };
        match order {
            Order::Step { number } => {
                let step = usize::try_from(number).ok().and_then(|n| steps.get(n));
                let mut descriptors = descriptors.into_iter();
                match (step, descriptors.next(), descriptors.next()) {
                    (Some(step), Some(out), Some(err)) => {
                        let answer = one_step(channel, confinement, step, out, err)?;
                        channel.send(&answer, &[])?;
                    }
                    _ => channel.send(&Answer::Failed(out_of_turn()), &[])?,
                }
            }
            Order::Terminate | Order::Kill => {}
            Order::Enter(_) => channel.send(&Answer::Failed(out_of_turn()), &[])?,
        }
    }
}

fn one_step(
    channel: &Channel,
    confinement: &Confinement<'_>,
    step: &StepPlan,
    out: OwnedFd,
    err: OwnedFd,
) -> Result<Answer, IpcError> {
    let started = launch(confinement, step, out.as_fd(), err.as_fd());
    drop((out, err));
    let child = match started {
        Ok(child) => child,
        Err(reason) => return Ok(Answer::NotStarted { reason }),
    };
    channel.send(&Answer::Started, &[])?;
    let mut usage = Tally::default();
    let end = supervise(channel, &child, &mut usage)?;
    // The program is gone; what it left behind must not see the next step, nor hold its log open.
    let survivors = kill_all(&mut usage);
    let (status, signal) = match end {
        End::Exited(status) => (Some(status), None),
        End::Signalled(signal) => (None, Some(signal)),
    };
    let Tally { cpu_micros, memory_peak_bytes } = usage;
    Ok(Answer::Ended { status, signal, cpu_micros, memory_peak_bytes, survivors })
}

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

/// Waits for the program's end, reaping orphans and obeying orders meanwhile.
fn supervise(channel: &Channel, child: &Child, usage: &mut Tally) -> Result<End, IpcError> {
    loop {
        let mut ready = [PollFd::new(channel, PollFlags::IN), PollFd::new(&child.pidfd, PollFlags::IN)];
        match poll(&mut ready, Some(&REAP_EVERY)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [order, _] = &ready;
        if !order.revents().is_empty() {
            match channel.receive::<Order>() {
                Ok((Order::Terminate, _)) => {
                    if let Some(pid) = rustix::process::Pid::from_raw(child.pid) {
                        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::TERM);
                    }
                }
                Ok((Order::Kill, _)) => signal_all(),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        while let Ok(Waited::Reaped(reaped)) = wait(Which::Any, false) {
            usage.add(&reaped);
            if reaped.pid == child.pid {
                return Ok(reaped.end);
            }
        }
    }
}

/// Orphans are reaped at this pace even when nothing else happens.
const REAP_EVERY: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Signals every process of the sandbox but the caller: kill(2) with -1, in our own pid namespace.
fn signal_all() {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::Signal::SIGKILL);
}

/// Kills and reaps until no child is left; returns how many there were. A process that forks while it is
/// being killed is met in the next round.
fn kill_all(usage: &mut Tally) -> u32 {
    let mut count = 0;
    loop {
        signal_all();
        loop {
            match wait(Which::Any, false) {
                Ok(Waited::Reaped(reaped)) => {
                    usage.add(&reaped);
                    count += 1;
                }
                Ok(Waited::Running) => break,
                Ok(Waited::None) | Err(_) => return count,
            }
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

fn launch(
    confinement: &Confinement<'_>,
    step: &StepPlan,
    out: BorrowedFd<'_>,
    err: BorrowedFd<'_>,
) -> Result<Child, String> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| e.to_string())?;
    // Everything that init holds closes on exec; the ruleset's descriptor is needed until then.
    let child = spawn(Namespaces::default(), None, Keep::AllBut(&[]), || {
        let reason = match become_step(confinement, step, out, err) {
            Ok(never) => match never {},
            Err(reason) => reason,
        };
        if let Ok(copy) = write.try_clone() {
            let _ = std::fs::File::from(copy).write_all(reason.as_bytes());
        }
        127
    })
    .map_err(|e| e.to_string())?;
    drop(write);
    // The write end closes on exec: an empty answer means that the program runs.
    let mut reason = String::new();
    let _ = std::fs::File::from(read).take(4096).read_to_string(&mut reason);
    if reason.is_empty() {
        return Ok(child);
    }
    let _ = wait(Which::Pid(child.pid), true);
    Err(reason)
}

enum Never {}

fn become_step(
    confinement: &Confinement<'_>,
    step: &StepPlan,
    out: BorrowedFd<'_>,
    err: BorrowedFd<'_>,
) -> Result<Never, String> {
    let failed = |what: &str, e: rustix::io::Errno| format!("{what}: {e}");
    prefer_as_victim().map_err(|e| format!("oom_score_adj: {e}"))?;
    rustix::process::setsid().map_err(|e| failed("setsid", e))?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
        .map_err(|e| failed("/dev/null", e))?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| failed("standard input", e))?;
    rustix::stdio::dup2_stdout(out).map_err(|e| failed("standard output", e))?;
    rustix::stdio::dup2_stderr(err).map_err(|e| failed("standard error", e))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(ampoule_spec::UMASK));
    ampoule_sys::signal::reset().map_err(|e| format!("signals: {e}"))?;
    confinement.apply().map_err(|e| e.to_string())?;
    rustix::process::chdir(step.cwd.as_str())
        .map_err(|e| failed(&format!("working directory {}", step.cwd), e))?;
    ampoule_sys::fd::close_on_exec_from(3).map_err(|e| format!("descriptors: {e}"))?;
    exec(step)
}

/// When the job's memory is used up, the kernel shall kill a step and not init, which has to say what happened.
/// Init's own score cannot be lowered without CAP_SYS_RESOURCE, so the steps' is raised. The file belongs to us
/// only while we are dumpable; nothing else runs in the sandbox now, and exec resets the flag anyway.
fn prefer_as_victim() -> std::io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    std::fs::write("/proc/self/oom_score_adj", "1000")?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Looks the program up as execvp(3) does, in the step's own PATH, already confined.
fn exec(step: &StepPlan) -> Result<Never, String> {
    let text = |s: &String| CString::new(s.as_str()).map_err(|_| "a NUL byte in an argument".to_owned());
    let args = step.run.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let env = step.env.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let program = step.run.first().map(String::as_str).unwrap_or_default();
    let path = step.env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
    let candidates: Vec<String> = if program.contains('/') {
        vec![program.to_owned()]
    } else {
        path.split(':').filter(|p| p.starts_with('/')).map(|p| format!("{p}/{program}")).collect()
    };
    let mut reason = nix::errno::Errno::ENOENT;
    for candidate in candidates {
        let Ok(file) = CString::new(candidate) else { continue };
        match nix::unistd::execve(&file, &args, &env) {
            Ok(never) => match never {},
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => {}
            Err(errno) => reason = errno,
        }
    }
    Err(format!("{program}: {}", reason.desc()))
}
