//! Places of connections that have proven nothing yet.
//!
//! Guarantees: there are never more than the bounds say, and whoever comes has one. If none is left, the oldest is given up
//! for it of those of whoever has most: so many that come from a few addresses displace each other, and who needs a moment to
//! prove who he is has that.
//! Not guaranteed: that moment, when as many addresses as there are places come at once, again and again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// A bounded number of places, in all and for each holder.
#[derive(Debug)]
pub(super) struct Places {
    all_max: usize,
    each_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// In the order in which they were taken.
    places: BTreeMap<u64, (String, CancellationToken)>,
    next: u64,
}

/// A place; it is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Places>,
    number: u64,
    given_up: CancellationToken,
}

impl Places {
    pub(super) fn new(all_max: usize, each_max: usize) -> Arc<Self> {
        Arc::new(Self { all_max, each_max, taken: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if need be somebody else's.
    pub(super) fn take(self: &Arc<Self>, holder: &str) -> Place {
        let mut taken = self.taken();
        while let Some(oldest) = taken.in_the_way(holder, self) {
            if let Some((of, given_up)) = taken.places.remove(&oldest) {
                tracing::debug!(%of, "a connection that has proven nothing yet is ended for another one");
                given_up.cancel();
            }
        }
        let (number, given_up) = (taken.next, CancellationToken::new());
        taken.next += 1;
        taken.places.insert(number, (holder.to_owned(), given_up.clone()));
        Place { of: Arc::clone(self), number, given_up }
    }
}

impl Taken {
    /// The place that has to be given up before this holder may have one more.
    fn in_the_way(&self, holder: &str, of: &Places) -> Option<u64> {
        if self.places.len() < of.each_max.min(of.all_max) {
            return None;
        }
        let mut counts = HashMap::<&str, usize>::new();
        for (holder, _) in self.places.values() {
            *counts.entry(holder).or_default() += 1;
        }
        let oldest = |of: &dyn Fn(&str) -> bool| {
            self.places.iter().find(|(_, (holder, _))| of(holder)).map(|(number, _)| *number)
        };
        if counts.get(holder).is_some_and(|has| *has >= of.each_max) {
            return oldest(&|other| other == holder);
        }
        if self.places.len() < of.all_max {
            return None;
        }
        let most = counts.values().max()?;
        oldest(&|other| counts.get(other) == Some(most))
    }
}

impl Place {
    /// Is cancelled when the place is given up for somebody else: then its connection ends.
    pub(super) fn given_up(&self) -> CancellationToken {
        self.given_up.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.taken().places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each place is there still.
    fn there(places: &[Place]) -> Vec<bool> {
        places.iter().map(|place| !place.given_up.is_cancelled()).collect()
    }

    #[test]
    fn oldest_of_whoever_has_most_makes_room_and_nobody_else() {
        let places = Places::new(6, 3);
        let take = |holders: &str| holders.chars().map(|c| places.take(&c.to_string())).collect::<Vec<_>>();
        let mut held = take("baaacc");
        assert_eq!(there(&held), [true; 6]);
        // Of one who has as many as he may it is his own; of all it is that of a, though b came first and asks now.
        held.extend(take("a"));
        assert_eq!(there(&held), [true, false, true, true, true, true, true]);
        held.extend(take("b"));
        assert_eq!(there(&held), [true, false, false, true, true, true, true, true]);
        // All have two: the oldest of all.
        held.extend(take("d"));
        assert_eq!(there(&held), [false, false, false, true, true, true, true, true, true]);
        assert_eq!(places.taken().places.len(), 6);
        // One that is given back is nobody's to give up.
        drop(held.pop());
        held.extend(take("e"));
        assert_eq!(there(&held).iter().filter(|there| **there).count(), 6);
        drop(held);
        assert!(places.taken().places.is_empty());
        let none = Places::new(0, 0);
        drop((none.take("a"), none.take("a")));
    }
}
