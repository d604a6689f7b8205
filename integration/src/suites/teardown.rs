//! Whatever fails, and wherever: nothing is left, and what was found left is in quarantine until it is gone.

use super::{exec, input, output, sh};
use crate::check::{Ending, Ran, equal};
use crate::faulty::Faulty;
use crate::harness::{Test, skip};
use crate::lab::Lab;
use crate::procs;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

pub(super) const TESTS: &[Test] = &[
    Test::root("supervisor_that_fails_at_any_point_leaves_nothing", |lab| {
        every_point(lab, "supervisor", "fail", 60)
    }),
    Test::root("supervisor_that_fails_at_any_point_by_name_leaves_nothing", |lab| {
        every_point(lab, "by-name supervisor", "fail", 80)
    }),
    Test::root("init_that_fails_at_any_point_leaves_nothing", |lab| every_point(lab, "init", "fail", 30)),
    Test::root("step_process_that_fails_at_any_point_leaves_nothing", |lab| {
        every_point(lab, "step", "fail", 15)
    }),
    Test::root("launcher_that_fails_at_any_point_leaves_nothing", |lab| {
        every_point(lab, "launcher", "fail", 8)
    }),
    Test::root("import_worker_that_fails_at_any_point_leaves_nothing", |lab| {
        every_point(lab, "import", "fail", 2)
    }),
    Test::both("log_pump_that_fails_at_any_point_leaves_nothing", |lab| every_point(lab, "pump", "fail", 1)),
    Test::both("compressor_that_fails_at_any_point_leaves_nothing", |lab| {
        every_point(lab, "compressor", "fail", 1)
    }),
    Test::user("ordinary_users_set_up_that_fails_at_any_point_leaves_nothing", |lab| {
        every_point(lab, "init", "fail", 30)
    }),
    Test::root("what_is_left_is_quarantined_signed_shown_and_released", quarantine),
    Test::root("control_group_that_somebody_holds_is_found_left", held_group),
    Test::root("process_of_the_jobs_ids_is_found_left", planted_process),
    Test::root("writable_layer_that_somebody_holds_is_found_left", held_layer),
    Test::root("namespace_that_somebody_holds_is_found_left", held_namespace),
    Test::both("report_lists_each_thing_that_was_looked_for", checks),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

/// A job that goes through everything: an input, a layer over another, two steps, an output of each form.
pub(super) fn whole_job(lab: &Lab) -> Result<PathBuf> {
    lab.write("src/a", "a")?;
    lab.write("read/b", "b")?;
    let source = |name: &str| format!("path = '{}'", lab.path(name).display());
    let body = input("src", &source("src"), "/build/src", true)
        + &input("read", &source("read"), "/build/read", false)
        + &sh("one", "cat /build/read/b > /build/src/c")
        + &exec("two", &["cp", "/build/src/c", "/build/d"])
        + &output("d", "/build/d")
        + &output("tree", "/build/read")
        + &(output("archive", "/build/src") + "form = \"tar.zst\"\n");
    lab.job(&body)
}

/// Has every point of one process fail or die, one after another, until a run meets none any more. Each run has to
/// end by itself and say how, or else the next one without a fault has to: to work, and to sign what the first could not.
pub(super) fn every_point(lab: &Lab, role: &str, what: &str, at_least: u32) -> Result<()> {
    let faulty = Faulty::install(lab)?;
    let job = whole_job(lab)?;
    // What is in the store already is not imported again: only the import's own faults want it to be.
    let imports = role == "import";
    let stride = procs::stride();
    let (mut survived, mut tried, mut number) = (0, 0, 1);
    loop {
        ensure!(number < 500, "there is no end of points");
        if imports {
            lab.write("src/a", number.to_string())?;
        }
        faulty.fault(role, number, what)?;
        let ran = faulty.run(&job).end().with_context(|| format!("{role} {number}"))?;
        if faulty.fired() == 0 {
            ran.ended(&SUCCEEDED)?;
            break;
        }
        tried += 1;
        survived += u32::from(ran.status == Some(0));
        told(&ran).with_context(|| format!("{role} {number}: {ran:?}"))?;
        if !ran.out.join("result.json").exists() {
            let next =
                lab.run(&job).end()?.ended(&SUCCEEDED).with_context(|| format!("after {role} {number}"))?;
            ensure!(!next.stderr.contains("cannot be signed"), "after {role} {number}: {}", next.stderr);
            let (told, found) = (ran.stderr.contains("admitted"), next.stderr.contains("recovered job"));
            ensure!(
                told || !found || what == "die",
                "after {role} {number}, a job that was refused has a record"
            );
            fs::remove_dir_all(&next.out)?;
        }
        let _ = fs::remove_dir_all(&ran.out);
        number += stride;
    }
    lab.run(&job).end()?.ended(&SUCCEEDED)?;
    let points = number - 1;
    ensure!(points >= at_least, "only {points} points: the faults are not where they were");
    // A point may lie in something that can be done without, but not many do.
    ensure!(survived * 4 <= tried, "{survived} of {tried} faults were not noticed");
    if stride > 1 {
        println!("{role} {what}: {tried} of about {points} points were tried, every {stride}. one");
    }
    Ok(())
}

/// A run ends with an exit status that the README knows; what it releases fits.
fn told(ran: &Ran) -> Result<()> {
    match ran.status {
        Some(0) => Ok(()),
        Some(1 | 64 | 69 | 70 | 75) => {
            ensure!(!ran.stderr.contains("panicked"), "a panic");
            let outputs = ran.out.join("outputs");
            ensure!(!outputs.join("d").exists(), "an output of a run that failed was released");
            if ran.out.exists() {
                let (outcome, code) = (ran.result()?["outcome"].clone(), ran.result()?["code"].clone());
                ensure!(outcome != "succeeded", "the outcome is {outcome}");
                // Only a check that fails may find something: everything else that fails leaves nothing.
                let found = outcome == "quarantined" && code != "teardown.unclean";
                ensure!(!found, "something is left after {code}: {}", ran.result()?);
                ran.statement("run.intoto.jsonl")?;
            }
            Ok(())
        }
        other => bail!("exit status {other:?}"),
    }
}

/// One of a supervisor's points is a check of the teardown.
fn quarantine(lab: &Lab) -> Result<()> {
    let faulty = Faulty::install(lab)?;
    let job = lab.job(&(sh("a", "echo x > /build/x") + &output("x", "/build/x")))?;
    let mut found = None;
    for number in (1..500).step_by(procs::stride() as usize) {
        faulty.fault("supervisor", number, "fail")?;
        let ran = faulty.run(&job).end()?;
        if faulty.fired() == 0 {
            break;
        }
        if ran.out.exists() && ran.result()?["outcome"] == "quarantined" {
            found = Some(ran);
            break;
        }
    }
    let ran = found.context("no fault made a teardown unclean")?.exits(70)?;
    equal("outcome", &ran.result()?["outcome"], &Value::from("quarantined"))?;
    equal("code", &ran.result()?["code"], &Value::from("teardown.unclean"))
        .with_context(|| format!("{}\n{:?}", ran.stderr, ran.report()))?;
    ensure!(!ran.out.join("outputs/x").exists(), "an output was released");
    ensure!(!ran.evidence("x.intoto.jsonl").exists(), "there is provenance");
    let statement = ran.statement("run.intoto.jsonl")?;
    let teardown = &statement["predicate"]["teardown"];
    equal("clean", &teardown["clean"], &Value::from(false))?;
    let states = teardown["checks"].as_array().context("no checks")?.iter().map(|c| &c["state"]);
    ensure!(states.clone().any(|s| *s == "left"), "no check says left: {teardown}");
    // Nothing is left in truth: a later look finds that and says so.
    let slots = quarantined(lab)?;
    let slot = slots.iter().find(|s| s["job"] == ran.result().map_or(Value::Null, |r| r["job"].clone()));
    let slot = slot.context("the job's slot is not in the list")?;
    ensure!(slot["released"].is_string() || slot["released"].is_number(), "it is not released: {slot}");
    ensure!(slot["looks"].as_u64().unwrap_or(0) >= 1, "nobody looked again: {slot}");
    Ok(())
}

/// The slot that the intent of the one job in the state directory names.
pub(super) fn slot_of_job(lab: &Lab) -> Result<String> {
    let jobs = lab.state().join("jobs");
    let mut names = fs::read_dir(&jobs)?.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    let job = names.find(|name| !name.starts_with('.')).context("no job")?;
    let bytes = fs::read(jobs.join(job).join("events"))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let slot = text.split("\"slot\":\"").nth(1).and_then(|rest| rest.get(..36));
    slot.map(str::to_owned).context("no slot")
}

/// The control groups that a live job's intent names.
pub(super) fn groups_of_live(lab: &Lab) -> Result<Vec<PathBuf>> {
    let slot = slot_of_job(lab)?;
    let mut found = Vec::new();
    crate::residue::control_groups(std::path::Path::new("/sys/fs/cgroup"), 6, &mut found);
    found.retain(|path| path.ends_with(format!("ampoule-{slot}")));
    ensure!(!found.is_empty(), "no control group of slot {slot}");
    Ok(found)
}

/// A job that waits, and its client.
fn waiting<'l>(lab: &'l Lab<'_>) -> Result<(crate::lab::Live<'l>, String)> {
    let marker = lab.marker();
    let mut live = lab.run(&lab.job(&exec("a", &["sleep", &marker]))?).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    Ok((live, marker))
}

