//! What the ledger of jobs promises: what was acknowledged is there, once, whatever died; damage is named.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

#[path = "common/jobs.rs"]
mod jobs;

use ampoule_agent::job::ledger::{Ledger, LedgerError, OpenError, Options, Retention};
use ampoule_agent::job::state::{Change, Effect};
use ampoule_agent::job::{Caller, CancelWish, JobsError, State, Submission, Wanted};
use ampoule_journal::Reader;
use ampoule_spec::{Code, Name, Outcome, UnixNanos};
use jobs::{end, job_id, open_submission, resolved, submission};
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
async fn what_a_job_left_to_be_found_is_in_its_spec_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let (id, asked, found) = (job_id(1), open_submission(1), resolved(1));
    let ledger = open(dir.path());
    ledger.submit(asked.clone(), now()).await.unwrap();
    ledger.submit(open_submission(2), now()).await.unwrap();
    assert!(matches!(ledger.resolve(&id, &found).await, Err(LedgerError::Illegal(_))), "it waits");
    ledger.change(&id, Change::Began).await.unwrap();
    assert!(ledger.resolve(&id, &asked.spec).await.is_err(), "nothing was found");
    let before = ledger.get(&id).unwrap();
    let change = Change::Resolved { spec: before.spec };
    assert!(ledger.change(&id, change).await.is_err(), "a change without its spec");
    drop(ledger);
    // Before it is found and after, in the file as it was written and as it is written anew.
    let ledger = open(dir.path());
    assert_eq!(ledger.spec(&id).unwrap().as_ref(), Some(&asked.spec));
    let after = ledger.resolve(&id, &found).await.unwrap();
    assert!(after.spec != before.spec && (&after.fence, &after.job) == (&before.fence, &before.job));
    assert_eq!(ledger.resolve(&id, &found).await.unwrap(), after, "a second time is the same");
    drop(ledger);
    for _ in 0..2 {
        let ledger = open(dir.path());
        assert_eq!(ledger.get(&id).unwrap(), after);
        assert_eq!(ledger.spec(&id).unwrap().as_ref(), Some(&found));
        assert_eq!(ledger.spec(&job_id(2)).unwrap(), Some(open_submission(2).spec));
    }
    let ledger = open(dir.path());
    ledger.change(&id, Change::Asked { runner: id.clone() }).await.unwrap();
    assert!(matches!(ledger.resolve(&id, &found).await, Err(LedgerError::Illegal(_))), "the runner has it");
}

/// Kinds of the frames of a ledger's file.
fn kinds(dir: &Path) -> Vec<u8> {
    let mut reader = Reader::new(std::fs::File::open(dir.join("ledger")).unwrap());
    std::iter::from_fn(|| reader.next_frame().unwrap().frame()).map(|frame| frame.kind).collect()
}

#[tokio::test]
async fn older_build_reads_the_ledger_again_when_nothing_in_it_is_left_to_be_found() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path());
    ledger.submit(submission(0), now()).await.unwrap();
    assert_eq!(kinds(dir.path()), [1, 5, 2, 3, 5]);
    ledger.submit(open_submission(1), now()).await.unwrap();
    ledger.change(&job_id(1), Change::Began).await.unwrap();
    drop(ledger);
    // A kind that it does not know, before anything else that it does not.
    let ledger = open(dir.path());
    assert_eq!(kinds(dir.path()), [1, 2, 3, 7, 3, 5]);
    ledger.resolve(&job_id(1), &resolved(1)).await.unwrap();
    assert_eq!(kinds(dir.path())[6..], [2, 4, 5]);
    drop(ledger);
    drop(open(dir.path()));
    assert_eq!(kinds(dir.path()), [1, 2, 3, 2, 3, 5]);
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

const HOUR: u64 = 3_600_000_000_000;

/// The clock `tenths` of an hour after the start.
fn at(tenths: u32) -> UnixNanos {
    UnixNanos(now().0 + u64::from(tenths) * HOUR / 10)
}

fn of(project: &str, number: u32) -> Submission {
    Submission { project: Name::parse(project).unwrap(), ..submission(number) }
}

