//! What a teardown left: its block of user ids is out of use until a later look finds nothing any more.
//!
//! The entries lie beside the blocks, in `/run`: what they name does not survive a boot either. They say what was
//! left, how often it was looked for again, and when it was found gone.

use crate::clock;
use ampoule_sandbox::identity;
use ampoule_sandbox::teardown::{self, Traces};
use ampoule_spec::wire::Quarantined;
use ampoule_spec::{JobId, SlotId, TeardownReport};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where the entries are.
const DIR: &str = "/run/ampoule/quarantine";
/// How often a slot is looked at again before an operator has to.
const LOOKS_MAX: u32 = 100;
/// Entries of slots that were released are kept for whoever asks, this many of them.
const RELEASED_MAX: usize = 64;

/// One slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    traces: Traces,
    job: Option<JobId>,
    /// What was found in the beginning, for people.
    left: String,
    since: u64,
    looks: u32,
    released: Option<u64>,
}

/// Puts a slot into quarantine. What cannot be written here stands in the job's report all the same, and the mark on
/// the block is made first.
pub(crate) fn put(traces: Traces, job: Option<&JobId>, teardown: &TeardownReport) {
    // An ordinary user's jobs share no ids and no place with others.
    let Some(base) = traces.uid_base else { return };
    let _ = identity::quarantine(base);
    let entry = Entry {
        traces,
        job: job.cloned(),
        left: teardown.left_behind(),
        since: clock::now().0,
        looks: 0,
        released: None,
    };
    if let Ok(_lock) = lock() {
        let _ = write(&entry);
    }
}

/// Looks again at every slot in quarantine. One of which nothing is left is released.
pub(crate) fn recheck() {
    let Ok(_lock) = lock() else { return };
    for mut entry in entries() {
        if entry.released.is_some() || entry.looks >= LOOKS_MAX {
            continue;
        }
        entry.looks += 1;
        let found = teardown::look_again(&entry.traces);
        if found.is_clean() && entry.traces.uid_base.is_none_or(|base| identity::release(base).is_ok()) {
            entry.released = Some(clock::now().0);
        }
        let _ = write(&entry);
    }
    let mut released: Vec<Entry> = entries().into_iter().filter(|e| e.released.is_some()).collect();
    released.sort_by_key(|entry| entry.released);
    let surplus = released.len().saturating_sub(RELEASED_MAX);
    for entry in released.iter().take(surplus) {
        let _ = fs::remove_file(path(&entry.traces.slot));
    }
}

/// What is and was in quarantine since the last boot, for whoever asks.
pub(crate) fn list() -> Vec<Quarantined> {
    let mut entries = entries();
    entries.sort_by_key(|entry| entry.since);
    let said = |entry: Entry| Quarantined {
        slot: entry.traces.slot,
        job: entry.job,
        left: entry.left,
        since: ampoule_spec::UnixNanos(entry.since),
        looks: entry.looks,
        released: entry.released.map(ampoule_spec::UnixNanos),
    };
    // An answer has room for so many.
    entries.into_iter().rev().take(RELEASED_MAX).map(said).collect()
}

fn path(slot: &SlotId) -> PathBuf {
    Path::new(DIR).join(format!("{slot}.json"))
}

fn lock() -> io::Result<OwnedFd> {
    fs::create_dir_all(DIR)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(rustix::fs::CWD, DIR, flags, Mode::empty())?;
    flock(&dir, FlockOperation::LockExclusive)?;
    Ok(dir)
}

fn entries() -> Vec<Entry> {
    let files = fs::read_dir(DIR).into_iter().flatten().flatten();
    let read = |file: fs::DirEntry| serde_json::from_slice(&fs::read(file.path()).ok()?).ok();
    files.filter(|f| f.path().extension().is_some_and(|e| e == "json")).filter_map(read).collect()
}

fn write(entry: &Entry) -> io::Result<()> {
    let aside = path(&entry.traces.slot).with_extension("tmp");
    fs::write(&aside, serde_json::to_vec(entry)?)?;
    fs::rename(&aside, path(&entry.traces.slot))
}
