//! The life of a job: any sequence of changes, and those that were meant.

use super::*;
use crate::job::model::{IdempotencyKey, Means, Proofs};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn id(text: u8) -> JobId {
    JobId::parse(&format!("01890a5d-ac96-774b-bcce-b302099a80{text:02x}")).unwrap()
}

fn spec(attempt: u32, id: &JobId) -> JobSpec {
    serde_json::from_value(serde_json::json!({
        "ampoule": 1, "id": id, "attempt": attempt, "name": "j", "profile": "hermetic", "image": {"kind": "host"},
        "source_date_epoch": 0, "steps": [{"name": "s", "run": ["true"], "cwd": "/build", "timeout_ms": 1000}],
    }))
    .unwrap()
}

fn submission(attempt: u32) -> Submission {
    Submission {
        caller: Caller { means: Means::Peer, subject: "uid:7".to_owned(), claims: BTreeMap::new() },
        key: IdempotencyKey::parse("k").unwrap(),
        project: Name::parse("p").unwrap(),
        spec: spec(attempt, &id(attempt.to_le_bytes()[0])),
        proofs: Proofs::new(),
        request: sha256(b"request").unwrap(),
        priority: 0,
        labels: BTreeMap::new(),
        queue_timeout_ms: None,
    }
}

fn queued() -> Life {
    Life::submitted(&submission(1), UnixNanos(1)).unwrap().0
}

fn failure(code: Code) -> Failure {
    Failure::new(code, "m")
}

fn end(code: Option<Code>) -> Change {
    let end = End {
        outcome: code.map_or(Outcome::Succeeded, Outcome::of),
        failure: code.map(failure),
        outputs: Vec::new(),
        attestation: sha256(b"envelope").unwrap(),
        builder: "b".to_owned(),
        record_bytes: 9,
    };
    Change::Finished { at: UnixNanos(9), end: Box::new(end) }
}

fn wish(by: &str) -> Change {
    let wish = CancelWish { by: by.to_owned(), reason: "r".to_owned(), at: UnixNanos(5) };
    Change::CancelWished { wish }
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => Just(Change::Began),
        2 => Just(Change::Resolved { spec: sha256(b"found").unwrap() }),
        4 => Just(Change::Asked { runner: id(1) }),
        3 => Just(Change::Admitted { at: UnixNanos(3) }),
        3 => Just(Change::Reported { admitted: UnixNanos(3) }),
        1 => Just(wish("a")),
        1 => prop_oneof![Just(Code::InputMissing), Just(Code::JobAborted)]
            .prop_map(|code| Change::Refused { failure: failure(code) }),
        2 => prop_oneof![
            Just(None), Just(Some(Code::JobCancelled)), Just(Some(Code::StepExitNonzero)), Just(Some(Code::JobAborted))
        ]
        .prop_map(end),
    ]
}

fn after(life: &Life, changes: &[Change]) -> Life {
    changes.iter().fold(life.clone(), |life, change| life.after(change).unwrap().0)
}

proptest! {
    /// Whatever happens in whatever order: a life goes forward alone, ends once and stays as it ended; who was cancelled
    /// before the runner was asked never runs; the evidence is asked for exactly once.
    #[test]
    fn any_sequence_of_changes_ends_a_job_once_and_for_good(
        changes in prop::collection::vec(change(), 0..60)
    ) {
        let (mut life, mut finished, mut attests, mut frees) = (queued(), 0, 0, 0);
        let mut cancelled_early = false;
        for change in &changes {
            let before = life.clone();
            match life.after(change) {
                Err(illegal) => {
                    prop_assert_eq!(illegal.state, before.job.state);
                    prop_assert_eq!(illegal.change, change.as_str());
                }
                Ok((next, effects)) => {
                    prop_assert_ne!(before.job.state, State::Finished, "{:?}", change);
                    prop_assert!(next.job.state >= before.job.state);
                    finished += usize::from(next.job.state == State::Finished);
                    attests += effects.iter().filter(|e| **e == Effect::Attest).count();
                    frees += effects.iter().filter(|e| **e == Effect::Free).count();
                    prop_assert!(!(cancelled_early && effects.contains(&Effect::AskRunner)));
                    cancelled_early |= next.job.cancel.is_some() && next.runner.is_none();
                    life = next;
                }
            }
            let found = matches!(change, Change::Resolved { .. });
            prop_assert!(found || life.spec == before.spec, "{:?}", change);
            prop_assert!(life.spec == before.spec || life.job.state == State::Preparing);
            let job = &life.job;
            prop_assert_eq!(job.state == State::Finished, job.end.is_some() && job.finished_at.is_some());
            prop_assert!(job.started_at.is_none() || life.runner.is_some());
            prop_assert!(life.failure.is_none() || job.started_at.is_none());
        }
        prop_assert!(finished <= 1);
        prop_assert_eq!(attests, usize::from(life.job.state >= State::Attesting));
        // What was set aside when it began is given back once.
        let began = changes.contains(&Change::Began) && life.job.state >= State::Attesting;
        prop_assert!(frees <= usize::from(began));
    }

    /// From wherever a job is, it can be brought to its end.
    #[test]
    fn any_life_can_be_brought_to_its_end(changes in prop::collection::vec(change(), 0..30)) {
        let mut life = queued();
        for change in &changes {
            if let Ok((next, _)) = life.after(change) {
                life = next;
            }
        }
        if life.job.state < State::Attesting {
            let end = match life.job.started_at {
                Some(admitted) => Change::Reported { admitted },
                None => Change::Refused { failure: failure(Code::JobAborted) },
            };
            life = after(&life, &[end]);
        }
        if life.job.state == State::Attesting {
            let code = life.failure.as_ref().map(|f| f.code);
            life = after(&life, &[end(code)]);
        }
        prop_assert_eq!(life.job.state, State::Finished);
    }

    /// A ledger that is read again gives the same life.
    #[test]
    fn lives_and_changes_come_back_from_json(changes in prop::collection::vec(change(), 0..30)) {
        let (mut life, mut again) = (queued(), queued());
        for change in &changes {
            let text = serde_json::to_string(change).unwrap();
            let read: Change = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&read, change);
            if let Ok((next, _)) = life.after(change) {
                life = next;
                again = again.after(&read).unwrap().0;
            }
        }
        let text = serde_json::to_string(&life).unwrap();
        prop_assert_eq!(serde_json::from_str::<Life>(&text).unwrap(), again);
    }
}

