//! `control.sock` in the directory of a job that belongs to no connection: by it the agent cancels, and brings secrets.
//!
//! The launcher binds it before it says that the job is admitted, so that no cancel comes too early; its supervisor
//! listens. The kernel says whose a connection is (`SO_PEERCRED`, unix(7)). What is no packet of
//! [`packet`]'s is counted and nothing else; nothing here waits. A packet with secrets is taken if a step wants exactly
//! these now; each is answered.

mod packet;

use crate::clock::Moment;
use crate::jobdir::JobDir;
use crate::readers;
use ampoule_spec::Name;
use ampoule_spec::control::{ControlAnswer, RotateSecret, SecretsFailed, StepSecrets};
use ampoule_spec::wire::CONTROL_SOCKET;
pub(crate) use packet::Value;
use packet::{Said, listen_to};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{CWD, Mode, chmodat, chownat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, send,
    socket_with,
};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// The most connections that are open at a time; for a new one the oldest gives way.
const CONNECTIONS_MAX: usize = 4;
/// The most connections that are accepted in one turn: a step's limits are looked at after each.
const ACCEPTS_MAX: usize = 8;
/// The most connections that wait to be accepted.
const BACKLOG: i32 = 16;
/// How long nobody is accepted after the kernel could not.
const DEAF: Duration = Duration::from_secs(1);

/// Makes the socket in a job's directory, for its owner and for the group that may enter.
pub(crate) fn make(dir: &JobDir) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // An address has 108 bytes; a state directory's path may have more.
    let path = format!("/proc/self/fd/{}/{CONTROL_SOCKET}", dir.as_fd().as_raw_fd());
    bind(&socket, &SocketAddrUnix::new(path.as_str())?)?;
    if let Some(group) = readers::of(dir.as_fd())? {
        chownat(CWD, path.as_str(), None, Some(group), rustix::fs::AtFlags::empty())?;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP;
        chmodat(CWD, path.as_str(), mode, rustix::fs::AtFlags::empty())?;
    }
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The uid of whoever is at the other end of a connection.
pub(crate) fn peer(connection: &OwnedFd) -> io::Result<u32> {
    // Not rustix's: its process id cannot be 0, which a peer of another pid namespace has.
    let peer = nix::sys::socket::getsockopt(connection, nix::sys::socket::sockopt::PeerCredentials)?;
    Ok(peer.uid())
}

/// The supervisor's end.
#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
    /// Whose word counts, besides our own user's.
    agent: u32,
    connections: VecDeque<OwnedFd>,
    ignored: u64,
    deaf_until: Option<Moment>,
    wants: Wants,
    brought: Option<Brought>,
    rotation: Option<Rotation>,
}

/// What is taken of secrets now.
#[derive(Debug, Default)]
pub(crate) enum Wants {
    /// None.
    #[default]
    Nothing,
    /// All of a step that waits, in its order.
    All { step: u32, names: Vec<Name> },
    /// Another value of one of these, for a step that runs.
    Another { step: u32, names: Vec<Name> },
}

/// What came for a step that waits.
#[derive(Debug)]
pub(crate) enum Brought {
    Values(Vec<Value>),
    Failed(SecretsFailed),
}

/// Another value, and who is to hear that it is there.
#[derive(Debug)]
pub(crate) struct Rotation {
    pub(crate) name: Name,
    pub(crate) value: Value,
    from: OwnedFd,
}

impl Rotation {
    /// Says what became of it.
    pub(crate) fn answer(self, done: Result<(), String>) {
        answer(&self.from, &done.map_or_else(ControlAnswer::Refused, |()| ControlAnswer::Took(true)));
    }
}

impl Control {
    pub(crate) fn new(socket: OwnedFd, agent: u32) -> Self {
        Self {
            socket,
            agent,
            connections: VecDeque::new(),
            ignored: 0,
            deaf_until: None,
            wants: Wants::Nothing,
            brought: None,
            rotation: None,
        }
    }

