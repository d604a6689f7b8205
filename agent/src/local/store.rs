//! The operator's side of the store: what is in it, whether it is sound, and what nobody needs any more.

use super::runner::{Runner, RunnerError};
use ampoule_spec::wire::{Reply, Request};
use ampoule_spec::{Blake3, Collect, Collected, StoreStat, StoredObject};

/// The bytes of a size such as `20GiB`, as in a job file.
pub fn size(text: &str) -> Option<u64> {
    crate::jobfile::size(text)
}

/// The seconds of an age such as `30d` or `1d12h`: days, and what a job file has for durations.
pub fn age_seconds(text: &str) -> Option<u64> {
    let (days, rest) = match text.split_once('d') {
        Some((days, rest)) if !days.is_empty() && days.bytes().all(|b| b.is_ascii_digit()) => {
            (days.parse::<u64>().ok()?, rest)
        }
        Some(_) => return None,
        None => (0, text),
    };
    let rest = match (days, rest) {
        (1.., "") => 0,
        _ => crate::jobfile::duration_ms(rest)? / 1000,
    };
    days.checked_mul(24 * 60 * 60)?.checked_add(rest)
}

/// What was found of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Bytes that were read.
    pub bytes: u64,
    /// What is wrong with it; none: nothing.
    pub damage: Option<String>,
    /// Whether it is in quarantine now.
    pub quarantined: bool,
}

impl Runner {
    /// What is in the store.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub fn store_stat(&self) -> Result<StoreStat, RunnerError> {
        match self.ask(&Request::StoreStat, &[])? {
            Reply::StoreStat(stat) => Ok(stat),
            _ => Err(RunnerError::OutOfTurn),
        }
    }

    /// Calls `each` with every object, or with those that a digest names, in the order of their names. Ends when it
    /// gives an error.
    ///
    /// # Errors
    /// [`RunnerError`], or what `each` gave.
    pub fn store_objects<E: From<RunnerError>>(
        &self,
        named: Option<&str>,
        each: &mut dyn FnMut(StoredObject) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut after: Option<Blake3> = None;
        loop {
            let request = Request::StoreList { after, named: named.map(str::to_owned) };
            let Reply::StoreObjects { objects, more } = self.ask(&request, &[])? else {
                return Err(RunnerError::OutOfTurn.into());
            };
            after = objects.last().map(|object| object.object);
            objects.into_iter().try_for_each(&mut *each)?;
            if !more || after.is_none() {
                return Ok(());
            }
        }
    }

    /// Reads an object back, every byte of it, and moves it aside if it is damaged and that is wanted.
    ///
    /// # Errors
    /// [`RunnerError`].
    pub fn store_verify(&self, object: Blake3, quarantine: bool) -> Result<Verified, RunnerError> {
        match self.ask(&Request::StoreVerify { object, quarantine }, &[])? {
            Reply::StoreVerified { damage, quarantined, bytes } => {
                Ok(Verified { bytes, damage, quarantined })
            }
            _ => Err(RunnerError::OutOfTurn),
        }
    }

    /// Removes what nobody needs.
    ///
    /// # Errors
    /// [`RunnerError`]; what was removed until then is removed.
    pub fn store_collect(&self, wanted: Collect) -> Result<Collected, RunnerError> {
        match self.ask(&Request::StoreCollect(wanted), &[])? {
            Reply::StoreCollected(collected) => Ok(collected),
            _ => Err(RunnerError::OutOfTurn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_days_and_durations_and_nothing_else() {
        for (text, seconds) in
            [("30d", 2_592_000), ("1d12h", 129_600), ("90m", 5400), ("1s", 1), ("1d1500ms", 86_401)]
        {
            assert_eq!(age_seconds(text), Some(seconds), "{text}");
        }
        for text in ["", "d", "3", "1.5d", "-1d", "1dd", "1w", "d1h", "99999999999999999d", "1h1d"] {
            assert_eq!(age_seconds(text), None, "{text}");
        }
    }
}
