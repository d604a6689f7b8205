//! Where a form may begin: its first 8 bytes, its anchor, looked for among all others at once.
//!
//! Every window of 8 bytes has, at one of its first four places, a block of 4 that begins at a multiple of four. So it is
//! enough to look each fourth block up: which of the four places it can have in an anchor stands in a table. That needs no
//! automaton, whose size and speed the number of forms decides.

use ampoule_spec::SECRET_BYTES_MIN;

/// How many bytes an anchor has. No form is shorter.
pub(super) const ANCHOR: usize = SECRET_BYTES_MIN;
/// How many blocks are looked at together.
const STRIDE: usize = 4;
/// The table has between 2^14 and 2^20 places, about 32 for each block.
const BITS: std::ops::RangeInclusive<u32> = 14..=20;

/// The anchors of all forms.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    /// Every form's, in order, with the form.
    sorted: Vec<(u64, u32)>,
    /// By a block's hash, in bits: at which places of an anchor it stands.
    blocks: Vec<u8>,
    /// By an anchor's hash, a bit: whether there is one. A second look, before one by one.
    known: Vec<u64>,
    bits: u32,
}

/// The first 8 bytes of these.
pub(super) fn anchor_of(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

impl Anchors {
    /// Adds a form's. It is found when they are put in [order](Self::arrange).
    pub(super) fn add(&mut self, anchor: u64, form: u32) {
        self.sorted.push((anchor, form));
    }

    /// Makes the tables.
    pub(super) fn arrange(&mut self) {
        self.sorted.sort_unstable();
        let blocks = self.sorted.len() * STRIDE;
        self.bits = (blocks.next_power_of_two().ilog2() + 5).clamp(*BITS.start(), *BITS.end());
        self.blocks = vec![0; 1 << self.bits];
        self.known = vec![0; 1 << (self.bits - 6)];
        for (anchor, _) in &self.sorted {
            let bytes = anchor.to_be_bytes();
            for place in 0..STRIDE {
                let at = bytes.get(place..).and_then(|rest| rest.first_chunk());
                let at = at.map_or(0, |block| block_hash(*block, self.bits));
                if let Some(places) = self.blocks.get_mut(at) {
                    *places |= 1 << place;
                }
            }
            let hash = anchor_hash(*anchor, self.bits);
            if let Some(known) = self.known.get_mut(hash >> 6) {
                *known |= 1 << (hash & 63);
            }
        }
    }

    /// Looks at every window that begins in these bytes from a place on and is whole; says where an anchor is, and the
    /// forms that begin with it. Not in their order.
    pub(super) fn find(&self, bytes: &[u8], from: usize, mut found: impl FnMut(usize, &[(u64, u32)])) {
        let Some(text) = bytes.get(from..) else { return };
        // A block is the fourth of a group's windows: all four are whole if it has 8 bytes.
        for (group, eleven) in text.windows(STRIDE - 1 + ANCHOR).step_by(STRIDE).enumerate() {
            let block = eleven.get(STRIDE - 1..).and_then(|rest| rest.first_chunk());
            let hash = block.map_or(0, |block| block_hash(*block, self.bits));
            let places = self.blocks.get(hash).copied().unwrap_or_default();
            if places != 0 {
                for place in (0..STRIDE).filter(|place| places >> place & 1 == 1) {
                    let at = STRIDE - 1 - place;
                    self.look(eleven.get(at..).unwrap_or_default(), from + group * STRIDE + at, &mut found);
                }
            }
        }
        let groups = (text.len() + 1).saturating_sub(STRIDE - 1 + ANCHOR).div_ceil(STRIDE);
        for (at, window) in text.windows(ANCHOR).enumerate().skip(groups * STRIDE) {
            self.look(window, from + at, &mut found);
        }
    }

    fn look(&self, window: &[u8], at: usize, found: &mut impl FnMut(usize, &[(u64, u32)])) {
        let Some(anchor) = anchor_of(window) else { return };
        let hash = anchor_hash(anchor, self.bits);
        if self.known.get(hash >> 6).copied().unwrap_or_default() >> (hash & 63) & 1 == 0 {
            return;
        }
        let first = self.sorted.partition_point(|(other, _)| *other < anchor);
        let rest = self.sorted.get(first..).unwrap_or_default();
        let count = rest.iter().take_while(|(other, _)| *other == anchor).count();
        if count > 0 {
            found(at, rest.get(..count).unwrap_or_default());
        }
    }

    /// How many of the last bytes begin an anchor and are none yet.
    pub(super) fn beginning(&self, bytes: &[u8]) -> usize {
        let begins = |count: &usize| {
            let Some(tail) = bytes.len().checked_sub(*count).and_then(|from| bytes.get(from..)) else {
                return false;
            };
            let mut least = [0; ANCHOR];
            least.iter_mut().zip(tail).for_each(|(place, byte)| *place = *byte);
            let least = u64::from_be_bytes(least);
            let first = self.sorted.partition_point(|(other, _)| *other < least);
            let others = self.sorted.get(first).map(|(other, _)| other.to_be_bytes());
            others.is_some_and(|other| other.starts_with(tail))
        };
        (1..ANCHOR).rev().find(begins).unwrap_or(0)
    }
}

fn block_hash(block: [u8; 4], bits: u32) -> usize {
    (u32::from_le_bytes(block).wrapping_mul(0x9e37_79b1) >> (32 - bits)) as usize
}

fn anchor_hash(anchor: u64, bits: u32) -> usize {
    (anchor.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)) as usize
}
