//! Answers that nobody reads are of a share of the memory, and so are those that are not made because of them.

use crate::fixture::{Running, Wish, start};
use crate::hostile::{
    DATA, END_HEADERS, END_STREAM, GET, HEADERS, Wire, frame, get, is_served, prefixed, request,
};
use crate::raw::call;
use ampoule_agent::api::{Bound, Limits};
use ampoule_proto::v1 as wire;
use prost::Message as _;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const EVIDENCE: &str = "ampoule.v1.JobService/GetAttestation";
const LIST: &str = "ampoule.v1.JobService/ListJobs";
const SOON: Duration = Duration::from_secs(20);

/// A call that is answered, and whose answer nobody reads.
async fn unread(server: &Running, path: &str, message: &[u8]) -> Wire<UnixStream> {
    let mut wire = Wire::unix(server).await;
    wire.send(&frame(HEADERS, END_HEADERS, 1, &request(path))).await;
    wire.send(&frame(DATA, END_STREAM, 1, &prefixed(message))).await;
    let answered = wire.until(|kind, stream| kind == HEADERS && stream == 1);
    assert!(tokio::time::timeout(SOON, answered).await.expect("no answer"), "the connection ended");
    wire
}

/// How often the jobs were asked for this.
fn asked(server: &Running, what: &str) -> usize {
    server.fake.order.lock().unwrap().iter().filter(|did| *did == what).count()
}

fn is_busy(status: &Status) -> bool {
    let retries = status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some());
    status.code() == Code::ResourceExhausted && retries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_that_nobody_reads_is_refused_before_more_is_read() {
    let server = start(Wish::default()).await;
    server.fake.evidence.store(40 << 20, Ordering::SeqCst);
    let wanted = wire::GetAttestationRequest { job_id: crate::fake::MINE.into() }.encode_to_vec();
    let held = unread(&server, EVIDENCE, &wanted).await;
    for _ in 0..3 {
        let status = call(server.unix(), EVIDENCE, wanted.clone(), None).await.unwrap_err();
        assert!(is_busy(&status), "{status}");
    }
    assert_eq!(asked(&server, "evidence"), 1, "it is read all the same");
    is_served(&server).await;
    drop(held);
    // This client takes no such message, and then says that.
    let begun = Instant::now();
    while is_busy(&call(server.unix(), EVIDENCE, wanted.clone(), None).await.unwrap_err()) {
        assert!(begun.elapsed() < SOON, "the share is not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.fake.evidence.store(100, Ordering::SeqCst);
    let [answer] = &call(server.unix(), EVIDENCE, wanted, None).await.unwrap()[..] else {
        panic!("one answer")
    };
    assert_eq!(wire::GetAttestationResponse::decode(answer.clone()).unwrap().files[0].data.len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_nobody_reads_are_refused_before_more_are_made() {
    let server = start(Wish::default()).await;
    // A page is full with these.
    *server.fake.listed.lock().unwrap() = (30_000, 150);
    let wanted = wire::ListJobsRequest::default().encode_to_vec();
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(unread(&server, LIST, &wanted).await);
    }
    let status = call(server.unix(), LIST, wanted.clone(), None).await.unwrap_err();
    assert!(is_busy(&status), "{status}");
    assert_eq!(asked(&server, "list"), 5, "it is made all the same");
    drop(held);
    let begun = Instant::now();
    while let Err(status) = call(server.unix(), LIST, wanted.clone(), None).await {
        assert!(is_busy(&status) && begun.elapsed() < SOON, "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // One that is short holds little.
    *server.fake.listed.lock().unwrap() = (1, 1);
    let mut short = Vec::new();
    for _ in 0..20 {
        short.push(unread(&server, LIST, &wanted).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_counts_until_its_answer_is_read() {
    let limits = Limits { bytes: Bound { all: 4000, each: 2000 }, ..Limits::default() };
    let server = start(Wish { limits, ..Wish::default() }).await;
    let watch = wire::WatchJobRequest { job_id: crate::fake::MINE.into(), logs: true, ..Default::default() };
    let mut held = Vec::new();
    loop {
        let wire = unread(&server, "ampoule.v1.JobService/WatchJob", &watch.encode_to_vec()).await;
        let status = call(server.unix(), GET, get(), None).await;
        if let Err(status) = status {
            assert!(is_busy(&status), "{status}");
            break;
        }
        held.push(wire);
        assert!(held.len() < 100, "nothing of them is counted");
    }
    drop(held);
    let begun = Instant::now();
    while call(server.unix(), GET, get(), None).await.is_err() {
        assert!(begun.elapsed() < SOON, "shares are not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
