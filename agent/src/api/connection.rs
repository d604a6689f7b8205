//! What is known of one connection.

use super::places::Place;
use super::shares::{Share, Shares};
use crate::identity::Shown;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

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
    /// Held for as long as nobody knows who calls.
    stranger: Mutex<Option<Place>>,
}

impl Connection {
    pub(super) fn new(shown: Shown, peer: Arc<str>) -> Self {
        let (callers, stranger) = Default::default();
        Self { shown, peer, calls: AtomicU64::new(0), active: Arc::default(), callers, stranger }
    }

    fn stranger(&self) -> MutexGuard<'_, Option<Place>> {
        self.stranger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the connection among those of strangers, until it belongs to somebody.
    pub(super) fn is_strangers(&self, place: Place) {
        *self.stranger() = Some(place);
    }

    /// Is cancelled when its place among strangers is given up; never once it belongs to somebody.
    pub(super) fn given_up(&self) -> Option<CancellationToken> {
        self.stranger().as_ref().map(Place::given_up)
    }

    /// Who has proven first that it is his, if anybody has.
    pub(super) fn caller(&self) -> Option<String> {
        let callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.first().map(|(caller, _)| caller.clone())
    }

    /// Whether nobody knows who calls.
    pub(super) fn is_stranger(&self) -> bool {
        self.stranger().is_some()
    }

    /// Whose share a call without an identity takes.
    pub(super) fn address(&self) -> String {
        match self.shown {
            Shown::Peer(uid) => format!("uid:{uid}"),
            _ => self.peer.to_string(),
        }
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
                drop(self.stranger().take());
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
