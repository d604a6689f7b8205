//! The agent's secrets under `kill -9`, before each of its packets reaches the server and before each answer reaches it: the next
//! agent takes everything back.

use crate::database::both;
use crate::vault::{self, Rig, Storage, until};
use crate::{STEP, approle, server};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(Path::parent).unwrap().join("examples/secrets_child");
    assert!(path.exists(), "build it first: cargo build -p ampoule-agent --example secrets_child");
    path
}

/// Stands between an agent and its server, and kills the agent at one of its packets.
struct Killer {
    port: u16,
    plan: Arc<Plan>,
}

#[derive(Default)]
struct Plan {
    /// The agent; 0: none that is to be killed.
    agent: AtomicU32,
    /// At which of its packets, and whether only when that is answered.
    at: Mutex<(u32, bool)>,
    seen: AtomicU32,
}

impl Plan {
    fn kill(&self) {
        let agent = self.agent.swap(0, Ordering::SeqCst);
        if let Some(pid) = i32::try_from(agent).ok().and_then(rustix::process::Pid::from_raw) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream, is_agent: bool) {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(read @ 1..) = from.read(&mut bytes) {
            let (at, answered) = *self.at.lock().unwrap();
            // So many packets before this one, or before this answer.
            let seen = if is_agent {
                self.seen.fetch_add(1, Ordering::SeqCst)
            } else {
                self.seen.load(Ordering::SeqCst)
            };
            // Two packets may have one answer.
            let is_there = if is_agent { seen == at } else { seen > at };
            if is_there && answered != is_agent {
                self.kill();
            }
            if to.write_all(&bytes[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }
}

impl Killer {
    fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, plan) = (listener.local_addr().unwrap().port(), Arc::new(Plan::default()));
        let of_all = plan.clone();
        std::thread::spawn(move || {
            for agent in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let (a, s) = (agent.try_clone().unwrap(), server.try_clone().unwrap());
                let (out, back) = (of_all.clone(), of_all.clone());
                std::thread::spawn(move || out.copy(a, server, true));
                std::thread::spawn(move || back.copy(s, agent, false));
            }
        });
        Self { port, plan }
    }

    fn run(&self, dir: &Path, file: &Path, work: &str, at: (u32, bool)) -> Output {
        *self.plan.at.lock().unwrap() = at;
        self.plan.seen.store(0, Ordering::SeqCst);
        let mut command = Command::new(program());
        command.arg(dir).arg(file).arg(work).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        self.plan.agent.store(if at.0 == u32::MAX { 0 } else { child.id() }, Ordering::SeqCst);
        let output = child.wait_with_output().unwrap();
        self.plan.agent.store(0, Ordering::SeqCst);
        output
    }
}

fn secrets_toml(rig: &Rig, killer: &Killer) -> PathBuf {
    let server = server(rig).replace(&rig.address(), &format!("https://127.0.0.1:{}", killer.port));
    let text = vault::secrets_toml(&format!("{server}{}{STEP}", approle(rig)));
    rig.private("secrets.toml", text).unwrap()
}

/// Accessors of steps' tokens, and how long each lives, in seconds.
pub(crate) fn step_tokens(rig: &Rig) -> Vec<(String, u64)> {
    let all = rig.ask("LIST", "auth/token/accessors", None).unwrap();
    let all = all.pointer("/data/keys").and_then(Value::as_array).cloned().unwrap_or_default();
    let of_step = all.iter().filter_map(Value::as_str).filter_map(|accessor| {
        // One that has ended meanwhile is none.
        let found =
            rig.ask("POST", "auth/token/lookup-accessor", Some(&json!({"accessor": accessor}))).ok()?;
        let is_steps = found.pointer("/data/policies")?.as_array()?.contains(&json!("ampoule-step-app"));
        Some((accessor.to_owned(), found.pointer("/data/ttl")?.as_u64()?)).filter(|_| is_steps)
    });
    of_step.collect()
}

#[test]
fn killed_at_any_packet_nothing_is_left_at_server_and_database() {
    let (rig, postgres) = both(Storage::Memory);
    let canary = json!({"data": {"token": "canary-of-npm-1"}});
    rig.ask("POST", "secret/data/app/npm", Some(&canary)).unwrap();
    let killer = Killer::before(rig.port());
    let file = secrets_toml(&rig, &killer);
    let home = tempfile::tempdir().unwrap();
    let said = |output: &Output| {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    // Each agent logs in anew, and each kill is another place between the two.
    for answered in [false, true] {
        let (mut kills, mut given) = (0, 0);
        for at in 0.. {
            let dir = home.path().join(format!("{answered}-{at}"));
            let output = killer.run(&dir, &file, "step", (at, answered));
            let told = said(&output);
            assert!(!told.contains("canary"), "{told}");
            let is_over = output.status.success();
            assert!(is_over || output.status.signal() == Some(9), "{at}, {answered}: {told}");
            kills += u32::from(!is_over);
            given += u32::from(!is_over && told.contains("given"));
            let output = killer.run(&dir, &file, "recover", (u32::MAX, false));
            assert!(output.status.success(), "{at}, {answered}: {}", said(&output));
            until("no user of the database is left", || postgres.made_users().unwrap().is_empty()).unwrap();
            until("no lease is left", || rig.leases("database/creds/app").unwrap().is_empty()).unwrap();
            // But for what was not in the journal yet, and dies by itself.
            for (accessor, ttl) in step_tokens(&rig) {
                assert!(ttl <= 15, "{at}, {answered}: the token of {accessor} lives for {ttl} s");
            }
            if is_over {
                break;
            }
        }
        // Login, mint, renew, two reads, a renewal, and after the hand-over two revokes.
        assert!(kills >= 8 && given >= 1, "{answered}: {kills} kills, {given} after the hand-over");
    }
}
