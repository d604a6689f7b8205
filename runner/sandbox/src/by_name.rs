//! Overlays by name, for kernels before 6.15.
//!
//! There the layers have to be attached in the mount namespace of whoever makes the overlay, and are given by name. So
//! the supervisor has a second mount namespace, in which nothing propagates and which it enters for each overlay; layers
//! and the writable layer are attached there to a tmpfs over `/tmp`. Nothing shows in the host's mount table, and the
//! namespace is gone with the last descriptor of it. An ordinary user's init has a namespace of its own already,
//! in which its layers are attached.

use crate::error::{Stage, StageError};
use crate::identity::Authority;
use crate::overlay::{self, Lower, Upper};
use ampoule_sys::process::exit_now;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsmount, fsopen, mount, mount_change, move_mount,
    open_tree, unmount,
};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Where they are made: a directory that every host has and that the process does not need meanwhile.
const PLACE: &str = "/tmp";
/// The writable layer's name on it.
const SCRATCH: &str = "s";
/// mount(2) takes a page of options, and what is beyond it is cut off without a word.
const OPTIONS_BYTES_MAX: usize = 4095;

/// A place to make overlays at, with the writable layer attached to it.
#[derive(Debug)]
pub(crate) struct ByName {
    dir: OwnedFd,
    /// The supervisor's first namespace and its second; none as an ordinary user.
    namespaces: Option<(OwnedFd, OwnedFd)>,
    authority: Authority,
}

