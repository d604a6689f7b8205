//! Users of a real PostgreSQL: made for a lease, and gone with it.

use crate::postgres::Postgres;
use crate::vault::{Rig, Storage, until};
use crate::{client, meta, rig};
use ampoule_agent::vault::{Minted, Read, Secrets, Vault};
use std::time::Duration;

pub(crate) fn both(storage: Storage) -> (Rig, Postgres) {
    let rig = rig(storage);
    let postgres = Postgres::start().unwrap();
    postgres.configure(&rig, "2m", "10m").unwrap();
    (rig, postgres)
}

async fn credentials(vault: &Vault) -> (Minted, Secrets) {
    let minted = vault.mint(None, &meta()).await.unwrap();
    vault.renew_accessor(&minted.accessor, Duration::from_secs(300)).await.unwrap();
    let read = Read::Database { mount: "database".to_owned(), role: "app".to_owned() };
    let secrets = vault.read(&minted.token, &read).await.unwrap();
    (minted, secrets)
}

#[tokio::test(flavor = "multi_thread")]
async fn user_is_made_renewed_and_gone_when_the_token_or_the_lease_is_revoked() {
    let (rig, postgres) = both(Storage::Memory);
    let vault = client(&rig);
    let (minted, secrets) = credentials(&vault).await;
    let lease = secrets.lease.clone().unwrap();
    assert!(lease.renewable && lease.id.as_str().starts_with("database/creds/app/"));
    let user = secrets.data.field("username").unwrap();
    let password = secrets.data.field("password").unwrap();
    assert_eq!(postgres.made_users().unwrap(), [user.expose_text().unwrap()]);
    // User and password are of one lease: they fit each other.
    let who = postgres.query_as(user.expose_text().unwrap(), password.expose_text().unwrap(), "SELECT 1");
    assert_eq!(who.unwrap(), ["1"]);

    let asked = Duration::from_secs(240);
    assert!(vault.renew_lease(&lease.id, asked).await.unwrap().covers(asked));
    let much = Duration::from_secs(3600);
    assert!(
        !vault.renew_lease(&lease.id, much).await.unwrap().covers(much),
        "the role's max_ttl is not seen"
    );

    // The lease by itself.
    vault.revoke_lease(&lease.id).await.unwrap();
    assert!(postgres.made_users().unwrap().is_empty());
    // And with the token that read it.
    let (second, _) = credentials(&vault).await;
    assert_eq!(postgres.made_users().unwrap().len(), 1);
    vault.revoke_accessor(&second.accessor).await.unwrap();
    until("the user is gone with the token", || postgres.made_users().unwrap().is_empty()).unwrap();
    vault.revoke_accessor(&minted.accessor).await.unwrap();
    assert!(rig.leases("database/creds/app").unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn revoke_while_the_database_is_down_says_so_and_can_be_repeated() {
    let (rig, mut postgres) = both(Storage::Memory);
    let vault = client(&rig);
    let (minted, secrets) = credentials(&vault).await;
    let lease = secrets.lease.unwrap().id;
    postgres.stop().unwrap();
    let error = vault.revoke_lease(&lease).await.unwrap_err();
    assert!(vault.lookup_lease(&lease).await.unwrap().is_some(), "{error}");
    postgres.resume().unwrap();
    assert_eq!(postgres.made_users().unwrap().len(), 1);
    vault.revoke_lease(&lease).await.unwrap();
    assert!(postgres.made_users().unwrap().is_empty());
    vault.revoke_accessor(&minted.accessor).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lease_and_token_outlive_a_killed_server_and_are_revoked_by_name() {
    let (mut rig, postgres) = both(Storage::Raft);
    let vault = client(&rig);
    let (minted, secrets) = credentials(&vault).await;
    let lease = secrets.lease.unwrap().id;
    rig.kill().unwrap();
    let begun = std::time::Instant::now();
    let error = vault.revoke_accessor(&minted.accessor).await.unwrap_err();
    assert!(error.retryable() && begun.elapsed() < Duration::from_secs(10), "{error}");
    rig.restart().unwrap();
    // What the journal had is enough: accessor and lease, by another process with another login.
    let other = client(&rig);
    assert!(other.lookup_lease(&lease).await.unwrap().is_some());
    assert!(other.lookup_accessor(&minted.accessor).await.unwrap().is_some());
    vault.revoke_accessor(&minted.accessor).await.unwrap();
    until("the user is gone", || postgres.made_users().unwrap().is_empty()).unwrap();
    // The server forgets a lease a moment after its user has gone.
    for _ in 0..100 {
        if other.lookup_lease(&lease).await.unwrap().is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(other.lookup_lease(&lease).await.unwrap(), None);
    assert!(other.lookup_accessor(&minted.accessor).await.unwrap().is_none());
}
