//! What callers of one kind of listener share. Local sockets and TCP have a lane each, so that neither takes what is the
//! other's; and in a lane those whom nobody knows have room of their own.

use super::limits::Limits;
use super::shares::Shares;
use std::sync::Arc;

/// What stands before a message.
const PREFIX_BYTES: usize = 5;

/// The shares of one kind of listener.
#[derive(Debug)]
pub(super) struct Lane {
    /// Connections that were accepted and say nothing yet, by address, or by uid: handshakes of TLS, or all of a socket's.
    pub(super) accepted: Arc<Shares>,
    /// Connections whose caller has not been known yet, by address.
    pub(super) strangers: Arc<Shares>,
    /// Connections, by caller.
    pub(super) callers: Arc<Shares>,
    /// Bytes of messages in flight, by caller.
    pub(super) bytes: Arc<Shares>,
    /// Calls without an identity, by address or uid.
    pub(super) stranger_calls: Arc<Shares>,
    /// Bytes of their messages.
    pub(super) stranger_bytes: Arc<Shares>,
}

impl Lane {
    pub(super) fn new(limits: &Limits, is_local: bool) -> Self {
        let shares = |of: super::limits::Bound, size: usize| Shares::new(of.all * size, of.each * size);
        let message = limits.stranger_message_bytes + PREFIX_BYTES;
        Self {
            accepted: shares(if is_local { limits.connections } else { limits.handshakes }, 1),
            strangers: shares(limits.strangers, 1),
            callers: shares(limits.connections, 1),
            bytes: shares(limits.bytes, 1),
            stranger_calls: shares(limits.stranger_calls, 1),
            stranger_bytes: shares(limits.stranger_calls, message),
        }
    }
}
