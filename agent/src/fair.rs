//! Seats that holders take turns at, so that whoever asks for most does not have most.
//!
//! Guarantees: nobody holds more than a share of the seats, which is less than all of them where there is more than one, so
//! that a newcomer is never behind one who came before; a seat that is given back goes to who waits and holds the fewest, in
//! turn among equals; among the waiting of one holder the first is first.
//! Not guaranteed: that holders who work together do not have all seats. Who is a holder is for the caller to say.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Seats of which there is a bounded number, in all and for each holder.
#[derive(Debug)]
pub struct Seats {
    all_max: usize,
    each_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// Those who hold nothing are not in it: it is as large as what is held.
    held: HashMap<String, usize>,
    /// Those who wait, in the order of their turns. Nobody is in it without anybody who waits.
    turns: VecDeque<(String, VecDeque<oneshot::Sender<Seat>>)>,
}

/// A seat; it is given back when it is dropped.
#[derive(Debug)]
pub struct Seat {
    of: Arc<Seats>,
    holder: String,
    given_back: bool,
}

impl Seats {
    /// `all` seats (at least one), of which a holder has at most `each`.
    pub fn new(all: usize, each: usize) -> Arc<Self> {
        let all_max = all.max(1);
        Arc::new(Self { all_max, each_max: each.clamp(1, all_max), state: Mutex::default() })
    }

    /// `all` seats, of which a holder has all but one: there is always one for another.
    pub fn all_but_one(all: usize) -> Arc<Self> {
        Self::new(all, all.saturating_sub(1))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat if there is one now. Who waits is not passed: he waits because there is none for him.
    pub fn try_take(self: &Arc<Self>, holder: &str) -> Option<Seat> {
        self.state().may_take(holder, self).then(|| self.seat(holder))
    }

    /// Waits for a seat. Whoever stops waiting has not taken one.
    pub async fn take(self: &Arc<Self>, holder: &str) -> Seat {
        loop {
            let waiting = {
                let mut state = self.state();
                if state.may_take(holder, self) {
                    drop(state);
                    return self.seat(holder);
                }
                state.wait(holder)
            };
            // A sender is never dropped without a seat; if one were, the next look tells.
            if let Ok(seat) = waiting.await {
                return seat;
            }
        }
    }

    /// Waits for a seat, for so long at most.
    pub async fn take_within(self: &Arc<Self>, holder: &str, within: Duration) -> Option<Seat> {
        tokio::time::timeout(within, self.take(holder)).await.ok()
    }

    /// Whether somebody waits who has fewer than this holder: a seat that it gave back would be his.
    pub fn is_wanted_of(&self, holder: &str) -> bool {
        let state = self.state();
        let has = |name: &str| state.held.get(name).copied().unwrap_or_default();
        let waits = |waiting: &VecDeque<oneshot::Sender<Seat>>| waiting.iter().any(|one| !one.is_closed());
        state.turns.iter().any(|(name, waiting)| has(name) < has(holder) && waits(waiting))
    }

    /// How many seats are taken, and how many wait for one.
    pub fn load(&self) -> (usize, usize) {
        let state = self.state();
        (state.taken, state.turns.iter().map(|(_, waiting)| waiting.len()).sum())
    }

    /// What [`State::may_take`] has counted.
    fn seat(self: &Arc<Self>, holder: &str) -> Seat {
        Seat { of: Arc::clone(self), holder: holder.to_owned(), given_back: false }
    }

    fn give_back(self: &Arc<Self>, holder: &str) {
        self.state().leave(holder);
        loop {
            let next = self.state().next(self);
            let Some((holder, waiting)) = next else { return };
            let seat = self.seat(&holder);
            // Who has stopped waiting just now leaves it to the next of this loop, and not to a call within this one.
            if let Err(mut seat) = waiting.send(seat) {
                seat.given_back = true;
                self.state().leave(&holder);
            }
        }
    }
}

impl State {
    /// Counts one more seat of the holder's, if he may have it.
    fn may_take(&mut self, holder: &str, seats: &Seats) -> bool {
        let has = self.held.get(holder).copied().unwrap_or_default();
        let may = self.taken < seats.all_max && has < seats.each_max;
        if may {
            self.taken += 1;
            self.held.insert(holder.to_owned(), has + 1);
        }
        may
    }

    fn leave(&mut self, holder: &str) {
        self.taken = self.taken.saturating_sub(1);
        if let Some(has) = self.held.get_mut(holder) {
            *has = has.saturating_sub(1);
            if *has == 0 {
                self.held.remove(holder);
            }
        }
    }

    fn wait(&mut self, holder: &str) -> oneshot::Receiver<Seat> {
        let (sender, receiver) = oneshot::channel();
        match self.turns.iter_mut().find(|(name, _)| name == holder) {
            Some((_, waiting)) => {
                // Who asks and goes away, again and again, leaves nothing that grows.
                waiting.retain(|one| !one.is_closed());
                waiting.push_back(sender);
            }
            None => {
                self.turns.retain_mut(|(_, waiting)| {
                    waiting.retain(|one| !one.is_closed());
                    !waiting.is_empty()
                });
                self.turns.push_back((holder.to_owned(), VecDeque::from([sender])));
            }
        }
        receiver
    }

