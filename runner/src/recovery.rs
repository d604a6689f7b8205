//! Jobs and slots whose supervisor is dead: what an intent names is destroyed, and a job that was admitted gets its
//! report.

use crate::clock::{self, Moment};
use crate::jobdir::{JobDir, JobLock, State};
use crate::quarantine;
use crate::record::Record;
use crate::recorder::Recorder;
use crate::report;
use ampoule_sandbox::teardown::{self, Traces};
use ampoule_spec::wire::Recovered;
use ampoule_spec::{
    Code, Event, Failure, JobId, JobSpec, Outcome, RunReport, Sha256, StepEnd, StepReport, TeardownReport,
    Usage,
};
use sha2::{Digest, Sha256 as Hasher};
use std::time::Duration;

/// How many jobs one start recovers: more would not fit into the greeting. The rest follow at the next start.
const RECOVERED_MAX: usize = 200;

/// Cleans up after earlier runs: every directory that nobody holds. Jobs that were admitted are returned, to be
/// signed, with their locks.
pub(crate) fn recover(state: &State) -> (Vec<Recovered>, Vec<(JobId, JobLock)>) {
    for name in state.slots().unwrap_or_default() {
        if let Ok(Some((dir, _lock))) = state.open_idle(&name) {
            let _ = discard(state, &dir);
        }
    }
    let mut recovered = Vec::new();
    let mut locks = Vec::new();
    for id in state.jobs().unwrap_or_default() {
        if recovered.len() >= RECOVERED_MAX {
            break;
        }
        let Ok(Some((dir, lock))) = state.open_idle(id.as_str()) else { continue };
        let Ok(record) = dir.record() else { continue };
        if !record.admitted {
            // The crash came before anybody was told of the job.
            let _ = discard(state, &dir);
            continue;
        }
        let removed = match record.report {
            Some(_) => vec!["its report had not been signed".to_owned()],
            None => abort(&dir, &record),
        };
        if publish(&dir).is_err() {
            continue;
        }
        recovered.push(Recovered { job: id.clone(), removed });
        locks.push((id, lock));
    }
    (recovered, locks)
}

/// How a job without a connection was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Somebody sees to it.
    Alive,
    /// Its report can be read.
    Reported,
    /// Its report cannot be written now.
    Unreported,
    /// It was never admitted, or is forgotten: there is none.
    Nothing,
}

