//! Many jobs in a row through one launcher: what the slow ones take, and whether anything grows.

use super::build_release;
use super::launch::Launcher;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How many sandboxes the launcher keeps ready.
const POOL: usize = 2;

/// What a launcher and its host have of things that could pile up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    /// Resident memory of the launcher.
    memory_kib: u64,
    descriptors: usize,
    mounts: usize,
    control_groups: usize,
    loop_devices: usize,
}

impl Held {
    fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let bound = |entry: &fs::DirEntry| entry.path().join("loop/backing_file").exists();
        Ok(Self {
            memory_kib: memory.trim().trim_end_matches(" kB").parse()?,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            mounts: fs::read_to_string("/proc/self/mountinfo")?.lines().count(),
            control_groups: control_groups(Path::new("/sys/fs/cgroup"), 6),
            loop_devices: fs::read_dir("/sys/block")?.flatten().filter(bound).count(),
        })
    }
}

fn control_groups(dir: &Path, depth: u32) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|dir| 1 + if depth == 0 { 0 } else { control_groups(&dir.path(), depth - 1) }).sum()
}

/// Runs them and prints what they took. False if the slow ones are too slow or something grew.
pub(crate) fn run(root: &Path, jobs: usize) -> Result<bool> {
    ensure!(jobs >= 100, "--jobs must be at least 100");
    let folder = root.join("target/bench");
    fs::create_dir_all(&folder)?;
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
    build_release(root, &["ampoule-runner"])?;
    let runner = metadata.target_directory.join("release/ampoule-runner").into_std_path_buf();
    let mut launcher = Launcher::start(&runner, &folder, POOL)?;
    let mut took = Vec::with_capacity(jobs);
    let mut early = None;
    for number in 0..jobs {
        took.push(launcher.once().with_context(|| format!("job {number}"))?.took);
        if number == jobs / 10 {
            early = Some(at_rest(&launcher)?);
        }
    }
    let (early, late) = (early.context("too few jobs")?, at_rest(&launcher)?);
    drop(launcher);
    let p50_and_p99 = print_times(took);
    println!("after {} jobs: {early:?}\nafter {jobs} jobs: {late:?}", jobs / 10);
    let counts = |held: &Held| [held.descriptors, held.mounts, held.control_groups, held.loop_devices];
    let grew = late.memory_kib > early.memory_kib + early.memory_kib / 20
        || counts(&early).iter().zip(counts(&late)).any(|(early, late)| late > *early);
    println!("{}", if grew { "something grew" } else { "nothing grew" });
    Ok(p50_and_p99.1 <= p50_and_p99.0 * 3 && !grew)
}

/// What is held when the pool is full again.
fn at_rest(launcher: &Launcher) -> Result<Held> {
    std::thread::sleep(Duration::from_millis(500));
    Held::of(launcher.pid())
}

fn print_times(mut took: Vec<Duration>) -> (Duration, Duration) {
    took.sort_unstable();
    let at = |of_1000: usize| took.get(of_1000 * (took.len() - 1) / 1000).copied().unwrap_or_default();
    let (p50, p99) = (at(500), at(990));
    let micros = |of_1000| at(of_1000).as_micros();
    println!(
        "{} jobs in a row: p50 {} us, p90 {} us, p99 {} us ({:.2} x p50), p99.9 {} us, most {} us",
        took.len(),
        micros(500),
        micros(900),
        micros(990),
        p99.as_secs_f64() / p50.as_secs_f64(),
        micros(999),
        micros(1000)
    );
    (p50, p99)
}
