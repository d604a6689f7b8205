//! `ampoule run`.

use crate::args::{HostArgs, RunArgs};
use crate::bar;
use crate::failure::Failed;
use crate::show::{self, LogLines};
use crate::sources;
use ampoule_agent::jobfile::{self, JobPlan, QuickJob, quick_job};
use ampoule_agent::local::{
    self, Cancel, Completed, Note, Options, Progress, ReleasedOutput, SigningKey, Watch,
};
use ampoule_evidence::Authority;
use ampoule_spec::{Code, Event, LogChunk, Name, Outcome, OutputForm, StepEnd, StepReport, Stream};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Runs a job and returns the exit status.
pub(crate) fn run(args: RunArgs) -> Result<u8, Failed> {
    let plan = plan(&args)?;
    let authority = Authority::parse(&args.authority)
        .map_err(|e| Failed::new(Code::Usage, format!("--authority: {e}")))?;
    let options = Options {
        runner: local::find_runner()?,
        state: state_dir(&args.host)?,
        out: args.out.clone(),
        profiles: args.host.profiles.clone(),
        key: args.key.clone().map_or(SigningKey::Development, SigningKey::File),
        authority,
        sources: sources::policy(&args.sources)?,
        watch: watch(&args),
        registry_auth: args.registry_auth.clone(),
    };
    let cancel = Cancel::default();
    listen_for_signals(cancel.clone())?;
    let mut printer = Printer::new(&args);
    let completed = local::run(plan, &options, &cancel, &mut |note| printer.note(note));
    bar::clear();
    let completed = completed?;
    printer.finish(&completed);
    Ok(completed.exit())
}

/// Who is told how far something is: a program, a person at a terminal, or nobody.
fn watch(args: &RunArgs) -> Watch {
    if args.json {
        Watch::new(|progress| show::json(&progress_json(progress)))
    } else if bar::can_be_drawn() {
        Watch::new(bar::show)
    } else {
        Watch::default()
    }
}

fn progress_json(progress: &Progress) -> Value {
    let Progress { work, what, bytes, total, ended } = progress;
    json!({
        "event": "progress", "work": work.as_str(), "what": what, "bytes": bytes, "total": total, "ended": ended,
    })
}

fn plan(args: &RunArgs) -> Result<JobPlan, Failed> {
    if let Some(path) = &args.job {
        let file = jobfile::load(path)?;
        let base = path.parent().unwrap_or(Path::new(""));
        let mut plan = file.plan(base, &params(&args.params)?)?;
        if let Some(profile) = &args.profile {
            plan.profile =
                Name::parse(profile).map_err(|e| Failed::new(Code::Usage, format!("--profile: {e}")))?;
        }
        return Ok(plan);
    }
    let dir = std::env::current_dir().map_err(|e| Failed::file(Path::new("."), &e))?;
    // The default is what this user can have; the attestation and the last line say which it was.
    let profile = args.profile.as_deref().unwrap_or(default_profile());
    let ask = QuickJob {
        argv: &args.argv,
        outputs: &args.outputs,
        image: args.image.as_deref(),
        profile: Some(profile),
        dir: &dir,
    };
    Ok(quick_job(&ask)?)
}

/// Hermetic for root, dev for others, who cannot have the rest.
pub(crate) fn default_profile() -> &'static str {
    if rustix::process::geteuid().is_root() { "hermetic" } else { "dev" }
}

/// The parameters; one given twice is a mistake.
pub(crate) fn params(pairs: &[(String, String)]) -> Result<BTreeMap<String, String>, Failed> {
    let mut params = BTreeMap::new();
    for (name, value) in pairs {
        if params.insert(name.clone(), value.clone()).is_some() {
            return Err(Failed::new(Code::Usage, format!("--param {name} is given twice")));
        }
    }
    Ok(params)
}

/// The state directory: as asked, or the place for this user.
pub(crate) fn state_dir(args: &HostArgs) -> Result<PathBuf, Failed> {
    if let Some(state) = &args.state {
        return Ok(state.clone());
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/ampoule"));
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("ampoule"))
        .ok_or_else(|| Failed::new(Code::Usage, "no home directory is known; name a directory with --state"))
}

