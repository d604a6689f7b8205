//! What every writable layer has from the start, as a list: our own places in the root, and nothing of a tenant's.
//!
//! The list is written in one of two ways. As host root it is part of the file system's image
//! ([`crate::ext4`]), which costs no system call per entry and leaves nothing dirty that an unmount would have to
//! write. An ordinary user's is made by system calls ([`crate::place`]).

use crate::error::StageError;
use crate::host_image;
use crate::identity::Authority;
use ampoule_spec::{BUILD_ID, Device};
use rustix::io::Errno;
use std::borrow::Cow;

/// The directory of the writable layer that becomes the root, or its upper layer.
pub(crate) const ROOT: &str = "root";
/// What the overlay over an image's layers works in.
pub(crate) const ROOT_WORK: &str = "root-work";
/// A directory with nothing in it: the second layer of a sealed tree.
pub(crate) const EMPTY: &str = "empty";
/// The directory of the sandbox's devices, as host root makes them. They are inodes of the sandbox's own: on those of the
/// host, times, locks and watches would be the host's and every other job's too.
pub(crate) const DEVICES: &str = "devices";

/// A file, directory or link that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where, relative to the root of the writable layer. Its directory comes before it in a list.
    pub path: String,
    /// The user and group it belongs to, as in-sandbox id.
    pub id: u32,
    /// What it is.
    pub kind: Kind,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory with these permissions.
    Directory {
        /// At most 0o7777, whatever the umask.
        mode: u16,
    },
    /// A file.
    File {
        /// At most 0o7777, whatever the umask.
        mode: u16,
        /// What is in it.
        bytes: Cow<'static, [u8]>,
    },
    /// A character device. Where the file system is mounted it is none, until somebody allows it there.
    Device {
        /// At most 0o7777.
        mode: u16,
        /// Its major number.
        major: u8,
        /// Its minor number.
        minor: u8,
    },
    /// A symbolic link.
    Link {
        /// Where it leads, as it stands.
        target: Cow<'static, [u8]>,
    },
}

/// What the root will lie over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// The host's `/usr`.
    Host,
    /// An image's layers.
    Image,
}

/// Directories of every root: mode and owner.
const DIRECTORIES: [(&str, u16, u32); 13] = [
    ("", 0o755, 0),
    ("/build", 0o755, BUILD_ID),
    ("/dev", 0o755, 0),
    ("/dev/shm", 0o1777, 0),
    ("/etc", 0o755, 0),
    ("/home", 0o755, 0),
    ("/home/build", 0o755, BUILD_ID),
    ("/proc", 0o555, 0),
    ("/run", 0o755, BUILD_ID),
    ("/tmp", 0o1777, 0),
    ("/usr", 0o755, 0),
    ("/var", 0o755, 0),
    ("/var/tmp", 0o1777, 0),
];

/// Links of every root.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Files of every root.
const FILES: [(&str, &[u8]); 2] = [
    ("/etc/hostname", b"ampoule\n"),
    ("/etc/hosts", b"127.0.0.1 localhost ampoule\n::1 localhost ampoule\n"),
];

/// The list: directories first, because what is looked up next to each other should lie so.
///
/// # Errors
/// [`StageError::unsupported`] for the host's `/usr` where that is not merged.
pub(crate) fn entries(
    devices: &[Device],
    over: Over,
    authority: Authority,
) -> Result<Vec<Entry>, StageError> {
    let mut list = vec![Entry::directory(EMPTY, 0o755, 0)];
    let in_root = |path: &str| format!("{ROOT}{path}");
    list.extend(DIRECTORIES.map(|(path, mode, id)| Entry::directory(in_root(path), mode, id)));
    if authority.is_root() {
        list.push(Entry::directory(DEVICES, 0o700, 0));
        for (name, major, minor) in devices.iter().map(|device| device.node()) {
            let kind = Kind::Device { mode: 0o666, major, minor };
            list.push(Entry { path: format!("{DEVICES}/{name}"), id: 0, kind });
        }
    }
    let host = match over {
        Over::Host => host_image::etc().map_err(etc_error)?,
        Over::Image => Vec::new(),
    };
    match over {
        Over::Host => list.push(Entry::directory(in_root(host_image::ALTERNATIVES), 0o755, 0)),
        Over::Image => list.push(Entry::directory(ROOT_WORK, 0o755, 0)),
    }
    list.extend(LINKS.map(|(path, target)| Entry::link(in_root(path), target.as_bytes())));
    list.extend(devices.iter().map(|device| Entry::file(in_root("/dev/") + device.node().0, b"".as_slice())));
    list.extend(FILES.map(|(path, bytes)| Entry::file(in_root(path), bytes)));
    list.extend(host.into_iter().map(|entry| Entry { path: in_root(&entry.path), ..entry }));
    Ok(list)
}

impl Entry {
    /// A directory.
    pub fn directory(path: impl Into<String>, mode: u16, id: u32) -> Self {
        Self { path: path.into(), id, kind: Kind::Directory { mode } }
    }

    /// A file of in-sandbox root's that everybody may read.
    pub fn file(path: impl Into<String>, bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { path: path.into(), id: 0, kind: Kind::File { mode: 0o644, bytes: bytes.into() } }
    }

    /// A symbolic link of in-sandbox root's.
    pub fn link(path: impl Into<String>, target: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { path: path.into(), id: 0, kind: Kind::Link { target: target.into() } }
    }
}

fn etc_error(errno: Errno) -> StageError {
    let stage = "rootfs: make /etc";
    if errno == Errno::NOSYS {
        let remedy = "image = \"host\" needs a host whose /bin and /lib are links into /usr";
        return StageError::unsupported(stage, remedy);
    }
    StageError { stage: stage.into(), errno: errno.raw_os_error(), unsupported: None }
}
