//! Whoever is not known takes nothing of those who are, and a stream is judged by its first message.

use crate::fixture::{CI, IDLE, Running, Wish, start};
use crate::hostile::{
    DATA, END_HEADERS, END_STREAM, GET, HEADERS, Wire, frame, get, is_served, prefixed, request,
};
use crate::raw::{call, stream};
use ampoule_agent::api::{Bound, Limits};
use ampoule_proto::v1 as wire;
use prost::Message as _;
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::Code;
use wire::upload_request::Part;

const CHECK: &str = "grpc.health.v1.Health/Check";
const WATCH: &str = "grpc.health.v1.Health/Watch";
const UPLOAD: &str = "ampoule.v1.ContentService/Upload";
const SOON: Duration = Duration::from_secs(10);

/// A stranger's connection that has asked for health, and goes on to be there; none if it was closed.
async fn stranger(server: &Running) -> Option<Wire<tokio_rustls::client::TlsStream<TcpStream>>> {
    let mut wire = Wire::begin(server.tls_stream(server.config(None)).await.ok()?).await;
    wire.send(&frame(HEADERS, END_HEADERS, 1, &request(CHECK))).await;
    wire.send(&frame(DATA, END_STREAM, 1, &prefixed(&[]))).await;
    let answered = wire.until(|kind, stream| kind == HEADERS && stream == 1);
    tokio::time::timeout(SOON, answered).await.expect("neither an answer nor an end").then_some(wire)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_handshakes_leave_room_for_those_who_are_known_and_for_sockets() {
    let long = Duration::from_secs(60);
    let limits = Limits {
        strangers: Bound { all: 4, each: 3 },
        handshakes: Bound { all: 8, each: 8 },
        handshake: long,
        ..Limits::default()
    };
    let server = start(Wish { limits, ..Wish::default() }).await;
    let mut there = Vec::new();
    for _ in 0..3 {
        there.push(stranger(&server).await.expect("a place"));
    }
    assert!(stranger(&server).await.is_none(), "a fourth of one address");
    // Whoever shows a certificate of the list needs no place of theirs.
    let known = server.tcp(Some(&server.ca.client(CI)));
    call(known.clone(), GET, get(), None).await.unwrap();
    // With a token one is a stranger until the first call, and leaves the place to another.
    drop(there.pop());
    let with_token = server.tcp(None);
    let token = server.issuer.token("ci", "ampouled", 0);
    let before = std::time::Instant::now();
    while let Err(status) = call(with_token.clone(), GET, get(), Some(&token)).await {
        assert!(before.elapsed() < SOON, "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    there.push(stranger(&server).await.expect("the place of whom a token has made known"));
    // All handshakes there are: the socket is as it was, and so is who has come already.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let full = tokio::time::timeout(SOON, async {
        while server.tls_stream(server.config(Some(&server.ca.client(IDLE)))).await.is_ok() {}
    });
    full.await.expect("handshakes are never full");
    is_served(&server).await;
    call(known, GET, get(), None).await.unwrap();
    call(with_token, GET, get(), Some(&token)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_an_identity_are_few_small_and_of_no_others_share() {
    let limits = Limits {
        stranger_calls: Bound { all: 8, each: 4 },
        // Whatever strangers take of it, a caller would miss.
        bytes: Bound { all: 256, each: 256 },
        ..Limits::default()
    };
    let server = start(Wish { limits, ..Wish::default() }).await;
    let large = call(server.unix(), CHECK, vec![0; 2 << 10], None).await.unwrap_err();
    assert!(large.code() == Code::InvalidArgument && large.message().contains("at most 1024"), "{large}");
    let mut wire = Wire::unix(&server).await;
    let watch = |stream| {
        [
            frame(HEADERS, END_HEADERS, stream, &request(WATCH)),
            // Not to its end: it is counted while it is read.
            frame(DATA, 0, stream, &[0, 0, 0, 4, 0]),
        ]
        .concat()
    };
    for stream in [1, 3, 5, 7, 9] {
        assert!(wire.send(&watch(stream)).await);
    }
    // One of the five is refused while the four others are there: which is not said, since each is a task.
    let refused = wire.until(|kind, _| kind == HEADERS);
    tokio::time::timeout(SOON, refused).await.expect("a fifth is taken");
    is_served(&server).await;
    // They are given back with the connection.
    drop(wire);
    let before = std::time::Instant::now();
    while call(server.unix(), CHECK, Vec::new(), None).await.is_err() {
        assert!(before.elapsed() < SOON, "shares are not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stranger_does_not_stay() {
    let limits = Limits { stranger_age: Duration::from_millis(100), ..Limits::default() };
    let server = start(Wish { limits, ..Wish::default() }).await;
    let mut stays = stranger(&server).await.unwrap();
    stays.ended().await;
    let known = server.tcp(Some(&server.ca.client(CI)));
    call(known.clone(), GET, get(), None).await.unwrap();
}

fn header(project: &str) -> wire::UploadHeader {
    let content = wire::ContentRef {
        kind: wire::ContentKind::File.into(),
        sha256: "ab".repeat(32),
        ..Default::default()
    };
    wire::UploadHeader { project: project.into(), content: Some(content), size_bytes: 3 << 20, offset: 0 }
}

fn message(part: Part) -> Vec<u8> {
    wire::UploadRequest { part: Some(part) }.encode_to_vec()
}

/// Whether these bytes of an upload that goes on are answered.
async fn is_answered(server: &Running, bytes: &[u8]) -> bool {
    let mut wire = Wire::unix(server).await;
    wire.send(&frame(HEADERS, END_HEADERS, 1, &request(UPLOAD))).await;
    wire.send(&frame(DATA, 0, 1, bytes)).await;
    let answered = wire.until(|kind, stream| kind == HEADERS && stream == 1);
    tokio::time::timeout(SOON, answered).await.unwrap_or(false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_is_judged_by_its_first_message_and_each_of_them_is_bounded_and_strict() {
    let server = start(Wish::default()).await;
    let head = |project: &str| message(Part::Header(header(project)));
    // By its prefix alone, since no more of it is ever sent: a first message of a mebibyte, a part of two, one that is
    // compressed.
    for (rest, first) in [([0, 0, 0x10, 0, 0], false), ([0, 0, 0x20, 0, 0], true), ([1, 0, 0, 0, 0], true)] {
        let before = if first { prefixed(&head("mine")) } else { Vec::new() };
        assert!(is_answered(&server, &[before, rest.to_vec()].concat()).await, "{rest:?}");
    }
    // One that may come is waited for.
    let mut wire = Wire::unix(&server).await;
    wire.send(&frame(HEADERS, END_HEADERS, 1, &request(UPLOAD))).await;
    wire.send(&frame(DATA, 0, 1, &[0, 0, 0, 0x40, 0])).await;
    let answered = wire.until(|kind, stream| kind == HEADERS && stream == 1);
    assert!(tokio::time::timeout(Duration::from_millis(300), answered).await.is_err());

    let unknown = vec![0x38, 1];
    let inner = {
        let mut inner = header("mine").encode_to_vec();
        inner.extend([0x78, 1]);
        let mut out = vec![0x0a];
        prost::encoding::encode_varint(inner.len() as u64, &mut out);
        [out, inner].concat()
    };
    let data = || message(Part::Data(vec![1]));
    let cases = [
        (vec![[head("mine"), unknown.clone()].concat()], Code::InvalidArgument, "field 7"),
        (vec![inner], Code::InvalidArgument, "field 15"),
        (vec![head("mine"), [data(), unknown].concat()], Code::InvalidArgument, "field 7"),
        (vec![[head("mine"), data()].concat()], Code::InvalidArgument, "only one kind"),
        (vec![head("theirs")], Code::PermissionDenied, "does not allow"),
        (vec![data()], Code::InvalidArgument, "header"),
    ];
    for (messages, code, text) in cases {
        // The stream goes on: nothing after these messages was waited for.
        let answered = tokio::time::timeout(SOON, stream(server.unix(), UPLOAD, messages)).await;
        let status = answered.expect(text).unwrap_err();
        assert!(status.code() == code && status.message().contains(text), "{text}: {status}");
    }
    is_served(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_uploads_are_of_the_callers_share() {
    let limits = Limits { bytes: Bound { all: 1 << 20, each: 512 << 10 }, ..Limits::default() };
    let server = start(Wish { limits, ..Wish::default() }).await;
    let messages = vec![message(Part::Header(header("mine"))), message(Part::Data(vec![1; 600 << 10]))];
    let status = stream(server.unix(), UPLOAD, messages).await.unwrap_err();
    assert!(status.code() == Code::ResourceExhausted && status.message().contains("in flight"), "{status}");
    is_served(&server).await;
}
