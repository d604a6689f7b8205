//! The jobs of the daemon without its API, for tests that kill it: requests are lines of JSON on standard input, answers
//! and whatever watchers are told are lines of JSON on standard output, each with the number of its request.
//!
//! `keeper --state DIR --socket PATH --jobs DIR [--running N] [--keep-bytes N]`

#![allow(clippy::indexing_slicing, reason = "only JSON values are indexed: what they lack is null")]

use ampoule_agent::fair::Seats;
use ampoule_agent::job::ledger;
use ampoule_agent::job::queue::{Amount, Quota, Rules};
use ampoule_agent::job::state::sha256;
use ampoule_agent::job::{
    Caller, IdempotencyKey, Intakes, Jobs, JobsError, Keep, Keeper, Means, Needs, OpenedOutput, Options,
    Proofs, ShownToAll, Sources, Submission, Unwitnessed, WatchedEvent,
};
use ampoule_agent::local::SigningKey;
use ampoule_agent::sources::Policy;
use ampoule_evidence::Authority;
use ampoule_spec::{JobId, JobSpec, Name};
use ampoule_store::pack::pack_output;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

type Failed = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failed> {
    let mut args = std::env::args().skip(1);
    let mut given = BTreeMap::new();
    while let (Some(flag), Some(value)) = (args.next(), args.next()) {
        given.insert(flag, value);
    }
    let path = |flag: &str| given.get(flag).map(PathBuf::from).ok_or_else(|| format!("{flag} is missing"));
    let number = |flag: &str, other: u64| given.get(flag).map_or(Ok(other), |text| text.parse());
    let running = u32::try_from(number("--running", 4)?)?;
    let options = Options {
        state: path("--state")?,
        socket: path("--socket")?,
        jobs: path("--jobs")?,
        key: SigningKey::Development,
        authority: Authority::parse("https://ampoule.example")?,
        sources: Sources { all: Policy::built_in(), projects: BTreeMap::new(), files: BTreeMap::new() },
        shown: Arc::new(ShownToAll),
        witness: Arc::new(Unwitnessed),
        rules: Rules {
            capacity: Amount { cpu_millis: 1 << 30, memory_bytes: 1 << 50, disk_bytes: 1 << 50 },
            running,
            queued: 100_000,
            patience: 8,
            quota: Quota { running, queued: 100_000, weight: 1 },
            projects: BTreeMap::new(),
        },
        needs: Needs {
            other: Amount { cpu_millis: 1000, memory_bytes: 1 << 30, disk_bytes: 1 << 30 },
            profiles: BTreeMap::new(),
        },
        ledger: ledger::Options { reserve_bytes: 1 << 20, ..ledger::Options::default() },
        keep: Keep {
            bytes: number("--keep-bytes", u64::MAX)?,
            every: Duration::from_millis(500),
            ..Keep::default()
        },
        intakes: Intakes::default(),
        lookups: Seats::all_but_one(2),
        readers: 1024,
        drifted: None,
        secrets: None,
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let _within = runtime.enter();
    let keeper = Arc::new(Keeper::open(options)?);
    say(&json!({"n": 0, "ready": true}));
    for line in std::io::stdin().lock().lines() {
        let asked: Value = serde_json::from_str(&line?)?;
        let keeper = keeper.clone();
        runtime.spawn(async move {
            let answer = answer(&keeper, &asked).await;
            let answer = answer.unwrap_or_else(|error| json!({"error": error.to_string()}));
            let mut answer = answer;
            answer["n"] = asked["n"].clone();
            say(&answer);
        });
    }
    Ok(())
}

fn say(value: &Value) {
    let mut out = std::io::stdout().lock();
    // Whoever has gone needs no answer.
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

fn refused(error: JobsError) -> Failed {
    format!("{}: {}", error.code, error.message).into()
}

fn text<'v>(asked: &'v Value, name: &str) -> Result<&'v str, Failed> {
    asked[name].as_str().ok_or_else(|| format!("{name} is missing").into())
}

fn caller() -> Caller {
    Caller { means: Means::Peer, subject: "uid:7".to_owned(), claims: BTreeMap::new() }
}

async fn answer(keeper: &Keeper, asked: &Value) -> Result<Value, Failed> {
    let id = || -> Result<JobId, Failed> { Ok(JobId::parse(text(asked, "id")?)?) };
    match text(asked, "do")? {
        "submit" => submit(keeper, asked).await,
        "get" => Ok(json!({"job": keeper.get(&id()?)})),
        "health" => {
            let (health, (taking, running, waiting)) = (keeper.health(), keeper.load());
            Ok(json!({"launcher": health.launcher, "unknown": health.unknown, "stuck": health.stuck,
                "taking": taking, "running": running, "waiting": waiting}))
        }
        "cancel" => {
            let job = keeper.cancel(&id()?, &caller(), "as the test wants").await.map_err(refused)?;
            Ok(json!({"job": job}))
        }
        "evidence" => {
            let evidence = keeper.evidence(&id()?).map_err(refused)?;
            let files = evidence.files.into_iter().flat_map(|file| {
                let bytes = STANDARD.encode(file.bytes);
                file.names.into_iter().map(move |name| (name, bytes.clone().into()))
            });
            Ok(json!({"files": files.collect::<serde_json::Map<_, _>>(), "key": evidence.public_key}))
        }
        "output" => {
            let mut bytes = Vec::new();
            match keeper.open_output(&id()?, text(asked, "name")?).await.map_err(refused)? {
                OpenedOutput::File { file, length } => drop(file.take(length).read_to_end(&mut bytes)?),
                OpenedOutput::Tree { root, epoch } => {
                    pack_output(root.as_fd(), &mut bytes, epoch, &ampoule_store::Limits::default())?;
                }
            }
            Ok(json!({"bytes": STANDARD.encode(&bytes), "length": bytes.len()}))
        }
        "watch" => watch(keeper, asked, &id()?).await,
        other => Err(format!("{other} is not known").into()),
    }
}

async fn submit(keeper: &Keeper, asked: &Value) -> Result<Value, Failed> {
    let spec: JobSpec = serde_json::from_value(asked["spec"].clone())?;
    let submission = Submission {
        caller: caller(),
        key: IdempotencyKey::parse(text(asked, "key")?)?,
        project: Name::parse("tests")?,
        proofs: Proofs::new(),
        request: sha256(text(asked, "key")?.as_bytes())?,
        spec,
        priority: 0,
        labels: BTreeMap::new(),
        queue_timeout_ms: asked["queue_timeout_ms"].as_u64(),
    };
    let submitted = keeper.submit(submission).await.map_err(refused)?;
    Ok(json!({"job": submitted.job, "attached": submitted.attached}))
}

async fn watch(keeper: &Keeper, asked: &Value, id: &JobId) -> Result<Value, Failed> {
    let after = asked["after"].as_u64().unwrap_or_default();
    let mut told = std::pin::pin!(keeper.watch(id, after, true, true).map_err(refused)?);
    while let Some(item) = told.next().await {
        let item = item.map_err(refused)?;
        let mut line = match item.event {
            WatchedEvent::Job(job) => json!({"job": job}),
            WatchedEvent::Runner(event) => json!({"event": event}),
            WatchedEvent::Progress(text) => json!({"progress": text}),
            WatchedEvent::Log(chunk) => json!({"step": chunk.step, "stream": chunk.stream.as_str(),
                "offset": chunk.offset, "log": STANDARD.encode(&chunk.bytes)}),
        };
        (line["n"], line["cursor"]) = (asked["n"].clone(), item.cursor.into());
        say(&line);
    }
    Ok(json!({"end": true}))
}
