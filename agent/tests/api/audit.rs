//! What a call does is written down before it is done, and nothing is done that cannot be.

use crate::fake::{MINE, OVER};
use crate::fixture::{CI, Ca, Running, Wish, mode, start};
use crate::matrix::{revoke, submit};
use crate::raw::call;
use ampoule_agent::audit::Decision;
use ampoule_proto::v1 as wire;
use prost::Message as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Calls that have an entry: the call, its message, the entry's action, and what of the two comes first.
fn calls() -> Vec<(&'static str, Vec<u8>, &'static str, [&'static str; 2])> {
    let job_id = || MINE.to_owned();
    vec![
        (
            "JobService/SubmitJob",
            submit("mine", "k").encode_to_vec(),
            "job.submitted",
            ["job.submitted", "submit"],
        ),
        (
            "JobService/CancelJob",
            wire::CancelJobRequest { job_id: job_id(), reason: "enough".into() }.encode_to_vec(),
            "job.cancelled",
            ["job.cancelled", "cancel"],
        ),
        (
            "HostService/Drain",
            wire::DrainRequest { drain: true, cancel_queued: true }.encode_to_vec(),
            "daemon.drained",
            ["daemon.drained", "drain"],
        ),
        (
            "HostService/ListLeases",
            wire::ListLeasesRequest { job_id: job_id(), project: "mine".into(), ..Default::default() }
                .encode_to_vec(),
            "read.leases",
            ["read.leases", "leases"],
        ),
        (
            "HostService/RevokeLeases",
            revoke(&job_id()).encode_to_vec(),
            "secret.revoke_wished",
            ["secret.revoke_wished", "revoke"],
        ),
        (
            "HostService/CheckSecrets",
            wire::CheckSecretsRequest { project: "mine".into() }.encode_to_vec(),
            "secret.checked",
            ["secret.checked", "look"],
        ),
        (
            "JobService/GetAttestation",
            wire::GetAttestationRequest { job_id: job_id() }.encode_to_vec(),
            "read.evidence",
            ["evidence", "read.evidence"],
        ),
        (
            "JobService/DownloadOutput",
            wire::DownloadOutputRequest { job_id: job_id(), output: "a".into(), offset: 0 }.encode_to_vec(),
            "read.outputs",
            ["open", "read.outputs"],
        ),
        (
            "JobService/WatchJob",
            wire::WatchJobRequest { job_id: job_id(), logs: true, ..Default::default() }.encode_to_vec(),
            "read.logs",
            ["read.logs", "watch"],
        ),
    ]
}

/// The call; one that never ends is left when it has told something.
async fn ask(server: &Running, path: &str, message: Vec<u8>) -> Result<(), Status> {
    let path = format!("ampoule.v1.{path}");
    let call = call(server.unix(), &path, message, None);
    match tokio::time::timeout(Duration::from_secs(2), call).await {
        Ok(answered) => answered.map(drop),
        Err(_) => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn effects_and_reads_have_an_entry_that_is_durable_before_them() {
    let server = start(Wish::default()).await;
    let uid = format!("uid:{}", rustix::process::geteuid().as_raw());
    for (path, message, action, order) in calls() {
        server.told.1.order.lock().unwrap().clear();
        server.told.1.events.lock().unwrap().clear();
        ask(&server, path, message).await.unwrap();
        assert_eq!(*server.told.1.order.lock().unwrap(), order, "{path}");
        let events = server.told.1.events.lock().unwrap();
        let [event] = events.as_slice() else { panic!("{path}: {events:?}") };
        assert_eq!((event.action.as_str(), event.decision), (action, Decision::Allowed));
        assert_eq!((event.actor.as_str(), event.detail["peer"].as_str()), (uid.as_str(), "unix"));
        assert_eq!(event.detail["call"], format!("ampoule.v1.{path}"));
        let of_all = ["HostService/Drain", "HostService/CheckSecrets"];
        assert_eq!(event.job.is_some() && event.project.is_some(), !of_all.contains(&path), "{path}");
    }
    assert_eq!(server.told.count(), 0, "nothing was refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_done_or_told_that_cannot_be_written_down() {
    let server = start(Wish::default()).await;
    server.told.1.is_full.store(true, Ordering::SeqCst);
    for (path, message, _, _) in calls() {
        server.told.1.order.lock().unwrap().clear();
        let status = ask(&server, path, message).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{path}: {status}");
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "call.busy");
        assert!(details.retry_info().is_some() && !status.message().contains('/'), "{status}");
        // An output or evidence may have been looked up; nothing of it was sent.
        let done = server.told.1.order.lock().unwrap().clone();
        assert!(done.is_empty() || done == ["evidence"] || done == ["open"], "{path}: {done:?}");
    }
    assert!(server.fake.submitted.lock().unwrap().is_empty());
    // What needs no entry goes on.
    let get = wire::GetJobRequest { job_id: MINE.into() }.encode_to_vec();
    ask(&server, "JobService/GetJob", get).await.unwrap();
    let watch = wire::WatchJobRequest { job_id: MINE.into(), ..Default::default() }.encode_to_vec();
    ask(&server, "JobService/WatchJob", watch).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submission_has_one_entry_and_one_for_which_there_is_no_place_or_a_job_has_none() {
    let server = start(Wish::default()).await;
    let send =
        async |key: &str| ask(&server, "JobService/SubmitJob", submit("mine", key).encode_to_vec()).await;
    for _ in 0..3 {
        send("k").await.unwrap();
    }
    server.fake.is_busy.store(true, Ordering::SeqCst);
    send("l").await.unwrap_err();
    // A key that has a job needs no place.
    send("k").await.unwrap();
    assert_eq!(server.told.1.events.lock().unwrap().len(), 1);
    let uid = rustix::process::geteuid().as_raw();
    let line = |why: &str| format!("not done ampoule.v1.JobService/SubmitJob uid:{uid}: {why}");
    let (attached, busy) = (line("job.attached"), line("admission.busy"));
    assert_eq!(*server.told.0.lock().unwrap(), [&attached, &attached, &busy, &attached].map(String::clone));
    // Two under one key at the same moment are both promised a place, and written down; the second is told to be none.
    server.told.0.lock().unwrap().clear();
    server.fake.is_busy.store(false, Ordering::SeqCst);
    server.fake.comes_second.store(true, Ordering::SeqCst);
    send("m").await.unwrap();
    assert_eq!(server.told.1.events.lock().unwrap().len(), 2);
    assert_eq!(*server.told.0.lock().unwrap(), [attached]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wish_for_the_end_of_a_job_that_has_ended_has_no_entry_and_is_counted() {
    let server = start(Wish::default()).await;
    let cancel = wire::CancelJobRequest { job_id: OVER.into(), reason: String::new() }.encode_to_vec();
    ask(&server, "JobService/CancelJob", cancel).await.unwrap();
    assert!(server.told.1.events.lock().unwrap().is_empty() && server.fake.order.lock().unwrap().is_empty());
    let uid = rustix::process::geteuid().as_raw();
    let line = format!("not done ampoule.v1.JobService/CancelJob uid:{uid}: job.ended");
    assert_eq!(*server.told.0.lock().unwrap(), [line]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_in_force_when_that_is_written_down_and_not_before() {
    let server = start(Wish::default()).await;
    let at = |name: &str| server.dir.path().join(name);
    let soon = Instant::now() + Duration::from_secs(30);
    server.told.1.is_full.store(true, Ordering::SeqCst);
    let other = Ca::new();
    std::fs::write(at("clients.pem"), other.0.pem()).unwrap();
    let pair = server.ca.server();
    std::fs::write(at("server.key"), &pair.key).unwrap();
    mode(&at("server.key"), 0o600);
    std::fs::write(at("server.pem"), &pair.certificate).unwrap();
    // Looked at more than once meanwhile.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let get = || wire::GetJobRequest { job_id: MINE.into() }.encode_to_vec();
    let get = |ca: &Ca| call(server.tcp(Some(&ca.client(CI))), "ampoule.v1.JobService/GetJob", get(), None);
    get(&server.ca).await.unwrap();
    get(&other).await.unwrap_err();
    server.told.1.is_full.store(false, Ordering::SeqCst);
    while get(&other).await.is_err() {
        assert!(Instant::now() < soon, "not in force");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let events = server.told.1.events.lock().unwrap();
    let [event] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((event.action.as_str(), event.actor.as_str()), ("reload.keys", "daemon"));
    assert_eq!(event.detail["certificate"].len(), 64);
}
