//! `image = "host"`: the host's `/usr`, a generated `/etc`, and the package list that names it.

use crate::error::{Stage, StageError};
use crate::skeleton::Entry;
use ampoule_spec::Sha256;
use rustix::fs::{Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;
use sha2::{Digest, Sha256 as Hasher};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

/// The top-level names that are links into `/usr` on every distribution with a merged `/usr`.
const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib64", "lib32", "libx32"];
/// Where Debian and others say which of several programs a name means.
pub const ALTERNATIVES: &str = "/etc/alternatives";
/// The most bytes of a package database that are read.
const DATABASE_BYTES_MAX: u64 = 256 << 20;
/// The most bytes of the linker's cache that are copied; without it the linker searches the directories it knows.
const LINKER_CACHE_BYTES_MAX: u64 = 16 << 20;

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/usr/sbin/nologin\n\
    build:x:1000:1000:build:/home/build:/bin/sh\n\
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n";
const GROUP: &[u8] = b"root:x:0:\nbuild:x:1000:\nnogroup:x:65534:\n";
const NSSWITCH: &[u8] = b"passwd: files\ngroup: files\nhosts: files\n";

/// What a root over the host's `/usr` has besides: the links of a merged `/usr`, and files of `/etc`. Paths begin at
/// the root.
///
/// Nothing of the host's `/etc` is copied but the linker's cache; [`alternatives`] are mounted read-only. Both
/// say which file of `/usr` is meant.
///
/// # Errors
/// `ENOSYS` on a host whose `/usr` is not merged.
pub(crate) fn etc() -> Result<Vec<Entry>, Errno> {
    let mut list = Vec::new();
    for name in MERGED {
        let path = format!("/{name}");
        match readlinkat(rustix::fs::CWD, &path, Vec::new()) {
            Ok(target) => {
                let text = target.to_string_lossy();
                if text.trim_start_matches('/').split('/').next() != Some("usr") {
                    return Err(Errno::NOSYS);
                }
                list.push(Entry::link(path, target.into_bytes()));
            }
            Err(Errno::NOENT) => {}
            Err(_) => return Err(Errno::NOSYS),
        }
    }
    list.push(Entry::link("/etc/os-release", b"../usr/lib/os-release".as_slice()));
    list.push(Entry::file("/etc/passwd", PASSWD));
    list.push(Entry::file("/etc/group", GROUP));
    list.push(Entry::file("/etc/nsswitch.conf", NSSWITCH));
    if let Ok(cache) = read_limited("/etc/ld.so.cache", LINKER_CACHE_BYTES_MAX) {
        list.push(Entry::file("/etc/ld.so.cache", cache));
    }
    Ok(list)
}

/// The host's `/etc/alternatives`, where it has one: `/usr/bin/cc` and its like lead through it on Debian.
///
/// # Errors
/// Any errno but `ENOENT`.
pub fn alternatives() -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(rustix::fs::CWD, ALTERNATIVES, flags, Mode::empty()) {
        Ok(host) => Ok(Some(host)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Package databases that name what lies in `/usr`, and what each is.
const DATABASES: [(&str, &str); 4] = [
    ("/var/lib/dpkg/status", DPKG),
    ("/lib/apk/db/installed", "apk: installed database"),
    ("/usr/lib/sysimage/rpm/rpmdb.sqlite", "rpm: database"),
    ("/var/lib/rpm/rpmdb.sqlite", "rpm: database"),
];
/// dpkg's file says more than which packages there are; a list is made of it.
const DPKG: &str = "dpkg: name, version, architecture";

/// The host's package database: its path, and what names the packages in it.
///
/// # Errors
/// [`StageError::unsupported`] where none that we know is found.
pub fn package_database() -> Result<(&'static str, &'static str), StageError> {
    DATABASES.into_iter().find(|(path, _)| std::path::Path::new(path).exists()).ok_or_else(|| {
        let remedy =
            "this host has no package list that names its /usr (dpkg, apk or rpm); use an oci: or tar: image";
        StageError::unsupported("image: name the host's packages", remedy)
    })
}

/// The digest that names the host's packages.
///
/// # Errors
/// If the database cannot be read.
pub fn package_digest(path: &str, named_by: &str) -> Result<Sha256, StageError> {
    let bytes = read_limited(path, DATABASE_BYTES_MAX).stage("image: read the host's package list")?;
    Ok(if named_by == DPKG { digest(&dpkg_list(&bytes)) } else { digest(&bytes) })
}

/// A field of the package that is being read.
type Field<'a> = Option<&'a [u8]>;

/// One line `name version architecture` for each installed package, sorted.
fn dpkg_list(status: &[u8]) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = Vec::new();
    let (mut name, mut version, mut architecture): (Field<'_>, Field<'_>, Field<'_>) = (None, None, None);
    let mut installed = false;
    // An empty line ends a package; the file may end without one.
    for line in status.split(|byte| *byte == b'\n').chain([&b""[..]]) {
        match line.first() {
            None => {
                let package = (name.take(), version.take(), architecture.take());
                if let ((Some(name), Some(version), Some(architecture)), true) = (package, installed) {
                    lines.push([name, b" ".as_slice(), version, b" ", architecture, b"\n"].concat());
                }
                installed = false;
            }
            Some(b'P') => name = line.strip_prefix(b"Package: ").or(name),
            Some(b'V') => version = line.strip_prefix(b"Version: ").or(version),
            Some(b'A') => architecture = line.strip_prefix(b"Architecture: ").or(architecture),
            Some(b'S') if line.starts_with(b"Status: ") => installed = line.ends_with(b" installed"),
            Some(_) => {}
        }
    }
    lines.sort_unstable();
    lines.concat()
}

fn digest(bytes: &[u8]) -> Sha256 {
    Sha256::new(Hasher::digest(bytes).into())
}

fn read_limited(path: &str, limit: u64) -> Result<Vec<u8>, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = openat(rustix::fs::CWD, path, flags, Mode::empty())?;
    let file = File::from(fd);
    // Room for it at once, if it says how long it is.
    let long = file.metadata().map_or(0, |meta| meta.len().min(limit).saturating_add(1));
    let mut bytes = Vec::with_capacity(long.try_into().unwrap_or_default());
    let read = file.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    if bytes.len() as u64 > limit { Err(Errno::FBIG) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_list_is_sorted_and_leaves_out_what_is_not_installed() {
        let status = b"Package: b\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2\n\n\
            Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n\
            Package: a\nStatus: install ok installed\nArchitecture: all\nVersion: 1:1\n";
        assert_eq!(dpkg_list(status), b"a 1:1 all\nb 2 amd64\n");
    }
}
