//! Streaming a client's directory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use ampoule_spec::wire::Content;
use ampoule_store::Limits;
use ampoule_store::pack::{PackError, Packed, pack};
use common::*;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink as make_symlink};
use std::path::Path;
use std::process::Command;

fn packed(dir: &Path) -> Result<(Vec<u8>, Packed), PackError> {
    let mut out = Vec::new();
    let packed = pack(open_dir(dir).as_fd(), &mut out, &|_| false, &Limits::default())?;
    Ok((out, packed))
}

fn sample(root: &Path) {
    fs::create_dir_all(root.join("src/empty")).unwrap();
    fs::write(root.join("src/main.c"), "int main;\n").unwrap();
    fs::write(root.join("src/main"), vec![7; 300_000]).unwrap();
    fs::write(root.join("src.h"), "").unwrap();
    fs::write(root.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o700)).unwrap();
    make_symlink("../outside", root.join("link")).unwrap();
    make_symlink("x".repeat(150), root.join("long link")).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"\xff\xfe")), "not UTF-8").unwrap();
    fs::write(root.join("na\u{ef}ve"), "UTF-8").unwrap();
    fs::write(root.join("new\nline"), "x").unwrap();
    let deep = root.join("d".repeat(200)).join("e".repeat(200));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f".repeat(255)), "deep").unwrap();
    for length in 96..104 {
        fs::write(root.join("n".repeat(length)), "").unwrap();
    }
}

#[test]
fn packed_directory_is_imported_under_its_own_digest() {
    let temp = tempfile::tempdir().unwrap();
    sample(temp.path());
    let (bytes, first) = packed(temp.path()).unwrap();
    let world = World::new();
    let content = Content::Directory { tree: Some(first.tree), epoch: EPOCH };
    let imported = world.import(&content, &bytes).unwrap();
    assert_eq!((imported.sha256, imported.bytes, imported.entries), (first.tree, first.bytes, first.entries));
    let mut expected = listing(temp.path());
    for value in expected.values_mut() {
        *value = value.replace("d 0700", "d 0755").replace("f 0700", "f 0755");
    }
    assert_eq!(world.listing(&content), expected);

    // Neither times nor group bits nor the order on disk matter, and the bytes are the same.
    let copy = tempfile::tempdir().unwrap();
    let status = Command::new("cp")
        .args(["-R", "--no-preserve=all"])
        .arg(temp.path().join("."))
        .arg(copy.path())
        .status();
    assert!(status.unwrap().success());
    fs::set_permissions(copy.path().join("run"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(copy.path().join("src.h"), fs::Permissions::from_mode(0o666)).unwrap();
    fs::File::open(copy.path().join("src")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let (again, second) = packed(copy.path()).unwrap();
    assert_eq!(second, first);
    assert!(again == bytes);
    // The digest alone costs no archive.
    let alone = pack(open_dir(temp.path()).as_fd(), &mut io::sink(), &|_| false, &Limits::default());
    assert_eq!(alone.unwrap(), first);
    // What is in the store packs to the same again.
    assert_eq!(packed(&world.tree(&content)).unwrap().1, first);
}

#[test]
fn packed_archive_is_read_by_other_programs() {
    let temp = tempfile::tempdir().unwrap();
    sample(temp.path());
    let (bytes, _) = packed(temp.path()).unwrap();
    let expected = listing(temp.path());
    let mut archive = tar::Archive::new(bytes.as_slice());
    let names: std::collections::BTreeSet<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path_bytes().to_vec();
            path.strip_suffix(b"/").unwrap_or(&path).escape_ascii().to_string()
        })
        .collect();
    assert_eq!(names, expected.keys().cloned().collect());
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("packed.tar");
    fs::write(&path, &bytes).unwrap();
    fs::create_dir(out.path().join("x")).unwrap();
    match Command::new("tar").arg("-xf").arg(&path).arg("-C").arg(out.path().join("x")).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(packed(&out.path().join("x")).unwrap().0, bytes);
        }
        Err(_) => println!("skipped: tar is not installed"),
    }
}

