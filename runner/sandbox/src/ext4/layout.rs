//! Where everything is in a file system of a given size.
//!
//! ```text
//! superblock | descriptors | block bitmaps | inode bitmaps | inode tables | contents from the start | data …
//! ```
//!
//! All metadata comes first, as `mke2fs -E packed_meta_blocks=1` has it, and not at the start of each group. So a
//! group needs no room for metadata of its own, the size can be exact whatever the number of inodes, and what a
//! job touches first is close together in the backing file. The block bitmaps of groups that begin after the
//! contents would be all zeros and need not exist (`BLOCK_UNINIT`). The inode tables are one table, too.

use super::contents::Contents;
use ampoule_spec::Code;

/// Bytes in a block: a page, and the largest sector of a disk.
pub const BLOCK_BYTES: u32 = 4096;
/// Most inodes for a job. Beyond it there are so many groups that not every size can be had.
pub const INODES_MAX: u32 = 1 << 27;

/// A group has one block of bits for its blocks, and one for its inodes.
pub(super) const BITS_PER_BLOCK: u32 = BLOCK_BYTES * 8;
/// Bytes in an inode: 128 of ext2, 32 of nanoseconds and the like, the rest for extended attributes.
pub(super) const INODE_BYTES: u32 = 256;
/// Inodes 1 to 10 belong to the format, inode 11 is `lost+found`.
pub(super) const INODES_RESERVED: u32 = 11;
/// Bytes in a group descriptor without the feature `64bit`.
pub(super) const DESCRIPTOR_BYTES: u32 = 32;
const INODES_PER_BLOCK: u32 = BLOCK_BYTES / INODE_BYTES;
const DESCRIPTORS_PER_BLOCK: u32 = BLOCK_BYTES / DESCRIPTOR_BYTES;
/// How many numbers of groups are tried. Of three million sizes at random the worst, the most inodes in the fewest
/// bytes, needed half of them; ordinary ones need one or two.
const GROUP_TRIES: u32 = 1 << 12;

/// Why there is no file system of this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// More blocks than 32 bits can number, as without the feature `64bit`, or more inodes than [`INODES_MAX`].
    #[error(
        "a writable layer of {bytes} bytes and {inodes} inodes cannot be laid out; ask for less than 16 TiB and \
         at most {INODES_MAX} inodes"
    )]
    TooLarge {
        /// The bytes that were asked for.
        bytes: u64,
        /// The inodes that were asked for.
        inodes: u64,
    },
}

impl LayoutError {
    /// The bounded code.
    pub fn code(&self) -> Code {
        Code::SandboxUnsupported
    }
}

/// The places and numbers of one file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    blocks: u32,
    groups: u32,
    blocks_per_group: u32,
    inodes_per_group: u32,
    taken: Taken,
}

/// What the contents from the start take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Taken {
    blocks: u32,
    /// Those of the format included.
    inodes: u32,
}

/// One block group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) number: u32,
    /// Blocks in the group; the last may have fewer than the others.
    pub(super) blocks: u32,
    /// Blocks at its start that metadata, of whichever group, and contents take.
    pub(super) blocks_used: u32,
    pub(super) inodes: u32,
    /// Inodes at its start that contents take.
    pub(super) inodes_used: u32,
    /// Whether the block bitmap has to be written.
    pub(super) has_bitmap: bool,
    pub(super) block_bitmap: u32,
    pub(super) inode_bitmap: u32,
    pub(super) inode_table: u32,
}

impl Layout {
    /// The smallest file system in which a job has this many bytes, rounded up to blocks, and at least this many
    /// inodes: at most 1 % more, or 16 more in each group if that is more.
    ///
    /// That is what is left for the job: blocks and inodes of `contents` are there besides.
    ///
    /// # Errors
    /// [`LayoutError::TooLarge`].
    pub fn for_limits(bytes: u64, inodes: u64, contents: &Contents<'_>) -> Result<Self, LayoutError> {
        let too_large = LayoutError::TooLarge { bytes, inodes };
        let data = bytes.div_ceil(u64::from(BLOCK_BYTES));
        let (Ok(data), Ok(inodes)) = (u32::try_from(data), u32::try_from(inodes)) else {
            return Err(too_large);
        };
        if inodes > INODES_MAX {
            return Err(too_large);
        }
        let taken = Taken { blocks: contents.blocks(), inodes: contents.inodes() };
        let inodes = inodes.checked_add(taken.inodes).ok_or(too_large)?;
        let fewest = inodes.max(data.saturating_add(inodes / INODES_PER_BLOCK)).div_ceil(BITS_PER_BLOCK);
        let groups = fewest..fewest.saturating_add(GROUP_TRIES);
        groups.into_iter().find_map(|groups| Self::with_groups(data, inodes, groups, taken)).ok_or(too_large)
    }

    /// The layout with this many groups, if there is one.
    ///
    /// The number of groups is written nowhere: it follows from the blocks and the blocks per group, which are a
    /// multiple of 8. With thousands of groups, small because of their inodes, 8 blocks more in each make the last
    /// ones superfluous, and there is no such layout. Inode tables of a few blocks more help, or another number.
    fn with_groups(data: u32, inodes: u32, groups: u32, taken: Taken) -> Option<Self> {
        let table = inodes.div_ceil(groups).div_ceil(INODES_PER_BLOCK);
        (table..=table + (table / 100).min(7)).find_map(|table| Self::with_tables(data, groups, table, taken))
    }

