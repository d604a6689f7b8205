//! Signing by a key that never leaves Vault: ECDSA on P-256 over a SHA-256 digest, in ASN.1 DER.
//!
//! What is guaranteed: a signature that is returned has been verified here, with the public key of the version that
//! made it. The server sees the digest alone.

use super::Vault;
use super::call::Call;
use super::config::{check_name, check_path};
use super::error::VaultError;
use super::token::without;
use super::value::Data;
use ampoule_evidence::PublicKey;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use vaultrs::api::transit::requests::ReadKeyRequest;

/// A key of a Transit engine, and the public keys of its versions as they were read.
#[derive(Clone)]
pub struct Transit {
    mount: String,
    name: String,
    version: u64,
    keys: BTreeMap<u64, PublicKey>,
}

/// A signature that has been verified.
#[derive(Clone, PartialEq, Eq)]
pub struct TransitSignature {
    /// ASN.1 DER.
    pub der: Vec<u8>,
    /// Of which version of the key.
    pub version: u64,
}

impl fmt::Debug for Transit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transit({}/{} version {})", self.mount, self.name, self.version)
    }
}

impl fmt::Debug for TransitSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransitSignature(version {}, {} bytes)", self.version, self.der.len())
    }
}

#[derive(Deserialize)]
struct KeyInfo {
    #[serde(rename = "type")]
    kind: String,
    latest_version: u64,
    #[serde(default)]
    exportable: bool,
    #[serde(default)]
    derived: bool,
    keys: BTreeMap<String, KeyVersion>,
}

#[derive(Deserialize)]
struct KeyVersion {
    public_key: String,
}

#[derive(Serialize)]
struct Sign {
    input: String,
    prehashed: bool,
    marshaling_algorithm: &'static str,
    key_version: u64,
}

impl Transit {
    /// A key whose public key is known from an earlier reading.
    pub(super) fn known(mount: &str, name: &str, version: u64, public: PublicKey) -> Self {
        let keys = BTreeMap::from([(version, public)]);
        Self { mount: mount.to_owned(), name: name.to_owned(), version, keys }
    }

    /// The version that signs.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The public key of the version that signs.
    pub fn public_key(&self) -> Option<&PublicKey> {
        self.keys.get(&self.version)
    }

    /// All public keys, by version: those of a trust file.
    pub fn public_keys(&self) -> &BTreeMap<u64, PublicKey> {
        &self.keys
    }
}

impl Vault {
    /// Reads a key's public keys. `version`: the one that shall sign; none: the newest, from now on.
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::Answer`] if it is no key that provenance is signed with: another type, derived, or
    /// exportable.
    pub async fn transit(
        &self,
        mount: &str,
        name: &str,
        version: Option<u64>,
    ) -> Result<Transit, VaultError> {
        let doing = "reading a signing key";
        check_path("transit.mount", mount)?;
        check_name("transit.key", name)?;
        let request = ReadKeyRequest { mount: mount.to_owned(), name: name.to_owned() };
        let reply = self.own(doing, &request).await?;
        let unfit = |reason: String| VaultError::Answer { doing, reason };
        let info: KeyInfo = reply.parse(doing)?.data.ok_or_else(|| without(doing, "data"))?;
        if info.kind != "ecdsa-p256" {
            let kind: String = info.kind.chars().take(40).collect();
            return Err(unfit(format!("{name} is of type {kind:?}; make one of type ecdsa-p256")));
        }
        if info.derived || info.exportable {
            return Err(unfit(format!("{name} is derived or exportable, and would not be Vault's alone")));
        }
        let mut keys = BTreeMap::new();
        for (number, key) in info.keys {
            let number: u64 = number.parse().map_err(|_| unfit("a version is no number".to_owned()))?;
            let key = PublicKey::from_pem(&key.public_key)
                .map_err(|e| unfit(format!("the public key of version {number}: {e}")))?;
            keys.insert(number, key);
        }
        let version = version.unwrap_or(info.latest_version);
        if !keys.contains_key(&version) {
            return Err(unfit(format!("{name} has no version {version}")));
        }
        Ok(Transit { mount: mount.to_owned(), name: name.to_owned(), version, keys })
    }

    /// Signs the SHA-256 digest of these bytes, and verifies the signature.
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::Answer`] if what came is no signature of this key over these bytes.
    pub async fn sign(&self, key: &Transit, message: &[u8]) -> Result<TransitSignature, VaultError> {
        let doing = "signing";
        let unfit = |reason: &str| VaultError::Answer { doing, reason: reason.to_owned() };
        let body = Sign {
            input: STANDARD.encode(digest(&SHA256, message).as_ref()),
            prehashed: true,
            marshaling_algorithm: "asn1",
            key_version: key.version,
        };
        // The algorithm in the path: a policy can allow this one alone.
        let call = Call::post(format!("{}/sign/{}/sha2-256", key.mount, key.name), &body);
        let reply = self.own(doing, &call).await?;
        let data: Data = reply.parse(doing)?.data.ok_or_else(|| without(doing, "data"))?;
        let text = data.field("signature").ok_or_else(|| without(doing, "signature"))?;
        let (version, der) = text.expose_text().and_then(split).ok_or_else(|| unfit("it is no signature"))?;
        if version != key.version {
            return Err(unfit("it is of another version of the key than the one that was asked for"));
        }
        let public = key.public_key().ok_or_else(|| unfit("the key has no such version"))?;
        public.verify(message, &der).map_err(|_| unfit("it does not verify with the key that was read"))?;
        Ok(TransitSignature { der, version })
    }
}

/// `PREFIX:vN:BASE64`. The prefix is an operator's to choose.
fn split(text: &str) -> Option<(u64, Vec<u8>)> {
    let (_, rest) = text.split_once(':')?;
    let (version, signature) = rest.split_once(':')?;
    let version = version.strip_prefix('v')?.parse().ok()?;
    Some((version, STANDARD.decode(signature).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_taken_apart_whatever_its_prefix_is() {
        assert_eq!(split("vault:v3:AQID"), Some((3, vec![1, 2, 3])));
        assert_eq!(split("bao:v12:AQID"), Some((12, vec![1, 2, 3])));
        for wrong in ["", "vault", "vault:v3", "vault:3:AQID", "vault:v:AQID", "vault:v1:_-", "v1:AQID"] {
            assert_eq!(split(wrong), None, "{wrong}");
        }
    }
}
