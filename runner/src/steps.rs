//! One step: started, watched against its limits, ended, and accounted for.

mod judge;

use crate::clock::{self, Moment};
use crate::control::{Rotation, Wants};
use crate::lifetime::{Lifetime, Wish};
use crate::pump::{Pump, Pumped};
use crate::recorder::Recorder;
use crate::secrets::Given;
use ampoule_ipc::Channel;
use ampoule_sandbox::cgroup::Counts;
use ampoule_sandbox::error::Stage;
use ampoule_sandbox::protocol::{Answer, Order, PreparePlan, StepPlan};
use ampoule_sandbox::{Sandbox, StageError};
use ampoule_spec::{Code, Event, Failure, LogChunk, LogOverflow, PUMP_ID, Step, StepEnd, StepReport, Usage};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::time::Duration;

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// Between SIGKILL and giving init up; and between the end of a step and giving its log pump up.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How often the control groups' counters are looked at while a step runs.
const TICK: Duration = Duration::from_millis(250);
/// The same for a while after the kernel has said that memory is short.
const TICK_IN_ALERT: Duration = Duration::from_millis(5);
/// That while.
const ALERT: Duration = Duration::from_secs(1);

/// Why a step was ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    TimedOut,
    OutOfMemory,
    Wished(Wish),
}

/// The process of a step that has not been told yet what it runs, and what reads its streams.
#[derive(Debug)]
pub(crate) struct StepProcess {
    pump: Pump,
    /// On which it is told, and says why it cannot.
    plan: Channel,
    /// What was counted when it was there.
    before: Counts,
}

impl StepProcess {
    /// Makes it. What it measured, if it did, is with the sandbox.
    pub(crate) fn prepare(sandbox: &mut Sandbox, plan: PreparePlan) -> Result<Self, StageError> {
        let authority = sandbox.authority;
        let (out_read, out_write) = Pump::stream().stage("step: pipe")?;
        let (err_read, err_write) = Pump::stream().stage("step: pipe")?;
        let (mine, theirs) = Channel::pair().stage("step: channel")?;
        for stream in [&out_write, &err_write] {
            // So that /dev/stdout and /dev/stderr can be opened by name.
            let id = rustix::fs::Uid::from_raw(authority.host_id(plan.user.id()));
            rustix::fs::fchown(stream, Some(id), None).stage("step: give it its streams")?;
        }
        let run_as = authority.is_root().then(|| authority.host_id(PUMP_ID));
        let streams = [out_write.as_fd(), err_write.as_fd(), theirs.as_fd()];
        let pump = || Pump::start(&out_read, &err_read, run_as).stage("step: log pump");
        let pump = sandbox.prepare_step(plan, streams, pump)?;
        if let Some(group) = sandbox.cgroup() {
            group.reset_peak();
        }
        let before = counts(sandbox).stage("step: read the control groups")?;
        Ok(Self { pump, plan: mine, before })
    }

    /// Why the step's program could not be started, if it could not.
    fn refusal(&self) -> Option<String> {
        let mut ready = [PollFd::new(&self.plan, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut ready, Some(&now)).is_ok_and(|n| n > 0).then_some(())?;
        let (reason, _) = self.plan.receive_bytes().ok()?;
        Some(String::from_utf8_lossy(reason.get(..REASON_BYTES_MAX).unwrap_or(&reason)).into_owned())
    }
}

/// The most of what a process says about why it could not start.
const REASON_BYTES_MAX: usize = 4 << 10;

/// What every step of a job shares.
pub(crate) struct StepContext<'a> {
    pub(crate) sandbox: &'a Sandbox,
    pub(crate) lifetime: &'a mut Lifetime,
    pub(crate) recorder: &'a mut Recorder,
    pub(crate) log_bytes: u64,
    pub(crate) log_overflow: LogOverflow,
    pub(crate) deadline: Moment,
    /// The step's secrets, if it names any.
    pub(crate) secrets: Option<Given>,
    /// Whether nothing comes after this step but the end of the sandbox.
    pub(crate) is_last: bool,
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
    /// Until when its last bytes are waited for, once it has ended.
    drained_by: Option<Moment>,
    /// Its streams have not ended yet.
    pumping: bool,
    oom_kills_before: u64,
    /// Until when the counters are looked at more often: the kernel has run out of the job's memory, and on version 1 says
    /// so before it kills.
    alert: Option<Moment>,
    /// When its bytes are no longer worth a copy in the host's page cache; none once they have none.
    outlives_cache: Option<Moment>,
    /// Another value of a secret, which the pump is to mask first.
    rotation: Option<Rotation>,
    /// It does.
    is_masked: bool,
}

