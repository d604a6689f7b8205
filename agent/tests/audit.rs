//! What the audit log promises: an index is told under a durable checkpoint, and no edit, cut, roll-back or fork goes unseen.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

use ampoule_agent::audit::{Action, AuditError, AuditEvent, AuditLog, Decision, LogRefused, verify_log};
use ampoule_evidence::tlog::NoteKey;
use ampoule_spec::UnixNanos;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const ORIGIN: &str = "audit.host.example";

fn event(number: u64) -> AuditEvent {
    AuditEvent {
        at: UnixNanos(number),
        actor: format!("uid:{number}"),
        action: Action::JobSubmitted,
        project: None,
        job: None,
        decision: Decision::Allowed,
        reason: String::new(),
        detail: BTreeMap::new(),
    }
}

fn open(dir: &Path) -> AuditLog {
    AuditLog::open(dir, ORIGIN).unwrap()
}

fn key(dir: &Path) -> NoteKey {
    NoteKey::parse(std::fs::read_to_string(dir.join("key.pub")).unwrap().trim()).unwrap()
}

/// A log of `size` events; the last one under a checkpoint of its own.
async fn log(dir: &Path, size: u64) -> AuditLog {
    let log = Arc::new(open(dir));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..size.saturating_sub(1) {
        let log = log.clone();
        tasks.spawn(async move { log.append(&event(number)).await.unwrap() });
    }
    let mut indices = tasks.join_all().await;
    indices.push(log.append(&event(size)).await.unwrap());
    indices.sort_unstable();
    assert_eq!(indices, (0..size).collect::<Vec<_>>(), "every event has an index of its own");
    Arc::into_inner(log).unwrap()
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files
}

#[tokio::test]
async fn index_that_was_told_is_under_a_signed_checkpoint_and_stays_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut size = 0;
    for more in [1, 2, 250, 3, 1, 300] {
        let log = open(dir.path());
        for number in 0..more {
            // Each of its own, so that every width of the last tiles occurs.
            if number < 8 || number % 50 == 0 {
                assert_eq!(log.append(&event(number)).await.unwrap(), size);
                size += 1;
            }
            assert_eq!(log.checkpoint().lines().nth(1).unwrap(), size.to_string());
        }
        let verified = verify_log(dir.path(), &key(dir.path()), Some(log.checkpoint().as_bytes())).unwrap();
        assert_eq!((verified.checkpoint.size, verified.since), (size, Some(size)));
    }
    let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("key.pem"), 0o600);
}

#[tokio::test]
async fn log_over_several_tiles_verifies_and_begins_with_each_of_its_older_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = vec![open(dir.path()).checkpoint()];
    for size in [1, 255, 1, 300] {
        let log = open(dir.path());
        let log = Arc::new(log);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..size {
            let log = log.clone();
            tasks.spawn(async move { log.append(&event(number)).await.unwrap() });
        }
        tasks.join_all().await;
        kept.push(log.checkpoint());
    }
    for (older, size) in kept.iter().zip([0, 1, 256, 257, 557]) {
        let verified = verify_log(dir.path(), &key(dir.path()), Some(older.as_bytes())).unwrap();
        assert_eq!((verified.checkpoint.size, verified.since), (557, Some(size)));
    }
    // Nothing lies about but the tiles of this size, the checkpoint, the keys, what is set aside, and nothing pending.
    let count = ampoule_evidence::tlog::Tile::all(557).count();
    assert_eq!(files(dir.path()).len(), count + 5, "{:?}", files(dir.path()));
    assert_eq!(std::fs::metadata(dir.path().join("pending")).unwrap().len(), 0);
}

#[tokio::test]
async fn any_changed_byte_of_entries_tiles_or_checkpoint_is_found() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path(), 259).await);
    let key = key(dir.path());
    assert_eq!(verify_log(dir.path(), &key, None).unwrap().checkpoint.size, 259);
    for file in files(dir.path()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        if name.starts_with("key.") || ["reserve", "pending"].contains(&name) {
            continue;
        }
        let bytes = std::fs::read(&file).unwrap();
        for at in (0..bytes.len()).step_by(if bytes.len() > 5_000 { 997 } else { 13 }) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            std::fs::write(&file, &changed).unwrap();
            assert!(verify_log(dir.path(), &key, None).is_err(), "{} byte {at}", file.display());
        }
        std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
        assert!(verify_log(dir.path(), &key, None).is_err(), "{} cut", file.display());
        std::fs::remove_file(&file).unwrap();
        assert!(verify_log(dir.path(), &key, None).is_err(), "{} gone", file.display());
        std::fs::write(&file, &bytes).unwrap();
    }
    verify_log(dir.path(), &key, None).unwrap();
}

#[tokio::test]
async fn roll_back_fork_and_a_new_log_are_found_with_a_checkpoint_that_was_kept() {
    let (dir, before, fork) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    drop(log(dir.path(), 5).await);
    copy(dir.path(), before.path());
    let log = open(dir.path());
    log.append(&event(77)).await.unwrap();
    let kept = log.checkpoint();
    drop(log);
    let key = key(dir.path());
    // Rolled back: good by itself, and shorter than what was kept.
    verify_log(before.path(), &key, None).unwrap();
    let refused = verify_log(before.path(), &key, Some(kept.as_bytes())).unwrap_err();
    assert_eq!(refused, LogRefused::RolledBack { size: 5, older: 6 });
    // Forked by somebody who has the key: as long, and longer, and not what was kept.
    copy(before.path(), fork.path());
    let log = open(fork.path());
    log.append(&event(78)).await.unwrap();
    verify_log(fork.path(), &key, None).unwrap();
    assert_eq!(verify_log(fork.path(), &key, Some(kept.as_bytes())), Err(LogRefused::Changed { older: 6 }));
    log.append(&event(79)).await.unwrap();
    assert_eq!(verify_log(fork.path(), &key, Some(kept.as_bytes())), Err(LogRefused::Changed { older: 6 }));
    // Another log altogether is of another key.
    let other = tempfile::tempdir().unwrap();
    drop(open(other.path()));
    assert!(matches!(verify_log(other.path(), &key, None), Err(LogRefused::File { .. })));
}

