//! How init enters the sandbox that was prepared for it, stage by stage.

use crate::error::{Stage, StageError};
use crate::identity::Authority;
use crate::rootfs::{self, Assembled, DEVICES, IdMaps, InputMount, MountPlan, RootPlan};
use ampoule_spec::{HOSTNAME, SandboxPath};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What init has to do to enter. Its descriptors come in this order: `tasks` files of version 1 control
/// groups, then as host root the root and each of `mounts`, else the layers and then each input's tree.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EnterPlan {
    /// Host root's block of ids, or none for an ordinary user.
    pub base: Option<u32>,
    /// The calling user's id and group, without a block.
    pub user: (u32, u32),
    /// How many `tasks` files come first.
    pub join: usize,
    /// Whether there is a control group namespace to make.
    pub cgroup_namespace: bool,
    /// Where the prepared mounts go, as host root.
    pub mounts: Vec<SandboxPath>,
    /// What to assemble, as an ordinary user.
    pub assemble: Option<AssemblePlan>,
    /// Where a step may write besides the profile's directories.
    pub writable: Vec<SandboxPath>,
    /// Limit of open files.
    pub open_files: u64,
}

impl EnterPlan {
    /// Under which authority the sandbox is made.
    pub fn authority(&self) -> Authority {
        match self.base {
            Some(base) => Authority::Root { base },
            None => Authority::User { uid: self.user.0, gid: self.user.1 },
        }
    }
}

/// [`MountPlan`] without its descriptors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AssemblePlan {
    /// How many image layers there are; none: the host's `/usr`.
    pub layers: Option<usize>,
    /// Target, single file, writable.
    pub inputs: Vec<(SandboxPath, bool, bool)>,
    /// Where each descriptor's directory lies on the host: a layer of an overlay has to be opened in the mount
    /// namespace that the overlay is made in.
    pub places: Vec<PathBuf>,
    /// As [`MountPlan::disk_bytes`].
    pub disk_bytes: u64,
    /// As [`MountPlan::disk_inodes`].
    pub disk_inodes: u64,
}

/// Where the time of a set-up went.
#[derive(Debug)]
pub struct StageClock {
    last: Instant,
    /// Stage and microseconds since the one before.
    pub stages: Vec<(String, u64)>,
}

impl StageClock {
    /// Starts now.
    pub fn start() -> Self {
        Self { last: Instant::now(), stages: Vec::new() }
    }

    /// Ends a stage.
    pub fn mark(&mut self, stage: &str) {
        let micros = u64::try_from(self.last.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.stages.push((stage.to_owned(), micros));
        self.last = Instant::now();
    }
}

/// What is left in init's hands once it is inside.
#[derive(Debug)]
pub struct Entered {
    /// The root directory.
    pub root: OwnedFd,
    /// The inode number of its control group namespace, which was made last.
    pub cgroup_namespace: u64,
}

/// Enters. What fails leaves a process that has to end.
///
/// # Errors
/// The stage that failed.
pub fn enter(
    plan: EnterPlan,
    descriptors: Vec<OwnedFd>,
    clock: &mut StageClock,
) -> Result<Entered, StageError> {
    let authority = plan.authority();
    let mut descriptors = descriptors.into_iter();
    join_cgroups(&plan, descriptors.by_ref().take(plan.join))?;
    let cgroup_namespace = rustix::fs::stat("/proc/self/ns/cgroup").stage("cgroup: namespace")?.st_ino;
    clock.mark("control groups");
    become_sandbox_root(authority)?;
    private_names()?;
    clock.mark("identity and names");
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .stage("mounts: make propagation private")?;
    let (root, mounts) = match plan.assemble {
        None => {
            let root = descriptors.next().ok_or(Errno::BADMSG).stage("mounts: the root is missing")?;
            (root, plan.mounts.into_iter().zip(descriptors).collect::<Vec<_>>())
        }
        Some(assemble) => {
            let Assembled { root, mounts } = assemble_here(assemble, descriptors, authority)?;
            (root, mounts)
        }
    };
    attach_root(&root)?;
    for (target, mount) in &mounts {
        attach(root.as_fd(), target.relative(), mount.as_fd()).stage("mounts: move into place")?;
    }
    clock.mark("mounts");
    attach_proc(root.as_fd())?;
    attach_devices(root.as_fd())?;
    forbid_user_namespaces()?;
    clock.mark("proc and devices");
    leave_host(root.as_fd())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(rustix::fs::CWD, "/", flags, Mode::empty()).stage("mounts: open the new root")?;
    clock.mark("pivot_root");
    Ok(Entered { root, cgroup_namespace })
}

fn join_cgroups(plan: &EnterPlan, tasks: impl Iterator<Item = OwnedFd>) -> Result<(), StageError> {
    for tasks in tasks {
        rustix::io::write(&tasks, b"0").stage("cgroup: join")?;
    }
    if plan.cgroup_namespace {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).stage("cgroup: namespace")?;
    }
    Ok(())
}

fn become_sandbox_root(authority: Authority) -> Result<(), StageError> {
    if authority.is_root() {
        let (uid, gid) = (nix::unistd::Uid::from_raw(0), nix::unistd::Gid::from_raw(0));
        nix::unistd::setgroups(&[]).stage("identity: drop the host's groups")?;
        nix::unistd::setresgid(gid, gid, gid).stage("identity: setresgid in the sandbox")?;
        nix::unistd::setresuid(uid, uid, uid).stage("identity: setresuid in the sandbox")?;
    }
    // Changing ids cleared the death signal; a supervisor that died in between has closed the channel.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .stage("init: death signal")?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .stage("init: make it untraceable")
}

