//! Clients that mean harm, each of them bounded, with an honest one beside.
//!
//! Frames are written by hand (RFC 9113 §4.1): a library would not.

use crate::fixture::{CI, IDLE, Running, Wish, start};
use crate::matrix::submit;
use crate::raw::call;
use ampoule_agent::api::{Bound, Limits};
use ampoule_proto::v1 as wire;
use prost::Message as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tonic::Code;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
pub(crate) const GET: &str = "ampoule.v1.JobService/GetJob";

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// A header field as a literal without indexing (RFC 7541 §6.2.2).
pub(crate) fn field(name: &str, value: &str) -> Vec<u8> {
    let mut out = vec![0];
    for text in [name, value] {
        // §5.1, with a prefix of seven bits.
        match u8::try_from(text.len()) {
            Ok(length) if length < 127 => out.push(length),
            _ => {
                out.push(127);
                prost::encoding::encode_varint(text.len() as u64 - 127, &mut out);
            }
        }
        out.extend_from_slice(text.as_bytes());
    }
    out
}

pub(crate) fn request(path: &str) -> Vec<u8> {
    [
        field(":method", "POST"),
        field(":scheme", "http"),
        field(":path", &format!("/{path}")),
        field(":authority", "daemon"),
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ]
    .concat()
}

/// An HTTP/2 connection over anything, after its preface.
pub(crate) struct Wire<S>(pub(crate) S);

impl Wire<UnixStream> {
    pub(crate) async fn unix(server: &Running) -> Self {
        Self::at(&server.socket).await
    }

    async fn at(socket: &Path) -> Self {
        Self::begin(UnixStream::connect(socket).await.unwrap()).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(crate) async fn begin(mut stream: S) -> Self {
        // A server that has enough closes it at once: what is sent then says so.
        let _ = stream.write_all(PREFACE).await;
        let _ = stream.write_all(&frame(SETTINGS, 0, 0, &[])).await;
        Self(stream)
    }

    /// Whether the server still takes it.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    /// The next frame: kind, flags, stream, payload; none at the end.
    pub(crate) async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & 0x7fff_ffff;
        Some((head[3], head[4], stream, payload))
    }

    /// Reads until the connection ends or a frame is what is waited for; answers SETTINGS, and nothing else.
    pub(crate) async fn until(&mut self, wanted: impl Fn(u8, u32) -> bool) -> bool {
        while let Some((kind, flags, stream, _)) = self.frame().await {
            if kind == SETTINGS && flags & ACK == 0 {
                self.send(&frame(SETTINGS, ACK, 0, &[])).await;
            }
            if wanted(kind, stream) {
                return true;
            }
        }
        false
    }

    /// How long until the server has ended the connection.
    pub(crate) async fn ended(&mut self) -> Duration {
        let before = Instant::now();
        let ended = tokio::time::timeout(Duration::from_secs(20), self.until(|_, _| false)).await;
        ended.expect("the connection is there after 20 s");
        before.elapsed()
    }
}

/// Limits of seconds instead of tens of them; which are the right ones is not what is shown here.
pub(crate) fn short() -> Limits {
    Limits {
        handshake: Duration::from_secs(1),
        first_call: Duration::from_secs(1),
        message: Duration::from_secs(1),
        stall: Duration::from_secs(1),
        keep_alive: Duration::from_secs(1),
        keep_alive_answer: Duration::from_secs(1),
        ..Limits::default()
    }
}

async fn short_server() -> Running {
    start(Wish { limits: short(), ..Wish::default() }).await
}

pub(crate) fn get() -> Vec<u8> {
    wire::GetJobRequest { job_id: crate::fake::MINE.into() }.encode_to_vec()
}

pub(crate) async fn is_served(server: &Running) {
    call(server.unix(), GET, get(), None).await.unwrap();
}

