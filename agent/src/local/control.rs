//! Ending a job that belongs to no connection, by the control socket in its directory.

use ampoule_spec::wire::{CANCEL, CONTROL_SOCKET};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with,
};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// What became of a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// The job's supervisor has it: the report says whether it came in time.
    Asked,
    /// The job is over already, or forgotten.
    Over,
}

/// Cancels a job whose directory this is. Waits for nobody.
///
/// # Errors
/// `PermissionDenied` for another user than the launcher's agent; `WouldBlock` if more connections wait than the
/// supervisor takes: try again; `NotFound` if the job has no control socket.
pub fn cancel(job_dir: &Path) -> io::Result<Cancelled> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = match openat(CWD, job_dir, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Cancelled::Over),
        other => other?,
    };
    // An address has 108 bytes; a state directory's path may have more.
    let address = match SocketAddrUnix::new(job_dir.join(CONTROL_SOCKET)) {
        Ok(address) => address,
        Err(_) => SocketAddrUnix::new(format!("/proc/self/fd/{}/{CONTROL_SOCKET}", dir.as_raw_fd()))?,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let sent = connect(&socket, &address).and_then(|()| send(&socket, &[CANCEL], SendFlags::NOSIGNAL));
    match sent {
        Ok(_) => Ok(Cancelled::Asked),
        // Its supervisor is gone; the job has its report, or is recovered.
        Err(Errno::CONNREFUSED | Errno::PIPE | Errno::CONNRESET) => Ok(Cancelled::Over),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvFlags, accept, bind, listen, recv};

    #[test]
    fn one_packet_goes_to_whoever_listens_at_any_length_of_path() {
        let base = tempfile::tempdir().unwrap();
        for name in ["job".to_owned(), "x".repeat(200)] {
            let dir = base.path().join(name);
            assert_eq!(cancel(&dir).unwrap(), Cancelled::Over, "there is no directory");
            std::fs::create_dir(&dir).unwrap();
            assert_eq!(cancel(&dir).unwrap_err().kind(), io::ErrorKind::NotFound);
            let opened = std::fs::File::open(&dir).unwrap();
            let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
            let socket = socket.unwrap();
            let path = format!("/proc/self/fd/{}/{CONTROL_SOCKET}", opened.as_raw_fd());
            bind(&socket, &SocketAddrUnix::new(path.as_str()).unwrap()).unwrap();
            listen(&socket, 1).unwrap();
            assert_eq!(cancel(&dir).unwrap(), Cancelled::Asked);
            let mut packet = [0; 8];
            let (_, count) = recv(accept(&socket).unwrap(), &mut packet, RecvFlags::empty()).unwrap();
            assert_eq!(&packet[..count], b"c");
            // Nobody accepts: who cancels is told, and does not wait.
            let full = (0..8).find_map(|_| cancel(&dir).err()).unwrap();
            assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
            drop(socket);
            assert_eq!(cancel(&dir).unwrap(), Cancelled::Over, "nobody listens any more");
        }
    }
}
