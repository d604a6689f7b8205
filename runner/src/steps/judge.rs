//! How a step ended.

use super::{StepContext, Stop};
use crate::lifetime::Wish;
use ampoule_sandbox::cgroup::Counts;
use ampoule_spec::{Code, Failure, LogOverflow, StepEnd, StepReport};

/// Says how the step ended, in the order of what explains the most.
pub(super) fn judge(
    context: &StepContext<'_>,
    number: u32,
    report: &mut StepReport,
    stop: &Option<Stop>,
    counted: Counts,
) -> Option<Failure> {
    let name = report.name.clone();
    let fail =
        |code, message: String| Some(Failure::new(code, format!("step {name}: {message}")).in_step(number));
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
            return fail(
                Code::JobAborted,
                "the client that ran the job is gone, or the launcher between them".to_owned(),
            );
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
        StepEnd::Exited { code: 0 } => {
            return log_overflow(context, report).and_then(|m| fail(Code::LimitLog, m));
        }
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

/// Whether a step that went well wrote more log than is kept, in a job for which that is a failure.
fn log_overflow(context: &StepContext<'_>, report: &mut StepReport) -> Option<String> {
    let cut: u64 = report.logs.iter().map(|log| log.cut_bytes).sum();
    if cut == 0 || context.log_overflow == LogOverflow::Cut {
        return None;
    }
    report.end = StepEnd::KilledByLimit { code: Code::LimitLog };
    let kept = context.log_bytes;
    Some(format!(
        "it wrote {cut} bytes of log beyond limits.log ({kept} bytes a stream), which this job forbids"
    ))
}

/// Whether the writable layer has no room left when a step fails.
fn full_disk(context: &StepContext<'_>) -> Option<&'static str> {
    match context.sandbox.scratch_is_full()? {
        (true, _) => Some("limits.disk"),
        (_, true) => Some("limits.inodes"),
        _ => None,
    }
}
