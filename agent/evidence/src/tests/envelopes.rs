//! Mutated envelopes: one byte changed, removed or added, at many places; none is accepted.

use super::fixture::{KEY, Reader, TestSigner, issuer, provenance_of, record};
use crate::seal;
use proptest::prelude::*;

/// Changes that leave the text the same JSON document are no forgery; there is one: the optional line feed.
fn accepted(bytes: &[u8], good: &[u8]) -> bool {
    bytes.trim_ascii_end() != good.trim_ascii_end() && Reader::new().verify(bytes).is_ok()
}

#[test]
fn mutated_envelopes_are_never_accepted() {
    let sealed = seal(&provenance_of(&record(), &issuer()), &TestSigner::new(KEY)).unwrap();
    let mut tried = 0;
    for good in [sealed.envelope_json_line.as_bytes(), sealed.bundle_json.as_bytes()] {
        assert!(Reader::new().verify(good).is_ok());
        // Every byte of what is not payload, and every 17th of the payload.
        let places = (0..good.len()).filter(|at| *at < 64 || *at + 400 > good.len() || at % 17 == 0);
        for at in places {
            for bit in [0, 1, 4, 5, 7] {
                let mut bytes = good.to_vec();
                bytes[at] ^= 1 << bit;
                assert!(!accepted(&bytes, good), "bit {bit} of byte {at}");
                tried += 1;
            }
            let mut shorter = good.to_vec();
            shorter.remove(at);
            assert!(!accepted(&shorter, good), "without byte {at}");
            let mut longer = good.to_vec();
            longer.insert(at, b'A');
            assert!(!accepted(&longer, good), "with a byte at {at}");
            tried += 2;
        }
    }
    assert!(tried >= 100);
    println!("{tried} mutated envelopes");
}

#[test]
fn mutated_signatures_and_payloads_are_never_accepted() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let sealed = seal(&provenance_of(&record(), &issuer()), &TestSigner::new(KEY)).unwrap();
    let envelope: serde_json::Value = serde_json::from_str(&sealed.envelope_json_line).unwrap();
    let mut tried = 0;
    for (pointer, step) in [("/signatures/0/sig", 1), ("/payload", 29)] {
        let good = STANDARD.decode(envelope.pointer(pointer).unwrap().as_str().unwrap()).unwrap();
        for at in (0..good.len()).step_by(step) {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                let mut forged = envelope.clone();
                *forged.pointer_mut(pointer).unwrap() = STANDARD.encode(bytes).into();
                assert!(Reader::new().verify(forged.to_string().as_bytes()).is_err(), "{pointer} {at} {bit}");
                tried += 1;
            }
        }
        let mut cut = envelope.clone();
        *cut.pointer_mut(pointer).unwrap() = STANDARD.encode(&good[..good.len() - 1]).into();
        assert!(Reader::new().verify(cut.to_string().as_bytes()).is_err());
    }
    println!("{tried} mutated signatures and payloads");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Reader::new().verify(&bytes).is_err());
        prop_assert!(crate::inspect(&bytes).is_err());
        let payload = super::fixture::sign_bytes(&bytes);
        prop_assert!(Reader::new().verify(payload.bundle_json.as_bytes()).is_err());
        prop_assert!(crate::inspect(payload.bundle_json.as_bytes()).is_ok());
        let _ = crate::TrustFile::parse(&bytes);
    }
}
