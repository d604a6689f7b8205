//! Signing by a key of Transit.

use crate::vault::{Rig, Storage};
use crate::{STEP, config, rig, server, text};
use ampoule_agent::vault::{Kind, TransitKey, TransitSigner, Vault, VaultError};
use ampoule_evidence::{PublicKey, Signer as _};
use serde_json::json;

/// A client that may do what `examples/vault/ampoule-signer.hcl` says.
fn signer(rig: &Rig) -> Vault {
    rig.ask("POST", "sys/mounts/transit", Some(&json!({"type": "transit"}))).unwrap();
    rig.ask("POST", "transit/keys/ampoule", Some(&json!({"type": "ecdsa-p256"}))).unwrap();
    let made = json!({"policies": ["ampoule-signer"], "ttl": "10m"});
    let made = rig.ask("POST", "auth/token/create", Some(&made)).unwrap();
    let file = rig.private("signer", text(&made, "/auth/client_token")).unwrap();
    Vault::new(config(&format!("{}login.token = {{ file = {file:?} }}\n{STEP}", server(rig))), None).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn signature_verifies_and_names_its_version_across_a_rotation() {
    let rig = rig(Storage::Memory);
    let vault = signer(&rig);
    let key = vault.transit("transit", "ampoule", None).await.unwrap();
    let signature = vault.sign(&key, b"statement").await.unwrap();
    key.public_key().unwrap().verify(b"statement", &signature.der).unwrap();
    assert!(key.public_key().unwrap().verify(b"another", &signature.der).is_err());

    rig.ask("POST", "transit/keys/ampoule/rotate", Some(&json!({}))).unwrap();
    // What was read goes on with its version; whoever reads anew has both.
    assert_eq!(vault.sign(&key, b"statement").await.unwrap().version, 1);
    let newer = vault.transit("transit", "ampoule", None).await.unwrap();
    assert_eq!((newer.version(), newer.public_keys().len()), (2, 2));
    assert_eq!(newer.public_keys().get(&1), key.public_key());
    assert_eq!(vault.sign(&newer, b"statement").await.unwrap().version, 2);
    let pinned = vault.transit("transit", "ampoule", Some(1)).await.unwrap();
    assert_eq!(vault.sign(&pinned, b"statement").await.unwrap().version, 1);
    assert!(vault.transit("transit", "ampoule", Some(9)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn signature_of_a_key_that_was_exchanged_is_not_returned() {
    let rig = rig(Storage::Memory);
    let vault = signer(&rig);
    let key = vault.transit("transit", "ampoule", None).await.unwrap();
    rig.ask("POST", "transit/keys/ampoule/config", Some(&json!({"deletion_allowed": true}))).unwrap();
    rig.ask("DELETE", "transit/keys/ampoule", None).unwrap();
    rig.ask("POST", "transit/keys/ampoule", Some(&json!({"type": "ecdsa-p256"}))).unwrap();
    let error = vault.sign(&key, b"statement").await.unwrap_err();
    assert!(error.to_string().contains("does not verify"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_another_kind_is_refused_by_name() {
    let rig = rig(Storage::Memory);
    let vault = signer(&rig);
    let all = "path \"transit/keys/*\" { capabilities = [\"read\"] }";
    rig.ask("PUT", "sys/policies/acl/ampoule-signer", Some(&json!({"policy": all}))).unwrap();
    for (name, body, reason) in [
        ("ed", json!({"type": "ed25519"}), "ecdsa-p256"),
        ("out", json!({"type": "ecdsa-p256", "exportable": true}), "exportable"),
        ("big", json!({"type": "ecdsa-p384"}), "ecdsa-p256"),
    ] {
        rig.ask("POST", &format!("transit/keys/{name}"), Some(&body)).unwrap();
        let error = vault.transit("transit", name, None).await.unwrap_err();
        assert!(matches!(error, VaultError::Answer { .. }) && error.to_string().contains(reason), "{error}");
    }
    vault.transit("transit", "ampoule", None).await.unwrap();
    assert_eq!(vault.transit("transit", "none", None).await.unwrap_err().kind(), Kind::Missing);
}

#[tokio::test(flavor = "multi_thread")]
async fn signer_keeps_the_key_that_it_first_read() {
    let rig = rig(Storage::Memory);
    drop(signer(&rig));
    let file = rig.path("transit.toml");
    let text = format!("key = \"ampoule\"\n[vault]\n{}login.token = {{ file = \"signer\" }}\n", server(&rig));
    std::fs::write(&file, &text).unwrap();
    let keys = rig.path("keys");
    std::fs::create_dir(&keys).unwrap();
    let key = TransitKey::load(&file).unwrap();
    // From within a runtime, as the daemon opens it.
    let first = TransitSigner::open(&key, &keys).unwrap();
    let public = PublicKey::from_spki_der(first.public_key_spki_der()).unwrap();
    public.verify(b"statement", &first.sign(b"statement").unwrap()).unwrap();

    // Without the server it is open, and signs when the server is back.
    rig.seal().unwrap();
    let second = TransitSigner::open(&key, &keys).unwrap();
    assert_eq!(second.public_key_spki_der(), first.public_key_spki_der());
    let error = second.sign(b"statement").unwrap_err();
    assert!(error.reason.contains("sealed"), "{error}");
    rig.unseal().unwrap();
    public.verify(b"statement", &second.sign(b"statement").unwrap()).unwrap();

    // A rotation changes nothing until the operator says so.
    rig.ask("POST", "transit/keys/ampoule/rotate", Some(&json!({}))).unwrap();
    let third = TransitSigner::open(&key, &keys).unwrap();
    public.verify(b"statement", &third.sign(b"statement").unwrap()).unwrap();
    let next = TransitSigner::open(&TransitKey { version: Some(2), ..key.clone() }, &keys).unwrap();
    assert_ne!(next.public_key_spki_der(), first.public_key_spki_der());
    let known = TransitSigner::open(&key, &keys).unwrap();
    assert_eq!(
        known.public_key_spki_der(),
        next.public_key_spki_der(),
        "what was chosen last is what is known"
    );

    for (wrong, field) in [("bey = \"x\"\n", "bey"), ("key = \"a\"\n[vault]\naddresses = []\n", "login")] {
        std::fs::write(&file, wrong).unwrap();
        let error = TransitKey::load(&file).unwrap_err();
        assert!(error.contains(field) && error.contains("transit.toml"), "{error}");
    }
}
