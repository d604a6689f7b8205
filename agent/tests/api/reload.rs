//! Certificates that change, and the end of a server.

use crate::fixture::{CI, Ca, IDLE, Wish, mode, start};
use crate::raw::call;
use ampoule_agent::api::Limits;
use ampoule_proto::v1 as wire;
use prost::Message as _;
use std::time::{Duration, Instant};

const CHECK: &str = "grpc.health.v1.Health/Check";
const GET: &str = "ampoule.v1.JobService/GetJob";

fn get() -> Vec<u8> {
    wire::GetJobRequest { job_id: crate::fake::MINE.into() }.encode_to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_changed_in_flight_and_bad_ones_change_nothing() {
    let server = start(Wish::default()).await;
    let at = |name: &str| server.dir.path().join(name);
    let old = server.tcp(Some(&server.ca.client(CI)));
    call(old.clone(), GET, get(), None).await.unwrap();

    // What cannot be used: no certificate, a key of another certificate.
    let good = std::fs::read(at("server.pem")).unwrap();
    for bad in [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        &server.ca.server().certificate,
    ] {
        std::fs::write(at("server.pem"), bad).unwrap();
        assert!(server.tls.has_changed());
        assert!(server.tls.reload().is_err());
        call(server.tcp(Some(&server.ca.client(CI))), GET, get(), None).await.unwrap();
    }
    std::fs::write(at("server.pem"), good).unwrap();
    mode(&at("server.key"), 0o640);
    assert!(server.tls.reload().is_err(), "a key that others can read");
    mode(&at("server.key"), 0o600);

    // Other authorities: found without being told, and connections of the old ones end.
    let other = Ca::new();
    std::fs::write(at("clients.pem"), other.0.pem()).unwrap();
    let before = Instant::now();
    while call(server.tcp(Some(&other.client(CI))), GET, get(), None).await.is_err() {
        assert!(before.elapsed() < Duration::from_secs(30), "not found");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = Instant::now();
    while call(old.clone(), GET, get(), None).await.is_ok() {
        assert!(before.elapsed() < Duration::from_secs(10), "the old connection lives on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_never_resumed_and_only_tls_1_3_with_h2_is_spoken() {
    let server = start(Wish::default()).await;
    let config = server.config(Some(&server.ca.client(IDLE)));
    for _ in 0..2 {
        let stream = server.tls_stream(config.clone()).await.unwrap();
        let (_, session) = stream.get_ref();
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
    for alpn in [vec![], vec![b"http/1.1".to_vec()]] {
        let mut config = config.clone();
        config.alpn_protocols = alpn;
        let Ok(mut stream) = server.tls_stream(config).await else { continue };
        // Without ALPN the handshake itself succeeds; nothing is spoken after it.
        let mut byte = [0];
        let read = tokio::time::timeout(
            Duration::from_secs(5),
            tokio::io::AsyncReadExt::read(&mut stream, &mut byte),
        );
        assert!(matches!(read.await.unwrap(), Ok(0) | Err(_)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_lets_calls_end_and_cuts_off_what_does_not() {
    let limits = Limits { drain: Duration::from_secs(1), ..Limits::default() };
    let mut server = start(Wish { limits, ..Wish::default() }).await;
    let channel = server.unix();
    let watch =
        wire::WatchJobRequest { job_id: crate::fake::MINE.into(), follow: true, ..Default::default() };
    let watching =
        tokio::spawn(call(channel.clone(), "ampoule.v1.JobService/WatchJob", watch.encode_to_vec(), None));
    let idle = server.tcp(Some(&server.ca.client(IDLE)));
    call(idle, CHECK, Vec::new(), None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = Instant::now();
    server.stop.cancel();
    for task in std::mem::take(&mut server.tasks) {
        tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
    }
    let took = before.elapsed();
    assert!(took >= Duration::from_millis(900), "the call in flight had its time: {took:?}");
    assert!(watching.await.unwrap().is_err());
    assert!(call(server.unix(), CHECK, Vec::new(), None).await.is_err());
}
