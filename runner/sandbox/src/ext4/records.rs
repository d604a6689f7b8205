//! The records of the format, as bytes (fs/ext4/ext4.h, fs/ext4/ext4_extents.h). All numbers are little-endian.

use super::contents::{Body, Name, Node, Type};
use super::crc16::Crc16;
use super::layout::{BLOCK_BYTES, Group, INODE_BYTES, INODES_RESERVED, Layout};

/// [`BLOCK_BYTES`] as a length.
pub(super) const BLOCK: usize = BLOCK_BYTES as usize;
/// [`INODE_BYTES`] as a length.
pub(super) const INODE: usize = INODE_BYTES as usize;
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
/// `i_flags`: the blocks are in extents.
const HAS_EXTENTS: u32 = 0x8_0000;

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
        (0x10, layout.inodes_free()),
        (0x18, 2), // s_log_block_size: 1024 << 2
        (0x1c, 2), // s_log_cluster_size: the same
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

/// `struct ext4_group_desc` of a group with so many directories. `checksum` has taken in the UUID.
pub(super) fn descriptor(group: &Group, directories: u16, checksum: Crc16) -> Vec<u8> {
    let inodes_free = low(group.inodes - group.inodes_used);
    // INODE_ZEROED: the table is zeros already. INODE_UNINIT, BLOCK_UNINIT: the bitmap stands for an empty group,
    // whatever is in its block.
    let inode_flag = if group.inodes_used > 0 { 0 } else { 0x1 };
    let flags = 0x4 | inode_flag | if group.has_bitmap { 0 } else { 0x2 };
    let mut record = Record::new(0x1e);
    record.put_u32(&[(0x0, group.block_bitmap), (0x4, group.inode_bitmap), (0x8, group.inode_table)]);
    record.put_u16(&[
        (0xc, low(group.blocks - group.blocks_used)), // bg_free_blocks_count
        (0xe, inodes_free),                           // bg_free_inodes_count
        (0x10, directories),                          // bg_used_dirs_count
        (0x12, flags),
        (0x1c, inodes_free), // bg_itable_unused: counted from the end of the table
    ]);
    let checksum = checksum.with(&group.number.to_le_bytes()).with(&record.0).finish();
    record.0.extend_from_slice(&checksum.to_le_bytes());
    record.0
}

/// `struct ext4_inode`, of something that belongs to `owner` of the host and begins at `block`.
pub(super) fn inode(node: &Node<'_>, owner: u32, block: u32, time_secs: u32) -> Vec<u8> {
    // Seconds have 32 bits and a sign; the next two bits are the lowest of the `extra` fields.
    let epoch = u32::from(time_secs > 0x7fff_ffff);
    let mut record = Record::new(INODE);
    record.put_u16(&[
        (0x00, node.kind().mode() | node.permissions),
        (0x02, low(owner)),
        (0x18, low(owner)), // i_gid
        (0x1a, node.links),
        (0x78, low(owner >> 16)),
        (0x7a, low(owner >> 16)),
        (0x80, EXTRA_BYTES),
    ]);
    record.put_u32(&[
        (0x04, node.bytes()),
        (0x08, time_secs),                           // i_atime
        (0x0c, time_secs),                           // i_ctime
        (0x10, time_secs),                           // i_mtime
        (0x1c, node.blocks() * (BLOCK_BYTES / 512)), // i_blocks
        (0x84, epoch),                               // i_ctime_extra
        (0x88, epoch),                               // i_mtime_extra
        (0x8c, epoch),                               // i_atime_extra
        (0x90, time_secs),                           // i_crtime
        (0x94, epoch),
    ]);
    match node.body {
        Body::Link(target) if node.is_inside() => record.put(0x28, target),
        // `old_encode_dev` (linux/kdev_t.h), for numbers of 8 bits.
        Body::Device(major, minor) => record.put(0x28, &[minor, major]),
        _ => put_extents(&mut record, block, node.blocks()),
    }
    record.0
}

/// The root of an extent tree, in `i_block`: no extent or one.
fn put_extents(inode: &mut Record, block: u32, blocks: u32) {
    inode.put_u32(&[(0x20, HAS_EXTENTS)]);
    inode.put_u16(&[
        (0x28, 0xf30a),                 // its magic
        (0x2a, u16::from(blocks != 0)), // entries in use
        (0x2c, 4),                      // entries that fit
        (0x38, low(blocks)),            // blocks of the first extent
    ]);
    if blocks != 0 {
        // Where the extent begins; it is for the file's block 0.
        inode.put_u32(&[(0x3c, block)]);
    }
}

/// Bytes of an entry of a directory, at least.
fn entry_bytes(name: &Name<'_>) -> usize {
    (8 + name.name.len()).next_multiple_of(4)
}

/// Bytes that a directory of these names takes, at least.
pub(super) fn directory_bytes(names: &[Name<'_>]) -> usize {
    24 + names.iter().map(entry_bytes).sum::<usize>()
}

/// A block of `struct ext4_dir_entry_2`; the last entry has the rest of the block.
pub(super) fn directory(own: u32, parent: u32, names: &[Name<'_>]) -> Vec<u8> {
    let dot = |inode, name| Name { inode, kind: Type::Directory, name };
    let dots = [dot(own, b".".as_slice()), dot(parent, b"..")];
    let mut entries = dots.iter().chain(names).peekable();
    let mut block = Record::new(BLOCK);
    let mut at = 0;
    while let Some(entry) = entries.next() {
        let bytes = if entries.peek().is_some() { entry_bytes(entry) } else { BLOCK - at };
        block.put(at, &entry.inode.to_le_bytes());
        block.put(at + 4, &u16::try_from(bytes).unwrap_or_default().to_le_bytes());
        block.put(at + 6, &[u8::try_from(entry.name.len()).unwrap_or_default(), entry.kind as u8]);
        block.put(at + 8, entry.name);
        at += bytes;
    }
    block.0
}

/// The lower half of a number; counts in a group descriptor are at most 32768.
fn low(number: u32) -> u16 {
    let [a, b, _, _] = number.to_le_bytes();
    u16::from_le_bytes([a, b])
}
