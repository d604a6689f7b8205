//! Tokens of steps: orphans, short until they are journaled, known by their accessor.

use crate::vault::Storage;
use crate::{client, meta, rig};
use ampoule_agent::vault::{Accessor, Kind, MINT_TTL, Read, Revoked, VaultError};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn token_is_a_short_orphan_that_is_renewed_and_revoked_by_its_accessor() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    let minted = vault.mint(None, &meta()).await.unwrap();
    assert!(minted.ttl <= MINT_TTL && minted.policies == ["ampoule-step-app"], "{minted:?}");
    let info = vault.lookup_accessor(&minted.accessor).await.unwrap().unwrap();
    assert!(info.orphan && info.ttl <= MINT_TTL, "{info:?}");
    assert_eq!(info.meta.get("step").map(String::as_str), Some("publish"));

    let asked = Duration::from_secs(660);
    let renewed = vault.renew_accessor(&minted.accessor, asked).await.unwrap();
    assert!(renewed.covers(asked), "{renewed:?}");
    let capped = vault.renew_accessor(&minted.accessor, Duration::from_secs(3 * 3600)).await.unwrap();
    assert!(!capped.covers(Duration::from_secs(3 * 3600)), "{capped:?}");

    // The agent's own end is not the step's.
    vault.log_out().await.unwrap();
    let read = Read::Kv2 { mount: "secret".to_owned(), path: "app/npm".to_owned(), version: None };
    vault.read(&minted.token, &read).await.unwrap();

    assert_eq!(vault.revoke_accessor(&minted.accessor).await.unwrap(), Revoked::Now);
    assert!(vault.lookup_accessor(&minted.accessor).await.unwrap().is_none());
    let error = vault.read(&minted.token, &read).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "{error}");
    // Again, and of one that never was: done.
    vault.revoke_accessor(&minted.accessor).await.unwrap();
    vault.revoke_accessor(&Accessor::new("never-there".to_owned()).unwrap()).await.unwrap();
    assert!(vault.renew_accessor(&minted.accessor, asked).await.is_err());
    // Who it was for stands in the server's own log.
    let audit = rig.audit().unwrap();
    assert!(audit.iter().any(|entry| {
        entry.pointer("/auth/metadata/step").is_some_and(|step| step == "publish")
            && entry.pointer("/request/path").is_some_and(|path| path == "secret/data/app/npm")
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn token_of_a_role_that_is_not_for_steps_is_refused() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    let good = rig.example_json("token-role-app.json").unwrap();
    let cases = [
        (
            "batch",
            json!({"token_type": "batch", "renewable": false, "token_explicit_max_ttl": 0}),
            "cannot be revoked",
        ),
        ("child", json!({"orphan": false}), "orphan = true"),
        ("fixed", json!({"renewable": false}), "renewable = true"),
    ];
    vault.ready().await.unwrap();
    let there = rig.ask("LIST", "auth/token/accessors", None).unwrap();
    let tokens = there.pointer("/data/keys").and_then(serde_json::Value::as_array).map_or(0, Vec::len);
    for (name, change, reason) in cases {
        let mut role = good.clone();
        role.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        rig.ask("POST", &format!("auth/token/roles/ampoule-step-{name}"), Some(&role)).unwrap();
        let error = vault.mint(Some(&format!("ampoule-step-{name}")), &meta()).await.unwrap_err();
        assert!(matches!(error, VaultError::Answer { .. }) && error.to_string().contains(reason), "{error}");
        // What can be given back was.
        let entries = rig.audit().unwrap();
        let given_back = entries.iter().any(|entry| {
            entry.pointer("/request/path").is_some_and(|path| path == "auth/token/revoke-accessor")
                && entry.pointer("/type").is_some_and(|kind| kind == "response")
                && entry.pointer("/error").is_none()
        });
        assert!(given_back || name == "batch", "{name}");
        let left = rig.ask("LIST", "auth/token/accessors", None).unwrap();
        let left = left.pointer("/data/keys").and_then(serde_json::Value::as_array).map_or(0, Vec::len);
        assert_eq!(left, tokens, "{name}");
    }
    // The good case passes beside them.
    vault.mint(Some("ampoule-step-app"), &meta()).await.unwrap();
    let error = vault.mint(Some("other"), &meta()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied, "the agent's policy allows any role: {error}");
    assert_eq!(vault.mint(Some("../../sys"), &meta()).await.unwrap_err().kind(), Kind::Config);
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_say_before_the_step_what_it_may_read() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    let minted = vault.mint(None, &meta()).await.unwrap();
    let asked = ["secret/data/app/npm", "secret/data/other/npm"];
    let found = vault.capabilities(&minted.token, &asked).await.unwrap();
    assert_eq!(
        found,
        [(asked[0].to_owned(), vec!["read".to_owned()]), (asked[1].to_owned(), vec!["deny".to_owned()]),]
    );
    // The agent itself may read nothing.
    let denied = rig.ask_as(
        rig.root_token(),
        &[],
        "POST",
        "sys/capabilities",
        Some(&json!({
            "token": rig.root_token(), "paths": ["secret/data/app/npm"],
        })),
    );
    assert_eq!(denied.unwrap().0, 200);
}
