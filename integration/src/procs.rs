//! Processes, as `/proc` shows them to everybody.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The first host user id that Ampoule gives to jobs (docs: the range ends below systemd's foreign ids).
const JOB_IDS: std::ops::Range<u32> = 1_879_048_192..2_147_352_576;

/// One process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) comm: String,
    /// Its arguments, with blanks between them.
    pub(crate) args: String,
    pub(crate) uid: u32,
    /// Its ids in this and in each inner pid namespace.
    pub(crate) pids: Vec<i32>,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field =
            |key: &str| status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
        if field("State")?.starts_with(['Z', 'X']) {
            return None;
        }
        let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        Some(Self {
            pid,
            parent: field("PPid")?.parse().ok()?,
            comm: field("Name")?.to_owned(),
            args: String::from_utf8_lossy(&args).replace('\0', " "),
            uid: field("Uid")?.split_whitespace().nth(1)?.parse().ok()?,
            pids: field("NSpid").map(|f| f.split_whitespace().filter_map(|n| n.parse().ok()).collect())?,
        })
    }

    pub(crate) fn is_of_a_job(&self) -> bool {
        JOB_IDS.contains(&self.uid)
    }

    /// Whether it is the program itself, whatever its folder, and not a shell that was told to start it.
    pub(crate) fn is_program(&self, args: &str) -> bool {
        let (program, rest) = self.args.split_once(' ').unwrap_or((&self.args, ""));
        let name = program.rsplit('/').next().unwrap_or_default();
        format!("{name} {rest}").starts_with(args)
    }

    pub(crate) fn is_runner(&self) -> bool {
        self.comm == "ampoule-runner"
    }
}

/// All processes but zombies.
pub(crate) fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter_map(Process::read).collect()
}

/// All processes whose arguments hold this text, the calling one left out.
pub(crate) fn with_args(text: &str) -> Vec<Process> {
    let own = std::process::id().cast_signed();
    all().into_iter().filter(|p| p.pid != own && p.args.contains(text)).collect()
}

/// The processes of one `ampoule run` whose step runs.
#[derive(Debug)]
pub(crate) struct Cast {
    pub(crate) client: i32,
    pub(crate) launcher: i32,
    pub(crate) supervisor: i32,
    pub(crate) init: i32,
    pub(crate) pump: i32,
}

impl Cast {
    /// Finds them below a client.
    pub(crate) fn of(client: i32) -> Result<Self> {
        let all = all();
        let child = |parent: i32, what: &str, wanted: &dyn Fn(&Process) -> bool| {
            all.iter()
                .find(|p| p.parent == parent && p.is_runner() && wanted(p))
                .map(|p| p.pid)
                .with_context(|| format!("no {what} below process {parent}"))
        };
        let launcher = child(client, "launcher", &|_| true)?;
        let supervisor = child(launcher, "supervisor", &|p| p.pids.len() == own_depth())?;
        let init =
            child(supervisor, "init", &|p| p.pids.len() == own_depth() + 1 && p.pids.last() == Some(&1))?;
        let pump = child(supervisor, "log pump", &|p| p.pids.len() == own_depth())?;
        Ok(Self { client, launcher, supervisor, init, pump })
    }
}

/// How many ids a process of our own pid namespace shows.
pub(crate) fn own_depth() -> usize {
    Process::read(std::process::id().cast_signed()).map_or(1, |p| p.pids.len())
}

/// Sends a signal to one process.
pub(crate) fn signal(pid: i32, signal: Signal) -> Result<()> {
    let Some(pid) = Pid::from_raw(pid) else { bail!("{pid} is no process id") };
    kill_process(pid, signal).with_context(|| format!("kill {}", pid.as_raw_nonzero()))
}

/// Kills a process; one that has died by the death of another before it is as dead.
pub(crate) fn kill(pid: i32) -> Result<()> {
    match signal(pid, Signal::KILL) {
        Err(error) if error.downcast_ref() == Some(&rustix::io::Errno::SRCH) => Ok(()),
        other => other,
    }
}

/// How long something may take that takes at most `limit` where the processor is real.
///
/// `AMPOULE_PATIENCE` is a factor for machines that are emulated. What a job file limits is not meant: that
/// is the product's own clock.
pub(crate) fn patience(limit: Duration) -> Duration {
    limit.saturating_mul(factor())
}

/// Of how many places of a fault one is tried: all, but where the processor is emulated every third.
pub(crate) fn stride() -> u32 {
    if factor() > 1 { 3 } else { 1 }
}

fn factor() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| factor_of(std::env::var("AMPOULE_PATIENCE").ok().as_deref()))
}

fn factor_of(text: Option<&str>) -> u32 {
    text.and_then(|t| t.parse().ok()).filter(|f| *f > 0).unwrap_or(1)
}

/// Waits until something holds, for as long as [`patience`] makes of the limit.
pub(crate) fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let limit = patience(limit);
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() > limit {
            bail!("after {} s still not: {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factor_of_what_is_no_factor_is_one() {
        assert_eq!([Some("10"), Some("0"), Some("ten"), None].map(factor_of), [10, 1, 1, 1]);
    }
}
