//! The Landlock ABI of the running kernel (landlock(7)).

use std::io;

/// `LANDLOCK_CREATE_RULESET_VERSION` (linux/landlock.h).
const VERSION: libc::c_uint = 1;

/// The highest ABI that the kernel has, 0 if it has none or has it switched off.
///
/// # Errors
/// Any errno but `ENOSYS` and `EOPNOTSUPP`.
pub fn abi() -> io::Result<u32> {
    // SAFETY: with a null attribute, size 0 and the VERSION flag, the call reads no memory and makes nothing.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION)
    };
    match crate::check(version) {
        Ok(version) => Ok(u32::try_from(version).unwrap_or(0)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) => Ok(0),
        Err(error) => Err(error),
    }
}
