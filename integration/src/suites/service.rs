//! The whole daemon: `ampouled` without privilege beside a launcher that listens, and `ampoule submit` against it.

use crate::check::{Ran, equal};
use crate::harness::Test;
use crate::lab::{Lab, Live};
use crate::listener::{Listener, agent};
use crate::procs::{self, eventually};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("job_outlives_a_restart_of_both_daemons", restarts),
    Test::root("broken_policy_is_not_taken_and_a_good_one_is", policies),
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

impl<'l> Daemon<'l> {
    fn start(lab: &'l Lab<'l>) -> Result<Self> {
        let (uid, gid) = agent(lab);
        let call = lab.call("setpriv").args([
            "--reuid",
            &uid.to_string(),
            "--regid",
            &gid.to_string(),
            "--clear-groups",
        ]);
        let call = call.arg(lab.path("ampouled")).arg("--config").arg(lab.path("agent.toml"));
        // The tests' own is root's.
        let call = call.env("TMPDIR", lab.path("agent"));
        let mut live = call.start()?;
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
