//! The loopback interface of a new network namespace (netdevice(7)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Brings `lo` up in the network namespace of `socket`, any socket.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` in the namespace.
pub fn bring_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut name = [0; libc::IFNAMSIZ];
    for (slot, byte) in name.iter_mut().zip(b"lo") {
        *slot = libc::c_char::from_ne_bytes([*byte]);
    }
    let flags = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    let request =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: SIOCSIFFLAGS reads one `struct ifreq`, which `request` is, and writes nothing.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    crate::check(done.into()).map(drop)
}
