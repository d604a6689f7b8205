//! One step: started, watched against its limits, ended, and accounted for.

use crate::clock::{self, Moment};
use crate::lifetime::{Lifetime, Wish};
use crate::pump::{Pump, Pumped};
use crate::recorder::Recorder;
use ampoule_sandbox::Sandbox;
use ampoule_sandbox::cgroup::Counts;
use ampoule_sandbox::init::{Answer, Order};
use ampoule_spec::{Code, Event, Failure, LogChunk, LogReport, Step, StepEnd, StepReport, UnixNanos, Usage};
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
}

/// A step under way.
struct Running {
    report: StepReport,
    deadline: Moment,
    stop: Option<Stop>,
    killed: bool,
    kill_at: Option<Moment>,
    end: Option<StepEnd>,
    logs: Option<Vec<LogReport>>,
    oom_kills_before: u64,
}

/// Runs a step. The failure, if there is one, ends the job.
pub(crate) fn run(context: &mut StepContext<'_>, number: u32, step: &Step) -> (StepReport, Option<Failure>) {
    match counted_watch(context, number, step) {
        Ok((mut report, stop, counted)) => {
            account(&mut report, counted);
            let failure = judge(context, number, &mut report, stop, counted);
            (report, failure)
        }
        Err(message) => {
            let mut report = not_run(step);
            report.end = StepEnd::Aborted;
            report.finished = Some(clock::now());
            (report, Some(failure(Code::JobAborted, message, number)))
        }
    }
}

/// Watches a step between two readings of the control groups' counters.
fn counted_watch(
    context: &mut StepContext<'_>,
    number: u32,
    step: &Step,
) -> Result<(StepReport, Option<Stop>, Counts), String> {
    if let Some(group) = &context.sandbox.cgroup {
        group.reset_peak();
    }
    let before = counts(context.sandbox)?;
    let (report, stop) = watch(context, number, step, before.oom_kills)?;
    Ok((report, stop, since(before, counts(context.sandbox)?)))
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
) -> Result<(StepReport, Option<Stop>), String> {
    let pipes = |e: Errno| format!("the step's streams cannot be made: {e}");
    let (out_read, out_write) = pipe_with(PipeFlags::CLOEXEC).map_err(pipes)?;
    let (err_read, err_write) = pipe_with(PipeFlags::CLOEXEC).map_err(pipes)?;
    let pump = Pump::start(&out_read, &err_read, context.log_bytes, context.pump_as)
        .map_err(|e| format!("the log pump cannot be started: {e}"))?;
    drop((out_read, err_read));
    let mut running = Running {
        report: not_run(step),
        deadline: context.deadline.min(Moment::now().after(Duration::from_millis(step.timeout_ms))),
        stop: None,
        killed: false,
        kill_at: None,
        end: None,
        logs: None,
        oom_kills_before,
    };
    let at = clock::now();
    running.report.started = Some(at);
    context.recorder.event(&Event::StepStarted { at, step: number, name: step.name.clone() })?;
    let lost = "process 1 of the sandbox died while the step ran";
    let answer = context
        .sandbox
        .start_step(number, out_write.as_fd(), err_write.as_fd())
        .map_err(|_| lost.to_owned())?;
    drop((out_write, err_write));
    take_answer(&mut running, answer);
    while running.end.is_none() || running.logs.is_none() {
        wait_once(context, &pump, &mut running, number)?;
    }
    drop(pump);
    running.report.logs = running.logs.unwrap_or_default();
    if let Some(end) = running.end {
        running.report.end = end;
    }
    Ok((running.report, running.stop))
}

fn wait_once(
    context: &mut StepContext<'_>,
    pump: &Pump,
    running: &mut Running,
    number: u32,
) -> Result<(), String> {
    let next = running.kill_at.unwrap_or(running.deadline).left().min(TICK);
    let (init, log, wish) = {
        let mut ready = vec![
            PollFd::from_borrowed_fd(context.sandbox.channel(), PollFlags::IN),
            PollFd::new(&pump.channel, PollFlags::IN),
        ];
        if running.stop.is_none() {
            ready.extend(context.lifetime.poll_fd());
        }
        match poll(&mut ready, Some(&timespec(next))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(format!("waiting failed: {errno}")),
        }
        let mut seen = ready.iter().map(|fd| !fd.revents().is_empty());
        (seen.next() == Some(true), seen.next() == Some(true), seen.next() == Some(true))
    };
    if log && running.logs.is_none() {
        take_log(context.recorder, pump, running, number)?;
    }
    if init && running.end.is_none() {
        let answer = context.sandbox.answer();
        take_answer(
            running,
            answer.map_err(|_| "process 1 of the sandbox died while the step ran".to_owned())?,
        );
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
    if running.end.is_some() {
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
    let gone = |_| "process 1 of the sandbox died while the step was being ended".to_owned();
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

fn take_log(recorder: &mut Recorder, pump: &Pump, running: &mut Running, number: u32) -> Result<(), String> {
    match pump.receive() {
        Ok(Pumped::Chunk(stream, offset, bytes)) => {
            recorder.log(&LogChunk { step: number, stream, at: clock::now(), offset, bytes })
        }
        Ok(Pumped::Summary(logs)) => {
            running.logs = Some(logs);
            Ok(())
        }
        Err(_) => Err("the log pump died while the step ran".to_owned()),
    }
}

fn take_answer(running: &mut Running, answer: Answer) {
    let now: UnixNanos = clock::now();
    match answer {
        Answer::Started => {}
        Answer::NotStarted { reason } => {
            running.report.finished = Some(now);
            running.end = Some(StepEnd::NotStarted { reason });
        }
        Answer::Ended { status, signal, cpu_micros, memory_peak_bytes, survivors } => {
            running.report.finished = Some(now);
            running.report.usage = Usage { cpu_micros, memory_peak_bytes };
            running.report.survivors_killed = survivors;
            running.end = Some(match (status, signal) {
                (Some(code), _) => StepEnd::Exited { code },
                (None, Some(signal)) => StepEnd::Signalled { signal },
                (None, None) => StepEnd::Aborted,
            });
        }
        Answer::Made | Answer::Ready { .. } | Answer::Failed(_) => running.end = Some(StepEnd::Aborted),
    }
}

/// Says how the step ended, in the order of what explains the most.
fn judge(
    context: &StepContext<'_>,
    number: u32,
    report: &mut StepReport,
    stop: Option<Stop>,
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
    if counted.oom_kills > 0 || stop == Some(Stop::OutOfMemory) {
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
