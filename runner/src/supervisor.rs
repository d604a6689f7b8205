//! The supervisor: one process per slot, outside the sandbox, from the intent to the durable report.

mod leaving;

use crate::clock::{self, Moment};
use crate::facts::Facts;
use crate::jobdir::{JobDir, State};
use crate::lifetime::{Leash, Lifetime};
use crate::outputs::Taken;
use crate::profiles::Loaded;
use crate::quarantine;
use crate::recorder::Recorder;
use crate::report::{Draft, phase};
use crate::reread::{HostBefore, Objects, reread_host};
use crate::search::Searched;
use crate::secrets;
use crate::slot::{Assignment, FromSlot, ToSlot};
use crate::steps::{self, StepContext, StepProcess};
use ampoule_ipc::{Channel, IpcError};
use ampoule_sandbox::cgroup::Hierarchies;
use ampoule_sandbox::identity::Authority;
use ampoule_sandbox::protocol::{PreparePlan, StepPlan};
use ampoule_sandbox::rootfs::{InputMount, MountPlan, RootPlan};
use ampoule_sandbox::{PreparePart, Sandbox, StageError, fault, teardown};
use ampoule_spec::{
    Code, Event, Failure, Image, JobSpec, Limits, Measured, Profile, ReadPolicy, SPEC_BYTES_MAX, SandboxPath,
    SlotId, StepUser,
};
use ampoule_store::Store;
use leaving::{publish, search_for, take_outputs};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::setpriority_process;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// What a supervisor starts from.
pub(crate) struct Post<'a> {
    pub(crate) slot: SlotId,
    pub(crate) authority: Authority,
    pub(crate) hierarchies: Option<&'a Hierarchies>,
    pub(crate) profile: &'a Loaded,
    pub(crate) limits: &'a Limits,
    pub(crate) host_image: bool,
    pub(crate) state: &'a State,
    pub(crate) store: &'a Store,
    pub(crate) dir: &'a JobDir,
    pub(crate) channel: &'a Channel,
}

/// A job, as the supervisor has it.
struct Job {
    spec: JobSpec,
    assignment: Assignment,
    mounts: MountPlan,
    lifetime: Lifetime,
    /// What it uses of the store, leased until the supervisor ends.
    objects: Objects,
    /// The host before the first step, where the image is the host's.
    host: Option<HostBefore>,
    /// What searches the outputs, if a step had secrets.
    searched: Searched,
}

/// Prepares a sandbox, waits for a job, and runs it. Returns the exit status: 0 once the report is durable, or when
/// there was no job and nothing is left.
pub(crate) fn run(post: &Post<'_>) -> i32 {
    fault::role("supervisor");
    // Its own session: a signal to the client's terminal is not for it.
    let _ = rustix::process::setsid();
    let mut sandbox = Sandbox::new(post.slot.clone(), post.authority);
    let begun = Moment::now();
    let prepared = prepare(&mut sandbox, post);
    let said = match &prepared {
        Ok(_) => FromSlot::Ready,
        Err(error) => FromSlot::Failed(error.to_string()),
    };
    let micros = begun.since();
    let heard = match (post.channel.send_all(&said, &[]), &prepared) {
        // A launcher that is gone may have left a job, which everybody was told of.
        (Ok(()) | Err(IpcError::Closed), Ok(_)) => wait_for_job(post, &sandbox),
        // The job is to be told.
        (Ok(()) | Err(IpcError::Closed), Err(_)) => post.channel.receive_all(),
        (Err(error), _) => Err(error),
    };
    match heard {
        Ok((ToSlot::Assign(assignment), descriptors)) => {
            work(post, sandbox, prepared, micros, assignment, descriptors)
        }
        _ => {
            drop(prepared);
            withdraw(post, sandbox)
        }
    }
}

