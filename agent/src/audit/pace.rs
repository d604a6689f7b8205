//! How often each caller may have something written down.
//!
//! A bucket of tokens for each caller, kept as the one time at which it is full again (the generic cell rate algorithm, ITU-T I.371).

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The most callers that are told apart at a time; what is beyond shares one bucket.
const CALLERS_MAX: usize = 4096;
/// Whose that is: no caller is called so.
const OTHERS: &str = "";

/// How often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Entries a second, for good.
    pub per_second: u32,
    /// Entries at once, after a time without any.
    pub burst: u32,
}

impl Default for Rate {
    /// 20 a second, 10 000 at once.
    fn default() -> Self {
        Self { per_second: 20, burst: 10_000 }
    }
}

/// What callers have used of their rate.
#[derive(Debug, Default)]
pub struct Pace {
    rate: Rate,
    /// When each bucket is full again. One that is full is not kept.
    full_at: HashMap<String, Instant>,
}

impl Pace {
    /// Callers that have used nothing yet.
    pub fn new(rate: Rate) -> Self {
        Self { rate, full_at: HashMap::new() }
    }

    /// The rate from now on. With another one everybody has used nothing yet.
    pub fn set(&mut self, rate: Rate) {
        if rate != self.rate {
            *self = Self::new(rate);
        }
    }

    /// Takes a token of a caller's.
    ///
    /// # Errors
    /// There is none: when there will be one.
    pub fn take(&mut self, caller: &str, now: Instant) -> Result<(), Duration> {
        let each = Duration::from_secs(1) / self.rate.per_second.max(1);
        let most = each.saturating_mul(self.rate.burst.max(1));
        if self.full_at.len() >= CALLERS_MAX {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        let is_known = self.full_at.contains_key(caller) || self.full_at.len() < CALLERS_MAX;
        let full_at = self.full_at.entry(if is_known { caller } else { OTHERS }.to_owned()).or_insert(now);
        let after = full_at.saturating_duration_since(now).saturating_add(each);
        if after > most {
            return Err(after.saturating_sub(most));
        }
        *full_at = now + after;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caller_has_its_burst_and_then_its_rate_and_takes_nothing_of_anothers() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut pace = Pace::new(Rate { per_second: 10, burst: 5 });
        for _ in 0..5 {
            pace.take("a", at(0)).unwrap();
        }
        assert_eq!(pace.take("a", at(0)).unwrap_err(), Duration::from_millis(100));
        assert_eq!(pace.take("a", at(60)).unwrap_err(), Duration::from_millis(40));
        pace.take("b", at(60)).unwrap();
        // Being refused costs nothing.
        pace.take("a", at(100)).unwrap();
        pace.take("a", at(100)).unwrap_err();
        // For good: ten a second, whatever the caller asks for.
        let taken = (100..10_100).filter(|ms| pace.take("a", at(*ms)).is_ok()).count();
        assert_eq!(taken, 99);
        // And after a rest its burst again, and no more.
        assert_eq!((0..9).filter(|_| pace.take("a", at(99_000)).is_ok()).count(), 5);
        let rate = Rate { per_second: 10, burst: 1 };
        pace.set(rate);
        pace.take("a", at(99_000)).unwrap();
        pace.set(rate);
        pace.take("a", at(99_000)).unwrap_err();
    }

    #[test]
    fn callers_without_number_cost_no_memory_without_bound_and_are_bounded_together() {
        let now = Instant::now();
        let mut pace = Pace::new(Rate { per_second: 1, burst: 2 });
        for number in 0..CALLERS_MAX {
            pace.take(&number.to_string(), now).unwrap();
        }
        assert_eq!((0..100).filter(|n| pace.take(&format!("more {n}"), now).is_ok()).count(), 2);
        assert!(pace.full_at.len() <= CALLERS_MAX + 1);
        // Who is known is told apart all the same; whose bucket is full is forgotten.
        pace.take("7", now).unwrap();
        pace.take("new", now + Duration::from_secs(60)).unwrap();
        assert_eq!(pace.full_at.len(), 1);
    }
}
