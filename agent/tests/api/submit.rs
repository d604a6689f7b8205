//! What a submission may be, through a real socket.

use crate::fixture::{Running, Wish, start};
use crate::matrix::submit;
use crate::raw::call;
use ampoule_proto::v1 as wire;
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::StatusExt;

const SUBMIT: &str = "ampoule.v1.JobService/SubmitJob";

async fn send(server: &Running, bytes: Vec<u8>) -> Result<wire::SubmitJobResponse, Status> {
    let messages = call(server.unix(), SUBMIT, bytes, None).await?;
    Ok(wire::SubmitJobResponse::decode(messages[0].clone()).unwrap())
}

/// The field and the code that a request is refused for.
async fn refusal(server: &Running, bytes: Vec<u8>) -> (String, String) {
    let status = send(server, bytes).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    let details = status.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((info.domain.as_str(), info.metadata["fault"].as_str()), ("ampoule.v1", "tenant"));
    (details.bad_request().unwrap().field_violations[0].field.clone(), info.reason.clone())
}

fn with(change: impl FnOnce(&mut wire::SubmitJobRequest)) -> Vec<u8> {
    let mut request = submit("mine", "k");
    change(&mut request);
    request.encode_to_vec()
}

fn job(change: impl FnOnce(&mut wire::JobRequest)) -> Vec<u8> {
    with(|request| change(request.job.as_mut().unwrap()))
}

fn input(source: wire::input::Source) -> Vec<u8> {
    job(|job| {
        job.inputs.push(wire::Input {
            name: "a".into(),
            mount: "/build/a".into(),
            source: Some(source),
            ..Default::default()
        });
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_submission_reaches_the_jobs_as_it_was_meant() {
    let server = start(Wish::default()).await;
    let bytes = with(|request| {
        request.priority = 9;
        request.labels = [("team".to_owned(), "x".to_owned())].into();
    });
    let answer = send(&server, bytes.clone()).await.unwrap();
    assert_eq!(answer.job.unwrap().project, "mine");
    send(&server, bytes).await.unwrap();
    let all = server.fake.submitted.lock().unwrap();
    assert_eq!((all[0].priority, all[0].key.as_str(), all[0].queue_timeout_ms), (9, "k", None));
    assert_eq!(all[0].caller.subject, format!("uid:{}", rustix::process::geteuid().as_raw()));
    assert_eq!(all[0].request, all[1].request, "the same request is known by its digest");
    assert_ne!(all[0].spec.id, all[1].spec.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_refused_with_its_field() {
    let server = start(Wish::default()).await;
    let many = || (0..33).map(|at| (at.to_string(), String::new())).collect();
    let git = |url: &str, signer| {
        input(wire::input::Source::Git(wire::GitSource {
            url: url.into(),
            commit: "a".repeat(40),
            tree_sha256: "a".repeat(64),
            signer,
            ..Default::default()
        }))
    };
    let signer = wire::GitSigner {
        principal: "a".into(),
        key: "SHA256:a".into(),
        allowed_signers_sha256: "a".repeat(64),
        tag: String::new(),
    };
    let made = wire::AttestationSource {
        sha256: "a".repeat(64),
        builder: "https://b.example/x".into(),
        key: "SHA256:a".into(),
        job_id: crate::fake::MINE.into(),
        subject: "a".into(),
        statement_sha256: "a".repeat(64),
        ..Default::default()
    };
    let large = wire::AttestationSource { provenance: vec![b' '; (1 << 20) + 1], ..made.clone() };
    for (bytes, field) in [
        (with(|r| r.idempotency_key.clear()), "idempotency_key"),
        (with(|r| r.idempotency_key = "a".repeat(129)), "idempotency_key"),
        (with(|r| r.idempotency_key = "ä".into()), "idempotency_key"),
        (with(|r| r.project = "../mine".into()), "project"),
        (with(|r| r.project.clear()), "project"),
        (with(|r| r.priority = 10), "priority"),
        (with(|r| r.priority = 256), "priority"),
        (with(|r| r.labels = many()), "labels"),
        (with(|r| r.labels = [(String::new(), String::new())].into()), "labels"),
        (with(|r| r.labels = [("a".repeat(129), String::new())].into()), "labels"),
        (with(|r| r.labels = [("a".into(), "a".repeat(129))].into()), "labels"),
        (with(|r| r.job = None), "job"),
        (job(|j| j.image = None), "job.image"),
        (job(|j| j.steps[0].cwd = "a/../b".into()), "job.steps[0].cwd"),
        (job(|j| j.steps.clear()), "job.steps"),
        (job(|j| j.user = 7), "job.user"),
        (git("https://g.example/a", Some(signer)), "job.inputs[0].git.signer"),
        (input(wire::input::Source::Attestation(made.clone())), "job.inputs[0].attestation.provenance"),
        (input(wire::input::Source::Attestation(large)), "job.inputs[0].attestation.provenance"),
    ] {
        assert_eq!(refusal(&server, bytes).await, (field.to_owned(), "job.invalid".to_owned()));
    }
    let extra = [with(|_| {}), vec![0xfa, 0x07, 0x01, b'x']].concat();
    assert_eq!(refusal(&server, extra).await, ("(message)".to_owned(), "call.invalid".to_owned()));
    assert!(server.fake.submitted.lock().unwrap().is_empty(), "nothing of it reached the jobs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_is_missing_is_listed_and_a_known_key_needs_none() {
    let server = start(Wish::default()).await;
    let bytes = with(|_| {});
    *server.fake.missing.lock().unwrap() = vec!["file:abc".to_owned()];
    let status = send(&server, bytes.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    let details = status.get_error_details();
    assert_eq!(details.precondition_failure().unwrap().violations[0].subject, "file:abc");
    server.fake.missing.lock().unwrap().clear();
    send(&server, bytes.clone()).await.unwrap();
    *server.fake.missing.lock().unwrap() = vec!["file:abc".to_owned()];
    send(&server, bytes).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn call_that_panics_is_internal_and_the_next_is_served() {
    let server = start(Wish::default()).await;
    let channel = server.unix();
    for _ in 0..2 {
        let bytes = submit("panics", "k").encode_to_vec();
        let status = call(channel.clone(), SUBMIT, bytes, None).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert!(!status.message().contains("made"), "{status}");
    }
    call(channel, SUBMIT, with(|_| {}), None).await.unwrap();
}
