//! The layout of one frame.

use crate::crc::Crc;

/// The first bytes of every frame.
pub const MAGIC: [u8; 4] = *b"AMPJ";
/// The bytes before a payload.
pub const HEADER_BYTES: usize = 17;
/// The largest payload.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// A frame's header: magic, length, kind, CRC of those nine bytes, CRC of length, kind and payload.
///
/// The first CRC is what tells a torn tail from a damaged length: without it, one flipped bit in a length would
/// look like a frame that reaches past the end, and everything behind it would be cut off as torn.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) len: u32,
    pub(crate) kind: u8,
    crc: u32,
}

fn body_crc(len: u32, kind: u8, payload: &[u8]) -> u32 {
    Crc::new().with(&len.to_le_bytes()).with(&[kind]).with(payload).finish()
}

fn head_crc(len: u32, kind: u8) -> u32 {
    Crc::new().with(&MAGIC).with(&len.to_le_bytes()).with(&[kind]).finish()
}

impl Header {
    pub(crate) fn new(kind: u8, payload: &[u8]) -> Option<Self> {
        let len = u32::try_from(payload.len()).ok()?;
        (payload.len() <= PAYLOAD_BYTES_MAX).then(|| Self { len, kind, crc: body_crc(len, kind, payload) })
    }

    pub(crate) fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.len.to_le_bytes());
        out.push(self.kind);
        out.extend_from_slice(&head_crc(self.len, self.kind).to_le_bytes());
        out.extend_from_slice(&self.crc.to_le_bytes());
    }

    /// A whole header, or nothing if it is damaged.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first()?;
        let (head, crc) = rest.split_first_chunk::<4>()?;
        let (len, kind, head) = (u32::from_le_bytes(*len), *kind, u32::from_le_bytes(*head));
        let crc = u32::from_le_bytes(*crc.first_chunk::<4>()?);
        let good = *magic == MAGIC
            && head == head_crc(len, kind)
            && usize::try_from(len).is_ok_and(|len| len <= PAYLOAD_BYTES_MAX);
        good.then_some(Self { len, kind, crc })
    }

    pub(crate) fn payload_bytes(self) -> usize {
        usize::try_from(self.len).unwrap_or(PAYLOAD_BYTES_MAX)
    }

    pub(crate) fn matches(self, payload: &[u8]) -> bool {
        body_crc(self.len, self.kind, payload) == self.crc
    }
}
