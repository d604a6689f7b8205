//! One step: started, watched against its limits, ended, and accounted for.

use crate::clock::{self, Moment};
use crate::lifetime::{Lifetime, Wish};
use crate::pump::{Pump, Pumped};
use crate::recorder::Recorder;
use ampoule_sandbox::Sandbox;
use ampoule_sandbox::cgroup::Counts;
use ampoule_sandbox::init::{Answer, Order};
use ampoule_spec::{Code, Event, Failure, LogChunk, Step, StepEnd, StepReport, Usage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::AsFd;
use std::time::Duration;

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// Between SIGKILL and giving init up.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How often the control groups' counters are looked at while a step runs.
const TICK: Duration = Duration::from_millis(250);

/// Why a step was ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    TimedOut,
    OutOfMemory,
    Wished(Wish),
}

/// What every step of a job shares.
pub(crate) struct StepContext<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) lifetime: &'a mut Lifetime,
    pub(crate) recorder: &'a mut Recorder,
    pub(crate) log_bytes: u64,
    pub(crate) deadline: Moment,
    pub(crate) pump_as: Option<u32>,
    pub(crate) build_host_id: u32,
}

/// A step under way.
struct Running<'a> {
    report: &'a mut StepReport,
    deadline: Moment,
    stop: Option<Stop>,
    killed: bool,
    kill_at: Option<Moment>,
    /// No process of it is left.
    ended: bool,
    /// Its streams have not ended yet.
    pumping: bool,
    oom_kills_before: u64,
}

/// Runs a step. The failure, if there is one, ends the job.
pub(crate) fn run(context: &mut StepContext<'_>, number: u32, step: &Step) -> (StepReport, Option<Failure>) {
    let mut report = not_run(step);
    let (stop, counted) = match counted_watch(context, number, step, &mut report) {
        Ok(ended) => ended,
        Err(message) => {
            report.end = StepEnd::Aborted;
            report.finished = Some(clock::now());
            return (report, Some(failure(Code::JobAborted, message, number)));
        }
    };
    account(&mut report, counted);
    let failure = judge(context, number, &mut report, &stop, counted);
    (report, failure)
}

/// Watches a step between two readings of the control groups' counters.
fn counted_watch(
    context: &mut StepContext<'_>,
    number: u32,
    step: &Step,
    report: &mut StepReport,
) -> Result<(Option<Stop>, Counts), String> {
    if let Some(group) = &context.sandbox.cgroup {
        group.reset_peak();
    }
    let before = counts(context.sandbox)?;
    let watched = watch(context, number, step, before.oom_kills, report);
    let counted = since(before, counts(context.sandbox)?);
    match watched {
        Ok(stop) => Ok((stop, counted)),
        // The kernel may have killed init with the step: that explains it.
        Err(_) if counted.oom_kills > 0 => {
            report.finished = Some(clock::now());
            Ok((Some(Stop::OutOfMemory), counted))
        }
        Err(message) => Err(message),
    }
}

/// The counters; zeros where there are no control groups to count.
fn counts(sandbox: &Sandbox) -> Result<Counts, String> {
    let counts = sandbox.cgroup.as_ref().map(|group| group.counts()).transpose();
    Ok(counts.map_err(|e| format!("the control groups cannot be read: {e}"))?.unwrap_or_default())
}

/// The report of a step that an earlier failure kept from running.
pub(crate) fn not_run(step: &Step) -> StepReport {
    StepReport {
        name: step.name.clone(),
        end: StepEnd::NotRun,
        started: None,
        finished: None,
        usage: Usage::default(),
        logs: Vec::new(),
        survivors_killed: 0,
    }
}

fn failure(code: Code, message: impl Into<String>, step: u32) -> Failure {
    Failure { code, message: message.into(), step: Some(step), teardown: None }
}

fn since(before: Counts, after: Counts) -> Counts {
    Counts {
        oom_kills: after.oom_kills.saturating_sub(before.oom_kills),
        forks_refused: after.forks_refused.saturating_sub(before.forks_refused),
        cpu_micros: after.cpu_micros.saturating_sub(before.cpu_micros),
        memory_peak_bytes: after.memory_peak_bytes,
    }
}

/// The control group's counters cover every process, also those that nobody waited for.
fn account(report: &mut StepReport, counted: Counts) {
    report.usage.cpu_micros = report.usage.cpu_micros.max(counted.cpu_micros);
    report.usage.memory_peak_bytes = report.usage.memory_peak_bytes.max(counted.memory_peak_bytes);
}

