//! The ledger under `kill -9` and cuts of power, at each of its calls: what was acknowledged is there, and once.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

use ampoule_agent::job::ledger::{Ledger, Options};
use ampoule_agent::job::state::sha256;
use ampoule_agent::job::{IdempotencyKey, State};
use ampoule_spec::UnixNanos;
use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// Between fork and exec a child of one test would hold the lock on another test's directory.
static ALONE: Mutex<()> = Mutex::new(());

fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(Path::parent).unwrap().join("examples/ledger_child");
    assert!(path.exists(), "build it first: cargo build -p ampoule-agent --example ledger_child");
    path
}

fn start(dir: &Path, work: &str, how: &str, call: u64) -> Child {
    let mut command = Command::new(program());
    command.arg(dir).args([work, how, &call.to_string()]);
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn run(dir: &Path, work: &str, how: &str, call: u64) -> Output {
    start(dir, work, how, call).wait_with_output().unwrap()
}

/// What a child was told: each job's id, and the last state of it.
#[derive(Debug, Default)]
struct Told {
    ids: BTreeMap<u32, String>,
    states: BTreeMap<u32, State>,
    /// The digest of the spec in which everything was found.
    resolved: BTreeMap<u32, String>,
}

impl Told {
    fn add(&mut self, out: &[u8]) {
        for line in std::str::from_utf8(out).unwrap().lines() {
            let words: Vec<_> = line.split(' ').collect();
            match words.as_slice() {
                ["job", number, id, _attached] => {
                    let before = self.ids.insert(number.parse().unwrap(), (*id).to_owned());
                    assert!(
                        before.as_deref().is_none_or(|before| before == *id),
                        "two jobs under a key: {line}"
                    );
                }
                ["state", number, state] => {
                    let state = serde_json::from_str(state).unwrap();
                    self.states.insert(number.parse().unwrap(), state);
                }
                ["resolved", number, spec] => {
                    self.resolved.insert(number.parse().unwrap(), (*spec).to_owned());
                }
                _ => assert_eq!(line, "open"),
            }
        }
    }

    /// Everything that was told is in the ledger; after a cut of power without what is found out again: that a job's turn has come, and
    /// that it has reported.
    fn check(&self, dir: &Path, context: &str, power: bool) -> usize {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let options = Options { reserve_bytes: 64 << 10, ..Options::default() };
        let ledger = Ledger::open(dir, &options, UnixNanos(2)).unwrap_or_else(|e| panic!("{context}: {e}"));
        for (number, id) in &self.ids {
            let key = IdempotencyKey::parse(&format!("key-{number}")).unwrap();
            let life = ledger.find("uid:7", &key);
            let life = life.unwrap_or_else(|| panic!("{context}: job {number} was acknowledged and is lost"));
            assert_eq!(life.job.id.as_str(), id, "{context}");
            let told = match self.states.get(number).copied().unwrap_or(State::Queued) {
                State::Preparing if power => State::Queued,
                State::Attesting if power => State::Running,
                told => told,
            };
            assert!(
                life.job.state >= told,
                "{context}: job {number} was {told:?} and is {:?}",
                life.job.state
            );
            let told = self.resolved.get(number);
            assert!(told.is_none_or(|told| *told == life.spec.to_string()), "{context}: another spec");
            // The bytes are those of the digest, whichever of the two specs it is.
            let spec = ledger.spec_bytes(&life.job.id).unwrap();
            assert_eq!(spec.is_none(), life.job.state == State::Finished, "{context}");
            assert!(spec.is_none_or(|spec| sha256(&spec).unwrap() == life.spec), "{context}: {number}");
        }
        ledger.len()
    }
}

const HOWS: [&str; 6] = ["before", "after", "half", "lost", "even", "odd"];

fn killed_at_each_call(work: &str, hows: &[&str], step: usize, jobs: usize) {
    for how in hows {
        let mut kills = 0;
        for call in (0..).step_by(step) {
            let dir = tempfile::tempdir().unwrap();
            let context = format!("{work}, {how} call {call}");
            let mut told = Told::default();
            let output = run(dir.path(), work, how, call);
            told.add(&output.stdout);
            if output.status.success() {
                break;
            }
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(9), "{context}: {stderr}");
            kills += 1;
            told.check(dir.path(), &context, ["lost", "even", "odd"].contains(how));
            // The work goes on where it was: every job is there once in the end.
            let output = run(dir.path(), work, "never", 0);
            assert!(output.status.success(), "{context}: {}", String::from_utf8_lossy(&output.stderr));
            told.add(&output.stdout);
            assert_eq!(told.check(dir.path(), &context, false), jobs, "{context}");
        }
        assert!(kills > 5, "{how}: only {kills} calls");
    }
}

#[test]
fn killed_at_any_call_nothing_that_was_acknowledged_is_lost() {
    killed_at_each_call("in-turn", &HOWS[..3], 1, 3);
}

#[test]
fn power_cut_at_any_call_nothing_that_was_acknowledged_is_lost() {
    killed_at_each_call("in-turn", &HOWS[3..], 1, 3);
}

#[test]
fn killed_at_any_call_of_a_compaction_nothing_that_was_acknowledged_is_lost() {
    killed_at_each_call("compacting", &HOWS[..3], 1, 3);
}

#[test]
fn power_cut_at_any_call_of_a_compaction_nothing_that_was_acknowledged_is_lost() {
    killed_at_each_call("compacting", &HOWS[3..], 1, 3);
}

#[test]
fn power_cut_while_many_are_written_at_once_loses_nothing_that_was_acknowledged() {
    killed_at_each_call("at-once", &HOWS[2..], 7, 24);
}

#[test]
fn killed_at_random_times_the_ledger_loses_nothing_and_has_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut told = Told::default();
    for round in 0..12_u64 {
        let mut child = start(dir.path(), "endless", "never", 0);
        let mut out = child.stdout.take().unwrap();
        let mut said = vec![0; 5];
        out.read_exact(&mut said).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(round * 37 % 110));
        child.kill().unwrap();
        child.wait().unwrap();
        out.read_to_end(&mut said).unwrap();
        told.add(&said);
        told.check(dir.path(), &format!("round {round}"), false);
    }
    assert!(told.ids.len() > 50, "only {} jobs", told.ids.len());
}

#[test]
fn sync_that_fails_ends_the_process_before_anybody_is_told() {
    let dir = tempfile::tempdir().unwrap();
    // Call 1 is the sync of the file's beginning; the next sync is that of the first job.
    let output = run(dir.path(), "in-turn", "fail", 3);
    assert_eq!(output.status.signal(), Some(6), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "open\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the disk is gone; this process ends now"), "{said}");
}