/// The first SIGINT or SIGTERM cancels the job and waits for its record; the second leaves at once.
fn listen_for_signals(cancel: Cancel) -> Result<(), Failed> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = |e: std::io::Error| Failed::new(Code::Internal, format!("signals cannot be received: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt()).map_err(failed)?, signal(SignalKind::terminate()).map_err(failed)?)
    };
    let listen = move || {
        runtime.block_on(async {
            for count in 0_u8.. {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if count > 0 {
                    show::line("ampoule: leaving; the next run signs the job's record");
                    bar::clear();
                    std::process::exit(i32::from(Code::JobCancelled.exit() as u8));
                }
                show::line("ampoule: cancelling; once more to leave without waiting");
                cancel.cancel();
            }
        });
    };
    let started = std::thread::Builder::new().name("signals".to_owned()).spawn(listen);
    started
        .map(drop)
        .map_err(|e| Failed::new(Code::AdmissionBusy, format!("a thread cannot be started: {e}")))
}

/// Tells what happens, to a person or to a program.
struct Printer {
    json: bool,
    raw: bool,
    lines: LogLines,
}

impl Printer {
    fn new(args: &RunArgs) -> Self {
        Self { json: args.json, raw: args.raw, lines: LogLines::default() }
    }

    fn note(&mut self, note: Note) {
        if self.json {
            if let Some(value) = as_json(&note) {
                show::json(&value);
            }
            return;
        }
        match note {
            Note::Recovered { job, removed, outcome, record } => {
                let removed =
                    if removed.is_empty() { "nothing was left of it".to_owned() } else { removed.join(", ") };
                match outcome {
                    Some(outcome) => show::line(&format!(
                        "recovered job {job}: {}; found: {removed}; its signed record is in {}",
                        outcome.as_str(),
                        record.display()
                    )),
                    None => show::line(&format!("recovered job {job}, but its record cannot be signed now")),
                }
            }
            Note::Importing { what } => show::line(&format!("importing {what}")),
            Note::PassedOver { input, passed } => {
                show::line(&format!("input {input}: passed over: {} [{}]", passed.reason, passed.code));
            }
            Note::Admitted { job } => show::line(&format!("job {job} admitted")),
            Note::LauncherLost => show::line("ampoule: the launcher died; the job is being ended"),
            Note::Log(chunk) => self.log(&chunk),
            Note::Event(event) => self.event(*event),
        }
    }

