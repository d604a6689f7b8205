//! CRC-32C (Castagnoli, RFC 3720 appendix B.4), bytewise: a log line is not worth more.

const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = table();

#[allow(clippy::indexing_slicing)] // evaluated by the compiler; `byte` counts to the table's length
const fn table() -> [u32; 256] {
    let mut table = [0_u32; 256];
    let mut byte = 0_usize;
    let mut value = 0_u32;
    while byte < 256 {
        let mut crc = value;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
        value += 1;
    }
    table
}

/// A running checksum.
#[derive(Clone, Copy)]
pub(crate) struct Crc(u32);

impl Crc {
    pub(crate) fn new() -> Self {
        Self(!0)
    }

    pub(crate) fn with(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            let low = self.0.to_le_bytes()[0] ^ byte;
            let entry = TABLE.get(usize::from(low)).copied().unwrap_or_default();
            self.0 = (self.0 >> 8) ^ entry;
        }
        self
    }

    pub(crate) fn finish(self) -> u32 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_known_vectors_match() {
        // RFC 3720 B.4, and the check value of the catalogue of parametrised CRC algorithms.
        assert_eq!(Crc::new().with(b"123456789").finish(), 0xe306_9283);
        assert_eq!(Crc::new().with(&[0; 32]).finish(), 0x8a91_36aa);
        assert_eq!(Crc::new().with(&[0xff; 32]).finish(), 0x62a8_ab43);
    }
}
