//! Destruction as a result: kill, wait, remove, then look for what may be left.

use crate::cgroup::{self, JobCgroup};
use crate::identity::{Authority, BLOCK_IDS};
use crate::sandbox::{HalfMade, Sandbox};
use ampoule_spec::{Check, TeardownReport};
use ampoule_sys::namespace::NamespaceHandle;
use ampoule_sys::process::{Child, Waited, Which, wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the last process may take to die before the slot is quarantined.
pub const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How long removing control groups and namespaces may take after that.
pub const REMOVE_LIMIT: Duration = Duration::from_secs(5);

/// Destroys a sandbox and reports what was looked for.
pub fn destroy(sandbox: Sandbox, authority: Authority) -> TeardownReport {
    let begun = Instant::now();
    let (init, cgroup, handles) = sandbox.into_remains();
    finish(begun, Some(init), cgroup, &handles, authority)
}

/// Destroys what a failed set-up has left.
pub fn destroy_half(half: HalfMade, authority: Authority) -> TeardownReport {
    let begun = Instant::now();
    finish(begun, half.init, half.cgroup, &[], authority)
}

/// Destroys what an intent names, after the death of the supervisor that wrote it.
pub fn destroy_named(cgroups: &[PathBuf], base: Option<u32>) -> TeardownReport {
    let begun = Instant::now();
    let left = cgroup::remove_dirs(cgroups, KILL_LIMIT);
    let mut checks = vec![groups_check(cgroups.len(), &left)];
    if let Some(base) = base {
        checks.push(uid_check(base));
    }
    report("launcher", checks, begun)
}

fn finish(
    begun: Instant,
    init: Option<Child>,
    cgroup: Option<JobCgroup>,
    handles: &[(String, NamespaceHandle)],
    authority: Authority,
) -> TeardownReport {
    let mut checks = Vec::new();
    if let Some(cgroup) = &cgroup {
        cgroup.kill();
    }
    if let Some(init) = init {
        checks.push(init_check(&init));
    }
    if let Some(mut cgroup) = cgroup {
        let count = cgroup.dirs().len();
        let left = cgroup.remove(REMOVE_LIMIT).err().unwrap_or_default();
        checks.push(groups_check(count, &left));
    }
    if let Authority::Root { base } = authority {
        checks.push(uid_check(base));
    }
    // Two are not waited for. The user namespace is freed in the background and holds nothing. The pid namespace
    // goes with the last of its ids, an RCU grace period (tens of milliseconds) after the last process; that it
    // is empty was shown when init could be reaped.
    for (name, handle) in handles.iter().filter(|(name, _)| !matches!(name.as_str(), "user" | "pid")) {
        checks.extend(namespace_check(name, handle));
    }
    report("supervisor", checks, begun)
}

fn report(checked_by: &str, checks: Vec<Check>, begun: Instant) -> TeardownReport {
    let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    TeardownReport { checked_by: checked_by.to_owned(), checks, micros }
}

fn check(what: &str, left: usize, how: &str) -> Check {
    let left = u64::try_from(left).unwrap_or(u64::MAX);
    Check { what: what.to_owned(), gone: left == 0, left, how: how.to_owned() }
}

/// Kills init and reaps it: the kernel reaps every process of its pid namespace first.
fn init_check(init: &Child) -> Check {
    let how = "init reaped, which the kernel allows only after the last process of its pid namespace";
    let begun = Instant::now();
    let _ = pidfd_send_signal(&init.pidfd, Signal::KILL);
    while begun.elapsed() < KILL_LIMIT {
        let mut ready = [PollFd::new(&init.pidfd, PollFlags::IN)];
        let _ = poll(&mut ready, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
        match wait(Which::Pid(init.pid), false) {
            Ok(Waited::Reaped(_) | Waited::None) => return check("processes of the sandbox", 0, how),
            Ok(Waited::Running) | Err(_) => {}
        }
    }
    check("processes of the sandbox", 1, how)
}

fn groups_check(made: usize, left: &[PathBuf]) -> Check {
    check(
        "control groups",
        left.len(),
        &format!("{made} removed with rmdir(2), which fails for one that holds a process"),
    )
}

fn uid_check(base: u32) -> Check {
    let how = "owners of all entries of /proc held against the job's user ids";
    let range = base..base.saturating_add(BLOCK_IDS);
    let begun = Instant::now();
    loop {
        let left = std::fs::read_dir("/proc").map_or(usize::MAX, |entries| {
            entries
                .flatten()
                .filter(|e| e.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
                .filter(|e| e.metadata().is_ok_and(|m| range.contains(&m.uid())))
                .count()
        });
        // A log pump of the job may be on its way out.
        if left == 0 || begun.elapsed() > REMOVE_LIMIT {
            return check("processes of the job's user ids", left, how);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// No check at all where the kernel has no handles of namespaces: what is not confirmed is not claimed.
fn namespace_check(name: &str, handle: &NamespaceHandle) -> Option<Check> {
    let begun = Instant::now();
    loop {
        let gone = handle.is_gone().ok()?;
        if gone || begun.elapsed() > REMOVE_LIMIT {
            let how = "its handle answers ESTALE: no process, descriptor or mount refers to it";
            return Some(check(&format!("{name} namespace"), usize::from(!gone), how));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
