//! What the keeper of jobs promises where no launcher is needed: jobs that end before one takes them, and restarts.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

#[path = "common/jobs.rs"]
mod jobs;

use ampoule_agent::fair::Seats;
use ampoule_agent::job::ledger::{self, Ledger, Retention};
use ampoule_agent::job::queue::{Amount, Quota, Rules};
use ampoule_agent::job::state::Change;
use ampoule_agent::job::{
    Caller, End, Intakes, Job, Jobs, Keep, Keeper, Needs, Options, Promised, Shown, ShownToAll, Sources,
    State, Submission, Unwitnessed, WatchedEvent, Witness,
};
use ampoule_agent::local::SigningKey;
use ampoule_agent::sources::{Policy, SourcesFile};
use ampoule_agent::visits::{Source, Visit};
use ampoule_evidence::{Authority, Kind, PublicKey, TrustedKey, Verified, VerifyRequest, verify};
use ampoule_ipc::Channel;
use ampoule_spec::wire::{Content, Imported, Reply, Request};
use ampoule_spec::{Code, Failure, InputSource, JobId, JobSpec, Name, Outcome, Sha256, UnixNanos};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use jobs::{job_id, open_submission, resolved, submission};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WHOLE: Amount = Amount { cpu_millis: 4000, memory_bytes: 8 << 30, disk_bytes: 64 << 30 };

fn options(dir: &Path) -> Options {
    Options {
        state: dir.join("agent"),
        socket: dir.join("nobody.sock"),
        jobs: dir.join("jobs"),
        key: SigningKey::Development,
        authority: Authority::parse("https://ampoule.example").unwrap(),
        sources: Sources { all: Policy::built_in(), projects: BTreeMap::new(), files: BTreeMap::new() },
        shown: Arc::new(ShownToAll),
        witness: Arc::new(Unwitnessed),
        rules: Rules {
            capacity: WHOLE,
            running: 4,
            queued: 8,
            patience: 8,
            quota: Quota { running: 4, queued: 8, weight: 1 },
            projects: BTreeMap::new(),
        },
        needs: Needs {
            other: Amount { cpu_millis: 1000, memory_bytes: 1 << 30, disk_bytes: 1 << 30 },
            profiles: BTreeMap::new(),
        },
        ledger: ledger::Options { reserve_bytes: 64 << 10, ..ledger::Options::default() },
        keep: Keep::default(),
        intakes: Intakes { places: 2, ..Intakes::default() },
        lookups: Seats::all_but_one(2),
        readers: 2,
        drifted: None,
        secrets: None,
    }
}

fn open(dir: &Path) -> Keeper {
    Keeper::open(options(dir)).unwrap()
}

fn caller() -> Caller {
    submission(0).caller
}