fn watch(
    context: &mut StepContext<'_>,
    number: u32,
    step: &Step,
    oom_kills_before: u64,
    report: &mut StepReport,
) -> Result<Option<Stop>, String> {
    let pipes = |e: Errno| format!("the step's streams cannot be made: {e}");
    let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC).map_err(pipes)?;
    let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC).map_err(pipes)?;
    for stream in [&out_write, &err_write] {
        // So that /dev/stdout and /dev/stderr can be opened by name.
        let id = context.build_host_id;
        rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(id)), None).map_err(pipes)?;
    }
    let pump = Pump::start(&out_read, &err_read, context.log_bytes, context.pump_as)
        .map_err(|e| format!("the log pump cannot be started: {e}"))?;
    drop((out_read, err_read));
    let mut running = Running {
        report,
        deadline: context.deadline.min(Moment::now().after(Duration::from_millis(step.timeout_ms))),
        stop: None,
        killed: false,
        kill_at: None,
        ended: false,
        pumping: true,
        oom_kills_before,
    };
    let at = clock::now();
    running.report.started = Some(at);
    context.recorder.event(&Event::StepStarted { at, step: number, name: step.name.clone() })?;
    let answer = context.sandbox.start_step(number, out_write.as_fd(), err_write.as_fd());
    drop((out_write, err_write));
    let watched = match answer {
        Ok(answer) => {
            take_answer(&mut running, answer);
            until_over(context, &pump, &mut running, number)
        }
        Err(_) => Err(INIT_LOST.to_owned()),
    };
    if watched.is_err() {
        // Init is gone and every process of the step with it: the pump ends by itself, with its last bytes.
        let end = Moment::now().after(DRAIN_LIMIT);
        while running.pumping && !end.left().is_zero() {
            if take_log(context.recorder, &pump, &mut running, number).is_err() {
                break;
            }
        }
    }
    let stop = running.stop;
    watched.map(|()| stop)
}

/// What is said when process 1 of the sandbox is no longer there.
const INIT_LOST: &str = "process 1 of the sandbox died while the step ran";
/// How long the last bytes of a lost step are waited for.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

fn until_over(
    context: &mut StepContext<'_>,
    pump: &Pump,
    running: &mut Running<'_>,
    number: u32,
) -> Result<(), String> {
    while !running.ended || running.pumping {
        wait_once(context, pump, running, number)?;
    }
    Ok(())
}

fn wait_once(
    context: &mut StepContext<'_>,
    pump: &Pump,
    running: &mut Running<'_>,
    number: u32,
) -> Result<(), String> {
    let next = running.kill_at.unwrap_or(running.deadline).left().min(TICK);
    let (init, log, wish) = {
        let mut ready = vec![PollFd::from_borrowed_fd(context.sandbox.channel(), PollFlags::IN)];
        // A pump that has said everything hangs up, which would wake us again and again.
        let pumping = running.pumping;
        if pumping {
            ready.push(PollFd::new(&pump.channel, PollFlags::IN));
        }
        if running.stop.is_none() {
            ready.extend(context.lifetime.poll_fd());
        }
        match poll(&mut ready, Some(&timespec(next))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(format!("waiting failed: {errno}")),
        }
        let mut seen = ready.iter().map(|fd| !fd.revents().is_empty());
        (seen.next() == Some(true), pumping && seen.next() == Some(true), seen.next() == Some(true))
    };
    if log {
        take_log(context.recorder, pump, running, number)?;
    }
    if init && !running.ended {
        let answer = context.sandbox.answer().map_err(|_| INIT_LOST.to_owned())?;
        take_answer(running, answer);
    }
    if wish && running.stop.is_none() {
        running.stop = context.lifetime.wish().map(Stop::Wished);
    }
    enforce(context, running)
}

fn timespec(wait: Duration) -> Timespec {
    Timespec { tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() }
}

/// Ends the step if a limit or a wish says so: first kindly, then not.
fn enforce(context: &StepContext<'_>, running: &mut Running) -> Result<(), String> {
    if running.ended {
        return Ok(());
    }
    if running.stop.is_none() {
        if counts(context.sandbox)?.oom_kills > running.oom_kills_before {
            running.stop = Some(Stop::OutOfMemory);
        } else if running.deadline.left().is_zero() {
            running.stop = Some(Stop::TimedOut);
        }
    }
    let Some(stop) = running.stop else { return Ok(()) };
    let gone = |_| INIT_LOST.to_owned();
    match running.kill_at {
        None => {
            // After an oom kill, or without a client to wait for, there is nothing to be kind to.
            let at_once = matches!(stop, Stop::OutOfMemory | Stop::Wished(Wish::ClientGone));
            let grace = if at_once { Duration::ZERO } else { GRACE };
            running.kill_at = Some(Moment::now().after(grace));
            if !at_once {
                context.sandbox.order(&Order::Terminate).map_err(gone)?;
            }
            Ok(())
        }
        Some(at) if at.left().is_zero() && !running.killed => {
            running.killed = true;
            running.kill_at = Some(Moment::now().after(KILL_LIMIT));
            context.sandbox.order(&Order::Kill).map_err(gone)
        }
        Some(at) if at.left().is_zero() => Err("a process of the step cannot be killed".to_owned()),
        Some(_) => Ok(()),
    }
}