/// Waits for a job. A sandbox whose init is gone takes none.
fn wait_for_job(post: &Post<'_>, sandbox: &Sandbox) -> Result<(ToSlot, Vec<OwnedFd>), IpcError> {
    if let Some(init) = sandbox.channel() {
        let mut ready =
            [PollFd::new(post.channel, PollFlags::IN), PollFd::from_borrowed_fd(init, PollFlags::IN)];
        while let Err(Errno::INTR) = poll(&mut ready, None) {}
        let [job, init] = &ready;
        // Init says nothing unasked: it has ended.
        if job.revents().is_empty() && !init.revents().is_empty() {
            return Err(IpcError::Closed);
        }
    }
    post.channel.receive_all()
}

/// No job came.
fn withdraw(post: &Post<'_>, sandbox: Sandbox) -> i32 {
    let traces = sandbox.traces();
    let teardown = teardown::destroy(sandbox);
    quarantine::settle(traces, None, &teardown);
    // A directory with a job's name holds the record of one that was admitted and that the launcher could not hand
    // over any more: whoever recovers it says how it ended.
    if post.dir.is_slots() && post.state.forget(post.dir.name()).is_ok() { 0 } else { 70 }
}

/// Makes what no job decides, and with the host's image the process of a first step.
fn prepare(sandbox: &mut Sandbox, post: &Post<'_>) -> Result<Option<StepProcess>, StageError> {
    sandbox.prepare(&PreparePart {
        profile: &post.profile.profile,
        hierarchies: post.hierarchies,
        limits: post.limits,
        scratch_dir: post.state.scratch.as_fd(),
        host_image: post.host_image,
    })?;
    if !post.host_image || !post.authority.is_root() {
        return Ok(None);
    }
    let plan = PreparePlan { user: StepUser::Build, writable: Vec::new(), measure: true };
    StepProcess::prepare(sandbox, plan).map(Some)
}

/// Runs the job and reports it.
fn work(
    post: &Post<'_>,
    mut sandbox: Sandbox,
    prepared: Result<Option<StepProcess>, StageError>,
    prepared_in: Duration,
    assignment: Assignment,
    descriptors: Vec<OwnedFd>,
) -> i32 {
    let Ok(dir) = post.dir.duplicate() else { return 70 };
    let Ok(writer) = dir.resume_events() else { return 70 };
    let mut recorder = Recorder::new(writer);
    let mut draft = Draft::new(&assignment, post.profile.sha256);
    draft.time("prepare", prepared_in);
    draft.tell_damage(&mut recorder);
    let job = match Job::take(&dir, assignment, descriptors, post.channel) {
        Ok(job) => Some(job),
        Err(message) => {
            draft.fail(&mut recorder, Failure::new(Code::Internal, message));
            None
        }
    };
    let taken = match job {
        Some(job) => attempt(post, &dir, &mut sandbox, prepared, job, &mut recorder, &mut draft),
        None => {
            // Its log pump is a process of the job's ids.
            drop(prepared);
            Taken::default()
        }
    };
    let begun = Moment::now();
    phase(&mut recorder, "destroy");
    let traces = sandbox.traces();
    let teardown = teardown::destroy(sandbox);
    draft.phase("destroy", begun);
    quarantine::settle(traces, Some(&draft.report.job), &teardown);
    let leases = publish(post, taken, teardown.is_clean(), &mut recorder, &mut draft);
    let report = draft.finish(teardown);
    let Ok(bytes) = serde_json::to_vec_pretty(&report) else { return 70 };
    let _ = recorder.event(&Event::Closed { at: clock::now(), outcome: report.outcome });
    // The journal decides; the file is a copy for readers.
    if recorder.report_durable(&bytes).is_err() || dir.publish("report.json", &bytes).is_err() {
        return 70;
    }
    // From here on it is the job's directory that keeps them: a collection that looked there before the report was in it
    // finds them used meanwhile.
    for lease in &leases {
        let _ = lease.touch();
    }
    // A launcher that is gone will be told by the report.
    let _ = post.channel.send_all(&FromSlot::Done, &[]);
    0
}

