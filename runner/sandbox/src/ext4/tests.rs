use super::*;
use crate::skeleton::{Entry, Kind};
use proptest::prelude::*;
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

fn uuid() -> [u8; 16] {
    *b"\x8a\x1f\x00\xffampoule-test"
}

fn empty() -> Contents<'static> {
    Contents::of(&[]).unwrap()
}

fn layout(bytes: u64, inodes: u64) -> Result<Layout, LayoutError> {
    Layout::for_limits(bytes, inodes, &empty())
}

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

/// The program, which an ordinary user's PATH may not lead to. A test that needs it is ignored, and counted so, without
/// the feature `root-tests`.
fn e2fsck() -> &'static str {
    ["e2fsck", "/usr/sbin/e2fsck", "/sbin/e2fsck"]
        .into_iter()
        .find(|program| Command::new(program).arg("-V").output().is_ok())
        .expect("e2fsck is missing; install e2fsprogs")
}

#[test]
#[cfg_attr(not(feature = "root-tests"), ignore = "needs e2fsck")]
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
#[cfg_attr(not(feature = "root-tests"), ignore = "needs e2fsck")]
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
#[cfg_attr(not(feature = "root-tests"), ignore = "needs e2fsck")]
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

#[test]
fn format_writes_little_and_drops_what_was_there() {
    use std::os::unix::fs::MetadataExt;
    let layout = layout(4 * GIB, 1_000_000).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[0xff; 100_000], 5_000_000).unwrap();
    format(&file, &layout, &empty(), &Label { owner: 1, uuid: uuid(), time_secs: 1 }).unwrap();
    let mut found = [1; 100_000];
    file.read_exact_at(&mut found, 5_000_000).unwrap();
    assert!(found.iter().all(|byte| *byte == 0));
    assert!(file.metadata().unwrap().blocks() * 512 < 100_000, "{:?}", file.metadata());
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
#[cfg_attr(not(feature = "root-tests"), ignore = "needs e2fsck")]
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

#[test]
fn contents_that_no_file_system_has_are_refused() {
    let dir = || Entry::directory("d", 0o755, 0);
    let file = |path: &str| Entry::file(path, b"a".as_slice());
    for path in ["", "/a", "a/", "a//b", ".", "..", "d/..", "d/./a", "a\0b", &"n".repeat(256)] {
        let refused = Contents::of(&[dir(), file(path)]).unwrap_err();
        assert_eq!(refused, ContentsError::Path(path.to_owned()));
    }
    let link = |target: Vec<u8>| Entry::link("l", target);
    let mode = |mode| Entry { path: "m".to_owned(), id: 0, kind: Kind::Directory { mode } };
    type Wrong = fn(String) -> ContentsError;
    let cases: [(Vec<Entry>, Wrong); 10] = [
        (vec![file("a"), file("a")], ContentsError::Twice),
        (vec![dir(), dir()], ContentsError::Twice),
        (vec![file("lost+found")], ContentsError::Twice),
        (vec![file("d/a"), dir()], ContentsError::NoDirectory),
        (vec![file("a"), file("a/b")], ContentsError::NoDirectory),
        (vec![file("lost+found/a")], ContentsError::NoDirectory),
        (vec![link(Vec::new())], ContentsError::Length),
        (vec![link(vec![b'x'; TARGET_BYTES_MAX + 1])], ContentsError::Length),
        (vec![link(b"a\0".to_vec())], ContentsError::Value),
        (vec![mode(0o10000)], ContentsError::Value),
    ];
    for (entries, wrong) in cases {
        let refused = Contents::of(&entries).unwrap_err();
        let path = entries.last().unwrap().path.clone();
        assert!(refused == wrong(path) || refused == wrong(entries[0].path.clone()), "{refused}");
    }
}

/// The least that there can be.
fn small_file() -> Entry {
    Entry::file("a", b"a".as_slice())
}

