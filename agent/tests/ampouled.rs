//! `ampouled` as a process: exit statuses, signals, what systemd is told, and what it logs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

#[path = "../../integration/src/certificates.rs"]
#[allow(unreachable_pub, dead_code)]
mod certificates;

use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("policy")).unwrap();
        let policy =
            "package ampoule.authz\ndefault allow := false\nallow if input.caller.means == \"peer\"\n";
        std::fs::write(dir.path().join("policy/authz.rego"), policy).unwrap();
        let place = Self { dir };
        place.write("[log]\nlevel = \"info\"\n");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A configuration for development, with more at its end.
    fn write(&self, more: &str) {
        let least = "dev = true\nstate = \"state\"\n[listen]\nunix = \"agent.sock\"\n\
            [runner]\nsocket = \"runner.sock\"\nstate = \"runner\"\n[metrics]\nlisten = \"./metrics.sock\"\n";
        std::fs::write(self.path("agent.toml"), format!("{least}{more}")).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ampouled"));
        command.arg("--config").arg(self.path("agent.toml"));
        command.env_remove("NOTIFY_SOCKET").env_remove("CREDENTIALS_DIRECTORY");
        command
    }

    fn says(&self, argument: &str) -> (Option<i32>, String, String) {
        let Output { status, stdout, stderr } = self.command().arg(argument).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (status.code(), text(stdout), text(stderr))
    }
}

/// A daemon, and what it tells systemd.
struct Daemon {
    child: Child,
    systemd: UnixDatagram,
}

impl Daemon {
    fn start(place: &Place) -> Self {
        Self::start_with(place, |_| {})
    }

    fn start_with(place: &Place, change: impl FnOnce(&mut Command)) -> Self {
        let address = place.path("notify");
        let _ = std::fs::remove_file(&address);
        let systemd = UnixDatagram::bind(&address).unwrap();
        systemd.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut command = place.command();
        command.env("NOTIFY_SOCKET", &address).stderr(Stdio::piped());
        change(&mut command);
        let daemon = Self { child: command.spawn().unwrap(), systemd };
        daemon.told("READY=1");
        daemon
    }