    /// The layout with this many groups and blocks in each inode table, if there is one.
    fn with_tables(data: u32, groups: u32, table: u32, taken: Taken) -> Option<Self> {
        let inodes_per_group = table * INODES_PER_BLOCK;
        if inodes_per_group > BITS_PER_BLOCK {
            return None;
        }
        let blocks_per_group = BITS_PER_BLOCK;
        let mut layout = Self { blocks: 0, groups, blocks_per_group, inodes_per_group, taken };
        let blocks = u64::from(data) + layout.used_blocks();
        layout.blocks = u32::try_from(with_kernels_reserve(blocks)).ok()?;
        let others = u64::from(groups - 1);
        if others * u64::from(BITS_PER_BLOCK) >= u64::from(layout.blocks) {
            // More groups than the blocks need, because of the inodes.
            layout.blocks_per_group = layout.blocks.div_ceil(groups).checked_next_multiple_of(8)?;
        }
        let per_group = u64::from(layout.blocks_per_group);
        let dealt = others * per_group < u64::from(layout.blocks)
            && u64::from(layout.blocks) <= u64::from(groups) * per_group;
        dealt.then_some(layout)
    }

    /// The length of the file.
    pub fn image_bytes(&self) -> u64 {
        u64::from(self.blocks) * u64::from(BLOCK_BYTES)
    }

    /// Blocks of [`BLOCK_BYTES`] that a job can fill: `f_bavail` of statvfs(3) once it is mounted.
    pub fn blocks_available(&self) -> u64 {
        u64::from(self.blocks) - self.used_blocks() - kernels_reserve(u64::from(self.blocks))
    }

    /// Files, directories and links that a job can make: `f_ffree` of statvfs(3) once it is mounted.
    pub fn inodes_available(&self) -> u64 {
        u64::from(self.inodes_free())
    }

    /// Whether it was made for contents of this size.
    pub(super) fn fits(&self, contents: &Contents<'_>) -> bool {
        self.taken == Taken { blocks: contents.blocks(), inodes: contents.inodes() }
    }

    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }

    pub(super) fn inodes(&self) -> u32 {
        self.groups * self.inodes_per_group
    }

    pub(super) fn blocks_per_group(&self) -> u32 {
        self.blocks_per_group
    }

    pub(super) fn inodes_free(&self) -> u32 {
        self.inodes() - self.taken.inodes
    }

    pub(super) fn inodes_per_group(&self) -> u32 {
        self.inodes_per_group
    }

    /// Blocks that are of no file or directory, which are those before the contents.
    pub(super) fn overhead_blocks(&self) -> u32 {
        1 + self.descriptor_blocks() + self.groups * (2 + self.table_blocks())
    }

    /// Blocks that nothing is in yet.
    pub(super) fn blocks_free(&self) -> u32 {
        self.blocks - self.overhead_blocks() - self.taken.blocks
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = Group> + use<> {
        let layout = *self;
        let bitmaps = 1 + layout.descriptor_blocks();
        let taken = layout.overhead_blocks() + layout.taken.blocks;
        (0..layout.groups).map(move |number| {
            let first = number * layout.blocks_per_group;
            let blocks = layout.blocks_per_group.min(layout.blocks - first);
            let blocks_used = taken.saturating_sub(first).min(blocks);
            let inodes = layout.inodes_per_group;
            Group {
                number,
                blocks,
                blocks_used,
                inodes,
                inodes_used: layout.taken.inodes.saturating_sub(number * inodes).min(inodes),
                // e2fsck(8) wants the last group's (PR_0_BB_UNINIT_LAST), although the kernel does not.
                has_bitmap: blocks_used > 0 || number + 1 == layout.groups,
                block_bitmap: bitmaps + number,
                inode_bitmap: bitmaps + layout.groups + number,
                inode_table: bitmaps + 2 * layout.groups + number * layout.table_blocks(),
            }
        })
    }

    fn descriptor_blocks(&self) -> u32 {
        self.groups.div_ceil(DESCRIPTORS_PER_BLOCK)
    }

    fn table_blocks(&self) -> u32 {
        self.inodes_per_group / INODES_PER_BLOCK
    }

    /// As [`Layout::overhead_blocks`] plus contents, in numbers that cannot overflow before the size is checked.
    fn used_blocks(&self) -> u64 {
        let per_group = u64::from(2 + self.table_blocks());
        let others = u64::from(1 + self.descriptor_blocks()) + u64::from(self.taken.blocks);
        others + u64::from(self.groups) * per_group
    }
}

/// Blocks that the kernel keeps from everybody for its own emergencies (`ext4_calculate_resv_clusters`,
/// fs/ext4/super.c): 2 %, at most 4096.
fn kernels_reserve(blocks: u64) -> u64 {
    (blocks / 50).min(4096)
}

/// The smallest size of which this many blocks are left after [`kernels_reserve`].
fn with_kernels_reserve(blocks: u64) -> u64 {
    // 49 of 50 are left, and the first 49 lose none; beyond 4096 × 50 the reserve no longer grows.
    (blocks + blocks.saturating_sub(1) / 49).min(blocks + 4096)
}
