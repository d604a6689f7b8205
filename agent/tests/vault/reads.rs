//! Reads of every kind.

use crate::vault::{Rig, Storage};
use crate::{client, meta, rig};
use ampoule_agent::vault::{Kind, Method, Minted, Read, Secrets, SshKind, Vault, VaultError};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

fn kv2(path: &str, version: Option<u64>) -> Read {
    Read::Kv2 { mount: "secret".to_owned(), path: path.to_owned(), version }
}

/// A step's token that may also do this.
async fn may(rig: &Rig, vault: &Vault, policy: &str) -> Minted {
    let more =
        std::fs::read_to_string(crate::repository().join("examples/vault/ampoule-step-app.hcl")).unwrap();
    let both = json!({"policy": format!("{more}\n{policy}")});
    rig.ask("PUT", "sys/policies/acl/ampoule-step-app", Some(&both)).unwrap();
    vault.mint(None, &meta()).await.unwrap()
}

fn field(secrets: &Secrets, name: &str) -> String {
    secrets.data.field(name).unwrap_or_default().expose_text().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn kv_gives_the_version_that_was_asked_for() {
    let rig = rig(Storage::Memory);
    rig.ask("POST", "secret/data/app/npm", Some(&json!({"data": {"token": "canary-2"}}))).unwrap();
    rig.ask("POST", "sys/mounts/plain", Some(&json!({"type": "kv"}))).unwrap();
    rig.ask("POST", "plain/app", Some(&json!({"k": "v1", "ttl": "30m"}))).unwrap();
    let vault = client(&rig);
    let minted = may(&rig, &vault, "path \"plain/app\" { capabilities = [\"read\"] }").await;

    let newest = vault.read(&minted.token, &kv2("app/npm", None)).await.unwrap();
    assert_eq!((field(&newest, "token"), newest.version), ("canary-2".to_owned(), Some(2)));
    assert!(newest.lease.is_none() && newest.expires_at.is_none());
    let pinned = vault.read(&minted.token, &kv2("app/npm", Some(1))).await.unwrap();
    assert_eq!((field(&pinned, "token"), pinned.version), ("canary-1".to_owned(), Some(1)));
    assert!(!format!("{pinned:?}").contains("canary"));

    rig.ask("POST", "secret/delete/app/npm", Some(&json!({"versions": [1]}))).unwrap();
    for (path, version, was) in
        [("app/npm", Some(1), true), ("app/none", None, false), ("app/npm", Some(9), false)]
    {
        let error = vault.read(&minted.token, &kv2(path, version)).await.unwrap_err();
        assert!(matches!(error, VaultError::Missing { deleted, .. } if deleted == was), "{path}: {error:?}");
        let asked = version.map(|version| format!("secret/data/{path}?version={version}"));
        assert!(asked.is_none_or(|asked| error.to_string().contains(&asked)), "{error}");
    }
    let error = vault.read(&minted.token, &kv2("other/npm", None)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert_eq!(
        vault.read(&minted.token, &kv2("app/../other/npm", None)).await.unwrap_err().kind(),
        Kind::Config
    );

    let read = Read::Kv1 { mount: "plain".to_owned(), path: "app".to_owned() };
    let plain = vault.read(&minted.token, &read).await.unwrap();
    // Its duration is a hint, and no lease.
    assert!(field(&plain, "k") == "v1" && plain.lease.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_passwords_have_leases_where_the_engine_gives_them() {
    let rig = rig(Storage::Memory);
    for (path, body) in [
        ("sys/mounts/pki", json!({"type": "pki"})),
        ("pki/root/generate/internal", json!({"common_name": "root", "ttl": "3h"})),
        ("pki/roles/leased", json!({"allow_any_name": true, "generate_lease": true, "ttl": "10m"})),
        ("pki/roles/plain", json!({"allow_any_name": true, "ttl": "10m"})),
        ("sys/mounts/ssh", json!({"type": "ssh"})),
        ("ssh/roles/otp", json!({"key_type": "otp", "default_user": "me", "cidr_list": "127.0.0.0/8"})),
        ("sys/mounts/transit", json!({"type": "transit"})),
        ("transit/keys/data", json!({})),
    ] {
        rig.ask("POST", path, Some(&body)).unwrap();
    }
    let vault = client(&rig);
    let minted = may(
        &rig,
        &vault,
        "path \"pki/issue/*\" { capabilities = [\"update\"] }\npath \"ssh/creds/otp\" { capabilities = [\"update\"] }\n\
         path \"transit/datakey/plaintext/data\" { capabilities = [\"update\"] }\n\
         path \"pki/cert/ca\" { capabilities = [\"read\"] }",
    )
    .await;
    let named = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let pki = |role: &str| Read::Pki {
        mount: "pki".to_owned(),
        role: role.to_owned(),
        parameters: named(&[("common_name", "build.example")]),
    };
    // Why one without a name is refused is between the operator and the server.
    let nameless = Read::Pki { mount: "pki".to_owned(), role: "leased".to_owned(), parameters: named(&[]) };
    let error = vault.read(&minted.token, &nameless).await.unwrap_err();
    assert!(error.to_string().contains("with the role and parameters of `read`"), "{error}");
    let leased = vault.read(&minted.token, &pki("leased")).await.unwrap();
    let lease = leased.lease.clone().unwrap();
    assert!(!lease.renewable && field(&leased, "private_key").starts_with("-----BEGIN"));
    assert!(leased.expires_at.unwrap() > 1_700_000_000);
    let found = vault.lookup_lease(&lease.id).await.unwrap().unwrap();
    assert!(!found.renewable && found.ttl > Duration::from_secs(500), "{found:?}");
    let error = vault.renew_lease(&lease.id, Duration::from_secs(60)).await.unwrap_err();
    assert!(matches!(error, VaultError::Refused { status: 400, .. }), "{error:?}");
    vault.revoke_lease(&lease.id).await.unwrap();
    assert_eq!(vault.lookup_lease(&lease.id).await.unwrap(), None);
    vault.revoke_lease(&lease.id).await.unwrap();

    let plain = vault.read(&minted.token, &pki("plain")).await.unwrap();
    assert!(plain.lease.is_none() && plain.expires_at.is_some());

    let parameters = named(&[("ip", "127.0.0.1")]);
    let otp = Read::Ssh { mount: "ssh".to_owned(), role: "otp".to_owned(), kind: SshKind::Otp, parameters };
    let otp = vault.read(&minted.token, &otp).await.unwrap();
    assert!(otp.lease.is_some() && !field(&otp, "key").is_empty());

    let path = "transit/datakey/plaintext/data".to_owned();
    let written = Read::Path { path, method: Method::Write, parameters: BTreeMap::new() };
    assert!(!field(&vault.read(&minted.token, &written).await.unwrap(), "plaintext").is_empty());
    let got = Read::Path { path: "pki/cert/ca".to_owned(), method: Method::Get, parameters: BTreeMap::new() };
    assert!(field(&vault.read(&minted.token, &got).await.unwrap(), "certificate").starts_with("-----BEGIN"));
}
