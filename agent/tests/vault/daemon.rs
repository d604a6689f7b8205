//! A whole daemon at a server: what it does at its start and its end, and what it says.

use crate::vault::{Rig, Storage};
use crate::wrapping::{PATH, wrap};
use crate::{STEP, rig, server, text};
use ampoule_agent::client::{Client, Credentials, Server as ClientOf};
use ampoule_proto::v1::{CheckSecretsRequest, Finding, FindingState};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(40);

/// Where daemons are configured, one after another.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// With a `secrets.toml` of one server and this login.
    fn new(rig: &Rig, login: &str) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir(place.path("policy")).unwrap();
        let policy =
            "package ampoule.authz\ndefault allow := false\nallow if input.caller.means == \"peer\"\n";
        std::fs::write(place.path("policy/authz.rego"), policy).unwrap();
        let config = "dev = true\nstate = \"state\"\n[listen]\nunix = \"agent.sock\"\n[runner]\nsocket = \"runner.sock\"\n\
             state = \"runner\"\n[metrics]\nlisten = \"./metrics.sock\"\n[secrets]\nfile = \"secrets.toml\"\n\
             [log]\nlevel = \"info\"\n";
        std::fs::write(place.path("agent.toml"), config).unwrap();
        let secrets = format!("format = 1\n[server.main]\n{}{login}{STEP}", server(rig));
        place.secrets(&secrets);
        place
    }

    fn secrets(&self, text: &str) {
        std::fs::write(self.path("secrets.toml"), text).unwrap();
        std::fs::set_permissions(self.path("secrets.toml"), PermissionsExt::from_mode(0o640)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self) -> Daemon<'_> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ampouled"));
        command.arg("--config").arg(self.path("agent.toml"));
        command.env_remove("NOTIFY_SOCKET").env_remove("CREDENTIALS_DIRECTORY");
        let log = std::fs::File::create(self.path("log")).unwrap();
        Daemon { place: self, child: command.stderr(log).stdin(Stdio::null()).spawn().unwrap() }
    }
}

struct Daemon<'p> {
    place: &'p Place,
    child: Child,
}

