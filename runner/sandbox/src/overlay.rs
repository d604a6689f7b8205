//! Overlays.
//!
//! Linux 6.15 makes them of detached mounts, by descriptor: nothing is attached anywhere ([`overlay`]). Older kernels
//! want names, and mounts that are attached in the namespace of whoever makes the overlay: there it is done in a mount
//! namespace of the supervisor's own, on a tmpfs that nobody else sees ([`crate::by_name`]).

use crate::error::{Stage, StageError};
use crate::fault;
use crate::identity::Authority;
use ampoule_sys::mount::{Attributes, set_attributes};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A layer as an overlay takes it: as host root a read-only, id-mapped clone; else the directory itself.
///
/// # Errors
/// The stage that failed; [`StageError::unsupported`] on a file system that cannot be id-mapped.
pub(crate) fn id_mapped(dir: BorrowedFd<'_>, map: Option<&OwnedFd>) -> Result<OwnedFd, StageError> {
    let Some(map) = map else { return dir.try_clone_to_owned().stage("rootfs: duplicate a layer") };
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let clone = open_tree(dir, "", flags).stage("rootfs: clone a layer")?;
    let attributes = Attributes { read_only: true, ..Attributes::default() };
    set_attributes(clone.as_fd(), attributes, Some(map.as_fd())).map_err(|error| {
        if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) {
            let remedy = "the file system of this layer cannot be id-mapped; keep /usr and the state \
                          directory on ext4, xfs, btrfs or tmpfs";
            return StageError::unsupported("rootfs: id-map a layer", remedy);
        }
        StageError {
            stage: "rootfs: id-map a layer".into(),
            errno: error.raw_os_error().unwrap_or(0),
            unsupported: None,
        }
    })?;
    Ok(clone)
}

/// A lower layer.
#[derive(Debug)]
pub(crate) enum Lower<'a> {
    /// A tree of an image or input, as [`id_mapped`] gives it.
    Tree(OwnedFd),
    /// A directory of the writable layer, by its name there.
    Scratch(&'a str),
}

/// Where an overlay keeps what is written: two directories of the writable layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Upper<'a> {
    /// The upper layer's name in the writable layer.
    pub(crate) upper: &'a str,
    /// The work directory's.
    pub(crate) work: &'a str,
}

/// Whether this kernel makes overlays of detached mounts, by descriptor: since 6.15.
pub(crate) fn is_by_descriptor() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 15) && !fault::overlays_are_made_by_name()
}

/// What every overlay of ours is like.
pub(crate) fn flags(upper: Option<Upper<'_>>) -> MountAttrFlags {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if upper.is_some() { flags } else { flags | MountAttrFlags::MOUNT_ATTR_RDONLY }
}

/// An overlay over these lower layers, the highest first; writable if it has an upper layer.
///
/// # Errors
/// The stage that failed.
pub(crate) fn overlay(
    scratch: BorrowedFd<'_>,
    lowers: &[Lower<'_>],
    upper: Option<Upper<'_>>,
    authority: Authority,
) -> Result<OwnedFd, StageError> {
    let stage = "rootfs: overlay";
    let open = |name: &str| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(scratch, name, flags, Mode::empty()).stage("rootfs: open a layer of the job's")
    };
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).stage(stage)?;
    for lower in lowers {
        let opened;
        let dir = match lower {
            Lower::Tree(tree) => tree.as_fd(),
            Lower::Scratch(name) => {
                opened = open(name)?;
                opened.as_fd()
            }
        };
        fsconfig_set_fd(&fs, "lowerdir+", dir).stage("rootfs: overlay's lower layer")?;
    }
    if let Some(Upper { upper, work }) = upper {
        for (option, name) in [("upperdir", upper), ("workdir", work)] {
            fsconfig_set_fd(&fs, option, open(name)?.as_fd()).stage("rootfs: overlay's layer to write to")?;
        }
        // Nothing of it outlives the job, so nothing of it need reach a disk.
        fsconfig_set_flag(&fs, "volatile").stage(stage)?;
    }
    if authority.is_root() {
        // Renaming a directory of a lower layer is EXDEV without it.
        fsconfig_set_string(&fs, "redirect_dir", "on").stage(stage)?;
    } else {
        fsconfig_set_flag(&fs, "userxattr").stage(stage)?;
    }
    fsconfig_create(&fs).stage(stage)?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags(upper)).stage(stage)
}