fn this_namespace() -> Result<OwnedFd, StageError> {
    openat(CWD, "/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .stage("overlay by name: open a mount namespace")
}

/// Goes back to the first namespace. Whoever cannot would keep the writable layer, and could not see it gone: it ends, and
/// the launcher reports it.
fn go_back(first: &OwnedFd) {
    if setns(first, CloneFlags::CLONE_NEWNS).is_err() || rustix::process::chdir("/").is_err() {
        exit_now(70);
    }
}

impl ByName {
    /// Sets it up, and attaches the writable layer.
    ///
    /// # Errors
    /// The stage that failed.
    pub(crate) fn set_up(scratch: BorrowedFd<'_>, authority: Authority) -> Result<Self, StageError> {
        if !authority.is_root() {
            return Ok(Self { dir: attach_layer(scratch)?, namespaces: None, authority });
        }
        let first = this_namespace()?;
        let made =
            unshare(CloneFlags::CLONE_NEWNS).stage("overlay by name: mount namespace").and_then(|()| {
                mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
                    .stage("overlay by name: make propagation private")?;
                Ok((this_namespace()?, attach_layer(scratch)?))
            });
        go_back(&first);
        let (second, dir) = made?;
        Ok(Self { dir, namespaces: Some((first, second)), authority })
    }

    /// Does something where the layers have names.
    fn at_work<T>(&self, work: impl FnOnce() -> Result<T, StageError>) -> Result<T, StageError> {
        let Some((first, second)) = &self.namespaces else { return work() };
        let entered =
            setns(second, CloneFlags::CLONE_NEWNS).stage("overlay by name: enter a mount namespace");
        let done = entered.and_then(|()| work());
        go_back(first);
        done
    }

    /// A clone of a directory of the writable layer as a mount of its own.
    ///
    /// # Errors
    /// The stage that failed.
    pub(crate) fn bind(&self, name: &str) -> Result<OwnedFd, StageError> {
        self.at_work(|| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            open_tree(CWD, format!("{PLACE}/{SCRATCH}/{name}"), flags)
                .stage("overlay by name: clone a directory")
        })
    }

    /// A clone of a tree, or of one entry of it, as a mount of its own.
    ///
    /// # Errors
    /// The stage that failed.
    pub(crate) fn take(&self, tree: BorrowedFd<'_>, entry: Option<&str>) -> Result<OwnedFd, StageError> {
        self.at_work(|| {
            let stage = "overlay by name: clone a tree";
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            if !self.authority.is_root() {
                return open_tree(tree, entry.unwrap_or_default(), flags | OpenTreeFlags::AT_EMPTY_PATH)
                    .stage(stage);
            }
            attach(&self.dir, tree, "t").stage(stage)?;
            let at = entry.map_or(format!("{PLACE}/t"), |entry| format!("{PLACE}/t/{entry}"));
            let taken = open_tree(CWD, at, flags).stage(stage);
            unmount(format!("{PLACE}/t"), UnmountFlags::DETACH).stage(stage)?;
            taken
        })
    }

    /// An overlay as `overlay::overlay` makes it, or one entry of it.
    ///
    /// # Errors
    /// The stage that failed.
    pub(crate) fn overlay(
        &self,
        lowers: &[Lower<'_>],
        upper: Option<Upper<'_>>,
        entry: Option<&str>,
    ) -> Result<OwnedFd, StageError> {
        self.at_work(|| {
            let made = self.make(lowers, upper, entry);
            // The overlay has clones of its layers.
            for at in 0..lowers.len() {
                let _ = unmount(format!("{PLACE}/{at}"), UnmountFlags::DETACH);
            }
            let _ = unmount(format!("{PLACE}/m"), UnmountFlags::DETACH);
            made
        })
    }

    fn make(
        &self,
        lowers: &[Lower<'_>],
        upper: Option<Upper<'_>>,
        entry: Option<&str>,
    ) -> Result<OwnedFd, StageError> {
        let stage = "overlay by name: mount";
        let mut names = Vec::new();
        for (at, lower) in lowers.iter().enumerate() {
            names.push(match (lower, self.authority) {
                (Lower::Scratch(name), _) => format!("{PLACE}/{SCRATCH}/{name}"),
                (Lower::Tree(tree), Authority::Root { .. }) => {
                    attach(&self.dir, tree.as_fd(), &at.to_string())
                        .stage("overlay by name: attach a layer")?;
                    format!("{PLACE}/{at}")
                }
                // It was opened in this namespace, where it is attached already.
                (Lower::Tree(tree), Authority::User { .. }) => format!("/proc/self/fd/{}", tree.as_raw_fd()),
            });
        }
        let mut options = format!("lowerdir={}", names.join(":"));
        if let Some(Upper { upper, work, .. }) = upper {
            let within = format!("{PLACE}/{SCRATCH}");
            options.push_str(&format!(",upperdir={within}/{upper},workdir={within}/{work},volatile"));
        }
        options.push_str(if self.authority.is_root() { ",redirect_dir=on" } else { ",userxattr" });
        if options.len() > OPTIONS_BYTES_MAX {
            let remedy = "this kernel cannot name so many layers at once; use an image of fewer layers, or \
                          Linux 6.15";
            return Err(StageError::unsupported(stage, remedy));
        }
        let options = CString::new(options).map_err(|_| Errno::INVAL).stage(stage)?;
        directory(&self.dir, "m").stage(stage)?;
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        if overlay::flags(upper).contains(MountAttrFlags::MOUNT_ATTR_RDONLY) {
            flags |= MountFlags::RDONLY;
        }
        let target = format!("{PLACE}/m");
        mount("overlay", &target, "overlay", flags, Some(options.as_c_str())).stage(stage)?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let taken = entry.map_or(target.clone(), |entry| format!("{target}/{entry}"));
        open_tree(CWD, taken, flags).stage("overlay by name: take the overlay")
    }
}

/// A tmpfs over [`PLACE`], and on it the writable layer.
fn attach_layer(scratch: BorrowedFd<'_>) -> Result<OwnedFd, StageError> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).stage("overlay by name: tmpfs")?;
    fsconfig_create(&fs).stage("overlay by name: tmpfs")?;
    let mounted = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
    let dir = mounted.stage("overlay by name: tmpfs")?;
    move_mount(&dir, "", CWD, PLACE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .stage("overlay by name: attach it")?;
    attach(&dir, scratch, SCRATCH).stage("overlay by name: attach the writable layer")?;
    Ok(dir)
}

fn directory(base: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    match mkdirat(base, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    openat(base, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn attach(base: &OwnedFd, mount: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", directory(base, name)?, "", flags)
}
