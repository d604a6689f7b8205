//! Which descriptors a process keeps.

use crate::process::Keep;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Marks every descriptor from `first` on close-on-exec (close_range(2), Linux 5.11).
///
/// # Errors
/// `ENOSYS` or `EINVAL` on a kernel without it.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: CLOSE_RANGE_CLOEXEC closes nothing and touches no memory; it only sets flags.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    crate::check(done).map(drop)
}

/// Another descriptor of one that the process was started with, by its number (sd_listen_fds(3)); close-on-exec.
///
/// # Errors
/// `EBADF` if there is none of that number.
pub fn duplicate_inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC touches no memory, and leaves the descriptor that it copies as it is.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    crate::check(copy.into())?;
    // SAFETY: the kernel has just made this descriptor; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Closes what a new process does not keep.
///
/// Only for a process that was just made and never returns into the frames that own the others:
/// [`crate::process::spawn`].
pub(crate) fn close_after_clone(keep: Keep<'_>) -> io::Result<()> {
    match keep {
        Keep::Only(kept) => {
            for standard in 0..3 {
                silence(standard)?;
            }
            let mut kept: Vec<u32> =
                kept.iter().filter_map(|fd| u32::try_from(fd.as_raw_fd()).ok()).collect();
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

/// Puts `/dev/null` in a standard descriptor's place.
fn silence(standard: libc::c_int) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    // SAFETY: dup2 touches no memory, and what is replaced is one of the first three descriptors, which no
    // value of this process owns.
    let done = unsafe { libc::dup2(null.as_raw_fd(), standard) };
    crate::check(done.into()).map(drop)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: the contract of `close_after_clone`: whoever owns these descriptors in this process's memory is
    // never run again, so nothing uses or closes them a second time.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0_u32) };
    crate::check(done).map(drop)
}
