//! The records of the format, as bytes (fs/ext4/ext4.h, fs/ext4/ext4_extents.h). All numbers are little-endian.

use super::crc16::Crc16;
use super::layout::{BLOCK_BYTES, Group, INODE_BYTES, INODES_RESERVED, Layout};

/// [`BLOCK_BYTES`] as a length.
pub(super) const BLOCK: usize = BLOCK_BYTES as usize;
/// [`INODE_BYTES`] as a length.
const INODE: usize = INODE_BYTES as usize;
/// The first bytes of the disk are a boot sector's.
const SUPERBLOCK_OFFSET: usize = 1024;

/// `ext_attr`, `dir_index`, `sparse_super2`. The last with its two numbers 0 means that there is one superblock.
const COMPATIBLE: u32 = 0x8 | 0x20 | 0x200;
/// `filetype`, `extents`, `flex_bg`. Without the last a group's metadata would have to be inside the group.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x200;
/// `large_file`, `huge_file`, `uninit_bg`, `dir_nlink`, `extra_isize`. The kernel believes the `UNINIT` flags only
/// with checksums of the descriptors; `metadata_csum` would also check what the job writes, for nobody.
const READ_ONLY_COMPATIBLE: u32 = 0x2 | 0x8 | 0x10 | 0x20 | 0x40;

/// `EXT4_ERRORS_RO`: a file system that contradicts itself is written to no more, and the step sees `EROFS`. With
/// `continue` it would build on from blocks that may be another file's; with `panic` one job would end the host.
const ERRORS_READ_ONLY: u16 = 2;

/// Bytes of an inode that ext2 did not have and that are in use: `i_extra_isize`.
const EXTRA_BYTES: u16 = 32;
const ROOT: u32 = 2;
const LOST_FOUND: u32 = INODES_RESERVED;
const DIRECTORY: u16 = 0o040_000;

/// A record that is zeros but for what is put into it.
struct Record(Vec<u8>);

impl Record {
    fn new(bytes: usize) -> Self {
        Self(vec![0; bytes])
    }

    /// Puts bytes at an offset. Offsets are constants of this file; e2fsck(8) reads them back in a test.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let slots = self.0.iter_mut().skip(at);
        debug_assert!(slots.len() >= bytes.len(), "outside the record");
        for (slot, byte) in slots.zip(bytes) {
            *slot = *byte;
        }
    }

    fn put_u16(&mut self, fields: &[(usize, u16)]) {
        for (at, value) in fields {
            self.put(*at, &value.to_le_bytes());
        }
    }

    fn put_u32(&mut self, fields: &[(usize, u32)]) {
        for (at, value) in fields {
            self.put(*at, &value.to_le_bytes());
        }
    }
}

/// The first block of the disk, with `struct ext4_super_block` in it.
pub(super) fn superblock(layout: &Layout, uuid: [u8; 16], time_secs: u32) -> Vec<u8> {
    let mut record = Record::new(BLOCK - SUPERBLOCK_OFFSET);
    record.put_u32(&[
        (0x00, layout.inodes()),
        (0x04, layout.blocks()),
        (0x0c, layout.blocks_free()),
        (0x10, layout.inodes() - INODES_RESERVED), // s_free_inodes_count
        (0x18, 2),                                 // s_log_block_size: 1024 << 2
        (0x1c, 2),                                 // s_log_cluster_size: the same
        (0x20, layout.blocks_per_group()),
        (0x24, layout.blocks_per_group()), // s_clusters_per_group
        (0x28, layout.inodes_per_group()),
        (0x30, time_secs),       // s_wtime
        (0x40, time_secs),       // s_lastcheck
        (0x4c, 1),               // s_rev_level: with features
        (0x54, INODES_RESERVED), // s_first_ino
        (0x5c, COMPATIBLE),
        (0x60, INCOMPATIBLE),
        (0x64, READ_ONLY_COMPATIBLE),
        (0x100, 0xc),       // s_default_mount_opts: user_xattr, acl
        (0x108, time_secs), // s_mkfs_time
        (0x160, 1),         // s_flags: names are hashed as signed characters, on every machine
        (0x248, layout.overhead_blocks()),
    ]);
    record.put_u16(&[
        (0x36, u16::MAX), // s_max_mnt_count: no check is ever due
        (0x38, 0xef53),   // s_magic
        (0x3a, 1),        // s_state: unmounted cleanly
        (0x3c, ERRORS_READ_ONLY),
        (0x58, 256),          // s_inode_size
        (0x15c, EXTRA_BYTES), // s_min_extra_isize
        (0x15e, EXTRA_BYTES), // s_want_extra_isize
    ]);
    record.put(0x68, &uuid);
    record.put(0xec, &uuid); // s_hash_seed
    record.put(0xfc, &[1]); // s_def_hash_version: half MD4
    record.put(0x174, &[4]); // s_log_groups_per_flex: the 16 of mke2fs
    let mut block = vec![0; SUPERBLOCK_OFFSET];
    block.append(&mut record.0);
    block
}