/// Runs a step in its process. The failure, if there is one, ends the job.
pub(crate) fn run(
    context: &mut StepContext<'_>,
    process: StepProcess,
    number: u32,
    step: &Step,
    plan: &StepPlan,
) -> (StepReport, Option<Failure>) {
    let mut report = not_run(step);
    let (stop, counted) = match counted_watch(context, &process, number, (step, plan), &mut report) {
        Ok(ended) => ended,
        Err(message) => {
            report.end = StepEnd::Aborted;
            report.finished = Some(clock::now());
            return (report, Some(Failure::new(Code::JobAborted, message).in_step(number)));
        }
    };
    account(&mut report, counted);
    let failure = judge::judge(context, number, &mut report, &stop, counted);
    (report, failure)
}

/// Watches a step between two readings of the control groups' counters.
fn counted_watch(
    context: &mut StepContext<'_>,
    process: &StepProcess,
    number: u32,
    step: (&Step, &StepPlan),
    report: &mut StepReport,
) -> Result<(Option<Stop>, Counts), String> {
    let before = process.before;
    let watched = watch(context, process, number, step, before.oom_kills, report);
    let counted = since(before, counts(context.sandbox).map_err(|e| unreadable(&e))?);
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
fn counts(sandbox: &Sandbox) -> std::io::Result<Counts> {
    Ok(sandbox.cgroup().map(|group| group.counts()).transpose()?.unwrap_or_default())
}

fn unreadable(error: &std::io::Error) -> String {
    format!("the control groups cannot be read: {error}")
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
    process: &StepProcess,
    number: u32,
    (step, plan): (&Step, &StepPlan),
    oom_kills_before: u64,
    report: &mut StepReport,
) -> Result<Option<Stop>, String> {
    let lost = |_| INIT_LOST.to_owned();
    let masked = context.secrets.as_ref().map(Given::values).unwrap_or_default();
    process.pump.begin(context.log_bytes, &masked).map_err(|_| PUMP_LOST.to_owned())?;
    let at = clock::now();
    let mut running = Running {
        report,
        deadline: context.deadline.min(Moment::now().after(Duration::from_millis(step.timeout_ms))),
        stop: None,
        killed: false,
        kill_at: None,
        ended: false,
        drained_by: None,
        pumping: true,
        oom_kills_before,
        alert: None,
        outlives_cache: Some(Moment::now().after(TICK)),
        rotation: None,
        is_masked: false,
    };
    running.report.started = Some(at);
    context.recorder.event(&Event::StepStarted { at, step: number, name: step.name.clone() })?;
    if context.is_last {
        context.sandbox.order(&Order::Leave).map_err(lost)?;
    }
    if let (Some(control), Some(secrets)) = (context.lifetime.control(), &context.secrets) {
        control.want(Wants::Another { step: number, names: secrets.changing() });
    }
    let handed = context.secrets.as_ref().map(Given::handed).unwrap_or_default();
    let sent = plan.send(&process.plan, &handed).map_err(lost);
    let watched = sent.and_then(|()| until_over(context, process, &mut running, number));
    if watched.is_err() {
        // When every process of the step is dead, the pump ends by itself, with its last bytes.
        context.sandbox.kill();
        let end = Moment::now().after(DRAIN_LIMIT);
        while running.pumping
            && has_more(&process.pump, end.left())
            && take_log(context.recorder, &process.pump, &mut running, number).is_ok()
        {}
    }
    if let (Some(control), Some(_)) = (context.lifetime.control(), &context.secrets) {
        control.want(Wants::Nothing);
    }
    let stop = running.stop;
    watched.map(|()| stop)
}

/// What is said when process 1 of the sandbox is no longer there.
const INIT_LOST: &str = "process 1 of the sandbox died while the step ran";
/// What is said when nobody reads the step's streams any more.
const PUMP_LOST: &str = "the log pump died while the step ran";
/// What is said when it is there and does not read.
const PUMP_STUCK: &str = "the log pump did not come to its end after the step's";
/// How long the last bytes of a lost step are waited for.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

fn until_over(
    context: &mut StepContext<'_>,
    process: &StepProcess,
    running: &mut Running<'_>,
    number: u32,
) -> Result<(), String> {
    while !running.ended || running.pumping {
        wait_once(context, process, running, number)?;
    }
    Ok(())
}

/// What can be ready while a step runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Init,
    Log,
    Oom,
    Wish,
}

