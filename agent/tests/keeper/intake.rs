//! Who gets a place, and who is refused what.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_client_could_vouch_for_is_refused_with_its_field() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = open(dir.path());
    let signed_by = |principal: &str, key: &str| -> InputSource {
        let signer =
            serde_json::json!({"principal": principal, "key": key, "allowed_signers": jobs::request(3)});
        let source = serde_json::json!({"kind": "git", "url": "https://git.example/r", "commit": "1".repeat(40),
            "signer": signer});
        serde_json::from_value(source).unwrap()
    };
    let made = serde_json::json!({"kind": "attestation", "sha256": "3".repeat(64), "made_by": {
        "builder": "https://ampoule.example/builders/hermetic/v1", "key": "SHA256:x", "job": job_id(9),
        "subject": "x", "statement": "4".repeat(64)}});
    let here = serde_json::json!({"kind": "git", "commit": "1".repeat(40)});
    for (source, field) in [
        (signed_by("p", "SHA256:x"), "inputs[0].git.signer: who has signed a commit is found here"),
        (signed_by("", ""), "inputs[0].git.signer: the operator has allowed nobody"),
        (serde_json::from_value(made).unwrap(), "inputs[0].attestation: the operator believes nobody's"),
        (serde_json::from_value(here).unwrap(), "inputs[0].git.url: a repository of the client's"),
    ] {
        let mut refused = submission(1);
        let input = serde_json::json!({"name": "src", "mount": "/build/src", "source": source});
        refused.spec.inputs.push(serde_json::from_value(input).unwrap());
        let error = keeper.submit(refused).await.unwrap_err();
        assert!(error.code == Code::JobInvalid && error.message.starts_with(field), "{error:?}");
    }
    let mut large = submission(1);
    large.spec.limits.memory_bytes = Some(9 << 30);
    let error = keeper.submit(large).await.unwrap_err();
    assert!(error.code == Code::JobInvalid && error.message.starts_with("limits.memory"), "{error:?}");
    assert_eq!(keeper.load(), (true, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_ask_at_once_get_no_more_places_than_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = open(dir.path());
    let calls = (0..40).map(|number| keeper.submit(submission(number)));
    let answers = futures_util::future::join_all(calls).await;
    let (taken, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((taken.len(), refused.len(), keeper.load()), (8, 32, (true, 0, 8)));
    for refused in refused {
        let refused = refused.unwrap_err();
        assert!(refused.code == Code::AdmissionBusy && refused.retry_after.is_some(), "{refused:?}");
        assert!(!refused.message.contains("jobs wait"), "it tells how many others wait: {refused}");
    }
    // What was refused by the ledger has given its place back.
    keeper.cancel(&job_id(0), &caller(), "").await.unwrap();
    finished(&keeper, &job_id(0)).await;
    let mut lower = submission(60);
    (lower.spec.source_date_epoch, lower.spec.attempt) = (1, 0);
    assert!(keeper.submit(lower).await.unwrap_err().message.contains("attempt 0 is refused"));
    keeper.submit(submission(50)).await.unwrap();
    assert_eq!(keeper.load(), (true, 0, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn place_is_promised_without_a_word_in_the_ledger_and_a_key_that_has_a_job_gets_none() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = open(dir.path());
    let ledger = || std::fs::read(dir.path().join("agent/ledger")).unwrap();
    let place = async |number| match keeper.promise(&submission(number)).await {
        Ok(Promised::Place(place)) => place,
        other => panic!("{other:?}"),
    };
    let empty = ledger();
    drop(place(1).await);
    let first = place(1).await;
    assert_eq!(ledger(), empty);
    keeper.enter(first, submission(1)).await.unwrap();
    let one = ledger();
    // The same key for a job of another id, as each call draws one.
    let again = Submission { spec: submission(2).spec, ..submission(1) };
    for _ in 0..2 {
        let Ok(Promised::Attached(attached)) = keeper.promise(&again).await else {
            panic!("it is not attached")
        };
        assert!(attached.attached && attached.job.id == job_id(1));
        assert!(keeper.submit(again.clone()).await.unwrap().attached);
    }
    assert_eq!(ledger(), one);
    assert_eq!(keeper.load(), (true, 0, 1));
    // One that comes second after both were promised a place gives its own back.
    let (a, b) = (place(3).await, place(3).await);
    assert!(!keeper.enter(a, submission(3)).await.unwrap().attached);
    assert!(keeper.enter(b, submission(3)).await.unwrap().attached);
    for number in 4..10 {
        keeper.submit(submission(number)).await.unwrap();
    }
    assert_eq!((keeper.load().2, keeper.promise(&submission(10)).await.is_err()), (8, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_for_what_is_kept_has_the_old_swept() {
    let dir = tempfile::tempdir().unwrap();
    greet(&options(dir.path()).socket);
    let mut options = options(dir.path());
    options.ledger.retention = Retention { count: 1, least_ns: 0, ..Retention::default() };
    // So that it is not the clock's doing.
    options.keep.every = Duration::from_secs(3600);
    let keeper = Keeper::open(options).unwrap();
    until("the launcher is seen", || keeper.health().launcher).await;
    for number in 1..3 {
        keeper.submit(submission(number)).await.unwrap();
        let _ = keeper.cancel(&job_id(number), &caller(), "").await;
        finished(&keeper, &job_id(number)).await;
    }
    let record = dir.path().join(format!("agent/records/{}", job_id(1)));
    assert!(record.exists());
    let other = Submission { project: Name::parse("other").unwrap(), ..submission(8) };
    keeper.submit(other).await.unwrap();
    let refused = keeper.submit(submission(3)).await.unwrap_err();
    assert!(refused.message.contains("2 finished jobs") && refused.retry_after.is_some(), "{refused:?}");
    until("the oldest is forgotten", || keeper.get(&job_id(1)).is_none()).await;
    assert!(!record.exists() && keeper.get(&job_id(2)).is_some());
    keeper.submit(submission(3)).await.unwrap();
}