fn take_log(
    recorder: &mut Recorder,
    pump: &Pump,
    running: &mut Running<'_>,
    number: u32,
) -> Result<(), String> {
    match pump.receive() {
        Ok(Pumped::Chunk(stream, offset, bytes)) => {
            recorder.log(&LogChunk { step: number, stream, at: clock::now(), offset, bytes })
        }
        Ok(Pumped::Summary(logs)) => {
            running.report.logs = logs;
            running.pumping = false;
            Ok(())
        }
        Err(_) => Err("the log pump died while the step ran".to_owned()),
    }
}

fn take_answer(running: &mut Running<'_>, answer: Answer) {
    let end = match answer {
        Answer::Started => return,
        Answer::NotStarted { reason } => StepEnd::NotStarted { reason },
        Answer::Ended { status, signal, cpu_micros, memory_peak_bytes, survivors } => {
            running.report.usage = Usage { cpu_micros, memory_peak_bytes };
            running.report.survivors_killed = survivors;
            match (status, signal) {
                (Some(code), _) => StepEnd::Exited { code },
                (None, Some(signal)) => StepEnd::Signalled { signal },
                (None, None) => StepEnd::Aborted,
            }
        }
        Answer::Made | Answer::Ready { .. } | Answer::Failed(_) => StepEnd::Aborted,
    };
    running.report.finished = Some(clock::now());
    running.report.end = end;
    running.ended = true;
}

/// Says how the step ended, in the order of what explains the most.
fn judge(
    context: &StepContext<'_>,
    number: u32,
    report: &mut StepReport,
    stop: &Option<Stop>,
    counted: Counts,
) -> Option<Failure> {
    let name = report.name.clone();
    let fail = |code, message: String| Some(failure(code, format!("step {name}: {message}"), number));
    match stop {
        Some(Stop::TimedOut) => {
            report.end = StepEnd::TimedOut;
            return fail(Code::LimitTimeout, "it ran longer than its time limit or the job's".to_owned());
        }
        Some(Stop::Wished(Wish::Cancel)) => {
            report.end = StepEnd::Cancelled;
            return fail(Code::JobCancelled, "the client cancelled the job".to_owned());
        }
        Some(Stop::Wished(Wish::ClientGone)) => {
            report.end = StepEnd::Aborted;
            return fail(Code::JobAborted, "the client that ran the job is gone".to_owned());
        }
        Some(Stop::OutOfMemory) | None => {}
    }
    if counted.oom_kills > 0 || *stop == Some(Stop::OutOfMemory) {
        report.end = StepEnd::KilledByLimit { code: Code::LimitOom };
        return fail(
            Code::LimitOom,
            "it reached limits.memory and the kernel killed a process of it".to_owned(),
        );
    }
    let (code, message) = match &report.end {
        StepEnd::Exited { code: 0 } => return None,
        StepEnd::Exited { code } => (Code::StepExitNonzero, format!("it exited with status {code}")),
        StepEnd::Signalled { signal } => (Code::StepSignalled, format!("it was ended by signal {signal}")),
        StepEnd::NotStarted { reason } => return fail(Code::StepNotStarted, reason.clone()),
        _ => return fail(Code::JobAborted, "it was lost".to_owned()),
    };
    if let Some(limit) = full_disk(context) {
        report.end = StepEnd::KilledByLimit { code: Code::LimitDisk };
        return fail(Code::LimitDisk, format!("{message} after it had filled {limit}"));
    }
    if counted.forks_refused > 0 {
        report.end = StepEnd::KilledByLimit { code: Code::LimitPids };
        return fail(Code::LimitPids, format!("{message} after it had reached limits.pids"));
    }
    fail(code, message)
}

/// Whether the writable layer has no room left when a step fails.
fn full_disk(context: &StepContext<'_>) -> Option<&'static str> {
    let (bytes, inodes) = context.sandbox.scratch_free()?;
    match (bytes < 64 << 10, inodes < 2) {
        (true, _) => Some("limits.disk"),
        (_, true) => Some("limits.inodes"),
        _ => None,
    }
}
