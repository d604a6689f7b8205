//! A process that times one command. Each contender gets its own, so that what it needs around it (a
//! mount namespace, say) is set up once and not measured.

use super::contender::Line;
use super::launch::{self, Launcher, Timed};
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// How many sandboxes the launcher keeps ready.
const POOL: usize = 2;

/// Between two jobs of a launcher that runs.
const PAUSE: Duration = Duration::from_millis(15);

/// How a job is sent to the runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Job {
    /// To a launcher that runs and has sandboxes ready.
    Warm,
    /// To a launcher that is started for it and ends with it.
    Cold,
}

impl Job {
    fn as_str(self) -> &'static str {
        match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
        }
    }
}

/// The child's side: one run for every line read, answered with nanoseconds and phases, or with a text.
pub(crate) fn serve(argv: &[String], job: Option<Job>) -> Result<()> {
    let mut out = std::io::stdout();
    let mut launcher = match job {
        Some(Job::Warm) => {
            let runner = argv.first().context("no runner")?;
            Some(Launcher::start(Path::new(runner), &std::env::current_dir()?, POOL)?)
        }
        _ => None,
    };
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        line?;
        let timed = match &mut launcher {
            Some(launcher) => {
                // Between two jobs a launcher has time to make the next sandbox, as between two builds.
                std::thread::sleep(PAUSE);
                launcher.once()
            }
            None => time_once(argv, job, number),
        };
        match timed {
            Ok(timed) => {
                let nanos = u64::try_from(timed.took.as_nanos())?;
                writeln!(out, "{}", serde_json::to_string(&(nanos, timed.phases))?)?;
            }
            Err(error) => writeln!(out, "failed: {error:#}")?,
        }
        out.flush()?;
    }
    Ok(())
}

fn time_once(argv: &[String], job: Option<Job>, number: usize) -> Result<Timed> {
    if job.is_some() {
        let runner = argv.first().context("no runner")?;
        return launch::cold(Path::new(runner), &std::env::current_dir()?, number);
    }
    let words: Vec<String> = argv.iter().map(|word| word.replace("{n}", &number.to_string())).collect();
    let (program, args) = words.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let start = Instant::now();
    let status = command.spawn()?.wait()?;
    let took = start.elapsed();
    ensure!(status.success(), "{status}");
    Ok(Timed { took, phases: Vec::new() })
}

/// The parent's side.
pub(crate) struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a worker for `argv`. `around`, if not empty, is a command that executes the rest.
    pub(crate) fn start(line: &Line, folder: &Path) -> Result<Self> {
        let own = std::env::current_exe()?.display().to_string();
        let mut serve = vec![own, "bench".into(), "worker".into()];
        if let Some(job) = line.job {
            serve.extend(["--job".into(), job.as_str().into()]);
        }
        serve.push("--".into());
        let words: Vec<&String> = line.around.iter().chain(&serve).chain(&line.argv).collect();
        let (program, args) = words.split_first().context("no command")?;
        let mut child = Command::new(program)
            .args(args)
            .current_dir(folder)
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("a pipe")?);
        Ok(Self { child, input, output })
    }

    /// One timed run.
    pub(crate) fn once(&mut self) -> Result<Timed> {
        let input = self.input.as_mut().context("the worker has ended")?;
        input.write_all(b"go\n")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let (nanos, phases) = serde_json::from_str(&line).map_err(|_| anyhow::anyhow!("{}", line.trim()))?;
        Ok(Timed { took: Duration::from_nanos(nanos), phases })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.input.take()); // end of file ends it
        let _ = self.child.wait();
    }
}
