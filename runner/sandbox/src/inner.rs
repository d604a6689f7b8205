//! The steps' own user and mount namespaces inside the job's.
//!
//! A mount that is copied into a mount namespace of another, less privileged user namespace is locked there
//! (mount_namespaces(7)): whoever has all capabilities in the inner user namespace can neither unmount it nor make
//! it writable. So what keeps image and inputs as they are holds although a step were root and no filter stood in
//! its way. The job's network, host name and process ids belong to the outer namespace, over which a step has
//! no capability either.

use crate::error::{Stage, StageError};
use crate::fault;
use crate::identity::Authority;
use crate::userns::write_maps;
use ampoule_sys::process::{Keep, Namespaces, Which, spawn, wait};
use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::os::fd::{AsFd, OwnedFd};

/// The job's own `max_user_namespaces`, opened while the host's `/proc` was in sight: how many user namespaces
/// there may be below the job's, whatever the filter lets through (user_namespaces(7)).
#[derive(Debug)]
pub(crate) struct Gate(Option<OwnedFd>);

impl Gate {
    pub(crate) fn open() -> Result<Self, StageError> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        match openat(rustix::fs::CWD, "/proc/sys/user/max_user_namespaces", flags, Mode::empty()) {
            Ok(file) => Ok(Self(Some(file))),
            // An ordinary user's namespace does not own the file; there the system call filter stands alone.
            Err(Errno::ACCESS | Errno::ROFS | Errno::NOENT) => Ok(Self(None)),
            Err(errno) => Err(errno).stage("identity: open the limit of user namespaces"),
        }
    }

    fn set(&self, limit: &str) -> Result<(), StageError> {
        let Some(file) = &self.0 else { return Ok(()) };
        rustix::io::pwrite(file, limit.as_bytes(), 0)
            .map(drop)
            .stage("identity: limit nested user namespaces")
    }
}

/// The two namespaces, kept by their descriptors alone.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) user: OwnedFd,
    pub(crate) mount: OwnedFd,
}

impl Inner {
    /// Makes them: a copy of init's mounts as they are now.
    ///
    /// # Errors
    /// The stage that failed.
    pub(crate) fn make(gate: &Gate, authority: Authority) -> Result<Self, StageError> {
        // Namespaces of earlier copies are freed in the background and counted until then.
        gate.set("64")?;
        let made = Self::clone(authority);
        gate.set("0")?;
        made
    }

    fn clone(authority: Authority) -> Result<Self, StageError> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).stage("inner: pipe");
        let ((ready, say), (hold, release)) = (pipe()?, pipe()?);
        let namespaces = Namespaces { user: true, mount: true, ..Namespaces::default() };
        let child = spawn(namespaces, None, Keep::Only(&[say.as_fd(), hold.as_fd()]), || {
            fault::role("holder");
            // So that init, whose own memory nobody may look at, may open the namespaces of its copy. Nothing
            // else runs in the sandbox now.
            if set_dumpable_behavior(DumpableBehavior::Dumpable).is_err() {
                return 70;
            }
            if fault::point("inner: the first process").is_err() {
                return 70;
            }
            let _ = rustix::io::write(&say, b"r");
            let _ = rustix::io::read(&hold, &mut [0_u8; 1]);
            0
        })
        .stage("inner: clone")?;
        drop((say, hold));
        let made = match rustix::io::read(&ready, &mut [0_u8; 1]) {
            Ok(1) => Self::take(child.pid, authority),
            _ => Err(Errno::SRCH).stage("inner: the first process died"),
        };
        drop(release);
        let _ = wait(Which::Pid(child.pid), true);
        made
    }

    fn take(pid: i32, authority: Authority) -> Result<Self, StageError> {
        let map = authority.inner_map();
        write_maps(pid, &map, &map, false).stage("inner: write id maps")?;
        let open = |name: &str| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            openat(rustix::fs::CWD, format!("/proc/{pid}/ns/{name}"), flags, Mode::empty())
                .stage("inner: open a namespace")
        };
        Ok(Self { user: open("user")?, mount: open("mnt")? })
    }

    /// Moves the calling process into them.
    ///
    /// # Errors
    /// The stage that failed.
    pub(crate) fn enter(&self) -> Result<(), StageError> {
        nix::sched::setns(&self.user, CloneFlags::CLONE_NEWUSER).stage("inner: enter the user namespace")?;
        nix::sched::setns(&self.mount, CloneFlags::CLONE_NEWNS).stage("inner: enter the mount namespace")?;
        rustix::process::chdir("/").stage("inner: enter the root")
    }
}

/// Whether the mounts of the calling process are locked. To be asked while it has every capability that it can
/// have: with locks, `umount` is refused all the same, and with EINVAL. Without them nothing is unmounted either: MNT_EXPIRE
/// says EAGAIN the first time (umount(2)).
pub(crate) fn mounts_are_locked() -> bool {
    unmount("/proc", UnmountFlags::EXPIRE) == Err(Errno::INVAL)
}
