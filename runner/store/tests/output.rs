//! What a job leaves in a directory: packed, compressed, and unpacked again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use ampoule_store::compress::{compress, version};
use ampoule_store::pack::{PackError, Packed, pack, pack_output};
use ampoule_store::unpack::unpack;
use ampoule_store::{Limits, Refusal};
use common::*;
use sha2::Digest as _;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink as make_symlink};
use std::path::Path;
use std::process::Command;

/// 2023-11-14.
const TIME: u64 = 1_700_000_000;

fn packed_within(dir: &Path, limits: &Limits) -> Result<(Vec<u8>, Packed), PackError> {
    let mut out = Vec::new();
    let packed = pack_output(open_dir(dir).as_fd(), &mut out, TIME, limits)?;
    Ok((out, packed))
}

fn packed(dir: &Path) -> Result<(Vec<u8>, Packed), PackError> {
    packed_within(dir, &Limits::default())
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    compress(&mut &*bytes, &mut out).unwrap();
    out
}

/// A tree whose bytes are the same wherever it is made.
fn sample(root: &Path) {
    fs::create_dir_all(root.join("lib/deep/empty")).unwrap();
    fs::write(root.join("lib/libx.so.1"), vec![7; 300_000]).unwrap();
    make_symlink("libx.so.1", root.join("lib/libx.so")).unwrap();
    make_symlink("../../bin/x", root.join("lib/deep/up")).unwrap();
    fs::create_dir(root.join("bin")).unwrap();
    fs::write(root.join("bin/x"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(root.join("bin/x"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(root.join("new\nline"), "").unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"\xff")), "not UTF-8").unwrap();
    fs::write(root.join("n".repeat(200)), "long").unwrap();
}

#[test]
fn output_is_unpacked_to_the_tree_that_was_packed() {
    let temp = tempfile::tempdir().unwrap();
    sample(temp.path());
    let (bytes, first) = packed(temp.path()).unwrap();
    // The digest is that of an input with the same entries.
    let input = pack(open_dir(temp.path()).as_fd(), &mut std::io::sink(), &|_| false, &Limits::default());
    assert_eq!(input.unwrap(), first);
    let mut archive = tempfile::tempfile().unwrap();
    archive.write_all(&bytes).unwrap();
    std::io::Seek::rewind(&mut archive).unwrap();
    let into = tempfile::tempdir().unwrap();
    let unpacked = unpack(archive, open_dir(into.path()), TIME, first.entries, &mut |_| {}).unwrap();
    assert_eq!(unpacked, first);
    assert_eq!(packed(into.path()).unwrap().0, bytes);
    for path in ["bin/x", "lib", "lib/deep/empty", "lib/libx.so", "."] {
        let meta = fs::symlink_metadata(into.path().join(path)).unwrap();
        assert_eq!(u64::try_from(meta.mtime()).unwrap(), TIME, "{path}");
    }
    assert_eq!(fs::metadata(into.path().join("bin/x")).unwrap().mode() & 0o100, 0o100);
    assert_eq!(fs::read_link(into.path().join("lib/libx.so")).unwrap(), Path::new("libx.so.1"));
}

#[test]
fn many_entries_are_unpacked_too() {
    let temp = tempfile::tempdir().unwrap();
    for at in 0..300 {
        let dir = temp.path().join(format!("d{}", at % 7)).join(format!("e{}", at % 11));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(at.to_string()), at.to_string()).unwrap();
    }
    let (bytes, first) = packed(temp.path()).unwrap();
    let path = temp.path().join("archive");
    fs::write(&path, &bytes).unwrap();
    let into = tempfile::tempdir().unwrap();
    let unpacked =
        unpack(File::open(&path).unwrap(), open_dir(into.path()), TIME, first.entries, &mut |_| {});
    assert_eq!(unpacked.unwrap(), first);
    // One entry more than was announced is refused.
    let into = tempfile::tempdir().unwrap();
    let refused =
        unpack(File::open(&path).unwrap(), open_dir(into.path()), TIME, first.entries - 1, &mut |_| {});
    assert!(refused.unwrap_err().to_string().contains("more than"));
}

