//! The files of a step's secrets: a ramfs, whose pages are never swapped, that the step sees read-only.
//!
//! The supervisor makes it and keeps the only writable mount of it, which is attached nowhere; init clones that mount,
//! makes the clone read-only and attaches it for one step. With the step's mount namespace, init's clone and the
//! supervisor's mount the last of the files is gone. A ramfs has no limit of its own: nobody inside can write to it.

use crate::error::{Stage, StageError};
use crate::identity::Authority;
use ampoule_spec::{RotateSignal, SECRETS_DIR, StepUser};
use ampoule_sys::mount::{Attributes, set_attributes};
use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, mkdirat, openat, openat2, renameat,
    sendfile, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use rustix::process::Signal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The files of one step's secrets, as the supervisor has them.
#[derive(Debug)]
pub struct SecretFiles {
    mount: OwnedFd,
    owner: u32,
}

impl SecretFiles {
    /// Makes a place for them, for a step of this user.
    ///
    /// # Errors
    /// The stage that failed; [`StageError::unsupported`] as an ordinary user.
    pub fn make(authority: Authority, user: StepUser) -> Result<Self, StageError> {
        let stage = "secrets: ramfs";
        if !authority.is_root() {
            return Err(StageError::unsupported(
                stage,
                "only a runner that root started has secrets for steps",
            ));
        }
        let fs = fsopen("ramfs", FsOpenFlags::FSOPEN_CLOEXEC).stage(stage)?;
        fsconfig_set_string(&fs, "mode", "0755").stage(stage)?;
        fsconfig_create(&fs).stage(stage)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags).stage(stage)?;
        Ok(Self { mount, owner: authority.host_id(user.id()) })
    }

    /// The mount, for init.
    pub fn mount(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    /// Puts a value into a file, or another one into its place, in one step that readers see whole or not at all.
    /// The bytes do not come into our memory.
    ///
    /// # Errors
    /// The stage that failed.
    pub fn put(&self, name: &str, value: BorrowedFd<'_>, bytes: usize) -> Result<(), StageError> {
        let stage = "secrets: write a file";
        let new = format!(".{name}");
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.mount, &new, flags, Mode::empty()).stage(stage)?;
        let mut offset = 0;
        while (offset as usize) < bytes {
            let left = bytes - offset as usize;
            if sendfile(&file, value, Some(&mut offset), left).stage(stage)? == 0 {
                return Err(Errno::NODATA).stage(stage);
            }
        }
        fchmod(&file, Mode::RUSR).stage(stage)?;
        fchown(&file, Some(Uid::from_raw(self.owner)), Some(Gid::from_raw(self.owner))).stage(stage)?;
        renameat(&self.mount, &new, &self.mount, name).stage(stage)
    }
}

/// Where init shows them.
#[derive(Debug)]
pub(crate) struct SecretsPlace {
    /// The directory above, and whether the place was made there.
    above: (OwnedFd, bool),
    shown: OwnedFd,
}

/// The place's name in the directory above.
const NAME: &str = "secrets";

impl SecretsPlace {
    /// Attaches a read-only clone of a mount.
    ///
    /// # Errors
    /// The stage that failed.
    pub(crate) fn attach(root: BorrowedFd<'_>, mount: &OwnedFd) -> Result<Self, StageError> {
        let above = SECRETS_DIR.trim_start_matches('/').trim_end_matches(NAME);
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let stage = "secrets: find their place (an earlier step or the image has something else there)";
        let above = openat2(root, above, flags, Mode::empty(), resolve).stage(stage)?;
        let is_made = match mkdirat(&above, NAME, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno).stage("secrets: make their place"),
        };
        let place = || openat2(&above, NAME, flags, Mode::empty(), resolve).stage(stage);
        let moved = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        // Before Linux 6.15 only what is attached is cloned.
        move_mount(mount, "", place()?, "", moved).stage("secrets: attach")?;
        let clone =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let shown = open_tree(mount, "", clone).stage("secrets: clone their mount")?;
        take_away(mount)?;
        let attributes = Attributes { read_only: true, no_suid: true, no_dev: true, no_exec: true };
        set_attributes(shown.as_fd(), attributes, None).stage("secrets: make them read-only")?;
        move_mount(&shown, "", place()?, "", moved).stage("secrets: attach")?;
        Ok(Self { above: (above, is_made), shown })
    }

    /// Takes them away, wherever a step may have moved the directory above to.
    ///
    /// # Errors
    /// The stage that failed: then they are still there.
    pub(crate) fn detach(self) -> Result<(), StageError> {
        take_away(&self.shown)?;
        if let (above, true) = &self.above {
            let _ = unlinkat(above, NAME, AtFlags::REMOVEDIR);
        }
        Ok(())
    }
}

/// Unmounts what a descriptor stands for, under whatever name.
fn take_away(mount: &OwnedFd) -> Result<(), StageError> {
    let stage = "secrets: detach";
    rustix::process::fchdir(mount).stage(stage)?;
    let gone = unmount(".", UnmountFlags::DETACH).stage(stage);
    rustix::process::chdir("/").stage(stage)?;
    gone
}

pub(crate) fn signal(signal: RotateSignal) -> Signal {
    match signal {
        RotateSignal::Hup => Signal::HUP,
        RotateSignal::Usr1 => Signal::USR1,
        RotateSignal::Usr2 => Signal::USR2,
    }
}
