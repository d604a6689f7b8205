//! An ext4 with a few files in it, written straight into a sparse file: the writable layer of one job.
//!
//! The runner executes no other program, so no mkfs(8). Nor need it: a file system that holds little is few blocks,
//! namely superblock, group descriptors, the bitmaps that the kernel does not make up itself, inodes and what is in
//! them ([`Contents`]). Everything else is a hole, which reads as the zeros that are to be there.
//!
//! Guaranteed: a job sees the bytes and inodes that were asked for, not fewer and hardly more, besides what is there
//! from the start ([`Layout`]), and e2fsck(8) has nothing to say. Not meant to last: there is no journal, no second
//! superblock and no checksum but the group descriptors', because nobody reads the file system after its job.
//!
//! The format is that of the kernel's documentation (filesystems/ext4) and of fs/ext4/ext4.h.

mod contents;
mod crc16;
mod layout;
mod records;
#[cfg(test)]
mod tests;

pub use contents::{Contents, ContentsError, FILE_BYTES_MAX, NAME_BYTES_MAX, TARGET_BYTES_MAX};
pub use layout::{BLOCK_BYTES, INODES_MAX, Layout, LayoutError};

use contents::{Body, Type};
use records::{BLOCK, INODE};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that are gathered before they are written. The memory is used again, because its pages cost more than calls.
const GATHER_BYTES: usize = 1 << 16;

/// What is in a file system besides its contents.
#[derive(Debug, Clone, Copy)]
pub struct Label {
    /// The host id that is id 0 of the contents: user and group of the root directory.
    pub owner: u32,
    /// Its name, which is also what names of files are hashed with.
    pub uuid: [u8; 16],
    /// The time of everything, in seconds since 1970.
    pub time_secs: u32,
}

/// Makes `file` the file system that `layout` describes: sets its length and writes metadata and contents.
///
/// Whatever the file held is dropped. Its root directory has mode 0755. Nothing is synced.
///
/// # Errors
/// What ftruncate(2) and pwrite(2) say: `EFBIG` if the file's file system has no files of that length, `ENOSPC`.
/// [`io::ErrorKind::InvalidInput`] if the layout is one for other contents, or an owner has more than 32 bits.
pub fn format(file: &File, layout: &Layout, contents: &Contents<'_>, label: &Label) -> io::Result<()> {
    if !layout.fits(contents) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if file.metadata()?.len() != 0 {
        file.set_len(0)?;
    }
    file.set_len(layout.image_bytes())?;
    let mut to = Gathered { file, offset: 0, bytes: Vec::with_capacity(GATHER_BYTES) };
    to.put(0, &records::superblock(layout, label.uuid, label.time_secs))?;
    to.put(1, &descriptors(layout, contents, label.uuid))?;
    for group in layout.groups().filter(|group| group.has_bitmap) {
        to.put(group.block_bitmap, &bitmap(group.blocks_used, group.blocks))?;
    }
    for group in layout.groups().filter(|group| group.inodes_used > 0) {
        to.put(group.inode_bitmap, &bitmap(group.inodes_used, group.inodes))?;
    }
    if let Some(first) = layout.groups().next() {
        to.put(first.inode_table, &inodes(layout, contents, label)?)?;
    }
    for node in contents.nodes().filter(|node| node.blocks() > 0) {
        let block = layout.overhead_blocks() + node.block;
        match &node.body {
            Body::Directory { parent, names } => {
                to.put(block, &records::directory(node.inode, *parent, names))?;
            }
            Body::File(bytes) | Body::Link(bytes) => to.put(block, bytes)?,
            Body::Device(..) => {}
        }
    }
    to.flush()
}

