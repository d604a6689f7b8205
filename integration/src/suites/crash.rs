//! `kill -9` in the middle of a step: nothing of the job runs on, and its record says that it was aborted.

use super::teardown::{every_point, groups_of_live, slot_of_job};
use super::{exec, input, output, probe, sh, with_probe};
use crate::check::{Ending, Ran, equal, json, statement, verify};
use crate::harness::Test;
use crate::lab::{Lab, Live, tree};
use crate::procs::{self, Cast, patience};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::both("client_killed_ends_the_job", |lab| killed(lab, &[|c| c.client])),
    Test::both("launcher_killed_ends_the_job", |lab| killed(lab, &[|c| c.launcher])),
    Test::both("supervisor_killed_ends_the_job", |lab| killed(lab, &[|c| c.supervisor])),
    Test::both("init_killed_ends_the_job", |lab| killed(lab, &[|c| c.init])),
    Test::both("log_pump_killed_ends_the_job", |lab| killed(lab, &[|c| c.pump])),
    Test::both("client_and_launcher_killed_end_the_job", |lab| killed(lab, &[|c| c.client, |c| c.launcher])),
    Test::both("launcher_and_supervisor_killed_end_the_job", |lab| {
        killed(lab, &[|c| c.launcher, |c| c.supervisor])
    }),
    Test::both("everything_killed_ends_the_job", |lab| {
        killed(lab, &[|c| c.client, |c| c.launcher, |c| c.supervisor])
    }),
    Test::both("daemons_of_a_killed_job_die_with_it", daemons),
    Test::both("killed_import_is_swept_by_the_next_run", import),
    Test::both("second_run_beside_a_live_one_touches_nothing_of_it", beside),
    Test::both("recovery_beside_a_live_run_takes_only_the_dead_one", recovery_beside),
    Test::both("steps_before_the_crash_are_in_the_record", earlier_steps),
    Test::both("damaged_record_is_signed_up_to_the_damage", damaged),
    Test::root("ids_of_a_killed_job_are_nobodys_until_it_is_recovered", ids),
    Test::root("supervisor_killed_at_any_point_leaves_nothing", |lab| {
        every_point(lab, "supervisor", "die", 60)
    }),
    Test::root("init_killed_at_any_point_leaves_nothing", |lab| every_point(lab, "init", "die", 30)),
    Test::root("step_process_killed_at_any_point_leaves_nothing", |lab| every_point(lab, "step", "die", 15)),
    Test::root("launcher_killed_at_any_point_leaves_nothing", |lab| every_point(lab, "launcher", "die", 8)),
    Test::root("import_worker_killed_at_any_point_leaves_nothing", |lab| {
        every_point(lab, "import", "die", 2)
    }),
    Test::root("holder_of_namespaces_killed_at_any_point_leaves_nothing", |lab| {
        every_point(lab, "holder", "die", 1)
    }),
    Test::both("log_pump_killed_at_any_point_leaves_nothing", |lab| every_point(lab, "pump", "die", 1)),
    Test::both("compressor_killed_at_any_point_leaves_nothing", |lab| {
        every_point(lab, "compressor", "die", 1)
    }),
    Test::user("ordinary_users_init_killed_at_any_point_leaves_nothing", |lab| {
        every_point(lab, "init", "die", 30)
    }),
];

/// What has to be gone, and how soon.
const SOON: Duration = Duration::from_secs(5);
const SUCCEEDED: Ending = Ending("succeeded", "", 0);

fn stopped(marker: &str) -> Result<()> {
    let what = format!("no process of the job runs: {marker}");
    procs::eventually(SOON, &what, || procs::with_args(marker).is_empty())
}