#[test]
fn excluded_paths_are_left_out() {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir_all(temp.path().join(".git/objects")).unwrap();
    fs::write(temp.path().join("a"), "x").unwrap();
    assert!(Command::new("mkfifo").arg(temp.path().join(".git/p")).status().unwrap().success());
    let exclude = |path: &[u8]| path == b".git";
    let mut out = Vec::new();
    let packed = pack(open_dir(temp.path()).as_fd(), &mut out, &exclude, &Limits::default()).unwrap();
    assert_eq!(packed.entries, 1);
    assert_eq!(
        World::new().import(&Content::Directory { tree: None, epoch: 0 }, &out).unwrap().sha256,
        packed.tree
    );
}

#[test]
fn what_cannot_be_an_input_is_named() {
    let error = |make: &dyn Fn(&Path)| {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("d")).unwrap();
        make(&temp.path().join("d"));
        packed(temp.path()).unwrap_err().to_string()
    };
    let fifo = error(&|d| assert!(Command::new("mkfifo").arg(d.join("p\n")).status().unwrap().success()));
    assert_eq!(fifo, "d/p\\n: a FIFO cannot be an input; remove or exclude it");
    let socket = error(&|d| drop(std::os::unix::net::UnixListener::bind(d.join("s")).unwrap()));
    assert_eq!(socket, "d/s: a socket cannot be an input; remove or exclude it");
    if is_root() {
        let device = error(&|d| {
            rustix::fs::mknodat(
                open_dir(d),
                "c",
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::Mode::empty(),
                0,
            )
            .unwrap();
        });
        assert_eq!(device, "d/c: a device cannot be an input; remove or exclude it");
    }
    let deep = error(&|d| fs::create_dir_all(d.join("x/".repeat(64))).unwrap());
    assert!(deep.contains("more than 64 components"), "{deep}");
}

#[test]
fn limits_hold_while_packing() {
    let temp = tempfile::tempdir().unwrap();
    for i in 0..20 {
        fs::write(temp.path().join(format!("f{i}")), "12345").unwrap();
    }
    let with = |limits| pack(open_dir(temp.path()).as_fd(), &mut io::sink(), &|_| false, &limits);
    assert!(matches!(with(Limits { entries_max: 19, ..Limits::default() }), Err(PackError::Refused(_))));
    assert!(matches!(with(Limits { bytes_max: 99, ..Limits::default() }), Err(PackError::Refused(_))));
    assert!(with(Limits { entries_max: 20, bytes_max: 100, ..Limits::default() }).is_ok());
}

/// Does something to the file when its data begins to arrive.
struct Meddler<'a>(&'a dyn Fn(), usize);

impl Write for Meddler<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1 += 1;
        if self.1 == 2 {
            (self.0)();
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn file_that_changes_while_it_is_read_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("f");
    let run = |meddle: &dyn Fn()| {
        fs::write(&path, vec![1; 600_000]).unwrap();
        pack(open_dir(temp.path()).as_fd(), &mut Meddler(meddle, 0), &|_| false, &Limits::default())
    };
    assert!(run(&|| ()).is_ok());
    let length = |bytes| fs::File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
    assert!(matches!(run(&|| length(700_000)), Err(PackError::Changed { .. })));
    assert!(matches!(run(&|| length(5)), Err(PackError::Changed { .. })));
    let overwrite = || {
        std::thread::sleep(std::time::Duration::from_millis(20)); // a tick of the file system's clock
        fs::write(&path, vec![2; 600_000]).unwrap();
    };
    assert!(matches!(run(&overwrite), Err(PackError::Changed { .. })));
}

#[test]
fn archive_that_cannot_be_written_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("f"), vec![1; 600_000]).unwrap();
    let mut full = fs::File::options().write(true).open("/dev/full").unwrap();
    let result = pack(open_dir(temp.path()).as_fd(), &mut full, &|_| false, &Limits::default());
    assert!(matches!(result, Err(PackError::Write(_))));
}
