//! A directory's digest alone is that of its archive, and refuses the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use ampoule_store::Limits;
use ampoule_store::pack::{PackError, Packed, pack_filtered, tree_digest};
use common::open_dir;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

fn left_out(path: &[u8], is_dir: bool) -> bool {
    path.ends_with(b".o") || is_dir && path.ends_with(b"target")
}

fn digest(dir: &Path, limits: &Limits) -> Result<Packed, PackError> {
    tree_digest(open_dir(dir).as_fd(), &left_out, &|| false, limits)
}

/// What both say, which must be the same.
fn both(dir: &Path, limits: &Limits) -> Result<Packed, String> {
    let alone = digest(dir, limits).map_err(|error| error.to_string());
    let packed = pack_filtered(open_dir(dir).as_fd(), &mut std::io::sink(), &left_out, limits);
    assert_eq!(alone, packed.map_err(|error| error.to_string()));
    alone
}

/// Directories of few and of many files, links and directories between them, deep ones, empty ones.
fn fill(root: &Path, seed: u64) {
    let mut state = seed;
    let mut next = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut dirs = vec![root.to_owned()];
    for number in 0..40 {
        let dir = dirs[usize::try_from(next(dirs.len() as u64)).unwrap()].join(format!("d{number}"));
        fs::create_dir_all(&dir).unwrap();
        let files = [0, 1, 7, 8, 9, 63, 64, 65, 200][usize::try_from(next(9)).unwrap()];
        for file in 0..files {
            let path = dir.join(format!("{:x}{}", next(1 << 30), if file % 9 == 0 { ".o" } else { "" }));
            fs::write(&path, vec![7; usize::try_from(next(3000)).unwrap()]).unwrap();
            if next(3) == 0 {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).unwrap();
            }
            if next(20) == 0 {
                symlink("to", dir.join(format!("{:x}l", next(1 << 30)))).unwrap();
            }
        }
        dirs.push(dir);
    }
    fs::create_dir_all(root.join("d1/target/in")).unwrap();
    fs::write(root.join("large"), vec![1; 5 << 20]).unwrap();
}

#[test]
fn digest_alone_is_that_of_the_archive() {
    for seed in 0..6 {
        let temp = tempfile::tempdir().unwrap();
        fill(temp.path(), seed);
        let whole = both(temp.path(), &Limits::default()).unwrap();
        // Who reads what when differs from time to time, and nothing else does.
        for _ in 0..5 {
            assert_eq!(digest(temp.path(), &Limits::default()).unwrap(), whole);
        }
        let tight = Limits { bytes_max: whole.bytes, entries_max: whole.entries + 1000, ..Limits::default() };
        assert_eq!(both(temp.path(), &tight).unwrap(), whole);
        assert!(digest(temp.path(), &Limits { bytes_max: whole.bytes - 1, ..tight }).is_err());
        assert!(both(temp.path(), &Limits { entries_max: 100, ..tight }).is_err());
    }
}

#[test]
fn first_in_the_order_of_names_is_said() {
    let temp = tempfile::tempdir().unwrap();
    for file in 0..300 {
        fs::write(temp.path().join(format!("f{file:03}")), "x").unwrap();
    }
    let fifo = |name: &str| {
        assert!(Command::new("mkfifo").arg(temp.path().join(name)).status().unwrap().success());
    };
    fifo("f150b");
    fifo("f250b");
    for _ in 0..20 {
        let said = both(temp.path(), &Limits::default()).unwrap_err();
        assert!(said.contains("f150b: a FIFO"), "{said}");
    }
}

#[test]
fn it_ends_when_it_is_to_stop() {
    let temp = tempfile::tempdir().unwrap();
    fill(temp.path(), 1);
    let dir = open_dir(temp.path());
    for asked in [0, 1, 100, 1000] {
        let left = AtomicUsize::new(asked);
        let stop = || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_err();
        let ended = tree_digest(dir.as_fd(), &left_out, &stop, &Limits::default());
        assert!(matches!(ended, Err(PackError::Stopped)), "{ended:?}");
    }
}
