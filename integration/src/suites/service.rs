//! The whole daemon: `ampouled` without privilege beside a launcher that listens, and `ampoule submit` against it.

use crate::audit_log;
use crate::check::{Ran, equal, sha256};
use crate::harness::Test;
use crate::lab::{Lab, Live};
use crate::listener::{Listener, agent};
use crate::procs::{self, eventually};
use crate::serve::Server;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("job_outlives_a_restart_of_both_daemons", restarts),
    Test::root("broken_policy_is_not_taken_and_a_good_one_is", policies),
    Test::root("nothing_is_done_or_read_without_an_audit_entry", audited),
    Test::root("sources_and_limits_are_read_again", reloads),
    Test::root("drift_is_found_when_launcher_or_program_is_another", drifts),
    Test::root("drain_turns_clients_away_until_it_is_undone", drained),
];

const SOON: Duration = Duration::from_secs(30);

/// `ampouled` as the agent's user.
struct Daemon<'l> {
    live: Live<'l>,
}

fn socket(lab: &Lab) -> PathBuf {
    lab.path("serve/agent.sock")
}

fn policy(lab: &Lab, rule: &str) -> Result<()> {
    let text = format!("package ampoule.authz\ndefault allow := false\n{rule}\n");
    fs::write(lab.path("policy/authz.rego"), text).context("policy")
}

/// Lets the user of the tests do everything.
const LETS_US: &str = "allow if input.caller.subject == \"uid:0\"";

fn prepare(lab: &Lab) -> Result<()> {
    let (uid, gid) = agent(lab);
    for name in ["agent", "serve"] {
        fs::create_dir(lab.path(name))?;
        chown(lab.path(name), Some(uid), Some(gid))?;
    }
    fs::create_dir(lab.path("policy"))?;
    policy(lab, LETS_US)?;
    // A copy that the agent's user may run.
    fs::copy(lab.program("ampouled"), lab.path("ampouled"))?;
    let config = format!(
        "dev = true\nstate = 'agent'\n[listen]\nunix = 'serve/agent.sock'\n[runner]\nsocket = 'run/socket'\nstate = '{}'\n\
         [metrics]\nlisten = './serve/metrics.sock'\n[drain]\ndeadline = '500ms'\n",
        lab.state().display()
    );
    lab.write("agent.toml", config)?;
    Ok(())
}

/// `ampouled` as the agent's user, not started yet.
fn as_agent<'l>(lab: &'l Lab<'l>) -> Result<crate::lab::Call<'l>> {
    let (uid, gid) = agent(lab);
    let (uid, gid) = (uid.to_string(), gid.to_string());
    let call = lab.call("setpriv").args(["--reuid", &uid, "--regid", &gid, "--clear-groups"]);
    let call = call.arg(lab.path("ampouled")).arg("--config").arg(lab.path("agent.toml"));
    // The tests' own is root's.
    Ok(call.env("TMPDIR", lab.path("agent")))
}

impl<'l> Daemon<'l> {
    fn start(lab: &'l Lab<'l>) -> Result<Self> {
        let mut live = as_agent(lab)?.start()?;
        live.until_says("\"message\":\"ready\"")?;
        Ok(Self { live })
    }

    /// Asks it to end, and waits until it has.
    fn stop(self) -> Result<Ran> {
        self.live.signal(Signal::TERM)?;
        self.live.end()?.exits(0)
    }
}

fn submit<'l>(lab: &'l Lab<'l>, job: &str) -> Result<crate::lab::Call<'l>> {
    let server = format!("unix://{}", socket(lab).display());
    Ok(lab.ampoule().arg("submit").arg(lab.job(job)?).args(["--wait", "--server", &server]))
}

/// A job that runs until a file is there.
fn step(script: &str) -> String {
    super::sh("s", script) + &super::output("out", "/build/out")
}

