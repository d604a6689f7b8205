//! A report in the making.

use crate::clock::{self, Moment};
use crate::recorder::Recorder;
use crate::slot::Assignment;
use ampoule_spec::{
    Code, Event, FORMAT, Failure, HostFacts, Isolation, JobId, Outcome, PhaseTime, RunReport, Sha256,
    StepReport, TeardownReport, Timeline,
};
use std::time::Duration;

/// The report and what is not known until the end.
pub(crate) struct Draft {
    pub(crate) report: RunReport,
}

/// Tells whoever follows the events which phase has begun. A failure shows up with the next event that has
/// to be written.
pub(crate) fn phase(recorder: &mut Recorder, name: &str) {
    let _ = recorder.event(&Event::Phase { at: clock::now(), phase: name.to_owned() });
}

/// A report of which nothing but the job is known.
pub(crate) fn blank(job: JobId, spec: Sha256) -> RunReport {
    RunReport {
        ampoule: FORMAT,
        job,
        spec,
        runner_version: env!("CARGO_PKG_VERSION").to_owned(),
        runner_sha256: None,
        outcome: Outcome::Aborted,
        failure: None,
        timeline: Timeline::default(),
        profile_sha256: None,
        limits: None,
        isolation: Isolation::default(),
        host: HostFacts::default(),
        image: None,
        steps: Vec::new(),
        outputs: Vec::new(),
        damaged: Vec::new(),
        reread: Vec::new(),
        teardown: TeardownReport::default(),
        phases: Vec::new(),
    }
}

impl Draft {
    pub(crate) fn new(assignment: &Assignment, profile: Sha256) -> Self {
        let mut report = blank(assignment.job.clone(), assignment.spec);
        report.timeline.admitted = assignment.at;
        report.profile_sha256 = Some(profile);
        report.limits = Some(assignment.limits.clone());
        report.damaged = assignment.damaged.clone();
        Self { report }
    }

    /// Records a failure; the first one is the job's.
    pub(crate) fn fail(&mut self, recorder: &mut Recorder, failure: Failure) {
        let event = Event::Failed { at: clock::now(), code: failure.code, message: failure.message.clone() };
        let _ = recorder.event(&event);
        self.report.failure.get_or_insert(failure);
    }

    /// Tells whoever follows what was found damaged while the job's inputs were looked up.
    pub(crate) fn tell_damage(&self, recorder: &mut Recorder) {
        for damage in &self.report.damaged {
            let _ = recorder.event(&Event::Damaged { at: clock::now(), damage: damage.clone() });
        }
    }

    pub(crate) fn step(&mut self, step: StepReport) {
        let timeline = &mut self.report.timeline;
        timeline.started = timeline.started.or(step.started);
        timeline.finished = step.finished.or(timeline.finished);
        self.report.steps.push(step);
    }

    /// Ends a phase that began at this moment.
    pub(crate) fn phase(&mut self, phase: &str, begun: Moment) {
        self.time(phase, begun.since());
    }

    /// Says how long something took.
    pub(crate) fn time(&mut self, phase: &str, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.report.phases.push(PhaseTime { phase: phase.to_owned(), micros });
    }

    pub(crate) fn stages(&mut self, stages: &[(String, u64)]) {
        let phases = stages
            .iter()
            .map(|(stage, micros)| PhaseTime { phase: format!("sandbox: {stage}"), micros: *micros });
        self.report.phases.extend(phases);
    }

    /// The report once everything is destroyed.
    pub(crate) fn finish(mut self, teardown: TeardownReport) -> RunReport {
        let report = &mut self.report;
        // The clock may have been set back meanwhile; a record never ends before it began.
        let latest = report.timeline.finished.unwrap_or(report.timeline.admitted);
        report.timeline.destroyed = Some(clock::now().max(latest));
        if !teardown.is_clean() {
            let message = format!("left behind: {}", teardown.left_behind());
            match &mut report.failure {
                Some(failure) => failure.teardown = Some(message),
                None => {
                    let code = Code::TeardownUnclean;
                    report.failure = Some(Failure::new(code, message));
                }
            }
            report.outcome = Outcome::Quarantined;
        } else {
            report.outcome = report.failure.as_ref().map_or(Outcome::Succeeded, |f| Outcome::of(f.code));
        }
        report.teardown = teardown;
        self.report
    }
}
