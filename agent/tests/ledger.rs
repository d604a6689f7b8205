//! What the ledger of jobs promises: what was acknowledged is there, once, whatever died; damage is named.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

#[path = "common/jobs.rs"]
mod jobs;

use ampoule_agent::job::ledger::{Ledger, LedgerError, OpenError, Options, Retention};
use ampoule_agent::job::state::{Change, Effect};
use ampoule_agent::job::{Caller, CancelWish, JobsError, State, Wanted};
use ampoule_spec::{Code, Name, Outcome, UnixNanos};
use jobs::{end, job_id, submission};
use std::path::Path;
use std::time::Duration;

fn now() -> UnixNanos {
    UnixNanos(1_000_000_000)
}

fn options() -> Options {
    Options { reserve_bytes: 64 << 10, ..Options::default() }
}

fn open(dir: &Path) -> Ledger {
    Ledger::open(dir, &options(), now()).unwrap()
}

/// Brings a job to its end, in good order.
async fn finish(ledger: &Ledger, number: u32, at: UnixNanos) {
    let id = job_id(number);
    for change in [
        Change::Began,
        Change::Asked { runner: id.clone() },
        Change::Reported { admitted: now() },
        Change::Finished { at, end: Box::new(end()) },
    ] {
        ledger.change(&id, change).await.unwrap();
    }
}

#[tokio::test]
async fn jobs_and_their_changes_are_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    for number in 0..5 {
        ledger.submit(submission(number), now()).await.unwrap();
    }
    finish(&ledger, 0, now()).await;
    ledger.change(&job_id(1), Change::Began).await.unwrap();
    let wish = CancelWish { by: "uid:7".to_owned(), reason: "r".to_owned(), at: now() };
    let (_, effects) = ledger.change(&job_id(2), Change::CancelWished { wish: wish.clone() }).await.unwrap();
    assert_eq!(effects, [Effect::LeaveQueue, Effect::Attest]);
    let (_, effects) = ledger.change(&job_id(2), Change::CancelWished { wish }).await.unwrap();
    assert_eq!(effects, [], "a second wish changes nothing");
    let before: Vec<_> = (0..5).map(|n| ledger.get(&job_id(n)).unwrap()).collect();
    assert_eq!(ledger.generation(), 1);
    drop(ledger);
    for generation in 2..4 {
        let ledger = open(dir.path());
        assert_eq!((ledger.generation(), ledger.cut()), (generation, None));
        let after: Vec<_> = (0..5).map(|n| ledger.get(&job_id(n)).unwrap()).collect();
        assert_eq!(before, after);
        assert_eq!(ledger.unfinished().len(), 4);
        for number in 0..5 {
            let spec = ledger.spec(&job_id(number)).unwrap();
            assert_eq!(spec, (number > 0).then(|| submission(number).spec), "{number}");
        }
    }
}

#[tokio::test]
async fn key_gives_the_same_job_and_no_other_request() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let first = ledger.submit(submission(1), now()).await.unwrap();
    assert!(!first.attached);
    // A repetition draws another id, which is given up.
    let mut again = submission(1);
    again.spec.id = job_id(2);
    let second = ledger.submit(again.clone(), now()).await.unwrap();
    assert!(second.attached && second.life == first.life);
    again.request = submission(2).request;
    match ledger.submit(again, now()).await {
        Err(error @ LedgerError::OtherRequest { .. }) => {
            assert!(error.to_string().contains(job_id(1).as_str()), "{error}");
            assert_eq!(JobsError::from(error).code, Code::JobKeyReused);
        }
        other => panic!("{other:?}"),
    }
    // Somebody else's key is another key.
    let mut other = submission(3);
    other.key = submission(1).key;
    other.caller = Caller { subject: "uid:8".to_owned(), ..other.caller };
    assert!(!ledger.submit(other, now()).await.unwrap().attached);
    assert_eq!(ledger.len(), 2);
}

#[tokio::test]
async fn key_holds_among_those_that_are_written_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = std::sync::Arc::new(open(dir.path()));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..64 {
        let ledger = ledger.clone();
        let mut submission = submission(number);
        submission.key = jobs::key(number % 4);
        submission.request = jobs::request(number % 4);
        tasks.spawn(async move { ledger.submit(submission, now()).await.unwrap() });
    }
    let entered = tasks.join_all().await;
    assert_eq!(entered.iter().filter(|entered| !entered.attached).count(), 4);
    assert_eq!(ledger.len(), 4);
}

#[tokio::test]
async fn lower_attempt_than_was_seen_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let attempt = |number: u32, attempt| {
        let mut submission = submission(number);
        submission.spec.attempt = attempt;
        submission.spec.source_date_epoch = 0;
        submission
    };
    {
        let ledger = open(dir.path());
        ledger.submit(attempt(1, 1), now()).await.unwrap();
        ledger.submit(attempt(2, 3), now()).await.unwrap();
    }
    let ledger = open(dir.path());
    for (number, lower) in [(3, 1), (4, 2)] {
        match ledger.submit(attempt(number, lower), now()).await {
            Err(LedgerError::LowerAttempt { attempt, seen: 3 }) => assert_eq!(attempt, lower),
            other => panic!("{other:?}"),
        }
    }
    ledger.submit(attempt(5, 3), now()).await.unwrap();
    ledger.submit(attempt(6, 4), now()).await.unwrap();
    // A repetition of what was taken in is no new attempt.
    assert!(ledger.submit(attempt(1, 1), now()).await.unwrap().attached);
    // Another job of the same name begins at 1.
    let mut other = attempt(7, 1);
    other.spec.source_date_epoch = 7;
    ledger.submit(other, now()).await.unwrap();
}

