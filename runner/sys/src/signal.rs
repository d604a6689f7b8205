//! Signal dispositions: a new program inherits what its parent ignores and blocks (signal(7)).

use std::io;

/// `struct sigaction` as the kernel has it on x86_64 (asm/signal.h); glibc's differs, and glibc refuses the two
/// signals that it uses itself.
#[repr(C)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// The highest signal number.
const SIGNAL_MAX: libc::c_int = 64;

/// Gives every signal its default action and blocks none.
///
/// # Errors
/// Any errno but `EINVAL`, which is the kernel's answer for SIGKILL and SIGSTOP.
pub fn reset() -> io::Result<()> {
    let action = KernelAction { handler: libc::SIG_DFL, flags: 0, restorer: 0, mask: 0 };
    for number in 1..=SIGNAL_MAX {
        // SAFETY: the kernel reads one KernelAction with a mask of 8 bytes and writes nothing; the default action
        // runs no code of ours.
        let done = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                &raw const action,
                std::ptr::null::<KernelAction>(),
                size_of::<u64>(),
            )
        };
        match crate::check(done) {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
            _ => {}
        }
    }
    let none = 0_u64;
    // SAFETY: the kernel reads a mask of 8 bytes and writes nothing.
    let done = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null::<u64>(),
            size_of::<u64>(),
        )
    };
    crate::check(done).map(drop)
}
