use super::*;
use crate::audit::{KINDS_MAX, verify_log};
use ampoule_evidence::tlog::{NoteKey, Tile, TileKind, decode_entries};
use serde_json::Value;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

fn open(dir: &Path) -> (Recorder, tokio::task::JoinHandle<()>) {
    Recorder::begin(AuditLog::open(dir, "audit.host.example").unwrap(), Arc::default(), Rate::default())
}

/// A disk that is full as long as somebody says so.
struct Disk(std::fs::File, Arc<AtomicBool>);

impl ampoule_journal::Medium for Disk {
    fn write_once(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.1.load(Ordering::SeqCst) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.0.write_once(bytes)
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.0.sync()
    }

    fn cut(&mut self, bytes: u64) -> std::io::Result<()> {
        self.0.cut(bytes)
    }
}

/// Every entry of a log that verifies.
fn entries(dir: &Path) -> Vec<Value> {
    let key = std::fs::read_to_string(dir.join("key.pub")).unwrap();
    let begun = Instant::now();
    while std::fs::metadata(dir.join("pending")).unwrap().len() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "it stays pending");
        std::thread::sleep(Duration::from_millis(5));
    }
    let verified = verify_log(dir, &NoteKey::parse(key.trim()).unwrap(), None).unwrap();
    let tiles = Tile::all(verified.checkpoint.size).filter(|tile| tile.kind == TileKind::Entries);
    let read = |tile: Tile| {
        let bytes = std::fs::read(dir.join(tile.path())).unwrap();
        let entries = decode_entries(&bytes, tile.width).unwrap();
        entries.into_iter().map(|entry| serde_json::from_slice(entry).unwrap()).collect::<Vec<Value>>()
    };
    tiles.flat_map(read).collect()
}

/// How many calls an entry tells of.
fn calls(entry: &Value) -> u64 {
    entry["detail"]["calls"].as_str().map_or(1, |calls| calls.parse().unwrap())
}