/// Starts a job whose step sleeps, and finds its processes.
fn sleeping<'l>(lab: &'l Lab<'_>, marker: &str) -> Result<(Live<'l>, Cast)> {
    let job = lab.job(&(sh("first", "echo done") + &exec("sleep", &["sleep", marker])))?;
    let mut live = lab.run(&job).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    let cast = Cast::of(live.pid())?;
    if lab.is_root() {
        let step = procs::with_args(&format!("sleep {marker}"));
        ensure!(step.iter().any(procs::Process::is_of_a_job), "the step has no id of a job's: {step:?}");
    }
    Ok((live, cast))
}

fn killed(lab: &Lab, victims: &[fn(&Cast) -> i32]) -> Result<()> {
    let marker = lab.marker();
    let (live, cast) = sleeping(lab, &marker)?;
    let id = only_job(lab)?;
    let groups = if lab.is_root() { groups_of_live(lab)? } else { Vec::new() };
    for victim in victims {
        procs::kill(victim(&cast))?;
    }
    stopped(&format!("sleep {marker}"))?;
    let client_died = victims.iter().any(|v| v(&cast) == cast.client);
    let ran = live.end()?;
    runners_end(lab)?;
    let told = if client_died { released_nothing(&ran) } else { released_as_aborted(ran) };
    // A client that died, or a launcher that did, leaves the job's directory for the next run, which comes
    // whatever was found: it cleans up.
    let pending = !tree(&lab.state().join("jobs"))?.is_empty();
    let next = lab.run_job(&sh("a", "echo next"))?.ended(&SUCCEEDED)?;
    told?;
    ensure!(pending || !client_died, "the job is gone without a record");
    if pending {
        let next = next.says(&[&format!("recovered job {id}: aborted")])?;
        is_aborted(&next, &lab.state().join("records").join(&id))?;
    } else {
        ensure!(!next.stderr.contains("recovered"), "recovered although nothing was left:\n{}", next.stderr);
    }
    let left: Vec<_> = groups.iter().filter(|group| group.exists()).collect();
    ensure!(left.is_empty(), "control groups are left: {left:?}");
    let third = lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?;
    ensure!(!third.stderr.contains("recovered"), "recovered twice:\n{}", third.stderr);
    Ok(())
}

/// The runner's processes go on for a moment: they report.
pub(super) fn runners_end(lab: &Lab) -> Result<()> {
    let state = lab.state().display().to_string();
    let runs = || procs::with_args(&state).iter().any(procs::Process::is_runner);
    procs::eventually(Duration::from_secs(15), "no process of the runner is left", || !runs())
}

fn released_nothing(ran: &Ran) -> Result<()> {
    equal("signal", &ran.signal, &Some(9))?;
    ensure!(!ran.out.exists(), "a client that was killed has released something");
    Ok(())
}

fn released_as_aborted(ran: Ran) -> Result<()> {
    let ran = ran.exits(75)?;
    ensure!(ran.took < patience(Duration::from_secs(45)), "the client waited for {:?}", ran.took);
    equal("code", &ran.result()?["code"], &Value::from("job.aborted"))?;
    is_aborted(&ran, &ran.out.join("evidence"))
}

/// The id of the one job in the state directory.
fn only_job(lab: &Lab) -> Result<String> {
    let names = std::fs::read_dir(lab.state().join("jobs"))?.flatten();
    let names: Vec<_> = names.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    ensure!(names.len() == 1, "jobs: {names:?}");
    names.into_iter().next().context("no job")
}

/// A record in this directory that says `aborted`, signed.
fn is_aborted(ran: &Ran, dir: &std::path::Path) -> Result<()> {
    let report = json(&dir.join("report.json"))?;
    equal("outcome in the record", &report["outcome"], &Value::from("aborted"))?;
    equal("failure in the record", &report["failure"]["code"], &Value::from("job.aborted"))?;
    let checks = report["teardown"]["checks"].to_string();
    ensure!(!checks.contains("\"state\":\"left\""), "left behind: {checks}");
    let run = dir.join("run.intoto.jsonl");
    let (status, said) = verify(&ran.program, &dir.join("report.json"), &run, &ran.key, &["--run"])?;
    ensure!(status == Some(0), "the record does not verify: {said}");
    equal("outcome as attested", &statement(&run)?["predicate"]["outcome"], &Value::from("aborted"))?;
    let names = tree(dir)?;
    let others: Vec<_> = names.iter().filter(|n| n.ends_with(".jsonl") && *n != "run.intoto.jsonl").collect();
    ensure!(others.is_empty(), "provenance of an aborted job: {others:?}");
    Ok(())
}

