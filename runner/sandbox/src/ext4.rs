//! An empty ext4, written straight into a sparse file: the writable layer of one job.
//!
//! The runner executes no other program, so no mkfs(8). Nor need it: an empty file system is a few blocks, namely
//! superblock, group descriptors, the bitmaps that the kernel does not make up itself, and two directories.
//! Everything else is a hole, which reads as the zeros that are to be there.
//!
//! Guaranteed: a job sees the bytes and inodes that were asked for, not fewer and hardly more ([`Layout`]), and
//! e2fsck(8) has nothing to say. Not meant to last: there is no journal, no second superblock and no checksum but
//! the group descriptors', because nobody reads the file system after its job.
//!
//! The format is that of the kernel's documentation (filesystems/ext4) and of fs/ext4/ext4.h.

mod crc16;
mod layout;
mod records;
#[cfg(test)]
mod tests;

pub use layout::{BLOCK_BYTES, INODES_MAX, Layout, LayoutError};

use layout::{BITS_PER_BLOCK, INODES_RESERVED};
use records::BLOCK;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that are gathered before they are written: one write for a small file system, little memory for a large.
const GATHER_BYTES: usize = 1 << 20;

/// Makes `file` the file system that `layout` describes: sets its length and writes the metadata.
///
/// Whatever the file held is dropped. Its root directory has mode 0755 and belongs to user and group `owner`.
/// `uuid` is also what names are hashed with; `time_secs` is the time of everything, in seconds since 1970.
/// Nothing is synced.
///
/// # Errors
/// What ftruncate(2) and pwrite(2) say: `EFBIG` if the file's file system has no files of that length, `ENOSPC`.
pub fn format(file: &File, layout: &Layout, owner: u32, uuid: [u8; 16], time_secs: u32) -> io::Result<()> {
    if file.metadata()?.len() != 0 {
        file.set_len(0)?;
    }
    file.set_len(layout.image_bytes())?;
    let mut to = Gathered { file, offset: 0, bytes: Vec::new() };
    to.block(0, &records::superblock(layout, uuid, time_secs))?;
    descriptors(&mut to, layout, uuid)?;
    for group in layout.groups().filter(|group| group.has_bitmap) {
        to.block(group.block_bitmap, &bitmap(group.blocks_used, group.blocks))?;
    }
    if let Some(first) = layout.groups().next() {
        to.block(first.inode_bitmap, &bitmap(INODES_RESERVED, layout.inodes_per_group()))?;
        to.block(first.inode_table, &records::first_inodes(layout, owner, time_secs))?;
    }
    to.block(layout.root_block(), &records::root_directory())?;
    to.block(layout.lost_found_block(), &records::lost_found_directory())?;
    to.flush()
}

/// The group descriptors, in the blocks after the superblock's.
fn descriptors(to: &mut Gathered<'_>, layout: &Layout, uuid: [u8; 16]) -> io::Result<()> {
    let checksum = crc16::Crc16::new().with(&uuid);
    let mut block = Vec::with_capacity(BLOCK);
    let mut at = 1;
    for group in layout.groups() {
        block.extend_from_slice(&records::descriptor(&group, layout.inodes_per_group(), checksum));
        if block.len() == BLOCK {
            to.block(at, &block)?;
            at += 1;
            block.clear();
        }
    }
    if !block.is_empty() {
        to.block(at, &block)?;
    }
    Ok(())
}

/// A bitmap of `size` bits of which the first `used` are taken. Bits that stand for nothing are set.
fn bitmap(used: u32, size: u32) -> Vec<u8> {
    // The lowest `count` bits of a byte, which begins at bit `first`.
    let below = |count: u32, first: u32| match count.saturating_sub(first) {
        0 => 0,
        bits @ 1..8 => 0xff_u8 >> (8 - bits),
        _ => 0xff,
    };
    (0..BITS_PER_BLOCK).step_by(8).map(|first| below(used, first) | !below(size, first)).collect()
}

/// Blocks on their way to a file; those that follow each other are written together.
struct Gathered<'a> {
    file: &'a File,
    /// Where `bytes` go.
    offset: u64,
    bytes: Vec<u8>,
}

impl Gathered<'_> {
    /// Takes the bytes of blocks from `number` on.
    fn block(&mut self, number: u32, bytes: &[u8]) -> io::Result<()> {
        let offset = u64::from(number) * u64::from(BLOCK_BYTES);
        let end = self.offset.saturating_add(self.bytes.len().try_into().unwrap_or(u64::MAX));
        if offset != end || self.bytes.len() >= GATHER_BYTES {
            self.flush()?;
            self.offset = offset;
        }
        // Descriptors may end in the middle of a block; what follows in the block is zeros.
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.bytes, self.offset)?;
        self.bytes.clear();
        Ok(())
    }
}
