//! Torn tails and damage of the ledger at every byte: the one is cut, the other refused, and nothing acknowledged is lost in silence.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

#[path = "common/jobs.rs"]
mod jobs;

use ampoule_agent::job::ledger::{Ledger, OpenError, Options};
use ampoule_agent::job::state::Change;
use ampoule_agent::job::{CancelWish, State};
use ampoule_journal::{Next, Reader};
use ampoule_spec::UnixNanos;
use jobs::{job_id, submission};
use std::path::Path;

fn options() -> Options {
    Options { reserve_bytes: 64 << 10, ..Options::default() }
}

fn open(dir: &Path, accept_loss: Option<u64>) -> Result<Ledger, OpenError> {
    Ledger::open(dir, &Options { accept_loss, ..options() }, UnixNanos(1))
}

/// A ledger of four jobs, of which somebody has cancelled the first; and where its frames begin.
async fn written(dir: &Path) -> (Vec<u8>, Vec<usize>) {
    let ledger = open(dir, None).unwrap();
    for number in 0..4 {
        ledger.submit(submission(number), UnixNanos(1)).await.unwrap();
    }
    let wish = CancelWish { by: "uid:7".to_owned(), reason: String::new(), at: UnixNanos(2) };
    ledger.change(&job_id(0), Change::CancelWished { wish }).await.unwrap();
    drop(ledger);
    let bytes = std::fs::read(dir.join("ledger")).unwrap();
    let (mut reader, mut starts) = (Reader::new(bytes.as_slice()), Vec::new());
    while let Next::Frame(frame) = reader.next_frame().unwrap() {
        starts.push(usize::try_from(frame.offset).unwrap());
    }
    (bytes, starts)
}

fn jobs(ledger: &Ledger) -> usize {
    (0..4).filter(|number| ledger.get(&job_id(*number)).is_some()).count()
}

#[tokio::test]
async fn tail_torn_at_any_byte_is_cut_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, starts) = written(dir.path()).await;
    let path = dir.path().join("ledger");
    // From the mark behind the third job on: a spec, a job, a mark, a change, a mark.
    let last = &starts[starts.len() - 6..];
    for end in last[0]..bytes.len() {
        let rest = starts.iter().find(|start| **start > end).copied().unwrap_or(bytes.len());
        // A mark ends in zeros: with as many it would be whole.
        let zeros = if bytes[end..rest].iter().all(|byte| *byte == 0) { [0, 0] } else { [0, 40] };
        for zeros in zeros {
            std::fs::write(&path, [&bytes[..end], &vec![0; zeros]].concat()).unwrap();
            let ledger = open(dir.path(), None).unwrap();
            let frame = starts.iter().rev().find(|start| **start <= end).unwrap();
            match ledger.cut() {
                None => assert!(*frame == end && zeros == 0, "nothing cut at {end}"),
                Some(cut) => {
                    assert_eq!((cut.offset, cut.accepted), (u64::try_from(*frame).unwrap(), false));
                    assert_eq!(cut.bytes, u64::try_from(end + zeros - frame).unwrap());
                }
            }
            // The fourth job is there as soon as its frame is whole, and the first cancelled as soon as that is.
            assert_eq!(jobs(&ledger), if end >= last[3] { 4 } else { 3 });
            let cancelled = ledger.get(&job_id(0)).unwrap().job.cancel.is_some();
            assert_eq!(cancelled, end >= last[5]);
        }
    }
}

#[tokio::test]
async fn bit_flipped_anywhere_is_refused_with_its_place_or_hides_no_job() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, starts) = written(dir.path()).await;
    let path = dir.path().join("ledger");
    let last_mark = *starts.last().unwrap();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        std::fs::write(&path, &damaged).unwrap();
        let frame = starts.iter().rev().find(|start| **start <= at).unwrap();
        match open(dir.path(), None) {
            Err(OpenError::Damaged { offset, .. }) => {
                assert_eq!(offset, u64::try_from(*frame).unwrap(), "byte {at}");
                assert_eq!(std::fs::read(&path).unwrap(), damaged, "it is left as it is");
            }
            Ok(ledger) => {
                assert_eq!(*frame, last_mark, "byte {at}: nothing behind it says that it was durable");
                assert_eq!(jobs(&ledger), 4);
            }
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
}

