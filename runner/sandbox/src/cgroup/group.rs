//! The control groups of one job: made, limited, counted, removed.

use super::above::{self, Above};
use super::files::{field, number, write};
use super::limits::Places;
use super::{CONTROLLERS, Hierarchies};
use crate::error::{Stage, StageError};
use ampoule_spec::{Limits, SlotId};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fs::{Mode, OFlags, open};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// The control groups of one job.
#[derive(Debug)]
pub struct JobCgroup {
    /// All of them, to be made or made.
    dirs: Vec<PathBuf>,
    unified: Option<PathBuf>,
    /// The version 2 group above it.
    above: Option<Above>,
    places: Places,
    /// The limits in force.
    limits: Option<Limits>,
    /// To be passed to clone3(2).
    into: Option<OwnedFd>,
    /// `tasks` files of version 1 groups, for init to join by.
    tasks: Vec<OwnedFd>,
    oom: Option<OomWatch>,
}

/// Wakes whoever polls it when the kernel runs out of the job's memory: so the rest of the job can be ended at once, and
/// not when somebody looks next.
#[derive(Debug)]
pub struct OomWatch {
    descriptor: OwnedFd,
    /// What to poll for.
    pub flags: PollFlags,
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl OomWatch {
    /// Version 2: `memory.events` itself. Version 1: an eventfd registered for `memory.oom_control`
    /// (Documentation/admin-guide/cgroup-v1/memory.rst, 9 and 10).
    fn new(dir: &Path, unified: bool) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        if unified {
            let descriptor = open(dir.join("memory.events"), flags, Mode::empty())?;
            let watch = Self { descriptor, flags: PollFlags::PRI };
            watch.clear();
            return Ok(watch);
        }
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = open(dir.join("memory.oom_control"), flags, Mode::empty())?;
        let line = format!("{} {}", descriptor.as_raw_fd(), control.as_raw_fd());
        write(dir.join("cgroup.event_control"), &line)?;
        Ok(Self { descriptor, flags: PollFlags::IN })
    }

    /// Takes note, so that the next poll waits for what comes after.
    pub fn clear(&self) {
        let (mut bytes, mut count) = ([0; 512], [0; 8]);
        let read = match self.flags {
            PollFlags::PRI => rustix::io::pread(&self.descriptor, &mut bytes, 0),
            _ => rustix::io::read(&self.descriptor, &mut count),
        };
        // Nothing new to note is no failure: the counters decide.
        let _ = read;
    }
}

impl JobCgroup {
    /// The groups of a slot, none of which is there yet.
    pub fn new(host: &Hierarchies, slot: &SlotId) -> Self {
        let given = |c: &&str| host.gives_unified(c);
        let above = host.unified.as_ref().map(|(dir, _)| Above {
            dir: dir.clone(),
            root: host.root.clone(),
            controllers: CONTROLLERS.into_iter().filter(given).collect(),
        });
        let place = |controller| host.dir_of(controller, slot);
        Self {
            dirs: host.paths(slot),
            unified: host.unified.as_ref().map(|(base, _)| base.join(format!("ampoule-{slot}"))),
            above,
            places: Places { memory: place("memory"), pids: place("pids"), cpu: place("cpu") },
            limits: None,
            into: None,
            tasks: Vec::new(),
            oom: None,
        }
    }

    /// Makes the groups and sets the limits.
    ///
    /// # Errors
    /// The controller and the value that the kernel refused. What was made is there to be removed.
    pub fn create(&mut self, limits: &Limits) -> Result<(), StageError> {
        for path in &self.dirs {
            match &self.above {
                Some(above) if self.unified.as_ref() == Some(path) => {
                    above.make(path)?;
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    self.into = Some(open(path, flags, Mode::empty()).stage("cgroup: open")?);
                }
                _ => {
                    fs::create_dir(path).stage("cgroup: create")?;
                    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                    let tasks = open(path.join("tasks"), flags, Mode::empty()).stage("cgroup: open tasks")?;
                    self.tasks.push(tasks);
                }
            }
        }
        self.adjust(limits)?;
        if let Some((dir, unified)) = &self.places.memory {
            self.oom = Some(OomWatch::new(dir, *unified).stage("cgroup: watch for want of memory")?);
        }
        Ok(())
    }

