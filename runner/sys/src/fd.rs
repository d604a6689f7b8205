//! Descriptors that came with the process.

use crate::process::Keep;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Descriptors 3 to 66 that were taken already, one bit each.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Takes ownership of a descriptor that the parent left open across exec, and sets its close-on-exec flag.
///
/// # Errors
/// `EBADF` if it is not open, is one of the first three or above 66, or was taken before.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    let bit = u32::try_from(number).ok().and_then(|n| n.checked_sub(3)).filter(|n| *n < 64);
    let bit = bit.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: F_SETFD takes an int and touches no memory; an unopened number gives EBADF.
    let set = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    crate::check(set.into())?;
    if TAKEN.fetch_or(1 << bit, Ordering::SeqCst) & (1 << bit) != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the number is open (F_SETFD succeeded), and TAKEN gives it away at most once, so no other
    // OwnedFd made here owns it. Callers take their descriptors before they open any of their own.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Marks every descriptor from `first` on close-on-exec (close_range(2), Linux 5.11).
///
/// # Errors
/// `ENOSYS` or `EINVAL` on a kernel without it.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing and touches no memory; it only sets flags.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    crate::check(done).map(drop)
}

/// Closes what a new process does not keep.
///
/// Only for a process that was just made and never returns into the frames that own the others:
/// [`crate::process::spawn`].
pub(crate) fn close_after_clone(keep: Keep<'_>) -> io::Result<()> {
    match keep {
        Keep::Only(kept) => {
            let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
            kept.sort_unstable();
            let mut first = 3_u32;
            for number in kept.into_iter().filter(|n| *n >= 3) {
                if number > first {
                    close_range(first, number - 1)?;
                }
                first = number.saturating_add(1);
            }
            close_range(first, u32::MAX)
        }
        Keep::AllBut(closed) => closed
            .iter()
            .filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok())
            .filter(|n| *n >= 3)
            .try_for_each(|number| close_range(number, number)),
    }
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the contract of `close_after_clone`: whoever owns these descriptors in this process's memory is
    // never run again, so nothing uses or closes them a second time.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) };
    crate::check(done).map(drop)
}
