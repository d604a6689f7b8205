//! How init enters the sandbox that was prepared for it, stage by stage.

use crate::clock::StageClock;
use crate::error::{Stage, StageError};
use crate::identity::Authority;
use crate::inner::Gate;
use crate::protocol::{AssemblePlan, EnterPlan};
use crate::rootfs::{self, Assembled, InputMount, MountPlan, RootPlan};
use ampoule_spec::{Device, HOSTNAME, INIT_ID, Namespace, Proc, Profile, SandboxPath};
use ampoule_sys::mount::{Attributes, set_attributes};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount, open_tree,
    unmount,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Joins the control groups, takes init's id and makes the sandbox's names. Returns the inode number of the
/// control group namespace, which is made last so that its root is the job's own group.
///
/// # Errors
/// The stage that failed.
pub(crate) fn join(
    tasks: Vec<OwnedFd>,
    authority: Authority,
    profile: &Profile,
    clock: &mut StageClock,
) -> Result<u64, StageError> {
    for tasks in tasks {
        rustix::io::write(&tasks, b"0").stage("cgroup: join")?;
    }
    if profile.has(Namespace::Cgroup) {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP).stage("cgroup: namespace")?;
    }
    let namespace = rustix::fs::stat("/proc/self/ns/cgroup").stage("cgroup: namespace")?.st_ino;
    clock.mark("control groups");
    take_id(authority)?;
    private_names(profile)?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .stage("mounts: make propagation private")?;
    clock.mark("identity and names");
    Ok(namespace)
}

/// Init's id is no step's, whoever a job asks its steps to be: neither signals nor traces go between equals.
fn take_id(authority: Authority) -> Result<(), StageError> {
    if authority.is_root() {
        let (uid, gid) = (nix::unistd::Uid::from_raw(INIT_ID), nix::unistd::Gid::from_raw(INIT_ID));
        nix::unistd::setgroups(&[]).stage("identity: drop the host's groups")?;
        nix::unistd::setresgid(gid, gid, gid).stage("identity: init's group id")?;
        nix::unistd::setresuid(uid, uid, uid).stage("identity: init's user id")?;
    }
    // Changing ids cleared the death signal; a supervisor that died in between has closed the channel.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .stage("init: death signal")?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .stage("init: make it untraceable")
}

fn private_names(profile: &Profile) -> Result<(), StageError> {
    if profile.has(Namespace::Uts) {
        rustix::system::sethostname(HOSTNAME.as_bytes()).stage("names: host name")?;
        rustix::system::setdomainname(b"(none)").stage("names: domain name")?;
    }
    if !profile.has(Namespace::Net) {
        return Ok(());
    }
    // Any socket will do for the request; this kind leaves nothing behind for the kernel to free later.
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .stage("network: socket")?;
    ampoule_sys::loopback::bring_up(socket.as_fd()).stage("network: bring the loopback up")
}

/// What is left in init's hands once it is inside.
#[derive(Debug)]
pub(crate) struct Entered {
    /// The root directory.
    pub(crate) root: OwnedFd,
    /// Who may make user namespaces.
    pub(crate) gate: Gate,
}

/// Enters. What fails leaves a process that has to end.
///
/// # Errors
/// The stage that failed.
pub(crate) fn enter(
    plan: EnterPlan,
    descriptors: Vec<OwnedFd>,
    authority: Authority,
    profile: &Profile,
    clock: &mut StageClock,
) -> Result<Entered, StageError> {
    let mut descriptors = descriptors.into_iter();
    let (root, mounts) = match plan {
        EnterPlan::Mounted { mounts } => {
            let root = descriptors.next().ok_or(Errno::BADMSG).stage("mounts: the root is missing")?;
            (root, mounts.into_iter().zip(descriptors).collect::<Vec<_>>())
        }
        EnterPlan::Assemble(plan) => {
            let Assembled { root, mounts } = assemble_here(plan, descriptors, authority, profile)?;
            (root, mounts)
        }
    };
    attach_root(&root)?;
    for (target, mount) in &mounts {
        attach(root.as_fd(), target.relative(), mount.as_fd()).stage("mounts: move into place")?;
    }
    clock.mark("mounts");
    attach_proc(root.as_fd(), profile.mounts.proc)?;
    if !authority.is_root() {
        attach_devices(root.as_fd(), &profile.devices)?;
    }
    let gate = Gate::open()?;
    clock.mark("proc and devices");
    leave_host(root.as_fd())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(rustix::fs::CWD, "/", flags, Mode::empty()).stage("mounts: open the new root")?;
    clock.mark("pivot_root");
    Ok(Entered { root, gate })
}

