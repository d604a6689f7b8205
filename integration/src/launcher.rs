//! A launcher that is spoken to directly, as an agent would: one JSON value a packet, descriptors beside it.

use anyhow::{Context, Result, bail, ensure};
use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    recv, sendmsg, socketpair, sockopt,
};
use rustix::process::Signal;
use serde_json::Value;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The largest packet (docs/architecture.md).
const PACKET_BYTES_MAX: usize = 64 << 10;

/// One launcher, or a program that runs one.
pub(crate) struct Launcher {
    socket: OwnedFd,
    child: Child,
}

impl Launcher {
    /// Starts `runner serve` over a state directory, through another program if one is given, and hears its greeting. None
    /// if it dies before.
    pub(crate) fn start(runner: &Path, state: &Path, through: &[String]) -> Result<Option<Self>> {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let limit = crate::procs::patience(Duration::from_secs(60));
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(limit))?;
        let mut command = match through.split_first() {
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(runner);
                command
            }
            None => Command::new(runner),
        };
        command.arg("serve").arg("--state").arg(state).env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("start a launcher")?;
        // The command holds the other end until it is dropped.
        drop(command);
        let mut launcher = Self { socket, child };
        match launcher.hear()? {
            Some(hello) if hello["say"] == "hello" => Ok(Some(launcher)),
            Some(other) => bail!("the launcher greets with {other}"),
            None => {
                launcher.child.wait()?;
                Ok(None)
            }
        }
    }

    /// Asks for something. None if it dies instead of answering.
    pub(crate) fn ask(&mut self, request: &Value, with: Option<BorrowedFd<'_>>) -> Result<Option<Value>> {
        let bytes = serde_json::to_vec(request)?;
        let descriptors: Vec<_> = with.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ensure!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "no room for a descriptor");
        }
        let sent = || sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
        match retry_on_intr(sent) {
            Ok(_) => self.hear(),
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Ok(None),
            Err(errno) => Err(errno).context("ask a launcher"),
        }
    }

    /// The next answer; none if it is dead.
    fn hear(&mut self) -> Result<Option<Value>> {
        let mut bytes = vec![0; PACKET_BYTES_MAX];
        // A socket with a time limit is not waited for again by itself after a stop and a thaw: signal(7).
        match retry_on_intr(|| recv(&self.socket, bytes.as_mut_slice(), RecvFlags::empty())) {
            Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => Ok(None),
            Ok((_, count)) => {
                let packet = bytes.get(..count).unwrap_or_default();
                Ok(Some(serde_json::from_slice(packet).context("an answer that is no JSON")?))
            }
            Err(errno) => Err(errno).context("wait for a launcher's answer"),
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// `kill -9`, and waits for its end.
    pub(crate) fn kill(mut self) -> Result<()> {
        // It may be dead already.
        let _ = crate::procs::signal(self.pid(), Signal::KILL);
        self.child.wait()?;
        Ok(())
    }

    /// Closes the connection, and waits until it has ended.
    pub(crate) fn close(self) -> Result<()> {
        let Self { socket, mut child } = self;
        drop(socket);
        child.wait()?;
        Ok(())
    }
}
