//! What processes used: their processor time, and the most memory that they had.

use anyhow::{Context, Result};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks at a process. What it had at most only grows, so the last look is nearly right.
const LOOK: Duration = Duration::from_millis(4);

/// Processor time of all children that were waited for, in seconds.
pub(crate) fn children() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").context("/proc/self/stat")?;
    // cutime and cstime (proc_pid_stat(5)), in ticks of 1/100 s.
    let ticks: f64 = fields.split(' ').skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}

/// The highest resident sets that were seen, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Peak {
    pub(crate) process: u64,
    /// Of the largest of its children.
    pub(crate) child: u64,
}

impl Peak {
    fn look(&mut self, pid: u32) {
        self.process = self.process.max(high_water(pid));
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            self.child = self.child.max(high_water(child));
        }
    }
}

fn high_water(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Looks at a process and its children again and again.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Peak>,
}

impl Watch {
    pub(crate) fn start(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut peak = Peak::default();
            while !stopped.load(Ordering::Relaxed) {
                peak.look(pid);
                std::thread::sleep(LOOK);
            }
            peak.look(pid);
            peak
        });
        Self { stop, thread }
    }

    pub(crate) fn stop(self) -> Peak {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watch_sees_the_memory_of_a_process() {
        let watch = Watch::start(std::process::id());
        assert!(watch.stop().process > 1000);
    }
}
