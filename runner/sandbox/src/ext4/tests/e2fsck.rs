//! What e2fsck(8) says to what was formatted: needs that program.

use super::*;
use std::path::Path;
use std::process::Command;

/// What e2fsck finds wrong with a file system, or nothing. It is asked for everything and changes nothing.
fn complaint(image: &Path) -> Option<String> {
    // Its clock is set, or the times of a test would be in the future some day, or be so already.
    let env = [("LC_ALL", "C"), ("E2FSCK_TIME", "4294967295")];
    let checked = Command::new(e2fsck()).arg("-fn").arg(image).envs(env).output().unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    // Five passes and a summary; anything else is a complaint, even where it does not change the status.
    let quiet = said.lines().all(|line| line.starts_with("Pass ") || line.contains(" files ("));
    let passes = said.lines().filter(|line| line.starts_with("Pass ")).count();
    (!checked.status.success() || !quiet || passes != 5)
        .then(|| format!("{}\n{said}{}", checked.status, String::from_utf8_lossy(&checked.stderr)))
}

fn image(layout: &Layout, owner: u32, time_secs: u32) -> tempfile::NamedTempFile {
    image_of(layout, &empty(), owner, time_secs)
}

fn image_of(layout: &Layout, contents: &Contents<'_>, owner: u32, time_secs: u32) -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new().unwrap();
    let label = Label { owner, uuid: uuid(), time_secs };
    format(image.as_file(), layout, contents, &label).unwrap();
    assert_eq!(image.as_file().metadata().unwrap().len(), layout.image_bytes());
    image
}

/// The program, which an ordinary user's PATH may not lead to.
fn e2fsck() -> &'static str {
    ["e2fsck", "/usr/sbin/e2fsck", "/sbin/e2fsck"]
        .into_iter()
        .find(|program| Command::new(program).arg("-V").output().is_ok())
        .expect("e2fsck is missing; install e2fsprogs")
}

#[test]
fn format_of_every_size_satisfies_e2fsck() {
    for (bytes, inodes) in [
        (4096, 1),
        (MIB, 200),
        (MIB, 1_000_000),
        (MIB + 1, 32_768 - 11),
        (MIB, 32_768 - 10),
        (15 * MIB, 5_000),
        (128 * MIB, 20_000),
        (GIB, 200),
        (GIB, 1_000_000),
        (4 * GIB, 1_000_000),
        (10 * GIB + 12_345, 77_777),
        (100 * GIB, 10_000_000),
        (TIB, 1_000_000),
    ] {
        let layout = layout(bytes, inodes).unwrap();
        let image = image(&layout, 1_879_114_728, 1_700_000_000);
        assert_eq!(complaint(image.path()), None, "{layout:?}");
    }
}

#[test]
fn format_for_owners_and_times_of_32_bits_is_read_back() {
    let layout = layout(8 * MIB, 1_000).unwrap();
    for (owner, time_secs, date) in [
        (0, 0, "Thu Jan  1 00:00:00 1970"),
        (65_536, 0x7fff_ffff, "Tue Jan 19 03:14:07 2038"),
        (u32::MAX - 1, 0x8000_0000, "Tue Jan 19 03:14:08 2038"),
        (1_879_114_728, u32::MAX, "Sun Feb  7 06:28:15 2106"),
    ] {
        let image = image(&layout, owner, time_secs);
        assert_eq!(complaint(image.path()), None);
        // Of the same package, at the same place.
        let mut debugfs = Command::new(e2fsck().replace("e2fsck", "debugfs"));
        let shown = debugfs.args(["-R", "stat <2>"]).arg(image.path()).env("TZ", "UTC").output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert_eq!(shown.matches(date).count(), 4, "{shown}");
        let signed = owner.cast_signed();
        assert!(shown.contains(&format!("User: {signed:>5}   Group: {signed:>5} ")), "{shown}");
    }
}