impl Job {
    /// Reads the spec, and gives the descriptors their places.
    fn take(
        dir: &JobDir,
        assignment: Assignment,
        descriptors: Vec<OwnedFd>,
        channel: &Channel,
    ) -> Result<Self, String> {
        let bytes = dir.read("spec.json", SPEC_BYTES_MAX).map_err(|e| format!("spec.json: {e}"))?;
        let spec: JobSpec = serde_json::from_slice(&bytes).map_err(|e| format!("spec.json: {e}"))?;
        let mut descriptors = descriptors.into_iter();
        let leash = assignment.leash;
        let lifetime = Lifetime::new(leash, if leash == Leash::None { None } else { descriptors.next() });
        let root = RootPlan::take(assignment.layers, &mut descriptors);
        let inputs = spec.inputs.iter().zip(&assignment.files).zip(descriptors);
        let inputs: Vec<InputMount> = inputs
            .map(|((input, file), tree)| InputMount {
                target: input.mount.clone(),
                tree,
                file: *file,
                writable: input.writable,
            })
            .collect();
        if inputs.len() != spec.inputs.len() {
            return Err("an input's tree is missing".to_owned());
        }
        let mut objects = Objects::default();
        while objects.len() < assignment.objects {
            match channel.receive_all() {
                Ok((ToSlot::Objects(names), leases)) if !names.is_empty() => objects.add(names, leases)?,
                _ => return Err("the launcher did not say what the job uses".to_owned()),
            }
        }
        let mounts = MountPlan { root, inputs };
        Ok(Self { spec, assignment, mounts, lifetime, objects, host: None, searched: Searched::default() })
    }

    /// Where steps may write besides the profile's directories.
    fn writable(&self) -> Vec<SandboxPath> {
        self.mounts.inputs.iter().filter(|i| i.writable).map(|i| i.target.clone()).collect()
    }

    fn prepare_plan(&self, measure: bool) -> PreparePlan {
        PreparePlan { user: self.spec.user, writable: self.writable(), measure }
    }
}

fn attempt(
    post: &Post<'_>,
    dir: &JobDir,
    sandbox: &mut Sandbox,
    prepared: Result<Option<StepProcess>, StageError>,
    mut job: Job,
    recorder: &mut Recorder,
    draft: &mut Draft,
) -> Taken {
    let _ = setpriority_process(None, 0);
    if matches!(job.spec.image, Image::Host) {
        job.host = Some(HostBefore::now());
    }
    let begun = Moment::now();
    phase(recorder, "sandbox");
    let first = prepared.and_then(|process| furnish(sandbox, &job, process));
    draft.phase("sandbox", begun);
    draft.stages(&sandbox.stages);
    draft.report.isolation.layers.extend(sandbox.layers.clone());
    draft.report.isolation.layers.insert("limits".to_owned(), limits_layer(sandbox));
    let first = match first {
        Ok(process) => {
            if let Some(failure) = missing_layer(draft, &post.profile.profile) {
                draft.fail(recorder, failure);
            }
            Some(process)
        }
        Err(error) => {
            draft.fail(recorder, Failure::new(error.code(), error.to_string()));
            None
        }
    };
    if first.is_some() {
        run_steps(sandbox, &mut job, first, recorder, draft);
        confirm_limits(sandbox, &post.profile.profile, recorder, draft);
    }
    tell_facts(post.channel, &job.spec.image, recorder, draft);
    let taken = take_outputs(post, sandbox, &mut job, dir, recorder, draft);
    if let Err(error) = sandbox.lost_bytes() {
        draft.report.outputs.clear();
        draft.fail(recorder, lost_bytes(&error));
    }
    read_back(&job, post.profile.profile.read_back, recorder, draft);
    if let packets @ 1.. = job.lifetime.ignored() {
        let _ = recorder.event(&Event::ControlIgnored { at: clock::now(), packets });
    }
    taken
}

/// Looks once more at what the job used, if there is something to claim of it.
fn read_back(job: &Job, policy: ReadPolicy, recorder: &mut Recorder, draft: &mut Draft) {
    if draft.report.failure.is_some() {
        return;
    }
    let begun = Moment::now();
    if matches!(job.spec.image, Image::Host) {
        reread_host(job.host.as_ref(), policy, recorder, draft);
    }
    job.objects.reread(policy, recorder, draft);
    draft.phase("read back", begun);
}

