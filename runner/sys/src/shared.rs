//! A number that a process and all its later children share, whatever they close: for tests that inject faults.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU64;

/// Maps the first eight bytes of a file that is at least that long, for good.
///
/// # Errors
/// As mmap(2).
pub fn number(file: &File) -> io::Result<&'static AtomicU64> {
    if file.metadata()?.len() < 8 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the kernel chooses an address that nothing else uses; the length is that of one AtomicU64.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<AtomicU64>(),
            protection,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping begins at a page, so it is aligned; it is readable and writable, and never unmapped. Other
    // processes change it, which an atomic allows. The file was long enough and is the test's own.
    Ok(unsafe { &*at.cast::<AtomicU64>() })
}
