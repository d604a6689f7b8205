//! A whole daemon at a server: what it does at its start and its end, and what it says.

use crate::vault::{Rig, Storage};
use crate::wrapping::{PATH, wrap};
use crate::{STEP, rig, server, text};
use serde_json::Value;
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
        let policy = "package ampoule.authz\ndefault allow := false\n";
        std::fs::write(place.path("policy/authz.rego"), policy).unwrap();
        let config = "dev = true\nstate = \"state\"\n[listen]\nunix = \"agent.sock\"\n[runner]\nsocket = \"runner.sock\"\n\
             state = \"runner\"\n[metrics]\nlisten = \"./metrics.sock\"\n[secrets]\nfile = \"secrets.toml\"\n\
             [log]\nlevel = \"info\"\n";
        std::fs::write(place.path("agent.toml"), config).unwrap();
        let secrets = format!("format = 1\n[server.main]\n{}{login}{STEP}", server(rig));
        std::fs::write(place.path("secrets.toml"), secrets).unwrap();
        std::fs::set_permissions(place.path("secrets.toml"), PermissionsExt::from_mode(0o640)).unwrap();
        place
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

    /// Ends it by SIGTERM; says how long that took.
    fn end(mut self) -> Duration {
        let begun = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
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
