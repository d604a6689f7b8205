//! User namespaces whose only purpose is an id-mapped mount (mount_setattr(2)).

use crate::error::{Stage, StageError};
use ampoule_sys::process::{Keep, Namespaces, Which, spawn, wait};
use rustix::fs::{Mode, OFlags, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use std::os::fd::{AsFd, OwnedFd};

/// Writes the id maps of a process that was just made in a user namespace of its own.
///
/// # Errors
/// What the kernel says to the maps (user_namespaces(7)).
pub fn write_maps(pid: i32, uid_map: &str, gid_map: &str, deny_setgroups: bool) -> std::io::Result<()> {
    if deny_setgroups {
        std::fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    }
    std::fs::write(format!("/proc/{pid}/gid_map"), gid_map)?;
    std::fs::write(format!("/proc/{pid}/uid_map"), uid_map)
}

/// A new user namespace with this one-line map for users and groups; it holds no process.
///
/// # Errors
/// The stage that failed.
pub fn with_map(line: &str) -> Result<OwnedFd, StageError> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).stage("userns: pipe")?;
    let namespaces = Namespaces { user: true, ..Namespaces::default() };
    let child = spawn(namespaces, None, Keep::Only(&[read.as_fd()]), || {
        // Blocks until the parent has opened the namespace and dropped its end.
        let _ = rustix::io::read(&read, &mut [0_u8; 1]);
        0
    })
    .stage("userns: clone")?;
    let opened = write_maps(child.pid, line, line, false).stage("userns: write the id map").and_then(|()| {
        let path = format!("/proc/{}/ns/user", child.pid);
        openat(rustix::fs::CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .stage("userns: open the namespace")
    });
    drop(write);
    let _ = wait(Which::Pid(child.pid), true);
    opened
}
