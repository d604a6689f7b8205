//! `ampoule submit` as a process: signals, keys and what its reader sees, against a scripted daemon.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

#[path = "../../agent/tests/common/fake_jobs.rs"]
mod fake_jobs;

use ampoule_proto::v1::{self as proto, watch_job_response::Event};
use fake_jobs::FakeJobs;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn job(state: proto::JobState, outcome: proto::JobOutcome, code: &str) -> proto::Job {
    proto::Job {
        id: ID.to_owned(),
        state: state.into(),
        outcome: outcome.into(),
        code: code.to_owned(),
        ..proto::Job::default()
    }
}

/// A job that runs until it is cancelled.
fn running(jobs: &FakeJobs) {
    let mut script = jobs.0.lock().unwrap();
    script.job = job(proto::JobState::Running, proto::JobOutcome::Unspecified, "");
    script.end = Some(job(proto::JobState::Finished, proto::JobOutcome::Cancelled, "job.cancelled"));
}

fn submit(dir: &Path, more: &[&str]) -> Child {
    let file = dir.join("job.toml");
    std::fs::write(&file, "ampoule = 1\nname = \"j\"\nimage = \"host\"\n[[step]]\nrun = [\"true\"]\n")
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ampoule"));
    command.arg("submit").arg(file).arg("--server").arg(format!("unix://{}", dir.join("jobs").display()));
    command.args(more).env_clear().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn wait_until(what: &str, limit: Duration, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_watched(jobs: &FakeJobs) -> bool {
    !jobs.0.lock().unwrap().watched.is_empty()
}

async fn ended(child: Child) -> Output {
    tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const LONG: Duration = Duration::from_secs(60);
const PROMISED: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn first_signal_makes_the_cancel_durable_in_time_and_the_end_is_awaited() {
    for which in [Signal::TERM, Signal::INT] {
        let (dir, jobs) = (tempfile::tempdir().unwrap(), FakeJobs::default());
        running(&jobs);
        let serving = jobs.serve(&dir.path().join("jobs"));
        let child = submit(dir.path(), &["--wait"]);
        wait_until("the job is watched", LONG, || is_watched(&jobs));
        signal(&child, which);
        wait_until("the cancel is durable", PROMISED, || !jobs.0.lock().unwrap().cancelled.is_empty());
        let output = ended(child).await;
        assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("job cancelled [job.cancelled]"));
        assert_eq!(jobs.0.lock().unwrap().cancelled.len(), 1);
        serving.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn second_signal_leaves_and_a_killed_client_cancels_nothing() {
    let (dir, jobs) = (tempfile::tempdir().unwrap(), FakeJobs::default());
    running(&jobs);
    jobs.0.lock().unwrap().deaf = true;
    let serving = jobs.serve(&dir.path().join("jobs"));
    let child = submit(dir.path(), &["--wait"]);
    wait_until("the job is watched", LONG, || is_watched(&jobs));
    signal(&child, Signal::TERM);
    wait_until("the cancel is durable", PROMISED, || !jobs.0.lock().unwrap().cancelled.is_empty());
    signal(&child, Signal::TERM);
    assert_eq!(ended(child).await.status.code(), Some(3));
    {
        let mut script = jobs.0.lock().unwrap();
        script.cancelled.clear();
        script.watched.clear();
    }
    let child = submit(dir.path(), &["--wait"]);
    wait_until("the job is watched", LONG, || is_watched(&jobs));
    signal(&child, Signal::KILL);
    assert_eq!(ended(child).await.status.code(), None);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(jobs.0.lock().unwrap().cancelled.is_empty());
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn signal_detaches_where_that_is_wanted_and_the_key_attaches_again() {
    let (dir, jobs) = (tempfile::tempdir().unwrap(), FakeJobs::default());
    running(&jobs);
    let serving = jobs.serve(&dir.path().join("jobs"));
    let key = ["--wait", "--json", "--idempotency-key", "k"];
    let child = submit(dir.path(), &[&key[..], &["--on-signal", "detach"]].concat());
    wait_until("the job is watched", LONG, || is_watched(&jobs));
    signal(&child, Signal::TERM);
    let output = ended(child).await;
    assert_eq!(output.status.code(), Some(75), "{}", text(&output.stderr));
    assert!(jobs.0.lock().unwrap().cancelled.is_empty());
    // Whatever became of it meanwhile.
    {
        let mut script = jobs.0.lock().unwrap();
        script.job = job(proto::JobState::Finished, proto::JobOutcome::Failed, "step.exit_nonzero");
        script.end = None;
    }
    let output = ended(submit(dir.path(), &key)).await;
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("\"attached\":true"), "{}", text(&output.stdout));
    let script = jobs.0.lock().unwrap();
    assert_eq!(script.submitted.len(), 2);
    assert_eq!(script.submitted[0], script.submitted[1]);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_step_writes_has_no_effect_on_who_reads() {
    let (dir, jobs) = (tempfile::tempdir().unwrap(), FakeJobs::default());
    {
        let mut script = jobs.0.lock().unwrap();
        script.job = job(proto::JobState::Finished, proto::JobOutcome::Succeeded, "");
        let attacks =
            b"::add-mask::x\n##vso[task.complete]y\n##teamcity[z]\n\x1b[2J\x1b]0;t\x07\na\rb\n\x9b\xff::x";
        let data = [&attacks[..], &vec![b'x'; 20_000], &b"::error::z\n::error::z"[..]].concat();
        let step = proto::StepEvent { index: 0, name: "build".to_owned(), at: None, end: None };
        script.events = vec![
            Event::Step(step),
            Event::Log(proto::LogChunk { step: 0, stream: proto::LogStream::Stdout.into(), offset: 0, data }),
        ];
    }
    let serving = jobs.serve(&dir.path().join("jobs"));
    for more in [&["--wait"][..], &["--wait", "--json"]] {
        let output = ended(submit(dir.path(), more)).await;
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let seen = text(&output.stderr) + &text(&output.stdout);
        assert!(seen.contains("add-mask"), "{seen}");
        for line in seen.lines() {
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert!(!line.trim_start().starts_with("::"), "{line:?}");
            let is_for_people = !line.starts_with('{');
            assert!(!is_for_people || !line.contains("##"), "{line:?}");
        }
    }
    serving.abort();
}