/// `struct ext4_group_desc`. `checksum` has taken in the UUID.
pub(super) fn descriptor(group: &Group, inodes: u32, checksum: Crc16) -> Vec<u8> {
    let first = group.number == 0;
    let inodes_free = if first { inodes - INODES_RESERVED } else { inodes };
    // INODE_ZEROED: the table is zeros already. INODE_UNINIT, BLOCK_UNINIT: the bitmap stands for an empty group,
    // whatever is in its block.
    let flags = 0x4 | if first { 0 } else { 0x1 } | if group.has_bitmap { 0 } else { 0x2 };
    let mut record = Record::new(0x1e);
    record.put_u32(&[(0x0, group.block_bitmap), (0x4, group.inode_bitmap), (0x8, group.inode_table)]);
    record.put_u16(&[
        (0xc, low(group.blocks - group.blocks_used)), // bg_free_blocks_count
        (0xe, low(inodes_free)),                      // bg_free_inodes_count
        (0x10, if first { 2 } else { 0 }),            // bg_used_dirs_count
        (0x12, flags),
        (0x1c, low(inodes_free)), // bg_itable_unused: counted from the end of the table
    ]);
    let checksum = checksum.with(&group.number.to_le_bytes()).with(&record.0).finish();
    record.0.extend_from_slice(&checksum.to_le_bytes());
    record.0
}

/// The first block of the first inode table: the root directory and `lost+found`, which root alone may enter.
pub(super) fn first_inodes(layout: &Layout, owner: u32, time_secs: u32) -> Vec<u8> {
    let mut block = Record::new(BLOCK);
    let directories = [
        (ROOT, directory_inode(DIRECTORY | 0o755, owner, 3, layout.root_block(), time_secs)),
        (LOST_FOUND, directory_inode(DIRECTORY | 0o700, 0, 2, layout.lost_found_block(), time_secs)),
    ];
    let mut at = 0;
    for number in 1..=LOST_FOUND {
        for (_, inode) in directories.iter().filter(|(directory, _)| *directory == number) {
            block.put(at, inode);
        }
        at += INODE;
    }
    block.0
}

/// `struct ext4_inode` of a directory of one block.
fn directory_inode(mode: u16, owner: u32, links: u16, block: u32, time_secs: u32) -> Vec<u8> {
    // Seconds have 32 bits and a sign; the next two bits are the lowest of the `extra` fields.
    let epoch = u32::from(time_secs > 0x7fff_ffff);
    let mut record = Record::new(INODE);
    record.put_u16(&[
        (0x00, mode),
        (0x02, low(owner)),
        (0x18, low(owner)), // i_gid
        (0x1a, links),
        (0x28, 0xf30a), // i_block: the header of an extent tree, its magic
        (0x2a, 1),      // entries in use
        (0x2c, 4),      // entries that fit
        (0x38, 1),      // blocks of the first extent
        (0x78, low(owner >> 16)),
        (0x7a, low(owner >> 16)),
        (0x80, EXTRA_BYTES),
    ]);
    record.put_u32(&[
        (0x04, BLOCK_BYTES),
        (0x08, time_secs),         // i_atime
        (0x0c, time_secs),         // i_ctime
        (0x10, time_secs),         // i_mtime
        (0x1c, BLOCK_BYTES / 512), // i_blocks
        (0x20, 0x8_0000),          // i_flags: has extents
        (0x3c, block),             // where the extent begins; it is for the directory's block 0
        (0x84, epoch),             // i_ctime_extra
        (0x88, epoch),             // i_mtime_extra
        (0x8c, epoch),             // i_atime_extra
        (0x90, time_secs),         // i_crtime
        (0x94, epoch),
    ]);
    record.0
}

/// The block of the root directory.
pub(super) fn root_directory() -> Vec<u8> {
    directory(&[(ROOT, b"."), (ROOT, b".."), (LOST_FOUND, b"lost+found")])
}

/// The block of `lost+found`, which e2fsck(8) misses where it is not.
pub(super) fn lost_found_directory() -> Vec<u8> {
    directory(&[(LOST_FOUND, b"."), (ROOT, b"..")])
}

/// A block of `struct ext4_dir_entry_2` for directories; the last entry has the rest of the block.
fn directory(entries: &[(u32, &[u8])]) -> Vec<u8> {
    let mut block = Record::new(BLOCK);
    let mut at = 0;
    for (index, (inode, name)) in entries.iter().enumerate() {
        let last = index + 1 == entries.len();
        let bytes = if last { BLOCK - at } else { (8 + name.len()).next_multiple_of(4) };
        block.put(at, &inode.to_le_bytes());
        block.put(at + 4, &u16::try_from(bytes).unwrap_or_default().to_le_bytes());
        block.put(at + 6, &[u8::try_from(name.len()).unwrap_or_default(), 2]); // 2: a directory
        block.put(at + 8, name);
        at += bytes;
    }
    block.0
}

/// The lower half of a number; counts in a group descriptor are at most 32768.
fn low(number: u32) -> u16 {
    let [a, b, _, _] = number.to_le_bytes();
    u16::from_le_bytes([a, b])
}
