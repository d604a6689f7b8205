//! A launcher that listens, and clients of it, each as the user that a test wants.

use crate::check::{equal, json};
use crate::lab::Lab;
use crate::procs::{self, patience};
use anyhow::{Context, Result, bail, ensure};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, send, sendmsg, socket_with, sockopt,
};
use rustix::process::{Gid, Signal, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The agent, as whom nobody runs here, and its group.
pub(crate) const AGENT: u32 = 64_123;
pub(crate) const GROUP: u32 = 64_124;
/// Somebody else.
pub(crate) const OTHER: u32 = 64_125;

const SOON: Duration = Duration::from_secs(20);

/// Does something as another user of the host: a thread has credentials of its own (credentials(7)).
pub(crate) fn as_user<T: Send>(uid: u32, gid: u32, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    if uid == rustix::process::geteuid().as_raw() {
        return body();
    }
    let done = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            set_thread_groups(&[])?;
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)?;
            body()
        });
        thread.join()
    });
    done.unwrap_or_else(|_| bail!("the thread of user {uid} panicked"))
}

/// `ampoule-runner listen` over a test's state directory.
pub(crate) struct Listener<'l> {
    lab: &'l Lab<'l>,
    child: Child,
    pub(crate) socket: PathBuf,
}

impl<'l> Listener<'l> {
    /// Starts it, and waits until it takes connections.
    pub(crate) fn start(lab: &'l Lab<'l>, args: &[&str]) -> Result<Self> {
        Self::start_of(lab, &lab.program("ampoule-runner"), args)
    }

    /// The same of another build of the runner.
    pub(crate) fn start_of(lab: &'l Lab<'l>, runner: &Path, args: &[&str]) -> Result<Self> {
        let socket = lab.path("run/socket");
        fs::create_dir_all(lab.path("run"))?;
        let mut command = Command::new(runner);
        command.arg("listen").arg("--state").arg(lab.state()).arg("--socket").arg(&socket);
        match lab.is_root() {
            true => command.args(["--agent", &AGENT.to_string(), "--group", &GROUP.to_string()]),
            false => command.args(["--agent", &own().to_string()]),
        };
        let log = File::options().create(true).append(true).open(lab.path("listener.log"))?;
        command.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn()?;
        let mut listener = Self { lab, child, socket };
        // One that was killed before may be listening for a moment longer, by what it was just forking.
        procs::eventually(SOON, "the launcher listens", || listener.greets() || !listener.is_running())?;
        ensure!(listener.is_running(), "the launcher ended: {}", listener.said());
        Ok(listener)
    }

    fn dial(&self) -> Result<OwnedFd> {
        dial(&self.socket)
    }

    fn greets(&self) -> bool {
        let Ok(socket) = self.dial() else { return false };
        let mut byte = [0];
        retry_on_intr(|| recv(&socket, &mut byte, RecvFlags::empty())).is_ok_and(|(_, count)| count > 0)
    }

    /// What it and its sessions have said to people.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.lab.path("listener.log")).unwrap_or_default()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// A connection of the agent's.
    pub(crate) fn client(&self) -> Result<Client<'l>> {
        let (uid, gid) = agent(self.lab);
        let socket = as_user(uid, gid, || self.dial())?;
        let client = Client { lab: self.lab, socket };
        let hello = client.hear()?.with_context(|| format!("the session says nothing: {}", self.said()))?;
        equal("greeting", &hello["say"], &Value::from("hello")).with_context(|| hello.to_string())?;
        equal("listening", &hello["listening"], &Value::from(true))?;
        Ok(client)
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) -> Result<()> {
        procs::signal(self.pid(), Signal::KILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// Tells it to stop, and waits until it has.
    pub(crate) fn stop(mut self) -> Result<()> {
        procs::signal(self.pid(), Signal::TERM)?;
        procs::eventually(SOON, "the listener ends", || !self.is_running())?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the listener ended with {status}: {}", self.said());
        ensure!(!self.socket.exists(), "its socket is left");
        Ok(())
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        // A test that failed leaves it running.
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn own() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// User and group of the agent.
pub(crate) fn agent(lab: &Lab) -> (u32, u32) {
    if lab.is_root() { (AGENT, GROUP) } else { (own(), rustix::process::getegid().as_raw()) }
}

/// Connects to a socket of packets, however long its path is.
pub(crate) fn dial(path: &Path) -> Result<OwnedFd> {
    let dir = path.parent().context("a socket at the root")?;
    let name = path.file_name().context("a socket without a name")?.to_string_lossy();
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, rustix::fs::Mode::empty())?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let limit = Some(patience(Duration::from_secs(60)));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, limit)?;
    let short = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    // Only where it must be: a thread of another user may not look into /proc/self of ours.
    let address = match SocketAddrUnix::new(path) {
        Ok(address) => address,
        Err(_) => SocketAddrUnix::new(short.as_str())?,
    };
    connect(&socket, &address)?;
    Ok(socket)
}

/// The number of the next job in this process.
static JOBS: AtomicU32 = AtomicU32::new(0);

/// One connection.
pub(crate) struct Client<'l> {
    lab: &'l Lab<'l>,
    socket: OwnedFd,
}

