//! Cancelling: the job ends, its record says so, and nothing goes on.

use super::outcomes::{ends, gone};
use super::{input, probe, sh, with_probe};
use crate::check::{Ending, equal};
use crate::harness::Test;
use crate::lab::Lab;
use crate::procs;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::both("sigint_cancels_with_a_record", |lab| cancelled(lab, Signal::INT)),
    Test::both("sigterm_cancels_with_a_record", |lab| cancelled(lab, Signal::TERM)),
    Test::both("second_signal_leaves_at_once_and_the_record_follows", twice),
    Test::both("signal_before_admission_leaves_no_job", before_admission),
    Test::both("step_gets_sigterm_and_may_tidy_up", tidy),
];

fn cancelled(lab: &Lab, signal: Signal) -> Result<()> {
    let marker = lab.marker();
    let job = lab.job(
        &(sh("one", "echo first")
            + &sh("two", &format!("echo begun; sleep {marker}"))
            + &sh("three", "true")),
    )?;
    let mut live = lab.run(&job).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    live.signal(signal)?;
    let ran = live.end()?.ended(&Ending("cancelled", "job.cancelled", 3))?;
    ends(&ran, &["exited", "cancelled", "not_run"])?;
    equal("log", &ran.log_text("1-two.stdout")?, &"begun\n".to_owned())?;
    gone(&marker)
}

fn twice(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let body =
        with_probe(lab)? + &sh("a", &format!("trap '' TERM; while true; do sleep {marker} || true; done"));
    let mut live = lab.run(&lab.job(&body)?).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    live.signal(Signal::INT)?;
    live.until_says("once more")?;
    live.signal(Signal::INT)?;
    live.end()?.exits(3)?;
    super::crash::runners_end(lab)?;
    gone(&marker)?;
    let next = lab.run_job(&sh("a", "true"))?.ended(&Ending("succeeded", "", 0))?.says(&["recovered job"])?;
    let records = crate::lab::tree(&lab.state().join("records"))?;
    ensure!(
        records.iter().any(|r| r.ends_with("/run.intoto.jsonl")),
        "no record: {records:?}\n{}",
        next.stderr
    );
    Ok(())
}

fn before_admission(lab: &Lab) -> Result<()> {
    // A source that never ends its answer keeps the run in its import.
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/slow", listener.local_addr()?);
    lab.list(&url)?;
    let source = format!("http = {{ url = \"{url}\", sha256 = \"{}\" }}", crate::check::sha256(b"x"));
    let job = lab.job(&(input("slow", &source, "/build/slow", false) + &sh("a", "true")))?;
    let live = lab.run(&job).start()?;
    let (mut stream, _) = listener.accept().context("no request")?;
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nx")?;
    live.signal(Signal::INT)?;
    let mut live = live;
    let ended = procs::eventually(Duration::from_secs(5), "the run ends", || !live.is_running());
    drop(stream);
    let ran = live.end()?;
    ensure!(!ran.was_admitted() && !ran.out.exists(), "a job was admitted:\n{}", ran.stderr);
    ensure!(ended.is_ok(), "one ^C does not end a download; when the server had closed it:\n{}", ran.stderr);
    ran.exits(3).map(drop)
}

fn tidy(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let script = format!("trap 'echo tidied; exit 9' TERM; echo begun; sleep {marker} & wait");
    let body = with_probe(lab)? + &sh("a", &script) + &probe("b", &["self"]);
    let mut live = lab.run(&lab.job(&body)?).start()?;
    live.until_says("a | begun")?;
    live.until_runs(&format!("sleep {marker}"))?;
    live.signal(Signal::TERM)?;
    let ran = live.end()?.ended(&Ending("cancelled", "job.cancelled", 3))?;
    equal("log", &ran.log_text("0-a.stdout")?, &"begun\ntidied\n".to_owned())?;
    gone(&marker)
}
