//! What is known of one connection.

use super::shares::{Share, Shares};
use crate::identity::Shown;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The most callers of one connection: a proxy may bring several, each with its token.
const CALLERS_MAX: usize = 16;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// What it has proven.
    pub(super) shown: Shown,
    /// `unix` or an address.
    pub(super) peer: Arc<str>,
    /// Calls that came.
    pub(super) calls: AtomicU64,
    /// Calls in flight.
    pub(super) active: Arc<AtomicUsize>,
    callers: Mutex<Vec<(String, Share)>>,
}

impl Connection {
    pub(super) fn new(shown: Shown, peer: Arc<str>) -> Self {
        Self { shown, peer, calls: AtomicU64::new(0), active: Arc::default(), callers: Mutex::default() }
    }

    /// Counts the connection among those of the caller, once; false if it has too many.
    pub(super) fn belongs_to(&self, caller: &str, shares: &Arc<Shares>) -> bool {
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if callers.iter().any(|(known, _)| known == caller) {
            return true;
        }
        match (callers.len() < CALLERS_MAX, shares.take(caller, 1)) {
            (true, Some(share)) => {
                callers.push((caller.to_owned(), share));
                true
            }
            _ => false,
        }
    }

    pub(super) fn is_local(&self) -> bool {
        matches!(self.shown, Shown::Peer(_))
    }

    /// Notes a call. How many there were.
    pub(super) fn called(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}