#[test]
fn equal_trees_give_equal_bytes_and_other_programs_read_them() {
    let (temp, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(temp.path());
    sample(other.path());
    // Other times, group bits, a hard link in place of a file of its own, another order on the disk.
    fs::remove_file(other.path().join("new\nline")).unwrap();
    fs::write(other.path().join("lib/0"), "").unwrap();
    fs::hard_link(other.path().join("lib/0"), other.path().join("new\nline")).unwrap();
    fs::write(temp.path().join("lib/0"), "").unwrap();
    fs::set_permissions(other.path().join("bin/x"), fs::Permissions::from_mode(0o775)).unwrap();
    File::open(other.path().join("lib")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let (bytes, first) = packed(temp.path()).unwrap();
    let (again, second) = packed(other.path()).unwrap();
    assert_eq!(first, second);
    assert!(bytes == again);
    let archive = compressed(&bytes);
    assert!(archive == compressed(&again));
    fs::write(other.path().join("bin/x"), "#!/bin/sh\n\n").unwrap();
    assert_ne!(packed(other.path()).unwrap().1.tree, first.tree);

    let path = temp.path().join("x.tar.zst");
    fs::write(&path, &archive).unwrap();
    let out = tempfile::tempdir().unwrap();
    let read = Command::new("tar").arg("--zstd").arg("-xf").arg(&path).arg("-C").arg(out.path()).output();
    match read {
        Ok(read) if read.status.success() => assert!(packed(out.path()).unwrap().0 == bytes),
        Ok(read) => {
            // This tar has no zstd beside it: what is in the frame is read all the same.
            let text = String::from_utf8_lossy(&read.stderr).into_owned();
            assert!(text.contains("zstd"), "{text}");
            let plain = zstd::decode_all(archive.as_slice()).unwrap();
            assert!(plain == bytes);
        }
        Err(_) => assert!(zstd::decode_all(archive.as_slice()).unwrap() == bytes),
    }
}

/// Whoever changes the writer of archives, the level or the library has changed the bytes of every output.
#[test]
fn bytes_of_an_archive_are_those_of_this_version() {
    let temp = tempfile::tempdir().unwrap();
    sample(temp.path());
    let (bytes, first) = packed(temp.path()).unwrap();
    let digest = |bytes: &[u8]| {
        sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    // Words in no order, so that every level finds other matches.
    let words =
        ["static ", "int ", "return ", "(void)", "{\n", "}\n", "struct ", "\tif ", "x", "y1", "_z", ";\n"];
    let mut state = 7_u64;
    let text: String = (0..80_000)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            words[usize::try_from(state >> 33).unwrap() % words.len()]
        })
        .collect();
    let text = digest(&compressed(text.as_bytes()));
    assert_eq!(text, "766311714f865ecaa000ee8e2dafbbdaa15cbccccd479810d020dd968a570d64");
    let found = (version(), first.tree.to_string(), digest(&bytes), digest(&compressed(&bytes)));
    let expected = (
        "1.5.7",
        "5a2eb3e66c380e1fe6c652e6d2bf9f03674e9fdb2ea4f09b31e31034e002bac0".to_owned(),
        "8d00c8abfe7c0957bacfae37cdfdd674e42629ec95b6189ae50c9ec976cfd71e".to_owned(),
        "6e52caf3ada7e75a08474f15193846bc5ab5c0baa12fc7ecffdf7cd1f40951b7".to_owned(),
    );
    assert_eq!(found, expected);
}

/// A pipe gives what has come, and never the same twice.
#[test]
fn pieces_in_which_an_archive_comes_do_not_matter() {
    struct Pieces<'a>(&'a [u8], usize);
    impl std::io::Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.1.min(self.0.len()).min(buffer.len());
            let (now, rest) = self.0.split_at(count);
            buffer[..count].copy_from_slice(now);
            (self.0, self.1) = (rest, self.1 * 31 % 8191 + 1);
            Ok(count)
        }
    }
    let bytes: Vec<u8> = (0..2_000_000_u64).flat_map(|n| (n * n % 8191).to_le_bytes()).collect();
    let whole = compressed(&bytes);
    for first in [1, 512, 8191] {
        let mut out = Vec::new();
        compress(&mut Pieces(&bytes, first), &mut out).unwrap();
        assert!(out == whole, "first {first}");
    }
}

#[test]
fn times_after_the_year_2242_are_kept() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("a"), "x").unwrap();
    let mut out = Vec::new();
    pack_output(open_dir(temp.path()).as_fd(), &mut out, 253_402_300_799, &Limits::default()).unwrap();
    let text = String::from_utf8_lossy(&out);
    assert!(text.contains("22 mtime=253402300799\n"), "{text}");
}

