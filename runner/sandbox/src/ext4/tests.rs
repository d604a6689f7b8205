#[cfg(feature = "root-tests")]
mod e2fsck;

use super::*;
use crate::skeleton::{Entry, Kind};
use proptest::prelude::*;

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
