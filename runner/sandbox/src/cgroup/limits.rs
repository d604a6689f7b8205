//! Limits as files: written, read back, and read again at the end.

use super::files::{PAGE_BYTES_MAX, write_bytes, write_exact};
use crate::error::{Stage, StageError};
use ampoule_spec::Limits;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The period of processor time in microseconds.
const PERIOD_MICROS: &str = "100000";

/// Where the limits of one job are set: for each controller the directory, and whether it is of version 2.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    pub(super) memory: Option<(PathBuf, bool)>,
    pub(super) pids: Option<(PathBuf, bool)>,
    pub(super) cpu: Option<(PathBuf, bool)>,
}

/// What a file has to say.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Text(String),
    /// Bytes; the kernel rounds down to pages.
    Bytes(u64),
    /// Bytes, unless the kernel does not account for swap and the host has none.
    Swap(u64),
}

impl Wanted {
    fn is(&self, found: &str) -> bool {
        match self {
            Self::Text(text) => found == text,
            Self::Bytes(bytes) | Self::Swap(bytes) => {
                found.parse().is_ok_and(|set: u64| set <= *bytes && bytes - set < PAGE_BYTES_MAX)
            }
        }
    }
}

impl Places {
    /// Sets the limits that differ from what is in force.
    ///
    /// # Errors
    /// The controller and the value that the kernel refused.
    pub(super) fn set(&self, before: Option<&Limits>, limits: &Limits) -> Result<(), StageError> {
        let differs = |of: fn(&Limits) -> u64| before.map(of) != Some(of(limits));
        if let (Some((dir, unified)), true) = (&self.memory, differs(|l| l.memory_bytes)) {
            set_memory(dir, *unified, before.map(|l| l.memory_bytes), limits.memory_bytes)?;
        }
        if let (Some((dir, _)), true) = (&self.pids, differs(|l| l.pids)) {
            write_exact(&dir.join("pids.max"), &processes(limits)).stage("cgroup: limit processes")?;
        }
        if let (Some((dir, unified)), true) = (&self.cpu, differs(|l| l.cpu_millis)) {
            let (file, text) = if *unified {
                ("cpu.max", format!("{} {PERIOD_MICROS}", quota(limits)))
            } else {
                write_exact(&dir.join("cpu.cfs_period_us"), PERIOD_MICROS).stage("cgroup: set the period")?;
                ("cpu.cfs_quota_us", quota(limits))
            };
            write_exact(&dir.join(file), &text).stage("cgroup: limit processor time")?;
        }
        Ok(())
    }

    /// Holds every limit against what was set.
    ///
    /// # Errors
    /// The first file that says something else or is gone, for people.
    pub(super) fn verify(&self, limits: &Limits) -> Result<(), String> {
        for (file, wanted) in self.wanted(limits) {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            match fs::read_to_string(&file) {
                Ok(found) if wanted.is(found.trim()) => {}
                Ok(found) => {
                    return Err(format!(
                        "{name} was set by somebody else while the job ran: it says {:?}, not what the job's limits \
                         want",
                        found.trim()
                    ));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let spared = matches!(wanted, Wanted::Swap(_)) && !host_swaps();
                    if !spared {
                        return Err(format!(
                            "{name} is gone: its controller was taken away while the job ran"
                        ));
                    }
                }
                Err(error) => return Err(format!("{name} cannot be read: {error}")),
            }
        }
        Ok(())
    }

    fn wanted(&self, limits: &Limits) -> Vec<(PathBuf, Wanted)> {
        let mut wanted = Vec::new();
        if let Some((dir, unified)) = &self.memory {
            let (file, swap, swap_limit) = memory_files(*unified, limits.memory_bytes);
            wanted.push((dir.join(file), Wanted::Bytes(limits.memory_bytes)));
            wanted.push((dir.join(swap), Wanted::Swap(swap_limit)));
        }
        if let Some((dir, _)) = &self.pids {
            wanted.push((dir.join("pids.max"), Wanted::Text(processes(limits))));
        }
        match &self.cpu {
            Some((dir, true)) => {
                let text = format!("{} {PERIOD_MICROS}", quota(limits));
                wanted.push((dir.join("cpu.max"), Wanted::Text(text)));
            }
            Some((dir, false)) => {
                let period = Wanted::Text(PERIOD_MICROS.to_owned());
                wanted.push((dir.join("cpu.cfs_period_us"), period));
                wanted.push((dir.join("cpu.cfs_quota_us"), Wanted::Text(quota(limits))));
            }
            None => {}
        }
        wanted
    }
}

/// Init is a process of the job's groups but not one of the job's.
fn processes(limits: &Limits) -> String {
    limits.pids.saturating_add(1).to_string()
}

fn quota(limits: &Limits) -> String {
    limits.cpu_millis.saturating_mul(100).to_string()
}

/// The file for memory, the one for swap, and what the latter says: on version 1 it limits memory and swap together.
fn memory_files(unified: bool, bytes: u64) -> (&'static str, &'static str, u64) {
    if unified {
        ("memory.max", "memory.swap.max", 0)
    } else {
        ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", bytes)
    }
}

/// Limits memory, and swap to none. Memory together with swap may at no moment be less than memory alone.
fn set_memory(dir: &Path, unified: bool, before: Option<u64>, bytes: u64) -> Result<(), StageError> {
    // memory.oom.group stays off: it would kill init too, which has to say what happened and keeps the outputs of a failed
    // job in reach. Whoever is killed, the count of kills ends the job, and [`super::OomWatch`] says so at once.
    let (file, swap, swap_limit) = memory_files(unified, bytes);
    let memory = || write_bytes(&dir.join(file), bytes).stage("cgroup: limit memory");
    let swap = || match write_bytes(&dir.join(swap), swap_limit) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !host_swaps() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let remedy = "the kernel does not account for swap; boot with swapaccount=1, or switch swap off";
            Err(StageError::unsupported("cgroup: limit memory", remedy))
        }
        other => other.stage("cgroup: switch swap off"),
    };
    if before.is_some_and(|before| before < bytes) {
        swap()?;
        memory()
    } else {
        memory()?;
        swap()
    }
}

/// Whether the host has any swap space in use: the file has a heading and a line for each.
fn host_swaps() -> bool {
    fs::read_to_string("/proc/swaps").map_or(true, |text| text.lines().count() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_allows_for_pages_and_no_more() {
        assert!(Wanted::Bytes(1_000_000).is("999424"));
        for found in ["1003520", "900000", "max", "-1", ""] {
            assert!(!Wanted::Bytes(1_000_000).is(found), "{found}");
        }
        assert!(Wanted::Swap(0).is("0") && !Wanted::Swap(0).is("max"));
    }
}