/// The job once it is finished, and everything that its watcher was told of it.
async fn finished(keeper: &Keeper, id: &JobId) -> (Job, Vec<State>) {
    let mut told = std::pin::pin!(keeper.watch(id, 0, true, true).unwrap());
    let (mut last, mut states) = (None, Vec::new());
    let all = async {
        while let Some(item) = told.next().await {
            if let WatchedEvent::Job(job) = item.unwrap().event {
                states.push(job.state);
                last = Some(*job);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("the job does not end");
    let last = last.unwrap();
    assert_eq!(last.state, State::Finished);
    assert_eq!(keeper.get(id), Some(last.clone()));
    (last, states)
}

/// Verifies the one signed record of a job, as a stranger does.
fn attested(keeper: &Keeper, job: &Job) -> (Verified, serde_json::Value) {
    let evidence = keeper.evidence(&job.id).unwrap();
    let names: Vec<_> = evidence.files.iter().map(|file| file.names.join(" ")).collect();
    assert_eq!(names, ["report.json", "result.json", "run.intoto.jsonl", "spec.json"]);
    let file = |name: &str| &evidence.files.iter().find(|file| file.names == [name]).unwrap().bytes;
    let sha256 = |bytes: &[u8]| ampoule_agent::job::state::sha256(bytes).unwrap();
    let envelope = file("run.intoto.jsonl");
    assert_eq!(job.end.as_ref().unwrap().attestation, sha256(envelope));
    let key = PublicKey::from_pem(&evidence.public_key).unwrap();
    let verified = verify(&VerifyRequest {
        attestation: envelope,
        trusted: &[TrustedKey::any(key)],
        artifact: sha256(file("report.json")),
        tree: false,
        kind: Kind::Run,
        builder: None,
        source: None,
        params: &BTreeMap::new(),
        allow_dev: true,
    })
    .unwrap();
    (verified, serde_json::from_slice(file("result.json")).unwrap())
}

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
        let failure = Failure { code: Code::InputMissing, message: "m".into(), step: None, teardown: None };
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
        let failure = Failure { code: Code::InputMissing, message: "m".into(), step: None, teardown: None };
        ledger.change(&job_id(1), Change::Refused { failure }).await.unwrap();
    }
    let keeper = open(dir.path());
    let (job, _) = finished(&keeper, &job_id(1)).await;
    attested(&keeper, &job);
    assert_eq!(std::fs::read(&envelope).unwrap(), before);
}

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

/// Waits for something that comes by itself.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: never");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lets a call begin, and gives it up as soon as something holds that it has done: as at a caller's deadline.
async fn give_up<T>(call: impl Future<Output = T>, holds: impl FnMut() -> bool) {
    let mut call = Box::pin(call);
    assert!(futures_util::poll!(call.as_mut()).is_pending(), "it is over before it can be given up");
    until("the call is durable", holds).await;
    drop(call);
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

/// A launcher that greets whoever comes and has no job; it is too busy to take one, and counts how often it is asked to. Of
/// anything else it knows nothing.
fn greet(socket: &Path) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    greet_with(socket, move |request, _| {
        matches!(request, Request::Run { .. }).then(|| {
            count.fetch_add(1, Ordering::SeqCst);
            Reply::Refused { code: Code::AdmissionBusy, message: "busy".into() }
        })
    });
    asked
}

/// A launcher that greets whoever comes and has no job; what else it is asked `answer` knows.
fn greet_with(
    socket: &Path,
    answer: impl Fn(&Request, Vec<OwnedFd>) -> Option<Reply> + Clone + Send + 'static,
) {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(socket).unwrap()).unwrap();
    rustix::net::listen(&listener, 16).unwrap();
    std::thread::spawn(move || {
        while let Ok(accepted) = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
            let recovered = Vec::new();
            let hello = Reply::Hello { version: "1".into(), privileged: true, recovered, listening: true };
            let (session, answer) = (Channel::new(accepted), answer.clone());
            std::thread::spawn(move || {
                let mut answered = session.send(&hello, &[]);
                while let (Ok(()), Ok((request, descriptors))) = (&answered, session.receive()) {
                    let reply = match &request {
                        Request::Jobs { .. } => Some(Reply::Jobs { jobs: Vec::new(), more: false }),
                        other => answer(other, descriptors),
                    };
                    let Some(reply) = reply else { break };
                    answered = session.send(&reply, &[]);
                }
            });
        }
    });
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

/// A source that answers everybody with a byte now and then, for ever; where it is, and how many have asked.
fn trickle() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.extend(byte);
                }
                let mut said = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
                while said.is_ok() {
                    said = stream.write_all(b"x");
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
    });
    (address, asked)
}

/// A keeper with these bounds of intakes, in which jobs may fetch from there.
fn fetching(dir: &Path, from: SocketAddr, intakes: Intakes, shown: Arc<dyn Shown>) -> Keeper {
    let text = format!(
        "sources = 1\n[project.default]\nallow = [\"slow\"]\n[origin.slow]\nurl = \"http://{from}/\"\n"
    );
    let all = SourcesFile::parse(&text, "sources.toml", Path::new("")).unwrap().policy(None).unwrap();
    let mut options = options(dir);
    (options.sources.all, options.rules.running, options.rules.quota.running) = (all, 16, 16);
    options.needs.other = Amount { cpu_millis: 100, memory_bytes: 1 << 20, disk_bytes: 1 << 20 };
    Keeper::open(Options { intakes, shown, ..options }).unwrap()
}

/// A job of a project that fetches something.
fn fetches(number: u32, project: &str, from: SocketAddr) -> Submission {
    let source = serde_json::json!({"kind": "http", "url": format!("http://{from}/{number}"), "sha256": "1".repeat(64)});
    with_input(number, project, source)
}

/// A job of a project with an input.
fn with_input(number: u32, project: &str, source: serde_json::Value) -> Submission {
    let mut submission = submission(number);
    let input = serde_json::json!({"name": "src", "mount": "/build/src", "source": source});
    submission.spec.inputs.push(serde_json::from_value(input).unwrap());
    submission.project = Name::parse(project).unwrap();
    submission
}

fn state(keeper: &Keeper, number: u32) -> State {
    keeper.get(&job_id(number)).unwrap().state
}

/// A project that has had everything from everywhere, or all of them.
#[derive(Debug)]
struct HadAll {
    of: Option<&'static str>,
}

impl Shown for HadAll {
    fn has(&self, _: &Name, _: &Content) -> bool {
        true
    }

