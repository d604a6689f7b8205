//! Jobs that do not succeed: each has its outcome, its code and a signed record, and leaves nothing.

use super::{exec, output, probe, sh, with_probe};
use crate::check::{Ending, Ran, equal};
use crate::harness::Test;
use crate::lab::Lab;
use crate::procs::{self, patience};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::both("step_that_exits_nonzero_fails_the_job_and_later_steps_do_not_run", nonzero),
    Test::both("program_that_is_not_there_is_not_started", not_found),
    Test::both("step_over_its_time_limit_is_timed_out", step_timeout),
    Test::both("job_over_its_time_limit_is_timed_out", job_timeout),
    Test::both("step_deaf_to_sigterm_is_killed_after_its_grace", deaf),
    Test::both("step_killed_by_a_signal_says_which", signalled),
    Test::both("daemon_is_killed_and_counted", daemon),
    Test::both("daemon_that_holds_the_streams_does_not_hold_the_job", daemon_streams),
    Test::both("step_that_signals_everything_ends_only_itself", kills_everything),
    Test::both("failed_job_in_json_has_the_same_answer", failed_json),
];

/// How the report says that a step ended.
pub(super) fn ends(ran: &Ran, expected: &[&str]) -> Result<()> {
    let report = ran.report()?;
    let steps = report["steps"].as_array().context("no steps")?;
    let found: Vec<&str> = steps.iter().filter_map(|s| s["end"]["end"].as_str()).collect();
    equal("ends of the steps", &found, &expected.to_vec())?;
    let statement = ran.statement("run.intoto.jsonl")?;
    let steps = statement["predicate"]["steps"].as_array().context("no steps")?;
    let attested: Vec<&str> = steps.iter().filter_map(|s| s["end"].as_str()).collect();
    equal("ends of the steps as attested", &attested, &expected.to_vec())
}

/// Nothing with this marker runs, at once: the job is over.
pub(super) fn gone(marker: &str) -> Result<()> {
    let running = procs::with_args(marker);
    ensure!(running.is_empty(), "still running: {running:?}");
    Ok(())
}

fn nonzero(lab: &Lab) -> Result<()> {
    let body = sh("one", "echo x > /build/x")
        + &sh("two", "echo seen; exit 7")
        + &sh("three", "echo never")
        + &output("x", "/build/x");
    let ran = lab.run_job(&body)?.ended(&Ending("failed", "step.exit_nonzero", 1))?;
    ends(&ran, &["exited", "exited", "not_run"])?;
    let result = ran.result()?;
    equal("step", &result["step"], &Value::from("two"))?;
    equal("fault", &result["fault"], &Value::from("tenant"))?;
    let report = ran.report()?;
    equal("status", &ran.step(&report, 1)?["end"]["code"], &Value::from(7))?;
    equal("log", &ran.log_text("1-two.stdout")?, &"seen\n".to_owned())?;
    equal("outputs", &crate::lab::tree(&ran.out.join("outputs"))?, &Vec::new())?;
    ran.says(&["exited with 7", "step.exit_nonzero"]).map(drop)
}

fn not_found(lab: &Lab) -> Result<()> {
    let ending = Ending("failed", "step.not_started", 1);
    let cases = [
        (exec("a", &["no-such-program"]), "no-such-program"),
        (exec("a", &["/build/none"]), "/build/none"),
        (exec("a", &["/etc/passwd"]), "/etc/passwd"),
        (exec("a", &["/usr"]), "/usr"),
        (exec("a", &["true"]) + "cwd = \"/build/none\"\n", "/build/none"),
    ];
    for (body, names) in cases {
        let ran = lab.run_job(&(body + &exec("b", &["true"])))?.ended(&ending)?;
        ends(&ran, &["not_started", "not_run"])?;
        ran.says(&[names])?;
    }
    Ok(())
}

fn step_timeout(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let body =
        sh("slow", &format!("echo begun; sleep {marker}")) + "timeout = \"1s\"\n" + &sh("later", "true");
    let ran = lab.run_job(&body)?.ended(&Ending("timed_out", "limit.timeout", 1))?;
    ends(&ran, &["timed_out", "not_run"])?;
    equal("log", &ran.log_text("0-slow.stdout")?, &"begun\n".to_owned())?;
    gone(&marker)
}