/// Ends the job while something holds a part of it. The doctor shows the slot for as long, and after the next run that finds
/// the part free, that it was released.
fn found_left(
    lab: &Lab,
    live: crate::lab::Live<'_>,
    what: &str,
    release: impl FnOnce() -> Result<()>,
) -> Result<()> {
    live.signal(Signal::INT)?;
    let ran = live.end()?;
    let report = ran.report()?;
    let entry = || -> Result<Value> {
        lab.run_job(&sh("next", "true"))?.ended(&SUCCEEDED)?;
        let slots = quarantined(lab)?;
        slots.into_iter().find(|s| s["job"] == report["job"]).context("the slot is not in the list")
    };
    let held = entry();
    release()?;
    let held = held?;
    ensure!(held["released"].is_null(), "released while it was held: {held}");
    ensure!(held["left"].as_str().is_some_and(|left| left.contains(what)), "{held}");
    equal("outcome", &ran.result()?["outcome"], &Value::from("quarantined"))?;
    let checks = report["teardown"]["checks"].as_array().context("no checks")?;
    let found = checks.iter().find(|c| c["what"] == what).context("no such check")?;
    equal("state", &found["state"], &Value::from("left"))?;
    ensure!(found["left"].as_u64().unwrap_or(0) >= 1, "nothing was counted: {found}");
    let released = entry()?;
    ensure!(!released["released"].is_null(), "it is not released: {released}");
    Ok(())
}

