//! What one client, and all of them, may cost.

use std::time::Duration;

/// Limits of the listeners.
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
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address, or of one uid on a local socket.
    pub connections_per_peer: usize,
    /// Connections of one caller.
    pub connections_per_caller: usize,
    /// Calls at once in a connection.
    pub streams: u32,
    /// Bytes of a request's headers.
    pub header_bytes: u32,
    /// Streams of a connection that the peer has reset and that are not gone yet.
    pub pending_resets: usize,
    /// The largest message.
    pub message_bytes: usize,
    /// Bytes of messages of one caller that are in flight.
    pub bytes_per_caller: usize,
    /// Bytes of messages in flight in all.
    pub bytes: usize,
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
            connections: 1024,
            connections_per_peer: 128,
            connections_per_caller: 64,
            streams: 100,
            header_bytes: 16 << 10,
            pending_resets: 20,
            message_bytes: 4 << 20,
            bytes_per_caller: 16 << 20,
            bytes: 64 << 20,
        }
    }
}