fn lost_bytes(error: &std::io::Error) -> Failure {
    Failure::new(Code::Internal, format!("the host's disk lost bytes of the job: {error}"))
}

/// Adds what the job needs. A process that was made before does, if nothing that it measured has changed since.
fn furnish(
    sandbox: &mut Sandbox,
    job: &Job,
    prepared: Option<StepProcess>,
) -> Result<StepProcess, StageError> {
    let other_user = job.spec.user != StepUser::Build;
    if let Some(process) = prepared {
        if job.mounts.inputs.is_empty() && !other_user {
            sandbox.furnish(&job.assignment.limits, &job.mounts)?;
            return Ok(process);
        }
        sandbox.discard_step()?;
        drop(process);
    }
    sandbox.furnish(&job.assignment.limits, &job.mounts)?;
    StepProcess::prepare(sandbox, job.prepare_plan(true))
}

/// What is to be said of the limits while they are as they were set.
pub(crate) fn limits_layer(sandbox: &Sandbox) -> Measured {
    let in_force = sandbox.cgroup().is_some();
    let detail = match (in_force, sandbox.authority.is_root()) {
        (true, _) => "memory without swap, processes and processor time by control group, read back",
        (false, true) => "no control group of the job's: only disk, log, file and time limits hold",
        (false, false) => {
            "an ordinary user has no control group of the job's: only disk, log, file and time limits hold"
        }
    };
    Measured { in_force, detail: detail.to_owned() }
}

/// What helps where somebody else sets limits of a job's, or takes controllers away.
const DELEGATE: &str = "whoever manages this host's control groups must leave the job's alone: give the runner a subtree \
                        of its own, as a unit with Delegate=yes has (systemd-run --scope -p Delegate=yes ampoule run)";

/// Reads the limits once more when no step runs any more: what was set at the start is no proof of what held.
fn confirm_limits(sandbox: &Sandbox, profile: &Profile, recorder: &mut Recorder, draft: &mut Draft) {
    let Err(detail) = sandbox.verify_limits() else { return };
    let layers = &mut draft.report.isolation.layers;
    layers.insert("limits".to_owned(), Measured { in_force: false, detail });
    if let Some(mut failure) = missing_layer(draft, profile) {
        failure.message = format!("{}; {DELEGATE}", failure.message);
        draft.fail(recorder, failure);
    }
}

/// The first layer that is demanded and not in force. Only what a profile says it can do without may be absent.
fn missing_layer(draft: &Draft, profile: &Profile) -> Option<Failure> {
    if fault::unmeasured_layers_are_allowed() {
        return None;
    }
    let missing = crate::admission::missing_layers(&draft.report.isolation, profile);
    let message = missing.first()?.clone();
    Some(Failure::new(Code::SandboxUnsupported, message))
}

/// How long a launcher may take to say what it gathered: it has had the whole job for it.
const FACTS_LIMIT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Takes over what the launcher gathered meanwhile; if it died or is stuck, the same gathered here.
fn tell_facts(channel: &Channel, image: &Image, recorder: &mut Recorder, draft: &mut Draft) {
    let facts = facts_in(channel, &FACTS_LIMIT).unwrap_or_else(|| Facts::gather(image));
    draft.report.host = facts.host;
    draft.report.runner_sha256 = facts.runner;
    match facts.image {
        Ok(image) => draft.report.image = Some(image),
        Err(error) => draft.fail(recorder, Failure::new(error.code(), error.to_string())),
    }
}

/// What the launcher says of the host, if it does so in time.
fn facts_in(channel: &Channel, limit: &Timespec) -> Option<Facts> {
    let mut ready = [PollFd::new(channel, PollFlags::IN)];
    let there = rustix::io::retry_on_intr(|| poll(&mut ready, Some(limit))).is_ok_and(|count| count > 0);
    match there.then(|| channel.receive_all()) {
        Some(Ok((ToSlot::Facts(facts), _))) => Some(facts),
        _ => None,
    }
}