    /// To be polled with other descriptors.
    pub(crate) fn poll_fds(&self) -> Vec<PollFd<'_>> {
        let is_deaf = self.deaf_until.is_some_and(|until| !until.left().is_zero());
        let socket = (!is_deaf).then_some(&self.socket);
        socket.into_iter().chain(&self.connections).map(|fd| PollFd::new(fd, PollFlags::IN)).collect()
    }

    /// How many packets and connections were ignored so far.
    pub(crate) fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Hears whoever has something to say. Whether that was a cancel.
    pub(crate) fn hear(&mut self) -> bool {
        let mut is_cancelled = false;
        for _ in 0..ACCEPTS_MAX {
            match accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(connection) => is_cancelled |= self.take(connection),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.deaf_until = Some(Moment::now().after(DEAF));
                    break;
                }
            }
        }
        for connection in std::mem::take(&mut self.connections) {
            is_cancelled |= self.obey(connection);
        }
        is_cancelled
    }

    /// Says what is taken from now on.
    pub(crate) fn want(&mut self, wants: Wants) {
        self.wants = wants;
        self.brought = None;
        if let Some(rotation) = self.rotation.take() {
            rotation.answer(Err("the step has ended".to_owned()));
        }
    }

    /// What came, if something did.
    pub(crate) fn brought(&mut self) -> Option<Brought> {
        self.brought.take()
    }

    /// Another value, if one came.
    pub(crate) fn rotation(&mut self) -> Option<Rotation> {
        self.rotation.take()
    }

    /// Does what a connection says. Whether that was a cancel.
    fn obey(&mut self, connection: OwnedFd) -> bool {
        let refused = match listen_to(&connection) {
            Said::Cancel => return true,
            Said::End => return false,
            Said::Nothing => {
                if self.connections.len() >= CONNECTIONS_MAX {
                    self.connections.pop_front();
                }
                self.connections.push_back(connection);
                return false;
            }
            Said::Other => {
                self.ignored += 1;
                return false;
            }
            Said::Unreadable(why) => Err(why),
            Said::Secrets(secrets, descriptors) => self.take_secrets(secrets, descriptors),
            Said::Rotate(rotate, descriptors) => match self.take_rotation(&rotate, descriptors) {
                Ok(value) => {
                    self.rotation = Some(Rotation { name: rotate.name, value, from: connection });
                    return false;
                }
                Err(why) => Err(why),
            },
        };
        answer(&connection, &refused.map_or_else(ControlAnswer::Refused, |()| ControlAnswer::Took(true)));
        false
    }

    /// Takes the secrets of the step that waits.
    fn take_secrets(&mut self, secrets: StepSecrets, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        let of = match &secrets {
            StepSecrets::Given(given) => given.step,
            StepSecrets::Failed(failed) => failed.step,
        };
        let Wants::All { step, names } = &self.wants else {
            return Err("no step waits for secrets".to_owned());
        };
        if *step != of {
            return Err(format!("step {step} waits for secrets, and no other"));
        }
        self.brought = Some(match secrets {
            StepSecrets::Failed(failed) => {
                packet::check_failed(&failed.failed)?;
                Brought::Failed(failed.failed)
            }
            StepSecrets::Given(given) => {
                let said = given.values.iter().map(|value| (&value.name, value.bytes));
                Brought::Values(packet::values(said, descriptors, names)?)
            }
        });
        // A second one comes too late.
        self.wants = Wants::Nothing;
        Ok(())
    }

    /// Takes another value for the step that runs.
    fn take_rotation(&self, rotate: &RotateSecret, descriptors: Vec<OwnedFd>) -> Result<Value, String> {
        let Wants::Another { step, names } = &self.wants else {
            return Err("no step runs whose secrets can change".to_owned());
        };
        if *step != rotate.step {
            return Err(format!("step {step} runs, and no other"));
        }
        if !names.contains(&rotate.name) {
            return Err(format!("the step does not have {} as a file; nothing else can change", rotate.name));
        }
        if self.rotation.is_some() {
            return Err("another value is on its way; try again".to_owned());
        }
        let one = [rotate.name.clone()];
        let values = packet::values([(&rotate.name, rotate.bytes)].into_iter(), descriptors, &one)?;
        values.into_iter().next().ok_or_else(|| "there is no value".to_owned())
    }

    /// Takes a connection, and what it says at once: another that comes with it may crowd it out.
    fn take(&mut self, connection: OwnedFd) -> bool {
        let own = rustix::process::geteuid().as_raw();
        if !peer(&connection).is_ok_and(|uid| [0, own, self.agent].contains(&uid)) {
            self.ignored += 1;
            return false;
        }
        self.obey(connection)
    }
}

/// Answers whoever asked. One that has left hears nothing.
fn answer(connection: &OwnedFd, answer: &ControlAnswer) {
    let bytes = serde_json::to_vec(answer).unwrap_or_default();
    let _ = send(connection, &bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendFlags, connect, send};
    use std::path::Path;

    fn dialled(dir: &Path) -> OwnedFd {
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let opened = std::fs::File::open(dir).unwrap();
        let path = format!("/proc/self/fd/{}/{CONTROL_SOCKET}", opened.as_raw_fd());
        connect(&socket, &SocketAddrUnix::new(path.as_str()).unwrap()).unwrap();
        socket
    }

    fn say(socket: &OwnedFd, bytes: &[u8]) {
        send(socket, bytes, SendFlags::NOSIGNAL).unwrap();
    }

    /// A directory deeper than an address is long, with a job's in it.
    fn job() -> (tempfile::TempDir, std::path::PathBuf, JobDir) {
        let base = tempfile::tempdir().unwrap();
        let state = base.path().join("x".repeat(150));
        std::fs::create_dir(&state).unwrap();
        let (dir, _lock) = crate::jobdir::State::open(&state, None).unwrap().create("job").unwrap();
        (base, state.join("jobs/job"), dir)
    }

    #[test]
    fn one_packet_cancels_also_of_a_client_that_has_left_before_anybody_listens() {
        let (_base, path, dir) = job();
        let socket = make(&dir).unwrap();
        say(&dialled(&path), b"c");
        assert!(Control::new(socket, 0).hear());
    }

    #[test]
    fn anything_else_is_counted_and_does_not_cancel() {
        let (_base, path, dir) = job();
        let mut control = Control::new(make(&dir).unwrap(), 0);
        assert!(!control.hear(), "nobody has said anything");
        for bytes in [&b"x"[..], b"cc", b"c\n", b"{\"ask\":\"cancel\"}"] {
            say(&dialled(&path), bytes);
        }
        let late = dialled(&path);
        assert!(!control.hear());
        assert_eq!((control.ignored(), control.connections.len()), (4, 1));
        say(&late, b"C");
        assert!(!control.hear());
        assert_eq!((control.ignored(), control.connections.len()), (5, 0));
        drop(dialled(&path));
        assert!(!control.hear());
        assert_eq!(control.ignored(), 5, "who only looks in has said nothing");
    }

    #[test]
    fn connections_that_are_only_held_do_not_keep_a_cancel_out() {
        let (_base, path, dir) = job();
        let mut control = Control::new(make(&dir).unwrap(), 0);
        let held: Vec<_> = (0..12).map(|_| dialled(&path)).collect();
        while control.connections.len() < CONNECTIONS_MAX {
            assert!(!control.hear());
        }
        say(&dialled(&path), b"c");
        assert!((0..3).any(|_| control.hear()));
        assert!(control.connections.len() <= CONNECTIONS_MAX);
        drop(held);
    }
}
