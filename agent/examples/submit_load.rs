//! A client of `ampouled` that times it, for `cargo xtask bench submit`: `submit_load SOCKET`. Each line on standard input is
//! something to do, each line on standard output what it took, as JSON.
//!
//! `one` · `rate SECONDS FLIGHT` · `log BYTES` · `watchers NUMBER`

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use ampoule_agent::client::{Client, Credentials, Follow, Server, Told};
use ampoule_proto::v1 as proto;
use serde_json::{Value, json};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How many calls one connection carries.
const CALLS: usize = 90;

fn main() {
    let socket = std::env::args().nth(1).expect("submit_load SOCKET");
    let load = Load { server: Server::Unix(PathBuf::from(socket)), run: uuid::Uuid::now_v7().to_string() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = load.client();
        for (number, line) in std::io::stdin().lock().lines().enumerate() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            let said = match words.as_slice() {
                ["one"] => {
                    json!({ "nanos": load.one(&client, &format!("one-{number}")).await.as_nanos() as u64 })
                }
                ["rate", seconds, flight] => {
                    load.rate(seconds.parse().unwrap(), flight.parse().unwrap(), number).await
                }
                ["log", bytes] => load.log(&client, bytes.parse().unwrap(), number).await,
                ["watchers", many] => load.watchers(&client, many.parse().unwrap(), number).await,
                other => panic!("{other:?}"),
            };
            println!("{said}");
            std::io::stdout().flush().unwrap();
        }
    });
}

struct Load {
    server: Server,
    run: String,
}

/// A job of one step over the host's own programs.
fn job(run: &[&str], log_bytes: Option<u64>) -> proto::JobRequest {
    proto::JobRequest {
        ampoule: 1,
        attempt: 1,
        name: "load".to_owned(),
        profile: "hermetic".to_owned(),
        image: Some(proto::Image { kind: Some(proto::image::Kind::Host(proto::HostImage {})) }),
        steps: vec![proto::Step {
            name: "s".to_owned(),
            run: run.iter().map(|word| (*word).to_owned()).collect(),
            cwd: "/".to_owned(),
            timeout_ms: 600_000,
            ..proto::Step::default()
        }],
        limits: Some(proto::LimitsRequest { log_bytes, ..proto::LimitsRequest::default() }),
        ..proto::JobRequest::default()
    }
}

/// What a reader of a job has had of its log.
#[derive(Default)]
struct Had {
    bytes: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Had {
    fn speed(&self) -> Value {
        let seconds = self.last.zip(self.first).map(|(last, first)| (last - first).as_secs_f64());
        json!({ "bytes": self.bytes, "seconds": seconds })
    }
}

async fn follow(client: Client, id: String) -> (proto::Job, Had) {
    let mut had = Had::default();
    let job = Follow::new(client, &id, true, true)
        .run(&mut |told| {
            if let Told::Log(chunk) = told {
                had.first.get_or_insert_with(Instant::now);
                had.last = Some(Instant::now());
                had.bytes += chunk.bytes.len() as u64;
            }
        })
        .await
        .unwrap();
    assert_eq!(job.outcome(), proto::JobOutcome::Succeeded, "{job:?}");
    assert_eq!(job.attestation_sha256.len(), 64, "{job:?}");
    (job, had)
}

impl Load {
    fn client(&self) -> Client {
        Client::new(&self.server, &Credentials::default()).unwrap()
    }

    async fn submit(&self, client: &Client, key: &str, job: proto::JobRequest) -> String {
        let request = proto::SubmitJobRequest {
            idempotency_key: format!("{}-{key}", self.run),
            project: "load".to_owned(),
            job: Some(job),
            ..proto::SubmitJobRequest::default()
        };
        client.submit(&request).await.unwrap().0.id
    }

    /// From the call that submits to the message that says that the signed record is durable.
    async fn one(&self, client: &Client, key: &str) -> Duration {
        let begun = Instant::now();
        let id = self.submit(client, key, job(&["/bin/true"], None)).await;
        follow(client.clone(), id).await;
        begun.elapsed()
    }

    /// So many at once, each after another, for a time.
    async fn rate(&self, seconds: u64, flight: usize, number: usize) -> Value {
        let (begun, time) = (Instant::now(), Duration::from_secs(seconds));
        let lanes = (0..flight).map(|lane| async move {
            let (client, mut count) = (self.client(), 0_u64);
            while begun.elapsed() < time {
                self.one(&client, &format!("rate-{number}-{lane}-{count}")).await;
                count += 1;
            }
            count
        });
        let jobs: u64 = futures_util::future::join_all(lanes).await.into_iter().sum();
        json!({ "jobs": jobs, "seconds": begun.elapsed().as_secs_f64() })
    }

    /// A log as it is written, and the same again from the beginning.
    async fn log(&self, client: &Client, bytes: u64, number: usize) -> Value {
        let script =
            format!("yes 0123456789012345678901234567890123456789012345678901234567890 | head -c {bytes}");
        let job = job(&["/bin/sh", "-c", &script], Some(bytes));
        let id = self.submit(client, &format!("log-{number}"), job).await;
        let (job, live) = follow(client.clone(), id).await;
        let (_, again) = follow(client.clone(), job.id).await;
        json!({ "live": live.speed(), "again": again.speed() })
    }

    /// Many readers of one job that writes a line every 10 ms: how many had all of it, and when the last one heard of its end.
    async fn watchers(&self, client: &Client, many: usize, number: usize) -> Value {
        let script = "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); sleep 0.01; done";
        let id =
            self.submit(client, &format!("watchers-{number}"), job(&["/bin/sh", "-c", script], None)).await;
        let mut readers = JoinSet::new();
        let mut channel = self.client();
        for reader in 0..many {
            if reader % CALLS == 0 {
                channel = self.client();
            }
            let (client, id) = (channel.clone(), id.clone());
            readers.spawn(async move {
                let mut bytes = 0;
                let told = &mut |told| {
                    if let Told::Log(chunk) = told {
                        bytes += chunk.bytes.len();
                    }
                };
                let done = Follow::new(client, &id, true, true).run(told).await;
                done.map(|_| (bytes, Instant::now())).map_err(|error| error.to_string())
            });
        }
        let (_, first) = follow(client.clone(), id).await;
        let ended = Instant::now();
        let all: Vec<_> = readers.join_all().await;
        let whole = all.iter().flatten().filter(|(bytes, _)| *bytes as u64 == first.bytes).count();
        let refused = all.iter().find_map(|one| one.as_ref().err());
        let late = all.iter().flatten().map(|(_, at)| at.saturating_duration_since(ended)).max();
        json!({ "whole": whole, "of": many, "late_seconds": late.map(|late| late.as_secs_f64()), "refused": refused })
    }
}
