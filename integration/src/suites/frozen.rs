//! A session of the launcher's that is stopped with a question that it has not read.

use super::daemon::{SOON, finish, has_one_record, job_id, submit};
use crate::check::equal;
use crate::keeper::Keeper;
use crate::lab::Lab;
use crate::listener::Listener;
use crate::procs::{self, patience};
use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

/// The session that takes the keeper's jobs is stopped with a question that it has not read; the agent dies. The next one
/// signs that the job never ran, and that stays so.
pub(super) fn frozen(lab: &Lab) -> Result<()> {
    let listener = Listener::start(lab, &[])?;
    let mut keeper = Keeper::start(&listener, lab, &[])?;
    keeper.ask(submit(1, "true", &json!([])))?;
    keeper.finished(&job_id(1))?;
    let stopped = || {
        let all = procs::all();
        all.iter().filter(|p| p.parent == listener.pid() && p.is_runner()).map(|p| p.pid).collect::<Vec<_>>()
    };
    // The session that keeps sandboxes lives on; others live for a question.
    let mut sessions = stopped();
    std::thread::sleep(Duration::from_millis(300));
    sessions.retain(|pid| stopped().contains(pid));
    ensure!(!sessions.is_empty(), "no session takes the keeper's jobs");
    for pid in &sessions {
        procs::signal(*pid, Signal::STOP)?;
    }
    let marker = lab.marker();
    keeper.ask(submit(2, &format!("exec sleep {marker}"), &json!([])))?;
    let begun = Instant::now();
    while keeper.ask(json!({"do": "get", "id": job_id(2)}))?["job"]["state"] != "running" {
        ensure!(begun.elapsed() < patience(SOON), "it is not asked for");
        keeper.listen(Duration::from_millis(20));
    }
    // It has written down that it asks, and then asked.
    std::thread::sleep(Duration::from_millis(200));
    keeper.kill()?;
    let mut keeper = Keeper::start(&listener, lab, &[])?;
    let job = keeper.finished(&job_id(2))?;
    equal("code", &job["end"]["failure"]["code"], &Value::from("job.aborted"))?;
    let predicate = has_one_record(lab, &job_id(2), &job)?;
    equal("sandbox", &predicate["sandbox"], &Value::from("none"))?;
    for pid in &sessions {
        procs::signal(*pid, Signal::CONT)?;
    }
    procs::eventually(SOON, "the sessions have read what they were asked", || {
        let alive = stopped();
        sessions.iter().all(|pid| !alive.contains(pid))
    })?;
    let name = lab.state().join("jobs").join(job_id(2));
    ensure!(name.is_file(), "it has a directory");
    ensure!(procs::with_args(&format!("sleep {marker}")).is_empty(), "it runs");
    equal("job", &keeper.ask(json!({"do": "get", "id": job_id(2)}))?["job"], &job)?;
    has_one_record(lab, &job_id(2), &job)?;
    fs::remove_file(name)?;
    finish(lab, listener, keeper)
}
