//! Reads of what the same caller has read a moment ago, counted until there is time to write them down.
//!
//! Guaranteed: only what stands in the log is counted, so each read of a time has an entry that is older than it; the sum of all
//! counts is the number of reads that were counted; and no caller takes the room of another.

use super::{Action, AuditEvent};
use ampoule_spec::JobId;
use std::collections::BTreeMap;

/// The most things of one caller, and of all, whose reads are counted at a time. What is beyond has an entry for each read.
const THINGS_MAX: (usize, usize) = (256, 4096);

/// What is read: the same action on the same job, by the same call from the same place.
type Thing = (Action, Option<JobId>, BTreeMap<String, String>);

/// What stands in the log of this time, by caller, and how often it was read again: the first of those, as it will be told.
#[derive(Debug, Default)]
pub struct Repeats {
    callers: BTreeMap<String, BTreeMap<Thing, Option<(AuditEvent, u64)>>>,
    things: usize,
}

fn thing(event: &AuditEvent) -> Thing {
    (event.action, event.job.clone(), event.detail.clone())
}

impl Repeats {
    /// Counts a read if an entry of the same stands in the log; whether it does.
    pub fn count(&mut self, event: &AuditEvent) -> bool {
        let known = self.callers.get_mut(&event.actor).and_then(|things| things.get_mut(&thing(event)));
        match known {
            None => return false,
            Some(Some((_, count))) => *count += 1,
            Some(new) => *new = Some((event.clone(), 1)),
        }
        true
    }

    /// An entry of this stands in the log.
    pub fn stands(&mut self, event: &AuditEvent) {
        if self.things >= THINGS_MAX.1 {
            return;
        }
        let of = self.callers.entry(event.actor.clone()).or_default();
        if of.len() < THINGS_MAX.0 && !of.contains_key(&thing(event)) {
            of.insert(thing(event), None);
            self.things += 1;
        }
    }

    /// What was counted, as entries, and begins again: what was read before needs an entry of its own then. One that tells of more
    /// than one read says of how many: `detail.calls`; its time is that of the first.
    pub fn take(&mut self) -> Vec<AuditEvent> {
        self.things = 0;
        let things = std::mem::take(&mut self.callers).into_values().flat_map(BTreeMap::into_values);
        let told =
            |(event, n): (AuditEvent, u64)| if n > 1 { event.with("calls", n.to_string()) } else { event };
        things.flatten().map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(caller: &str, output: usize) -> AuditEvent {
        AuditEvent::now(Action::OutputsRead, caller).with("output", output.to_string())
    }

    #[test]
    fn only_what_stands_is_counted_and_each_count_is_exact() {
        let mut repeats = Repeats::default();
        assert!(!repeats.count(&read("a", 1)), "nothing stands in the log");
        repeats.stands(&read("a", 1));
        assert!(!repeats.count(&read("a", 2)) && !repeats.count(&read("b", 1)));
        repeats.stands(&read("a", 2));
        for _ in 0..7 {
            assert!(repeats.count(&read("a", 1)));
        }
        assert!(repeats.count(&read("a", 2)));
        let told: Vec<_> = repeats.take().into_iter().map(|event| event.detail).collect();
        let calls = |at: usize| (told[at]["output"].as_str(), told[at].get("calls").map(String::as_str));
        assert_eq!((told.len(), calls(0), calls(1)), (2, ("1", Some("7")), ("2", None)));
        assert!(!repeats.count(&read("a", 1)), "an entry of another time does not count");
        assert!(repeats.take().is_empty());
    }

    #[test]
    fn nobody_has_more_than_a_share_of_the_room() {
        let mut repeats = Repeats::default();
        for number in 0..10_000 {
            repeats.stands(&read("a", number));
            repeats.stands(&read(&format!("caller {number}"), 1));
        }
        repeats.stands(&read("a", 0));
        assert_eq!(repeats.callers["a"].len(), THINGS_MAX.0);
        assert_eq!(repeats.callers.values().map(BTreeMap::len).sum::<usize>(), THINGS_MAX.1);
        assert!(!repeats.count(&read("a", 9_999)), "it has an entry for each read");
    }
}
