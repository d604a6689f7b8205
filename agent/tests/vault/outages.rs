//! Sealed, stopped, killed, limited, away: nothing hangs, and what can be done is done.

use crate::traps::{Trap, plain};
use crate::vault::{LOOPBACK, Storage};
use crate::{STEP, approle, client, config, meta, rig, server};
use ampoule_agent::vault::{Kind, Read, ServerState, Vault, VaultError};
use serde_json::json;
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// The budget of the tests' clients, and what a busy machine may add.
const BOUND: Duration = Duration::from_secs(9);

async fn fails(vault: &Vault, state: ServerState) {
    let begun = Instant::now();
    let error = vault.mint(None, &meta()).await.unwrap_err();
    assert_eq!(error.state(), Some(state), "{error}");
    assert!(error.retryable() && begun.elapsed() < BOUND, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_server_is_waited_for_and_named() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    let minted = vault.mint(None, &meta()).await.unwrap();
    rig.seal().unwrap();
    assert_eq!(vault.states().await, [(rig.address(), ServerState::Sealed)]);
    fails(&vault, ServerState::Sealed).await;
    let revoke = vault.revoke_accessor(&minted.accessor).await.unwrap_err();
    assert!(revoke.retryable(), "{revoke}");
    // Somebody gives the key while new steps wait.
    let fresh = client_of_now(&rig);
    let waits = tokio::spawn(async move {
        let ready = fresh.ready().await;
        (fresh, ready)
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waits.is_finished());
    rig.unseal().unwrap();
    let (fresh, ready) = waits.await.unwrap();
    ready.unwrap();
    assert_eq!(fresh.states().await, [(rig.address(), ServerState::Up)]);
    fresh.revoke_accessor(&minted.accessor).await.unwrap();
}

/// A client of the secret id that was made before.
fn client_of_now(rig: &crate::vault::Rig) -> Vault {
    let role = std::fs::read_to_string(rig.path("role-id")).unwrap();
    let login =
        format!("login.approle = {{ role_id = {role:?}, secret_id = {:?} }}\n", rig.path("secret-id"));
    Vault::new(config(&format!("{}{login}{STEP}", server(rig))), None).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_server_hangs_nobody() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    vault.ready().await.unwrap();
    rig.freeze().unwrap();
    fails(&vault, ServerState::Hung).await;
    assert_eq!(vault.states().await, [(rig.address(), ServerState::Hung)]);
    rig.thaw().unwrap();
    vault.mint(None, &meta()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn next_address_is_asked_when_one_is_away_and_states_are_told_apart() {
    let rig = rig(Storage::Memory);
    let away = TcpListener::bind((LOOPBACK, 0)).unwrap();
    let gone = format!("https://127.0.0.1:{}", away.local_addr().unwrap().port());
    drop(away);
    let login = approle(&rig);
    let text = server(&rig).replace("addresses = [", &format!("addresses = [{gone:?}, "));
    let vault = Vault::new(config(&format!("{text}{login}{STEP}")), None).unwrap();
    let begun = Instant::now();
    vault.mint(None, &meta()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(
        vault.states().await,
        [(gone.clone(), ServerState::Unreachable), (rig.address(), ServerState::Up)]
    );

    // One that fails is asked once, and whoever answered is asked from then on.
    let sealed = Trap::status(503, "");
    let both = server(&rig).replace("addresses = [", &format!("addresses = [{:?}, ", sealed.address()));
    let vault =
        Vault::new(config(&format!("loopback_without_tls = true\n{both}{login}{STEP}")), None).unwrap();
    for _ in 0..3 {
        vault.mint(None, &meta()).await.unwrap();
    }
    assert_eq!(sealed.came().len(), 1);

    let only = server(&rig).replace(&format!("{:?}", rig.address()), &format!("{gone:?}"));
    fails(&Vault::new(config(&format!("{only}{login}{STEP}")), None).unwrap(), ServerState::Unreachable)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_slows_down_and_fails_only_where_the_time_is_over() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    let minted = vault.mint(None, &meta()).await.unwrap();
    let quota = json!({"rate": 2.0, "interval": "1s", "path": "secret/"});
    rig.ask("POST", "sys/quotas/rate-limit/test", Some(&quota)).unwrap();
    let read = Read::Kv2 { mount: "secret".to_owned(), path: "app/npm".to_owned(), version: None };
    vault.renew_accessor(&minted.accessor, Duration::from_secs(120)).await.unwrap();
    let begun = Instant::now();
    for _ in 0..6 {
        vault.read(&minted.token, &read).await.unwrap();
    }
    assert!(begun.elapsed() > Duration::from_secs(1), "the quota did not hold");
    let quota = json!({"rate": 1.0, "interval": "1h", "path": "secret/"});
    rig.ask("POST", "sys/quotas/rate-limit/test", Some(&quota)).unwrap();
    let _ = vault.read(&minted.token, &read).await;
    let begun = Instant::now();
    let error = vault.read(&minted.token, &read).await.unwrap_err();
    assert_eq!(error.state(), Some(ServerState::Limited), "{error}");
    assert!(begun.elapsed() < BOUND);
    // It is that path's quota, and others are served.
    vault.mint(None, &meta()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_asked_once_and_failures_again() {
    let dir = tempfile::tempdir().unwrap();
    for (status, kind) in [(400, Kind::Login), (404, Kind::Login), (403, Kind::Login), (405, Kind::Login)] {
        let server = Trap::status(status, "");
        let error = plain(dir.path(), &[server.address()]).ready().await.unwrap_err();
        assert_eq!((error.kind(), server.came().len()), (kind, 1), "{status}: {error}");
    }
    for (status, state) in [
        (412, ServerState::Failing),
        (429, ServerState::Limited),
        (473, ServerState::Standby),
        (500, ServerState::Failing),
        (501, ServerState::Uninitialized),
        (503, ServerState::Sealed),
    ] {
        let server = Trap::status(status, "");
        let vault = plain(dir.path(), &[server.address()]);
        let error = vault.ready().await.unwrap_err();
        assert_eq!(error.state(), Some(state), "{status}: {error}");
        let tries = server.came().len();
        assert!((2..60).contains(&tries), "{status}: {tries} tries");
        assert!(matches!(error, VaultError::Unavailable { tries: counted, .. } if counted as usize == tries));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_fails_is_left_alone_by_all_tasks_together() {
    let dir = tempfile::tempdir().unwrap();
    let server = Trap::status(503, "");
    let vault = std::sync::Arc::new(plain(dir.path(), &[server.address()]));
    let asked: Vec<_> = (0..40)
        .map(|_| {
            let vault = vault.clone();
            tokio::spawn(async move { vault.unwrap(&wrapped()).await.unwrap_err() })
        })
        .collect();
    for task in asked {
        let error = task.await.unwrap();
        assert_eq!(error.state(), Some(ServerState::Sealed), "{error}");
    }
    // Each of them alone would ask some ten times within its budget.
    let came = server.came().len();
    assert!(came < 120, "{came} requests");
}

fn wrapped() -> ampoule_agent::vault::Wrapped {
    let token = ampoule_agent::vault::Secret::new(b"s.wrapping".to_vec());
    ampoule_agent::vault::Wrapped { token, creation_path: "x".to_owned() }
}