fn daemons(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let body =
        with_probe(lab)? + &sh("a", &format!("/build/probe daemons 6 {marker}; /build/probe wait {marker}"));
    let mut live = lab.run(&lab.job(&body)?).start()?;
    live.until_runs(&format!("probe wait {marker}"))?;
    procs::eventually(SOON, "all daemons run", || procs::with_args(&format!("wait {marker}")).len() >= 7)?;
    let cast = Cast::of(live.pid())?;
    for victim in [cast.client, cast.launcher, cast.supervisor] {
        procs::kill(victim)?;
    }
    stopped(&format!("wait {marker}"))?;
    live.end()?;
    runners_end(lab)?;
    lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?.says(&["recovered job"]).map(drop)
}

fn import(lab: &Lab) -> Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/slow", listener.local_addr()?);
    lab.list(&url)?;
    let slow = format!("http = {{ url = \"{url}\", sha256 = \"{}\" }}", crate::check::sha256(b"x"));
    let big = lab.write("big/file", vec![7; 4 << 20])?;
    let big = format!("path = '{}'", big.parent().context("no parent")?.display());
    let body = input("big", &big, "/build/big", false)
        + &input("slow", &slow, "/build/slow", false)
        + &sh("a", "true");
    let live = lab.run(&lab.job(&body)?).start()?;
    let (stream, _) = listener.accept()?;
    procs::signal(live.pid(), Signal::KILL)?;
    drop(stream);
    live.end()?;
    runners_end(lab)?;
    let next = lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?;
    ensure!(
        !next.stderr.contains("recovered"),
        "a job that was never admitted is recovered:\n{}",
        next.stderr
    );
    equal("staging", &tree(&lab.state().join("store/staging"))?, &Vec::new())
}

fn beside(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let live_s = patience(Duration::from_secs(4)).as_secs();
    let body = sh("a", &format!("echo x > /build/x; timeout {live_s} sleep {marker} || true; cat /build/x"))
        + &output("x", "/build/x");
    let mut live = lab.run(&lab.job(&body)?).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    let id = only_job(lab)?;
    let second = lab.run_job(&sh("a", "echo second"))?.ended(&SUCCEEDED)?;
    ensure!(!second.stderr.contains("recovered"), "a live job is recovered:\n{}", second.stderr);
    let overlapped = live.is_running();
    let first = live.end()?.ended(&SUCCEEDED)?;
    equal("job", &first.result()?["job"], &Value::from(id))?;
    equal("output", &first.output_text("x")?, &"x\n".to_owned())?;
    ensure!(overlapped, "this machine is too slow: the first run ended before the second");
    Ok(())
}

fn recovery_beside(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let (dead, cast) = sleeping(lab, &marker)?;
    let id = only_job(lab)?;
    let long = format!("{marker}1");
    let mut live = lab.run(&lab.job(&exec("long", &["sleep", &long]))?).start()?;
    live.until_runs(&format!("sleep {long}"))?;
    for victim in [cast.client, cast.launcher, cast.supervisor] {
        procs::kill(victim)?;
    }
    dead.end()?;
    let state = lab.state().display().to_string();
    let one_run = || procs::with_args(&state).iter().filter(|p| p.is_runner()).count() <= 4;
    procs::eventually(SOON, "the killed run's processes are gone", one_run)?;
    let next =
        lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?.says(&[&format!("recovered job {id}: aborted")])?;
    equal("recoveries", &next.stderr.matches("recovered job").count(), &1)?;
    ensure!(
        live.is_running() && procs::with_args(&format!("sleep {long}")).len() == 1,
        "the live job was touched"
    );
    live.signal(Signal::INT)?;
    live.end()?.ended(&Ending("cancelled", "job.cancelled", 3)).map(drop)
}