#[test]
fn life_of_a_job_that_succeeds_asks_for_each_thing_in_its_turn() {
    let changes = [
        (Change::Began, vec![Effect::LeaveQueue, Effect::Prepare], State::Preparing),
        (Change::Asked { runner: id(1) }, vec![Effect::AskRunner], State::Running),
        (Change::Admitted { at: UnixNanos(3) }, vec![], State::Running),
        (Change::Reported { admitted: UnixNanos(4) }, vec![Effect::Free, Effect::Attest], State::Attesting),
        (end(None), vec![Effect::Tell], State::Finished),
    ];
    let mut life = queued();
    for (change, effects, state) in changes {
        let (next, got) = life.after(&change).unwrap();
        assert_eq!((got, next.job.state), (effects, state), "{change:?}");
        life = next;
    }
    assert_eq!(life.job.started_at, Some(UnixNanos(3)));
}

#[test]
fn cancel_before_running_never_runs_and_says_by_whom() {
    for before in [vec![], vec![Change::Began]] {
        let life = after(&after(&queued(), &before), &[wish("uid:7")]);
        assert_eq!(life.job.state, State::Attesting);
        let failure = life.failure.clone().unwrap();
        assert_eq!(failure.code, Code::JobCancelled);
        assert_eq!(failure.message, "cancelled by uid:7 before it ran: r");
        for late in [Change::Began, Change::Asked { runner: id(1) }, Change::Admitted { at: UnixNanos(3) }] {
            let refused = life.after(&late).unwrap_err().to_string();
            assert!(refused.starts_with("a job that is attesting cannot be "), "{refused}");
        }
        assert!(life.after(&end(None)).is_err(), "it did not succeed");
        assert!(life.after(&end(Some(Code::StepExitNonzero))).is_err(), "no step ran");
        assert!(life.after(&end(Some(Code::JobCancelled))).is_ok());
    }
}

#[test]
fn cancel_while_it_runs_is_told_to_the_runner_once() {
    let life = after(&queued(), &[Change::Began, Change::Asked { runner: id(1) }]);
    let (life, effects) = life.after(&wish("a")).unwrap();
    assert_eq!((effects, life.job.state), (vec![Effect::CancelRun], State::Running));
    assert!(life.ignores_wish() && life.after(&wish("b")).is_err());
    assert_eq!(life.job.cancel.unwrap().by, "a");
}

#[test]
fn job_that_the_runner_admitted_is_not_refused_behind_its_back() {
    let asked = after(&queued(), &[Change::Began, Change::Asked { runner: id(1) }]);
    let refused = Change::Refused { failure: failure(Code::JobAborted) };
    assert!(asked.after(&refused).is_ok());
    let admitted = after(&asked, &[Change::Admitted { at: UnixNanos(3) }]);
    assert!(admitted.after(&refused).is_err());
}

#[test]
fn fence_is_the_same_for_attempts_at_one_job_alone() {
    let of = |s: &Submission| fence(&s.caller, &s.project, &s.spec).unwrap();
    let (first, second) = (submission(1), submission(2));
    assert_eq!(of(&first), of(&second));
    let mut other = submission(1);
    other.spec.source_date_epoch = 1;
    let mut elsewhere = submission(1);
    elsewhere.project = Name::parse("q").unwrap();
    let mut somebody = submission(1);
    somebody.caller.subject = "uid:8".to_owned();
    for other in [other, elsewhere, somebody] {
        assert_ne!(of(&first), of(&other));
    }
}

#[test]
fn message_of_any_length_is_kept_short_enough_for_a_frame() {
    for length in [0, 1, 4095, 4096, 4097, 4098, 3 << 20] {
        let message = "é".repeat(length / 2) + &"x".repeat(length % 2);
        let long = Failure { message: message.clone(), ..failure(Code::InputUnreachable) };
        let refused = Change::Refused { failure: long.clone() }.bounded();
        let Change::Finished { at, mut end } = end(Some(Code::InputUnreachable)) else { panic!("an end") };
        end.failure = Some(long);
        let finished = Change::Finished { at, end }.bounded();
        let life = after(&queued(), &[refused, finished]);
        let bytes = serde_json::to_vec(&life).unwrap().len();
        assert!(bytes < 16 << 10, "{length}: {bytes}");
        let kept = life.failure.unwrap().message;
        assert_eq!(kept == message, length <= 4096, "{length}: {}", kept.len());
    }
}
