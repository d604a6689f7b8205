//! Refused calls, counted until there is time to write them down: a stranger decides how often they come.
//!
//! Guaranteed: the sum of all counts is the number of calls that were taken, whatever a stranger calls himself; and what waits
//! here has a bound of its own, so that it never has the place of anything else.

use super::{Action, AuditEvent, OURSELVES};
use crate::audit_sink::{Refusal, Refused};
use ampoule_spec::{JobId, Name};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// How many kinds of refused calls are told apart at a time; the others are counted by what refused them.
pub const KINDS_MAX: usize = 64;
/// The most characters of what a stranger has said that are kept of each text.
const TEXT_CHARS_MAX: usize = 256;

/// What makes two refused calls one entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    action: Action,
    actor: String,
    peer: String,
    call: String,
    wanted: Option<String>,
    project: Option<String>,
    job: Option<JobId>,
    /// Of what was not done, a code of ours; of others the first reason is told.
    code: Option<String>,
}

/// Refused calls that no entry tells of yet.
#[derive(Debug, Default)]
pub struct Tally {
    /// The first of a kind as it will be told, and how many there were.
    kinds: BTreeMap<Kind, (AuditEvent, u64)>,
    beyond: BTreeMap<Action, u64>,
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

fn action(refusal: Refusal) -> Action {
    match refusal {
        Refusal::Unidentified => Action::AuthFailed,
        Refusal::Denied => Action::Denied,
        Refusal::NotDone => Action::NotDone,
    }
}

impl Tally {
    /// Counts one call.
    pub fn count(&mut self, refused: &Refused<'_>) {
        let action = action(refused.refusal);
        let kind = Kind {
            action,
            actor: refused.caller.unwrap_or("unknown").to_owned(),
            peer: cut(refused.peer),
            call: cut(refused.call),
            wanted: refused.action.map(cut),
            project: refused.project.map(cut),
            job: refused.job.cloned(),
            code: (refused.refusal == Refusal::NotDone).then(|| cut(refused.reason)),
        };
        let is_full = self.kinds.len() >= KINDS_MAX;
        match self.kinds.entry(kind) {
            Entry::Occupied(mut known) => known.get_mut().1 += 1,
            Entry::Vacant(_) if is_full => *self.beyond.entry(action).or_default() += 1,
            Entry::Vacant(new) => {
                let event = first(new.key(), refused.reason);
                new.insert((event, 1));
            }
        }
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty() && self.beyond.is_empty()
    }

    /// Everything that was counted, as entries, and begins again. One that tells of more than one call says of how many:
    /// `detail.calls`; its time and reason are those of the first.
    pub fn take(&mut self) -> Vec<AuditEvent> {
        let told = std::mem::take(&mut self.kinds).into_values();
        let told =
            told.map(|(event, calls)| if calls > 1 { event.with("calls", calls.to_string()) } else { event });
        let beyond = std::mem::take(&mut self.beyond).into_iter().map(|(action, calls)| {
            let reason = "more kinds of calls were refused than are told apart";
            AuditEvent::now(action, OURSELVES).denied(reason).with("calls", calls.to_string())
        });
        told.chain(beyond).collect()
    }
}

fn first(kind: &Kind, reason: &str) -> AuditEvent {
    let mut event = AuditEvent::now(kind.action, kind.actor.clone()).denied(cut(reason));
    event.project = kind.project.as_deref().and_then(|project| Name::parse(project).ok());
    event.job = kind.job.clone();
    let texts = [
        ("peer", Some(&kind.peer)),
        ("call", Some(&kind.call)),
        ("action", kind.wanted.as_ref()),
        // What a stranger calls a project need not be a name.
        ("project", kind.project.as_ref().filter(|_| event.project.is_none())),
    ];
    for (name, text) in texts {
        event.detail.extend(text.map(|text| (name.to_owned(), text.clone())));
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<'a>(call: &'a str, project: Option<&'a str>) -> Refused<'a> {
        Refused {
            refusal: Refusal::Denied,
            peer: "unix",
            caller: None,
            call,
            action: None,
            project,
            job: None,
            reason: "r",
        }
    }

    fn calls(events: &[AuditEvent]) -> u64 {
        events.iter().map(|event| event.detail.get("calls").map_or(1, |n| n.parse::<u64>().unwrap())).sum()
    }

    #[test]
    fn every_refused_call_is_told_or_counted_whatever_a_stranger_calls_himself() {
        let mut tally = Tally::default();
        for number in 0..10_000 {
            tally.count(&refused(&format!("C{number}"), None));
            tally.count(&Refused { refusal: Refusal::Unidentified, ..refused("C", None) });
        }
        let events = tally.take();
        assert!(events.len() <= KINDS_MAX + 3, "{}", events.len());
        assert_eq!(calls(&events), 20_000);
        assert_eq!(
            calls(&events.into_iter().filter(|e| e.action == Action::AuthFailed).collect::<Vec<_>>()),
            10_000
        );
        assert!(tally.is_empty() && tally.take().is_empty());
    }

    #[test]
    fn what_was_not_done_is_told_by_each_reason() {
        let mut tally = Tally::default();
        for reason in ["admission.busy", "job.attached", "admission.busy"] {
            tally.count(&Refused { refusal: Refusal::NotDone, reason, ..refused("C", None) });
        }
        let told: Vec<_> = tally.take().into_iter().map(|e| (e.reason.clone(), calls(&[e]))).collect();
        assert_eq!(told, [("admission.busy".to_owned(), 2), ("job.attached".to_owned(), 1)]);
    }

    #[test]
    fn alike_are_one_entry_and_what_is_no_name_is_kept_as_text() {
        let mut tally = Tally::default();
        tally.count(&refused("C", Some("../x")));
        for _ in 0..3 {
            tally.count(&refused("C", Some("p")));
        }
        let events = tally.take();
        let of = |project: Option<&str>| {
            events.iter().find(|e| e.project.as_ref().map(Name::as_str) == project).unwrap().clone()
        };
        assert_eq!((of(None).detail["project"].as_str(), of(None).detail.get("calls")), ("../x", None));
        assert_eq!(
            (of(Some("p")).detail["calls"].as_str(), of(Some("p")).detail.get("project")),
            ("3", None)
        );
        assert_eq!(events.len(), 2);
    }
}
