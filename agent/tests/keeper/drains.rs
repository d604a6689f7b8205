//! A host that takes or starts nothing: drained, or another than its operator looked at.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn drain_and_drift_are_two_reasons_and_a_drain_outlives_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = open(dir.path());
    keeper.drain(true, false).await.unwrap();
    keeper.set_drifted(true, 0);
    keeper.set_drifted(false, 0);
    let refused = keeper.submit(submission(1)).await.unwrap_err();
    assert!(refused.message.contains("drained"), "{refused}");
    keeper.set_drifted(true, 0);
    keeper.drain(false, false).await.unwrap();
    let refused = keeper.submit(submission(1)).await.unwrap_err();
    assert!(refused.message.contains("baseline") && refused.retry_after.is_some(), "{refused}");
    keeper.drain(true, false).await.unwrap();
    keeper.close().await;
    let keeper = open(dir.path());
    let refused = keeper.submit(submission(1)).await.unwrap_err();
    assert!(refused.message.contains("drained"), "{refused}");
    assert_eq!(keeper.load(), (false, 0, 0));
    keeper.drain(false, false).await.unwrap();
    keeper.submit(submission(1)).await.unwrap();
    keeper.close().await;
    // Drift is told anew at each start.
    let keeper = Keeper::open(Options { drifted: Some(true), ..options(dir.path()) }).unwrap();
    assert!(keeper.submit(submission(2)).await.unwrap_err().message.contains("baseline"));
    assert_eq!(keeper.load(), (false, 0, 1));
    keeper.set_drifted(false, 0);
    keeper.submit(submission(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_that_cannot_be_kept_is_an_error_and_stops_the_intake_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = open(dir.path());
    // A directory in the place of the file: it can be neither opened for writing nor removed as one.
    std::fs::create_dir(dir.path().join("agent/drained")).unwrap();
    assert!(keeper.drain(true, false).await.unwrap_err().message.contains("over a restart"));
    assert!(keeper.submit(submission(1)).await.is_err());
    assert!(keeper.drain(false, false).await.unwrap_err().message.contains("still drained"));
    assert!(keeper.submit(submission(1)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_counts_or_ends_every_job_that_was_being_entered_and_the_others_are_refused() {
    for cancel_queued in [false, true] {
        for round in 0..10 {
            let dir = tempfile::tempdir().unwrap();
            let options = options(dir.path());
            let quota = Quota { running: 1, queued: 1000, weight: 1 };
            let rules = Rules { queued: 1000, quota, ..options.rules.clone() };
            let keeper = Keeper::open(Options { rules, ..options }).unwrap();
            let calls = futures_util::future::join_all((0..200).map(|n| keeper.submit(submission(n))));
            let drain = async {
                tokio::time::sleep(Duration::from_micros(300 * round)).await;
                keeper.drain(true, cancel_queued).await.unwrap()
            };
            let (answers, (_, queued)) = futures_util::future::join(calls, drain).await;
            let taken = answers.iter().filter(|answer| answer.is_ok()).count();
            let waiting = usize::try_from(keeper.load().2).unwrap();
            let expected = if cancel_queued { 0 } else { taken };
            assert_eq!((usize::try_from(queued).unwrap(), waiting), (expected, expected), "round {round}");
            for refused in answers.into_iter().filter_map(Result::err) {
                assert!(
                    refused.code == Code::AdmissionBusy && refused.message.contains("drained"),
                    "{refused}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_wait_are_not_started_on_a_host_that_has_drifted() {
    let dir = tempfile::tempdir().unwrap();
    {
        let keeper = open(dir.path());
        keeper.submit(submission(1)).await.unwrap();
        keeper.submit(Submission { queue_timeout_ms: Some(500), ..submission(2) }).await.unwrap();
        keeper.close().await;
    }
    greet(&options(dir.path()).socket);
    let keeper = Keeper::open(Options { drifted: Some(true), ..options(dir.path()) }).unwrap();
    until("the launcher is seen", || keeper.health().launcher).await;
    // Both would have room. The second one ends by its time all the same, by the hand that starts jobs.
    let (late, _) = finished(&keeper, &job_id(2)).await;
    assert!(late.end.unwrap().failure.unwrap().message.contains("waited longer"));
    assert!(keeper.health().launcher && keeper.get(&job_id(1)).unwrap().state == State::Queued);
    // A look that began before the launcher came up says nothing about the host under it.
    keeper.set_drifted(false, 0);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(keeper.get(&job_id(1)).unwrap().state, State::Queued);
    let launchers = *keeper.launchers().borrow();
    keeper.set_drifted(false, launchers);
    until("the job is started", || keeper.get(&job_id(1)).unwrap().state > State::Queued).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn job_that_was_asked_for_and_not_taken_is_held_back_on_a_host_that_has_drifted() {
    let dir = tempfile::tempdir().unwrap();
    let asked = greet(&options(dir.path()).socket);
    let asked = || asked.load(Ordering::SeqCst);
    let keeper = Keeper::open(Options { drifted: Some(false), ..options(dir.path()) }).unwrap();
    until("the launcher is seen", || keeper.health().launcher).await;
    let launchers = *keeper.launchers().borrow();
    keeper.set_drifted(false, launchers);
    keeper.submit(submission(1)).await.unwrap();
    until("the launcher is asked more than once", || asked() > 2).await;
    keeper.set_drifted(true, launchers);
    // Whoever was just asking.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = asked();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(asked(), before, "it was asked on a host that has drifted");
    assert_eq!(keeper.get(&job_id(1)).unwrap().state, State::Running);
    keeper.set_drifted(false, launchers);
    until("the launcher is asked again", || asked() > before).await;
}
