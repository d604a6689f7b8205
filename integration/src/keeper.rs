//! The keeper of the daemon's jobs as a process that can be killed: what a test asks it, and what its watchers are told.

use crate::lab::Lab;
use crate::listener::{Listener, agent};
use crate::procs::patience;
use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);

/// What a watcher of one job has, across every restart.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    pub(crate) cursor: u64,
    pub(crate) logs: BTreeMap<(u64, String), Vec<u8>>,
    /// The job as it was told last.
    pub(crate) job: Value,
    /// The states in the order in which they were told, each once.
    pub(crate) states: Vec<String>,
    /// What it was told of that cannot be.
    pub(crate) wrong: Vec<String>,
    watched: bool,
}

impl Followed {
    pub(crate) fn is_finished(&self) -> bool {
        self.job["state"] == "finished"
    }

    fn hear(&mut self, line: &Value) {
        if let Some(cursor) = line["cursor"].as_u64() {
            if cursor < self.cursor {
                self.wrong.push(format!("cursor {cursor} after {}", self.cursor));
            }
            self.cursor = cursor;
        }
        if line["job"].is_object() {
            let state = line["job"]["state"].as_str().unwrap_or_default().to_owned();
            if self.states.last() != Some(&state) {
                self.states.push(state);
            }
            self.job = line["job"].clone();
        }
        if let Some(text) = line["log"].as_str() {
            let stream = line["stream"].as_str().unwrap_or_default().to_owned();
            let log = self.logs.entry((line["step"].as_u64().unwrap_or_default(), stream)).or_default();
            if line["offset"].as_u64() != u64::try_from(log.len()).ok() {
                self.wrong.push(format!("offset {} after {} bytes", line["offset"], log.len()));
            }
            log.extend(STANDARD.decode(text).unwrap_or_default());
        }
    }
}

/// The process.
pub(crate) struct Keeper<'l> {
    lab: &'l Lab<'l>,
    child: Child,
    /// None once it is told to end.
    asks: Option<ChildStdin>,
    lines: Receiver<Value>,
    next: u64,
    answers: HashMap<u64, Value>,
    watches: HashMap<u64, String>,
    pub(crate) followed: BTreeMap<String, Followed>,
}

/// The keeper's own directory.
pub(crate) fn state(lab: &Lab) -> PathBuf {
    lab.path("agent")
}

/// The program: a copy that the agent's user may run.
fn program(lab: &Lab) -> Result<PathBuf> {
    let copy = lab.path("keeper");
    if !copy.exists() {
        let built = lab.program("examples/keeper");
        ensure!(
            built.is_file(),
            "{} is missing; run cargo build -p ampoule-agent --examples",
            built.display()
        );
        fs::copy(built, &copy)?;
    }
    Ok(copy)
}

/// Starts a program that was just written: a process that another thread is making may have it open for writing still.
fn spawn(command: &mut Command) -> Result<Child> {
    let begun = Instant::now();
    loop {
        match command.spawn() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy && begun.elapsed() < ANSWER => {
                std::thread::sleep(Duration::from_millis(10));
            }
            spawned => return Ok(spawned?),
        }
    }
}

