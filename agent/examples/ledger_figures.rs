//! Measures the ledger on the file system of a directory: `ledger_figures DIR`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

#[path = "../tests/common/jobs.rs"]
mod jobs;

use ampoule_agent::job::ledger::{Ledger, Options, Retention};
use ampoule_agent::job::state::Change;
use ampoule_spec::UnixNanos;
use jobs::{end, job_id, submission};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const JOBS: u32 = 10_000;

fn open(dir: &Path) -> Arc<Ledger> {
    let retention = Retention { count: 1_000_000, ..Retention::default() };
    Arc::new(Ledger::open(dir, &Options { retention, ..Options::default() }, UnixNanos(1)).unwrap())
}

/// Resident memory of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn throughput(dir: &Path, submitters: u32) {
    let _ = std::fs::remove_file(dir.join("ledger"));
    let ledger = open(dir);
    let (begin, syncs) = (Instant::now(), ledger.syncs());
    let mut tasks = tokio::task::JoinSet::new();
    for submitter in 0..submitters {
        let ledger = ledger.clone();
        tasks.spawn(async move {
            let (mut count, mut slowest) = (0_u32, Duration::ZERO);
            while begin.elapsed() < Duration::from_secs(3) {
                let one = Instant::now();
                ledger.submit(submission(submitter * 1_000_000 + count), UnixNanos(1)).await.unwrap();
                slowest = slowest.max(one.elapsed());
                count += 1;
            }
            (count, slowest)
        });
    }
    let done = tasks.join_all().await;
    let count: u32 = done.iter().map(|(count, _)| count).sum();
    let slowest = done.iter().map(|(_, slowest)| *slowest).max().unwrap();
    let syncs = ledger.syncs() - syncs;
    println!(
        "{submitters} submitters: {:.0} submissions a second, {:.3} syncs each, slowest {} ms",
        f64::from(count) / begin.elapsed().as_secs_f64(),
        syncs as f64 / f64::from(count),
        slowest.as_millis()
    );
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = std::env::args_os().nth(1).expect("ledger_figures DIR");
    let dir = Path::new(&dir);
    if std::env::args().nth(2).as_deref() == Some("load") {
        let (before, begin) = (resident(), Instant::now());
        let ledger = open(dir);
        let (took, after) = (begin.elapsed(), resident());
        let bytes = dir.join("ledger").metadata().unwrap().len();
        println!(
            "{} jobs, {} of them not finished: read and compacted to {bytes} bytes in {} ms, {} KiB of memory",
            ledger.len(),
            ledger.unfinished().len(),
            took.as_millis(),
            after - before
        );
        return;
    }
    for submitters in [1, 8, 64] {
        throughput(dir, submitters).await;
    }
    let _ = std::fs::remove_file(dir.join("ledger"));
    let ledger = open(dir);
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..100 {
        let ledger = ledger.clone();
        tasks.spawn(async move {
            for number in (lane..JOBS).step_by(100) {
                ledger.submit(submission(number), UnixNanos(1)).await.unwrap();
                let id = job_id(number);
                let changes = [
                    Change::Began,
                    Change::Asked { runner: id.clone() },
                    Change::Admitted { at: UnixNanos(1) },
                    Change::Reported { admitted: UnixNanos(1) },
                    Change::Finished { at: UnixNanos(2), end: Box::new(end()) },
                ];
                // Every tenth still waits.
                for change in changes.into_iter().take(if number % 10 == 0 { 0 } else { 5 }) {
                    ledger.change(&id, change).await.unwrap();
                }
            }
        });
    }
    tasks.join_all().await;
    println!("written: {} bytes", dir.join("ledger").metadata().unwrap().len());
}
