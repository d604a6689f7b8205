//! mount_setattr(2), which neither `rustix` nor `nix` has.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Mount attributes that are switched on (linux/mount.h).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `MOUNT_ATTR_RDONLY`
    pub read_only: bool,
    /// `MOUNT_ATTR_NOSUID`
    pub no_suid: bool,
    /// `MOUNT_ATTR_NODEV`
    pub no_dev: bool,
    /// `MOUNT_ATTR_NOEXEC`
    pub no_exec: bool,
}

/// `MOUNT_ATTR_IDMAP` (linux/mount.h).
const IDMAP: u64 = 0x0010_0000;

/// Has a mount show devices again: switches `MOUNT_ATTR_NODEV` off.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN` in the user namespace that owns the mount, or if the attribute is locked.
pub fn show_devices(mount: BorrowedFd<'_>) -> io::Result<()> {
    change(mount, &libc::mount_attr { attr_set: 0, attr_clr: 4, propagation: 0, userns_fd: 0 })
}

/// Changes a mount, attached or not: switches attributes on and, if given, maps ids by a user namespace.
///
/// # Errors
/// `EINVAL` if the file system cannot be id-mapped or the mount is mapped already; `EPERM` without
/// `CAP_SYS_ADMIN` in the user namespace that owns the file system.
pub fn set_attributes(
    mount: BorrowedFd<'_>,
    attributes: Attributes,
    id_map: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bit = |on: bool, value: u64| if on { value } else { 0 };
    let set = bit(attributes.read_only, 1)
        | bit(attributes.no_suid, 2)
        | bit(attributes.no_dev, 4)
        | bit(attributes.no_exec, 8)
        | bit(id_map.is_some(), IDMAP);
    let request = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: 0,
        userns_fd: id_map.map_or(0, |fd| u64::try_from(fd.as_raw_fd()).unwrap_or(0)),
    };
    change(mount, &request)
}

fn change(mount: BorrowedFd<'_>, request: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: the path is a NUL-terminated constant and the kernel reads exactly size_of(mount_attr) bytes
    // of `request`, which outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const *request,
            size_of::<libc::mount_attr>(),
        )
    };
    crate::check(done).map(drop)
}
