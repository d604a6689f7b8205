//! The daemon from the call that submits a job to its signed, durable record, beside crun and runc alone; and what it holds.

use super::contender::{Contender, NEEDED, Place};
use super::daemon::{Daemon, Held};
use super::verdict::{Verdict, Wanted, print};
use super::worker::Worker;
use super::{build_release, median};
use crate::shell;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Jobs in flight while the rate is measured.
const FLIGHT: usize = 4;
/// How long a contender works in a round of the rate.
const ROUND: Duration = Duration::from_secs(5);
/// Rounds of the rate, each of the daemon and of crun.
const ROUNDS: usize = 3;
/// Bytes of the log.
const LOG_BYTES: u64 = 1_000_000_000;
/// Readers of one job.
const WATCHERS: usize = 1000;
/// Between two jobs a launcher has time to make the next sandbox, as between two builds.
const PAUSE: Duration = Duration::from_millis(15);

/// Measures, prints a table and writes `target/bench/submit.json`. False if something that is wanted is missed.
pub(crate) fn run(root: &Path, runs: usize, programs: Option<PathBuf>) -> Result<bool> {
    ensure!(shell::is_root(), "needs root: the hermetic profile, crun and runc");
    shell::install(NEEDED);
    let folder = root.join("target/bench");
    fs::create_dir_all(&folder)?;
    let programs = programs.map_or_else(|| built(root), Ok)?;
    let place = Place::make(&folder, programs.clone())?;
    let mut daemon = Daemon::start(&programs, &folder)?;
    let mut verdicts = Vec::new();
    let fresh = daemon.held()?;
    let latency = latency(&place, &folder, &mut daemon, runs, &mut verdicts)?;
    let rest = daemon.held()?;
    let most = rest.agent_kib.max(fresh.agent_kib) + rest.launcher_kib.max(fresh.launcher_kib);
    wanted(&mut verdicts, "resident at rest, agent and launcher, MiB", mib(most), Wanted::AtMost(25.0));
    let rate = rate(&place, &folder, &mut daemon, &mut verdicts)?;
    let log = log(&mut daemon, &mut verdicts)?;
    let watchers = daemon.ask(&format!("watchers {WATCHERS}"))?;
    let whole = number(&watchers, "/whole")?;
    wanted(&mut verdicts, "watchers of one job that had all of it", whole, Wanted::AtLeast(WATCHERS as f64));
    let late = number(&watchers, "/late_seconds")?;
    wanted(&mut verdicts, "the last of them, seconds after the job's end", late, Wanted::AtMost(5.0));
    println!("watchers: {watchers}; agent then {:.1} MiB", mib(daemon.held()?.agent_kib));
    daemon.stop()?;
    let (passed, rows) = print(&verdicts);
    let all = json!({
        "bench": "submit", "latency": latency, "rate": rate, "log": log, "watchers": watchers, "verdicts": rows,
        "rest": { "fresh": fresh.to_json(), "after": rest.to_json() },
    });
    fs::write(folder.join("submit.json"), serde_json::to_string_pretty(&all)? + "\n")?;
    Ok(passed)
}

fn wanted(verdicts: &mut Vec<Verdict>, what: &str, reached: f64, wanted: Wanted) {
    verdicts.push(Verdict { what: what.to_owned(), reached, wanted });
}

/// This tree's programs, as they would be shipped.
fn built(root: &Path) -> Result<PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
    build_release(root, &["ampoule-runner", "ampoule-agent"])?;
    super::build_release_example(root, "ampoule-agent", "submit_load")?;
    Ok(metadata.target_directory.join("release").into_std_path_buf())
}