/// Moves mounts into the root that was entered.
///
/// # Errors
/// The stage that failed.
pub(crate) fn attach_all(
    root: BorrowedFd<'_>,
    targets: &[SandboxPath],
    mounts: &[OwnedFd],
) -> Result<(), StageError> {
    if targets.len() != mounts.len() {
        return Err(Errno::BADMSG).stage("mounts: a mount is missing");
    }
    for (target, mount) in targets.iter().zip(mounts) {
        attach(root, target.relative(), mount.as_fd()).stage("mounts: move into place")?;
    }
    Ok(())
}

fn assemble_here(
    plan: AssemblePlan,
    descriptors: impl Iterator<Item = OwnedFd>,
    authority: Authority,
    profile: &Profile,
) -> Result<Assembled, StageError> {
    let opened: Vec<OwnedFd> = descriptors
        .zip(&plan.places)
        .map(|(descriptor, place)| reopen(&descriptor, place).stage("mounts: open a layer here"))
        .collect::<Result<_, _>>()?;
    let mut descriptors = opened.into_iter();
    let root = RootPlan::take(plan.layers, &mut descriptors);
    let inputs = plan
        .inputs
        .into_iter()
        .zip(descriptors)
        .map(|((target, file, writable), tree)| InputMount { target, tree, file, writable })
        .collect();
    let mounts = MountPlan { root, inputs };
    rootfs::assemble_as_user(&mounts, (plan.disk_bytes, plan.disk_inodes), authority, profile)
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
fn attach_proc(root: BorrowedFd<'_>, shows: Proc) -> Result<(), StageError> {
    let stage = "mounts: proc";
    let fs = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).stage(stage)?;
    if shows == Proc::Own {
        fsconfig_set_string(&fs, "subset", "pid").stage(stage)?;
        fsconfig_set_string(&fs, "hidepid", "invisible").stage(stage)?;
    }
    fsconfig_create(&fs).stage(stage)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags).stage(stage)?;
    attach(root, "proc", proc.as_fd()).stage(stage)
}

/// Clones of a few of the host's devices, each checked to be what its name says (CVE-2025-31133): an ordinary user
/// cannot make any. They are the host's own inodes, so that locks and watches on them are not the sandbox's alone; their
/// times cannot be changed through these mounts.
fn attach_devices(root: BorrowedFd<'_>, devices: &[Device]) -> Result<(), StageError> {
    for (name, major, minor) in devices.iter().map(|device| device.node()) {
        let stage = format!("mounts: /dev/{name}");
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let device = open_tree(rustix::fs::CWD, format!("/dev/{name}"), flags).stage(&stage)?;
        let stat = rustix::fs::fstat(&device).stage(&stage)?;
        let character = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        if !character || stat.st_rdev != rustix::fs::makedev(major.into(), minor.into()) {
            return Err(Errno::NODEV).stage(&stage);
        }
        let attributes =
            Attributes { read_only: true, no_suid: true, no_exec: true, ..Attributes::default() };
        set_attributes(device.as_fd(), attributes, None).stage(&stage)?;
        attach(root, &format!("dev/{name}"), device.as_fd()).stage(&stage)?;
    }
    Ok(())
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