    /// Counts a seat for who is next, if there is one and somebody waits who may have it.
    fn next(&mut self, seats: &Seats) -> Option<(String, oneshot::Sender<Seat>)> {
        loop {
            let has = |name: &str| self.held.get(name).copied().unwrap_or_default();
            let turns = self.turns.iter().enumerate().map(|(at, (name, _))| (has(name), at));
            let (_, at) = turns.filter(|(has, _)| *has < seats.each_max).min()?;
            if self.taken >= seats.all_max {
                return None;
            }
            let (name, mut waiting) = self.turns.remove(at)?;
            let first = std::iter::from_fn(|| waiting.pop_front()).find(|one| !one.is_closed());
            let holder = name.clone();
            if !waiting.is_empty() {
                self.turns.push_back((name, waiting));
            }
            if let Some(first) = first {
                self.may_take(&holder, seats);
                return Some((holder, first));
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.given_back {
            self.of.give_back(&self.holder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;

    /// Somebody who waits, asked once so that it has its place.
    fn waits(seats: &Arc<Seats>, holder: &'static str) -> BoxFuture<'static, Seat> {
        let seats = Arc::clone(seats);
        let mut waits = async move { seats.take(holder).await }.boxed();
        assert!((&mut waits).now_or_never().is_none(), "{holder} has a seat at once");
        waits
    }

    fn has(waits: &mut BoxFuture<'static, Seat>) -> Option<Seat> {
        waits.now_or_never()
    }

    #[test]
    fn nobody_has_all_seats_and_one_is_left_for_another() {
        let seats = Seats::all_but_one(4);
        let held: Vec<_> = std::iter::from_fn(|| seats.try_take("a")).collect();
        assert_eq!(held.len(), 3);
        let mut more: Vec<_> = (0..100).map(|_| waits(&seats, "a")).collect();
        // However many of one holder wait, another is not behind them.
        let b = seats.take("b").now_or_never().unwrap();
        assert!(seats.try_take("b").is_none());
        assert_eq!(seats.load(), (4, 100));
        drop(b);
        assert!(more.iter_mut().all(|one| has(one).is_none()), "more than its share");
        drop((held, more));
        assert_eq!(seats.load().0, 0);
        let alone = Seats::all_but_one(1);
        assert!(alone.try_take("a").is_some(), "one seat is for everybody");
    }

    #[test]
    fn who_holds_fewest_is_next_and_equals_take_turns() {
        let seats = Seats::new(4, 3);
        let mut held: Vec<_> = ["a", "a", "a", "b"].map(|holder| seats.try_take(holder).unwrap()).into();
        let (mut a, mut a2) = (waits(&seats, "a"), waits(&seats, "a"));
        let (mut b, mut b2) = (waits(&seats, "b"), waits(&seats, "b"));
        let mut c = waits(&seats, "c");
        drop(held.pop());
        // Neither b nor c has one now, and b came first; then c, and then b again, which has two; a has three.
        let b = has(&mut b).expect("b came first");
        drop(held.pop());
        let c = has(&mut c).expect("c has none");
        assert!(has(&mut b2).is_none() && has(&mut a).is_none());
        drop(held.pop());
        // a and b hold one: a has waited for longer since its last turn.
        let a = has(&mut a).expect("a has not had its turn");
        drop(held.pop());
        let b2 = has(&mut b2);
        let a2 = has(&mut a2);
        assert!(b2.is_some() != a2.is_some(), "one of them");
        drop((a, b, c, b2, a2));
    }

    #[test]
    fn who_stops_waiting_has_taken_nothing() {
        let seats = Seats::new(1, 1);
        let held = seats.try_take("a").unwrap();
        for _ in 0..1000 {
            drop(waits(&seats, "b"));
        }
        assert!(seats.load().1 <= 1, "what stopped waiting is kept: {:?}", seats.load());
        let (gone, mut b) = (waits(&seats, "c"), waits(&seats, "b"));
        drop(gone);
        drop(held);
        let b = has(&mut b).expect("nobody else waits");
        // Given and not taken.
        let c = waits(&seats, "c");
        drop(b);
        let d = waits(&seats, "d");
        drop(c);
        drop(d);
        assert_eq!(seats.load(), (0, 0));
        assert!(seats.try_take("e").is_some());
    }

    proptest::proptest! {
        /// Whatever comes and goes: bounds hold, and no seat is free for one who waits.
        #[test]
        fn no_seat_is_free_for_one_who_waits(moves in proptest::collection::vec((0..4_usize, 0..3_usize, 0..8_usize), 0..200)) {
            const NAMES: [&str; 4] = ["a", "b", "c", "d"];
            let seats = Seats::new(5, 3);
            let (mut held, mut waiting) = (Vec::<(usize, Seat)>::new(), Vec::<(usize, BoxFuture<'static, Seat>)>::new());
            for (who, what, which) in moves {
                match what {
                    0 => {
                        let of = Arc::clone(&seats);
                        waiting.push((who, async move { of.take(NAMES[who]).await }.boxed()));
                    }
                    1 if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                    2 if !waiting.is_empty() => drop(waiting.swap_remove(which % waiting.len())),
                    _ => {}
                }
                let mut still = Vec::new();
                for (who, mut one) in waiting {
                    match has(&mut one) {
                        Some(seat) => held.push((who, seat)),
                        None => still.push((who, one)),
                    }
                }
                waiting = still;
                let of = |who: usize| held.iter().filter(|(holder, _)| *holder == who).count();
                assert!(held.len() <= 5 && (0..4).all(|who| of(who) <= 3));
                assert_eq!(seats.load().0, held.len());
                for (who, _) in &waiting {
                    assert!(held.len() == 5 || of(*who) == 3, "a seat is free for {who}");
                }
            }
            drop((waiting, held));
            assert_eq!(seats.load(), (0, 0));
        }
    }
}
