//! Sandboxes that a launcher keeps ready: each is used once, and none outlives it.

use super::sh;
use crate::check::{Ending, equal, json};
use crate::harness::Test;
use crate::lab::Lab;
use crate::procs::{self, patience};
use anyhow::{Context, Result, ensure};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    recv, sendmsg, socketpair,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("each_sandbox_of_the_pool_is_used_once", once),
    Test::root("jobs_from_the_pool_share_nothing", share_nothing),
    Test::root("pool_of_a_launcher_that_ends_is_gone", |lab| ends(lab, false)),
    Test::root("pool_of_a_launcher_that_is_killed_is_gone", |lab| ends(lab, true)),
    Test::root("sandbox_that_dies_in_the_pool_takes_no_job_with_it", dies_waiting),
    Test::root("pool_has_its_size_and_no_more", bounded),
];

const SOON: Duration = Duration::from_secs(10);

/// A launcher as an agent has it: a socket of packets, one JSON message each.
pub(super) struct Launcher<'l> {
    lab: &'l Lab<'l>,
    child: Child,
    socket: OwnedFd,
    number: u32,
}

impl<'l> Launcher<'l> {
    pub(super) fn start(lab: &'l Lab<'l>, pool: u32) -> Result<Self> {
        fs::create_dir_all(lab.state())?;
        fs::set_permissions(lab.state(), PermissionsExt::from_mode(0o700))?;
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let limit = Some(patience(Duration::from_secs(60)));
        rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, limit)?;
        let mut command = Command::new(lab.program("ampoule-runner"));
        command.arg("serve").arg("--state").arg(lab.state()).args(["--pool", &pool.to_string()]);
        command.env_clear().stdin(Stdio::from(theirs)).stdout(Stdio::null());
        let child = command.spawn()?;
        drop(command);
        let launcher = Self { lab, child, socket, number: 0 };
        equal("greeting", &launcher.hear()?["say"], &Value::from("hello"))?;
        Ok(launcher)
    }

    pub(super) fn hear(&self) -> Result<Value> {
        let mut bytes = vec![0; 64 << 10];
        let (_, count) =
            rustix::io::retry_on_intr(|| recv(&self.socket, &mut bytes[..], RecvFlags::empty()))?;
        bytes.truncate(count);
        ensure!(!bytes.is_empty(), "the launcher is gone");
        Ok(serde_json::from_slice(&bytes)?)
    }

    pub(super) fn say(&self, message: &Value, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = message.to_string();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        sendmsg(&self.socket, &[IoSlice::new(bytes.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Asks for a job of one step.
    fn ask(&mut self, script: &str) -> Result<String> {
        self.number += 1;
        let id = format!("01890a5d-ac96-774b-bcce-{:04x}{:08x}", self.number, self.child.id());
        let spec = json!({
            "ampoule": 1, "id": id, "attempt": 1, "name": "pool", "profile": "hermetic", "image": {"kind": "host"},
            "source_date_epoch": 0,
            "steps": [{"name": "a", "cwd": "/build", "timeout_ms": 60_000, "run": ["sh", "-euc", script]}],
        });
        let path = self.lab.write(&format!("spec-{}.json", self.number), spec.to_string())?;
        self.say(&json!({"ask": "run", "lifetime": false}), &[File::open(path)?.as_fd()])?;
        Ok(id)
    }

    /// Waits for the end of a job and gives its report.
    fn report(&self, id: &str) -> Result<Value> {
        loop {
            let said = self.hear()?;
            match said["say"].as_str() {
                Some("admitted") => {}
                Some("finished") => break equal("job", &said["job"], &Value::from(id))?,
                _ => anyhow::bail!("the launcher said {said}"),
            }
        }
        json(&self.lab.state().join("jobs").join(id).join("report.json"))
    }

    fn run(&mut self, script: &str) -> Result<Value> {
        let id = self.ask(script)?;
        let report = self.report(&id)?;
        self.say(&json!({"ask": "forget", "job": id}), &[])?;
        equal("forgotten", &self.hear()?["say"], &Value::from("forgotten"))?;
        Ok(report)
    }

    /// Supervisors that have made everything that they make before a job comes: below each waits a step's process.
    fn ready(&self) -> Vec<i32> {
        let all = procs::all();
        let below = |parent: i32| all.iter().filter(move |p| p.parent == parent).map(|p| p.pid);
        let waits = |supervisor: &i32| below(*supervisor).any(|init| below(init).next().is_some());
        below(self.pid()).filter(waits).collect()
    }

    fn until_ready(&self, count: usize) -> Result<Vec<i32>> {
        // One that is being made has such processes now and then: those that were counted are those that are meant.
        let mut ready = Vec::new();
        procs::eventually(SOON, "the pool is full", || {
            ready = self.ready();
            ready.len() == count
        })?;
        Ok(ready)
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The slots' directories.
    fn slots(&self) -> Result<BTreeSet<PathBuf>> {
        let entries = fs::read_dir(self.lab.state().join("jobs"))?.flatten().map(|e| e.path());
        let is_slot =
            |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(".slot-"));
        Ok(entries.filter(is_slot).collect())
    }

    pub(super) fn end(mut self) -> Result<()> {
        rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Launcher<'_> {
    fn drop(&mut self) {
        // A test that failed leaves it running; it ends when nobody is there any more.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

fn succeeded(report: &Value) -> Result<()> {
    equal("outcome", &report["outcome"], &Value::from("succeeded"))
}

fn once(lab: &Lab) -> Result<()> {
    let mut launcher = Launcher::start(lab, 2)?;
    let mut seen = BTreeSet::new();
    for number in 0..6 {
        let ready = launcher.until_ready(2)?;
        let before = launcher.slots()?;
        succeeded(&launcher.run("true")?)?;
        let after = launcher.slots()?;
        let used: Vec<_> = before.difference(&after).cloned().collect();
        equal("slots that the job took", &used.len(), &1)?;
        ensure!(seen.insert(used), "job {number} had the slot of another one");
        procs::eventually(SOON, "the job's supervisor is gone", || {
            ready.iter().filter(|pid| procs::all().iter().any(|p| p.pid == **pid)).count() == 1
        })?;
    }
    launcher.end()
}

fn share_nothing(lab: &Lab) -> Result<()> {
    let mut launcher = Launcher::start(lab, 1)?;
    let script = "for d in /tmp /build /dev/shm /var/tmp /home/build /run; do test -z \"$(ls -A $d)\"; touch $d/left; done; \
                  hostname; test $(ls /proc | grep -c '^[0-9]') -lt 8";
    for _ in 0..4 {
        launcher.until_ready(1)?;
        let report = launcher.run(script)?;
        succeeded(&report)?;
        let states = report["teardown"]["checks"].as_array().context("no checks")?;
        ensure!(states.iter().all(|check| check["state"] != "left"), "{states:?}");
    }
    launcher.end()
}

fn ends(lab: &Lab, killed: bool) -> Result<()> {
    let launcher = Launcher::start(lab, 3)?;
    launcher.until_ready(3)?;
    let slots = launcher.slots()?;
    let names: Vec<String> = slots
        .iter()
        .filter_map(|path| Some(path.file_name()?.to_str()?.strip_prefix(".slot-")?.to_owned()))
        .collect();
    equal("slots", &names.len(), &3)?;
    let state = lab.state().display().to_string();
    if killed {
        procs::signal(launcher.pid(), Signal::KILL)?;
        drop(launcher);
    } else {
        launcher.end()?;
    }
    procs::eventually(SOON, "no process of the runner is left", || procs::with_args(&state).is_empty())?;
    let groups = || {
        let mut found = Vec::new();
        crate::residue::control_groups(std::path::Path::new("/sys/fs/cgroup"), 6, &mut found);
        found.retain(|path| names.iter().any(|name| path.ends_with(format!("ampoule-{name}"))));
        found
    };
    // The slots' own supervisors remove everything; a directory may need the next run.
    ensure!(groups().is_empty(), "control groups are left: {:?}", groups());
    let ran = lab.run_job(&sh("a", "true"))?.ended(&Ending("succeeded", "", 0))?;
    ensure!(!ran.stderr.contains("recovered"), "a slot without a job is no job: {}", ran.stderr);
    equal("directories", &crate::lab::tree(&lab.state().join("jobs"))?, &Vec::new())
}

fn dies_waiting(lab: &Lab) -> Result<()> {
    let mut launcher = Launcher::start(lab, 1)?;
    for victim in ["supervisor", "init"] {
        let supervisor = *launcher.until_ready(1)?.first().context("no supervisor")?;
        let init = procs::all().into_iter().find(|p| p.parent == supervisor && p.is_of_a_job());
        let init = init.context("no init")?;
        procs::signal(if victim == "init" { init.pid } else { supervisor }, Signal::KILL)?;
        let report = launcher.run("echo fine")?;
        // It may have been handed the dead one: then it says so, and the caller tries again.
        let outcome = report["outcome"].as_str().unwrap_or_default().to_owned();
        ensure!(outcome == "succeeded" || outcome == "aborted", "{victim}: {report}");
        succeeded(&launcher.run("echo fine")?)?;
    }
    launcher.end()?;
    equal("directories", &crate::lab::tree(&lab.state().join("jobs"))?, &Vec::new())
}

fn bounded(lab: &Lab) -> Result<()> {
    lab.leaves_jobs();
    let mut launcher = Launcher::start(lab, 2)?;
    launcher.until_ready(2)?;
    let ids = (0..4).map(|_| launcher.ask("sleep 0.3")).collect::<Result<BTreeSet<String>>>()?;
    let mut finished = BTreeSet::new();
    let mut most = 0;
    while finished.len() < ids.len() {
        let said = launcher.hear()?;
        if said["say"] == "finished" {
            finished.insert(said["job"].as_str().unwrap_or_default().to_owned());
        } else {
            equal("answer", &said["say"], &Value::from("admitted"))?;
        }
        most = most.max(launcher.slots()?.len());
    }
    equal("jobs", &finished, &ids)?;
    ensure!(most <= 2, "{most} slots were waiting");
    std::thread::sleep(patience(Duration::from_millis(500)));
    equal("slots at rest", &launcher.slots()?.len(), &2)?;
    launcher.end()
}