/// Whether that is because the job has no directory, or can never have one.
pub(crate) fn is_no_job(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// Sees that a job which nobody holds has its report, whatever its supervisor came to.
pub(crate) fn settle(state: &State, job: &JobId) -> Found {
    match state.open_idle(job.as_str()) {
        Err(error) if is_no_job(&error) => Found::Nothing,
        Err(_) => Found::Unreported,
        Ok(None) => Found::Alive,
        Ok(Some((dir, _lock))) => match dir.record() {
            // The crash came before anybody was told of the job.
            Ok(record) if !record.admitted => {
                let _ = discard(state, &dir);
                Found::Nothing
            }
            _ => {
                end(&dir);
                if dir.is_reported() { Found::Reported } else { Found::Unreported }
            }
        },
    }
}

/// How long somebody else is waited for who sees to a job.
const OTHERS_LIMIT: Duration = Duration::from_secs(30);
/// How often he is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Sees to a job whose supervisor has ended, or waits for whoever does. Whether there is nothing more to be done.
pub(crate) fn see_to(state: &State, job: &JobId) -> bool {
    if state.look_into(job.as_str()).is_ok_and(|dir| dir.has_report()) {
        return true;
    }
    let until = Moment::now().after(OTHERS_LIMIT);
    loop {
        match settle(state, job) {
            Found::Reported | Found::Nothing => return true,
            Found::Unreported => return false,
            Found::Alive if until.left().is_zero() => return false,
            Found::Alive => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Sees to everything that nobody holds: directories that were being removed, slots without a job, and every job without
/// a report. `after_boot`: also those whose report a cut of power has emptied.
pub(crate) fn scavenge(state: &State, after_boot: bool) {
    let _ = state.sweep();
    for name in state.slots().unwrap_or_default() {
        if let Ok(Some((dir, _lock))) = state.open_idle(&name) {
            let _ = discard(state, &dir);
        }
    }
    for job in state.jobs().unwrap_or_default() {
        let Ok(dir) = state.look_into(job.as_str()) else { continue };
        let is_reported = if after_boot { dir.is_reported() } else { dir.has_report() };
        if !is_reported {
            settle(state, &job);
        }
    }
}

/// Destroys what the intent of a directory without a job names, and removes the directory.
pub(crate) fn discard(state: &State, dir: &JobDir) -> std::io::Result<()> {
    if let Some(intent) = dir.record()?.intent {
        destroy(&intent, None);
    }
    state.forget(dir.name())
}

/// Ends a job whose supervisor has died, unless it has its report.
pub(crate) fn end(dir: &JobDir) {
    if let Ok(record) = dir.record() {
        if record.report.is_none() {
            abort(dir, &record);
        }
        // What cannot be written now is found again by the next run.
        let _ = publish(dir);
    }
}

fn destroy(intent: &Traces, job: Option<&JobId>) -> TeardownReport {
    let report = teardown::destroy_named(intent);
    quarantine::settle(intent.clone(), job, &report);
    report
}

/// Makes sure that readers find what stands in the events.
fn publish(dir: &JobDir) -> std::io::Result<()> {
    let record = dir.record()?;
    if let Some(spec) = &record.spec {
        dir.publish_again("spec.json", spec)?;
    }
    match &record.report {
        Some(report) => dir.publish_again("report.json", report),
        None => Err(std::io::ErrorKind::NotFound.into()),
    }
}

/// Destroys what a dead supervisor's intent names and writes the report that it could not write. Returns
/// what was removed, for people.
fn abort(dir: &JobDir, record: &Record) -> Vec<String> {
    let spec = record.spec.clone().unwrap_or_default();
    let Ok(job) = JobId::parse(dir.name()) else { return Vec::new() };
    let mut report = report::blank(job.clone(), Sha256::new(Hasher::digest(&spec).into()));
    tell_steps(&mut report, record, serde_json::from_slice::<JobSpec>(&spec).ok().as_ref());
    let mut removed = Vec::new();
    if let Some(intent) = &record.intent {
        let there = intent.cgroups.iter().filter(|path| path.exists());
        removed.extend(there.map(|path| path.display().to_string()));
        report.teardown = destroy(intent, Some(&job));
    }
    report.timeline.destroyed = Some(clock::now());
    let salvaged = dir.salvage_events();
    let mut message = "the supervisor of the job died; its processes died with it".to_owned();
    if let Ok((_, cut @ 1..)) = &salvaged {
        message.push_str(&format!("; the last {cut} bytes of its record were cut short or damaged"));
    }
    report.failure = Some(Failure::new(Code::JobAborted, message));
    report.outcome = if report.teardown.is_clean() { Outcome::Aborted } else { Outcome::Quarantined };
    // What cannot be written now is found again by the next run.
    if let (Ok((writer, _)), Ok(bytes)) = (salvaged, serde_json::to_vec_pretty(&report)) {
        let _ = Recorder::new(writer).report_durable(&bytes);
    }
    removed
}

/// What is known of the steps.
fn tell_steps(report: &mut RunReport, record: &Record, job: Option<&JobSpec>) {
    let mut started = None;
    for event in &record.events {
        match event {
            Event::Admitted { at, .. } => report.timeline.admitted = *at,
            Event::StepStarted { at, name, .. } => {
                report.timeline.started.get_or_insert(*at);
                started = Some((*at, name.clone()));
            }
            Event::StepFinished { at, report: step, .. } => {
                report.timeline.finished = Some(*at);
                report.steps.push(step.clone());
                started = None;
            }
            Event::Damaged { damage, .. } => report.damaged.push(damage.clone()),
            Event::Intent { .. }
            | Event::Phase { .. }
            | Event::StepReady { .. }
            | Event::Failed { .. }
            | Event::ControlIgnored { .. }
            | Event::Closed { .. } => {}
        }
    }
    if let Some((at, name)) = started {
        report.steps.push(StepReport {
            name,
            end: StepEnd::Aborted,
            started: Some(at),
            finished: None,
            usage: Usage::default(),
            logs: Vec::new(),
            survivors_killed: 0,
        });
    }
    if let Some(job) = job {
        report.steps.extend(job.steps.iter().skip(report.steps.len()).map(crate::steps::not_run));
    }
}