/// What is looked at soon after mount(2), each with its first byte and its number of bytes.
///
/// These are the superblock, descriptors, the bitmaps from which the first new files come, the inodes of the contents,
/// and directories up to the last one.
pub fn hot_ranges(layout: &Layout, contents: &Contents<'_>) -> Vec<(u64, u64)> {
    let first = layout.groups().next();
    let open = layout.groups().find(|group| group.blocks_used < group.blocks);
    let directories = contents.nodes().filter(|node| node.kind() == Type::Directory).last();
    let inode_blocks = contents.inodes().div_ceil(BLOCK_BYTES / layout::INODE_BYTES);
    let ranges = [
        first.as_ref().map(|group| (0, group.block_bitmap)),
        open.as_ref().map(|group| (group.block_bitmap, 1)),
        first.as_ref().map(|group| (group.inode_bitmap, 1)),
        first.as_ref().map(|group| (group.inode_table, inode_blocks)),
        directories.map(|node| (layout.overhead_blocks(), node.block + 1)),
    ];
    let bytes = |blocks: u32| u64::from(blocks) * u64::from(BLOCK_BYTES);
    ranges.into_iter().flatten().map(|(block, blocks)| (bytes(block), bytes(blocks))).collect()
}

/// The group descriptors.
fn descriptors(layout: &Layout, contents: &Contents<'_>, uuid: [u8; 16]) -> Vec<u8> {
    let checksum = crc16::Crc16::new().with(&uuid);
    let record = |group: layout::Group| records::descriptor(&group, directories(&group, contents), checksum);
    layout.groups().flat_map(record).collect()
}

/// Directories whose inodes are in a group.
fn directories(group: &layout::Group, contents: &Contents<'_>) -> u16 {
    if group.inodes_used == 0 {
        return 0;
    }
    // Inodes have numbers from 1.
    let first = group.number * group.inodes + 1;
    let numbers = first..first + group.inodes_used;
    let count =
        contents.nodes().filter(|n| n.kind() == Type::Directory && numbers.contains(&n.inode)).count();
    u16::try_from(count).unwrap_or(u16::MAX)
}

/// The inode table as far as it is in use. Inodes of the format and of nobody are zeros.
fn inodes(layout: &Layout, contents: &Contents<'_>, label: &Label) -> io::Result<Vec<u8>> {
    let mut table = Vec::with_capacity(INODE * contents.inodes() as usize);
    for node in contents.nodes() {
        let owner = node.id.map_or(Some(0), |id| label.owner.checked_add(id));
        let owner = owner.ok_or(io::ErrorKind::InvalidInput)?;
        table.resize(INODE * (node.inode as usize - 1), 0);
        let block = layout.overhead_blocks() + node.block;
        table.extend_from_slice(&records::inode(node, owner, block, label.time_secs));
    }
    Ok(table)
}

/// A bitmap of `size` bits of which the first `used` are taken. Bits that stand for nothing are set.
fn bitmap(used: u32, size: u32) -> Vec<u8> {
    // All bits below a number: bytes of ones and one in which the lowest bits are.
    let below = |bits: u32| (bits as usize / 8, !(u8::MAX << (bits % 8)));
    let (taken, last_taken) = below(used);
    let (there, last_there) = below(size);
    let mut bytes = vec![u8::MAX; taken];
    bytes.resize(BLOCK.min(there), 0);
    bytes.resize(BLOCK, u8::MAX);
    if let Some(byte) = bytes.get_mut(there) {
        *byte = !last_there;
    }
    if let Some(byte) = bytes.get_mut(taken) {
        *byte |= last_taken;
    }
    bytes
}

/// Blocks on their way to a file; those that follow each other are written together.
struct Gathered<'a> {
    file: &'a File,
    /// Where `bytes` go.
    offset: u64,
    bytes: Vec<u8>,
}

impl Gathered<'_> {
    /// Takes what begins with block `number`. Zeros follow to the end of its last block.
    fn put(&mut self, number: u32, bytes: &[u8]) -> io::Result<()> {
        let offset = u64::from(number) * u64::from(BLOCK_BYTES);
        let end = self.offset.saturating_add(self.bytes.len().try_into().unwrap_or(u64::MAX));
        if offset != end || self.bytes.len() + bytes.len() > GATHER_BYTES {
            self.flush()?;
            self.offset = offset;
        }
        if bytes.len() > GATHER_BYTES {
            self.file.write_all_at(bytes, offset)?;
            return Ok(());
        }
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
