//! Every job that was taken ends in one record, whatever comes in between.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn job_that_is_cancelled_while_it_waits_ends_in_one_signed_record() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = open(dir.path());
    let submitted = keeper.submit(submission(1)).await.unwrap();
    assert!(!submitted.attached && submitted.job.state == State::Queued);
    let again = Submission { spec: submission(2).spec, ..submission(1) };
    assert_eq!(keeper.submit(again).await.unwrap().job.id, job_id(1));
    assert_eq!(keeper.attach(&submission(1)).unwrap().unwrap().job.id, job_id(1));
    let cancelled = keeper.cancel(&job_id(1), &caller(), "no need").await.unwrap();
    assert_eq!(cancelled.cancel.unwrap().by, "uid:7");
    let (job, states) = finished(&keeper, &job_id(1)).await;
    assert!(states.is_sorted(), "{states:?}");
    let end = job.end.clone().unwrap();
    assert_eq!((end.outcome, end.failure.unwrap().code), (Outcome::Cancelled, Code::JobCancelled));
    let (verified, result) = attested(&keeper, &job);
    assert_eq!(verified.outcome, Outcome::Cancelled);
    assert_eq!(result["code"], "job.cancelled");
    // A wish after the end changes nothing, and the record stays the one that it is.
    assert_eq!(keeper.cancel(&job_id(1), &caller(), "again").await.unwrap(), job);
    keeper.close().await;
    let keeper = open(dir.path());
    assert_eq!(keeper.get(&job_id(1)), Some(job.clone()));
    attested(&keeper, &job);
    assert_eq!(keeper.load(), (true, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_launcher_jobs_wait_in_their_order_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = open(dir.path());
    for number in 1..5 {
        keeper.submit(submission(number)).await.unwrap();
    }
    for restart in 0..2 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!keeper.health().launcher, "restart {restart}");
        let ahead: Vec<_> = (1..5).map(|n| keeper.queue_position(&job_id(n))).collect();
        assert_eq!(ahead, [Some(0), Some(1), Some(2), Some(3)]);
        keeper.close().await;
        keeper = open(dir.path());
    }
    for number in 1..5 {
        keeper.cancel(&job_id(number), &caller(), "").await.unwrap();
        let (job, _) = finished(&keeper, &job_id(number)).await;
        assert_eq!(attested(&keeper, &job).0.outcome, Outcome::Cancelled);
    }
    assert_eq!(keeper.load(), (true, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn job_that_waits_too_long_is_cancelled_and_a_drained_host_takes_none() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = open(dir.path());
    keeper.submit(submission(1)).await.unwrap();
    keeper.submit(Submission { queue_timeout_ms: Some(200), ..submission(2) }).await.unwrap();
    keeper.submit(submission(3)).await.unwrap();
    let (late, _) = finished(&keeper, &job_id(2)).await;
    let end = late.end.clone().unwrap();
    assert_eq!((end.outcome, late.cancel.as_ref().unwrap().by.as_str()), (Outcome::Cancelled, "ampouled"));
    assert!(end.failure.unwrap().message.contains("waited longer"));
    attested(&keeper, &late);
    let (_, waiting) = keeper.drain(true, false).await.unwrap();
    assert_eq!(waiting, 2);
    let refused = keeper.submit(submission(4)).await.unwrap_err();
    assert!(refused.code == Code::AdmissionBusy && refused.retry_after.is_some(), "{refused:?}");
    // What was submitted before is found all the same.
    assert!(keeper.submit(submission(3)).await.unwrap().attached);
    keeper.drain(true, true).await.unwrap();
    let (drained, _) = finished(&keeper, &job_id(3)).await;
    assert!(drained.cancel.unwrap().reason.contains("drained"));
    keeper.drain(false, false).await.unwrap();
    keeper.submit(submission(4)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_under_way_at_a_crash_is_attested_once() {
    let dir = tempfile::tempdir().unwrap();
    {
        // What a crash leaves behind in each state before the runner has anything.
        let agent = dir.path().join("agent");
        std::fs::create_dir_all(agent.join("records")).unwrap();
        let ledger = Ledger::open(&agent, &options(dir.path()).ledger, UnixNanos(1)).unwrap();
        for number in 1..3 {
            ledger.submit(submission(number), UnixNanos(1)).await.unwrap();
        }
        let failure = Failure::new(Code::InputMissing, "m");
        ledger.change(&job_id(1), Change::Refused { failure }).await.unwrap();
        ledger.change(&job_id(2), Change::Began).await.unwrap();
        // And a record that was being written.
        let aside = agent.join(format!("records/.ampoule-{}.tmp", job_id(1)));
        std::fs::create_dir(&aside).unwrap();
        std::fs::write(aside.join("run.intoto.jsonl"), "half").unwrap();
    }
    let keeper = open(dir.path());
    let (job, _) = finished(&keeper, &job_id(1)).await;
    assert_eq!(attested(&keeper, &job).1["code"], "input.missing");
    let records: Vec<_> = std::fs::read_dir(dir.path().join("agent/records")).unwrap().collect();
    assert_eq!(records.len(), 1, "{records:?}");
    assert!(keeper.get(&job_id(2)).unwrap().state == State::Preparing);
    assert_eq!(keeper.load(), (true, 1, 0));
    keeper.close().await;
    // The record is there and the ledger does not know yet: it stays the one that it is.
    let envelope = dir.path().join(format!("agent/records/{}/run.intoto.jsonl", job_id(1)));
    let before = std::fs::read(&envelope).unwrap();
    std::fs::remove_file(dir.path().join("agent/ledger")).unwrap();
    {
        let ledger =
            Ledger::open(&dir.path().join("agent"), &options(dir.path()).ledger, UnixNanos(1)).unwrap();
        ledger.submit(submission(1), UnixNanos(1)).await.unwrap();
        let failure = Failure::new(Code::InputMissing, "m");
        ledger.change(&job_id(1), Change::Refused { failure }).await.unwrap();
    }
    let keeper = open(dir.path());
    let (job, _) = finished(&keeper, &job_id(1)).await;
    attested(&keeper, &job);
    assert_eq!(std::fs::read(&envelope).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_are_counted_and_a_cursor_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = open(dir.path());
    keeper.submit(submission(1)).await.unwrap();
    let first = keeper.watch(&job_id(1), 0, true, true).unwrap();
    let second = keeper.watch(&job_id(1), 0, true, true).unwrap();
    let refused = keeper.watch(&job_id(1), 0, true, true).err().unwrap();
    assert!(refused.code == Code::AdmissionBusy && refused.retry_after.is_some());
    drop((first, second));
    let (begun, one) = (tokio::time::Instant::now(), job_id(1));
    let again = loop {
        match keeper.watch(&one, 0, true, false) {
            Ok(told) => break told,
            Err(_) => assert!(begun.elapsed() < Duration::from_secs(20), "the seats are not given back"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(keeper.watch(&job_id(7), 0, true, true).err().unwrap().code, Code::JobUnknown);
    assert_eq!(keeper.evidence(&job_id(1)).unwrap_err().code, Code::JobUnfinished);
    assert_eq!(keeper.open_output(&job_id(1), "x").await.unwrap_err().code, Code::JobUnfinished);
    // Without following it says how the job is, and ends.
    let told: Vec<_> = again.collect().await;
    assert_eq!(told.len(), 1);
    let none: Name = Name::parse("other").unwrap();
    let wanted = ampoule_agent::job::Wanted { project: Some(none), limit: 9, ..Default::default() };
    assert_eq!(keeper.list(&wanted, &|_| true).jobs.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn call_that_is_given_up_after_it_is_durable_has_its_effects() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = open(dir.path());
    give_up(keeper.submit(submission(1)), || keeper.get(&job_id(1)).is_some()).await;
    until("the job waits", || keeper.queue_position(&job_id(1)) == Some(0)).await;
    assert!(keeper.submit(submission(1)).await.unwrap().attached);
    assert_eq!(keeper.load(), (true, 0, 1));
    let cancelled = || keeper.get(&job_id(1)).unwrap().cancel.is_some();
    give_up(keeper.cancel(&job_id(1), &caller(), ""), cancelled).await;
    let (job, _) = finished(&keeper, &job_id(1)).await;
    assert_eq!(attested(&keeper, &job).0.outcome, Outcome::Cancelled);
    assert_eq!(keeper.load(), (true, 0, 0));
    // A drain that is given up after its first job has ended all the others too.
    for number in 2..6 {
        keeper.submit(submission(number)).await.unwrap();
    }
    let first = || keeper.get(&job_id(2)).unwrap().cancel.is_some();
    give_up(keeper.drain(true, true), first).await;
    for number in 2..6 {
        finished(&keeper, &job_id(number)).await;
    }
    assert_eq!(keeper.load(), (false, 0, 0));
}

/// Writes ends down, or cannot.
#[derive(Debug, Default)]
struct Hears {
    cannot: AtomicBool,
    asked: Mutex<Vec<(JobId, Sha256, bool)>>,
}

impl Witness for Hears {
    fn ends<'a>(&'a self, job: &'a Job, end: &'a End) -> BoxFuture<'a, Result<(), String>> {
        let cannot = self.cannot.load(Ordering::SeqCst);
        self.asked.lock().unwrap().push((job.id.clone(), end.attestation, cannot));
        Box::pin(std::future::ready(if cannot { Err("no space".to_owned()) } else { Ok(()) }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn job_has_not_ended_before_its_end_is_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let hears = Arc::new(Hears::default());
    hears.cannot.store(true, Ordering::SeqCst);
    let with = || Options { witness: hears.clone(), ..options(dir.path()) };
    let mut keeper = Keeper::open(with()).unwrap();
    keeper.submit(submission(1)).await.unwrap();
    keeper.cancel(&job_id(1), &caller(), "").await.unwrap();
    let asked = || hears.asked.lock().unwrap().len();
    for restart in 0..2 {
        let more = asked() + 2;
        tokio::time::timeout(Duration::from_secs(20), async {
            while asked() < more {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("nobody is asked");
        assert_eq!(keeper.get(&job_id(1)).unwrap().state, State::Attesting, "restart {restart}");
        assert_eq!(keeper.health().stuck, [job_id(1)]);
        if restart == 0 {
            keeper.close().await;
            keeper = Keeper::open(with()).unwrap();
        }
    }
    hears.cannot.store(false, Ordering::SeqCst);
    let (job, _) = finished(&keeper, &job_id(1)).await;
    attested(&keeper, &job);
    let asked = hears.asked.lock().unwrap();
    let end = job.end.unwrap();
    assert!(asked.iter().all(|(id, sha256, _)| (id, sha256) == (&job.id, &end.attestation)), "{asked:?}");
    assert_eq!(asked.iter().filter(|(_, _, cannot)| !cannot).count(), 1);
}
