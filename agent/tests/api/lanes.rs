//! Whoever is not known takes nothing of those who are, and a stream is judged by its first message.

use crate::fixture::{CI, IDLE, Running, Wish, start};
use crate::hostile::{
    DATA, END_HEADERS, END_STREAM, GET, HEADERS, Wire, field, frame, get, is_served, prefixed, request,
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

/// Calls over a connection with a token.
async fn is_answered_with_token(
    server: &Running,
    wire: &mut Wire<tokio_rustls::client::TlsStream<TcpStream>>,
    stream: u32,
) {
    let token = format!("Bearer {}", server.issuer.token("ci", "ampouled", 0));
    let block = [request(GET), field("authorization", &token)].concat();
    wire.send(&frame(HEADERS, END_HEADERS, stream, &block)).await;
    wire.send(&frame(DATA, END_STREAM, stream, &prefixed(&get()))).await;
    let answered = wire.until(|kind, at| kind == HEADERS && at == stream);
    assert!(tokio::time::timeout(SOON, answered).await.unwrap(), "the connection has ended");
}

/// Asks for health with what is at hand, until that is answered.
async fn checks(channel: &tonic::transport::Channel) -> Result<(), tonic::Status> {
    call(channel.clone(), CHECK, Vec::new(), None).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_handshakes_make_room_for_who_comes_and_take_nothing_of_those_who_are_known() {
    let long = Duration::from_secs(60);
    let limits = Limits {
        strangers: Bound { all: 4, each: 3 },
        handshakes: Bound { all: 8, each: 8 },
        handshake: long,
        ..Limits::default()
    };
    let server = start(Wish { limits, ..Wish::default() }).await;
    let mut there = std::collections::VecDeque::new();
    for _ in 0..3 {
        there.push_back(stranger(&server).await.expect("a place"));
    }
    // Whoever shows a certificate of the list needs no place of theirs, and who shows a token leaves it with his first call.
    let known = server.tcp(Some(&server.ca.client(CI)));
    call(known.clone(), GET, get(), None).await.unwrap();
    let mut with_token = Wire::begin(server.tls_stream(server.config(None)).await.unwrap()).await;
    is_answered_with_token(&server, &mut with_token, 1).await;
    // He took the place of the oldest of the address; and who comes after him does not take his.
    there.pop_front().unwrap().ended().await;
    for _ in 0..6 {
        there.push_back(stranger(&server).await.expect("there is a place for whoever comes"));
        if there.len() > 3 {
            there.pop_front().unwrap().ended().await;
        }
    }
    // All handshakes there are, and more: the oldest end, and there are never more.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    for mut oldest in silent.drain(..12) {
        let mut byte = [0];
        let read = tokio::time::timeout(SOON, tokio::io::AsyncReadExt::read(&mut oldest, &mut byte));
        assert!(matches!(read.await.expect("it has a place still"), Ok(0) | Err(_)));
    }
    for _ in 0..4 {
        let config = server.config(Some(&server.ca.client(IDLE)));
        tokio::time::timeout(SOON, server.tls_stream(config)).await.unwrap().expect("there is a place");
    }
    // Those who came before are as they were, and so is the socket.
    is_served(&server).await;
    call(known, GET, get(), None).await.unwrap();
    is_answered_with_token(&server, &mut with_token, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_of_those_who_are_known_is_not_of_strangers_calls() {
    let limits = Limits { stranger_calls: Bound { all: 4, each: 4 }, ..Limits::default() };
    let server = start(Wish { limits, ..Wish::default() }).await;
    let known = server.tcp(Some(&server.ca.client(CI)));
    let (with_token, token) = (server.tcp(None), server.issuer.token("ci", "ampouled", 0));
    call(with_token.clone(), GET, get(), Some(&token)).await.unwrap();
    let mut wire = stranger(&server).await.unwrap();
    for stream in [3, 5, 7, 9] {
        wire.send(&frame(HEADERS, END_HEADERS, stream, &request(WATCH))).await;
        wire.send(&frame(DATA, END_STREAM, stream, &prefixed(&[]))).await;
        assert!(wire.until(|kind, at| kind == HEADERS && at == stream).await);
    }
    let another = server.tcp(None);
    let status = checks(&another).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    checks(&known).await.unwrap();
    checks(&with_token).await.unwrap();
    // Nor are strangers' of theirs: it is as many for one who is known.
    let mut known =
        Wire::begin(server.tls_stream(server.config(Some(&server.ca.client(CI)))).await.unwrap()).await;
    for stream in [1, 3, 5, 7] {
        known.send(&frame(HEADERS, END_HEADERS, stream, &request(WATCH))).await;
        known.send(&frame(DATA, END_STREAM, stream, &prefixed(&[]))).await;
        assert!(known.until(|kind, at| kind == HEADERS && at == stream).await);
    }
    drop(wire);
    let before = std::time::Instant::now();
    while let Err(status) = checks(&another).await {
        assert!(before.elapsed() < SOON, "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
