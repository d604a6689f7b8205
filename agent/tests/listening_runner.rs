//! The agent's end of a launcher that listens, with the real one at the other.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is a failed test")]

use ampoule_agent::local::{Runner, RunnerError};
use ampoule_ipc::Channel;
use ampoule_spec::wire::{Reply, Request, SESSIONS_MAX};
use ampoule_spec::{Code, JobId};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn program() -> PathBuf {
    if let Some(dir) = std::env::var_os("AMPOULE_BIN_DIR") {
        return Path::new(&dir).join("ampoule-runner");
    }
    let built = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--quiet", "-p", "ampoule-runner"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap())
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // This test lies in `<target>/debug/deps`.
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap().join("ampoule-runner")
}

struct Listener {
    dir: tempfile::TempDir,
    child: Child,
}

impl Listener {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw().to_string();
        let child = Command::new(program())
            .arg("listen")
            .arg("--state")
            .arg(dir.path().join("state"))
            .arg("--socket")
            .arg(dir.path().join("socket"))
            .args(["--agent", &uid])
            .env_clear()
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let listener = Self { dir, child };
        let begun = Instant::now();
        while let Err(RunnerError::Connect { .. }) = listener.connect() {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody listens");
            std::thread::sleep(Duration::from_millis(10));
        }
        listener
    }

    fn connect(&self) -> Result<Runner, RunnerError> {
        Runner::connect(&self.dir.path().join("socket"))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn job() -> JobId {
    JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap()
}

#[test]
fn connection_knows_all_jobs_and_forgets_what_is_gone() {
    let listener = Listener::start();
    let runner = listener.connect().unwrap();
    assert!(runner.recovered().is_empty());
    assert_eq!(runner.jobs().unwrap(), Vec::new());
    assert_eq!(runner.job(&job()).unwrap(), None);
    runner.forget(&job()).unwrap();
    // A spec that is none is refused, and the connection goes on.
    let file = tempfile::tempfile().unwrap();
    let refused = runner.admit(&job(), std::os::fd::AsFd::as_fd(&file)).unwrap_err();
    assert!(matches!(refused, RunnerError::Refused { code: Code::JobInvalid, .. }), "{refused}");
    assert_eq!(runner.jobs().unwrap(), Vec::new());
    for _ in 0..2 {
        assert!(listener.connect().unwrap().fence(&job()).unwrap());
    }
    assert_eq!((runner.jobs().unwrap(), runner.job(&job()).unwrap()), (Vec::new(), None));
}

#[test]
fn connection_beyond_the_sixteenth_is_told_so_and_one_that_ends_makes_room() {
    let listener = Listener::start();
    let mut open = Vec::new();
    let begun = Instant::now();
    // Those that were tried while it started may not have ended yet.
    while open.len() < 16 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} connections", open.len());
        open.extend(listener.connect());
    }
    let refused = listener.connect().unwrap_err();
    assert_eq!(refused.code(), Code::AdmissionBusy);
    assert!(matches!(refused, RunnerError::Refused { .. }), "{refused}");
    assert_eq!(open.first().unwrap().jobs().unwrap(), Vec::new(), "who is there is served");
    open.clear();
    while listener.connect().is_err() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no room");
    }
}

#[test]
fn launcher_that_is_not_there_is_named() {
    let path = Path::new("/nonexistent/socket");
    let error = Runner::connect(path).unwrap_err();
    assert_eq!(error.code(), Code::AdmissionBusy);
    assert!(error.to_string().contains("/nonexistent/socket"));
}

/// What a launcher says over a connection.
fn hears(channel: &Channel) -> Option<Reply> {
    channel.receive::<Reply>().ok().map(|(reply, _)| reply)
}

#[test]
fn who_asks_at_the_desk_for_something_else_is_answered_and_can_ask_no_more() {
    let listener = Listener::start();
    let begun = Instant::now();
    let mut open = Vec::new();
    while open.len() < SESSIONS_MAX {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} connections", open.len());
        open.extend(listener.connect());
    }
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(listener.dir.path().join("socket")).unwrap()).unwrap();
    let channel = Channel::new(socket);
    // All at once: none of those that could be asked is left without an answer.
    let asked = (0..50).take_while(|_| channel.send(&Request::StoreStat, &[]).is_ok()).count();
    assert!(matches!(hears(&channel), Some(Reply::Hello { .. })));
    let answers: Vec<_> = std::iter::from_fn(|| hears(&channel)).collect();
    assert!(
        answers.iter().all(|reply| matches!(reply, Reply::Refused { code: Code::AdmissionBusy, .. })),
        "{answers:?}"
    );
    assert_eq!(answers.len(), asked);
    assert!(channel.send(&Request::StoreStat, &[]).is_err(), "it is heard still");
    assert_eq!(listener.connect().unwrap().jobs().unwrap(), Vec::new());
}
