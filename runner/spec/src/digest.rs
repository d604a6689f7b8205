//! Digests as fixed-size values, spelt as lower-case hex and as nothing else.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The text does not have exactly 64 characters.
    #[error("a digest has 64 hexadecimal digits, this has {0}")]
    Length(usize),
    /// A character is not one of `0-9a-f`.
    #[error("a digest has only the digits 0-9 and a-f, found {0:?}")]
    Digit(char),
}

fn parse(text: &str) -> Result<[u8; 32], DigestError> {
    let count = text.chars().count();
    if count != 64 {
        return Err(DigestError::Length(count));
    }
    let mut bytes = [0_u8; 32];
    digits(text, &mut bytes)?;
    Ok(bytes)
}

/// Reads two digits for each byte; the text has as many.
pub(crate) fn digits(text: &str, bytes: &mut [u8]) -> Result<(), DigestError> {
    let mut digits = text.chars();
    for byte in bytes {
        let mut value = 0_u8;
        for digit in digits.by_ref().take(2) {
            let nibble = match digit {
                '0'..='9' => digit as u8 - b'0',
                'a'..='f' => digit as u8 - b'a' + 10,
                _ => return Err(DigestError::Digit(digit)),
            };
            value = (value << 4) | nibble;
        }
        *byte = value;
    }
    Ok(())
}

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident, $label:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps the 32 bytes of a finished hash.
            pub const fn new(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Parses exactly 64 lower-case hexadecimal digits.
            ///
            /// # Errors
            /// [`DigestError`] for any other length or character, upper case included.
            pub fn parse(text: &str) -> Result<Self, DigestError> {
                parse(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                for byte in &self.0 {
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($label, ":{}"), self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                Self::parse(&text).map_err(de::Error::custom)
            }
        }
    };
}

digest!(
    /// A SHA-256 digest: what leaves the host is named by it.
    Sha256,
    "sha256"
);
digest!(
    /// A BLAKE3 digest: what lies in the store is named by it.
    Blake3,
    "blake3"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_good_digest_round_trips() {
        let text = "00ff".repeat(16);
        assert_eq!(Sha256::parse(&text).unwrap().to_string(), text);
    }

    #[test]
    fn parse_odd_spellings_are_refused() {
        assert_eq!(Sha256::parse("ab"), Err(DigestError::Length(2)));
        assert_eq!(Sha256::parse(&"AB".repeat(32)), Err(DigestError::Digit('A')));
        assert_eq!(Sha256::parse(&format!("sha256:{}", "a".repeat(57))), Err(DigestError::Digit('s')));
        assert!(Sha256::parse(&"é".repeat(64)).is_err());
    }
}