fn refuse(recorder: &Recorder, refusal: Refusal, call: &str) {
    recorder.record(&Refused {
        refusal,
        peer: "192.0.2.1",
        caller: None,
        call,
        action: None,
        project: None,
        job: None,
        reason: "no",
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_refused_calls_is_counted_exactly_and_keeps_no_entry_out() {
    const FLOOD: u64 = 60_000;
    let dir = tempfile::tempdir().unwrap();
    let (recorder, task) = open(dir.path());
    let floods: Vec<_> = [Refusal::Unidentified, Refusal::Denied]
        .into_iter()
        .map(|refusal| {
            let recorder = recorder.clone();
            tokio::task::spawn_blocking(move || {
                (0..FLOOD).for_each(|n| refuse(&recorder, refusal, &format!("call {n}")));
            })
        })
        .collect();
    for number in 0..30 {
        let event = AuditEvent::now(Action::JobSubmitted, format!("uid:{number}"));
        let written = tokio::time::timeout(Duration::from_secs(20), recorder.write(&event)).await;
        written.expect("an entry waits behind refused calls").unwrap();
    }
    for flood in floods {
        flood.await.unwrap();
    }
    assert_eq!(recorder.vitals.metrics.audit_failures.get(), 0);
    drop(recorder);
    task.await.unwrap();
    let entries = entries(dir.path());
    let of = |action: Action| entries.iter().filter(move |entry| entry["action"] == action.as_str());
    let actors: Vec<_> = of(Action::JobSubmitted).map(|entry| entry["actor"].as_str().unwrap()).collect();
    assert_eq!(actors, (0..30).map(|n| format!("uid:{n}")).collect::<Vec<_>>());
    for action in [Action::AuthFailed, Action::Denied] {
        assert_eq!(of(action).map(calls).sum::<u64>(), FLOOD);
    }
    // Not one by one.
    assert!(entries.len() < 30 * KINDS_MAX, "{}", entries.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_is_an_error_and_refused_calls_are_told_when_it_can() {
    let (dir, full) = (tempfile::tempdir().unwrap(), Arc::new(AtomicBool::new(false)));
    let disk = full.clone();
    let log = AuditLog::open_on(dir.path(), "audit.host.example", move |file| Disk(file, disk.clone()));
    let (recorder, task) = Recorder::begin(log.unwrap(), Arc::default(), Rate::default());
    let event = AuditEvent::now(Action::JobSubmitted, "uid:1");
    recorder.write(&event).await.unwrap();
    full.store(true, Ordering::SeqCst);
    recorder.write(&event).await.unwrap_err();
    refuse(&recorder, Refusal::Denied, "a");
    refuse(&recorder, Refusal::Denied, "a");
    while recorder.vitals.metrics.audit_failures.get() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    refuse(&recorder, Refusal::Denied, "b");
    full.store(false, Ordering::SeqCst);
    drop(recorder);
    task.await.unwrap();
    let entries = entries(dir.path());
    let told: Vec<_> =
        entries.iter().map(|e| (e["detail"]["call"].as_str().unwrap_or(""), calls(e))).collect();
    assert_eq!(told, [("", 1), ("a", 2), ("b", 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_call_is_told_soon_and_the_recorder_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (recorder, task) = open(dir.path());
    let is_late = AtomicBool::new(false);
    for number in 1..4 {
        refuse(&recorder, Refusal::Unidentified, "tls");
        let told = async {
            while recorder.vitals.metrics.audit_appends.get() < number {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        is_late
            .fetch_or(tokio::time::timeout(Duration::from_secs(10), told).await.is_err(), Ordering::SeqCst);
    }
    assert!(!is_late.into_inner());
    drop(recorder);
    task.await.unwrap();
}

/// Something of a caller's, as a call writes it.
fn of(caller: &str, action: Action, output: &str) -> AuditEvent {
    AuditEvent::now(action, caller).with("peer", "unix").with("call", "C").with("output", output)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_again_is_counted_exactly_and_the_first_stands_before_it_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let (recorder, task) = open(dir.path());
    let (a, b) = (of("uid:1", Action::OutputsRead, "a"), of("uid:2", Action::OutputsRead, "a"));
    for event in [&a, &b] {
        AuditSink::read(&recorder, event).await.unwrap();
    }
    assert_eq!(entries(dir.path()).len(), 2, "a read is told before its entry is durable");
    let many = (0..500).map(|_| AuditSink::read(&recorder, &a));
    assert!(join_all(many).await.into_iter().all(|read| read.is_ok()));
    // What is no read is written one by one.
    for _ in 0..2 {
        AuditSink::write(&recorder, &of("uid:1", Action::JobCancelled, "")).await.unwrap();
    }
    assert_eq!(entries(dir.path()).len(), 4);
    drop(recorder);
    task.await.unwrap();
    let entries = entries(dir.path());
    assert_eq!(entries.len(), 5);
    let of = |actor: &'static str| {
        entries.iter().filter(move |e| e["actor"] == actor && e["action"] == "read.outputs")
    };
    assert_eq!((of("uid:1").map(calls).sum::<u64>(), of("uid:2").map(calls).sum::<u64>()), (501, 1));
    assert!(entries.iter().all(|entry| entry["decision"] == "allowed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_has_no_more_written_than_its_rate_and_what_it_was_refused_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let log = AuditLog::open(dir.path(), "audit.host.example").unwrap();
    let (recorder, task) = Recorder::begin(log, Arc::default(), Rate { per_second: 1, burst: 20 });
    let mut refused = 0;
    for number in 0..300 {
        let (action, output) = (Action::JobSubmitted, number.to_string());
        match AuditSink::write(&recorder, &of("uid:1", action, &output)).await {
            Ok(()) => {}
            Err(AuditError::TooOften { retry_after }) => {
                assert!(retry_after <= Duration::from_secs(1), "{retry_after:?}");
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!((260..=280).contains(&refused), "{refused} of 300 were refused");
    // Nobody else waits for that, and what happens to jobs is written in any case.
    AuditSink::write(&recorder, &of("uid:2", Action::JobSubmitted, "")).await.unwrap();
    AuditSink::write(&recorder, &of(OURSELVES, Action::KeysReloaded, "")).await.unwrap();
    recorder.write(&of("uid:1", Action::JobFinished, "")).await.unwrap();
    recorder.set_rate(Rate { per_second: 1000, burst: 1000 });
    AuditSink::write(&recorder, &of("uid:1", Action::JobSubmitted, "more")).await.unwrap();
    drop(recorder);
    task.await.unwrap();
    let entries = entries(dir.path());
    let not_done = entries.iter().filter(|entry| entry["action"] == "call.not_done");
    assert!(not_done.clone().all(|e| e["reason"] == "call.busy" && e["detail"]["action"] == "job.submitted"));
    assert_eq!(not_done.map(calls).sum::<u64>(), refused);
    assert!(entries.len() < 60, "{}", entries.len());
}