/// A gRPC message with its prefix.
pub(crate) fn prefixed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_clients_are_ended_at_every_layer() {
    let server = short_server().await;
    let near = |took: Duration| assert!(took < Duration::from_secs(8), "{took:?}");

    // In TLS: nothing, and half a handshake a byte at a time.
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let before = Instant::now();
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(20), silent.read(&mut byte)).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
    near(before.elapsed());
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    let before = Instant::now();
    for byte in [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3].into_iter().chain(std::iter::repeat_n(0, 60)) {
        if slow.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    near(before.elapsed());

    // In HTTP/2 before any call: nothing, half a preface, half a header block, a header block without its end.
    let mut nothing = Wire(UnixStream::connect(&server.socket).await.unwrap());
    near(nothing.ended().await);
    let mut half = Wire(UnixStream::connect(&server.socket).await.unwrap());
    half.send(&PREFACE[..10]).await;
    near(half.ended().await);
    for block in
        [frame(HEADERS, 0, 1, &request(GET)), frame(HEADERS, END_HEADERS, 1, &request(GET))[..20].to_vec()]
    {
        let mut wire = Wire::unix(&server).await;
        wire.send(&block).await;
        near(wire.ended().await);
    }
    // After a call: who does not answer a PING is gone, and nothing can answer in the middle of a header block.
    let mut wire = Wire::unix(&server).await;
    let whole =
        [frame(HEADERS, END_HEADERS, 1, &request(GET)), frame(DATA, END_STREAM, 1, &prefixed(&get()))]
            .concat();
    wire.send(&whole).await;
    assert!(wire.until(|kind, stream| kind == HEADERS && stream == 1).await);
    wire.send(&frame(HEADERS, 0, 3, &request(GET))).await;
    near(wire.ended().await);

    // In the body: the stream is answered, the connection goes on.
    let mut wire = Wire::unix(&server).await;
    wire.send(&frame(HEADERS, END_HEADERS, 1, &request(GET))).await;
    wire.send(&frame(DATA, 0, 1, &prefixed(&get())[..7])).await;
    let before = Instant::now();
    assert!(wire.until(|kind, stream| kind == HEADERS && stream == 1).await, "no answer");
    near(before.elapsed());
    is_served(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_one_connection_end_it_or_are_refused() {
    let server = start(Wish::default()).await;

    // A thousand streams at once: a hundred are taken, the others are refused by a reset.
    let mut wire = Wire::unix(&server).await;
    let watch =
        wire::WatchJobRequest { job_id: crate::fake::MINE.into(), follow: true, ..Default::default() };
    let watch = prefixed(&watch.encode_to_vec());
    let mut sent = Vec::new();
    for at in 0..1000 {
        let stream = 2 * at + 1;
        sent.extend(frame(HEADERS, END_HEADERS, stream, &request("ampoule.v1.JobService/WatchJob")));
        sent.extend(frame(DATA, END_STREAM, stream, &watch));
    }
    wire.send(&sent).await;
    let (mut taken, mut refused) = (0, 0);
    let counted = tokio::time::timeout(Duration::from_secs(5), async {
        while let Some((kind, _, _, _)) = wire.frame().await {
            taken += usize::from(kind == HEADERS);
            refused += usize::from(kind == RST_STREAM);
        }
    });
    let _ = counted.await;
    println!("1000 streams: {taken} taken, {refused} refused");
    assert!(taken <= 100, "{taken}");
    drop(wire);

    // Rapid reset (CVE-2023-44487), CONTINUATION without end, headers that are too large, pings without end.
    let reset = |at: u32| {
        let stream = 2 * at + 1;
        [frame(HEADERS, END_HEADERS, stream, &request(GET)), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])]
            .concat()
    };
    let mut resets = Wire::unix(&server).await;
    let mut alive = true;
    for at in 0..20_000 {
        alive = resets.send(&reset(at)).await;
        if !alive {
            break;
        }
    }
    assert!(!alive || resets.until(|kind, _| kind == GOAWAY).await, "20,000 resets are taken");

    let mut endless = Wire::unix(&server).await;
    endless.send(&frame(HEADERS, 0, 1, &request(GET))).await;
    let part = frame(CONTINUATION, 0, 1, &field("a", &"b".repeat(120)).repeat(100));
    let mut bytes = 0;
    while bytes < 64 << 20 && endless.send(&part).await {
        bytes += part.len();
    }
    println!("CONTINUATION: ended after {bytes} bytes");
    assert!(bytes < 8 << 20);

    let mut large = Wire::unix(&server).await;
    let block = [request(GET), field("a", &"b".repeat(120)).repeat(130)].concat();
    large.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block[..16_000])).await;
    assert!(large.until(|kind, _| kind != SETTINGS && kind != 8).await);
    is_served(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_too_large_odd_or_in_crumbs_are_judged_like_others() {
    let server = start(Wish::default()).await;
    let channel = server.unix();
    let refused =
        async |path: &str, message: Vec<u8>| call(channel.clone(), path, message, None).await.unwrap_err();
    let submit_path = "ampoule.v1.JobService/SubmitJob";
    let large = refused(submit_path, vec![0; (4 << 20) + 1]).await;
    assert_eq!(large.code(), Code::InvalidArgument, "{large}");
    let deep = (0..50_000).fold(Vec::new(), |inner: Vec<u8>, _| {
        if inner.len() > 1 << 20 {
            return inner;
        }
        let mut out = vec![0x1a];
        prost::encoding::encode_varint(inner.len() as u64, &mut out);
        out.extend(inner);
        out
    });
    assert_eq!(refused(submit_path, deep).await.code(), Code::InvalidArgument);
    assert_eq!(refused(submit_path, b"\xff".repeat(1000)).await.code(), Code::InvalidArgument);

    // Only its prefix, saying four gigabytes: refused before anything is kept.
    let mut wire = Wire::unix(&server).await;
    wire.send(&frame(HEADERS, END_HEADERS, 1, &request(submit_path))).await;
    wire.send(&frame(DATA, 0, 1, &[0, 0xff, 0xff, 0xff, 0xff])).await;
    assert!(wire.until(|kind, stream| kind == HEADERS && stream == 1).await);

    // A byte a frame, and empty frames between.
    let mut wire = Wire::unix(&server).await;
    let body = prefixed(&submit("mine", "crumbs").encode_to_vec());
    let mut sent = frame(HEADERS, END_HEADERS, 1, &request(submit_path));
    for byte in &body {
        sent.extend(frame(DATA, 0, 1, &[]));
        sent.extend(frame(DATA, 0, 1, &[*byte]));
    }
    sent.extend(frame(DATA, END_STREAM, 1, &[]));
    wire.send(&sent).await;
    let answered = wire.until(|kind, stream| kind == HEADERS && stream == 1).await;
    let taken = server.fake.submitted.lock().unwrap().len();
    println!("crumbs: answered {answered}, submitted {taken}");
    assert!(taken <= 1);

    // Requests without what every request has.
    for block in [
        field(":method", "POST"),
        [field(":method", "POST"), field(":path", &format!("/{GET}"))].concat(),
        [field(":method", "GET"), field(":scheme", "http"), field(":path", &format!("/{GET}"))].concat(),
        [field(":method", "POST"), field(":scheme", "http"), field(":path", "")].concat(),
        [field(":method", "POST"), field(":scheme", "http"), field(":path", "*")].concat(),
        [request(GET), field(":path", "/x")].concat(),
        [field(":method", "CONNECT"), field(":authority", "x")].concat(),
    ] {
        let mut wire = Wire::unix(&server).await;
        wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await;
        let answered = wire.until(|kind, _| matches!(kind, HEADERS | RST_STREAM | GOAWAY));
        tokio::time::timeout(Duration::from_secs(5), answered).await.expect("an answer, or an end");
    }
    is_served(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reader_that_never_reads_loses_its_stream_and_costs_little() {
    let server = short_server().await;
    let before = resident();
    let watch = wire::WatchJobRequest { job_id: crate::fake::MINE.into(), logs: true, ..Default::default() };
    let watch = prefixed(&watch.encode_to_vec());
    let mut wires = Vec::new();
    for _ in 0..20 {
        let mut wire = Wire::unix(&server).await;
        for stream in [1, 3, 5, 7, 9] {
            wire.send(&frame(HEADERS, END_HEADERS, stream, &request("ampoule.v1.JobService/WatchJob"))).await;
            wire.send(&frame(DATA, END_STREAM, stream, &watch)).await;
        }
        wires.push(wire);
    }
    tokio::time::sleep(Duration::from_millis(800)).await;
    let grown = resident().saturating_sub(before);
    println!("100 streams that nobody reads: {} KiB", grown >> 10);
    assert!(grown < 64 << 20, "{grown}");
    // The streams are reset while the connection lives: its peer answers pings, and reads what it is told now.
    let mut wire = wires.pop().unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let reset = tokio::time::timeout(Duration::from_secs(10), async {
        while let Some((kind, flags, _, payload)) = wire.frame().await {
            match kind {
                RST_STREAM => return true,
                PING if flags & ACK == 0 => drop(wire.send(&frame(PING, ACK, 0, &payload)).await),
                _ => {}
            }
        }
        false
    });
    assert!(reset.await.unwrap(), "the connection ended instead");
    is_served(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_has_more_connections_than_a_share() {
    let long = Duration::from_secs(60);
    let limits = Limits {
        handshakes: Bound { all: 64, each: 8 },
        connections: Bound { all: 64, each: 4 },
        handshake: long,
        first_call: long,
        ..Limits::default()
    };
    let server = start(Wish { limits, ..Wish::default() }).await;
    let config = server.config(Some(&server.ca.client(IDLE)));
    let mut open = Vec::new();
    for _ in 0..4 {
        let wire = Wire::begin(server.tls_stream(config.clone()).await.unwrap()).await;
        open.push(wire);
    }
    let mut fifth = Wire(server.tls_stream(config.clone()).await.unwrap());
    fifth.ended().await;
    // Another caller from the same address still comes in, up to the address's share of handshakes.
    call(server.tcp(Some(&server.ca.client(CI))), GET, get(), None).await.unwrap();
    // Of handshakes the oldest make room.
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(TcpStream::connect(server.address).await.unwrap());
    }
    for oldest in &mut held[..8] {
        let read = tokio::time::timeout(Duration::from_secs(10), oldest.read(&mut [0])).await;
        assert!(matches!(read.expect("more than eight handshakes of the address"), Ok(0) | Err(_)));
    }
    call(server.tcp(Some(&server.ca.client(CI))), GET, get(), None).await.unwrap();
    drop(open);
    let before = Instant::now();
    loop {
        let mut wire = Wire::begin(server.tls_stream(config.clone()).await.unwrap()).await;
        wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &request(GET))).await;
        if wire.until(|kind, _| kind == HEADERS).await {
            break;
        }
        assert!(before.elapsed() < Duration::from_secs(10), "shares are not given back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Bytes of memory of this process that are resident: `VmRSS` of proc_pid_status(5).
pub(crate) fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// What each of so many calls took.
async fn took(channel: &tonic::transport::Channel, calls: usize) -> Vec<Duration> {
    let mut took = Vec::new();
    for _ in 0..calls {
        let before = Instant::now();
        call(channel.clone(), GET, get(), None).await.unwrap();
        took.push(before.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    took
}

/// The 99th of a hundred, in their order.
fn p99(took: &mut [Duration]) -> Duration {
    took.sort();
    took[took.len() * 99 / 100]
}

/// One of each kind of harm, again and again, twenty times a second.
async fn harm(socket: &Path, address: SocketAddr) {
    let watch = wire::WatchJobRequest { job_id: crate::fake::MINE.into(), logs: true, ..Default::default() };
    let watch = prefixed(&watch.encode_to_vec());
    let mut kept = std::collections::VecDeque::new();
    loop {
        let mut resets = Wire::at(socket).await;
        for at in 0..100 {
            let stream = 2 * at + 1;
            resets.send(&frame(HEADERS, END_HEADERS, stream, &request(GET))).await;
            resets.send(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])).await;
        }
        let mut never = Wire::at(socket).await;
        never.send(&frame(HEADERS, END_HEADERS, 1, &request("ampoule.v1.JobService/WatchJob"))).await;
        never.send(&frame(DATA, END_STREAM, 1, &watch)).await;
        let mut half = Wire::at(socket).await;
        half.send(&frame(HEADERS, 0, 1, &request(GET))).await;
        let mut large = Wire::at(socket).await;
        large.send(&frame(HEADERS, END_HEADERS, 1, &request(GET))).await;
        large.send(&frame(DATA, 0, 1, &[0, 0xff, 0xff, 0xff, 0xff])).await;
        let silent = TcpStream::connect(address).await;
        kept.push_back((resets, never, half, large, silent));
        if kept.len() > 10 {
            kept.pop_front();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Harm from a thread and a runtime of its own: it takes no turn of the server's or the honest client's.
fn harm_until(server: &Running, stop: &tokio_util::sync::CancellationToken) -> std::thread::JoinHandle<()> {
    let (socket, address, stop) = (server.socket.clone(), server.address, stop.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                () = harm(&socket, address) => {}
                () = stop.cancelled() => {}
            }
        });
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_client_is_served_beside_hostile_ones() {
    let server = start(Wish::default()).await;
    let channel = server.tcp(Some(&server.ca.client(CI)));
    let mut ratios = Vec::new();
    // The machine that tests is shared: what others do meanwhile may be in a round, and not in all of them.
    for _ in 0..5 {
        let (mut quiet, mut beside) = (Vec::new(), Vec::new());
        // By turns, so that what others do is in both.
        for _ in 0..8 {
            quiet.extend(took(&channel, 100).await);
            let stop = tokio_util::sync::CancellationToken::new();
            let hostile = harm_until(&server, &stop);
            beside.extend(took(&channel, 100).await);
            stop.cancel();
            tokio::task::spawn_blocking(|| hostile.join().unwrap()).await.unwrap();
        }
        let (quiet, beside) = (p99(&mut quiet), p99(&mut beside));
        let ratio = beside.as_secs_f64() / quiet.as_secs_f64();
        println!("p99 quiet {quiet:?}, beside hostile clients {beside:?}: {ratio:.1} times");
        if beside <= quiet * 2 {
            return;
        }
        ratios.push(ratio);
    }
    panic!("the honest client waits for hostile ones: {ratios:.1?} times as long");
}