impl Daemon<'_> {
    fn log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.place.path("log")).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The first line with this text, as soon as it is there.
    fn says(&self, what: &str) -> String {
        until(what, || self.log().iter().map(Value::to_string).find(|line| line.contains(what)))
    }

    fn metrics(&self) -> Option<String> {
        let mut stream = UnixStream::connect(self.place.path("metrics.sock")).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        Some(page)
    }

    fn until_metric(&self, line: &str) {
        until(line, || self.metrics().filter(|page| page.lines().any(|l| l == line)));
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Has it read its configuration again, and says what it said of that.
    fn reload(&self, says: &str) {
        let before = self.log().len();
        self.signal(rustix::process::Signal::HUP);
        until(says, || self.log().iter().skip(before).find(|line| line.to_string().contains(says)).map(drop));
    }

    /// What `ampoule secrets check` is answered of the configuration.
    async fn configuration(&self) -> Finding {
        let socket = ClientOf::Unix(self.place.path("agent.sock"));
        let client = Client::new(&socket, &Credentials::default()).unwrap();
        client.check_secrets(&CheckSecretsRequest::default()).await.unwrap().configuration.unwrap()
    }

    /// Ends it by SIGTERM; says how long that took.
    fn end(mut self) -> Duration {
        let begun = Instant::now();
        self.signal(rustix::process::Signal::TERM);
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        begun.elapsed()
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(found) = found() {
            return found;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("not within {PATIENCE:?}: {what}");
}

const UP: &str = "ampoule_secret_server_up{server=\"main\"} 1";
const AWAY: &str = "ampoule_secret_server_up{server=\"main\"} 0";

#[tokio::test(flavor = "multi_thread")]
async fn restart_with_a_spent_wrapping_token_is_said_at_once_and_mended_by_a_new_one() {
    let rig = rig(Storage::Memory);
    let id = text(&rig.ask("GET", "auth/approle/role/ampoule/role-id", None).unwrap(), "/data/role_id");
    let file = rig.private("wrapped", wrap(&rig).token.expose()).unwrap();
    let login = format!("login.approle = {{ role_id = {id:?}, secret_id = {file:?}, wrapped = {PATH:?} }}\n");
    let place = Place::new(&rig, &login);
    let first = place.start();
    first.says("logged in at the server of secrets");
    first.until_metric(UP);
    first.end();

    let second = place.start();
    let said = second.says("steps cannot have secrets of this server now");
    for text in [
        "WARN",
        "\"main\"",
        "was used by this daemon before it was restarted",
        "write a new one to",
        "wrapped",
    ] {
        assert!(said.contains(text), "{text}: {said}");
    }
    assert!(!said.contains("intercepted"), "{said}");
    second.until_metric(AWAY);
    // As an operator is told: no reload, no restart.
    rig.private("wrapped", wrap(&rig).token.expose()).unwrap();
    second.until_metric(UP);
    second.says("logged in at the server of secrets");
    second.end();

    // Somebody else was first.
    let taken = wrap(&rig);
    rig.private("wrapped", taken.token.expose()).unwrap();
    crate::client(&rig).unwrap(&taken).await.unwrap();
    let third = place.start();
    let said = third.says("steps cannot have secrets of this server now");
    assert!(said.contains("possibly intercepted") && said.contains("if it was not, somebody else"), "{said}");
    third.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_is_away_holds_no_start_up_and_its_cause_is_said() {
    let rig = rig(Storage::Memory);
    let place = Place::new(&rig, &crate::approle(&rig));
    rig.freeze().unwrap();
    let begun = Instant::now();
    let daemon = place.start();
    daemon.says("\"ready\"");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let said = daemon.says("steps cannot have secrets of this server now");
    assert!(said.contains("hung") && said.contains("it is tried again"), "{said}");
    rig.thaw().unwrap();
    daemon.until_metric(UP);
    rig.seal().unwrap();
    daemon.until_metric(AWAY);
    daemon.says("sealed");
    daemon.end();
}

/// How many logins of the agent's there are.
fn logins(rig: &Rig) -> usize {
    let all = rig.ask("LIST", "auth/token/accessors", None).unwrap();
    let all = all.pointer("/data/keys").and_then(Value::as_array).cloned().unwrap_or_default();
    let is_agents = |accessor: &&Value| {
        let found = rig.ask("POST", "auth/token/lookup-accessor", Some(&json!({"accessor": accessor})));
        found.is_ok_and(|found| {
            found["data"]["policies"].as_array().is_some_and(|of| of.contains(&json!("ampoule-agent")))
        })
    };
    all.iter().filter(is_agents).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_own_token_ends_with_its_daemon_and_with_a_reload_that_replaces_it() {
    let rig = rig(Storage::Memory);
    let place = Place::new(&rig, &crate::approle(&rig));
    let daemon = place.start();
    daemon.until_metric(UP);
    assert_eq!(logins(&rig), 1);
    let text = std::fs::read_to_string(place.path("secrets.toml")).unwrap();
    place.secrets(&text.replace("1500ms", "1600ms"));
    daemon.reload("the configuration was read again");
    until("the client before has logged out, and the next is logged in", || {
        let ended =
            rig.audit().unwrap().iter().any(|entry| {
                entry.pointer("/request/path").is_some_and(|path| path == "auth/token/revoke-self")
            });
        (ended && logins(&rig) == 1).then_some(())
    });
    assert!(daemon.end() < Duration::from_secs(5));
    assert_eq!(logins(&rig), 0, "a token outlives its daemon");
    // A server that hangs holds no end up.
    let daemon = place.start();
    daemon.until_metric(UP);
    rig.freeze().unwrap();
    let took = daemon.end();
    assert!(took < Duration::from_secs(5), "{took:?}");
    rig.thaw().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_that_what_it_looks_at_is_not_what_the_files_say() {
    let rig = rig(Storage::Memory);
    let place = Place::new(&rig, &crate::approle(&rig));
    let daemon = place.start();
    daemon.until_metric(UP);
    let found = daemon.configuration().await;
    assert_eq!(found.state(), FindingState::Ok, "{found:?}");
    let good = std::fs::read_to_string(place.path("secrets.toml")).unwrap();
    place.secrets(&format!("{good}[server.other]\nnothing = 1\n"));
    daemon.reload("was not taken");
    let found = daemon.configuration().await;
    assert_eq!((found.state(), found.passes), (FindingState::Failed, false), "{found:?}");
    for text in ["was not taken", "secrets.file", "nothing", "SIGHUP", "T"] {
        assert!(found.detail.contains(text), "{text}: {}", found.detail);
    }
    place.secrets(&good);
    daemon.reload("the configuration was read again");
    assert_eq!(daemon.configuration().await.state(), FindingState::Ok);
    daemon.end();
}
