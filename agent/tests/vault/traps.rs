//! What must never get a token: whoever a server sends to, a proxy, another authority's server, the environment.

use crate::certificates::Authority;
use crate::vault::{LOOPBACK, Storage};
use crate::{STEP, approle, client, config, meta, rig, server};
use ampoule_agent::vault::{Kind, ServerState, Vault, VaultError};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Listens, answers everything alike, and keeps what came.
pub(crate) struct Trap {
    pub(crate) port: u16,
    came: Arc<Mutex<Vec<String>>>,
}

impl Trap {
    /// `answer`: the whole of it, from the status line on.
    pub(crate) fn answering(answer: impl Fn() -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let came = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&came);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                kept.lock().unwrap().push(read_head(&mut stream));
                let _ = stream.write_all(&answer());
            }
        });
        Self { port, came }
    }

    pub(crate) fn status(status: u16, more: &str) -> Self {
        let text = format!("HTTP/1.1 {status} x\r\nContent-Length: 2\r\nConnection: close\r\n{more}\r\n{{}}");
        Self::answering(move || text.clone().into_bytes())
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn came(&self) -> Vec<String> {
        self.came.lock().unwrap().clone()
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut head = Vec::new();
    let mut some = [0; 4096];
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut some) {
            Ok(count) if count > 0 => head.extend_from_slice(&some[..count]),
            _ => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// A client of these addresses without TLS, with a token of a file.
pub(crate) fn plain(dir: &std::path::Path, addresses: &[String]) -> Vault {
    use std::os::unix::fs::PermissionsExt;
    let file = dir.join("token");
    std::fs::write(&file, "s.canary-of-the-agent").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "addresses = {addresses:?}\nloopback_without_tls = true\ntimeout = \"1s\"\nbudget = \"3s\"\nwait_for_vault = \"2s\"\n\
         login.token = {{ file = {file:?} }}\n{STEP}"
    );
    Vault::new(config(&text), None).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_to_an_address_that_is_not_configured_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    for status in [301, 302, 303, 307, 308] {
        let trap = Trap::status(200, "");
        let server =
            Trap::status(status, &format!("Location: {}/v1/auth/token/lookup-self\r\n", trap.address()));
        let error = plain(dir.path(), &[server.address()]).ready().await.unwrap_err();
        assert!(matches!(&error, VaultError::Redirected { to, .. } if *to == trap.address()), "{error:?}");
        assert!(
            server.came()[0].contains("s.canary-of-the-agent"),
            "the good case: the server got the token"
        );
        assert!(trap.came().is_empty(), "{status}: {:?}", trap.came());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirect_to_a_configured_address_is_followed_once() {
    let rig = rig(Storage::Memory);
    let standby = Trap::status(307, &format!("Location: {}/v1/elsewhere\r\n", rig.address()));
    let both = server(&rig).replace("addresses = [", &format!("addresses = [{:?}, ", standby.address()));
    let text = format!("loopback_without_tls = true\n{both}{}{STEP}", approle(&rig));
    let vault = Vault::new(config(&text), None).unwrap();
    // What is asked there is what was asked here, whatever path it named.
    vault.mint(None, &meta()).await.unwrap();
    assert_eq!(standby.came().len(), 1);

    // Two that send to each other.
    let dir = tempfile::tempdir().unwrap();
    let port = Arc::new(Mutex::new(0_u16));
    let to = Arc::clone(&port);
    let first = Trap::answering(move || {
        let to = *to.lock().unwrap();
        format!("HTTP/1.1 307 x\r\nContent-Length: 0\r\nConnection: close\r\nLocation: http://127.0.0.1:{to}/\r\n\r\n")
            .into_bytes()
    });
    let other = Trap::status(307, &format!("Location: {}/\r\n", first.address()));
    *port.lock().unwrap() = other.port;
    let begun = Instant::now();
    let error = plain(dir.path(), &[first.address(), other.address()]).ready().await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5), "{error}");
    assert!(matches!(error.kind(), Kind::Redirected | Kind::Unavailable), "{error}");
    assert!(first.came().len() + other.came().len() < 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_of_another_authority_gets_nothing() {
    let rig = rig(Storage::Memory);
    let other = rig.path("other.pem");
    std::fs::write(&other, Authority::new("another").unwrap().pem()).unwrap();
    let login = approle(&rig);
    let text = server(&rig).replace(&format!("{:?}", rig.ca()), &format!("{other:?}"));
    let error = Vault::new(config(&format!("{text}{login}{STEP}")), None).unwrap().ready().await.unwrap_err();
    assert_eq!(error.state(), Some(ServerState::Unreachable), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    let logins = rig
        .audit()
        .unwrap()
        .into_iter()
        .filter(|entry| entry.pointer("/request/path").is_some_and(|path| path == "auth/approle/login"));
    assert_eq!(logins.count(), 0);
    // The good case passes.
    Vault::new(config(&format!("{}{login}{STEP}", server(&rig))), None).unwrap().ready().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_without_an_end_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let endless = Trap::answering(|| {
        let mut answer = b"HTTP/1.1 200 x\r\nConnection: close\r\n\r\n{\"data\": {\"a\": \"".to_vec();
        answer.resize(3 << 20, b'a');
        answer
    });
    let error = plain(dir.path(), &[endless.address()]).ready().await.unwrap_err();
    assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
    let claimed = Trap::status(200, "Content-Length: 99999999999\r\n");
    assert!(plain(dir.path(), &[claimed.address()]).ready().await.is_err());
}

/// What the poisoned process is told besides its environment.
const RIG: &str = "AMPOULE_TEST_VAULT";

#[tokio::test(flavor = "multi_thread")]
async fn poisoned_environment_changes_nothing() {
    let rig = rig(Storage::Memory);
    let trap = Trap::status(200, "");
    let other = rig.path("other.pem");
    let stranger = Authority::new("another").unwrap();
    std::fs::write(&other, stranger.pem()).unwrap();
    let good = format!("{}{}{STEP}", server(&rig), approle(&rig));
    let wrong = good.replace(&format!("{:?}", rig.ca()), &format!("{other:?}"));
    for (text, is_good) in [(good, "true"), (wrong, "false")] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "traps::poisoned_process", "--ignored", "--nocapture"]);
        child.env(RIG, text).env("AMPOULE_TEST_GOOD", is_good);
        for name in
            ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "VAULT_ADDR"]
        {
            child.env(name, trap.address());
        }
        child.env("VAULT_SKIP_VERIFY", "").env("VAULT_TOKEN", "s.poison").env("VAULT_NAMESPACE", "poison");
        child.env("VAULT_CACERT", rig.ca()).env("SSL_CERT_FILE", rig.ca()).env_remove("NO_PROXY");
        let ran = child.output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(
            ran.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&ran.stderr)
        );
    }
    assert!(trap.came().is_empty(), "{:?}", trap.came());
    let audit = rig.audit().unwrap();
    assert!(audit.iter().any(|entry| {
        entry.pointer("/request/path").is_some_and(|path| path == "auth/token/create/ampoule-step-app")
    }));
}

