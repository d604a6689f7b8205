//! Sealing.

use super::fixture::{KEY, KEY_PUB, OTHER_KEY, TestSigner, issuer, provenance_of, record};
use crate::{Bundle, Envelope, PublicKey, SealError, Signer, SignerError, pae, seal};

struct Broken(Option<Vec<u8>>);

impl Signer for Broken {
    fn public_key_spki_der(&self) -> &[u8] {
        // The key of the test data: 91 bytes that never change.
        static SPKI: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        SPKI.get_or_init(|| PublicKey::from_pem(KEY_PUB).unwrap().spki_der())
    }

    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, SignerError> {
        self.0.clone().ok_or(SignerError { reason: "away".to_owned() })
    }
}

#[test]
fn pae_counts_bytes() {
    assert_eq!(pae("é".as_bytes()), "DSSEv1 28 application/vnd.in-toto+json 2 é".as_bytes());
    assert_eq!(pae(b""), b"DSSEv1 28 application/vnd.in-toto+json 0 ");
}

#[test]
fn seal_both_files_hold_the_same_bytes_and_signature() {
    let statement = provenance_of(&record(), &issuer());
    let sealed = seal(&statement, &TestSigner::new(KEY)).unwrap();
    let envelope = Envelope::parse(sealed.envelope_json_line.as_bytes(), 1).unwrap();
    let bundle = Bundle::parse(sealed.bundle_json.as_bytes()).unwrap();
    let key = PublicKey::from_pem(KEY_PUB).unwrap();
    assert_eq!(envelope.payload(), statement.bytes());
    assert_eq!(envelope.payload(), bundle.envelope().payload());
    assert_eq!(envelope.signatures()[0].bytes, bundle.envelope().signatures()[0].bytes);
    assert_eq!(envelope.signatures()[0].keyid, key.fingerprint());
    assert_eq!(bundle.hint(), key.hint());
    assert_eq!(key.verify(&envelope.pae(), &envelope.signatures()[0].bytes), Ok(()));
    assert_eq!(sealed.statement_sha256, statement.sha256());
    assert_eq!(sealed.envelope_json_line.matches('\n').count(), 1);
}

#[test]
fn seal_signature_that_does_not_verify_is_not_returned() {
    let statement = provenance_of(&record(), &issuer());
    let foreign = TestSigner::new(OTHER_KEY).sign(&pae(statement.bytes())).unwrap();
    let without_pae = TestSigner::new(KEY).sign(statement.bytes()).unwrap();
    for bytes in [foreign, without_pae, vec![], vec![0; 64]] {
        assert!(matches!(seal(&statement, &Broken(Some(bytes))), Err(SealError::Signature(_))));
    }
    assert!(matches!(seal(&statement, &Broken(None)), Err(SealError::Signer(_))));
}