fn job_timeout(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let body = sh("one", "true") + &sh("slow", &format!("sleep {marker}")) + "[limits]\ntimeout = \"1s\"\n";
    let ran = lab.run_job(&body)?.ended(&Ending("timed_out", "limit.timeout", 1))?;
    ends(&ran, &["exited", "timed_out"])?;
    gone(&marker)
}

fn deaf(lab: &Lab) -> Result<()> {
    let body = with_probe(lab)? + &probe("deaf", &["signals"]) + "timeout = \"500ms\"\n";
    let ran = lab.run_job(&body)?.ended(&Ending("timed_out", "limit.timeout", 1))?;
    ends(&ran, &["timed_out"])?;
    ensure!(ran.took >= Duration::from_secs(5), "it had no grace: {:?}", ran.took);
    Ok(())
}

fn signalled(lab: &Lab) -> Result<()> {
    for signal in [9, 11, 6] {
        let body = with_probe(lab)? + &probe("a", &["kill", &signal.to_string()]) + &sh("b", "true");
        let ran = lab.run_job(&body)?.ended(&Ending("failed", "step.signalled", 1))?;
        ends(&ran, &["signalled", "not_run"])?;
        let report = ran.report()?;
        equal("signal", &ran.step(&report, 0)?["end"]["signal"], &Value::from(signal))?;
        ran.says(&[&format!("ended by signal {signal}")])?;
    }
    Ok(())
}

fn daemon(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let body = with_probe(lab)? + &probe("a", &["daemons", "5", &marker]) + &sh("b", "exit 3");
    let ran = lab.run_job(&body)?.ended(&Ending("failed", "step.exit_nonzero", 1))?;
    let report = ran.report()?;
    let survivors = ran.step(&report, 0)?["survivors_killed"].clone();
    equal("survivors", &survivors, &Value::from(5))?;
    equal(
        "attested survivors",
        &ran.statement("run.intoto.jsonl")?["predicate"]["steps"][0]["survivorsKilled"],
        &Value::from("5"),
    )?;
    gone(&marker)?;
    ran.says(&["5 processes outlived it and were killed"]).map(drop)
}

fn daemon_streams(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    // The daemon keeps the step's standard output open; the job must not wait for it.
    let ran =
        lab.run_job(&sh("a", &format!("sleep {marker} & echo done")))?.ended(&Ending("succeeded", "", 0))?;
    equal("log", &ran.log_text("0-a.stdout")?, &"done\n".to_owned())?;
    ensure!(ran.took < patience(Duration::from_secs(60)), "it took {:?}", ran.took);
    gone(&marker)
}

fn kills_everything(lab: &Lab) -> Result<()> {
    // kill(2) with -1 spares the caller, so the shell goes on; init and the streams must live.
    let script = "trap '' TERM; sleep 600 & for s in TERM KILL STOP; do kill -$s -1 || true; kill -$s 1 || true; done; echo alive";
    let ran = lab.run_job(&(sh("a", script) + &sh("b", "echo too")))?.ended(&Ending("succeeded", "", 0))?;
    equal("log", &ran.log_text("0-a.stdout")?, &"alive\n".to_owned())?;
    equal("log", &ran.log_text("1-b.stdout")?, &"too\n".to_owned())
}

fn failed_json(lab: &Lab) -> Result<()> {
    let job = lab.job(&sh("a", "exit 1"))?;
    let ran = lab.run(&job).arg("--json").end()?.ended(&Ending("failed", "step.exit_nonzero", 1))?;
    let lines = ran.json_lines()?;
    let last = lines.last().context("no lines")?;
    for (key, value) in [("event", "result"), ("outcome", "failed"), ("code", "step.exit_nonzero")] {
        equal(key, &last[key], &Value::from(value))?;
    }
    equal("exit", &last["exit"], &Value::from(1))?;
    equal("provenance", &last["provenance"], &Value::from(false))
}
