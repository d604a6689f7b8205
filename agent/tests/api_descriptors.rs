//! A server without descriptors left. Alone in its process, whose limit it lowers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, dead_code)]

#[path = "api/fake.rs"]
mod fake;
#[path = "api/fixture.rs"]
mod fixture;
#[path = "api/raw.rs"]
mod raw;

use fixture::{Wish, prepare};
use raw::call;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

const CHECK: &str = "grpc.health.v1.Health/Check";
const LIMIT: u64 = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accept_outlives_the_end_of_descriptors() {
    let (mut server, listeners) = prepare(Wish::default()).await;
    // They wait in the backlog: nobody accepts yet. What is left to the server is a handful.
    let mut waiting = Vec::new();
    loop {
        let stream = UnixStream::connect(&server.socket).await.unwrap();
        let last = stream.as_raw_fd();
        waiting.push(stream);
        if last >= 58 {
            break;
        }
    }
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(LIMIT), maximum: limit.maximum }).unwrap();
    server.serve(listeners);
    // Those for whom there is no descriptor are told so by a close, soon: they do not wait for others to go.
    let before = Instant::now();
    let mut closed = 0;
    while closed < waiting.len() / 2 {
        assert!(before.elapsed() < Duration::from_secs(8), "{closed} of {} are closed", waiting.len());
        let mut still = Vec::new();
        for mut stream in waiting {
            let mut byte = [0];
            match tokio::time::timeout(Duration::from_millis(20), stream.read(&mut byte)).await {
                Ok(Ok(0) | Err(_)) => closed += 1,
                // What it has said is its SETTINGS: it was accepted.
                Ok(Ok(_)) => still.push((stream, true)),
                Err(_) => still.push((stream, false)),
            }
        }
        println!(
            "{closed} closed, {} accepted, {} waiting",
            still.iter().filter(|s| s.1).count(),
            still.iter().filter(|s| !s.1).count()
        );
        waiting = still.into_iter().map(|(stream, _)| stream).collect();
        if waiting.is_empty() {
            break;
        }
    }
    drop(waiting);
    let before = Instant::now();
    while let Err(error) = call(server.unix(), CHECK, Vec::new(), None).await {
        assert!(before.elapsed() < Duration::from_secs(10), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    setrlimit(Resource::Nofile, limit).unwrap();
}
