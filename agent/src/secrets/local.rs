//! Values that lie on this host: files, and credentials that systemd has handed over. For development, and for hosts without a server.

use crate::files::read_capped;
use crate::vault::Secret;
use ampoule_spec::SECRET_BYTES_MAX;
use rustix::fs::{Mode, OFlags, open};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bits of a mode that others than the owner may not have.
const OF_OTHERS: u32 = 0o077;
/// The same of a credential: where systemd grants access by an access control list, its mask shows as the group's read bit.
const OF_OTHERS_CREDENTIAL: u32 = 0o037;

/// Why a value of this host cannot be had. For the operator: it names paths.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// It cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others can read or change it.
    #[error("{path} {why}; make it root's or this user's own, and run chmod 600 {path}")]
    Exposed {
        /// Which.
        path: String,
        /// What gives that away.
        why: String,
    },
    /// The unit hands over no credentials.
    #[error("there is no credential {0}: the unit has no LoadCredential= of that name, or this is no unit")]
    NoCredential(String),
}

/// The value in a file that only its owner can read, root or ourselves, and no link.
///
/// # Errors
/// [`LocalError`]; a file of more than 64 KiB is one that cannot be read.
pub fn read_file(path: &Path) -> Result<Secret, LocalError> {
    read(path, OF_OTHERS)
}

/// The value of a credential in the directory that systemd has made for the daemon (`systemd.exec(5)`), which it gives.
///
/// # Errors
/// As [`read_file`].
pub fn read_credential(directory: Option<&Path>, name: &str) -> Result<Secret, LocalError> {
    let directory = directory.ok_or_else(|| LocalError::NoCredential(name.to_owned()))?;
    let path = directory.join(name);
    match read(&path, OF_OTHERS_CREDENTIAL) {
        Err(LocalError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(LocalError::NoCredential(name.to_owned()))
        }
        other => other,
    }
}

fn read(path: &Path, forbidden: u32) -> Result<Secret, LocalError> {
    let shown = || path.display().to_string();
    let failed = |source: io::Error| LocalError::Read { path: shown(), source };
    // A pipe would be waited for, and a link leads to where somebody else may write.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?);
    let meta = file.metadata().map_err(failed)?;
    let exposed = |why: String| Err(LocalError::Exposed { path: shown(), why });
    if !meta.is_file() {
        return exposed("is no file".to_owned());
    }
    if meta.mode() & forbidden != 0 {
        return exposed(format!("can be read by others (mode {:03o})", meta.mode() & 0o777));
    }
    if ![0, rustix::process::geteuid().as_raw()].contains(&meta.uid()) {
        return exposed(format!("belongs to user {}", meta.uid()));
    }
    read_capped(file, SECRET_BYTES_MAX as u64).map(Secret::new).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn value_is_read_from_a_private_file_of_bounded_size_and_from_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value");
        std::fs::write(&path, b"line\nsecret\0\xff").unwrap();
        let set = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        set(0o600);
        assert_eq!(read_file(&path).unwrap().expose(), b"line\nsecret\0\xff", "no byte is trimmed");
        for mode in [0o640, 0o604, 0o620, 0o610, 0o644] {
            set(mode);
            assert!(matches!(read_file(&path), Err(LocalError::Exposed { .. })), "{mode:o}");
        }
        set(0o400);
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(read_file(&link), Err(LocalError::Read { .. })));
        assert!(matches!(read_file(dir.path()), Err(LocalError::Exposed { .. })));
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(matches!(read_file(&fifo), Err(LocalError::Exposed { .. })), "and it waits for nobody");
        let large = dir.path().join("large");
        for (bytes, good) in [(SECRET_BYTES_MAX, true), (SECRET_BYTES_MAX + 1, false)] {
            std::fs::write(&large, vec![b'x'; bytes]).unwrap();
            std::fs::set_permissions(&large, PermissionsExt::from_mode(0o600)).unwrap();
            assert_eq!(read_file(&large).is_ok(), good, "{bytes}");
        }
        assert_eq!(format!("{:?}", read_file(&path).unwrap()), "Secret(***)");
    }

    #[test]
    fn credential_is_one_of_the_directory_that_systemd_gave_and_its_mask_may_show() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("npm");
        std::fs::write(&path, "s3cr3tvalue").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o440)).unwrap();
        assert_eq!(read_credential(Some(dir.path()), "npm").unwrap().expose(), b"s3cr3tvalue");
        assert!(read_file(&path).is_err(), "a file of an operator's has no such excuse");
        assert!(matches!(read_credential(None, "npm"), Err(LocalError::NoCredential(_))));
        assert!(matches!(read_credential(Some(dir.path()), "other"), Err(LocalError::NoCredential(_))));
    }
}