#[test]
fn format_with_any_one_block_changed_does_not_satisfy_e2fsck() {
    let layout = layout(200 * MIB, 1_000).unwrap();
    let root = u64::from(layout.overhead_blocks()) * 4096;
    let last = layout.groups().last().unwrap();
    let first = layout.groups().next().unwrap();
    let at = |block: u32, byte: u64| u64::from(block) * 4096 + byte;
    for (what, offset) in [
        ("the free blocks", 1024 + 0x0c),
        ("a descriptor's checksum", at(1, 0x1e)),
        ("the first group's block bitmap", at(first.block_bitmap, 0)),
        ("the last group's block bitmap", at(last.block_bitmap, 0)),
        ("a bitmap's padding", at(last.block_bitmap, 4095)),
        ("the inode bitmap", at(first.inode_bitmap, 1)),
        ("the root directory's inode", at(first.inode_table, 256 + 0x1a)),
        ("the inode of lost+found", at(first.inode_table, 2560 + 0x1a)),
        ("the root directory", root),
        ("lost+found", at(layout.overhead_blocks() + 1, 0)),
    ] {
        let image = image(&layout, 0, 1);
        let mut byte = [0];
        image.as_file().read_exact_at(&mut byte, offset).unwrap();
        image.as_file().write_all_at(&[!byte[0]], offset).unwrap();
        assert!(complaint(image.path()).is_some(), "{what} may be anything: the test sees nothing");
    }
}

/// A tree in which each entry is in one of the directories before it.
fn tree() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (any::<u16>(), 0..4_u8, 0..20_000_usize, 1..4_095_usize, 0..0o10000_u16, 0..65_536_u32);
    proptest::collection::vec(entry, 0..80).prop_map(|entries| {
        let mut directories = vec![String::new()];
        let mut tree = Vec::new();
        for (number, (place, kind, bytes, target, mode, id)) in entries.into_iter().enumerate() {
            let directory = &directories[usize::from(place) % directories.len()];
            let path = format!("{directory}{}{number}", "n".repeat(usize::from(place) % 20));
            let kind = match kind {
                0 => Kind::Directory { mode },
                1 => Kind::File { mode, bytes: vec![7; bytes].into() },
                2 => Kind::Device { mode, major: 1, minor: 9 },
                _ => Kind::Link { target: vec![b't'; target].into() },
            };
            if matches!(kind, Kind::Directory { .. }) {
                directories.push(format!("{path}/"));
            }
            tree.push(Entry { path, id, kind });
        }
        tree
    })
}

#[test]
fn format_with_contents_at_the_edges_satisfies_e2fsck() {
    let mut tree = vec![Entry::directory("d", 0o1777, 5)];
    for bytes in [0, 1, 4095, 4096, 4097, 1 << 20] {
        tree.push(Entry::file(format!("d/f{bytes}"), vec![1; bytes]));
    }
    for bytes in [1, 58, 59, 60, 61, TARGET_BYTES_MAX] {
        tree.push(Entry::link(format!("d/l{bytes}"), vec![b'x'; bytes]));
    }
    tree.push(Entry::file("n".repeat(NAME_BYTES_MAX), b"".as_slice()));
    // As many entries as one block has room for: 12 bytes each, less those of "." and "..".
    tree.push(Entry::directory("full", 0o755, 0));
    tree.extend((0..339).map(|number| Entry::directory(format!("full/{number}"), 0o700, 1)));
    for bytes in [MIB, 200 * MIB, GIB] {
        let contents = Contents::of(&tree).unwrap();
        let layout = Layout::for_limits(bytes, 1_000, &contents).unwrap();
        assert_eq!(complaint(image_of(&layout, &contents, 7, 1).path()), None, "{bytes}");
    }
    tree.push(Entry::directory("full/339", 0o700, 1));
    assert_eq!(Contents::of(&tree).unwrap_err(), ContentsError::Full("full/339".to_owned()));
}

proptest! {
    // e2fsck is slow with many groups, so these are small and few.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
        fn format_of_any_size_satisfies_e2fsck(bytes in magnitude(8 * GIB), inodes in magnitude(2_000_000)) {
        let layout = layout(bytes, inodes).unwrap();
        prop_assert_eq!(complaint(image(&layout, 1000, 1_700_000_000).path()), None);
    }

    #[test]
        fn format_with_any_tree_satisfies_e2fsck(tree in tree(), bytes in magnitude(GIB), inodes in magnitude(100_000)) {
        let contents = Contents::of(&tree).unwrap();
        let layout = Layout::for_limits(bytes, inodes, &contents).unwrap();
        prop_assert_eq!(complaint(image_of(&layout, &contents, 1000, 1).path()), None);
    }
}
