//! Telling what happens to a daemon's job, to a person or to a program.

use crate::show::{self, LogLines};
use ampoule_agent::client::Told;
use ampoule_proto::v1 as proto;
use ampoule_spec::Stream;
use prost_types::Timestamp;
use serde_json::{Value, json};
use std::io::Write;

/// Tells of one job.
pub(super) struct Printer {
    pub(super) json: bool,
    /// Whether log bytes are passed through.
    pub(super) raw: bool,
    /// Whether anything but logs is told.
    pub(super) events: bool,
    lines: LogLines,
}

impl Printer {
    pub(super) fn new(json: bool) -> Self {
        Self { json, raw: false, events: true, lines: LogLines::default() }
    }

    /// Logs alone, to stdout if raw.
    pub(super) fn of_logs(raw: bool) -> Self {
        Self { json: false, raw, events: false, lines: LogLines::default() }
    }

    pub(super) fn tell(&mut self, told: Told) {
        if self.json {
            return show::json(&as_json(&told));
        }
        match told {
            Told::Log(chunk) if self.raw => match chunk.stream {
                Stream::Stdout => show::bytes(&chunk.bytes),
                Stream::Stderr => {
                    let _ = std::io::stderr().lock().write_all(&chunk.bytes);
                }
            },
            Told::Log(chunk) => self.lines.take(&chunk).iter().for_each(|line| show::escaped(line)),
            Told::Step(step) => self.step(&step),
            Told::Lost(reason) => show::line(&format!("ampoule: {reason}; trying again")),
            _ if !self.events => {}
            Told::Job(job) => show::line(&state_line(&job)),
            Told::Phase(_) => {}
            Told::Progress(what) => show::line(&format!("fetching {what}")),
        }
    }

    fn step(&mut self, step: &proto::StepEvent) {
        let said = match &step.end {
            None => {
                // The name goes before every line of the step's: it is escaped once, here.
                self.lines.name(step.index, ampoule_evidence::escape(&step.name).replace("##", "# #"));
                "started".to_owned()
            }
            Some(end) => {
                self.lines.finish(step.index).iter().for_each(|line| show::escaped(line));
                match (end.exit_code, end.signal) {
                    (Some(code), _) => format!("exited with {code}"),
                    (None, Some(signal)) => format!("ended by signal {signal}"),
                    (None, None) => "ended".to_owned(),
                }
            }
        };
        if self.events {
            show::line(&format!("step {} {said}", step.name));
        }
    }

    /// What was left without a line feed.
    pub(super) fn rest(&mut self) {
        self.lines.rest().iter().for_each(|line| show::escaped(line));
    }
}

fn state_line(job: &proto::Job) -> String {
    let waits = match job.state() {
        proto::JobState::Queued => format!(", {} ahead", job.queue_position),
        _ => String::new(),
    };
    let wish = if job.cancel_requested { ", its end was asked for" } else { "" };
    format!("job {} {}{waits}{wish}", job.id, state(job))
}

/// A job's state as a word.
pub(super) fn state(job: &proto::Job) -> String {
    word(job.state().as_str_name(), "JOB_STATE_")
}

/// A job's outcome as a word; none if it has none.
pub(super) fn outcome(job: &proto::Job) -> Option<String> {
    (job.outcome() != proto::JobOutcome::Unspecified)
        .then(|| word(job.outcome().as_str_name(), "JOB_OUTCOME_"))
}

fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

pub(super) fn time(time: Option<&Timestamp>) -> Value {
    time.map_or(Value::Null, |time| time.to_string().into())
}

/// A job for programs.
pub(super) fn job_json(job: &proto::Job) -> Value {
    let outputs = job.outputs.iter().map(|output| {
        json!({
            "name": output.name, "form": word(output.form().as_str_name(), "OUTPUT_FORM_"), "bytes": output.size_bytes,
            "sha256": output.sha256, "entries": output.entries,
        })
    });
    json!({
        "id": job.id, "project": job.project, "name": job.name, "profile": job.profile, "attempt": job.attempt,
        "state": state(job), "outcome": outcome(job), "code": some(&job.code), "fault": some(&job.fault),
        "message": some(&job.message), "retryable": job.retryable, "exit": job.exit_code, "caller": job.caller,
        "key": job.idempotency_key, "submitted": time(job.submitted_at.as_ref()),
        "started": time(job.started_at.as_ref()), "finished": time(job.finished_at.as_ref()), "labels": job.labels,
        "priority": job.priority, "cancel_requested": job.cancel_requested,
        "outputs": outputs.collect::<Vec<_>>(), "attestation_sha256": some(&job.attestation_sha256),
    })
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

fn as_json(told: &Told) -> Value {
    match told {
        Told::Job(job) => json!({"event": "job", "job": job_json(job)}),
        Told::Phase(phase) => json!({"event": "phase", "phase": phase}),
        Told::Step(step) => match &step.end {
            None => json!({"event": "step_started", "step": step.index, "name": step.name}),
            Some(end) => json!({
                "event": "step_finished", "step": step.index, "name": step.name, "exit": end.exit_code, "signal": end.signal,
            }),
        },
        Told::Log(chunk) => json!({
            "event": "log", "step": chunk.step, "stream": chunk.stream, "offset": chunk.offset,
            "text": String::from_utf8_lossy(&chunk.bytes),
        }),
        Told::Progress(what) => json!({"event": "fetching", "what": what}),
        Told::Lost(reason) => json!({"event": "lost", "message": reason}),
    }
}