impl<'l> Keeper<'l> {
    /// Starts it as the agent's user, and waits until it has taken up what is unfinished.
    pub(crate) fn start(listener: &Listener<'l>, lab: &'l Lab<'l>, args: &[&str]) -> Result<Self> {
        let ((uid, gid), state) = (agent(lab), state(lab));
        if !state.exists() {
            fs::create_dir(&state)?;
            std::os::unix::fs::chown(&state, Some(uid), Some(gid))?;
        }
        let log = File::options().create(true).append(true).open(lab.path("keeper.log"))?;
        let mut command = Command::new(program(lab)?);
        command.arg("--state").arg(&state).arg("--socket").arg(&listener.socket);
        command.arg("--jobs").arg(lab.state().join("jobs")).args(args).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        if lab.is_root() {
            command.uid(uid).gid(gid);
        }
        let mut child = spawn(&mut command)?;
        let out = child.stdout.take().context("no standard output")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let told = serde_json::from_str(&line).map(|line| send.send(line));
                if !matches!(told, Ok(Ok(()))) {
                    break;
                }
            }
        });
        let asks = child.stdin.take();
        let mut keeper = Self {
            lab,
            child,
            asks,
            lines,
            next: 1,
            answers: HashMap::new(),
            watches: HashMap::new(),
            followed: BTreeMap::new(),
        };
        let ready = keeper.answer(0)?;
        ensure!(ready["ready"] == true, "it said {ready}");
        Ok(keeper)
    }

    /// `kill -9`; what the watchers have goes to whoever starts it again.
    pub(crate) fn kill(mut self) -> Result<BTreeMap<String, Followed>> {
        self.child.kill()?;
        self.child.wait()?;
        // What it had said before counts.
        while let Ok(line) = self.lines.recv() {
            self.hear(line);
        }
        let mut followed = std::mem::take(&mut self.followed);
        followed.values_mut().for_each(|job| job.watched = false);
        Ok(followed)
    }

    /// Ends it in good order.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.asks = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}: {}", said(self.lab));
        Ok(())
    }

    /// Asks something, and does not wait.
    pub(crate) fn send(&mut self, mut asked: Value) -> Result<u64> {
        let number = self.next;
        self.next += 1;
        asked["n"] = number.into();
        writeln!(self.asks.as_mut().context("it was told to end")?, "{asked}")?;
        Ok(number)
    }

    /// The answer to what was asked under a number.
    pub(crate) fn answer(&mut self, number: u64) -> Result<Value> {
        let begun = Instant::now();
        loop {
            if let Some(answer) = self.answers.remove(&number) {
                return Ok(answer);
            }
            ensure!(begun.elapsed() < patience(ANSWER), "no answer: {}", said(self.lab));
            self.listen(Duration::from_millis(50));
            if let Ok(Some(status)) = self.child.try_wait() {
                bail!("it ended with {status}: {}", said(self.lab));
            }
        }
    }

    pub(crate) fn ask(&mut self, asked: Value) -> Result<Value> {
        let number = self.send(asked)?;
        let answer = self.answer(number)?;
        ensure!(answer["error"].is_null(), "it refuses: {}", answer["error"]);
        Ok(answer)
    }

    /// Hears whatever is said within a time.
    pub(crate) fn listen(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            self.hear(line);
        }
    }

    fn hear(&mut self, line: Value) {
        let number = line["n"].as_u64().unwrap_or_default();
        let Some(id) = self.watches.get(&number).cloned() else {
            self.answers.insert(number, line);
            return;
        };
        let followed = self.followed.entry(id).or_default();
        if let Some(error) = line["error"].as_str() {
            followed.wrong.push(error.to_owned());
        }
        if line["end"] == true || line["error"].is_string() {
            followed.watched = false;
        }
        followed.hear(&line);
    }

    /// Follows every job that is known and not finished, from where its watcher was.
    pub(crate) fn follow_all(&mut self) -> Result<()> {
        let wanted: Vec<_> = self
            .followed
            .iter()
            .filter(|(_, job)| !job.watched && !job.is_finished())
            .map(|(id, job)| (id.clone(), job.cursor))
            .collect();
        for (id, cursor) in wanted {
            let number = self.send(json!({"do": "watch", "id": id, "after": cursor}))?;
            self.watches.insert(number, id.clone());
            self.followed.entry(id).or_default().watched = true;
        }
        Ok(())
    }

    /// Waits until a job is finished.
    pub(crate) fn finished(&mut self, id: &str) -> Result<Value> {
        self.followed.entry(id.to_owned()).or_default();
        let begun = Instant::now();
        loop {
            self.follow_all()?;
            // Who is finished is not waited for: that would be minutes for thousands of jobs.
            if !self.followed.get(id).is_some_and(Followed::is_finished) {
                self.listen(Duration::from_millis(50));
            }
            let followed = self.followed.get(id).context("nobody follows it")?;
            if followed.is_finished() {
                ensure!(followed.wrong.is_empty(), "the watcher of {id}: {:?}", followed.wrong);
                return Ok(followed.job.clone());
            }
            ensure!(begun.elapsed() < patience(ANSWER), "job {id} does not end: {}", said(self.lab));
        }
    }
}

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        // A test that failed leaves it running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What it has said to people.
pub(crate) fn said(lab: &Lab) -> String {
    let text = fs::read_to_string(lab.path("keeper.log")).unwrap_or_default();
    let start = text.len().saturating_sub(4000);
    text.chars().skip(start).collect()
}
