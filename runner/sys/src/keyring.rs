//! Kernel keyrings: a job must not find a key of its caller's (keyrings(7)).

use std::io;

/// `KEYCTL_JOIN_SESSION_KEYRING` (linux/keyctl.h).
const JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Gives the calling process a new anonymous session keyring.
///
/// # Errors
/// `ENOSYS` on a kernel without keyrings, `EDQUOT` if the user has too many.
pub fn new_session() -> io::Result<()> {
    // SAFETY: with a null name the call reads no memory of ours (keyctl_join_session_keyring(3)).
    let done =
        unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    crate::check(done).map(drop)
}
