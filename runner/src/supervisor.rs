//! The supervisor: one process per job, outside the sandbox, from admission to the durable report.

use crate::admission::Admitted;
use crate::clock::{self, Moment};
use crate::facts::FactsReader;
use crate::jobdir::JobDir;
use crate::lifetime::{Lifetime, Wish};
use crate::outputs;
use crate::recorder::Recorder;
use crate::report::{Draft, phase};
use crate::steps::{self, StepContext};
use ampoule_sandbox::identity::Authority;
use ampoule_sandbox::init::StepPlan;
use ampoule_sandbox::{Sandbox, SandboxPlan, teardown};
use ampoule_spec::{Code, Event, Failure, Image, Measured, TeardownReport};
use std::os::fd::AsFd;
use std::time::Duration;

/// Runs a job in the calling process, which is the supervisor. Returns its exit status: 0 once the report is
/// durable.
pub(crate) fn run(
    admitted: Admitted,
    dir: &JobDir,
    mut recorder: Recorder,
    mut lifetime: Lifetime,
    facts: FactsReader,
) -> i32 {
    let mut draft = Draft::new(&admitted);
    let teardown = attempt(admitted, dir, &mut recorder, &mut lifetime, facts, &mut draft);
    let report = draft.finish(teardown);
    let outcome = report.outcome;
    // The report names digests of logs: their bytes are durable before it is.
    if recorder.sync_logs().is_err() {
        return 70;
    }
    if dir.write_report(&report).is_err() {
        return 70;
    }
    let _ = recorder.event(&Event::Closed { at: clock::now(), outcome });
    0
}

fn attempt(
    admitted: Admitted,
    dir: &JobDir,
    recorder: &mut Recorder,
    lifetime: &mut Lifetime,
    facts: FactsReader,
    draft: &mut Draft,
) -> TeardownReport {
    let Admitted { job, profile, limits, authority, hierarchies, mounts, .. } = admitted;
    let begun = Moment::now();
    phase(recorder, "sandbox");
    let plans: Vec<StepPlan> = crate::environment::step_plans(&job);
    let plan = SandboxPlan {
        job: &job.id,
        profile: &profile.profile,
        limits: &limits,
        authority,
        hierarchies: hierarchies.as_ref(),
        mounts,
        steps: &plans,
    };
    let sandbox = match Sandbox::create(plan) {
        Ok(sandbox) => sandbox,
        Err(half) => {
            let message = half.error.to_string();
            draft.fail(recorder, failure(half.error.code(), message));
            draft.phase("sandbox", begun);
            return teardown::destroy_half(*half, authority);
        }
    };
    draft.phase("sandbox", begun);
    draft.stages(&sandbox.stages);
    draft.report.isolation.layers.extend(sandbox.layers.clone());
    draft.report.isolation.layers.insert("limits".to_owned(), limits_layer(sandbox.cgroup.is_some()));
    if let Some(failure) = missing_layer(draft, &profile.profile) {
        draft.fail(recorder, failure);
    }
    let begun = Moment::now();
    phase(recorder, "steps");
    let mut context = StepContext {
        sandbox: &sandbox,
        lifetime,
        recorder,
        log_bytes: limits.log_bytes,
        deadline: begun.after(Duration::from_millis(limits.timeout_ms)),
        pump_as: pump_id(authority),
        build_host_id: authority.build_host_id(),
    };
    run_steps(&mut context, &job, draft);
    draft.phase("steps", begun);
    tell_facts(facts, &job.image, recorder, draft);
    take_outputs(&sandbox, &job, dir, recorder, lifetime, draft, limits.disk_bytes);
    let begun = Moment::now();
    phase(recorder, "destroy");
    let report = teardown::destroy(sandbox, authority);
    draft.phase("destroy", begun);
    report
}

/// The pump's id: one of the job's block that no image has a use for.
fn pump_id(authority: Authority) -> Option<u32> {
    match authority {
        Authority::Root { base } => Some(base + 65_533),
        Authority::User { .. } => None,
    }
}

pub(crate) fn limits_layer(in_force: bool) -> Measured {
    let detail = if in_force {
        "memory without swap, processes and processor time by control group, read back"
    } else {
        "an ordinary user has no control group of the job's: only disk, log, file and time limits hold"
    };
    Measured { in_force, detail: detail.to_owned() }
}