    /// Waits until systemd was told this line.
    fn told(&self, line: &str) {
        let begun = Instant::now();
        let mut bytes = [0; 4096];
        while begun.elapsed() < PATIENCE {
            let count = self.systemd.recv(&mut bytes).unwrap();
            if String::from_utf8_lossy(&bytes[..count]).lines().any(|l| l.starts_with(line)) {
                return;
            }
        }
        panic!("systemd was never told {line}");
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The exit status and the log.
    fn end(mut self) -> (Option<i32>, Vec<serde_json::Value>) {
        self.signal(rustix::process::Signal::TERM);
        self.told("STOPPING=1");
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        let status = self.child.wait().unwrap().code();
        (status, log.lines().map(|line| serde_json::from_str(line).expect(line)).collect())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn page(socket: &Path, path: &str) -> String {
    use std::io::Write;
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn bad_configuration_ends_with_64_and_its_place_before_anything_is_made() {
    let place = Place::new();
    place.write("[limits]\nqeue = 1\n");
    for argument in ["--check-config", "--print-config"] {
        let (status, stdout, stderr) = place.says(argument);
        assert_eq!((status, stdout.as_str()), (Some(64), ""));
        assert!(
            stderr.contains("agent.toml:11:1: limits.qeue: unknown key; did you mean \"queue\"?"),
            "{stderr}"
        );
    }
    let output = place.command().output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(!place.path("state").exists());
    let (status, _, stderr) = place.says("--chek-config");
    assert_eq!(status, Some(64), "{stderr}");
}

#[test]
fn check_looks_at_every_file_that_is_named() {
    let place = Place::new();
    assert_eq!(place.says("--check-config").0, Some(0));
    assert!(!place.path("state").exists());
    let cases = [
        ("[signing]\nkey = \"no.pem\"\n", "no.pem cannot be read: No such file"),
        ("[signing]\ncredential = \"k\"\n", "add LoadCredential=k:FILE to the unit"),
        ("[tls]\ncertificate = \"c\"\nkey = \"k\"\n", "tls.certificate: "),
        ("[traces]\nendpoint = \"https://c.example:1\"\nca = \"no-ca.pem\"\n", "traces.ca: "),
    ];
    for (more, reason) in cases {
        place.write(more);
        let (status, _, stderr) = place.says("--check-config");
        assert_eq!(status, Some(64), "{more}");
        assert!(stderr.contains(reason), "{stderr} is not {reason}");
    }
    place.write("");
    std::fs::write(place.path("policy/authz.rego"), "package ampoule.authz\nallow := yes\n").unwrap();
    assert!(place.says("--check-config").2.contains("policy: "));
    std::fs::remove_dir_all(place.path("policy")).unwrap();
    assert!(place.says("--check-config").2.contains("policy: "));
}

#[test]
fn check_looks_at_the_files_that_secrets_need_as_the_daemon_will() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    place.write("[secrets]\nfile = \"secrets.toml\"\n");
    let private = |name: &str, text: &str, mode: u32| {
        std::fs::write(place.path(name), text).unwrap();
        std::fs::set_permissions(place.path(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    let check = |more: &str| {
        private("secrets.toml", &format!("format = 1\n{more}"), 0o640);
        let (status, _, stderr) = place.says("--check-config");
        (status, stderr)
    };
    let server = |ca: &str, login: &str| {
        format!("[server.main]\naddresses = [\"https://v.example\"]\nca = {ca:?}\nlogin.{login}\n")
    };
    let approle = |id: &str| format!("approle = {{ role_id = \"r\", secret_id = {id:?} }}");
    let rule = |file: &str| format!("[[secret]]\nproject = \"web\"\nname = \"npm\"\nfile = {file:?}\n");
    std::fs::write(place.path("ca.pem"), certificates::Authority::new("vault").unwrap().pem()).unwrap();
    private("id", "s3cr3t-id\n", 0o600);
    private("npm", "12345678", 0o600);
    let good = format!("{}{}", server("ca.pem", &approle("id")), rule("npm"));
    assert_eq!(check(&good), (Some(0), String::new()), "the good case");
    private("open", "s3cr3t-id\n", 0o644);
    private("empty", "", 0o600);
    private("garbage.pem", "no certificate\n", 0o644);
    private("short", "1234567\n\n", 0o600);
    for (text, reason) in [
        (server("nope.pem", &approle("id")), "nope.pem"),
        (server("garbage.pem", &approle("id")), "no certificate in PEM"),
        (server("ca.pem", &approle("none")), "login.approle.secret_id: "),
        (server("ca.pem", &approle("open")), "chmod 600"),
        (server("ca.pem", &approle("empty")), "one line of visible ASCII"),
        (server("ca.pem", "token = { file = \"none\" }"), "login.token.file: "),
        (server("ca.pem", "kubernetes = { role = \"r\", token = \"none\" }"), "login.kubernetes.token: "),
        (
            server("ca.pem", "cert = { role = \"r\", certificate = \"none\", key = \"none\" }"),
            "login.cert.certificate: ",
        ),
        (rule("none"), "secret npm of project web: "),
        (rule("open"), "chmod 600"),
        (rule("short"), "fewer than 8 bytes"),
    ] {
        let (status, stderr) = check(&text);
        assert_eq!(status, Some(64), "{text}");
        assert!(stderr.contains("secrets.file: ") && stderr.contains(reason), "{reason}: {stderr}");
    }
    // What one user can read says nothing of what the daemon's can.
    if rustix::process::geteuid().is_root() {
        std::fs::create_dir(place.path("state")).unwrap();
        assert_eq!(check(&good).0, Some(0));
        std::os::unix::fs::chown(place.path("state"), Some(12345), None).unwrap();
        let (status, stderr) = check(&good);
        assert!(status == Some(64) && stderr.contains("run it as the daemon's user"), "{status:?} {stderr}");
    }
}

#[test]
fn printed_configuration_is_one() {
    let place = Place::new();
    let (status, printed, _) = place.says("--print-config");
    assert_eq!(status, Some(0));
    std::fs::write(place.path("agent.toml"), &printed).unwrap();
    assert_eq!(place.says("--print-config").1, printed);
}

#[test]
fn systemd_is_told_of_start_watchdog_reload_and_end() {
    let place = Place::new();
    let daemon = Daemon::start_with(&place, |command| {
        command.env("WATCHDOG_USEC", "200000");
    });
    daemon.told("WATCHDOG=1");
    daemon.told("STATUS=0 running, 0 waiting");
    daemon.signal(rustix::process::Signal::HUP);
    daemon.told("RELOADING=1");
    daemon.told("READY=1");
    daemon.told("WATCHDOG=1");
    let (status, log) = daemon.end();
    assert_eq!(status, Some(0));
    let levels: Vec<_> = log.iter().map(|line| line["level"].as_str().unwrap()).collect();
    // The launcher is not there, which is told once.
    assert!(levels.iter().all(|level| *level != "ERROR"), "{log:?}");
}

#[test]
fn broken_configuration_is_not_taken_and_the_one_before_stays() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    place.write("[log]\nlevel = \"error\"\nlevle = \"x\"\n");
    daemon.signal(rustix::process::Signal::HUP);
    daemon.told("RELOADING=1");
    daemon.told("READY=1");
    let metrics = page(&place.path("metrics.sock"), "/metrics");
    assert!(metrics.contains("ampoule_reloads_total{result=\"refused\"} 1\n"), "{metrics}");
    let (status, log) = daemon.end();
    assert_eq!(status, Some(0));
    let refusals: Vec<_> = log.iter().filter(|line| line["level"] == "ERROR").collect();
    assert_eq!(refusals.len(), 1);
    assert!(refusals[0]["error"].as_str().unwrap().contains("log.levle: unknown key"), "{log:?}");
    // Under the level of the broken one nothing of this would have been said.
    assert!(log.iter().any(|line| line["message"] == "ending; jobs go on"));
}

#[test]
fn reload_sets_the_log_level() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    place.write("[log]\nlevel = \"error\"\n");
    daemon.signal(rustix::process::Signal::HUP);
    daemon.told("RELOADING=1");
    daemon.told("READY=1");
    let (_, log) = daemon.end();
    assert!(log.iter().all(|line| line["message"] != "ending; jobs go on"), "{log:?}");
}

#[test]
fn second_daemon_in_the_same_place_is_told_to_try_again() {
    let place = Place::new();
    let daemon = Daemon::start(&place);
    let second = place.command().output().unwrap();
    assert_eq!(second.status.code(), Some(75), "{second:?}");
    // The first is as it was.
    assert!(page(&place.path("metrics.sock"), "/livez").contains("200 OK"));
    daemon.end();
}

#[test]
fn drift_of_the_host_is_told_and_makes_it_unready() {
    let place = Place::new();
    let more = "[host]\nbaseline = \"baseline.json\"\nrefuse_on_drift = true\nevery = \"100ms\"\n";
    place.write(more);
    let output = place.command().output().unwrap();
    assert_eq!(output.status.code(), Some(64), "a baseline that is not there is none: {output:?}");
    let (status, said, _) = place.says("--record-baseline");
    assert_eq!(status, Some(0));
    assert!(said.ends_with(" facts\n"), "{said}");
    let daemon = Daemon::start(&place);
    let drift = "the host is not what its baseline says";
    assert!(!page(&place.path("metrics.sock"), "/readyz").contains(drift));
    let recorded = std::fs::read_to_string(place.path("baseline.json")).unwrap();
    let changed = recorded.replace("\"kernel.release\": \"", "\"kernel.release\": \"0");
    assert_ne!(changed, recorded);
    std::fs::write(place.path("baseline.json"), changed).unwrap();
    let begun = Instant::now();
    while !page(&place.path("metrics.sock"), "/readyz").contains(drift) {
        assert!(begun.elapsed() < PATIENCE, "drift is never told");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(page(&place.path("metrics.sock"), "/metrics").contains("ampoule_host_drift_facts 1\n"));
    let (_, log) = daemon.end();
    assert!(log.iter().any(|line| line["level"] == "WARN" && line["fact"] == "kernel.release"), "{log:?}");
}