    fn record(&self, _: &Name, _: &Content) {}

    fn visit(&self, project: &Name, _: &Source) -> Option<Visit> {
        let visit = Visit { at: UnixNanos(1), from: "https://h.example/r".to_owned() };
        self.of.is_none_or(|of| of == project.as_str()).then_some(visit)
    }

    fn record_visit(&self, _: &Name, _: &Source, _: &Visit) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_before_a_restart_is_what_the_runner_is_asked_for_and_the_record_says() {
    let dir = tempfile::tempdir().unwrap();
    let agent = dir.path().join("agent");
    let mut fixed = open_submission(1);
    (fixed.spec.source_date_epoch, fixed.spec.epoch_of_commit) = (7, false);
    {
        // Killed behind the spec that was found, and before it.
        std::fs::create_dir_all(&agent).unwrap();
        let ledger = Ledger::open(&agent, &options(dir.path()).ledger, UnixNanos(1)).unwrap();
        let mut second = fixed.clone();
        (second.key, second.spec.id) = (jobs::key(2), job_id(2));
        for submission in [open_submission(1), second] {
            let id = submission.spec.id.clone();
            ledger.submit(submission, UnixNanos(1)).await.unwrap();
            ledger.change(&id, Change::Began).await.unwrap();
        }
        ledger.resolve(&job_id(1), &resolved(1)).await.unwrap();
    }
    let asked: Arc<Mutex<Vec<JobSpec>>> = Arc::default();
    let hears = asked.clone();
    // The launcher has the checkout, and takes no job.
    greet_with(&options(dir.path()).socket, move |request, descriptors| match request {
        Request::Find(Content::Git { epoch: 7, .. }) => {
            Some(Reply::Found { imported: Some(Imported { sha256: jobs::request(1), bytes: 1, entries: 1 }) })
        }
        Request::Run { .. } => {
            let mut spec = Vec::new();
            File::from(descriptors.into_iter().next().unwrap()).read_to_end(&mut spec).unwrap();
            hears.lock().unwrap().push(serde_json::from_slice(&spec).unwrap());
            Some(Reply::Refused { code: Code::JobInvalid, message: "m".to_owned() })
        }
        _ => None,
    });
    let keeper =
        Keeper::open(Options { shown: Arc::new(HadAll { of: None }), ..options(dir.path()) }).unwrap();
    for number in 1..3 {
        let (job, _) = finished(&keeper, &job_id(number)).await;
        let (verified, result) = attested(&keeper, &job);
        assert_eq!((verified.outcome, &result["code"]), (Outcome::Failed, &"job.invalid".into()));
        let evidence = keeper.evidence(&job.id).unwrap();
        let spec = evidence.files.iter().find(|file| file.names == ["spec.json"]).unwrap();
        let expected = JobSpec { id: job_id(number), ..resolved(1) };
        assert_eq!(serde_json::from_slice::<JobSpec>(&spec.bytes).unwrap(), expected);
        assert!(asked.lock().unwrap().contains(&expected), "{asked:?}");
    }
    // Who submits again gets the job that is there.
    assert!(keeper.attach(&open_submission(1)).unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn job_whose_commit_was_never_fetched_ends_in_a_record_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let keeper = open(dir.path());
    keeper.submit(open_submission(1)).await.unwrap();
    keeper.cancel(&job_id(1), &caller(), "").await.unwrap();
    let (job, _) = finished(&keeper, &job_id(1)).await;
    assert_eq!(attested(&keeper, &job).0.outcome, Outcome::Cancelled);
    let evidence = keeper.evidence(&job.id).unwrap();
    let file = |name: &str| {
        let bytes = &evidence.files.iter().find(|file| file.names == [name]).unwrap().bytes;
        serde_json::from_slice::<serde_json::Value>(bytes).unwrap()
    };
    let payload = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        file("run.intoto.jsonl")["payload"].as_str().unwrap(),
    );
    let statement: serde_json::Value = serde_json::from_slice(&payload.unwrap()).unwrap();
    assert_eq!(
        statement["predicate"]["inputs"][0]["digest"],
        serde_json::json!({"gitCommit": "3".repeat(40)})
    );
    let spec = file("spec.json");
    assert_eq!(
        (&spec["epoch_of_commit"], &spec["inputs"][0]["source"]["tree"]),
        (&true.into(), &serde_json::Value::Null)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn job_that_fetches_nothing_is_not_behind_slow_sources() {
    let (dir, (from, asked)) = (tempfile::tempdir().unwrap(), trickle());
    let imported = Imported { sha256: jobs::request(1), bytes: 1, entries: 1 };
    greet_with(&options(dir.path()).socket, move |request, _| {
        matches!(request, Request::Find(_)).then(|| Reply::Found { imported: Some(imported.clone()) })
    });
    let intakes = Intakes { places: 1, ..Intakes::default() };
    let keeper = fetching(dir.path(), from, intakes, Arc::new(HadAll { of: Some("everywhere") }));
    keeper.submit(fetches(1, "a", from)).await.unwrap();
    until("the source is asked", || asked.load(Ordering::SeqCst) == 1).await;
    // Neither one that names what was uploaded, nor one of which everything was fetched, of the same project or of another.
    let uploaded = serde_json::json!({"kind": "tar", "sha256": "2".repeat(64)});
    keeper.submit(with_input(2, "a", uploaded)).await.unwrap();
    keeper.submit(fetches(3, "everywhere", from)).await.unwrap();
    for number in [2, 3] {
        until("the launcher is asked", || state(&keeper, number) > State::Preparing).await;
    }
    keeper.submit(fetches(4, "b", from)).await.unwrap();
    // A commit's time is asked for, whatever was fetched before.
    let commit =
        serde_json::json!({"kind": "git", "url": format!("http://{from}/r"), "commit": "3".repeat(40)});
    let mut open = with_input(5, "everywhere", commit);
    (open.spec.source_date_epoch, open.spec.epoch_of_commit) = (0, true);
    keeper.submit(open).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!([1, 4, 5].map(|number| state(&keeper, number)), [State::Preparing; 3]);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "more fetch than there are places");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_project_fetches_in_half_of_the_places_and_not_for_ever() {
    let (dir, (from, asked)) = (tempfile::tempdir().unwrap(), trickle());
    greet(&options(dir.path()).socket);
    let whole = Duration::from_secs(3);
    let intakes = Intakes { places: 4, whole, patience: Duration::from_secs(3600), ..Intakes::default() };
    let keeper = fetching(dir.path(), from, intakes, Arc::new(ShownToAll));
    for number in 1..4 {
        keeper.submit(fetches(number, "a", from)).await.unwrap();
    }
    until("two fetch", || asked.load(Ordering::SeqCst) == 2).await;
    keeper.submit(fetches(4, "b", from)).await.unwrap();
    until("another project fetches", || asked.load(Ordering::SeqCst) == 3).await;
    let ends = (1..4).map(|number| keeper.get(&job_id(number)).unwrap().state).collect::<Vec<_>>();
    assert_eq!(ends, [State::Preparing; 3], "this machine is too slow");
    let (job, _) = finished(&keeper, &job_id(1)).await;
    let failure = job.end.unwrap().failure.unwrap();
    assert!(failure.code == Code::InputUnreachable && failure.message.contains("after 3 s"), "{failure:?}");
    until("the third of them fetches", || asked.load(Ordering::SeqCst) == 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_intake_gives_way_to_another_project_and_to_nobody_else() {
    let (dir, (from, asked)) = (tempfile::tempdir().unwrap(), trickle());
    greet(&options(dir.path()).socket);
    let intakes = Intakes { places: 4, patience: Duration::from_secs(1), ..Intakes::default() };
    let keeper = fetching(dir.path(), from, intakes, Arc::new(ShownToAll));
    for (number, project) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
        keeper.submit(fetches(number, project, from)).await.unwrap();
    }
    until("three fetch", || asked.load(Ordering::SeqCst) == 3).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    // One that waits for its own project is no reason.
    let waits = (1..4).filter(|number| state(&keeper, *number) == State::Preparing).count();
    assert!(waits == 3 && asked.load(Ordering::SeqCst) == 3);
    keeper.cancel(&job_id(3), &caller(), "").await.unwrap();
    finished(&keeper, &job_id(3)).await;
    keeper.submit(fetches(5, "b", from)).await.unwrap();
    until("all places are taken", || asked.load(Ordering::SeqCst) == 4).await;
    // Both projects are slow, and one place is wanted: one job gives way.
    keeper.submit(fetches(6, "c", from)).await.unwrap();
    until("the third project fetches", || asked.load(Ordering::SeqCst) == 5).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let jobs = [1, 2, 4, 5].map(|number| keeper.get(&job_id(number)).unwrap());
    let ended: Vec<_> = jobs.iter().filter_map(|job| job.end.as_ref()).collect();
    assert_eq!(ended.len(), 1, "{ended:?}");
    let failure = ended[0].failure.as_ref().unwrap();
    assert!(failure.code == Code::InputUnreachable && failure.message.contains("too slow"), "{failure:?}");
    assert_eq!(state(&keeper, 6), State::Preparing);
}