#[test]
fn format_refuses_a_layout_of_other_contents() {
    let layout = layout(MIB, 100).unwrap();
    let one = [small_file()];
    let contents = Contents::of(&one).unwrap();
    let label = Label { owner: 0, uuid: uuid(), time_secs: 0 };
    let refused = format(&tempfile::tempfile().unwrap(), &layout, &contents, &label).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn bitmap_has_used_bits_and_padding_set() {
    let bits = |used, size| -> Vec<bool> {
        let bytes = bitmap(used, size);
        assert_eq!(bytes.len(), BLOCK);
        bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect()
    };
    for (used, size) in
        [(0, 1), (11, 16), (5, 5), (0, 32_768), (7, 32_761), (32_767, 32_768), (32_768, 32_768)]
    {
        let expected: Vec<bool> = (0..32_768).map(|bit| bit < used || bit >= size).collect();
        assert!(bits(used, size) == expected, "{used} of {size}");
    }
}

#[test]
fn limits_beyond_the_format_are_refused() {
    for (bytes, inodes) in
        [(16 * TIB, 1), (u64::MAX, 1), (MIB, 1 << 32), (MIB, (1 << 27) + 1), (u64::MAX, u64::MAX)]
    {
        assert_eq!(layout(bytes, inodes), Err(LayoutError::TooLarge { bytes, inodes }));
    }
    assert!(layout(16 * TIB - 4 * GIB, 1_000_000).is_ok());
    assert!(layout(15 * TIB, 1 << 27).is_ok());
}

/// Everything that has to hold between the numbers of a layout.
fn check(bytes: u64, inodes: u64) -> Layout {
    let layout = layout(bytes, inodes).unwrap();
    let groups: Vec<_> = layout.groups().collect();
    let count = groups.len() as u64;
    assert_eq!(layout.blocks_available(), bytes.div_ceil(4096));
    let most = inodes + (inodes / 100).max(16 * count);
    assert!((inodes..=most).contains(&layout.inodes_available()), "{layout:?}");
    // As ext4_calculate_resv_clusters has it.
    let reserve = (u64::from(layout.blocks()) / 50).min(4096);
    assert_eq!(layout.blocks_available(), u64::from(layout.blocks_free()) - reserve);
    // As the kernel and e2fsck count groups.
    let (blocks, per_group) = (layout.blocks(), layout.blocks_per_group());
    assert_eq!(count, u64::from(blocks.div_ceil(per_group)));
    assert!(per_group.is_multiple_of(8) && (8..=32_768).contains(&per_group));
    assert!(
        layout.inodes_per_group().is_multiple_of(16) && (16..=32_768).contains(&layout.inodes_per_group())
    );
    assert_eq!(u64::from(layout.inodes()), count * u64::from(layout.inodes_per_group()));
    // Every block is in one group, and what is used of them is the metadata.
    assert_eq!(groups.iter().map(|g| u64::from(g.blocks)).sum::<u64>(), u64::from(blocks));
    assert_eq!(
        groups.iter().map(|g| u64::from(g.blocks - g.blocks_used)).sum::<u64>(),
        u64::from(layout.blocks_free())
    );
    // Metadata follows without a gap, and each group's is its own.
    let descriptors = groups.len().div_ceil(128) as u32;
    let table = layout.inodes_per_group() / 16;
    let mut places: Vec<(u32, u32)> = vec![(0, 1 + descriptors), (layout.overhead_blocks(), 2)];
    for group in &groups {
        places.extend([(group.block_bitmap, 1), (group.inode_bitmap, 1), (group.inode_table, table)]);
        assert!(group.has_bitmap || group.blocks_used == 0);
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        assert_eq!(pair[0].0 + pair[0].1, pair[1].0);
    }
    layout
}

#[test]
fn layout_of_corner_sizes_is_exact() {
    for bytes in [0, 1, 4096, MIB, 16 * MIB, 128 * MIB, GIB, 64 * GIB, TIB, 4 * TIB, 15 * TIB] {
        for inodes in [0, 1, 200, 32_757, 32_758, 65_525, 1_000_000, 12_345_678, 100_000_000] {
            check(bytes, inodes);
        }
    }
}

/// Numbers of every order of magnitude alike.
fn magnitude(most: u64) -> impl Strategy<Value = u64> {
    (0..=most.ilog2()).prop_flat_map(move |bits| (1 << bits)..=(2 << bits).min(most))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn layout_of_any_size_is_exact(bytes in magnitude(15 * TIB), inodes in magnitude(100_000_000)) {
        check(bytes, inodes);
    }

    #[test]
    fn layout_of_full_inode_groups_is_exact(bytes in magnitude(TIB), groups in 1..=4_096_u64, less in 0..40_u64) {
        // Where the inodes make the groups: just below and above whole groups of them.
        check(bytes, groups * 32_768 - less);
    }
}

proptest! {
    // e2fsck is slow with many groups, so these are small and few.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    #[cfg_attr(not(feature = "root-tests"), ignore = "needs e2fsck")]
    fn format_of_any_size_satisfies_e2fsck(bytes in magnitude(8 * GIB), inodes in magnitude(2_000_000)) {
        let layout = layout(bytes, inodes).unwrap();
        prop_assert_eq!(complaint(image(&layout, 1000, 1_700_000_000).path()), None);
    }

    #[test]
    #[cfg_attr(not(feature = "root-tests"), ignore = "needs e2fsck")]
    fn format_with_any_tree_satisfies_e2fsck(tree in tree(), bytes in magnitude(GIB), inodes in magnitude(100_000)) {
        let contents = Contents::of(&tree).unwrap();
        let layout = Layout::for_limits(bytes, inodes, &contents).unwrap();
        prop_assert_eq!(complaint(image_of(&layout, &contents, 1000, 1).path()), None);
    }
}