fn private_names() -> Result<(), StageError> {
    match ampoule_sys::keyring::new_session() {
        Err(error) if error.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {}
        other => other.stage("identity: session keyring")?,
    }
    rustix::system::sethostname(HOSTNAME.as_bytes()).stage("names: host name")?;
    rustix::system::setdomainname(b"(none)").stage("names: domain name")?;
    // Any socket will do for the request; this kind leaves nothing behind for the kernel to free later.
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .stage("network: socket")?;
    ampoule_sys::loopback::bring_up(socket.as_fd()).stage("network: bring the loopback up")
}

fn assemble_here(
    plan: AssemblePlan,
    descriptors: impl Iterator<Item = OwnedFd>,
    authority: Authority,
) -> Result<Assembled, StageError> {
    let opened: Vec<OwnedFd> = descriptors
        .zip(&plan.places)
        .map(|(descriptor, place)| reopen(&descriptor, place).stage("mounts: open a layer here"))
        .collect::<Result<_, _>>()?;
    let mut descriptors = opened.into_iter();
    let root = match plan.layers {
        None => RootPlan::Host,
        Some(count) => RootPlan::Layers(descriptors.by_ref().take(count).collect()),
    };
    let inputs = plan
        .inputs
        .into_iter()
        .zip(descriptors)
        .map(|((target, file, writable), tree)| InputMount { target, tree, file, writable })
        .collect();
    let plan = MountPlan { root, inputs, disk_bytes: plan.disk_bytes, disk_inodes: plan.disk_inodes };
    rootfs::assemble(&plan, authority, &IdMaps::default())
}

/// Opens a directory again in our own mount namespace; it has to be the one that was meant.
fn reopen(descriptor: &OwnedFd, place: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let here = openat(rustix::fs::CWD, place, flags, Mode::empty())?;
    let (meant, found) = (rustix::fs::fstat(descriptor)?, rustix::fs::fstat(&here)?);
    if (meant.st_dev, meant.st_ino) == (found.st_dev, found.st_ino) { Ok(here) } else { Err(Errno::STALE) }
}

fn attach_root(root: &OwnedFd) -> Result<(), StageError> {
    // pivot_root(2) wants a mount point of this namespace; any directory will do, it is gone in a moment.
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(root, "", rustix::fs::CWD, "/usr", flags).stage("mounts: attach the root")
}

/// Moves a mount to a place below the new root. The place was made by us in a file system of ours; the
/// lookup still refuses to follow anything.
fn attach(root: BorrowedFd<'_>, relative: &str, mount: BorrowedFd<'_>) -> Result<(), Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let place = openat2(root, relative, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", place, "", flags)
}

/// A procfs of the sandbox's own processes; a step does not see init in it, nor any sysctl.
fn attach_proc(root: BorrowedFd<'_>) -> Result<(), StageError> {
    let stage = "mounts: proc";
    let fs = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).stage(stage)?;
    fsconfig_set_string(&fs, "subset", "pid").stage(stage)?;
    fsconfig_set_string(&fs, "hidepid", "invisible").stage(stage)?;
    fsconfig_create(&fs).stage(stage)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags).stage(stage)?;
    attach(root, "proc", proc.as_fd()).stage(stage)
}

/// Clones of five of the host's devices, each checked to be what its name says (CVE-2025-31133).
fn attach_devices(root: BorrowedFd<'_>) -> Result<(), StageError> {
    for (name, major, minor) in DEVICES {
        let stage = format!("mounts: /dev/{name}");
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let device = open_tree(rustix::fs::CWD, format!("/dev/{name}"), flags).stage(&stage)?;
        let stat = rustix::fs::fstat(&device).stage(&stage)?;
        let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        if !character || stat.st_rdev != rustix::fs::makedev(major, minor) {
            return Err(Errno::NODEV).stage(&stage);
        }
        attach(root, &format!("dev/{name}"), device.as_fd()).stage(&stage)?;
    }
    Ok(())
}

/// No user namespace below the sandbox's, whatever the filter lets through.
fn forbid_user_namespaces() -> Result<(), StageError> {
    let stage = "identity: forbid nested user namespaces";
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = openat(rustix::fs::CWD, "/proc/sys/user/max_user_namespaces", flags, Mode::empty());
    match file {
        Ok(file) => rustix::io::write(&file, b"0").map(drop).stage(stage),
        // An ordinary user's namespace does not own the file; there the system call filter stands alone.
        Err(Errno::ACCESS | Errno::ROFS | Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno).stage(stage),
    }
}

fn leave_host(root: BorrowedFd<'_>) -> Result<(), StageError> {
    rustix::process::fchdir(root).stage("mounts: enter the root")?;
    rustix::process::pivot_root(".", ".").stage("mounts: pivot_root")?;
    unmount(".", UnmountFlags::DETACH).stage("mounts: leave the host's root")?;
    rustix::process::chdir("/").stage("mounts: enter the root")?;
    // Getcwd must begin with "/": a directory outside the root shows as "(unreachable)" (CVE-2024-21626).
    match rustix::process::getcwd(Vec::new()) {
        Ok(path) if path.as_bytes() == b"/" => Ok(()),
        _ => Err(Errno::XDEV).stage("mounts: the working directory is outside the root"),
    }
}