/// The other process of the test above, which starts it.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "started by poisoned_environment_changes_nothing"]
async fn poisoned_process() {
    let Ok(text) = std::env::var(RIG) else { return };
    let vault = Vault::new(config(&text), None).unwrap();
    let minted = vault.mint(None, &meta()).await;
    assert_eq!(minted.is_ok().to_string(), std::env::var("AMPOULE_TEST_GOOD").unwrap(), "{minted:?}");
    // It must be its configuration that it obeyed, and not an error of another kind.
    assert!(minted.is_ok() || minted.is_err_and(|e| e.state() == Some(ServerState::Unreachable)));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_printed_shows_a_token_or_a_value() {
    let rig = rig(Storage::Memory);
    let vault = client(&rig);
    let minted = vault.mint(None, &meta()).await.unwrap();
    let read = ampoule_agent::vault::Read::Kv2 {
        mount: "secret".to_owned(),
        path: "app/npm".to_owned(),
        version: None,
    };
    let secrets = vault.read(&minted.token, &read).await.unwrap();
    let secret_id = std::fs::read_to_string(rig.path("secret-id")).unwrap();
    let shown = format!("{vault:?} {minted:?} {secrets:?} {:?}", secrets.data.field("token"));
    assert!(!shown.contains("canary") && !shown.contains(&secret_id), "{shown}");
    assert!(!shown.contains("s.") && !shown.contains(minted.accessor.as_str()), "{shown}");
}