impl Client<'_> {
    /// The next message; none at the end.
    pub(crate) fn hear(&self) -> Result<Option<Value>> {
        let mut bytes = vec![0; 64 << 10];
        match retry_on_intr(|| recv(&self.socket, bytes.as_mut_slice(), RecvFlags::empty())) {
            Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(None),
            Ok((_, count)) => Ok(Some(serde_json::from_slice(bytes.get(..count).unwrap_or_default())?)),
            Err(errno) => Err(errno).context("wait for a session's answer"),
        }
    }

    pub(crate) fn say(&self, message: &Value, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = message.to_string();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        ensure!(
            descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)),
            "no room for descriptors"
        );
        sendmsg(&self.socket, &[IoSlice::new(bytes.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The answer to something; what is said of jobs meanwhile is passed over.
    pub(crate) fn ask(&self, message: &Value) -> Result<Value> {
        self.say(message, &[])?;
        loop {
            let said = self.hear()?.context("the session is gone")?;
            if !matches!(said["say"].as_str(), Some("finished")) {
                return Ok(said);
            }
        }
    }

    /// Has a job of these steps run that belongs to no connection; once it is admitted, its id.
    pub(crate) fn run(&self, steps: &[&str], outputs: &Value) -> Result<String> {
        let id = self.send_job(steps, outputs)?;
        let said = self.hear()?.context("the session is gone")?;
        equal("answer", &said, &json!({"say": "admitted", "job": id}))?;
        Ok(id)
    }

    /// Asks for a job, and does not wait for the answer.
    pub(crate) fn send_job(&self, steps: &[&str], outputs: &Value) -> Result<String> {
        let steps: Vec<_> = (0..)
            .zip(steps)
            .map(|(n, script)| {
                json!({"name": format!("s{n}"), "cwd": "/build", "timeout_ms": 600_000,
                       "run": ["sh", "-euc", script]})
            })
            .collect();
        self.send_spec(json!({"steps": steps, "outputs": outputs}))
    }

    /// Asks for a job with these fields, and does not wait for the answer.
    pub(crate) fn send_spec(&self, fields: Value) -> Result<String> {
        let number = JOBS.fetch_add(1, Ordering::SeqCst);
        let id = format!("01890a5d-ac96-774b-bcce-{number:04x}{:08x}", std::process::id());
        let mut spec = json!({
            "ampoule": 1, "id": id, "attempt": 1, "name": "listened", "profile": self.lab.profile(),
            "image": {"kind": "host"}, "source_date_epoch": 0,
        });
        if let (Some(spec), Value::Object(fields)) = (spec.as_object_mut(), fields) {
            spec.extend(fields);
        }
        let path = self.lab.write(&format!("spec-{number}.json"), spec.to_string())?;
        self.say(&json!({"ask": "run", "lifetime": false}), &[File::open(path)?.as_fd()])?;
        Ok(id)
    }

    /// Waits until the connection says that a job has ended.
    pub(crate) fn finished(&self, id: &str) -> Result<()> {
        let said = self.hear()?.context("the session is gone")?;
        equal("answer", &said, &json!({"say": "finished", "job": id}))
    }

    /// All jobs, as they are listed.
    pub(crate) fn jobs(&self) -> Result<Vec<Value>> {
        let (mut jobs, mut after) = (Vec::new(), Value::Null);
        loop {
            let page = self.ask(&json!({"ask": "jobs", "after": after}))?;
            equal("answer", &page["say"], &Value::from("jobs")).with_context(|| page.to_string())?;
            jobs.extend(page["jobs"].as_array().context("no jobs")?.iter().cloned());
            if page["more"] != true {
                return Ok(jobs);
            }
            after = jobs.last().context("more of nothing")?["id"].clone();
        }
    }

    pub(crate) fn forget(&self, id: &str) -> Result<()> {
        let said = self.ask(&json!({"ask": "forget", "job": id}))?;
        equal("answer", &said, &json!({"say": "forgotten"}))
    }
}

/// A job's directory.
pub(crate) fn job_dir(lab: &Lab, id: &str) -> PathBuf {
    lab.state().join("jobs").join(id)
}

/// A job's report, as the agent reads it.
pub(crate) fn report(lab: &Lab, id: &str) -> Result<Value> {
    let (uid, gid) = agent(lab);
    let path = job_dir(lab, id).join("report.json");
    as_user(uid, gid, || json(&path))
}

/// Sends a packet to a job's control socket as the agent.
pub(crate) fn control(lab: &Lab, id: &str, packet: &[u8]) -> Result<()> {
    let (uid, gid) = agent(lab);
    let path = job_dir(lab, id).join("control.sock");
    as_user(uid, gid, || Ok(send(dial(&path)?, packet, SendFlags::NOSIGNAL).map(drop)?))
}
