//! Destruction as a result: kill, wait, remove, then look for what may be left.

use crate::cgroup::{self, JobCgroup};
use crate::fault;
use crate::identity::{Authority, BLOCK_IDS};
use crate::sandbox::Sandbox;
use crate::scratch;
use crate::uid_block;
use ampoule_spec::{Check, CheckState, SlotId, TeardownReport};
use ampoule_sys::namespace::NamespaceHandle;
use ampoule_sys::process::{Child, Waited, Which, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::fs::DirEntry;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the last process may take to die before the slot is quarantined.
pub const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How long each of the other things may take to be gone after that.
pub const REMOVE_LIMIT: Duration = Duration::from_secs(5);

/// Destroys a sandbox, whole or in part, and reports what was looked for.
pub fn destroy(mut sandbox: Sandbox) -> TeardownReport {
    let begun = Instant::now();
    let mut checks = Vec::new();
    if let Some(cgroup) = &sandbox.cgroup {
        cgroup.kill();
    }
    if let Some(init) = sandbox.init.take() {
        checks.push(init_check(&init));
    }
    // The last that keeps the mounts is ours.
    let held = sandbox.let_go();
    let remains = held.remains();
    held.discard();
    if let Some(mut cgroup) = sandbox.cgroup.take() {
        checks.push(remove_groups(&mut cgroup));
    }
    if let Authority::Root { base } = sandbox.authority {
        checks.push(processes_check(base, REMOVE_LIMIT));
        checks.push(keys_check(base, REMOVE_LIMIT));
    }
    let how =
        "its loop device is free again: no mount and no descriptor refers to it, nor to any overlay over it";
    let what = "writable layer and mounts";
    match remains {
        Some(remains) => checks.push(until_gone(what, how, REMOVE_LIMIT, || remains.is_gone())),
        // It may have been made in part.
        None if sandbox.authority.is_root() => {
            checks.push(until_gone(what, NONE_NAMED, REMOVE_LIMIT, || {
                scratch::none_is_named(sandbox.slot.as_str())
            }));
        }
        None => {}
    }
    if sandbox.handles.is_empty() {
        checks.push(unconfirmed("namespaces", "this kernel has no handles of namespaces (Linux 6.18 has)"));
    }
    checks.extend(namespace_checks(&sandbox.handles, REMOVE_LIMIT));
    report("supervisor", checks, begun)
}

const NONE_NAMED: &str = "no loop device has the slot's name";

/// What a sandbox is found by on the host when nobody holds it any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traces {
    /// Its slot.
    pub slot: SlotId,
    /// Its control groups.
    pub cgroups: Vec<PathBuf>,
    /// The first of its block of user ids; none for an ordinary user's.
    pub uid_base: Option<u32>,
    /// Its namespaces by name, as the bytes of their handles; empty if nobody alive had them, or the kernel has none.
    #[serde(default)]
    pub namespaces: Vec<(String, Vec<u8>)>,
}

/// Destroys what an intent names, after the death of the supervisor that was to do it.
pub fn destroy_named(traces: &Traces) -> TeardownReport {
    named(traces, KILL_LIMIT, REMOVE_LIMIT)
}

/// Looks briefly whether what an earlier teardown had left is gone by now, and removes what can be removed.
pub fn look_again(traces: &Traces) -> TeardownReport {
    named(traces, Duration::ZERO, Duration::ZERO)
}

const GIVEN_BACK: &str =
    "the job's user ids were given back by an earlier teardown that found nothing of them left";

fn named(traces: &Traces, kill: Duration, remove: Duration) -> TeardownReport {
    let begun = Instant::now();
    let Traces { slot, cgroups, uid_base, namespaces } = traces;
    let left = cgroup::remove_dirs(cgroups, kill);
    let mut checks = vec![groups_check(cgroups.len(), &left)];
    if let Some(base) = *uid_base {
        match uid_block::is_of(base, slot) {
            // They may be another's by now.
            Ok(false) => checks.push(check("processes of the job's user ids", 0, GIVEN_BACK)),
            _ => checks.extend([processes_check(base, remove), keys_check(base, remove)]),
        }
        let what = "writable layer and mounts";
        checks.push(until_gone(what, NONE_NAMED, remove, || scratch::none_is_named(slot.as_str())));
    }
    let handles = namespaces.iter();
    let handles: Option<Vec<_>> = handles
        .map(|(name, bytes)| NamespaceHandle::from_bytes(bytes).map(|handle| (name.clone(), handle)))
        .collect();
    match handles {
        Some(handles) if !handles.is_empty() => checks.extend(namespace_checks(&handles, remove)),
        _ => checks.push(unconfirmed("namespaces", "nobody who had their handles is alive")),
    }
    report("launcher", checks, begun)
}

fn report(checked_by: &str, checks: Vec<Check>, begun: Instant) -> TeardownReport {
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    TeardownReport { checked_by: checked_by.to_owned(), checks, micros }
}

