//! What ext4 alone can be asked for (fs/ext4/ioctl.c).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `EXT4_IOC_SHUTDOWN`: `_IOR('X', 125, __u32)` (uapi/linux/ext4.h).
const SHUTDOWN: libc::Ioctl = libc::_IOR::<u32>(0x58, 125);
/// `EXT4_GOING_FLAGS_NOLOGFLUSH`: neither data nor journal is written any more.
const NO_LOG_FLUSH: u32 = 2;

/// Ends all input and output of the ext4 that the open directory `dir` is on: what has not been written never
/// is, and every later call but the release of it answers `EIO`.
///
/// For a file system that is about to be thrown away. There is no way back but to mount it again. The kernel
/// says so in its log.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN` in the initial user namespace; `ENOTTY` on another file system; `EBADF` for
/// an `O_PATH` descriptor.
pub fn shutdown(dir: BorrowedFd<'_>) -> io::Result<()> {
    let flags = NO_LOG_FLUSH;
    // SAFETY: EXT4_IOC_SHUTDOWN reads one `__u32`, which `flags` is, and writes nothing.
    let done = unsafe { libc::ioctl(dir.as_raw_fd(), SHUTDOWN, &raw const flags) };
    crate::check(done.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn shutdown_number_is_the_kernels_and_other_file_systems_refuse_it() {
        assert_eq!(SHUTDOWN, 0x8004_587d);
        // procfs: never a file system that anybody would miss.
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(shutdown(proc.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