fn wait_once(
    context: &mut StepContext<'_>,
    process: &StepProcess,
    running: &mut Running<'_>,
    number: u32,
) -> Result<(), String> {
    let tick = if running.alert.is_some_and(|until| !until.left().is_zero()) { TICK_IN_ALERT } else { TICK };
    let next = running.kill_at.unwrap_or(running.deadline).left().min(tick);
    let (init, log, oom, wish) = {
        let mut ready = Vec::new();
        if !running.ended {
            let init = context.sandbox.channel().ok_or_else(|| INIT_LOST.to_owned())?;
            ready.push((Source::Init, PollFd::from_borrowed_fd(init, PollFlags::IN)));
        }
        // A pump that has said everything hangs up, which would wake us again and again.
        if running.pumping {
            ready.push((Source::Log, PollFd::new(&process.pump.channel, PollFlags::IN)));
        }
        if running.stop.is_none() {
            let oom = context.sandbox.cgroup().and_then(|group| group.oom());
            ready.extend(oom.map(|watch| (Source::Oom, PollFd::new(watch, watch.flags))));
            ready.extend(context.lifetime.poll_fds().into_iter().map(|fd| (Source::Wish, fd)));
        }
        let (sources, mut fds): (Vec<Source>, Vec<PollFd<'_>>) = ready.into_iter().unzip();
        match poll(&mut fds, Some(&timespec(next))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(format!("waiting failed: {errno}")),
        }
        let heard = |source| sources.iter().zip(&fds).any(|(s, fd)| *s == source && !fd.revents().is_empty());
        (heard(Source::Init), heard(Source::Log), heard(Source::Oom), heard(Source::Wish))
    };
    if oom && let Some(watch) = context.sandbox.cgroup().and_then(|group| group.oom()) {
        watch.clear();
        running.alert = Some(Moment::now().after(ALERT));
    }
    if log {
        take_log(context.recorder, &process.pump, running, number)?;
        rotate(context, running);
    }
    if init {
        let answer = context.sandbox.answer().map_err(|_| INIT_LOST.to_owned())?;
        take_answer(running, process, answer);
    }
    if wish && running.stop.is_none() {
        running.stop = context.lifetime.wish().map(Stop::Wished);
        take_rotation(context, process, running)?;
    }
    if running.outlives_cache.is_some_and(|at| at.left().is_zero()) {
        running.outlives_cache = None;
        context.sandbox.bypass_host_cache();
    }
    enforce(context, running)
}

fn timespec(wait: Duration) -> Timespec {
    Timespec { tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() }
}

/// Ends the step if a limit or a wish says so: first kindly, then not.
fn enforce(context: &StepContext<'_>, running: &mut Running) -> Result<(), String> {
    if running.ended {
        // Whoever wrote to the pump is dead, so it has little left to read.
        let drained_by = *running.drained_by.get_or_insert_with(|| Moment::now().after(KILL_LIMIT));
        return if drained_by.left().is_zero() { Err(PUMP_STUCK.to_owned()) } else { Ok(()) };
    }
    if running.stop.is_none() {
        if counts(context.sandbox).map_err(|e| unreadable(&e))?.oom_kills > running.oom_kills_before {
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

/// Whether a pump says something more in time.
fn has_more(pump: &Pump, limit: Duration) -> bool {
    let mut ready = [PollFd::new(&pump.channel, PollFlags::IN)];
    rustix::io::retry_on_intr(|| poll(&mut ready, Some(&timespec(limit)))).is_ok_and(|count| count > 0)
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
        Ok(Pumped::Masks) => {
            running.is_masked = true;
            Ok(())
        }
        Ok(Pumped::Summary(logs)) => {
            running.report.logs = logs;
            running.pumping = false;
            Ok(())
        }
        Err(_) => Err(PUMP_LOST.to_owned()),
    }
}

/// Has the pump mask another value of a secret, before the step has it.
fn take_rotation(
    context: &mut StepContext<'_>,
    process: &StepProcess,
    running: &mut Running<'_>,
) -> Result<(), String> {
    let (Some(control), Some(secrets)) = (context.lifetime.control(), &mut context.secrets) else {
        return Ok(());
    };
    let Some(rotation) = control.rotation() else { return Ok(()) };
    let refused = match &running.rotation {
        Some(_) => Err("another value is on its way; try again".to_owned()),
        None => secrets.admit(&rotation),
    };
    if refused.is_err() {
        rotation.answer(refused);
        return Ok(());
    }
    process.pump.mask(rotation.value.file.as_fd()).map_err(|_| PUMP_LOST.to_owned())?;
    running.rotation = Some(rotation);
    Ok(())
}

/// Gives the step the value that the pump masks now.
fn rotate(context: &StepContext<'_>, running: &mut Running<'_>) {
    if !std::mem::take(&mut running.is_masked) {
        return;
    }
    if let (Some(rotation), Some(secrets)) = (running.rotation.take(), &context.secrets) {
        let done = secrets.rotate(&rotation, context.sandbox);
        rotation.answer(done);
    }
}

fn take_answer(running: &mut Running<'_>, process: &StepProcess, answer: Answer) {
    let end = match answer {
        Answer::Ended { status, signal, cpu_micros, memory_peak_bytes, survivors } => {
            running.report.usage = Usage { cpu_micros, memory_peak_bytes };
            running.report.survivors_killed = survivors;
            match (process.refusal(), status, signal) {
                (Some(reason), ..) => StepEnd::NotStarted { reason },
                (None, Some(code), _) => StepEnd::Exited { code },
                (None, None, Some(signal)) => StepEnd::Signalled { signal },
                (None, None, None) => StepEnd::Aborted,
            }
        }
        _ => StepEnd::Aborted,
    };
    running.report.finished = Some(clock::now());
    running.report.end = end;
    running.ended = true;
}
