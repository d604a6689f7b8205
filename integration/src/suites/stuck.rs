//! Processes of ours that neither die nor do anything: a job ends all the same, in bounded time.

use super::teardown::groups_of_live;
use super::{exec, sh};
use crate::check::{Ending, equal};
use crate::harness::Test;
use crate::lab::{Lab, Live};
use crate::procs::{self, Cast, patience};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::both("job_whose_init_is_stopped_ends_in_time", |lab| stopped(lab, |cast| cast.init)),
    Test::both("job_whose_log_pump_is_stopped_ends_in_time", |lab| stopped(lab, |cast| cast.pump)),
    Test::both("job_whose_launcher_is_stopped_ends_in_time", launcher),
    Test::root("job_that_cannot_be_killed_by_its_init_ends_in_time", frozen),
];

/// A step's limit of one second, its grace, and what a process is given up after.
const IN_TIME: Duration = Duration::from_secs(30);

fn starts<'l>(lab: &'l Lab<'_>, marker: &str) -> Result<(Live<'l>, Cast)> {
    let body = sh("a", &format!("echo said; exec sleep {marker}")) + "timeout = \"3s\"\n";
    let mut live = lab.run(&lab.job(&body)?).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    let cast = Cast::of(live.pid())?;
    Ok((live, cast))
}

fn ends(live: Live<'_>, marker: &str) -> Result<()> {
    let ran = live.end()?;
    ensure!(ran.took < patience(IN_TIME), "it took {:?}", ran.took);
    let ran = ran.exits(75)?;
    equal("code", &ran.result()?["code"], &Value::from("job.aborted"))?;
    equal("outcome", &ran.result()?["outcome"], &Value::from("aborted"))?;
    ensure!(procs::with_args(&format!("sleep {marker}")).is_empty(), "the step runs on");
    Ok(())
}

fn stopped(lab: &Lab, whom: fn(&Cast) -> i32) -> Result<()> {
    let marker = lab.marker();
    let (live, cast) = starts(lab, &marker)?;
    procs::signal(whom(&cast), Signal::STOP)?;
    ends(live, &marker)
}

/// What it holds ends without it; its own client has to wait for it.
fn launcher(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let job = lab.job(&exec("a", &["timeout", "2", "sleep", &marker]))?;
    let mut live = lab.run(&job).start()?;
    live.until_runs(&format!("timeout 2 sleep {marker}"))?;
    let cast = Cast::of(live.pid())?;
    procs::signal(cast.launcher, Signal::STOP)?;
    let gone = || procs::all().iter().all(|p| p.pid != cast.supervisor && p.pid != cast.init);
    let ended = procs::eventually(IN_TIME, "supervisor and init are gone", gone);
    procs::signal(cast.launcher, Signal::CONT)?;
    live.end()?.ended(&Ending("failed", "step.exit_nonzero", 1))?;
    ended
}

/// A group that is frozen stands for a process that no signal reaches.
fn frozen(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let (live, _) = starts(lab, &marker)?;
    let groups = groups_of_live(lab)?;
    let group = groups.iter().find(|group| group.join("cgroup.freeze").exists());
    fs::write(group.context("no group of version 2")?.join("cgroup.freeze"), "1")?;
    ends(live, &marker)
}
