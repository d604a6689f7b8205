//! Git inputs: the name of a commit, what proves a tree to be its checkout, and who signed it.

use crate::{DigestError, Sha256};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// The largest [`GitProof`] as JSON, in bytes.
pub const GIT_PROOF_BYTES_MAX: u64 = 8 << 20;
/// The most submodules in one checkout.
pub const GIT_LINKS_MAX: usize = 256;
/// The largest commit or tag object, in bytes.
pub const GIT_COMMIT_BYTES_MAX: usize = 1 << 20;

/// The name of a git object: SHA-1, spelt as 40 lower-case hexadecimal digits.
///
/// Repositories that name objects by SHA-256 are not read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GitId([u8; 20]);

/// Why a text is not the name of a git object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GitIdError {
    /// 64 digits.
    #[error("it has 64 digits: repositories that name objects by SHA-256 are not supported")]
    Sha256,
    /// Another length.
    #[error("the id of a commit has 40 hexadecimal digits, this has {0}")]
    Length(usize),
    /// A character that is none of `0-9a-f`.
    #[error(transparent)]
    Digit(DigestError),
}

impl GitId {
    /// Wraps the 20 bytes of a finished hash.
    pub const fn new(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The 20 bytes.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// Parses exactly 40 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// [`GitIdError`] for any other length or character, upper case included.
    pub fn parse(text: &str) -> Result<Self, GitIdError> {
        let mut bytes = [0_u8; 20];
        match text.chars().count() {
            40 => {}
            64 => return Err(GitIdError::Sha256),
            count => return Err(GitIdError::Length(count)),
        }
        crate::digest::digits(text, &mut bytes).map_err(GitIdError::Digit)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for GitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for GitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "git:{self}")
    }
}

impl Serialize for GitId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GitId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(de::Error::custom)
    }
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Bytes that need not be text, spelt as lower-case hexadecimal digits.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HexBytes(pub Vec<u8>);

impl fmt::Display for HexBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for HexBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for HexBytes {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HexBytes {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        if text.len() % 2 != 0 {
            return Err(de::Error::custom("an odd number of hexadecimal digits"));
        }
        let mut bytes = vec![0; text.len() / 2];
        crate::digest::digits(&text, &mut bytes).map_err(de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// What lets the launcher see for itself that a tree is the checkout of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitProof {
    /// The commit object's bytes, without the header that git hashes before them.
    pub object: HexBytes,
    /// Every submodule in the tree, nested ones too.
    #[serde(default)]
    pub links: Vec<GitLink>,
}

/// A submodule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitLink {
    /// Its directory, from the root of the tree.
    pub path: HexBytes,
    /// The commit that the tree around it names.
    pub commit: GitId,
    /// That commit object's bytes; none: the directory is empty.
    pub object: Option<HexBytes>,
}

/// Who signed a commit, as the agent verified it. The runner holds no key and does not look.
///
/// With an empty principal and key it is a demand: somebody of that file must have signed, and nobody has looked yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GitSigner {
    /// The principals of the line of the allowed-signers file that has the key.
    pub principal: String,
    /// The key's fingerprint, `SHA256:` and base64 without padding.
    pub key: String,
    /// SHA-256 of the allowed-signers file.
    pub allowed_signers: Sha256,
    /// The signed tag; none: the commit itself is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

impl GitSigner {
    /// Whether somebody has looked, and found who signed.
    pub fn is_found(&self) -> bool {
        !self.principal.is_empty() && !self.key.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_ids_have_one_spelling() {
        let text = "00ff".repeat(10);
        assert_eq!(GitId::parse(&text).unwrap().to_string(), text);
        assert_eq!(GitId::parse("ab"), Err(GitIdError::Length(2)));
        assert_eq!(GitId::parse(&"a".repeat(64)), Err(GitIdError::Sha256));
        assert!(GitId::parse(&"AB".repeat(20)).is_err());
        assert!(GitId::parse(&"é".repeat(40)).is_err());
        assert!(GitId::parse("main").is_err());
    }

    #[test]
    fn proof_crosses_the_wire_and_odd_hex_does_not() {
        let link = GitLink { path: HexBytes(vec![0xff]), commit: GitId::new([7; 20]), object: None };
        let proof = GitProof { object: HexBytes(b"tree x\n\xff".to_vec()), links: vec![link] };
        let json = serde_json::to_string(&proof).unwrap();
        assert_eq!(serde_json::from_str::<GitProof>(&json).unwrap(), proof);
        for bad in ["\"0\"", "\"0g\"", "\"AB\"", "\"é\"", "\"éé\"", "7"] {
            assert!(serde_json::from_str::<HexBytes>(bad).is_err(), "{bad}");
        }
    }
}
