//! What is left on the host.
//!
//! Other jobs may run on the same host meanwhile: a process below a runner that serves another state
//! directory is not ours, nor is a control group that holds such a process.

use crate::procs::{self, Process};
use anyhow::{Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where user id blocks are locked.
const RUN_DIR: &str = "/run/ampoule";
/// How long the kernel and other people's jobs may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// What there was before.
pub(crate) struct Snapshot {
    had_run_dir: bool,
    seen: Seen,
}

/// Things of Ampoule's on the host, each with a name for people.
struct Seen {
    things: BTreeSet<String>,
    namespaces: BTreeSet<PathBuf>,
}

impl Snapshot {
    /// Looks before anything is made.
    pub(crate) fn take() -> Self {
        Self { had_run_dir: Path::new(RUN_DIR).exists(), seen: look(None) }
    }

    /// Looks again, with patience; `base` is the directory of all our tests.
    pub(crate) fn compare(&self, base: &Path) -> Result<()> {
        let begun = Instant::now();
        loop {
            let now = look(Some(base));
            let mut left: Vec<String> = now.things.difference(&self.seen.things).cloned().collect();
            let spaces = now.namespaces.difference(&self.seen.namespaces).count();
            if spaces > 0 {
                left.push(format!("{spaces} network namespaces"));
            }
            if base.exists() {
                left.push(format!("directory {}", base.display()));
            }
            if left.is_empty() {
                self.remove_run_dir();
                return Ok(());
            }
            if begun.elapsed() > procs::patience(PATIENCE) {
                bail!("left on the host: {}", left.join(", "));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Locks of user ids are meant to stay until the next boot; who had none before gets none.
    fn remove_run_dir(&self) {
        if !self.had_run_dir {
            // As an ordinary user there is none.
            let _ = fs::remove_dir_all(RUN_DIR);
        }
    }
}

fn look(base: Option<&Path>) -> Seen {
    let processes = procs::all();
    let theirs = foreign(&processes, base);
    let mut things = BTreeSet::new();
    // Whatever a test has started has something of its directory's among its arguments.
    let base_text = base.map(|base| base.display().to_string());
    let names_it = |p: &Process| base_text.as_ref().is_some_and(|base| p.args.contains(base));
    let is_ours =
        |p: &&Process| (p.is_runner() || p.is_of_a_job() || names_it(p)) && !theirs.contains(&p.pid);
    for process in processes.iter().filter(is_ours) {
        things.insert(format!("process {} {} (uid {})", process.pid, process.args, process.uid));
    }
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        // The ids of mounts may be given anew; root, place and kind are what counts.
        let fields: Vec<&str> = line.split(' ').skip(2).collect();
        things.insert(format!("mount {}", fields.join(" ")));
    }
    let mut groups = Vec::new();
    control_groups(Path::new("/sys/fs/cgroup"), 6, &mut groups);
    for group in &groups {
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let mut members = members.lines().filter_map(|l| l.parse::<i32>().ok());
        if !members.any(|pid| theirs.contains(&pid)) {
            things.insert(format!("control group {}", group.display()));
        }
    }
    // The group above the jobs' goes with the last of them; one with jobs in it may be there for somebody else's.
    let shared = ["/sys/fs/cgroup/ampoule", "/sys/fs/cgroup/unified/ampoule"].map(Path::new);
    for group in shared.into_iter().filter(|group| group.is_dir()) {
        if !groups.iter().any(|job| job.starts_with(group)) {
            things.insert(format!("control group {} without a job", group.display()));
        }
    }
    let ours = processes.iter().filter(|p| !theirs.contains(&p.pid));
    let namespaces = ours.filter_map(|p| fs::read_link(format!("/proc/{}/ns/net", p.pid)).ok()).collect();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        // Ours are over files without a name, and nobody else's are likely to be.
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if backing.trim_end().ends_with("(deleted)") {
            things.insert(format!("{} over {}", entry.file_name().to_string_lossy(), backing.trim_end()));
        }
    }
    for entry in fs::read_dir(Path::new(RUN_DIR).join("quarantine")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if text.contains("\"released\":null") {
            things.insert(format!("slot {} in quarantine", entry.file_name().to_string_lossy()));
        }
    }
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(".ampoule-") {
            things.insert(format!("file {name} in the temporary directory"));
        }
    }
    Seen { things, namespaces }
}

/// Processes below a runner whose arguments do not name our directory.
fn foreign(processes: &[Process], base: Option<&Path>) -> BTreeSet<i32> {
    let by_id: BTreeMap<i32, &Process> = processes.iter().map(|p| (p.pid, p)).collect();
    let base = base.map(|b| b.display().to_string());
    let is_foreign = |start: &Process| {
        let mut process = start;
        // A process tree is not deeper than this.
        for _ in 0..64 {
            if process.is_runner() {
                return base.as_ref().is_none_or(|base| !process.args.contains(base.as_str()));
            }
            match by_id.get(&process.parent) {
                Some(parent) => process = parent,
                None => return false,
            }
        }
        false
    };
    processes.iter().filter(|p| is_foreign(p)).map(|p| p.pid).collect()
}

/// Directories named `ampoule-*` below one.
pub(crate) fn control_groups(dir: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        if !is_dir {
            continue;
        }
        if entry.file_name().to_string_lossy().starts_with("ampoule-") {
            found.push(entry.path());
        } else if depth > 0 {
            control_groups(&entry.path(), depth - 1, found);
        }
    }
}
