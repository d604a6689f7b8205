//! What of a text stands in the base64 of anything that it is a part of: any digit of it, from its place.

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Where coreutils' base64 and OpenSSL's break their lines.
const WIDTHS: [u8; 2] = [76, 64];

/// How far it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    /// To the last digit that the text alone decides: something may follow.
    Whole,
    /// To the end, where nothing follows.
    Rest,
    /// The same, filled up with `=`.
    Padded,
}

/// One way to write a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::mask) struct Base64 {
    url: bool,
    /// How many bytes of something else stand before the text in a group of three.
    before: u8,
    tail: Tail,
    /// After how many digits a line ends; 0 for never.
    width: u8,
}

/// Every way for a text of so many bytes.
pub(super) fn base64s(len: usize) -> Vec<Base64> {
    let mut all: Vec<Base64> = Vec::new();
    for url in [false, true] {
        for before in 0..3_u8 {
            let ways =
                [Tail::Whole, Tail::Rest, Tail::Padded].map(|tail| Base64 { url, before, tail, width: 0 });
            let mut last = None;
            for way in ways {
                if last.replace(way.len(len)) != Some(way.len(len)) {
                    all.push(way);
                }
            }
            for width in WIDTHS.into_iter().filter(|_| before == 0) {
                let unbroken = Base64 { url, before, tail: Tail::Padded, width: 0 };
                if unbroken.len(len) > usize::from(width) {
                    all.push(Base64 { width, ..unbroken });
                }
            }
        }
    }
    all
}

impl Base64 {
    /// How many digits, signs and line ends, for a text of so many bytes.
    pub(super) fn len(self, len: usize) -> usize {
        let (first, digits) = (self.first(), self.digits(len));
        let end = match self.tail {
            Tail::Whole => (usize::from(self.before) + len) * 8 / 6,
            Tail::Rest => digits,
            Tail::Padded => digits.next_multiple_of(4),
        };
        let signs = end.saturating_sub(first);
        match usize::from(self.width) {
            0 => signs,
            width => signs + signs.saturating_sub(1) / width,
        }
    }

    /// The sign at a place, for a text of so many bytes.
    pub(super) fn at(self, len: usize, place: usize, byte_at: impl Fn(usize) -> u8) -> u8 {
        let before = usize::from(self.before);
        let place = match usize::from(self.width) {
            0 => place,
            width if place % (width + 1) == width => return b'\n',
            width => place / (width + 1) * width + place % (width + 1),
        };
        let digit = self.first() + place;
        if digit >= self.digits(len) {
            return b'=';
        }
        let byte = |at: usize| match at.checked_sub(before) {
            Some(at) if at < len => u32::from(byte_at(at)),
            _ => 0,
        };
        let at = digit * 6 / 8;
        let bits = (byte(at) << 8 | byte(at + 1)) >> (10 - digit * 6 % 8) & 63;
        let alphabet = if self.url { URL } else { STANDARD };
        alphabet.get(bits as usize).copied().unwrap_or_default()
    }

    /// The first digit that what stands before has no part in.
    fn first(self) -> usize {
        (usize::from(self.before) * 8).div_ceil(6)
    }

    /// Digits of what stands before and the text.
    fn digits(self, len: usize) -> usize {
        ((usize::from(self.before) + len) * 8).div_ceil(6)
    }
}
