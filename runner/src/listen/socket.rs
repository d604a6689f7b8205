//! The socket that a listener takes connections from.

use crate::clock::Moment;
use crate::launcher::Agent;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Uid, chmodat, chownat, lstat, stat, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
    sockopt,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The most connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A socket that listens; one that was bound here is removed with it.
#[derive(Debug)]
pub(crate) struct Listening {
    socket: OwnedFd,
    bound: Option<PathBuf>,
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(path) = &self.bound {
            // Somebody may have removed it; who connects to what is left is told that nobody listens.
            let _ = unlink(path);
        }
    }
}

impl Listening {
    /// Takes the one that a service manager has bound, whose mode its unit says.
    ///
    /// # Errors
    /// For people.
    pub(crate) fn inherited(socket: OwnedFd) -> Result<Self, String> {
        let is_fit = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(&socket) == Ok(SocketType::SEQPACKET)
            && sockopt::socket_acceptconn(&socket) == Ok(true);
        if !is_fit {
            let text = "the socket of the unit is no listening unix socket for sequential packets; say \
                        ListenSequentialPacket=/run/…";
            return Err(text.to_owned());
        }
        rustix::io::ioctl_fionbio(&socket, true).map_err(|e| format!("the socket of the unit: {e}"))?;
        Ok(Self { socket, bound: None })
    }

    /// Binds one that the agent and root alone can use. What a dead listener has left at the path is replaced.
    ///
    /// # Errors
    /// For people.
    pub(crate) fn bind(path: &Path, agent: Agent) -> Result<Self, String> {
        let failed = |what: &str, errno: Errno| format!("the socket {}: {what}: {errno}", path.display());
        demand_own_directory(path)?;
        let address = SocketAddrUnix::new(path).map_err(|e| failed("its path is too long", e))?;
        remove_dead(path, &address)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|e| failed("it cannot be made", e))?;
        // Ours alone, by our umask, until it is the agent's.
        bind(&socket, &address).map_err(|e| failed("it cannot be bound", e))?;
        let listening = Self { socket, bound: Some(path.to_owned()) };
        let (mode, none) = (Mode::RUSR | Mode::WUSR, AtFlags::empty());
        chmodat(CWD, path, mode, none).map_err(|e| failed("its mode", e))?;
        chownat(CWD, path, Some(Uid::from_raw(agent.uid)), None, none).map_err(|e| failed("its owner", e))?;
        listen(&listening.socket, BACKLOG).map_err(|e| failed("nobody can listen", e))?;
        Ok(listening)
    }

    /// The next connection.
    ///
    /// # Errors
    /// As accept(2); `EAGAIN` if there is none.
    pub(crate) fn accept(&self) -> Result<OwnedFd, Errno> {
        accept_with(&self.socket, SocketFlags::CLOEXEC)
    }
}

/// Whoever can write to the directory could put a socket of his own in the place of ours.
fn demand_own_directory(path: &Path) -> Result<(), String> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let found = stat(dir).map_err(|e| format!("the directory {}: {e}", dir.display()))?;
    let own = rustix::process::geteuid().as_raw();
    let is_ours = [0, own].contains(&found.st_uid) && found.st_mode & 0o022 == 0;
    if is_ours {
        return Ok(());
    }
    let text = "others can write to it, and could put a socket of their own there; bind the socket in a directory of root's";
    Err(format!("the directory {}: {text}", dir.display()))
}

/// Removes a socket that nobody listens on.
fn remove_dead(path: &Path, address: &SocketAddrUnix) -> Result<(), String> {
    let refused = |why: &str| Err(format!("{} {why}", path.display()));
    let found = match lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return refused(&format!("cannot be looked at: {errno}")),
        Ok(found) => found,
    };
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return refused("is there and is no socket; name another path, or remove it");
    }
    let until = Moment::now().after(super::PREDECESSOR_LIMIT);
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let probe = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        match probe.and_then(|probe| connect(&probe, address)) {
            Err(Errno::CONNREFUSED) => {
                return unlink(path).or_else(|errno| refused(&format!("cannot be removed: {errno}")));
            }
            _ if until.left().is_zero() => {
                return refused("is somebody else's: whoever has bound it still listens");
            }
            _ => std::thread::sleep(super::LOOK_EVERY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn own() -> Agent {
        Agent { uid: rustix::process::geteuid().as_raw(), group: None }
    }

    #[test]
    fn path_of_a_dead_listener_is_taken_and_of_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = Listening::bind(&path, own()).unwrap();
        assert!(Listening::bind(&path, own()).unwrap_err().contains("still listens"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        // As kill -9 leaves it.
        let copy = dir.path().join("kept");
        std::fs::rename(&path, &copy).unwrap();
        drop(first);
        std::fs::rename(&copy, &path).unwrap();
        let second = Listening::bind(&path, own()).unwrap();
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_no_socket_or_lies_where_others_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        std::fs::write(&path, "x").unwrap();
        assert!(Listening::bind(&path, own()).unwrap_err().contains("no socket"));
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
        std::fs::remove_file(&path).unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Listening::bind(&path, own()).unwrap_err().contains("others can write"));
        let long = dir.path().join("x".repeat(120));
        assert!(Listening::bind(&long, own()).is_err());
    }

    #[test]
    fn socket_of_a_unit_that_is_no_listener_is_refused() {
        let (pair, _other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        assert!(Listening::inherited(pair).is_err());
        let stream = std::os::unix::net::UnixListener::bind(tempfile::tempdir().unwrap().path().join("s"));
        assert!(Listening::inherited(stream.unwrap().into()).is_err());
    }
}
