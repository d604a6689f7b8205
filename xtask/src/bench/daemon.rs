//! `ampouled` over a launcher that listens, and the client that times it, each a process of its own.

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon has to begin or to end.
const SOON: Duration = Duration::from_secs(20);
/// What jobs of root's group may be read by: nobody else runs an agent here.
const GROUP: &str = "0";

/// What processes hold, in KiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held {
    /// Resident set of the agent.
    pub(crate) agent_kib: u64,
    /// Resident set of the process that listens.
    pub(crate) launcher_kib: u64,
    /// Both, and all that the launcher has forked, with shared pages counted once.
    pub(crate) all_pss_kib: u64,
}

/// The daemon, its launcher and a client.
pub(crate) struct Daemon {
    folder: PathBuf,
    launcher: Child,
    agent: Child,
    client: Child,
    asks: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Daemon {
    /// Starts all three in a new directory below `folder`.
    pub(crate) fn start(programs: &Path, folder: &Path) -> Result<Self> {
        let folder = folder.join(format!("daemon-{}", std::process::id()));
        fs::create_dir_all(folder.join("policy"))?;
        let state = folder.join("state");
        fs::create_dir_all(&state)?;
        fs::set_permissions(&state, PermissionsExt::from_mode(0o711))?;
        fs::write(
            folder.join("policy/authz.rego"),
            "package ampoule.authz\ndefault allow := false\nallow if input.caller.subject == \"uid:0\"\n",
        )?;
        let (runner, agent) = (folder.join("runner.sock"), folder.join("agent.sock"));
        // The operator promises more than there is: what is measured is the machine's limit, not the queue's.
        let config = format!(
            "dev = true\nstate = \"{0}/agent\"\npolicy = \"{0}/policy\"\n[listen]\nunix = \"{1}\"\n[runner]\nsocket = \"{2}\"\nstate = \"{3}\"\n\
             [limits]\ncpus = 64\nmemory = \"128GiB\"\ndisk = \"256GiB\"\n[metrics]\nlisten = \"off\"\n[log]\nlevel = \"warn\"\n",
            folder.display(),
            agent.display(),
            runner.display(),
            state.display(),
        );
        fs::write(folder.join("agent.toml"), config)?;
        let log = |name: &str| File::create(folder.join(name));
        let mut listen = Command::new(programs.join("ampoule-runner"));
        listen.arg("listen").arg("--state").arg(&state).arg("--socket").arg(&runner);
        listen.args(["--agent", "0", "--group", GROUP]).env_clear().stdin(Stdio::null());
        let launcher = listen.stdout(Stdio::null()).stderr(log("launcher.log")?).spawn()?;
        let mut serve = Command::new(programs.join("ampouled"));
        serve.arg("--config").arg(folder.join("agent.toml")).env_clear().stdin(Stdio::null());
        let daemon = serve.stdout(Stdio::null()).stderr(log("agent.log")?).spawn()?;
        let begun = Instant::now();
        while !agent.exists() {
            let said = || fs::read_to_string(folder.join("agent.log")).unwrap_or_default();
            ensure!(begun.elapsed() < SOON, "the daemon does not listen: {}", said());
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut load = Command::new(programs.join("examples/submit_load"));
        load.arg(&agent).env_clear().stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = load.spawn()?;
        let asks = client.stdin.take();
        let answers = BufReader::new(client.stdout.take().context("a pipe")?);
        Ok(Self { folder, launcher, agent: daemon, client, asks, answers })
    }

    /// The agent's process id.
    pub(crate) fn agent(&self) -> u32 {
        self.agent.id()
    }

    /// Has the client do something, and waits for what it says.
    pub(crate) fn ask(&mut self, what: &str) -> Result<Value> {
        let asks = self.asks.as_mut().context("the client has ended")?;
        writeln!(asks, "{what}")?;
        asks.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let said = || fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default();
        serde_json::from_str(&line).with_context(|| format!("{what}: {line:?}; the daemon: {}", said()))
    }

    /// One job of `/bin/true`.
    pub(crate) fn one(&mut self) -> Result<Duration> {
        let said = self.ask("one")?;
        let nanos = said.get("nanos").and_then(Value::as_u64);
        Ok(Duration::from_nanos(nanos.context("no time")?))
    }

    /// What is held when nothing is done.
    pub(crate) fn held(&self) -> Result<Held> {
        std::thread::sleep(Duration::from_secs(1));
        let (agent, launcher) = (self.agent.id(), self.launcher.id());
        let mut all_pss_kib = kib(agent, "smaps_rollup", "Pss:")?;
        for pid in family(launcher) {
            // One that has ended meanwhile holds nothing.
            all_pss_kib += kib(pid, "smaps_rollup", "Pss:").unwrap_or(0);
        }
        Ok(Held {
            agent_kib: kib(agent, "status", "VmRSS:")?,
            launcher_kib: kib(launcher, "status", "VmRSS:")?,
            all_pss_kib,
        })
    }

    /// Ends all three, and removes what they have written.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.asks = None;
        self.client.wait()?;
        end(&mut self.agent)?;
        end(&mut self.launcher)?;
        Ok(fs::remove_dir_all(&self.folder)?)
    }
}

impl Drop for Daemon {
    /// After a failure; what they have said stays.
    fn drop(&mut self) {
        for child in [&mut self.client, &mut self.agent, &mut self.launcher] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn end(child: &mut Child) -> Result<()> {
    let pid = Pid::from_raw(child.id().cast_signed()).context("no process id")?;
    kill_process(pid, Signal::TERM)?;
    let begun = Instant::now();
    while begun.elapsed() < SOON {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "it ended with {status}");
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("it does not end")
}

fn kib(pid: u32, file: &str, key: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A process and all below it.
fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let below = children.split_whitespace().filter_map(|child| child.parse().ok()).flat_map(family);
    std::iter::once(pid).chain(below).collect()
}