fn check(what: &str, left: usize, how: &str) -> Check {
    let left = if fault::point(what).is_ok() { left } else { left.max(1) };
    let state = if left == 0 { CheckState::Gone } else { CheckState::Left };
    let left = u64::try_from(left).unwrap_or(u64::MAX);
    Check { what: what.to_owned(), state, left, how: how.to_owned() }
}

fn unconfirmed(what: &str, why: &str) -> Check {
    Check { what: what.to_owned(), state: CheckState::Unconfirmed, left: 0, how: why.to_owned() }
}

/// Asks again and again, bounded. What cannot be looked at is not gone.
fn until_gone(
    what: &str,
    how: &str,
    limit: Duration,
    mut is_gone: impl FnMut() -> std::io::Result<bool>,
) -> Check {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(50);
    loop {
        let gone = is_gone().unwrap_or(false);
        if gone || begun.elapsed() >= limit {
            return check(what, usize::from(!gone), how);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// Kills init and reaps it: the kernel reaps every process of its pid namespace first.
fn init_check(init: &Child) -> Check {
    let how = "init reaped, which the kernel allows only after the last process of its pid namespace";
    let what = "processes of the sandbox";
    let begun = Instant::now();
    let _ = pidfd_send_signal(&init.pidfd, Signal::KILL);
    while begun.elapsed() < KILL_LIMIT {
        let mut ready = [PollFd::new(&init.pidfd, PollFlags::IN)];
        let _ = poll(&mut ready, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
        match wait(Which::Pid(init.pid), false) {
            Ok(Waited::Reaped(_) | Waited::None) => return check(what, 0, how),
            Ok(Waited::Running) | Err(_) => {}
        }
    }
    check(what, 1, how)
}

fn remove_groups(cgroup: &mut JobCgroup) -> Check {
    let count = cgroup.dirs().len();
    let left = cgroup.remove(REMOVE_LIMIT);
    groups_check(count, &left)
}

fn groups_check(made: usize, left: &[PathBuf]) -> Check {
    let how = format!("{made} removed with rmdir(2), which fails for one that holds a process");
    check("control groups", left.len(), &how)
}

fn processes_check(base: u32, limit: Duration) -> Check {
    let how = "owners of all live processes in /proc held against the job's user ids";
    let range = base..base.saturating_add(BLOCK_IDS);
    let begun = Instant::now();
    loop {
        // What cannot be looked at counts as there.
        let left = std::fs::read_dir("/proc").map_or(usize::MAX, |entries| {
            entries.filter(|entry| entry.as_ref().map_or(true, |entry| is_of(entry, &range))).count()
        });
        // A log pump of the job may be on its way out.
        if left == 0 || begun.elapsed() >= limit {
            return check("processes of the job's user ids", left, how);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether an entry of `/proc` is a live process of one of these owners, for all that can be seen.
fn is_of(entry: &DirEntry, owners: &Range<u32>) -> bool {
    if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
        return false;
    }
    match entry.metadata() {
        Ok(meta) => owners.contains(&meta.uid()) && !is_dead(&entry.path()),
        // It has gone meanwhile.
        Err(error) => !matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::SRCH)),
    }
}

/// A process that only its parent's wait(2) is missing of: it has nothing any more and can do nothing. Of a supervisor
/// that was killed, the children are the host's init's, which need not be quick.
fn is_dead(process: &Path) -> bool {
    match std::fs::read_to_string(process.join("stat")) {
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with(['Z', 'X'])),
        // It has gone meanwhile, or cannot be looked at, which is no proof.
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Keys and keyrings of the job's ids (proc_key-users(5)): the kernel collects them in the background.
fn keys_check(base: u32, limit: Duration) -> Check {
    let how = "/proc/key-users has no line for one of the job's user ids";
    let range = base..base.saturating_add(BLOCK_IDS);
    if !std::path::Path::new("/proc/key-users").exists() {
        return check("keyrings", 0, "this kernel has no keyrings");
    }
    until_gone("keyrings", how, limit, || {
        let text = std::fs::read_to_string("/proc/key-users")?;
        let owner = |line: &str| line.split(':').next().and_then(|uid| uid.trim().parse::<u32>().ok());
        Ok(!text.lines().filter_map(owner).any(|uid| range.contains(&uid)))
    })
}

fn namespace_checks(handles: &[(String, NamespaceHandle)], limit: Duration) -> Vec<Check> {
    // Three are not waited for. A user namespace is freed in the background and holds nothing. The pid namespace goes
    // with the last of its ids, an RCU grace period (tens of milliseconds) after the last process; that it is
    // empty was shown when init could be reaped.
    let waited = handles.iter().filter(|(name, _)| !name.starts_with("user ") && !name.starts_with("pid "));
    let how = "its handle answers ESTALE: no process, descriptor or mount refers to it";
    let gone = |(name, handle): &(String, NamespaceHandle)| until_gone(name, how, limit, || handle.is_gone());
    waited.map(gone).collect()
}