/// A number of what the client said.
fn number(said: &Value, pointer: &str) -> Result<f64> {
    said.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("no {pointer} in {said}"))
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// One job at a time, in turn with the others.
fn latency(
    place: &Place,
    folder: &Path,
    daemon: &mut Daemon,
    runs: usize,
    verdicts: &mut Vec<Verdict>,
) -> Result<Value> {
    let start = |contender: Contender| Worker::start(&contender.line(place)?, folder);
    let (mut crun, mut runc) = (start(Contender::Crun)?, start(Contender::Runc)?);
    let (mut ours, mut of_crun, mut of_runc) = (Vec::new(), Vec::new(), Vec::new());
    let warm_up = runs / 10 + 1;
    for round in 0..warm_up + runs {
        std::thread::sleep(PAUSE);
        let took = daemon.one()?;
        let others = (crun.once().context("crun")?.took, runc.once().context("runc")?.took);
        if round >= warm_up {
            ours.push(took.as_secs_f64());
            of_crun.push(others.0.as_secs_f64());
            of_runc.push(others.1.as_secs_f64());
        }
    }
    let (ours, of_crun, of_runc) = (median(ours), median(of_crun), median(of_runc));
    let ms = |seconds: f64| seconds * 1000.0;
    println!(
        "medians of {runs}: submit {:.1} ms, crun {:.1} ms, runc {:.1} ms",
        ms(ours),
        ms(of_crun),
        ms(of_runc)
    );
    wanted(verdicts, "submit to signed record, of crun's time alone", ours / of_crun, Wanted::AtMost(1.0));
    wanted(verdicts, "submit to signed record, of runc's time alone", ours / of_runc, Wanted::AtMost(0.4));
    Ok(json!({ "runs": runs, "submit_ms": ms(ours), "crun_ms": ms(of_crun), "runc_ms": ms(of_runc) }))
}

/// Some at a time, beside crun one after another.
fn rate(place: &Place, folder: &Path, daemon: &mut Daemon, verdicts: &mut Vec<Verdict>) -> Result<Value> {
    let mut line = Contender::Crun.line(place)?;
    line.argv.iter_mut().for_each(|word| *word = word.replace("{n}", "rate-{n}"));
    let mut crun = Worker::start(&line, folder)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let said = daemon.ask(&format!("rate {} {FLIGHT}", ROUND.as_secs()))?;
        ours.push(number(&said, "/jobs")? / number(&said, "/seconds")?);
        let (begun, mut count) = (Instant::now(), 0_u32);
        while begun.elapsed() < ROUND {
            crun.once()?;
            count += 1;
        }
        theirs.push(f64::from(count) / begun.elapsed().as_secs_f64());
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!("{FLIGHT} in flight: {ours:.1} jobs a second; crun in a loop {theirs:.1}");
    wanted(verdicts, "jobs a second, of a loop of crun", ours / theirs, Wanted::AtLeast(1.5));
    Ok(json!({ "flight": FLIGHT, "submit": ours, "crun": theirs }))
}

/// A log that one client reads, as it is written and again.
fn log(daemon: &mut Daemon, verdicts: &mut Vec<Verdict>) -> Result<Value> {
    let watch = super::usage::Watch::start(daemon.agent());
    let said = daemon.ask(&format!("log {LOG_BYTES}"))?;
    let peak = watch.stop().process;
    let speed = |which: &str| -> Result<f64> {
        let number = |key: &str| number(&said, &format!("/{which}/{key}"));
        ensure!(number("bytes")? as u64 == LOG_BYTES, "{which}: bytes are missing: {said}");
        Ok(number("bytes")? / number("seconds")? / 1e6)
    };
    wanted(
        verdicts,
        "a log of 1 GB to a client, MB/s, from its file",
        speed("again")?,
        Wanted::AtLeast(300.0),
    );
    println!("the same while it is written: {:.0} MB/s", speed("live")?);
    // The watch sees the most since the daemon began.
    wanted(verdicts, "resident meanwhile, agent, MiB", mib(peak), Wanted::AtMost(64.0));
    Ok(json!({ "again_mb_s": speed("again")?, "live_mb_s": speed("live")?, "agent_kib": peak }))
}

impl Held {
    fn to_json(self) -> Value {
        json!({ "agent_kib": self.agent_kib, "launcher_kib": self.launcher_kib, "all_pss_kib": self.all_pss_kib })
    }
}