fn restarts(lab: &Lab) -> Result<()> {
    lab.leaves_jobs();
    prepare(lab)?;
    let launcher = Listener::start(lab, &[])?;
    let daemon = Daemon::start(lab)?;
    let out = lab.path("submitted");
    let long = "sleep 8.125";
    let job = step(&format!("echo begun; {long}; echo built > /build/out"));
    let mut client = submit(lab, &job)?.arg("--out").arg(&out).start()?;
    client.until_runs(long)?;
    daemon.stop()?;
    let runs = || procs::with_args(long).iter().any(|process| process.is_program(long));
    ensure!(runs(), "the job ended with the daemon");
    launcher.kill()?;
    ensure!(runs(), "the job ended with the launcher");
    let launcher = Listener::start(lab, &[])?;
    let daemon = Daemon::start(lab)?;
    ensure!(runs(), "this machine is too slow: the job ended before both were started again");
    client.end()?.exits(0)?;
    equal("output", &fs::read_to_string(out.join("outputs/out"))?, &"built\n".to_owned())?;
    equal("log", &fs::read_to_string(out.join("evidence/logs/0-s.stdout"))?, &"begun\n".to_owned())?;
    daemon.stop()?;
    launcher.stop()
}

fn policies(lab: &Lab) -> Result<()> {
    lab.leaves_jobs();
    prepare(lab)?;
    let launcher = Listener::start(lab, &[])?;
    let mut daemon = Daemon::start(lab)?;
    let job = step("echo x > /build/out");
    policy(lab, "allow if nonsense(")?;
    daemon.live.signal(Signal::HUP)?;
    daemon.live.until_says("was not taken")?;
    submit(lab, &job)?.end()?.exits(0).context("under the policy before the broken one")?;
    policy(lab, "allow if input.caller.subject == \"uid:4711\"")?;
    daemon.live.signal(Signal::HUP)?;
    daemon.live.until_says("was read again")?;
    submit(lab, &job)?.end()?.exits(77).context("under a policy that lets somebody else")?;
    let checkpoint = lab.path("agent/audit/checkpoint");
    eventually(SOON, "the refusal is in the audit log", || {
        // Started, reload refused, submitted, finished, reload taken, denied.
        let text = fs::read_to_string(&checkpoint).unwrap_or_default();
        text.lines().nth(1).and_then(|size| size.parse::<u64>().ok()).is_some_and(|size| size >= 6)
    })?;
    daemon.stop()?;
    launcher.stop()
}

/// A small disk in memory for the audit log; gone when this is.
struct Small(PathBuf);

