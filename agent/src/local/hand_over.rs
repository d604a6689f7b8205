//! What a step that waits for its secrets is told, over the control socket of its job (docs/design/0024).
//!
//! Values go as sealed memory, never in a packet: whoever reads the packets of a socket has none.

use super::control::Cancelled;
use crate::vault::Secret;
use ampoule_spec::wire::CONTROL_SOCKET;
use ampoule_spec::{Code, Name};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, openat};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, sendmsg, socket_with,
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// What a packet about a step's secrets begins with, and one about another value.
const SECRETS: u8 = b's';
const ROTATED: u8 = b'r';
/// How long the supervisor has to take a packet, and to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// The most bytes of an answer.
const ANSWER_BYTES_MAX: usize = 4096;
/// The most descriptors of a packet.
const DESCRIPTORS_MAX: usize = ampoule_spec::SECRETS_MAX;

/// What the supervisor says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It has it.
    Took,
    /// It changes nothing, and says why.
    Refused(String),
}

#[derive(Serialize)]
struct Given<'a> {
    step: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<Value<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed: Option<Failed<'a>>,
}

#[derive(Serialize)]
struct Value<'a> {
    name: &'a Name,
    bytes: usize,
}

#[derive(Serialize)]
struct Failed<'a> {
    code: Code,
    message: &'a str,
}

#[derive(Serialize)]
struct Rotated<'a> {
    step: u32,
    name: &'a Name,
    bytes: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Answer {
    Took(bool),
    Refused(String),
}

/// Gives a step that waits the values that it names, in its order. Blocks for seconds at most.
///
/// # Errors
/// It is not known whether the step has them.
pub fn give(job_dir: &Path, step: u32, values: &[(Name, Secret)]) -> io::Result<Told> {
    let memory = values.iter().map(|(_, value)| sealed(value)).collect::<io::Result<Vec<_>>>()?;
    let values = values.iter().map(|(name, value)| Value { name, bytes: value.len() }).collect();
    let memory: Vec<_> = memory.iter().map(AsFd::as_fd).collect();
    tell(job_dir, SECRETS, &Given { step, values, failed: None }, &memory)
}

/// Ends the job of a step that waits, because it gets no values. Blocks for seconds at most.
///
/// # Errors
/// It is not known whether the job ends.
pub fn fail(job_dir: &Path, step: u32, code: Code, message: &str) -> io::Result<Told> {
    let failed = Some(Failed { code, message });
    tell(job_dir, SECRETS, &Given { step, values: Vec::new(), failed }, &[])
}

/// Gives a step that runs another value. Blocks for seconds at most.
///
/// # Errors
/// It is not known which of the two it has.
pub fn rotate(job_dir: &Path, step: u32, name: &Name, value: &Secret) -> io::Result<Told> {
    let memory = sealed(value)?;
    tell(job_dir, ROTATED, &Rotated { step, name, bytes: value.len() }, &[memory.as_fd()])
}

