//! What a teardown left: its block of user ids is out of use until a later look finds nothing any more.
//!
//! The entries lie beside the blocks, in `/run`: what they name does not survive a boot either. They say what was
//! left, how often it was looked for again, and when it was found gone.

use crate::clock;
use ampoule_sandbox::teardown::{self, Traces};
use ampoule_sandbox::uid_block;
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

/// Gives a slot's block of ids back after a clean teardown. After another the block stays the slot's, and an entry says
/// why; what cannot be written here stands in the job's report all the same.
pub(crate) fn settle(traces: Traces, job: Option<&JobId>, teardown: &TeardownReport) {
    // An ordinary user's jobs share no ids and no place with others.
    let Some(base) = traces.uid_base else { return };
    if teardown.is_clean() {
        // If it cannot be given back, it is out of use until the next boot.
        let _ = uid_block::give_back(base, &traces.slot);
        return;
    }
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
    if entries(State::Held).is_empty() {
        return;
    }
    let Ok(_lock) = lock() else { return };
    for mut entry in entries(State::Held) {
        if entry.looks >= LOOKS_MAX {
            continue;
        }
        entry.looks += 1;
        let found = teardown::look_again(&entry.traces);
        let give_back = |base| uid_block::give_back(base, &entry.traces.slot);
        if found.is_clean() && entry.traces.uid_base.is_none_or(|base| give_back(base).is_ok()) {
            entry.released = Some(clock::now().0);
        }
        if write(&entry).is_ok() && entry.released.is_some() {
            let _ = fs::remove_file(path(&entry.traces.slot, State::Held));
        }
    }
    let mut released = entries(State::Released);
    released.sort_by_key(|entry| entry.released);
    let surplus = released.len().saturating_sub(RELEASED_MAX);
    for entry in released.iter().take(surplus) {
        let _ = fs::remove_file(path(&entry.traces.slot, State::Released));
    }
}

/// What is and was in quarantine since the last boot, for whoever asks.
pub(crate) fn list() -> Vec<Quarantined> {
    let mut entries = entries(State::Released);
    entries.sort_by_key(|entry| entry.since);
    // What is still held comes first, whatever its age.
    entries.extend(self::entries(State::Held));
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

/// Whether a slot is in quarantine or was: its entry's name says so, so that a start reads only what it has to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Held,
    Released,
}

impl State {
    /// What the entry's name has after the slot's.
    fn ending(self) -> &'static str {
        match self {
            Self::Held => ".json",
            Self::Released => ".released.json",
        }
    }

    fn of(name: &str) -> Option<Self> {
        // A slot's name has no dot.
        let at = name.find('.')?;
        [Self::Held, Self::Released].into_iter().find(|state| name.get(at..) == Some(state.ending()))
    }
}

fn path(slot: &SlotId, state: State) -> PathBuf {
    Path::new(DIR).join(format!("{slot}{}", state.ending()))
}

fn lock() -> io::Result<OwnedFd> {
    uid_block::run_dir()?;
    fs::create_dir_all(DIR)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = openat(rustix::fs::CWD, DIR, flags, Mode::empty())?;
    flock(&dir, FlockOperation::LockExclusive)?;
    Ok(dir)
}

fn entries(state: State) -> Vec<Entry> {
    if uid_block::run_dir().is_err() {
        return Vec::new();
    }
    let files = fs::read_dir(DIR).into_iter().flatten().flatten();
    let wanted = files.filter(|file| file.file_name().to_str().and_then(State::of) == Some(state));
    wanted.filter_map(|file| serde_json::from_slice(&fs::read(file.path()).ok()?).ok()).collect()
}

fn write(entry: &Entry) -> io::Result<()> {
    let state = if entry.released.is_some() { State::Released } else { State::Held };
    let place = path(&entry.traces.slot, state);
    let aside = place.with_extension("tmp");
    fs::write(&aside, serde_json::to_vec(entry)?)?;
    fs::rename(&aside, place)
}