impl Small {
    fn mount(lab: &Lab) -> Result<Self> {
        let (uid, gid) = agent(lab);
        let path = lab.path("agent/audit");
        fs::create_dir(&path)?;
        let options = format!("size=3m,mode=0700,uid={uid},gid={gid}");
        lab.call("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).end()?.exits(0)?;
        Ok(Self(path))
    }

    /// Leaves no room, not even what was set aside.
    fn fill(&self) -> Result<()> {
        let _ = fs::remove_file(self.0.join("reserve"));
        let mut file = fs::File::options().create(true).append(true).open(self.0.join("filler"))?;
        while std::io::Write::write(&mut file, &[1; 4096]).is_ok_and(|count| count > 0) {}
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn audited(lab: &Lab) -> Result<()> {
    lab.leaves_jobs();
    prepare(lab)?;
    let disk = Small::mount(lab)?;
    let launcher = Listener::start(lab, &[])?;
    let mut daemon = Daemon::start(lab)?;
    let job = step("echo x > /build/out");
    let server = format!("unix://{}", socket(lab).display());
    let ask = |command: &str| lab.ampoule().arg(command).args(["--server", &server]);
    // One of which nobody has read anything.
    ask("submit").arg(lab.job(&job)?).end()?.exits(0)?;
    let text = ask("list").end()?.exits(0)?.stdout_text();
    let unread = text.split_whitespace().next().context("no job")?.to_owned();
    let out = lab.path("submitted");
    let ran = submit(lab, &job)?.arg("--out").arg(&out).end()?.exits(0)?;
    let listed = || Ok::<_, anyhow::Error>(ask("list").end()?.exits(0)?.stdout_text().lines().count());
    // The id stands first.
    let text = ask("list").end()?.exits(0)?.stdout_text();
    let id = text.split_whitespace().next().context("no job")?.to_owned();
    eventually(SOON, "the first job has ended", || {
        ask("get").arg(&unread).end().is_ok_and(|ran| ran.stdout_text().contains("succeeded"))
    })?;
    disk.fill()?;
    let another = submit(lab, &step("echo y > /build/out"))?.arg("--out").arg(lab.path("later"));
    let mut another = another.start()?;
    daemon.live.until_says("the audit log was not written")?;
    let mut reads = ask("logs").arg(&unread).start()?;
    // They are asked to try again, and get nothing.
    std::thread::sleep(Duration::from_secs(1));
    ensure!(another.is_running() && reads.is_running(), "nobody waits for the audit log");
    equal("jobs", &listed()?, &2)?;
    // What stands in the log is read: it says so already, and how often comes later.
    ask("logs").arg(&id).end()?.exits(0)?;
    disk.free()?;
    another.end()?.exits(0)?;
    reads.end()?.exits(0)?;
    equal("jobs", &listed()?, &3)?;
    ask("logs").arg(&id).end()?.exits(0)?;
    daemon.live.signal(Signal::HUP)?;
    daemon.live.until_says("was read again")?;
    daemon.stop()?;
    launcher.stop()?;
    let entries = audit_log::entries(lab, &disk.0)?;
    let at = |action: &str, id: &str| {
        let is_it = |e: &Value| e["action"] == action && (id.is_empty() || e["job"] == id);
        entries.iter().position(is_it).with_context(|| format!("no {action} of {id}: {entries:#?}"))
    };
    let order = [
        at("daemon.started", "")?,
        at("job.submitted", &id)?,
        at("job.finished", &id)?,
        at("read.evidence", &id)?,
        at("read.outputs", &id)?,
        at("reload.config", "")?,
        at("daemon.stopped", "")?,
    ];
    ensure!(order.is_sorted(), "{order:?}: {entries:#?}");
    // A reload has one entry, whatever it has read: half of one can stand nowhere.
    let reloads: Vec<_> =
        entries.iter().filter(|e| e["action"].as_str().is_some_and(|a| a.starts_with("reload."))).collect();
    equal("entries of a reload", &reloads.len(), &1)?;
    let said = reloads.first().and_then(|e| e["detail"].as_object()).context("no detail")?;
    equal("what a reload says", &said.keys().map(String::as_str).collect(), &vec!["config", "policy"])?;
    let logs = entries.iter().filter(|e| e["action"] == "read.logs" && e["job"] == id.as_str());
    let calls = |e: &Value| e["detail"]["calls"].as_str().map_or(Some(1), |calls| calls.parse::<u32>().ok());
    let calls: Vec<_> = logs.map(calls).collect();
    ensure!(calls.iter().flatten().sum::<u32>() >= 3 && calls.len() == 2, "{calls:?}: {entries:#?}");
    for action in ["job.submitted", "job.finished"] {
        equal(action, &entries.iter().filter(|e| e["action"] == action).count(), &3)?;
    }
    let attestation = at("job.finished", &id)?;
    let envelope = fs::read(out.join("evidence/run.intoto.jsonl"))?;
    let said = entries.get(attestation).context("no entry")?["detail"]["attestation"].clone();
    equal("attestation", &said, &Value::from(crate::check::sha256(&envelope)))?;
    drop(ran);
    Ok(())
}

/// Sources and limits are read again, and what waits and fits no more ends.
fn reloads(lab: &Lab) -> Result<()> {
    lab.leaves_jobs();
    prepare(lab)?;
    let server = Server::start("200 OK", b"from afar\n".to_vec())?;
    let config = fs::read_to_string(lab.path("agent.toml"))?;
    let configure_with = |top: &str, limits: &str| {
        let sources = format!("sources = '{}'\n", lab.sources().display());
        lab.write("agent.toml", format!("{top}{sources}{config}[limits]\n{limits}\n")).map(drop)
    };
    let configure = |limits: &str| configure_with("", limits);
    lab.write("sources.toml", "sources = 1\n[project.default]\nallow = []\n")?;
    configure("memory = '64MiB'")?;
    let launcher = Listener::start(lab, &[])?;
    let mut daemon = Daemon::start(lab)?;
    let http = format!("http = {{ url = \"{}\", sha256 = \"{}\" }}", server.url("f"), sha256(b"from afar\n"));
    let job = super::input("far", &http, "/build/far", false)
        + &super::sh("s", "cp far out")
        + &super::output("out", "/build/out")
        + "[limits]\nmemory = '256MiB'\n";
    let said = submit(lab, &job)?.end()?.exits(64)?.stderr;
    ensure!(said.contains("memory"), "it does not say what is too little: {said}");
    configure("memory = '1GiB'")?;
    daemon.live.signal(Signal::HUP)?;
    daemon.live.until_says_times("was read again", 1)?;
    submit(lab, &job)?.end()?.exits(77)?.says(&["input.source_denied"])?;
    lab.list(&server.url("f"))?;
    daemon.live.signal(Signal::HUP)?;
    daemon.live.until_says_times("was read again", 2)?;
    submit(lab, &job)?.end()?.exits(0)?;
    configure_with("profiles = ['another']\n", "memory = '1GiB'")?;
    daemon.live.signal(Signal::HUP)?;
    daemon.live.until_says_times("was read again", 3)?;
    submit(lab, &job)?.end()?.says(&["is not allowed on this host; allowed: another"])?;
    // One runs, and one waits for more than there will be.
    configure("memory = '1GiB'\nrunning = 1")?;
    daemon.live.signal(Signal::HUP)?;
    daemon.live.until_says_times("was read again", 4)?;
    let marker = lab.marker();
    let sleep = super::sh("s", &format!("exec sleep {marker}")) + "[limits]\nmemory = '256MiB'\n";
    let mut runs = submit(lab, &sleep)?.start()?;
    runs.until_runs(&format!("sleep {marker}"))?;
    let mut waits = submit(lab, &job)?.start()?;
    waits.until_says("queued, 0 ahead")?;
    configure("memory = '64MiB'")?;
    daemon.live.signal(Signal::HUP)?;
    waits.end()?.exits(3)?.says(&["limits were changed"])?;
    ensure!(
        procs::with_args(&format!("sleep {marker}")).iter().any(|p| p.is_program(&format!("sleep {marker}")))
    );
    runs.signal(Signal::TERM)?;
    runs.end()?.exits(3)?;
    daemon.stop()?;
    launcher.stop()?;
    let entries = audit_log::entries(lab, &lab.path("agent/audit"))?;
    let reloads: Vec<_> = entries.iter().filter(|e| e["action"] == "reload.config").collect();
    equal("reloads", &reloads.len(), &5)?;
    let digests: std::collections::BTreeSet<_> =
        reloads.iter().filter_map(|e| e["detail"]["sources"].as_str()).collect();
    equal("digests of sources", &digests.len(), &2)
}

/// Long before it is compared by the clock the host is looked at again: when the launcher comes back, and when the file of a
/// program is another. Each time stands in the audit log.
fn drifts(lab: &Lab) -> Result<()> {
    lab.leaves_jobs();
    prepare(lab)?;
    let config = fs::read_to_string(lab.path("agent.toml"))?;
    let host = "[host]\nbaseline = 'agent/baseline.json'\nevery = '1h'\nrefuse_on_drift = true\n";
    lab.write("agent.toml", config + host)?;
    let runner = lab.path("ampoule-runner");
    fs::copy(lab.program("ampoule-runner"), &runner)?;
    as_agent(lab)?.arg("--record-baseline").end()?.exits(0)?;
    let baseline = lab.path("agent/baseline.json");
    let recorded = fs::read_to_string(&baseline)?;
    let launcher = Listener::start(lab, &[])?;
    let mut daemon = Daemon::start(lab)?;
    let job = step("echo x > /build/out");
    submit(lab, &job)?.end()?.exits(0)?;
    launcher.kill()?;
    fs::write(&baseline, recorded.replace("\"kernel.release\": \"", "\"kernel.release\": \"not "))?;
    let launcher = Listener::start(lab, &[])?;
    daemon.live.until_says_times("not what its baseline says", 1)?;
    let mut waits = submit(lab, &job)?.start()?;
    waits.until_says("not what its baseline says")?;
    launcher.kill()?;
    fs::write(&baseline, &recorded)?;
    let launcher = Listener::start(lab, &[])?;
    waits.end()?.exits(0)?;
    let said = fs::File::options().append(true).open(&runner);
    std::io::Write::write_all(&mut said?, b"x")?;
    daemon.live.until_says("program.ampoule-runner")?;
    daemon.stop()?;
    launcher.stop()?;
    let entries = audit_log::entries(lab, &lab.path("agent/audit"))?;
    let drifts = entries.iter().filter(|e| e["action"] == "host.drifted");
    let told: Vec<_> =
        drifts.map(|e| (e["detail"]["facts"].as_str(), e["detail"]["first"].as_str())).collect();
    let expected = [
        (Some("1"), Some("kernel.release")),
        (Some("0"), Some("")),
        (Some("1"), Some("program.ampoule-runner")),
    ];
    equal("drifts in the audit log", &told, &expected.to_vec())
}

/// A drain by command holds over a restart; who submits meanwhile hears why he waits, and is served when it is undone. Who may
/// not write to the socket is told at once.
fn drained(lab: &Lab) -> Result<()> {
    lab.leaves_jobs();
    prepare(lab)?;
    let launcher = Listener::start(lab, &[])?;
    let daemon = Daemon::start(lab)?;
    let server = format!("unix://{}", socket(lab).display());
    let drain = |args: &[&str]| lab.ampoule().arg("drain").args(args).args(["--server", &server]).end();
    let said = drain(&["--json"])?.exits(0)?.json_lines()?;
    equal("drain", &said, &vec![serde_json::json!({"drained": true, "running": 0, "queued": 0})])?;
    daemon.stop()?;
    let daemon = Daemon::start(lab)?;
    let mut waits = submit(lab, &step("echo x > /build/out"))?.start()?;
    waits.until_says("is being drained; trying again")?;
    let said = drain(&["--undo"])?.exits(0)?.stdout_text();
    equal("undone", &said, &"jobs are taken again: 0 run, 0 wait\n".to_owned())?;
    waits.end()?.exits(0)?;
    drain(&["--undo", "--cancel-queued"])?.exits(64)?;
    fs::copy(lab.program("ampoule"), lab.path("ampoule"))?;
    let stranger = || {
        let call = lab.call("setpriv").args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        call.arg(lab.path("ampoule")).args(["list", "--server", &server])
    };
    stranger().end()?.exits(77)?.says(&["is not for this user", "group"])?;
    // One that is just being made has its mode and its group a moment later.
    let made = stranger().start()?;
    std::thread::sleep(Duration::from_millis(500));
    fs::set_permissions(socket(lab), PermissionsExt::from_mode(0o666))?;
    let said = made.end()?.stderr;
    ensure!(!said.contains("is not for this user"), "{said}");
    daemon.stop()?;
    launcher.stop()?;
    let entries = audit_log::entries(lab, &lab.path("agent/audit"))?;
    let drains: Vec<_> = entries.iter().filter(|e| e["action"] == "daemon.drained").collect();
    equal("drains in the audit log", &drains.len(), &2)
}
