//! What became of a file's bytes on their way to the disk (sync_file_range(2)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Says whether bytes of this file were lost while the kernel wrote them out, since the file was opened or asked
/// about last. Waits for what is under way and starts nothing: unlike fsync(2) it does not cost a disk's time.
///
/// # Errors
/// That of the lost bytes, once for each open file description: `EIO`, `ENOSPC`, `EDQUOT`.
pub fn check(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: sync_file_range takes numbers and touches no memory of ours; length 0 means to the end of the file.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WAIT_BEFORE) };
    crate::check(done.into()).map(drop)
}

/// Has the kernel begin to write this file's bytes out, and waits for nothing. What is on the disk already when
/// everything has to be need not be waited for then.
///
/// # Errors
/// `EIO`, `ENOSPC`, `ESPIPE`; whoever syncs the file afterwards is told of lost bytes too.
pub fn begin(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: as above.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    crate::check(done.into()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn file_is_ok_and_a_pipe_is_espipe() {
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        begin(file.as_fd()).unwrap();
        check(file.as_fd()).unwrap();
        let (pipe, _writer) = io::pipe().unwrap();
        assert_eq!(begin(pipe.as_fd()).unwrap_err().raw_os_error(), Some(libc::ESPIPE));
        assert_eq!(check(pipe.as_fd()).unwrap_err().raw_os_error(), Some(libc::ESPIPE));
    }
}