#[test]
fn whatever_has_no_place_outside_is_refused_by_name() {
    let dir = || tempfile::tempdir().unwrap();
    let text = |dir: &Path| packed(dir).unwrap_err().to_string();
    let temp = dir();
    make_symlink("/etc/passwd", temp.path().join("out")).unwrap();
    assert_eq!(
        text(temp.path()),
        "out: the link to /etc/passwd is absolute; make it relative, as `ln -sr` does"
    );
    let temp = dir();
    fs::create_dir(temp.path().join("d")).unwrap();
    make_symlink("../../x", temp.path().join("d/up")).unwrap();
    assert_eq!(text(temp.path()), "d/up: the link to ../../x leads out of the directory");
    let temp = dir();
    fs::write(temp.path().join("s"), "x").unwrap();
    fs::set_permissions(temp.path().join("s"), fs::Permissions::from_mode(0o2755)).unwrap();
    assert_eq!(text(temp.path()), "s has a set-user-id or set-group-id bit; remove it with chmod");
    let temp = dir();
    assert!(Command::new("mkfifo").arg(temp.path().join("p")).status().unwrap().success());
    assert!(matches!(packed(temp.path()), Err(PackError::Special { kind: "FIFO", .. })));
    let temp = dir();
    let _socket = std::os::unix::net::UnixListener::bind(temp.path().join("s")).unwrap();
    assert!(matches!(packed(temp.path()), Err(PackError::Special { kind: "socket", .. })));
    // The bits of a directory give nobody anything, and are left behind.
    let temp = dir();
    fs::create_dir(temp.path().join("d")).unwrap();
    fs::set_permissions(temp.path().join("d"), fs::Permissions::from_mode(0o3777)).unwrap();
    let (bytes, _) = packed(temp.path()).unwrap();
    assert!(bytes.windows(8).any(|w| w == b"0000755\0"));
}

#[test]
fn limits_hold_before_an_output_is_read() {
    let temp = tempfile::tempdir().unwrap();
    File::create(temp.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();
    let begun = std::time::Instant::now();
    let refused = packed(temp.path()).unwrap_err();
    assert!(matches!(refused, PackError::Refused(Refusal::TooLarge { .. })));
    assert!(begun.elapsed() < std::time::Duration::from_secs(5));
    let temp = tempfile::tempdir().unwrap();
    // A hard link counts as what it becomes.
    fs::write(temp.path().join("a"), vec![1; 600]).unwrap();
    fs::hard_link(temp.path().join("a"), temp.path().join("b")).unwrap();
    let small = Limits { bytes_max: 1000, ..Limits::default() };
    assert!(matches!(packed_within(temp.path(), &small), Err(PackError::Refused(Refusal::TooLarge { .. }))));
    let few = Limits { entries_max: 1, ..Limits::default() };
    assert!(matches!(packed_within(temp.path(), &few), Err(PackError::Refused(Refusal::TooMany { .. }))));
    let mut deep = temp.path().to_owned();
    for _ in 0..70 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    assert!(matches!(packed(temp.path()), Err(PackError::Refused(Refusal::TooDeep { .. }))));
}

#[test]
fn archive_that_nobody_packed_is_not_unpacked() {
    type Change = fn(&mut tar::Builder<Vec<u8>>);
    fn entry(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, link: &str) {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
    }
    let cases: [(&str, Change, &str); 7] = [
        ("parent", |b| entry(b, tar::EntryType::Regular, "../x", ""), "'..'"),
        ("absolute", |b| entry(b, tar::EntryType::Regular, "/x", ""), "absolute"),
        ("no parent", |b| entry(b, tar::EntryType::Regular, "d/x", ""), "not what the runner packs"),
        (
            "through a link",
            |b| {
                entry(b, tar::EntryType::Symlink, "d", "..");
                entry(b, tar::EntryType::Regular, "d/x", "");
            },
            "not what the runner packs",
        ),
        (
            "over a link",
            |b| {
                entry(b, tar::EntryType::Symlink, "x", "../outside");
                entry(b, tar::EntryType::Regular, "x", "");
            },
            "exists",
        ),
        ("fifo", |b| entry(b, tar::EntryType::Fifo, "p", ""), "not what the runner packs"),
        ("hard link", |b| entry(b, tar::EntryType::Link, "h", "x"), "not what the runner packs"),
    ];
    for (what, change, says) in cases {
        let temp = tempfile::tempdir().unwrap();
        let into = temp.path().join("into");
        fs::create_dir(&into).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        change(&mut builder);
        let path = temp.path().join("archive");
        fs::write(&path, builder.into_inner().unwrap()).unwrap();
        let refused = unpack(File::open(&path).unwrap(), open_dir(&into), TIME, 10, &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(refused.contains(says), "{what}: {refused}");
        let outside: Vec<_> = fs::read_dir(temp.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(outside.len(), 2, "{what}: {outside:?}");
    }
}
