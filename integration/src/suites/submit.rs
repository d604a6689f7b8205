//! `ampoule submit` with a real daemon and a real launcher.

use super::{input, output, sh};
use crate::ampouled::Ampouled;
use crate::check::{Ending, equal, sha256};
use crate::harness::Test;
use crate::lab::Lab;
use crate::procs;
use crate::serve::Server;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::fs;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("submit_gives_what_run_gives", whole),
    Test::root("agent_killed_under_a_watched_job_loses_no_byte", restarted),
    Test::root("signal_cancels_with_a_record", cancelled),
    Test::root("same_key_is_one_job_for_clients_at_once_and_after_a_kill", attached),
    Test::root("failed_job_has_its_status_and_directives_have_no_effect", failed),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

fn whole(lab: &Lab) -> Result<()> {
    let server = Server::start("200 OK", b"from afar\n".to_vec())?;
    lab.list(&server.url("f"))?;
    let daemon = Ampouled::start(lab)?;
    lab.write("src/sub/a", "a\n")?;
    lab.write("src/b.key", "left out")?;
    lab.write("tool", "a file\n")?;
    let http = format!("http = {{ url = \"{}\", sha256 = \"{}\" }}", server.url("f"), sha256(b"from afar\n"));
    let body = input("src", "path = 'src'\nexclude = ['*.key']", "/build/src", true)
        + &input("tool", "path = 'tool'", "/build/tool", false)
        + &input("far", &http, "/build/far", false)
        + &sh("make", "ls src; cat src/sub/a tool far > all; mkdir -p tree/d; cp all tree/d/x; echo err >&2")
        + &output("all", "/build/all")
        + &output("tree", "/build/tree");
    let job = lab.job(&body)?;
    let ran = daemon.ended(daemon.submit(&job, "one").start()?)?.ended(&SUCCEEDED)?;
    equal("all", &ran.output_text("all")?, &"a\na file\nfrom afar\n".to_owned())?;
    equal(
        "tree",
        &fs::read_to_string(ran.out.join("outputs/tree/d/x"))?,
        &"a\na file\nfrom afar\n".to_owned(),
    )?;
    equal("stdout", &ran.log_text("0-make.stdout")?, &"sub\n".to_owned())?;
    equal("stderr", &ran.log_text("0-make.stderr")?, &"err\n".to_owned())?;
    for name in ["all", "tree"] {
        ran.verifies_output(name)?;
    }
    ensure!(ran.stderr.contains("uploading input src"), "{}", ran.stderr);
    // What was uploaded is not uploaded again, and the daemon's word for its key is not needed.
    let key = daemon.key();
    let again = daemon.submit(&job, "two").arg("--allow-dev").arg("--key").arg(&key);
    let again = daemon.ended(again.start()?)?.ended(&SUCCEEDED)?;
    ensure!(!again.stderr.contains("uploading input src"), "{}", again.stderr);
    let listed = daemon.ampoule("list").end()?.exits(0)?.stdout_text();
    equal("jobs", &listed.lines().count(), &2)?;
    daemon.stop()
}

fn restarted(lab: &Lab) -> Result<()> {
    let mut daemon = Ampouled::start(lab)?;
    let script = "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); sleep 0.01; done; echo done > out";
    let job = lab.job(&(sh("long", script) + &output("out", "/build/out")))?;
    let mut live = daemon.submit(&job, "long").start()?;
    live.until_says("long | line 20\n")?;
    for pause in [0, 700] {
        daemon.kill_and_start(Duration::from_millis(pause))?;
    }
    let ran = daemon.ended(live)?.ended(&SUCCEEDED)?.says(&["trying again"])?;
    let shown: Vec<_> = ran.stderr.lines().filter(|line| line.starts_with("long | ")).collect();
    let expected: Vec<_> = (0..400).map(|n| format!("long | line {n}")).collect();
    ensure!(shown == expected, "{} lines were shown", shown.len());
    daemon.stop()
}

fn cancelled(lab: &Lab) -> Result<()> {
    let daemon = Ampouled::start(lab)?;
    let marker = lab.marker();
    let job = lab.job(&sh("wait", &format!("sleep {marker}")))?;
    let mut live = daemon.submit(&job, "c").start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    live.signal(Signal::TERM)?;
    daemon.ended(live)?.ended(&Ending("cancelled", "job.cancelled", 3))?.says(&["the cancel is durable"])?;
    ensure!(procs::with_args(&format!("sleep {marker}")).is_empty(), "the step goes on");
    daemon.stop()
}

fn attached(lab: &Lab) -> Result<()> {
    let daemon = Ampouled::start(lab)?;
    let marker = lab.marker();
    let script = format!(
        "touch began; sleep {marker} & while [ ! -e /build/never ]; do sleep 0.1; [ -n \"$(find began -mmin -0.05)\" ] || break; done; kill $!; echo x > out"
    );
    let job = lab.job(&(sh("s", &script) + &output("out", "/build/out")))?;
    let mut first = daemon.submit(&job, "k").start()?;
    first.until_runs(&format!("sleep {marker}"))?;
    let (second, third) = (daemon.submit(&job, "k").start()?, daemon.submit(&job, "k").start()?);
    first.signal(Signal::KILL)?;
    equal("signal", &first.end()?.signal, &Some(9))?;
    for live in [second, third] {
        daemon.ended(live)?.ended(&SUCCEEDED)?.says(&["was there before"])?;
    }
    let after = daemon.ended(daemon.submit(&job, "k").start()?)?.ended(&SUCCEEDED)?;
    equal("out", &after.output_text("out")?, &"x\n".to_owned())?;
    let listed = daemon.ampoule("list").end()?.exits(0)?.stdout_text();
    equal("jobs", &listed.lines().count(), &1)?;
    // Another request under the key is refused.
    let other = lab.job(&sh("s", "true"))?;
    daemon.submit(&other, "k").end()?.exits(64)?.says(&["job.key_reused"])?;
    daemon.stop()
}

fn failed(lab: &Lab) -> Result<()> {
    let daemon = Ampouled::start(lab)?;
    let script = "printf '::add-mask::x\\n##vso[task.complete]y\\n\\033[2J##teamcity[z]\\r\\n'; head -c 20000 /dev/zero | tr '\\0' ':'; exit 3";
    let job = lab.job(&sh("bad", script))?;
    let ran = daemon.ended(daemon.submit(&job, "f").start()?)?;
    let ran = ran.ended(&Ending("failed", "step.exit_nonzero", 1))?;
    let directive = |line: &&str| line.starts_with("::") || line.contains("##") || line.contains('\u{1b}');
    ensure!(!ran.stderr.lines().any(|line| directive(&line)), "{}", ran.stderr);
    let id = ran.result()?["job"].as_str().context("no job")?.to_owned();
    let logs = daemon.ampoule("logs").arg(&id).arg("--raw").end()?.exits(0)?;
    ensure!(logs.stdout == ran.log("0-bad.stdout")? && logs.stdout.starts_with(b"::add-mask"), "other bytes");
    daemon.ampoule("watch").arg(&id).end()?.exits(1)?;
    daemon.stop()
}
