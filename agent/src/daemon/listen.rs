//! Listeners: made here, or by systemd and named.

use listenfd::ListenFd;
use std::fs::Permissions;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Owner and group may connect.
const SOCKET_MODE: u32 = 0o660;

/// Binds a local socket. One that a daemon that is gone has left is replaced; one that is answered is not.
///
/// # Errors
/// As of bind(2); [`io::ErrorKind::AddrInUse`] if somebody answers there, or something else than a socket has the name.
pub(super) fn unix(path: &Path) -> io::Result<UnixListener> {
    if let Ok(meta) = path.symlink_metadata() {
        let answered = !meta.file_type().is_socket() || UnixStream::connect(path).is_ok();
        if answered {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A socket that systemd has opened.
#[derive(Debug)]
pub(super) enum Passed {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// The sockets of the unit with these names (sd_listen_fds_with_names(3)). All that were passed must be named, and all that
/// are named must have been passed: one that nobody serves would hold its clients up.
///
/// # Errors
/// For people.
pub(super) fn of_systemd(names: &[String]) -> Result<Vec<Passed>, String> {
    let given = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut passed = ListenFd::from_env();
    let given: Vec<&str> = given.split(':').take(passed.len()).collect();
    if let Some(name) = names.iter().find(|name| !given.contains(&name.as_str())) {
        return Err(format!(
            "listen.systemd: no socket of the unit is named {name:?}; say FileDescriptorName={name}"
        ));
    }
    let mut found = Vec::new();
    for at in 0..passed.len() {
        let name = given.get(at).copied().unwrap_or("unknown");
        if !names.iter().any(|wanted| wanted == name) {
            return Err(format!("listen.systemd: the unit passes a socket {name:?} that is not listed"));
        }
        let failed = |e: io::Error| format!("listen.systemd: the socket {name:?}: {e}");
        if let Ok(Some(listener)) = passed.take_unix_listener(at) {
            listener.set_nonblocking(true).map_err(failed)?;
            found.push(Passed::Unix(listener));
        } else {
            let listener = passed.take_tcp_listener(at).map_err(failed)?;
            let listener = listener.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
            listener.set_nonblocking(true).map_err(failed)?;
            found.push(Passed::Tcp(listener));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_that_nobody_answers_is_replaced_and_anything_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = unix(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, SOCKET_MODE);
        assert_eq!(unix(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        unix(&path).unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, "kept").unwrap();
        assert_eq!(unix(&file).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    }
}