/// Kills client, launcher and supervisor of a job whose step sleeps. Returns the job's id.
fn dead_job(lab: &Lab) -> Result<String> {
    let marker = lab.marker();
    let (live, cast) = sleeping(lab, &marker)?;
    let id = only_job(lab)?;
    for victim in [cast.client, cast.launcher, cast.supervisor] {
        procs::kill(victim)?;
    }
    stopped(&format!("sleep {marker}"))?;
    live.end()?;
    runners_end(lab)?;
    Ok(id)
}

/// What a cut of power may leave at the end of a file.
fn damaged(lab: &Lab) -> Result<()> {
    let id = dead_job(lab)?;
    let events = lab.state().join("jobs").join(&id).join("events");
    let mut file = std::fs::OpenOptions::new().append(true).open(events)?;
    std::io::Write::write_all(&mut file, &[&[0; 64], b"and something else".as_slice()].concat())?;
    let next =
        lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?.says(&[&format!("recovered job {id}: aborted")])?;
    is_aborted(&next, &lab.state().join("records").join(&id))
}

/// The blocks of ids that a slot has, by their files.
fn blocks_of(slot: &str) -> Result<Vec<String>> {
    let blocks = std::fs::read_dir("/run/ampoule/uid-blocks")?.flatten();
    let its =
        blocks.filter(|block| std::fs::read(block.path()).is_ok_and(|holder| holder == slot.as_bytes()));
    Ok(its.map(|block| block.file_name().to_string_lossy().into_owned()).collect())
}

fn ids(lab: &Lab) -> Result<()> {
    dead_job(lab)?;
    let slot = slot_of_job(lab)?;
    let block = blocks_of(&slot)?;
    equal("blocks of the dead job", &block.len(), &1)?;
    // Others come and go beside it.
    for _ in 0..3 {
        lab.ampoule().args(["doctor", "--state"]).arg(lab.path("other")).end()?.exits(0)?;
    }
    equal("blocks of the dead job", &blocks_of(&slot)?, &block)?;
    lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?.says(&["recovered job"])?;
    equal("blocks after its recovery", &blocks_of(&slot)?, &Vec::new())
}

fn earlier_steps(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let body = with_probe(lab)?
        + &probe("one", &["self"])
        + &exec("two", &["sleep", &marker])
        + &sh("three", "true");
    let mut live = lab.run(&lab.job(&body)?).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    let id = only_job(lab)?;
    let cast = Cast::of(live.pid())?;
    for victim in [cast.client, cast.launcher, cast.supervisor] {
        procs::kill(victim)?;
    }
    live.end()?;
    runners_end(lab)?;
    let next = lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?;
    let record = lab.state().join("records").join(id);
    is_aborted(&next, &record)?;
    let report = json(&record.join("report.json"))?;
    let ends: Vec<_> =
        (0..3).map(|n| report["steps"][n]["end"]["end"].as_str().unwrap_or("?").to_owned()).collect();
    equal("steps", &ends, &vec!["exited".to_owned(), "aborted".to_owned(), "not_run".to_owned()])?;
    ensure!(
        report["timeline"]["started"].is_number() && report["timeline"]["destroyed"].is_number(),
        "{}",
        report["timeline"]
    );
    // What the steps had said before the crash is evidence of what happened.
    let names = tree(&record)?;
    ensure!(names.iter().any(|n| n == "logs/0-one.stdout"), "the record has no logs: {names:?}");
    Ok(())
}