fn run_steps(
    sandbox: &mut Sandbox,
    job: &mut Job,
    mut process: Option<StepProcess>,
    recorder: &mut Recorder,
    draft: &mut Draft,
) {
    let begun = Moment::now();
    phase(recorder, "steps");
    let deadline = begun.after(Duration::from_millis(job.assignment.limits.timeout_ms));
    let plans: Vec<StepPlan> = crate::environment::step_plans(&job.spec, job.assignment.limits.open_files);
    let again = job.prepare_plan(false);
    let last = u32::try_from(job.spec.steps.len()).unwrap_or(u32::MAX);
    for ((number, step), plan) in (0_u32..).zip(&job.spec.steps).zip(&plans) {
        if draft.report.failure.is_none()
            && let Some(wish) = job.lifetime.wish_now()
        {
            draft.fail(recorder, wish.failure());
        }
        if draft.report.failure.is_some() {
            draft.report.steps.push(steps::not_run(step));
            continue;
        }
        let named = (number, step);
        let secrets = secrets::await_values(&job.spec, named, &mut job.lifetime, deadline, recorder);
        let ready = secrets.and_then(|mut secrets| {
            let process = prepare_again(sandbox, process.take(), secrets.as_mut(), &again);
            process.map(|process| (process, secrets)).map_err(|e| Failure::new(e.code(), e.to_string()))
        });
        let (process, secrets) = match ready {
            Ok(ready) => ready,
            Err(failure) => {
                draft.fail(recorder, failure);
                draft.report.steps.push(steps::not_run(step));
                continue;
            }
        };
        let is_leaving = job.spec.outputs.is_empty() && number + 1 == last;
        let mut context = StepContext {
            sandbox,
            lifetime: &mut job.lifetime,
            recorder,
            log_bytes: job.assignment.limits.log_bytes,
            log_overflow: job.spec.log_overflow,
            deadline,
            secrets,
            is_last: is_leaving,
        };
        let (report, failed) = steps::run(&mut context, process, number, step, plan);
        let secrets = context.secrets.take();
        let searched = search_for(&job.spec, &mut job.searched, secrets.as_ref(), sandbox);
        let finished = Event::StepFinished { at: clock::now(), step: number, report: report.clone() };
        draft.step(report);
        if let Err(message) = recorder.event(&finished) {
            let failure = Failure::new(Code::Internal, message).in_step(number);
            draft.fail(recorder, failure);
        }
        for failed in failed.into_iter().chain(searched.err()) {
            draft.fail(recorder, failed);
        }
        if !is_leaving {
            hide(secrets, sandbox, recorder, draft);
        }
    }
    draft.phase("steps", begun);
}

/// The process of a step. One that was made before the step's secrets were there does not see them.
fn prepare_again(
    sandbox: &mut Sandbox,
    prepared: Option<StepProcess>,
    secrets: Option<&mut secrets::Given>,
    again: &PreparePlan,
) -> Result<StepProcess, StageError> {
    let Some(secrets) = secrets else {
        return prepared.map_or_else(|| StepProcess::prepare(sandbox, again.clone()), Ok);
    };
    let measure = prepared.is_some();
    if let Some(process) = prepared {
        sandbox.discard_step()?;
        drop(process);
    }
    secrets.show(sandbox, again.user)?;
    StepProcess::prepare(sandbox, PreparePlan { measure, ..again.clone() })
}

/// Takes a step's secrets away before anything else runs, and before outputs are taken out.
fn hide(secrets: Option<secrets::Given>, sandbox: &Sandbox, recorder: &mut Recorder, draft: &mut Draft) {
    if let Some(Err(error)) = secrets.map(|secrets| secrets.hide(sandbox)) {
        draft.fail(recorder, Failure::new(error.code(), error.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_a_launcher_that_is_stuck_or_dead_are_not_waited_for() {
        let (mine, theirs) = Channel::pair().unwrap();
        let limit = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        assert!(facts_in(&mine, &limit).is_none());
        theirs.send_all(&ToSlot::Facts(Facts::gather(&Image::Host)), &[]).unwrap();
        assert!(facts_in(&mine, &limit).is_some());
        drop(theirs);
        assert!(facts_in(&mine, &limit).is_none());
    }
}
