//! What came wrapped is unwrapped once, and only if it was made where it must have been made.

use crate::vault::{Rig, Storage};
use crate::{STEP, client, config, meta, rig, server, text};
use ampoule_agent::vault::{Kind, Memory, Secret, Vault, Wrapped, by};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) const PATH: &str = "auth/approle/role/ampoule/secret-id";

pub(crate) fn wrap(rig: &Rig) -> Wrapped {
    let made =
        rig.ask_as(rig.root_token(), &["X-Vault-Wrap-TTL: 5m"], "POST", PATH, Some(&json!({}))).unwrap();
    let token = Secret::new(text(&made.1, "/wrap_info/token").into_bytes());
    Wrapped { token, creation_path: PATH.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrapped_answer_is_unwrapped_once_and_the_second_time_is_a_security_event() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    let wrapped = wrap(&rig);
    assert!(vault.unwrap(&wrapped).await.unwrap().field("secret_id").is_some());
    let error = vault.unwrap(&wrapped).await.unwrap_err();
    assert!(error.is_security_event() && error.kind() == Kind::Intercepted && !error.retryable(), "{error}");
    assert!(error.to_string().contains("possibly intercepted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_that_somebody_wrapped_again_is_not_unwrapped() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    // Whoever took it wraps what was in it again, and hands that on.
    let taken = vault.unwrap(&wrap(&rig)).await.unwrap();
    let body: serde_json::Value = serde_json::from_slice(taken.whole().expose()).unwrap();
    let again =
        rig.ask_as(rig.root_token(), &["X-Vault-Wrap-TTL: 5m"], "POST", "sys/wrapping/wrap", Some(&body));
    let token = text(&again.unwrap().1, "/wrap_info/token");
    let wrapped = Wrapped { token: Secret::new(token.clone().into_bytes()), creation_path: PATH.to_owned() };
    let error = vault.unwrap(&wrapped).await.unwrap_err();
    assert!(error.is_security_event() && error.to_string().contains("sys/wrapping/wrap"), "{error}");
    // It was not unwrapped: it is evidence.
    let (status, _) =
        rig.ask_as("", &[], "POST", "sys/wrapping/lookup", Some(&json!({"token": token}))).unwrap();
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn approle_with_a_wrapped_secret_id_logs_in_again_without_unwrapping_again() {
    let rig = rig(Storage::Memory);
    let id = text(&rig.ask("GET", "auth/approle/role/ampoule/role-id", None).unwrap(), "/data/role_id");
    let file = rig.private("wrapped", wrap(&rig).token.expose()).unwrap();
    let login =
        format!("login.approle = {{ role_id = {id:?}, secret_id = {file:?}, wrapped = {PATH:?} }}\n{STEP}");
    let vault = Vault::new(config(&format!("{}{login}", server(&rig))), None).unwrap();
    vault.mint(None, &meta()).await.unwrap();
    rig.ask("PUT", "sys/leases/revoke-prefix/auth/approle/login", None).unwrap();
    vault.mint(None, &meta()).await.unwrap();
    // Another process finds it spent.
    let other = Vault::new(config(&format!("{}{login}", server(&rig))), None).unwrap();
    assert!(other.ready().await.unwrap_err().is_security_event());
    // A new one in the file is unwrapped in its stead.
    rig.private("wrapped", wrap(&rig).token.expose()).unwrap();
    other.ready().await.unwrap();
}

/// A text of a configuration that logs in with what is in a file, through somebody slow.
fn by_file(rig: &Rig, file: &std::path::Path, port: u16) -> String {
    let id = text(&rig.ask("GET", "auth/approle/role/ampoule/role-id", None).unwrap(), "/data/role_id");
    let server = server(rig).replace(&rig.address(), &format!("https://127.0.0.1:{port}"));
    format!(
        "{server}login.approle = {{ role_id = {id:?}, secret_id = {file:?}, wrapped = {PATH:?} }}\n{STEP}"
    )
}

/// Stands between a client and a server, of which each packet takes longer than all before: what comes late in a connection is what is cut.
fn slow(rig: &Rig, first: Duration) -> u16 {
    let (listener, to) = (TcpListener::bind("127.0.0.1:0").unwrap(), rig.address().replace("https://", ""));
    let port = listener.local_addr().unwrap().port();
    let copy = |mut from: TcpStream, mut to: TcpStream, mut more: Duration| {
        move || {
            let mut bytes = vec![0; 64 << 10];
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                std::thread::sleep(more);
                more = (more * 3).min(Duration::from_millis(100));
                if to.write_all(&bytes[..read]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        }
    };
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(&to).unwrap());
            let (from, back) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(copy(from, back, Duration::ZERO));
            std::thread::spawn(copy(server, client, first));
        }
    });
    port
}

/// How many tokens there are by this login.
fn logins(rig: &Rig) -> usize {
    let all = rig.ask("LIST", "auth/token/accessors", None).unwrap();
    let of = |accessor: &serde_json::Value| {
        rig.ask("POST", "auth/token/lookup-accessor", Some(&json!({ "accessor": accessor })))
    };
    let all = all.pointer("/data/keys").unwrap().as_array().unwrap().clone();
    all.iter()
        .filter_map(|one| of(one).ok())
        .filter(|of| text(of, "/data/path") == "auth/approle/login")
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn login_outlives_whoever_began_it_and_loses_neither_its_secret_id_nor_its_token() {
    let rig = rig(Storage::Memory);
    let port = slow(&rig, Duration::from_millis(2));
    let (mut cut, mut whole) = (0, false);
    for after in (0..).map(|number| Duration::from_millis(number * 10)) {
        let file = rig.private("wrapped", wrap(&rig).token.expose()).unwrap();
        let before = logins(&rig);
        let vault = Vault::new(config(&by_file(&rig, &file, port)), None).unwrap();
        // Dropped, or at the end of its time.
        let is_dropped = cut % 2 == 0;
        let done = if is_dropped {
            tokio::time::timeout(after, vault.ready()).await.is_ok()
        } else {
            by((Instant::now() + after).into(), vault.ready()).await.is_ok()
        };
        whole |= done && is_dropped;
        cut += 1;
        vault.ready().await.unwrap_or_else(|e| panic!("after {after:?}: {e}"));
        assert_eq!(logins(&rig), before + 1, "after {after:?}");
        vault.log_out().await.unwrap();
        if whole && done {
            return;
        }
        assert!(cut < 200, "none was soon enough");
    }
}

/// Remembers nothing, and takes its time.
struct Hangs(Mutex<std::sync::mpsc::Receiver<()>>);

impl Memory for Hangs {
    fn used(&self, _: &str) {
        let _ = self.0.lock().unwrap().recv_timeout(Duration::from_secs(20));
    }

    fn has_used(&self, _: &str) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_that_hangs_when_a_secret_id_was_unwrapped_stops_no_login() {
    let rig = rig(Storage::Memory);
    let file = rig.private("wrapped", wrap(&rig).token.expose()).unwrap();
    let (frees, hangs) = std::sync::mpsc::channel();
    let text = by_file(&rig, &file, slow(&rig, Duration::ZERO));
    let vault = Vault::new(config(&text), None).unwrap().remembering(Arc::new(Hangs(Mutex::new(hangs))));
    let begun = Instant::now();
    vault.ready().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop(frees);
}
