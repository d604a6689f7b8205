//! What one client, and all of them, may cost.

use std::time::Duration;

/// How much there is for all, and for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// For all together.
    pub all: usize,
    /// For one.
    pub each: usize,
}

const fn bound(all: usize, each: usize) -> Bound {
    Bound { all, each }
}

/// Limits of the listeners. Local sockets and TCP have each of them for themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long after it the first call may take to come.
    pub first_call: Duration,
    /// How long a request may take to arrive, if it is one message.
    pub message: Duration,
    /// How long a stream's reader may take nothing.
    pub stall: Duration,
    /// The longest call. Whoever watches or uploads goes on with another.
    pub call: Duration,
    /// How long a connection may have no call.
    pub idle: Duration,
    /// After so long a connection is ended gracefully, so that its certificate is looked at again.
    pub age: Duration,
    /// How often a silent peer is asked whether it is there.
    pub keep_alive: Duration,
    /// How long it may take to answer that.
    pub keep_alive_answer: Duration,
    /// How long calls in flight may take when the server stops.
    pub drain: Duration,
    /// TLS handshakes that are under way, by address.
    pub handshakes: Bound,
    /// Connections whose caller has not been known yet, by address.
    pub strangers: Bound,
    /// How long such a connection may last.
    pub stranger_age: Duration,
    /// Connections, by caller; on local sockets by uid as well.
    pub connections: Bound,
    /// Calls at once in a connection.
    pub streams: u32,
    /// Bytes of a request's headers.
    pub header_bytes: u32,
    /// Streams of a connection that the peer has reset and that are not gone yet.
    pub pending_resets: usize,
    /// The largest message.
    pub message_bytes: usize,
    /// The largest first message of a stream: it says what the stream is about.
    pub first_message_bytes: usize,
    /// The largest of those after it.
    pub part_bytes: usize,
    /// Bytes of messages that are in flight, by caller.
    pub bytes: Bound,
    /// The largest message of a call that needs no identity.
    pub stranger_message_bytes: usize,
    /// Such calls that are in flight, by address or uid: each has a message of at most that size.
    pub stranger_calls: Bound,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            first_call: Duration::from_secs(10),
            message: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            call: Duration::from_secs(3600),
            idle: Duration::from_secs(300),
            age: Duration::from_secs(3600),
            keep_alive: Duration::from_secs(20),
            keep_alive_answer: Duration::from_secs(20),
            drain: Duration::from_secs(30),
            handshakes: bound(256, 64),
            strangers: bound(128, 16),
            stranger_age: Duration::from_secs(300),
            connections: bound(512, 64),
            streams: 100,
            header_bytes: 16 << 10,
            pending_resets: 20,
            message_bytes: 4 << 20,
            first_message_bytes: 16 << 10,
            part_bytes: (1 << 20) + (1 << 10),
            bytes: bound(64 << 20, 16 << 20),
            stranger_message_bytes: 1 << 10,
            stranger_calls: bound(256, 16),
        }
    }
}