/// Memory that holds a value, and that nobody can change any more.
fn sealed(value: &Secret) -> io::Result<OwnedFd> {
    let fd = memfd_create("secret", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(value.expose())?;
    let fd = OwnedFd::from(file);
    fcntl_add_seals(&fd, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(fd)
}

fn tell(job_dir: &Path, kind: u8, what: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<Told> {
    let mut packet = vec![kind];
    serde_json::to_writer(&mut packet, what)?;
    let socket = match connected(job_dir)? {
        Ok(socket) => socket,
        Err(Cancelled::Asked | Cancelled::Over) => return Ok(Told::Refused("the job is over".to_owned())),
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other(format!("more than {DESCRIPTORS_MAX} values")));
    }
    match sendmsg(&socket, &[IoSlice::new(&packet)], &mut ancillary, SendFlags::NOSIGNAL) {
        Err(Errno::PIPE | Errno::CONNRESET) => return Ok(Told::Refused("the job is over".to_owned())),
        other => other?,
    };
    let mut answer = [0; ANSWER_BYTES_MAX];
    let (read, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    let answer = answer.get(..read).unwrap_or_default();
    match serde_json::from_slice(answer)? {
        Answer::Took(true) => Ok(Told::Took),
        Answer::Took(false) => Err(io::Error::other("the supervisor's answer is none")),
        Answer::Refused(why) => Ok(Told::Refused(why)),
    }
}

/// A connection to the job's supervisor; else its job is over.
fn connected(job_dir: &Path) -> io::Result<Result<OwnedFd, Cancelled>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = match openat(CWD, job_dir, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(Err(Cancelled::Over)),
        other => other?,
    };
    // An address has 108 bytes; a state directory's path may have more.
    let address = match SocketAddrUnix::new(job_dir.join(CONTROL_SOCKET)) {
        Ok(address) => address,
        Err(_) => SocketAddrUnix::new(format!("/proc/self/fd/{}/{CONTROL_SOCKET}", dir.as_raw_fd()))?,
    };
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for timeout in [Timeout::Send, Timeout::Recv] {
        set_socket_timeout(&socket, timeout, Some(ANSWER_WITHIN))?;
    }
    match connect(&socket, &address) {
        Ok(()) => Ok(Ok(socket)),
        Err(Errno::CONNREFUSED) => Ok(Err(Cancelled::Over)),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, accept, bind, listen, recvmsg, send};
    use std::io::{IoSliceMut, Read, Seek};

    /// Answers one packet, and says what it was and what the memory that came with it holds.
    fn supervisor(socket: &OwnedFd, answer: &str) -> (String, Vec<Vec<u8>>) {
        let accepted = accept(socket).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut packet = [0; 8192];
        let flags = RecvFlags::empty();
        let got = recvmsg(&accepted, &mut [IoSliceMut::new(&mut packet)], &mut ancillary, flags).unwrap();
        let mut held = Vec::new();
        for message in ancillary.drain() {
            let RecvAncillaryMessage::ScmRights(descriptors) = message else { continue };
            for fd in descriptors {
                let seals = rustix::fs::fcntl_get_seals(&fd).unwrap();
                assert_eq!(seals, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE);
                let (mut file, mut bytes) = (File::from(fd), Vec::new());
                assert!(file.write(b"x").is_err());
                file.rewind().unwrap();
                file.read_to_end(&mut bytes).unwrap();
                held.push(bytes);
            }
        }
        send(&accepted, answer.as_bytes(), SendFlags::NOSIGNAL).unwrap();
        (String::from_utf8(packet[..got.bytes].to_vec()).unwrap(), held)
    }

    #[test]
    fn values_go_in_sealed_memory_and_what_is_answered_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(dir.path().join(CONTROL_SOCKET)).unwrap()).unwrap();
        listen(&socket, 8).unwrap();
        let name = |text: &str| Name::parse(text).unwrap();
        let value = |text: &str| Secret::new(text.as_bytes().to_vec());
        let path = dir.path().to_owned();
        let told = std::thread::spawn(move || {
            let values = [(name("a"), value("first value")), (name("b"), value("second"))];
            [
                give(&path, 1, &values),
                give(&path, 1, &values),
                fail(&path, 2, Code::SecretDenied, "no"),
                rotate(&path, 3, &name("a"), &value("third value")),
            ]
            .map(Result::unwrap)
        });
        let packets =
            [r#"{"took":true}"#, r#"{"refused":"it does not wait"}"#, r#"{"took":true}"#, r#"{"took":true}"#]
                .map(|answer| supervisor(&socket, answer));
        let held: Vec<Vec<u8>> = vec![b"first value".to_vec(), b"second".to_vec()];
        let given = r#"s{"step":1,"values":[{"name":"a","bytes":11},{"name":"b","bytes":6}]}"#.to_owned();
        let failed = r#"s{"step":2,"failed":{"code":"secret.denied","message":"no"}}"#.to_owned();
        let rotated = r#"r{"step":3,"name":"a","bytes":11}"#.to_owned();
        let third = vec![b"third value".to_vec()];
        assert_eq!(
            packets,
            [(given.clone(), held.clone()), (given, held), (failed, vec![]), (rotated, third)]
        );
        let refused = Told::Refused("it does not wait".to_owned());
        assert_eq!(told.join().unwrap(), [Told::Took, refused, Told::Took, Told::Took]);
        drop(socket);
        let over = Ok(Told::Refused("the job is over".to_owned()));
        for path in [dir.path().to_owned(), dir.path().join("gone")] {
            assert_eq!(fail(&path, 1, Code::SecretDenied, "no").map_err(|e| e.kind()), over);
        }
    }
}
