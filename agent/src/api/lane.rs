//! What callers of one kind of listener share. Local sockets and TCP have a lane each, so that neither takes what is the
//! other's; and in a lane those whom nobody knows have room of their own.

use super::limits::Limits;
use super::places::Places;
use super::shares::Shares;
use std::sync::Arc;

/// What stands before a message.
const PREFIX_BYTES: usize = 5;

/// The shares of one kind of listener.
#[derive(Debug)]
pub(super) struct Lane {
    /// Connections of a socket, by uid.
    pub(super) accepted: Arc<Shares>,
    /// Handshakes of TLS that are under way, by address.
    pub(super) handshakes: Arc<Places>,
    /// Connections whose caller has not been known yet, by address.
    pub(super) strangers: Arc<Places>,
    /// Connections, by caller.
    pub(super) callers: Arc<Shares>,
    /// Bytes of messages in flight, by caller.
    pub(super) bytes: Arc<Shares>,
    /// Calls of health over connections of those who are known, by caller.
    pub(super) health_calls: Arc<Shares>,
    /// The same of those who are not, by address or uid.
    pub(super) stranger_calls: Arc<Shares>,
    /// Bytes of their messages.
    pub(super) stranger_bytes: Arc<Shares>,
}

impl Lane {
    pub(super) fn new(limits: &Limits) -> Self {
        let shares = |of: super::limits::Bound, size: usize| Shares::new(of.all * size, of.each * size);
        let message = limits.stranger_message_bytes + PREFIX_BYTES;
        Self {
            accepted: shares(limits.connections, 1),
            handshakes: Places::new(limits.handshakes.all, limits.handshakes.each),
            strangers: Places::new(limits.strangers.all, limits.strangers.each),
            callers: shares(limits.connections, 1),
            bytes: shares(limits.bytes, 1),
            health_calls: shares(limits.stranger_calls, 1),
            stranger_calls: shares(limits.stranger_calls, 1),
            stranger_bytes: shares(limits.stranger_calls, message),
        }
    }
}
