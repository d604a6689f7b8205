//! What is pending is part of the log, whatever a crash or a cut of power leaves of it.

use super::*;
use crate::audit::verify::{LogRefused, verify_log};
use std::path::PathBuf;

const ORIGIN: &str = "audit.host.example";

fn open(dir: &Path) -> Result<Log, AuditError> {
    Log::open_on(dir, ORIGIN, Box::new(|file| file))
}

fn entry(number: u32) -> Vec<u8> {
    format!("{{\"number\":{number}}}").into_bytes()
}

/// A log of four entries in its tiles and three that are pending in lots of two and one, as a crash leaves it.
fn crashed() -> (tempfile::TempDir, NoteKey, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path()).unwrap();
    log.append(&[entry(0), entry(1), entry(2), entry(3)]).unwrap();
    log.publish().unwrap();
    log.append(&[entry(4), entry(5)]).unwrap();
    log.append(&[entry(6)]).unwrap();
    let (key, path) = (log.public_key().clone(), dir.path().join(pending::PENDING));
    (dir, key, path)
}

#[test]
fn what_is_pending_is_verified_and_comes_into_the_tiles_at_the_next_start() {
    let (dir, key, path) = crashed();
    let tiles = std::fs::read_to_string(dir.path().join("checkpoint")).unwrap();
    assert_eq!(tiles.lines().nth(1), Some("4"));
    let verified = verify_log(dir.path(), &key, Some(tiles.as_bytes())).unwrap();
    assert_eq!((verified.checkpoint.size, verified.since), (7, Some(4)));
    let log = open(dir.path()).unwrap();
    assert_eq!((log.size(), std::fs::read(&path).unwrap().len()), (7, 0));
    let now = std::fs::read_to_string(dir.path().join("checkpoint")).unwrap();
    assert_eq!((now.lines().nth(1), now.as_str()), (Some("7"), log.checkpoint()));
    assert_eq!(verify_log(dir.path(), &key, None).unwrap().checkpoint, verified.checkpoint);
}

#[test]
fn lot_that_is_in_the_tiles_already_is_passed_over() {
    let (dir, key, path) = crashed();
    let pending = std::fs::read(&path).unwrap();
    drop(open(dir.path()).unwrap());
    std::fs::write(&path, &pending).unwrap();
    assert_eq!(verify_log(dir.path(), &key, None).unwrap().checkpoint.size, 7);
    assert_eq!(open(dir.path()).unwrap().size(), 7);
}

#[test]
fn last_lot_torn_at_any_byte_is_cut_and_the_one_before_it_stays() {
    let (dir, key, path) = crashed();
    let whole = std::fs::read(&path).unwrap();
    let first = {
        let mut reader = ampoule_journal::Reader::new(whole.as_slice());
        usize::try_from(reader.next_frame().unwrap().frame().unwrap().end).unwrap()
    };
    for end in first..whole.len() {
        for zeros in [0, whole.len() - end] {
            std::fs::write(&path, [&whole[..end], &vec![0; zeros]].concat()).unwrap();
            // A frame that ends in zeros would be whole with them.
            let is_whole = zeros > 0 && whole[end..].iter().all(|byte| *byte == 0);
            let size = if is_whole { 7 } else { 6 };
            assert_eq!(verify_log(dir.path(), &key, None).unwrap().checkpoint.size, size, "{end} {zeros}");
        }
    }
    assert_eq!(open(dir.path()).unwrap().size(), 6);
}

#[test]
fn any_changed_byte_before_the_last_lot_is_refused() {
    let (dir, key, path) = crashed();
    let whole = std::fs::read(&path).unwrap();
    let mut reader = ampoule_journal::Reader::new(whole.as_slice());
    let first = usize::try_from(reader.next_frame().unwrap().frame().unwrap().end).unwrap();
    for at in 0..first {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        let refused = verify_log(dir.path(), &key, None).unwrap_err();
        assert!(
            matches!(&refused, LogRefused::File { file, .. } if file == pending::PENDING),
            "{at}: {refused}"
        );
        assert!(matches!(open(dir.path()), Err(AuditError::Mismatch { .. })), "{at}");
        assert_eq!(std::fs::read(&path).unwrap(), changed, "it is left as it is");
    }
}

#[test]
fn lot_of_another_key_or_of_other_entries_is_refused() {
    let (dir, key, path) = crashed();
    let other = tempfile::tempdir().unwrap();
    let mut log = open(other.path()).unwrap();
    log.append(&[entry(4), entry(5), entry(6), entry(7), entry(8)]).unwrap();
    std::fs::copy(other.path().join(pending::PENDING), &path).unwrap();
    verify_log(dir.path(), &key, None).unwrap_err();
    // A checkpoint of this log over entries that it is not of.
    let store = Store::open(dir.path(), ORIGIN).unwrap();
    let mut edge = store.edge().clone();
    edge.push(leaf_hash(&entry(4)));
    std::fs::remove_file(&path).unwrap();
    Pending::open(dir.path(), Box::new(|file: File| file))
        .unwrap()
        .add(&store.note(&edge).unwrap(), &[entry(5)])
        .unwrap();
    let refused = verify_log(dir.path(), &key, None).unwrap_err();
    assert!(refused.to_string().contains("not those of its checkpoint"), "{refused}");
}

#[test]
fn what_looks_like_a_frame_in_a_torn_lot_hides_nothing_and_refuses_nothing() {
    let (dir, key, path) = crashed();
    let mut log = open(dir.path()).unwrap();
    // A caller's text, with the frame of another log in it.
    let other = tempfile::tempdir().unwrap();
    let mut forger = open(other.path()).unwrap();
    forger.append(&[entry(7)]).unwrap();
    let forged = std::fs::read(other.path().join(pending::PENDING)).unwrap();
    log.append(&[[forged, entry(8)].concat()]).unwrap();
    let torn = std::fs::read(&path).unwrap();
    std::fs::write(&path, &torn[..torn.len() - 3]).unwrap();
    assert_eq!(verify_log(dir.path(), &key, None).unwrap().checkpoint.size, 7);
}