    fn log(&mut self, chunk: &LogChunk) {
        if !self.raw {
            for line in self.lines.take(chunk) {
                show::escaped(&line);
            }
            return;
        }
        match chunk.stream {
            Stream::Stdout => show::bytes(&chunk.bytes),
            Stream::Stderr => {
                let _ = std::io::stderr().lock().write_all(&chunk.bytes);
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::StepStarted { step, name, .. } => {
                show::line(&format!("step {name} started"));
                self.lines.name(step, name.to_string());
            }
            Event::StepFinished { step, report, .. } => {
                for line in self.lines.finish(step) {
                    show::escaped(&line);
                }
                show::line(&step_line(&report));
            }
            Event::Damaged { damage, .. } => show::line(&format!(
                "the store's object {} was damaged ({}); it is in quarantine, and what the job uses was taken in anew",
                damage.object, damage.reason
            )),
            Event::Failed { code, message, .. } => show::line(&format!("failed: {message} [{code}]")),
            // A job of this command has none.
            Event::StepReady { .. }
            | Event::Intent { .. }
            | Event::Admitted { .. }
            | Event::Phase { .. }
            | Event::ControlIgnored { .. }
            | Event::Closed { .. } => {}
        }
    }

    fn finish(&self, done: &Completed) {
        if self.json {
            let outputs: Vec<Value> = done
                .outputs
                .iter()
                .map(|o| {
                    let form = o.form.as_str();
                    json!({"name": o.name, "form": form, "bytes": o.bytes, "entries": o.entries, "sha256": o.sha256})
                })
                .collect();
            show::json(&json!({
                "event": "result", "job": done.job, "outcome": done.outcome, "exit": done.exit(),
                "code": done.failure.as_ref().map(|f| f.code), "out": done.out, "outputs": outputs,
                "builder": done.builder, "public_key": done.public_key, "provenance": done.provenance,
            }));
            return;
        }
        for ReleasedOutput { name, form, bytes, entries, sha256 } in &done.outputs {
            let what = match (form, entries) {
                (OutputForm::Tree, Some(entries)) => format!("a tree of {entries} entries, "),
                (OutputForm::TarZst, Some(entries)) => format!("{entries} entries in "),
                _ => String::new(),
            };
            show::line(&format!("output {name}: {what}{bytes} bytes, sha256:{sha256}"));
        }
        let code = done.failure.as_ref().map(|f| format!(" [{}]", f.code)).unwrap_or_default();
        show::line(&format!("job {}{code}; builder {}", done.outcome.as_str(), done.builder));
        if done.outcome == Outcome::Succeeded && !done.provenance {
            let why = match &done.failure {
                Some(failure) => failure.message.as_str(),
                None => "the job declares no artifact",
            };
            show::line(&format!("no provenance: {why}"));
        }
        show::line(&format!("outputs and evidence: {}", done.out.display()));
        show::line(&format!("public key: {}", done.public_key.display()));
    }
}

fn step_line(report: &StepReport) -> String {
    let end = match &report.end {
        StepEnd::Exited { code } => format!("exited with {code}"),
        StepEnd::Signalled { signal } => format!("ended by signal {signal}"),
        StepEnd::TimedOut => "timed out".to_owned(),
        StepEnd::KilledByLimit { code } => format!("killed by {code}"),
        StepEnd::Cancelled => "cancelled".to_owned(),
        StepEnd::NotStarted { reason } => format!("not started: {reason}"),
        StepEnd::Aborted => "aborted".to_owned(),
        StepEnd::NotRun => "not run".to_owned(),
    };
    let wall = match (report.started, report.finished) {
        (Some(started), Some(finished)) => finished.0.saturating_sub(started.0),
        _ => 0,
    };
    let survivors = match report.survivors_killed {
        0 => String::new(),
        count => format!(", {count} processes outlived it and were killed"),
    };
    format!(
        "step {} {end} after {}.{:02} s, cpu {}.{:02} s, peak {} MiB{survivors}",
        report.name,
        wall / 1_000_000_000,
        wall / 10_000_000 % 100,
        report.usage.cpu_micros / 1_000_000,
        report.usage.cpu_micros / 10_000 % 100,
        report.usage.memory_peak_bytes >> 20,
    )
}

fn as_json(note: &Note) -> Option<Value> {
    Some(match note {
        Note::Recovered { job, removed, outcome, record } => {
            json!({"event": "recovered", "job": job, "removed": removed, "outcome": outcome, "record": record})
        }
        Note::Importing { what } => json!({"event": "importing", "what": what}),
        Note::PassedOver { input, passed } => {
            json!({"event": "passed_over", "input": input, "url": passed.url, "code": passed.code, "message": passed.reason})
        }
        // The job's own event says the same and more.
        Note::Admitted { .. } => return None,
        // What is about to exist on the host is the launcher's to know, after a crash.
        Note::Event(event) if matches!(**event, Event::Intent { .. }) => return None,
        Note::LauncherLost => json!({"event": "launcher_lost"}),
        Note::Event(event) => serde_json::to_value(event).ok()?,
        Note::Log(chunk) => json!({
            "event": "log", "step": chunk.step, "stream": chunk.stream, "at": chunk.at, "offset": chunk.offset,
            "text": String::from_utf8_lossy(&chunk.bytes),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_spec::{JobId, Sha256, SlotId, UnixNanos};

    const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    #[test]
    fn as_json_passes_an_event_on_and_keeps_the_intent_back() {
        let at = UnixNanos(1);
        let intent = Event::Intent {
            at,
            slot: SlotId::parse(ID).unwrap(),
            uid_base: Some(1_879_113_728),
            cgroups: vec!["/sys/fs/cgroup/ampoule-x".to_owned()],
        };
        assert_eq!(as_json(&Note::Event(Box::new(intent))), None);
        let job = JobId::parse(ID).unwrap();
        let admitted = Event::Admitted { at, job, spec: Sha256::new([0; 32]) };
        let shown = as_json(&Note::Event(Box::new(admitted))).unwrap();
        assert_eq!(shown, json!({"event": "admitted", "at": 1, "job": ID, "spec": "0".repeat(64)}));
    }
}