#[tokio::test]
async fn change_that_the_state_does_not_allow_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let submitted = ledger.submit(submission(1), now()).await.unwrap().life;
    let refused = ledger.change(&job_id(1), Change::Reported { admitted: now() }).await;
    assert!(matches!(refused, Err(LedgerError::Illegal(_))), "{refused:?}");
    assert!(matches!(ledger.change(&job_id(9), Change::Began).await, Err(LedgerError::Unknown(_))));
    assert!(matches!(ledger.forget(&job_id(1)).await, Err(LedgerError::NotFinished(_))));
    assert_eq!(ledger.get(&job_id(1)).unwrap(), submitted);
    drop(ledger);
    assert_eq!(open(dir.path()).get(&job_id(1)).unwrap(), submitted);
}

#[tokio::test]
async fn list_is_newest_first_and_filters_by_everything() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    for number in 0..10 {
        let mut submission = submission(number);
        submission.project = Name::parse(if number % 2 == 0 { "even" } else { "odd" }).unwrap();
        submission.labels.insert("third".to_owned(), (number % 3).to_string());
        ledger.submit(submission, now()).await.unwrap();
    }
    finish(&ledger, 4, now()).await;
    let wanted = |limit| Wanted { limit, ..Wanted::default() };
    let numbers = |wanted: &Wanted| {
        let page = ledger.list(wanted, &|_| true);
        let numbers: Vec<u32> =
            page.jobs.iter().map(|j| (0..10).find(|n| j.id == job_id(*n)).unwrap()).collect();
        (numbers, page.more)
    };
    assert_eq!(numbers(&wanted(3)), (vec![9, 8, 7], true));
    assert_eq!(numbers(&Wanted { before: Some(job_id(3)), ..wanted(3) }), (vec![2, 1, 0], false));
    let even = Some(Name::parse("even").unwrap());
    assert_eq!(numbers(&Wanted { project: even.clone(), ..wanted(9) }), (vec![8, 6, 4, 2, 0], false));
    let labels = [("third".to_owned(), "1".to_owned())].into();
    assert_eq!(numbers(&Wanted { labels, project: even, ..wanted(9) }), (vec![4], false));
    assert_eq!(numbers(&Wanted { states: vec![State::Finished], ..wanted(9) }), (vec![4], false));
    assert_eq!(numbers(&Wanted { outcomes: vec![Outcome::Succeeded], ..wanted(9) }), (vec![4], false));
    assert_eq!(numbers(&Wanted { outcomes: vec![Outcome::Failed], ..wanted(9) }), (vec![], false));
    let page = ledger.list(&wanted(2), &|job| job.id < job_id(3));
    assert_eq!((page.jobs[0].id.clone(), page.more), (job_id(2), true));
}

#[tokio::test]
async fn finished_jobs_are_kept_by_count_and_age_and_others_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let hour = 3_600_000_000_000;
    let options = Options { retention: Retention { count: 3, age_ns: hour }, ..options() };
    let at = |n: u32| UnixNanos(now().0 + u64::from(n) * hour / 10);
    {
        let ledger = Ledger::open(dir.path(), &options, now()).unwrap();
        for number in 0..6 {
            ledger.submit(submission(number), now()).await.unwrap();
        }
        for number in 0..5 {
            finish(&ledger, number, at(number)).await;
        }
        assert_eq!(ledger.expired(&options.retention, at(5)), [job_id(0), job_id(1)]);
        assert_eq!(ledger.expired(&options.retention, at(13)), [job_id(0), job_id(1), job_id(2)]);
        ledger.forget(&job_id(0)).await.unwrap();
        assert_eq!(ledger.len(), 5);
    }
    let ledger = Ledger::open(dir.path(), &options, at(5)).unwrap();
    let there: Vec<_> = (0..6).map(|n| ledger.get(&job_id(n)).is_some()).collect();
    assert_eq!(there, [false, false, true, true, true, true]);
    drop(ledger);
    let ledger = Ledger::open(dir.path(), &options, at(100)).unwrap();
    assert_eq!((ledger.len(), ledger.unfinished().len()), (1, 1));
}

#[tokio::test]
async fn directory_has_one_agent() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let second = Ledger::open(dir.path(), &options(), now());
    assert!(matches!(second, Err(OpenError::Locked(_))), "{second:?}");
    drop(ledger);
    open(dir.path());
}

#[tokio::test]
async fn who_listens_hears_of_every_change_after_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    let mut changes = ledger.changes();
    ledger.submit(submission(1), now()).await.unwrap();
    finish(&ledger, 1, now()).await;
    let mut states = Vec::new();
    while let Ok(Ok(life)) = tokio::time::timeout(Duration::from_millis(10), changes.recv()).await {
        states.push(life.job.state);
    }
    assert_eq!(states, [State::Queued, State::Preparing, State::Running, State::Attesting, State::Finished]);
    assert_eq!(Code::JobUnknown, ampoule_agent::job::JobsError::from(LedgerError::Unknown(job_id(1))).code);
}