    /// Wakes when the kernel runs out of the job's memory.
    pub fn oom(&self) -> Option<&OomWatch> {
        self.oom.as_ref()
    }

    /// Sets the limits that are not in force yet.
    ///
    /// # Errors
    /// The controller and the value that the kernel refused.
    pub fn adjust(&mut self, limits: &Limits) -> Result<(), StageError> {
        let before = self.limits.take();
        self.places.set(before.as_ref(), limits)?;
        self.limits = Some(limits.clone());
        Ok(())
    }

    /// Holds the limits in force against those that were set: whoever rules the host may have changed one.
    ///
    /// # Errors
    /// The first that is another or gone, for people.
    pub fn verify(&self) -> Result<(), String> {
        self.places.verify(self.limits.as_ref().ok_or("limits were never set")?)
    }

    /// The first group that a process is not in.
    ///
    /// # Errors
    /// If a group cannot be read.
    pub fn without(&self, pid: i32) -> io::Result<Option<&Path>> {
        for dir in &self.dirs {
            if !members(dir)?.contains(&pid) {
                return Ok(Some(dir));
            }
        }
        Ok(None)
    }

    /// How many other processes than this one are in the first group that has others.
    ///
    /// # Errors
    /// If a group cannot be read.
    pub fn others_than(&self, pid: Option<i32>) -> io::Result<usize> {
        for dir in &self.dirs {
            let others = members(dir)?.iter().filter(|member| Some(**member) != pid).count();
            if others != 0 {
                return Ok(others);
            }
        }
        Ok(0)
    }

    /// The version 2 group, to be passed to clone3(2).
    pub fn into(&self) -> Option<&OwnedFd> {
        self.into.as_ref()
    }

    /// The `tasks` files of version 1 groups, for init to join by.
    pub fn take_tasks(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.tasks)
    }

    /// What was counted so far.
    ///
    /// # Errors
    /// If a counter cannot be read: a limit whose verdict is unknown is not one that held.
    pub fn counts(&self) -> io::Result<Counts> {
        let mut counts = Counts::default();
        if let Some((dir, unified)) = &self.places.memory {
            let events = if *unified { "memory.events" } else { "memory.oom_control" };
            counts.oom_kills = field(&dir.join(events), "oom_kill")?;
            let peak = if *unified { "memory.peak" } else { "memory.max_usage_in_bytes" };
            // A figure, not a verdict; memory.peak came with Linux 5.19.
            counts.memory_peak_bytes = number(&dir.join(peak)).unwrap_or(0);
        }
        if let Some(dir) = &self.unified {
            counts.cpu_micros = field(&dir.join("cpu.stat"), "usage_usec")?;
        }
        if let Some((dir, _)) = &self.places.pids {
            counts.forks_refused = field(&dir.join("pids.events"), "max")?;
        }
        Ok(counts)
    }

    /// Begins a new measurement of the memory peak, where the kernel can.
    pub fn reset_peak(&self) {
        if let Some((dir, unified)) = &self.places.memory {
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

    /// Removes the groups; waits up to `limit` for their last process. Returns the directories that are left.
    pub fn remove(&mut self, limit: Duration) -> Vec<PathBuf> {
        self.into = None;
        self.tasks.clear();
        self.oom = None;
        remove_dirs(&self.dirs, limit)
    }
}

/// The processes in a group, as this pid namespace counts them; one of another shows as 0.
fn members(dir: &Path) -> io::Result<Vec<i32>> {
    let text = fs::read_to_string(dir.join("cgroup.procs"))?;
    text.lines().map(|line| line.parse().map_err(io::Error::other)).collect()
}

/// Kills what runs in these control groups and removes them; returns those that are left after `limit`.
pub fn remove_dirs(dirs: &[PathBuf], limit: Duration) -> Vec<PathBuf> {
    let begun = Instant::now();
    let mut left: Vec<PathBuf> = dirs.to_vec();
    loop {
        left.retain(|dir| match fs::remove_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => true,
            _ => {
                above::leave(dir);
                false
            }
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