#[tokio::test]
async fn start_refuses_what_is_not_what_was_signed_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path(), 4).await);
    let good = tempfile::tempdir().unwrap();
    copy(dir.path(), good.path());
    let tile = dir.path().join("tile/0/000.p/4");
    let entries = dir.path().join("tile/entries/000.p/4");
    let checkpoint = dir.path().join("checkpoint");
    for (path, what) in [(&tile, "tile"), (&entries, "entries"), (&checkpoint, "checkpoint")] {
        let bytes = std::fs::read(path).unwrap();
        let mut changed = bytes.clone();
        changed[30] ^= 1;
        std::fs::write(path, &changed).unwrap();
        let refused = AuditLog::open(dir.path(), ORIGIN);
        assert!(matches!(refused, Err(AuditError::Mismatch { .. })), "{what}: {refused:?}");
        std::fs::remove_file(path).unwrap();
        let refused = AuditLog::open(dir.path(), ORIGIN);
        assert!(matches!(refused, Err(AuditError::Mismatch { .. })), "no {what}: {refused:?}");
        std::fs::write(path, &bytes).unwrap();
    }
    // Another name, and another key.
    assert!(AuditLog::open(dir.path(), "other").is_err());
    std::fs::remove_file(dir.path().join("key.pem")).unwrap();
    assert!(matches!(AuditLog::open(dir.path(), ORIGIN), Err(AuditError::Key(_))));
    std::fs::copy(good.path().join("key.pem"), dir.path().join("key.pem")).unwrap();
    assert_eq!(open(dir.path()).append(&event(1)).await.unwrap(), 4);
}

#[tokio::test]
async fn what_a_crash_leaves_beyond_the_checkpoint_is_written_over() {
    let dir = tempfile::tempdir().unwrap();
    drop(log(dir.path(), 3).await);
    let before = tempfile::tempdir().unwrap();
    copy(dir.path(), before.path());
    let log = open(dir.path());
    log.append(&event(5)).await.unwrap();
    let first = log.checkpoint();
    drop(log);
    // The crash: tiles of four entries, partly torn, and the checkpoint and tiles of three.
    copy(before.path(), dir.path());
    std::fs::write(dir.path().join("tile/0/000.p/4"), b"torn").unwrap();
    std::fs::write(dir.path().join("checkpoint.new"), &first[..20]).unwrap();
    let log = open(dir.path());
    assert_eq!(log.append(&event(6)).await.unwrap(), 3);
    assert_ne!(log.checkpoint(), first);
    verify_log(dir.path(), &key(dir.path()), Some(log.checkpoint().as_bytes())).unwrap();
}

#[tokio::test]
async fn log_has_one_writer() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    assert!(matches!(AuditLog::open(dir.path(), ORIGIN), Err(AuditError::Locked(_))));
    let key = log.public_key().to_owned();
    drop(log);
    assert_eq!(open(dir.path()).public_key(), key, "the key is made once");
}

#[tokio::test]
async fn event_whose_tile_cannot_be_written_is_pending_until_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let large = AuditEvent { detail: [("x".to_owned(), "y".repeat(70_000))].into(), ..event(0) };
    assert!(matches!(log.append(&large).await, Err(AuditError::Event(_))));
    assert_eq!(log.append(&event(0)).await.unwrap(), 0);
    // A directory where a file has to be: the entry is durable, verified, and in the tiles as soon as that can be.
    drop(log);
    std::fs::create_dir_all(dir.path().join("tile/0/000.p/2")).unwrap();
    let log = open(dir.path());
    assert_eq!(log.append(&event(1)).await.unwrap(), 1);
    let size = || verify_log(dir.path(), &key(dir.path()), None).unwrap().checkpoint.size;
    let pending = || std::fs::metadata(dir.path().join("pending")).unwrap().len();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(size() == 2 && pending() > 0);
    std::fs::remove_dir(dir.path().join("tile/0/000.p/2")).unwrap();
    assert_eq!(log.append(&event(2)).await.unwrap(), 2);
    let begun = std::time::Instant::now();
    while pending() > 0 {
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "it stays pending");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(size(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_that_is_written_meanwhile_verifies_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(log(dir.path(), 600).await);
    let (key, writing) = (key(dir.path()), log.clone());
    let writer = tokio::spawn(async move {
        for number in 0..200 {
            writing.append(&event(number)).await.unwrap();
            // So that it is brought into the tiles again and again.
            tokio::time::sleep(std::time::Duration::from_millis(if number % 4 == 0 { 25 } else { 1 })).await;
        }
    });
    let (mut sizes, path) = (std::collections::BTreeSet::new(), dir.path().to_owned());
    while !writer.is_finished() {
        let (path, key) = (path.clone(), key.clone());
        let verified = tokio::task::spawn_blocking(move || verify_log(&path, &key, None)).await.unwrap();
        sizes.insert(verified.unwrap().checkpoint.size);
    }
    writer.await.unwrap();
    assert!(sizes.len() > 5 && sizes.iter().all(|size| (600..=800).contains(size)), "{sizes:?}");
}
