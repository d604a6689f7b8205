//! The only unsafe code of Ampoule: one file per kernel facility.
//!
//! Each function takes and returns safe types, checks what the kernel does not, and turns `-1` into
//! [`std::io::Error`]. What `rustix` and `nix` already offer safely is not repeated here.
//!
//! The processes that use this crate are single-threaded; [`process::spawn`] says why that matters.

pub mod environment;
pub mod ext4;
pub mod fd;
pub mod keyring;
pub mod landlock;
pub mod loopback;
pub mod loopdev;
pub mod mount;
pub mod namespace;
pub mod process;
pub mod seccomp;
#[cfg(feature = "faults")]
pub mod shared;
pub mod signal;
pub mod writeback;

use std::io;

/// Turns the return value of a system call into a result.
fn check(value: libc::c_long) -> io::Result<libc::c_long> {
    if value == -1 { Err(io::Error::last_os_error()) } else { Ok(value) }
}
