//! Where a form may begin: its first 8 bytes, its anchor, looked for among all others at once.
//!
//! Every window of 8 bytes has, at one of its first four places, a block of 4 that begins at a multiple of four. So it is
//! enough to look each fourth block up: which of the four places it can have in an anchor stands in a table. That needs no
//! automaton, whose size and speed the number of forms decides.
//!
//! Forms with the same anchor are in the order of all their bytes, so that one search says which of them stand at a place,
//! however many begin alike: lines of a file often do.

use ampoule_spec::SECRET_BYTES_MIN;
use std::cmp::Ordering;

/// How many bytes an anchor has. No form is shorter.
pub(super) const ANCHOR: usize = SECRET_BYTES_MIN;
/// How many blocks are looked at together.
const STRIDE: usize = 4;
/// The table has between 2^14 and 2^20 places, about 32 for each block.
const BITS: std::ops::RangeInclusive<u32> = 14..=20;

/// No other form.
const NONE: u32 = u32::MAX;

/// A form's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    anchor: u64,
    pub(super) form: u32,
    /// How far in front of it the longest form is that it begins with; [`NONE`]: there is none.
    within: u32,
}

/// How a form compares with the bytes at a place: less or equal if it is whole there, greater if they end before it does;
/// and how many of its bytes stand there.
pub(super) type Compared = (Ordering, usize);

/// Which forms stand at a place.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// The longest that is whole.
    pub(super) whole: Option<u32>,
    /// The first, in the order of their bytes, of those that go on behind the bytes that are there. What is before it and
    /// goes on like it is whole.
    pub(super) begun: Option<u32>,
}

/// The anchors of all forms.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    /// In order, and those with the same anchor in the order of their bytes.
    entries: Vec<Entry>,
    /// Of each anchor that several forms have: where its first entry is, and how long the longest is.
    longest: Vec<(u32, u32)>,
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
        self.entries.push(Entry { anchor, form, within: NONE });
    }

    /// Makes the tables. It is asked in which order two forms' bytes are, whether a form begins with another, and how long one is.
    pub(super) fn arrange(
        &mut self,
        order: impl Fn(u32, u32) -> Ordering,
        begins_with: impl Fn(u32, u32) -> bool,
        len: impl Fn(u32) -> u32,
    ) {
        self.entries.sort_unstable_by(|a, b| a.anchor.cmp(&b.anchor).then_with(|| order(a.form, b.form)));
        self.longest.clear();
        let mut first = 0;
        for alike in self.entries.chunk_by_mut(|a, b| a.anchor == b.anchor) {
            if alike.len() > 1 {
                let longest = alike.iter().map(|entry| len(entry.form)).max();
                self.longest.push((first, longest.unwrap_or_default()));
            }
            nest(alike, &begins_with);
            first += alike.len() as u32;
        }
        self.tabulate();
    }

    fn tabulate(&mut self) {
        let blocks = self.entries.len() * STRIDE;
        self.bits = (blocks.next_power_of_two().ilog2() + 5).clamp(*BITS.start(), *BITS.end());
        self.blocks = vec![0; 1 << self.bits];
        self.known = vec![0; 1 << (self.bits - 6)];
        for Entry { anchor, .. } in &self.entries {
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
    pub(super) fn find(&self, bytes: &[u8], from: usize, mut found: impl FnMut(usize, &[Entry])) {
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

    fn look(&self, window: &[u8], at: usize, found: &mut impl FnMut(usize, &[Entry])) {
        let Some(anchor) = anchor_of(window) else { return };
        let hash = anchor_hash(anchor, self.bits);
        if self.known.get(hash >> 6).copied().unwrap_or_default() >> (hash & 63) & 1 == 0 {
            return;
        }
        let alike = self.alike(anchor);
        if !alike.is_empty() {
            found(at, alike);
        }
    }

    /// The forms with an anchor, in the order of their bytes.
    pub(super) fn alike(&self, anchor: u64) -> &[Entry] {
        let first = self.entries.partition_point(|entry| entry.anchor < anchor);
        let rest = self.entries.get(first..).unwrap_or_default();
        // Most have one alone.
        let count = match rest.get(1) {
            Some(second) if second.anchor == anchor => rest.partition_point(|entry| entry.anchor <= anchor),
            _ => usize::from(rest.first().is_some_and(|entry| entry.anchor == anchor)),
        };
        rest.get(..count).unwrap_or_default()
    }

    /// The length of the longest form that begins like these; none: there is one alone.
    pub(super) fn longest(&self, alike: &[Entry]) -> Option<u32> {
        let anchor = alike.first()?.anchor;
        let first = self.entries.partition_point(|entry| entry.anchor < anchor) as u32;
        let at = self.longest.binary_search_by_key(&first, |(first, _)| *first).ok()?;
        self.longest.get(at).map(|(_, longest)| *longest)
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
            let first = self.entries.partition_point(|entry| entry.anchor < least);
            let others = self.entries.get(first).map(|entry| entry.anchor.to_be_bytes());
            others.is_some_and(|other| other.starts_with(tail))
        };
        (1..ANCHOR).rev().find(begins).unwrap_or(0)
    }
}

/// Says of each of these entries, which are in order, which other is the longest that it begins with.
fn nest(alike: &mut [Entry], begins_with: &impl Fn(u32, u32) -> bool) {
    let mut around: Vec<(usize, u32)> = Vec::new();
    for (at, entry) in alike.iter_mut().enumerate() {
        while around.last().is_some_and(|(_, shorter)| !begins_with(entry.form, *shorter)) {
            around.pop();
        }
        entry.within = around.last().map_or(NONE, |(shorter, _)| (at - shorter) as u32);
        around.push((at, entry.form));
    }
}

/// Which of these forms, which are in order, stand at a place of so many bytes, with which each is [compared](Compared).
pub(super) fn standing(
    alike: &[Entry],
    bytes: usize,
    len: impl Fn(u32) -> usize,
    compare: impl Fn(u32) -> Compared,
) -> Standing {
    let next = alike.partition_point(|entry| compare(entry.form).0 != Ordering::Greater);
    let begun = alike.get(next).map(|entry| entry.form).filter(|form| compare(*form).1 == bytes);
    Standing { whole: whole(alike, next, len, compare), begun }
}

/// The longest form in front of this entry that is whole: the one before it, or one that that begins with.
fn whole(
    alike: &[Entry],
    next: usize,
    len: impl Fn(u32) -> usize,
    compare: impl Fn(u32) -> Compared,
) -> Option<u32> {
    let mut at = next.checked_sub(1)?;
    let common = compare(alike.get(at)?.form).1;
    loop {
        let entry = alike.get(at)?;
        if len(entry.form) <= common {
            return Some(entry.form);
        }
        // [`NONE`] is farther than any.
        at = at.checked_sub(entry.within as usize)?;
    }
}

fn block_hash(block: [u8; 4], bits: u32) -> usize {
    (u32::from_le_bytes(block).wrapping_mul(0x9e37_79b1) >> (32 - bits)) as usize
}

fn anchor_hash(anchor: u64, bits: u32) -> usize {
    (anchor.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)) as usize
}
