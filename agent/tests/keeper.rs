//! What the keeper of jobs promises where no launcher is needed: jobs that end before one takes them, and restarts.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

#[path = "keeper/drains.rs"]
mod drains;
#[path = "keeper/ends.rs"]
mod ends;
#[path = "keeper/fetching.rs"]
mod fetching;
#[path = "keeper/intake.rs"]
mod intake;
#[path = "common/jobs.rs"]
mod jobs;

use ampoule_agent::fair::Seats;
use ampoule_agent::job::ledger::{self, Ledger, Retention};
use ampoule_agent::job::queue::{Amount, Quota, Rules};
use ampoule_agent::job::state::Change;
use ampoule_agent::job::{
    Caller, End, Intakes, Job, Jobs, Keep, Keeper, Needs, Options, Promised, Shown, ShownToAll, Sources,
    State, Submission, Unwitnessed, WatchedEvent, Witness,
};
use ampoule_agent::local::SigningKey;
use ampoule_agent::sources::{Policy, SourcesFile};
use ampoule_agent::visits::{Source, Visit};
use ampoule_evidence::{Authority, Kind, PublicKey, TrustedKey, Verified, VerifyRequest, verify};
use ampoule_ipc::Channel;
use ampoule_spec::wire::{Content, Imported, Reply, Request};
use ampoule_spec::{Code, Failure, InputSource, JobId, JobSpec, Name, Outcome, Sha256, UnixNanos};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use jobs::{job_id, open_submission, resolved, submission};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const WHOLE: Amount = Amount { cpu_millis: 4000, memory_bytes: 8 << 30, disk_bytes: 64 << 30 };

fn options(dir: &Path) -> Options {
    Options {
        state: dir.join("agent"),
        socket: dir.join("nobody.sock"),
        jobs: dir.join("jobs"),
        key: SigningKey::Development,
        authority: Authority::parse("https://ampoule.example").unwrap(),
        sources: Sources { all: Policy::built_in(), projects: BTreeMap::new(), files: BTreeMap::new() },
        shown: Arc::new(ShownToAll),
        witness: Arc::new(Unwitnessed),
        rules: Rules {
            capacity: WHOLE,
            running: 4,
            queued: 8,
            patience: 8,
            quota: Quota { running: 4, queued: 8, weight: 1 },
            projects: BTreeMap::new(),
        },
        needs: Needs {
            other: Amount { cpu_millis: 1000, memory_bytes: 1 << 30, disk_bytes: 1 << 30 },
            profiles: BTreeMap::new(),
        },
        ledger: ledger::Options { reserve_bytes: 64 << 10, ..ledger::Options::default() },
        keep: Keep::default(),
        intakes: Intakes { places: 2, ..Intakes::default() },
        lookups: Seats::all_but_one(2),
        readers: 2,
        drifted: None,
        secrets: None,
    }
}

fn open(dir: &Path) -> Keeper {
    Keeper::open(options(dir)).unwrap()
}

fn caller() -> Caller {
    submission(0).caller
}

/// The job once it is finished, and everything that its watcher was told of it.
async fn finished(keeper: &Keeper, id: &JobId) -> (Job, Vec<State>) {
    let mut told = std::pin::pin!(keeper.watch(id, 0, true, true).unwrap());
    let (mut last, mut states) = (None, Vec::new());
    let all = async {
        while let Some(item) = told.next().await {
            if let WatchedEvent::Job(job) = item.unwrap().event {
                states.push(job.state);
                last = Some(*job);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), all).await.expect("the job does not end");
    let last = last.unwrap();
    assert_eq!(last.state, State::Finished);
    assert_eq!(keeper.get(id), Some(last.clone()));
    (last, states)
}

/// Verifies the one signed record of a job, as a stranger does.
fn attested(keeper: &Keeper, job: &Job) -> (Verified, serde_json::Value) {
    let evidence = keeper.evidence(&job.id).unwrap();
    let names: Vec<_> = evidence.files.iter().map(|file| file.names.join(" ")).collect();
    assert_eq!(names, ["report.json", "result.json", "run.intoto.jsonl", "spec.json"]);
    let file = |name: &str| &evidence.files.iter().find(|file| file.names == [name]).unwrap().bytes;
    let sha256 = |bytes: &[u8]| ampoule_agent::job::state::sha256(bytes).unwrap();
    let envelope = file("run.intoto.jsonl");
    assert_eq!(job.end.as_ref().unwrap().attestation, sha256(envelope));
    let key = PublicKey::from_pem(&evidence.public_key).unwrap();
    let verified = verify(&VerifyRequest {
        attestation: envelope,
        trusted: &[TrustedKey::any(key)],
        artifact: sha256(file("report.json")),
        tree: false,
        kind: Kind::Run,
        builder: None,
        source: None,
        params: &BTreeMap::new(),
        allow_dev: true,
    })
    .unwrap();
    (verified, serde_json::from_slice(file("result.json")).unwrap())
}

/// Waits for something that comes by itself.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: never");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lets a call begin, and gives it up as soon as something holds that it has done: as at a caller's deadline.
async fn give_up<T>(call: impl Future<Output = T>, holds: impl FnMut() -> bool) {
    let mut call = Box::pin(call);
    assert!(futures_util::poll!(call.as_mut()).is_pending(), "it is over before it can be given up");
    until("the call is durable", holds).await;
    drop(call);
}

/// A launcher that greets whoever comes and has no job; it is too busy to take one, and counts how often it is asked to. Of
/// anything else it knows nothing.
fn greet(socket: &Path) -> Arc<AtomicUsize> {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    greet_with(socket, move |request, _| {
        matches!(request, Request::Run { .. }).then(|| {
            count.fetch_add(1, Ordering::SeqCst);
            Reply::Refused { code: Code::AdmissionBusy, message: "busy".into() }
        })
    });
    asked
}

/// A launcher that greets whoever comes and has no job; what else it is asked `answer` knows.
fn greet_with(
    socket: &Path,
    answer: impl Fn(&Request, Vec<OwnedFd>) -> Option<Reply> + Clone + Send + 'static,
) {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(socket).unwrap()).unwrap();
    rustix::net::listen(&listener, 16).unwrap();
    std::thread::spawn(move || {
        while let Ok(accepted) = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
            let recovered = Vec::new();
            let hello = Reply::Hello { version: "1".into(), privileged: true, recovered, listening: true };
            let (session, answer) = (Channel::new(accepted), answer.clone());
            std::thread::spawn(move || {
                let mut answered = session.send(&hello, &[]);
                while let (Ok(()), Ok((request, descriptors))) = (&answered, session.receive()) {
                    let reply = match &request {
                        Request::Jobs { .. } => Some(Reply::Jobs { jobs: Vec::new(), more: false }),
                        other => answer(other, descriptors),
                    };
                    let Some(reply) = reply else { break };
                    answered = session.send(&reply, &[]);
                }
            });
        }
    });
}
