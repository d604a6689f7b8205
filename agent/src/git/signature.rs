//! Signatures of commits and tags: SSH's form (PROTOCOL.sshsig), held against an allowed-signers file.

use super::object::Signed;
use super::signers::Signer;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey,
    VerificationAlgorithm,
};
use ssh_key::public::{EcdsaPublicKey, KeyData};
use ssh_key::{Algorithm, HashAlg, SshSig};

/// The namespace in which git signs.
const NAMESPACE: &str = "git";
/// The most bytes of a signature.
const SIGNATURE_BYTES_MAX: usize = 16 << 10;

/// Who signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verified {
    pub(super) principal: String,
    /// The key's fingerprint as ssh-keygen prints it.
    pub(super) key: String,
}

/// Verifies a signature that was made at a time (which is the signer's own word, as it is for git).
///
/// # Errors
/// Why it does not count.
pub(super) fn verify(signed: &Signed, time: i64, signers: &[Signer]) -> Result<Verified, String> {
    let signature = signed.signature.as_deref().ok_or("it is not signed")?;
    if signature.starts_with(b"-----BEGIN PGP") {
        return Err("it is signed with OpenPGP, which is not supported; sign with an SSH key (git config gpg.format ssh)"
            .to_owned());
    }
    if signature.starts_with(b"-----BEGIN SIGNED MESSAGE") {
        return Err("it is signed with X.509, which is not supported; sign with an SSH key (git config gpg.format ssh)"
            .to_owned());
    }
    if signature.len() > SIGNATURE_BYTES_MAX {
        return Err(format!("its signature has more than {SIGNATURE_BYTES_MAX} bytes"));
    }
    let parsed = SshSig::from_pem(signature).map_err(|e| format!("its signature cannot be read: {e}"))?;
    if parsed.namespace() != NAMESPACE || !parsed.reserved().is_empty() {
        return Err(format!("its signature is not one of the namespace {NAMESPACE}"));
    }
    let key = parsed.public_key();
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    let lines: Vec<&Signer> = signers.iter().filter(|signer| signer.key == *key).collect();
    if lines.is_empty() {
        return Err(format!(
            "it is signed by the key {fingerprint}, which no line of the allowed signers has"
        ));
    }
    let mut objection = String::new();
    let mut good = None;
    for line in lines {
        match line.objection(NAMESPACE, time) {
            None => {
                good = Some(line);
                break;
            }
            Some(reason) => objection = reason,
        }
    }
    let Some(line) = good else { return Err(format!("it is signed by {fingerprint}, but {objection}")) };
    check(&parsed, &signed.payload)?;
    Ok(Verified { principal: line.principals.clone(), key: fingerprint })
}

fn check(signature: &SshSig, payload: &[u8]) -> Result<(), String> {
    let bad = "its signature is wrong: what is signed was changed";
    let data = SshSig::signed_data(NAMESPACE, signature.hash_alg(), payload).map_err(|e| e.to_string())?;
    let bytes = signature.signature_bytes();
    let verify = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8], bytes: &[u8]| {
        UnparsedPublicKey::new(algorithm, key).verify(&data, bytes).map_err(|_| bad.to_owned())
    };
    match (signature.public_key(), signature.algorithm()) {
        (KeyData::Ed25519(key), Algorithm::Ed25519) => verify(&ED25519, key.as_ref(), bytes),
        (KeyData::Ecdsa(key), Algorithm::Ecdsa { curve }) if key.curve() == curve => {
            let (algorithm, size): (&'static dyn VerificationAlgorithm, usize) = match key {
                EcdsaPublicKey::NistP256(_) => (&ECDSA_P256_SHA256_FIXED, 32),
                EcdsaPublicKey::NistP384(_) => (&ECDSA_P384_SHA384_FIXED, 48),
                EcdsaPublicKey::NistP521(_) => (&ECDSA_P521_SHA512_FIXED, 66),
            };
            let fixed = fixed(bytes, size).ok_or(bad)?;
            verify(algorithm, key.as_sec1_bytes(), &fixed)
        }
        (KeyData::Rsa(key), Algorithm::Rsa { hash: Some(hash) }) => {
            let parameters = match hash {
                HashAlg::Sha256 => &RSA_PKCS1_2048_8192_SHA256,
                HashAlg::Sha512 => &RSA_PKCS1_2048_8192_SHA512,
                _ => return Err("its signature has an unknown hash".to_owned()),
            };
            let (n, e) = key.n.as_positive_bytes().zip(key.e.as_positive_bytes()).ok_or(bad)?;
            let key = RsaPublicKeyComponents { n, e };
            key.verify(parameters, &data, bytes).map_err(|_| bad.to_owned())
        }
        (_, algorithm) => Err(format!(
            "signatures of the kind {algorithm} are not supported; sign with an Ed25519, ECDSA or RSA key"
        )),
    }
}

/// Two numbers with lengths as two numbers of a fixed size (RFC 5656 §3.1.2).
fn fixed(bytes: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = bytes;
    for _ in 0..2 {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (number, after) = after.split_at_checked(u32::from_be_bytes(*length).try_into().ok()?)?;
        rest = after;
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        let number = number.get(zeros..)?;
        out.resize(out.len() + size.checked_sub(number.len())?, 0);
        out.extend_from_slice(number);
    }
    rest.is_empty().then_some(out)
}