/// The first layer that is demanded and not in force. Only what a profile says it can do without may be absent.
fn missing_layer(draft: &Draft, profile: &ampoule_spec::Profile) -> Option<Failure> {
    let missing = crate::admission::missing_layers(&draft.report.isolation, profile);
    let message = missing.first()?.clone();
    Some(Failure { code: Code::SandboxUnsupported, message, step: None, teardown: None })
}

/// Takes over what the launcher gathered meanwhile.
fn tell_facts(facts: FactsReader, image: &Image, recorder: &mut Recorder, draft: &mut Draft) {
    let facts = facts.receive(image);
    draft.report.host = facts.host;
    draft.report.runner_sha256 = facts.runner;
    match facts.image {
        Ok(image) => draft.report.image = Some(image),
        Err(error) => draft.fail(recorder, failure(error.code(), error.to_string())),
    }
}

/// The failure that a client's wish is.
fn wished(wish: Wish) -> Failure {
    match wish {
        Wish::Cancel => failure(Code::JobCancelled, "the client cancelled the job"),
        Wish::ClientGone => failure(Code::JobAborted, "the client that ran the job is gone"),
    }
}

/// A failure that belongs to no step.
fn failure(code: Code, message: impl Into<String>) -> Failure {
    Failure { code, message: message.into(), step: None, teardown: None }
}

fn run_steps(context: &mut StepContext<'_>, job: &ampoule_spec::JobSpec, draft: &mut Draft) {
    for (number, step) in (0_u32..).zip(&job.steps) {
        if draft.report.failure.is_none()
            && let Some(wish) = context.lifetime.wish_now()
        {
            draft.fail(context.recorder, wished(wish));
        }
        if draft.report.failure.is_some() {
            draft.report.steps.push(steps::not_run(step));
            continue;
        }
        let (report, failed) = steps::run(context, number, step);
        let finished = Event::StepFinished { at: clock::now(), step: number, report: report.clone() };
        draft.step(report);
        if let Err(message) = context.recorder.event(&finished) {
            draft.fail(
                context.recorder,
                Failure { code: Code::Internal, message, step: Some(number), teardown: None },
            );
        }
        if let Some(failed) = failed {
            draft.fail(context.recorder, failed);
        }
    }
}

fn take_outputs(
    sandbox: &Sandbox,
    job: &ampoule_spec::JobSpec,
    dir: &JobDir,
    recorder: &mut Recorder,
    lifetime: &mut Lifetime,
    draft: &mut Draft,
    bytes_max: u64,
) {
    // Without a living init nobody can say that no process of the sandbox is left.
    let lost = draft.report.failure.as_ref().is_some_and(|f| f.code.fault() != ampoule_spec::Fault::Tenant);
    if lost {
        return;
    }
    let begun = Moment::now();
    phase(recorder, "quiesce");
    if let Err(message) = sandbox.quiesce() {
        draft.fail(recorder, failure(Code::TeardownUnclean, message));
        return;
    }
    phase(recorder, "outputs");
    let succeeded = draft.report.failure.is_none();
    let into = match dir.outputs() {
        Ok(into) => into,
        Err(error) => {
            let message = format!("the outputs' directory cannot be opened: {error}");
            draft.fail(recorder, failure(Code::Internal, message));
            return;
        }
    };
    let (taken, failed) =
        outputs::collect(job, succeeded, sandbox.root(), into.as_fd(), bytes_max, &mut || {
            if begun.since() > outputs::TIME_LIMIT {
                return Some(failure(
                    Code::LimitTimeout,
                    "taking the outputs out lasted longer than 10 minutes",
                ));
            }
            lifetime.wish_now().map(wished)
        });
    draft.report.outputs = taken;
    if let Some(failed) = failed {
        draft.fail(recorder, failed);
    }
    if !draft.report.outputs.is_empty() {
        // What the report announces is durable before the report is.
        if let Err(errno) = rustix::fs::fsync(&into) {
            draft.fail(recorder, failure(Code::Internal, format!("outputs cannot be made durable: {errno}")));
        }
    }
    draft.phase("outputs", begun);
}
