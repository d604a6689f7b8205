//! Shares of something that there is a bounded amount of, in all and for each holder.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// An amount that holders have shares of.
#[derive(Debug)]
pub(super) struct Shares {
    all_max: usize,
    each_max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    /// Those who hold nothing are not in it: it is as large as what is held.
    each: HashMap<String, usize>,
}

/// A share; it is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<Shares>,
    holder: String,
    amount: usize,
}

/// A share that goes with an answer until its reader has had all of it, among the extensions of the response.
#[derive(Debug, Clone)]
pub(super) struct WithAnswer(Arc<Share>);

impl WithAnswer {
    /// The answer, and the share that it takes.
    pub(super) fn holds<T>(answer: T, share: Share) -> tonic::Response<T> {
        let mut response = tonic::Response::new(answer);
        response.extensions_mut().insert(Self(Arc::new(share)));
        response
    }

    /// The share.
    pub(super) fn of(extensions: &mut http::Extensions) -> Option<Arc<Share>> {
        extensions.remove::<Self>().map(|of| of.0)
    }
}

impl Share {
    /// Gives back what is beyond this.
    pub(super) fn shrink_to(&mut self, amount: usize) {
        let less = self.amount.saturating_sub(amount);
        self.amount -= less;
        self.of.give_back(&self.holder, less);
    }
}

impl Shares {
    pub(super) fn new(all_max: usize, each_max: usize) -> Arc<Self> {
        Arc::new(Self { all_max, each_max, held: Mutex::default() })
    }

    /// A share of this size; none if there is not so much left for the holder or in all.
    pub(super) fn take(self: &Arc<Self>, holder: &str, amount: usize) -> Option<Share> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let has = held.each.get(holder).copied().unwrap_or_default();
        if has + amount > self.each_max || held.all + amount > self.all_max {
            return None;
        }
        held.all += amount;
        held.each.insert(holder.to_owned(), has + amount);
        Some(Share { of: Arc::clone(self), holder: holder.to_owned(), amount })
    }

    fn give_back(&self, holder: &str, amount: usize) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.all = held.all.saturating_sub(amount);
        if let Some(has) = held.each.get_mut(holder) {
            *has = has.saturating_sub(amount);
            if *has == 0 {
                held.each.remove(holder);
            }
        }
    }

    /// How much is held in all.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).all
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.give_back(&self.holder, self.amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_more_than_a_share_and_it_is_given_back() {
        let shares = Shares::new(10, 6);
        let a = shares.take("a", 6).unwrap();
        assert!(shares.take("a", 1).is_none());
        let b = shares.take("b", 4).unwrap();
        assert!(shares.take("b", 1).is_none(), "nothing is left");
        drop(a);
        let again = shares.take("b", 2).unwrap();
        assert!(shares.take("b", 1).is_none());
        drop(again);
        let (mut b, a) = (b, shares.take("a", 6).unwrap());
        b.shrink_to(1);
        b.shrink_to(3);
        assert_eq!(shares.held(), 7);
        drop((a, b));
        assert_eq!(shares.held(), 0);
        assert!(shares.held.lock().unwrap().each.is_empty());
    }
}