#[tokio::test]
async fn damage_names_offset_and_remedy_and_its_loss_can_be_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bytes, starts) = written(dir.path()).await;
    // The spec of the third job: opened, mark, then three frames for each.
    let at = starts[2 + 2 * 3];
    bytes[at + 30] ^= 1;
    std::fs::write(dir.path().join("ledger"), &bytes).unwrap();
    let refused = open(dir.path(), None).unwrap_err().to_string();
    assert!(
        refused.contains(&format!("is damaged at byte {at}: the bytes there are no whole frame")),
        "{refused}"
    );
    assert!(refused.contains(&format!("--accept-ledger-loss={at}")), "{refused}");
    let at = u64::try_from(at).unwrap();
    assert!(open(dir.path(), Some(at + 1)).is_err(), "only the offset that was named");
    let ledger = open(dir.path(), Some(at)).unwrap();
    assert_eq!((jobs(&ledger), ledger.generation()), (2, 2));
    let cut = ledger.cut().unwrap();
    assert_eq!((cut.offset, cut.accepted), (at, true));
    assert_eq!(std::fs::read(dir.path().join("ledger.damaged-1")).unwrap(), bytes);
}

#[tokio::test]
async fn what_is_found_out_again_costs_no_sync_and_is_cut_where_it_is_torn() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = open(dir.path(), None).unwrap();
    ledger.submit(submission(0), UnixNanos(1)).await.unwrap();
    let syncs = ledger.syncs();
    let (began, _) = ledger.change(&job_id(0), Change::Began).await.unwrap();
    assert_eq!((began.job.state, ledger.syncs()), (State::Preparing, syncs));
    assert_eq!(ledger.get(&job_id(0)), Some(began));
    let path = dir.path().join("ledger");
    let unsynced = std::fs::read(&path).unwrap();
    ledger.change(&job_id(0), Change::Asked { runner: job_id(0) }).await.unwrap();
    assert_eq!(ledger.syncs(), syncs + 1, "and is durable with what comes behind it");
    drop(ledger);
    std::fs::write(&path, &unsynced[..unsynced.len() - 1]).unwrap();
    let ledger = open(dir.path(), None).unwrap();
    assert!(ledger.cut().is_some_and(|cut| !cut.accepted));
    assert_eq!(ledger.get(&job_id(0)).unwrap().job.state, State::Queued);
}

#[tokio::test]
async fn mark_in_a_payload_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (bytes, starts) = written(dir.path()).await;
    // A mark of the right form, with another nonce than the file's, behind a frame that the power cut broke.
    let mark = &bytes[*starts.last().unwrap()..];
    let mut payload = mark[17..].to_vec();
    payload[0] ^= 1;
    let mut forged = Vec::new();
    {
        struct To<'a>(&'a mut Vec<u8>);
        impl ampoule_journal::Medium for To<'_> {
            fn write_once(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn sync(&mut self) -> std::io::Result<()> {
                Ok(())
            }
            fn cut(&mut self, _: u64) -> std::io::Result<()> {
                Ok(())
            }
        }
        ampoule_journal::Writer::on(To(&mut forged)).append(5, &payload).unwrap();
    }
    let torn = [&bytes, &b"AMPJ a frame whose header is broken "[..], &forged].concat();
    std::fs::write(dir.path().join("ledger"), torn).unwrap();
    let ledger = open(dir.path(), None).unwrap();
    assert_eq!((jobs(&ledger), ledger.cut().unwrap().offset), (4, u64::try_from(bytes.len()).unwrap()));
}

#[tokio::test]
async fn file_that_is_no_ledger_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for bytes in [&b""[..], b"AMP", b"hello", &[0; 99]] {
        std::fs::write(dir.path().join("ledger"), bytes).unwrap();
        assert!(matches!(open(dir.path(), None), Err(OpenError::Damaged { offset: 0, .. })), "{bytes:?}");
    }
}
