//! What an earlier run left: found by its intents, destroyed, and reported as aborted.

use crate::clock;
use crate::jobdir::{JobDir, JobLock, State};
use crate::report;
use ampoule_sandbox::{identity, teardown};
use ampoule_spec::wire::Recovered;
use ampoule_spec::{
    Code, Event, Failure, JobId, JobSpec, Outcome, REPORT_BYTES_MAX, RunReport, SPEC_BYTES_MAX, Sha256,
    StepEnd, StepReport, Usage,
};
use sha2::{Digest, Sha256 as Hasher};
use std::path::PathBuf;

/// The most jobs of one greeting, which has to fit a message; the next run gets the rest.
const RECOVERED_MAX: usize = 64;

/// Cleans up every job that nobody holds and returns them with their locks. A job that somebody holds is
/// alive and not touched.
pub(crate) fn recover(state: &State) -> (Vec<Recovered>, Vec<(JobId, JobLock)>) {
    let mut recovered = Vec::new();
    let mut locks = Vec::new();
    for id in state.jobs().unwrap_or_default() {
        if recovered.len() >= RECOVERED_MAX {
            break;
        }
        let Ok(Some((dir, lock))) = state.open_idle(&id) else { continue };
        let removed = if dir.has_report() {
            vec!["its report had not been signed".to_owned()]
        } else if dir.read_events().unwrap_or_default().is_empty() {
            // The crash came before the intent: nothing was made and nobody was told of the job.
            let _ = state.forget(&id);
            continue;
        } else {
            abort(&dir)
        };
        quarantine_if_unclean(&dir);
        recovered.push(Recovered { job: id.clone(), removed });
        locks.push((id, lock));
    }
    (recovered, locks)
}

/// Destroys what a dead supervisor's intent names and writes the report that it could not write. Returns
/// what was removed, for people.
pub(crate) fn abort(dir: &JobDir) -> Vec<String> {
    let events = dir.read_events().unwrap_or_default();
    let spec = dir.read("spec.json", SPEC_BYTES_MAX).unwrap_or_default();
    let mut report = report::blank(dir.id.clone(), Sha256::new(Hasher::digest(&spec).into()));
    let mut cgroups = Vec::new();
    let mut base = None;
    let mut started = None;
    for event in events {
        match event {
            Event::Admitted { at, uid_base, cgroups: named, .. } => {
                report.timeline.admitted = at;
                base = uid_base;
                cgroups = named.into_iter().map(PathBuf::from).collect();
            }
            Event::StepStarted { at, name, .. } => {
                report.timeline.started.get_or_insert(at);
                started = Some((at, name));
            }
            Event::StepFinished { at, report: step, .. } => {
                report.timeline.finished = Some(at);
                report.steps.push(step);
                started = None;
            }
            Event::Phase { .. } | Event::Failed { .. } | Event::Closed { .. } => {}
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
    if let Ok(job) = serde_json::from_slice::<JobSpec>(&spec) {
        report.steps.extend(job.steps.iter().skip(report.steps.len()).map(crate::steps::not_run));
    }
    let removed =
        cgroups.iter().filter(|path| path.exists()).map(|path| path.display().to_string()).collect();
    report.teardown = teardown::destroy_named(&cgroups, base);
    report.timeline.destroyed = Some(clock::now());
    let message = "the supervisor of the job died; its processes died with it".to_owned();
    report.failure = Some(Failure { code: Code::JobAborted, message, step: None, teardown: None });
    report.outcome = if report.teardown.is_clean() { Outcome::Aborted } else { Outcome::Quarantined };
    // What cannot be written now is found again by the next run.
    let _ = dir.write_report(&report);
    removed
}

/// Takes a job's block of ids out of use if its teardown was not clean, or is not known to have been.
pub(crate) fn quarantine_if_unclean(dir: &JobDir) {
    let report = dir.read("report.json", REPORT_BYTES_MAX).ok();
    let report = report.and_then(|bytes| serde_json::from_slice::<RunReport>(&bytes).ok());
    if report.is_some_and(|report| report.outcome != Outcome::Quarantined) {
        return;
    }
    let base = dir.read_events().unwrap_or_default().into_iter().find_map(|event| match event {
        Event::Admitted { uid_base, .. } => uid_base,
        _ => None,
    });
    if let Some(base) = base {
        // The report says the same; the mark keeps the ids from being used again.
        let _ = identity::quarantine(base);
    }
}
