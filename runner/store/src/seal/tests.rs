use super::*;
use rustix::fs::{CWD, Mode, OFlags};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

fn open(dir: &Path) -> OwnedFd {
    rustix::fs::openat(CWD, dir, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap()
}

/// Directories with many files and with few, below and beside each other, a large file that the others wait for, links
/// of both kinds, and nothing in one of them.
fn tree(root: &Path) {
    let mut number = 0_u32;
    for dir in ["a", "a/b", "a/b/c", "a/d", "e", "f/g/h/i", "z"] {
        fs::create_dir_all(root.join(dir)).unwrap();
        for file in 0..if dir.len() == 1 { 300 } else { 7 } {
            number += 1;
            let bytes = number.to_le_bytes().repeat(if number.is_multiple_of(97) {
                80_000
            } else {
                number as usize % 50
            });
            fs::write(root.join(dir).join(format!("{file:03}")), bytes).unwrap();
        }
    }
    fs::write(root.join("a/000"), vec![7; 17 << 20]).unwrap();
    fs::create_dir(root.join("f/empty")).unwrap();
    fs::hard_link(root.join("a/001"), root.join("e/same")).unwrap();
    symlink("../a/000", root.join("e/link")).unwrap();
    fs::set_permissions(root.join("z/003"), fs::Permissions::from_mode(0o755)).unwrap();
}

fn seal(root: &Path, threads: usize) -> Result<Sealed, StoreError> {
    let sealer = Sealer::new(Owner::Own, Shape::Image, Limits::default(), false);
    Sealer { threads, ..sealer }.seal(open(root))
}

#[test]
fn tree_has_one_digest_however_many_threads_read_it() {
    let temp = tempfile::tempdir().unwrap();
    tree(temp.path());
    let alone = seal(temp.path(), 1).unwrap();
    let packed =
        crate::pack::pack(open(temp.path()).as_fd(), &mut std::io::sink(), &|_| false, &Limits::default());
    let packed = packed.unwrap();
    assert_eq!(
        (alone.digest.sha256, alone.bytes, alone.entries),
        (packed.tree, packed.bytes, packed.entries)
    );
    for threads in [2, 4, 9] {
        for _ in 0..2 {
            assert_eq!(seal(temp.path(), threads).unwrap(), alone, "{threads} threads");
        }
    }
    fs::write(temp.path().join("f/g/h/i/006"), "changed").unwrap();
    assert_ne!(seal(temp.path(), 4).unwrap().digest, alone.digest);
}

#[test]
fn first_of_several_wrong_entries_is_named_however_many_threads_read() {
    let temp = tempfile::tempdir().unwrap();
    tree(temp.path());
    for path in ["a/250", "a/b/c/001", "e/010", "e/200", "z/000"] {
        fs::set_permissions(temp.path().join(path), fs::Permissions::from_mode(0o4755)).unwrap();
    }
    fs::remove_file(temp.path().join("e/050")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(temp.path().join("e/050")).unwrap();
    for expected in ["a/250", "a/b/c/001", "e/010", "e/050", "e/200", "z/000"] {
        for threads in [1, 2, 4] {
            for _ in 0..2 {
                let error = seal(temp.path(), threads).unwrap_err().to_string();
                assert!(error.starts_with(expected) || error.contains(&format!("{expected}:")), "{error}");
            }
        }
        fs::remove_file(temp.path().join(expected)).unwrap();
    }
    seal(temp.path(), 4).unwrap();
}

#[test]
fn bytes_of_a_tree_are_bounded_on_all_threads_together() {
    let temp = tempfile::tempdir().unwrap();
    tree(temp.path());
    let bytes = seal(temp.path(), 1).unwrap().bytes;
    // The file with two names is read once.
    let once = bytes - fs::metadata(temp.path().join("a/001")).unwrap().len();
    for (bytes_max, fits) in [(once, true), (once - 1, false)] {
        let limits = Limits { bytes_max, ..Limits::default() };
        let sealer = Sealer::new(Owner::Own, Shape::Image, limits, false);
        assert_eq!(Sealer { threads: 4, ..sealer }.seal(open(temp.path())).is_ok(), fits);
    }
}
