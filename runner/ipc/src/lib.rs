//! Messages between two processes on one host: one JSON value a packet, descriptors beside it.
//!
//! The agent speaks to the launcher over it, the supervisor to init and to its log pumps. It is a crate so that
//! the agent can have it without anything else of the runner's.

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The largest message in bytes.
pub const MESSAGE_BYTES_MAX: usize = ampoule_spec::wire::MESSAGE_BYTES_MAX;
/// The most descriptors beside one message.
pub const DESCRIPTORS_MAX: usize = 64;
/// What a packet says that only brings more descriptors.
const MORE: &[u8] = b"+";

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// The other side is gone.
    #[error("the other side has closed the channel")]
    Closed,
    /// The kernel refused.
    #[error("the channel failed")]
    Kernel(#[from] Errno),
    /// The message is too large or was cut.
    #[error("a message of more than {MESSAGE_BYTES_MAX} bytes, or with too many descriptors")]
    TooLarge,
    /// The bytes are not the message that was expected.
    #[error("a message that cannot be read")]
    Malformed(#[source] serde_json::Error),
}

impl IpcError {
    /// The errno that stands for it.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Kernel(errno) => errno.raw_os_error(),
            Self::Closed => Errno::PIPE.raw_os_error(),
            Self::TooLarge => Errno::MSGSIZE.raw_os_error(),
            Self::Malformed(_) => Errno::BADMSG.raw_os_error(),
        }
    }
}

/// One end of a `SOCK_SEQPACKET` pair.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Channel {
    /// Wraps a socket that came from elsewhere.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Two connected ends.
    ///
    /// # Errors
    /// As socketpair(2).
    pub fn pair() -> Result<(Self, Self), IpcError> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self::new(a), Self::new(b)))
    }

    /// Sends a message and descriptors.
    ///
    /// # Errors
    /// [`IpcError::TooLarge`] before anything is sent; [`IpcError::Closed`] if nobody is there.
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        let bytes = serde_json::to_vec(message).map_err(IpcError::Malformed)?;
        self.send_bytes(&bytes, descriptors)
    }

    /// Sends raw bytes as one packet.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        if bytes.len() > MESSAGE_BYTES_MAX || descriptors.len() > DESCRIPTORS_MAX {
            return Err(IpcError::TooLarge);
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(IpcError::TooLarge);
        }
        loop {
            match sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(IpcError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Receives a message and its descriptors; waits for it.
    ///
    /// # Errors
    /// [`IpcError::Closed`] at the end; [`IpcError::Malformed`] for anything else than a `T`.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), IpcError> {
        let (bytes, descriptors) = self.receive_bytes()?;
        let message = serde_json::from_slice(&bytes).map_err(IpcError::Malformed)?;
        Ok((message, descriptors))
    }

    /// Sends a message with any number of descriptors: as many packets as they need. The other side has to
    /// take it with [`Channel::receive_all`].
    ///
    /// # Errors
    /// As [`Channel::send`]; what was sent before an error is of no use to the other side.
    pub fn send_all(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        let count = u16::try_from(descriptors.len()).map_err(|_| IpcError::TooLarge)?;
        let mut packet = count.to_le_bytes().to_vec();
        serde_json::to_writer(&mut packet, message).map_err(IpcError::Malformed)?;
        let mut groups = descriptors.chunks(DESCRIPTORS_MAX);
        self.send_bytes(&packet, groups.next().unwrap_or_default())?;
        groups.try_for_each(|group| self.send_bytes(MORE, group))
    }

    /// Receives a message that was sent with [`Channel::send_all`]; waits for all of it.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn receive_all<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), IpcError> {
        let (bytes, mut descriptors) = self.receive_bytes()?;
        let (count, text) = bytes.split_first_chunk::<2>().ok_or(IpcError::TooLarge)?;
        let message = serde_json::from_slice(text).map_err(IpcError::Malformed)?;
        while descriptors.len() < usize::from(u16::from_le_bytes(*count)) {
            let (_, mut more) = self.receive_bytes()?;
            if more.is_empty() {
                return Err(IpcError::TooLarge);
            }
            descriptors.append(&mut more);
        }
        Ok((message, descriptors))
    }

    /// Receives one packet as raw bytes.
    ///
    /// # Errors
    /// As [`Channel::receive`].
    pub fn receive_bytes(&self) -> Result<(Vec<u8>, Vec<OwnedFd>), IpcError> {
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut was_reset = false;
        let got = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(got) => break got,
                Err(Errno::INTR) => {}
                // Said once when the other side has left something unread; what it has sent before is still there.
                Err(Errno::CONNRESET) if !was_reset => was_reset = true,
                Err(Errno::CONNRESET) => return Err(IpcError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        use rustix::net::ReturnFlags;
        if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(IpcError::TooLarge);
        }
        if got.bytes == 0 {
            return Err(IpcError::Closed);
        }
        bytes.truncate(got.bytes);
        Ok((bytes, descriptors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_and_descriptor_cross_and_end_is_closed() {
        let (a, b) = Channel::pair().unwrap();
        a.send(&"hello", &[a.as_fd()]).unwrap();
        let (text, fds): (String, _) = b.receive().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("hello", 1));
        drop((a, fds));
        assert!(matches!(b.receive::<String>(), Err(IpcError::Closed)));
    }

    #[test]
    fn what_was_sent_before_the_end_is_received_also_if_the_other_side_read_nothing() {
        let (a, b) = Channel::pair().unwrap();
        b.send(&"unread", &[]).unwrap();
        a.send(&"last", &[]).unwrap();
        drop(a);
        assert_eq!(b.receive::<String>().unwrap().0, "last");
        assert!(matches!(b.receive::<String>(), Err(IpcError::Closed)));
    }

    #[test]
    fn too_large_message_is_refused_before_it_is_sent() {
        let (a, _b) = Channel::pair().unwrap();
        assert!(matches!(a.send(&"x".repeat(MESSAGE_BYTES_MAX), &[]), Err(IpcError::TooLarge)));
    }

    #[test]
    fn message_with_many_descriptors_crosses_whole() {
        let (a, b) = Channel::pair().unwrap();
        for count in [0, 1, 64, 65, 200] {
            let descriptors = vec![a.as_fd(); count];
            a.send_all(&count, &descriptors).unwrap();
            let (said, fds): (usize, _) = b.receive_all().unwrap();
            assert_eq!((said, fds.len()), (count, count));
        }
    }

    #[test]
    fn malformed_message_is_named() {
        let (a, b) = Channel::pair().unwrap();
        a.send_bytes(b"{", &[]).unwrap();
        assert!(matches!(b.receive::<String>(), Err(IpcError::Malformed(_))));
    }
}
