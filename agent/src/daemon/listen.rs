//! Listeners: made here, or by systemd and named.

use std::fs::Permissions;
use std::io;
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