#[tokio::test]
async fn finished_jobs_are_kept_by_count_and_age_and_others_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { count: 3, bytes: u64::MAX, age_ns: HOUR, least_ns: 0 };
    let options = Options { retention: Retention { count: 9, ..retention }, ..options() };
    {
        let ledger = Ledger::open(dir.path(), &options, now()).unwrap();
        for number in 0..6 {
            ledger.submit(submission(number), now()).await.unwrap();
        }
        for number in 0..5 {
            finish(&ledger, number, at(number)).await;
        }
        assert_eq!(ledger.expired(&retention, at(5)), [job_id(0), job_id(1)]);
        assert_eq!(ledger.expired(&retention, at(13)), [job_id(0), job_id(1), job_id(2)]);
        // Whatever there is, for that time it stays.
        let least = Retention { least_ns: HOUR / 2, ..retention };
        assert_eq!(ledger.expired(&least, at(4)), []);
        assert_eq!(ledger.expired(&least, at(5)), [job_id(0)]);
        ledger.forget(&job_id(0)).await.unwrap();
        assert_eq!(ledger.len(), 5);
    }
    // A start forgets nothing: the records of what is over are still there, and have to go first.
    let ledger = Ledger::open(dir.path(), &options, at(100)).unwrap();
    let there: Vec<_> = (0..6).map(|n| ledger.get(&job_id(n)).is_some()).collect();
    assert_eq!(there, [false, true, true, true, true, true]);
    assert_eq!(ledger.expired(&retention, at(100)).len(), 4);
    assert_eq!(ledger.unfinished().len(), 1);
}

#[tokio::test]
async fn project_that_has_its_fill_is_refused_and_takes_nothing_from_another() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { count: 16, bytes: u64::MAX, age_ns: 1_000 * HOUR, least_ns: HOUR };
    let options = Options { retention, ..options() };
    let ledger = Ledger::open(dir.path(), &options, now()).unwrap();
    ledger.submit(of("quiet", 0), now()).await.unwrap();
    finish(&ledger, 0, now()).await;
    // 16, and an eighth more until the next sweep.
    for number in 1..=18 {
        ledger.submit(of("loud", number), now()).await.unwrap();
        finish(&ledger, number, at(1)).await;
    }
    let refused = ledger.submit(of("loud", 19), at(5)).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::Kept { .. }), "{refused:?}");
    let told = JobsError::from(refused);
    let wait = told.retry_after.unwrap();
    assert!(told.code == Code::AdmissionBusy && told.message.contains("18 finished jobs"), "{told:?}");
    assert_eq!(wait, Duration::from_nanos(HOUR * 6 / 10), "until the oldest may go");
    // Nothing of either is over; what was submitted before is found, and others are taken.
    assert_eq!(ledger.expired(&retention, at(5)), []);
    assert!(ledger.submit(of("loud", 1), at(5)).await.unwrap().attached);
    ledger.submit(of("quiet", 20), at(5)).await.unwrap();
    // Then the loud one's own oldest go, and no more of them than are over.
    assert_eq!(ledger.expired(&retention, at(11)), [job_id(1), job_id(2)]);
    for number in 1..3 {
        ledger.forget(&job_id(number)).await.unwrap();
    }
    ledger.submit(of("loud", 19), at(11)).await.unwrap();
    assert!(ledger.find("uid:7", &jobs::key(0)).is_some(), "another's key was forgotten");
}

#[tokio::test]
async fn bytes_of_records_are_counted_by_project_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { count: 100, bytes: 1 << 20, age_ns: 1_000 * HOUR, least_ns: 0 };
    let options = Options { retention, ..options() };
    let large = ampoule_agent::job::End { record_bytes: 300 << 10, ..end() };
    {
        let ledger = Ledger::open(dir.path(), &options, now()).unwrap();
        for number in 0..4 {
            ledger.submit(of("p", number), now()).await.unwrap();
            let id = job_id(number);
            for change in [
                Change::Began,
                Change::Asked { runner: id.clone() },
                Change::Reported { admitted: now() },
                Change::Finished { at: at(number), end: Box::new(large.clone()) },
            ] {
                ledger.change(&id, change).await.unwrap();
            }
        }
    }
    let ledger = Ledger::open(dir.path(), &options, now()).unwrap();
    let refused = ledger.submit(of("p", 9), at(9)).await.unwrap_err();
    assert!(refused.to_string().contains("bytes of jobs and records"), "{refused}");
    ledger.submit(of("q", 9), at(9)).await.unwrap();
    assert_eq!(ledger.expired(&retention, at(9)), [job_id(0)]);
    ledger.forget(&job_id(0)).await.unwrap();
    ledger.submit(of("p", 10), at(9)).await.unwrap();
}