/// What the doctor says is or was in quarantine.
fn quarantined(lab: &Lab) -> Result<Vec<Value>> {
    let ran = lab.ampoule().args(["doctor", "--json", "--state"]).arg(lab.state()).end()?.exits(0)?;
    let said: Value = serde_json::from_slice(&ran.stdout)?;
    Ok(said["quarantined"].as_array().context("no list")?.clone())
}

fn held_group(lab: &Lab) -> Result<()> {
    let (live, _) = waiting(lab)?;
    let groups = groups_of_live(lab)?;
    // A group within the job's keeps rmdir(2) from removing it; nobody of ours makes one.
    let within = groups.last().context("no group")?.join("held");
    fs::create_dir(&within)?;
    found_left(lab, live, "control groups", || Ok(fs::remove_dir(&within)?))
}

fn planted_process(lab: &Lab) -> Result<()> {
    let (live, marker) = waiting(lab)?;
    let steps = procs::with_args(&format!("sleep {marker}"));
    let uid = steps.first().context("no step")?.uid;
    // As if one had got away: the job's id, outside of everything else of the job.
    let mut stray = std::process::Command::new("setpriv")
        .args([format!("--reuid={uid}").as_str(), "--clear-groups", "sleep", "60"])
        .spawn()?;
    procs::eventually(std::time::Duration::from_secs(5), "the process runs", || {
        procs::all().iter().any(|p| p.uid == uid && p.args.starts_with("sleep 60"))
    })?;
    let done = found_left(lab, live, "processes of the job's user ids", || {
        stray.kill()?;
        stray.wait()?;
        Ok(())
    });
    let _ = stray.kill();
    let _ = stray.wait();
    done
}

fn held_layer(lab: &Lab) -> Result<()> {
    let (live, marker) = waiting(lab)?;
    let steps = procs::with_args(&format!("sleep {marker}"));
    let pid = steps.first().context("no step")?.pid;
    let held = fs::File::open(format!("/proc/{pid}/root/build"))?;
    found_left(lab, live, "writable layer and mounts", move || {
        drop(held);
        Ok(())
    })
}

fn held_namespace(lab: &Lab) -> Result<()> {
    let (live, marker) = waiting(lab)?;
    let steps = procs::with_args(&format!("sleep {marker}"));
    let pid = steps.first().context("no step")?.pid;
    let held = fs::File::open(format!("/proc/{pid}/ns/net"))?;
    if !confirms_namespaces(lab)? {
        live.signal(Signal::INT)?;
        live.end()?.exits(3)?;
        return skip("this kernel has no handles of namespaces (Linux 6.18 has)");
    }
    found_left(lab, live, "net namespace", move || {
        drop(held);
        Ok(())
    })
}

fn confirms_namespaces(lab: &Lab) -> Result<bool> {
    let ran = lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?;
    Ok(ran.report()?["teardown"]["checks"].to_string().contains("net namespace"))
}

fn checks(lab: &Lab) -> Result<()> {
    let ran = lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?;
    let report = ran.report()?;
    let checks = report["teardown"]["checks"].as_array().context("no checks")?;
    let state = |what: &str| -> Result<String> {
        let found = checks.iter().find(|c| c["what"] == what);
        Ok(found.with_context(|| format!("{what} is not in {checks:?}"))?["state"].to_string())
    };
    let gone = "\"gone\"".to_owned();
    equal("processes", &state("processes of the sandbox")?, &gone)?;
    if lab.is_root() {
        for what in
            ["control groups", "processes of the job's user ids", "keyrings", "writable layer and mounts"]
        {
            equal(what, &state(what)?, &gone)?;
        }
    }
    // Where the kernel has handles of namespaces, each is confirmed; where not, the report says so.
    let named =
        checks.iter().filter(|c| c["what"].as_str().is_some_and(|w| w.ends_with(" namespace"))).count();
    let unconfirmed = state("namespaces").is_ok_and(|s| s == "\"unconfirmed\"");
    ensure!(named >= 4 || unconfirmed, "namespaces are neither confirmed nor said not to be: {checks:?}");
    Ok(())
}
