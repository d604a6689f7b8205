//! Public keys and trust files.

use super::fixture::{KEY, KEY_PUB, OTHER_KEY, TestSigner};
use crate::{KeyError, PublicKey, TrustError, TrustFile};
use serde_json::{Value, json};

#[test]
fn key_names_are_those_of_other_tools() {
    let key = PublicKey::from_pem(KEY_PUB).unwrap();
    // `ssh-keygen -i -m PKCS8 -f signing-key.pub.pem | ssh-keygen -lf -`
    assert_eq!(key.fingerprint(), "SHA256:BPqjUMIVmEnKLjKpmqxNKRwNfd7moEG1IN3L2YZ+qJg");
    // `openssl pkey -pubin -in signing-key.pub.pem -outform DER | openssl dgst -sha256 -binary | base64`
    assert_eq!(key.hint(), "ZNWBIfIcBeBMJ5laI3NCLTvp8ytyrOKLs5gyJ1RSNuU=");
    assert_eq!(key, TestSigner::new(KEY).key());
    assert_eq!(PublicKey::from_pem(&KEY_PUB.replace('\n', "\r\n")), Ok(key));
}

#[test]
fn key_other_texts_are_named() {
    let other = |algorithm| Err(KeyError::Algorithm { algorithm });
    assert_eq!(PublicKey::from_pem(include_str!("../../testdata/ed25519.pub.pem")), other("Ed25519"));
    assert_eq!(PublicKey::from_pem(include_str!("../../testdata/p384.pub.pem")), other("ECDSA on P-384"));
    assert_eq!(PublicKey::from_pem(include_str!("../../testdata/rsa.pub.pem")), other("RSA"));
    assert_eq!(PublicKey::from_pem(KEY), Err(KeyError::Private));
    assert_eq!(PublicKey::from_pem("-----BEGIN CERTIFICATE-----\n"), Err(KeyError::Certificate));
    for text in
        ["", "ssh-ed25519 AAAA", &format!("{KEY_PUB}{KEY_PUB}"), &format!("x{KEY_PUB}"), &KEY_PUB[..100]]
    {
        assert_eq!(PublicKey::from_pem(text), Err(KeyError::NotPem), "{text:?}");
    }
    assert_eq!(PublicKey::from_pem(&format!("{KEY_PUB}{}", " ".repeat(1 << 20))), Err(KeyError::NotPem));
}

#[test]
fn key_odd_points_are_refused() {
    let good = PublicKey::from_pem(KEY_PUB).unwrap().spki_der();
    let mut bad = good.clone();
    bad[90] ^= 1;
    assert_eq!(PublicKey::from_spki_der(&bad), Err(KeyError::NotOnCurve));
    let mut compressed = good.clone();
    compressed[26] = 2;
    assert_eq!(PublicKey::from_spki_der(&compressed), Err(KeyError::Encoding));
    for end in 0..good.len() {
        assert!(PublicKey::from_spki_der(&good[..end]).is_err(), "{end}");
    }
    assert!(PublicKey::from_spki_der(&[good.as_slice(), b"\0"].concat()).is_err());
}

fn trust(change: impl FnOnce(&mut Value)) -> Result<TrustFile, TrustError> {
    let mut file = json!({"ampoule": 1, "keys": [{
        "publicKey": KEY_PUB, "builder": "https://ampoule.example/builders/hermetic/v1",
        "validFrom": "2026-01-01T00:00:00Z", "validTo": "2027-01-01T00:00:00Z"}]});
    change(&mut file);
    TrustFile::parse(&serde_json::to_vec(&file).unwrap())
}

#[test]
fn trust_good_file_is_read() {
    let file = trust(|_| {}).unwrap();
    assert_eq!(file.keys[0].builder_id.as_deref(), Some("https://ampoule.example/builders/hermetic/v1"));
    assert!(file.keys[0].valid_from < file.keys[0].valid_to);
    let open = trust(|f| drop(f["keys"][0].as_object_mut().unwrap().remove("validTo"))).unwrap();
    assert_eq!(open.keys[0].valid_to, None);
}

#[test]
fn trust_each_broken_rule_has_its_error() {
    let key = |f: &mut Value, name: &str, value: Value| f["keys"][0][name] = value;
    assert!(matches!(trust(|f| f["ampoule"] = json!(2)), Err(TrustError::Format { found: 2 })));
    assert!(matches!(trust(|f| f["keys"] = json!([])), Err(TrustError::Empty)));
    assert!(matches!(trust(|f| f["more"] = json!(1)), Err(TrustError::Shape { .. })));
    assert!(matches!(trust(|f| key(f, "use", json!("x"))), Err(TrustError::Shape { .. })));
    assert!(matches!(trust(|f| key(f, "publicKey", json!(OTHER_KEY))), Err(TrustError::Key { at: 0, .. })));
    assert!(matches!(trust(|f| key(f, "builder", json!("x"))), Err(TrustError::Builder { at: 0 })));
    assert!(matches!(trust(|f| key(f, "validTo", json!("2026-01-01"))), Err(TrustError::Window { at: 0 })));
    assert!(matches!(
        trust(|f| key(f, "validTo", json!("2025-01-01T00:00:00Z"))),
        Err(TrustError::Window { .. })
    ));
    let twice = |f: &mut Value| f["keys"] = json!([f["keys"][0], f["keys"][0]]);
    assert!(matches!(trust(twice), Err(TrustError::Twice { at: 1 })));
    assert!(matches!(
        TrustFile::parse(b"{\"ampoule\":1,\"ampoule\":1,\"keys\":[]}"),
        Err(TrustError::Json(_))
    ));
    assert!(matches!(TrustFile::parse(&vec![b' '; (1 << 20) + 1]), Err(TrustError::TooLarge { .. })));
}