fn length(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("ledger")).unwrap().len()
}

/// Brings jobs to their ends and has them forgotten.
async fn churn(ledger: &Ledger, numbers: std::ops::Range<u32>) {
    for number in numbers {
        ledger.submit(submission(number), now()).await.unwrap();
        finish(ledger, number, now()).await;
        ledger.forget(&job_id(number)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_that_works_is_compacted_and_nothing_of_what_is_kept_changes() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { compact_bytes: 16 << 10, ..options() };
    let ledger = std::sync::Arc::new(Ledger::open(dir.path(), &options, now()).unwrap());
    for number in 0..5 {
        ledger.submit(submission(number), now()).await.unwrap();
    }
    finish(&ledger, 0, now()).await;
    let before: Vec<_> = (0..5).map(|n| ledger.get(&job_id(n))).collect();
    let kept = length(dir.path());
    // Somebody reads a spec all the while.
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (reading, reads) = (ledger.clone(), over.clone());
    let reader = std::thread::spawn(move || {
        let mut count = 0_u32;
        while !reads.load(std::sync::atomic::Ordering::Relaxed) {
            assert_eq!(reading.spec(&job_id(3)).unwrap(), Some(submission(3).spec));
            count += 1;
        }
        count
    });
    let mut longest = 0;
    for round in 0..40 {
        churn(&ledger, 10 + round * 5..15 + round * 5).await;
        longest = longest.max(length(dir.path()));
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(reader.join().unwrap() > 0);
    assert!(ledger.compactions() > 5, "{} compactions", ledger.compactions());
    // Twice what is kept, the growth, and what one round writes.
    assert!(longest < 2 * kept + (16 << 10) + (32 << 10), "{longest} bytes of which {kept} are kept");
    let check = |ledger: &Ledger| {
        assert_eq!((0..5).map(|n| ledger.get(&job_id(n))).collect::<Vec<_>>(), before);
        for number in 0..5 {
            let spec = (number > 0).then(|| submission(number).spec);
            assert_eq!(ledger.spec(&job_id(number)).unwrap(), spec);
        }
        assert_eq!((ledger.len(), ledger.generation() > 0), (5, true));
    };
    check(&ledger);
    let generation = ledger.generation();
    drop(std::sync::Arc::into_inner(ledger));
    let ledger = Ledger::open(dir.path(), &options, now()).unwrap();
    check(&ledger);
    assert_eq!((ledger.generation(), ledger.cut()), (generation + 1, None));
}

#[tokio::test]
async fn ledger_that_cannot_be_compacted_works_on_and_is_compacted_later() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { compact_bytes: 8 << 10, ..options() };
    let ledger = Ledger::open(dir.path(), &options, now()).unwrap();
    // In the way of the next file.
    std::fs::create_dir(dir.path().join("ledger.new")).unwrap();
    churn(&ledger, 0..20).await;
    assert_eq!(ledger.compactions(), 0);
    ledger.submit(submission(50), now()).await.unwrap();
    std::fs::remove_dir(dir.path().join("ledger.new")).unwrap();
    churn(&ledger, 100..120).await;
    assert!(ledger.compactions() > 0);
    drop(ledger);
    let ledger = Ledger::open(dir.path(), &options, now()).unwrap();
    assert_eq!((ledger.len(), ledger.spec(&job_id(50)).unwrap()), (1, Some(submission(50).spec)));
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
async fn who_listens_hears_of_every_change_in_order() {
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
