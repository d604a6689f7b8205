//! A job's control groups, on version 2 and on hosts where controllers sit in version 1 hierarchies.
//!
//! No process is ever moved: init is made inside its version 2 group (`CLONE_INTO_CGROUP`), and joins
//! version 1 groups by writing `0` to their `tasks` files, which it inherits open. A thread that moves itself
//! does not take the lock that costs an RCU grace period (about 10 ms after idle) when another process is
//! moved through `cgroup.procs`.

use crate::error::{Stage, StageError};
use ampoule_spec::{JobId, Limits};
use rustix::fs::{Mode, OFlags, open};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The controllers that limits need.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

/// Where this host keeps its control groups, seen from the calling process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hierarchies {
    /// The version 2 directory under which jobs get theirs, with the controllers that it can give.
    pub unified: Option<(PathBuf, Vec<String>)>,
    /// The version 1 directory under which jobs get theirs, by controller.
    pub legacy: BTreeMap<String, PathBuf>,
}

impl Hierarchies {
    /// Reads them from `/proc/self`.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub fn of_host() -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mine = fs::read_to_string("/proc/self/cgroup")?;
        let mut found = Self::parse(&mounts, &mine);
        if let Some((path, controllers)) = &mut found.unified {
            let text = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
            *controllers = text.split_whitespace().map(str::to_owned).collect();
        }
        Ok(found)
    }

    /// Finds the directories in the texts of `mountinfo` and `cgroup` (proc(5), cgroups(7)).
    fn parse(mountinfo: &str, cgroup: &str) -> Self {
        let mine: BTreeMap<&str, &str> = cgroup
            .lines()
            .filter_map(|line| {
                let mut parts = line.splitn(3, ':').skip(1);
                Some((parts.next()?, parts.next()?))
            })
            .flat_map(|(controllers, path)| controllers.split(',').map(move |c| (c, path)))
            .collect();
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ').skip(3);
            let (Some(root), Some(point)) = (left.next(), left.next()) else { continue };
            let mut right = right.split(' ');
            let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
            match kind {
                // Jobs get their groups below the root of the tree that we see: a group that holds
                // processes, as ours does, cannot hand controllers down (cgroups(7), "no internal
                // processes").
                Some("cgroup2") if found.unified.is_none() => {
                    found.unified = Some((PathBuf::from(point), Vec::new()));
                }
                Some("cgroup") => {
                    for controller in options.split(',').filter(|o| CONTROLLERS.contains(o)) {
                        let own = mine.get(controller).copied().unwrap_or("/");
                        let below = own.strip_prefix(root.trim_end_matches('/')).unwrap_or(own);
                        let path = Path::new(point).join(below.trim_start_matches('/'));
                        found.legacy.entry(controller.to_owned()).or_insert(path);
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// The controllers that this host cannot give a job.
    pub fn missing(&self) -> Vec<&'static str> {
        let unified = |c: &&str| self.unified.as_ref().is_some_and(|(_, have)| have.iter().any(|h| h == c));
        CONTROLLERS.into_iter().filter(|c| !unified(c) && !self.legacy.contains_key(*c)).collect()
    }

    /// The directories that a job's groups will be, to be named in its intent.
    pub fn job_paths(&self, job: &JobId) -> Vec<PathBuf> {
        let name = format!("ampoule-{job}");
        let unified = self.unified.iter().map(|(path, _)| path.join(&name));
        let mut legacy: Vec<_> = CONTROLLERS
            .iter()
            .filter(|c| !self.gives_unified(c))
            .filter_map(|c| self.legacy.get(*c))
            .map(|path| path.join(&name))
            .collect();
        legacy.dedup();
        unified.chain(legacy).collect()
    }

    fn gives_unified(&self, controller: &str) -> bool {
        self.unified.as_ref().is_some_and(|(_, have)| have.iter().any(|h| h == controller))
    }

    fn dir_of(&self, controller: &str, job: &JobId) -> Option<(PathBuf, bool)> {
        let name = format!("ampoule-{job}");
        if self.gives_unified(controller) {
            return self.unified.as_ref().map(|(path, _)| (path.join(name), true));
        }
        self.legacy.get(controller).map(|path| (path.join(name), false))
    }
}

/// The control groups of one job.
#[derive(Debug)]
pub struct JobCgroup {
    dirs: Vec<PathBuf>,
    unified: Option<PathBuf>,
    memory: Option<(PathBuf, bool)>,
    pids: Option<(PathBuf, bool)>,
    /// To be passed to clone3(2).
    pub into: Option<OwnedFd>,
    /// `tasks` files of version 1 groups, for init to join by.
    pub join: Vec<OwnedFd>,
}

/// What a job's control groups have counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: u64,
    /// Forks that failed for the process limit.
    pub forks_refused: u64,
    /// Processor time in microseconds.
    pub cpu_micros: u64,
    /// The highest memory use in bytes since the last reset.
    pub memory_peak_bytes: u64,
}

impl JobCgroup {
    /// Makes the groups and sets the limits.
    ///
    /// # Errors
    /// The controller and the value that the kernel refused. What was made is removed again.
    pub fn create(host: &Hierarchies, job: &JobId, limits: &Limits) -> Result<Self, StageError> {
        let mut made = Self {
            dirs: Vec::new(),
            unified: None,
            memory: host.dir_of("memory", job),
            pids: host.dir_of("pids", job),
            into: None,
            join: Vec::new(),
        };
        let done = made.make(host, job, limits);
        if done.is_err() {
            let _ = made.remove(Duration::from_secs(1));
        }
        done.map(|()| made)
    }

    fn make(&mut self, host: &Hierarchies, job: &JobId, limits: &Limits) -> Result<(), StageError> {
        if let Some((base, _)) = &host.unified {
            for controller in CONTROLLERS.iter().filter(|c| host.gives_unified(c)) {
                write(base.join("cgroup.subtree_control"), &format!("+{controller}"))
                    .stage("cgroup: hand controllers down from the root group")?;
            }
        }
        for path in host.job_paths(job) {
            fs::create_dir(&path).stage("cgroup: create")?;
            self.dirs.push(path.clone());
            if host.unified.as_ref().is_some_and(|(base, _)| path.starts_with(base)) {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                self.into = Some(open(&path, flags, Mode::empty()).stage("cgroup: open")?);
                self.unified = Some(path);
            } else {
                let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                let tasks = open(path.join("tasks"), flags, Mode::empty()).stage("cgroup: open tasks")?;
                self.join.push(tasks);
            }
        }
        set_memory(host.dir_of("memory", job), limits.memory_bytes)?;
        // Init is a process of the job's groups but not one of the job's.
        let pids = (limits.pids + 1).to_string();
        if let Some((dir, _)) = host.dir_of("pids", job) {
            write_exact(&dir.join("pids.max"), &pids).stage("cgroup: limit processes")?;
        }
        match host.dir_of("cpu", job) {
            Some((dir, true)) => {
                let quota = format!("{} 100000", limits.cpu_millis * 100);
                write_exact(&dir.join("cpu.max"), &quota).stage("cgroup: limit processor time")?;
            }
            Some((dir, false)) => {
                write_exact(&dir.join("cpu.cfs_period_us"), "100000").stage("cgroup: set the period")?;
                let quota = (limits.cpu_millis * 100).to_string();
                write_exact(&dir.join("cpu.cfs_quota_us"), &quota).stage("cgroup: limit processor time")?;
            }
            None => {}
        }
        Ok(())
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// If a counter cannot be read: a limit whose verdict is unknown is not one that held.
    pub fn counts(&self) -> io::Result<Counts> {
        let mut counts = Counts::default();
        if let Some((dir, unified)) = &self.memory {
            let events = if *unified { "memory.events" } else { "memory.oom_control" };
            counts.oom_kills = field(&dir.join(events), "oom_kill")?;
            let peak = if *unified { "memory.peak" } else { "memory.max_usage_in_bytes" };
            // A figure, not a verdict; memory.peak came with Linux 5.19.
            counts.memory_peak_bytes = number(&dir.join(peak)).unwrap_or(0);
        }
        if let Some(dir) = &self.unified {
            counts.cpu_micros = field(&dir.join("cpu.stat"), "usage_usec")?;
        }
        if let Some((dir, _)) = &self.pids {
            counts.forks_refused = field(&dir.join("pids.events"), "max")?;
        }
        Ok(counts)
    }

    /// Begins a new measurement of the memory peak, where the kernel can.
    pub fn reset_peak(&self) {
        if let Some((dir, unified)) = &self.memory {
            let file = if *unified { "memory.peak" } else { "memory.max_usage_in_bytes" };
            // A failure leaves the peak of the whole job, which is still a true upper bound.
            let _ = write(dir.join(file), "0");
        }
    }

    /// Kills every process in the groups (cgroups(7), `cgroup.kill`).
    pub fn kill(&self) {
        if let Some(dir) = &self.unified {
            let _ = write(dir.join("cgroup.kill"), "1");
        }
    }

    /// The groups' directories.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Removes the groups; waits up to `limit` for their last process.
    ///
    /// # Errors
    /// The directories that are left, with the last errno.
    pub fn remove(&mut self, limit: Duration) -> Result<(), Vec<PathBuf>> {
        self.into = None;
        self.join.clear();
        let left = remove_dirs(&self.dirs, limit);
        if left.is_empty() { Ok(()) } else { Err(left) }
    }
}

/// Kills what runs in these control groups and removes them; returns those that are left after `limit`.
pub fn remove_dirs(dirs: &[PathBuf], limit: Duration) -> Vec<PathBuf> {
    let begun = Instant::now();
    let mut left: Vec<PathBuf> = dirs.to_vec();
    loop {
        left.retain(|dir| match fs::remove_dir(dir) {
            Ok(()) => false,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        });
        if left.is_empty() || begun.elapsed() > limit {
            return left;
        }
        for dir in &left {
            kill_in(dir);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn kill_in(dir: &Path) {
    if write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn set_memory(dir: Option<(PathBuf, bool)>, bytes: u64) -> Result<(), StageError> {
    let stage = "cgroup: limit memory";
    let Some((dir, unified)) = dir else { return Ok(()) };
    // memory.oom.group stays off: it would kill init too, which has to say what happened. Whoever is killed,
    // the count of kills ends the job.
    let (file, swap, swap_limit) = if unified {
        ("memory.max", "memory.swap.max", 0)
    } else {
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes)
    };
    write_bytes(&dir.join(file), bytes).stage(stage)?;
    match write_bytes(&dir.join(swap), swap_limit) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !host_swaps() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let remedy = "the kernel does not account for swap; boot with swapaccount=1, or switch swap off";
            Err(StageError::unsupported(stage, remedy))
        }
        other => other.stage("cgroup: switch swap off"),
    }
}

/// Whether the host has any swap space in use: the file has a heading and a line for each.
fn host_swaps() -> bool {
    fs::read_to_string("/proc/swaps").map_or(true, |text| text.lines().count() > 1)
}

/// Writes a limit in bytes and reads it back; the kernel rounds down to pages.
fn write_bytes(path: &Path, bytes: u64) -> io::Result<()> {
    write(path.to_owned(), &bytes.to_string())?;
    let set = number(path)?;
    if set <= bytes && bytes - set < 65_536 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(rustix::io::Errno::RANGE.raw_os_error()))
    }
}

fn write(path: PathBuf, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

/// Writes a limit and reads it back: a limit that is not in force is worse than none.
fn write_exact(path: &Path, text: &str) -> io::Result<()> {
    write(path.to_owned(), text)?;
    if fs::read_to_string(path)?.trim() == text {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(rustix::io::Errno::RANGE.raw_os_error()))
    }
}

fn number(path: &Path) -> io::Result<u64> {
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

fn field(path: &Path, key: &str) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let value = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' '));
    let value = value.ok_or_else(|| io::Error::other(format!("{} has no field {key}", path.display())))?;
    value.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    #[test]
    fn parse_hybrid_host_finds_legacy_controllers_below_our_own_group() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 24 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let mine = "4:memory:/a/b\n3:cpu,cpuacct:/\n2:pids:/\n0::/\n";
        let found = Hierarchies::parse(mounts, mine);
        assert!(found.missing().is_empty());
        let job = JobId::parse(JOB).unwrap();
        let paths = found.job_paths(&job);
        assert_eq!(paths[0], Path::new(&format!("/sys/fs/cgroup/unified/ampoule-{JOB}")));
        assert_eq!(paths[1], Path::new(&format!("/sys/fs/cgroup/memory/a/b/ampoule-{JOB}")));
        assert_eq!(paths.len(), 4);
    }

    #[test]
    fn parse_container_mount_root_is_not_repeated() {
        let mounts = "30 24 0:26 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let found = Hierarchies::parse(mounts, "4:memory:/docker/x/y\n");
        assert_eq!(found.legacy["memory"], Path::new("/sys/fs/cgroup/memory/y"));
        assert_eq!(found.missing(), ["pids", "cpu"]);
    }

    #[test]
    fn field_takes_whole_keys_only() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("events");
        fs::write(&file, "oom_kill_disable 0\noom_kill 3\n").unwrap();
        assert_eq!(field(&file, "oom_kill").unwrap(), 3);
        assert!(field(&file, "oom").is_err());
    }
}
