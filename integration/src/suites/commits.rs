//! Commits as inputs of jobs that are submitted: the daemon fetches them itself, and finds what the job leaves to be found.

use super::git::git_server::{Answer, GitServer, Tamper, git};
use super::git::{COMMITTED, at, dependency, key, project, source};
use super::{input, output, sh};
use crate::ampouled::Ampouled;
use crate::check::{Ending, Ran, equal, sha256};
use crate::harness::Test;
use crate::lab::Lab;
use crate::procs;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("submitted_commit_is_fetched_by_the_daemon_and_named", fetched),
    Test::root("commits_that_cannot_be_had_end_in_a_record", refused),
    Test::root("commit_must_be_signed_by_whom_the_operator_allows", signed),
    Test::root("agent_killed_while_it_fetches_a_commit_finds_it_again", killed),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

/// A job that says what it sees of a commit.
fn body(url: &str, commit: &str, more: &str) -> String {
    input("src", &source(&at(url), commit, more), "/build/src", false)
        + &sh("a", "ls -A src; cat src/prog.c > out; echo $SOURCE_DATE_EPOCH; stat -c %Y src/prog.c")
        + &output("out", "/build/out")
}

fn fetched(lab: &Lab) -> Result<()> {
    let dir = lab.path("repositories/r");
    let commit = project(&dir)?;
    let server = GitServer::start(&lab.path("repositories"));
    let url = server.url("r");
    lab.list(&url)?;
    let daemon = Ampouled::start(lab)?;
    let job = lab.job(&("source_date_epoch = \"commit\"\n".to_owned() + &body(&url, &commit, "")))?;
    let ran = daemon.ended(daemon.submit(&job, "one").start()?)?.ended(&SUCCEEDED)?;
    let seen = format!(".gitattributes\nbuild\nlink\nprog.c\n{COMMITTED}\n{COMMITTED}\n");
    equal("what the step saw", &ran.log_text("0-a.stdout")?, &seen)?;
    equal("out", &ran.output("out")?, &fs::read(dir.join("prog.c"))?)?;
    ran.verifies_output("out")?;
    let found = dependency(&ran, "out")?;
    equal("uri", &found["uri"], &json!(format!("git+{url}@{commit}")))?;
    equal("digest", &found["digest"], &json!({"gitCommit": commit}))?;
    // The spec that ran has what the daemon has found.
    let spec: Value = serde_json::from_slice(&fs::read(ran.evidence("spec.json"))?)?;
    let input = &spec["inputs"][0]["source"];
    equal("tree", &input["tree"], &found["annotations"]["ampoule_tree_sha256"])?;
    equal("epoch", &spec["source_date_epoch"].to_string(), &COMMITTED.to_owned())?;
    ensure!(spec.get("epoch_of_commit").is_none(), "{spec}");
    // The same request is the same job, although its spec is another one now; and nobody is asked.
    let asked = server.requests().len();
    let again = daemon.ended(daemon.submit(&job, "one").start()?)?.ended(&SUCCEEDED)?;
    again.says(&["was there before"])?;
    equal("requests of who submits again", &server.requests().len(), &asked)?;
    let plain = lab.job(&(format!("source_date_epoch = {COMMITTED}\n") + &body(&url, &commit, "")))?;
    daemon.ended(daemon.submit(&plain, "two").start()?)?.ended(&SUCCEEDED)?;
    equal("requests of who has had it from there", &server.requests().len(), &asked)?;
    // What is uploaded has its times.
    lab.write("f", "f")?;
    let mixed = "source_date_epoch = \"commit\"\n".to_owned()
        + &body(&url, &commit, "")
        + &super::input("f", "path = 'f'", "/build/f", false);
    daemon.submit(&lab.job(&mixed)?, "three").end()?.exits(64)?.says(&["job.invalid", "input f"])?;
    let here = super::input("src", &source("path = \"repositories/r\"", &commit, ""), "/build/src", false)
        + &sh("a", "true");
    daemon
        .submit(&lab.job(&here)?, "four")
        .end()?
        .exits(64)?
        .says(&["job.invalid", "the repository's URL"])?;
    daemon.stop()
}

/// That a job never ran, and its record says which commit it asked for.
fn never_ran(ran: &Ran, commit: &str) -> Result<()> {
    let statement = ran.statement("run.intoto.jsonl")?;
    let run = &statement["predicate"];
    equal("sandbox", &run["sandbox"], &json!("none"))?;
    equal("input", &run["inputs"][0]["digest"], &json!({"gitCommit": commit}))
}

fn refused(lab: &Lab) -> Result<()> {
    let commit = project(&lab.path("repositories/r"))?;
    let server = GitServer::start(&lab.path("repositories"));
    let closed = GitServer::start(&lab.path("repositories"));
    lab.list(&server.url("r"))?;
    let daemon = Ampouled::start(lab)?;
    let run = |url: &str, commit: &str, code: &str, status: i32| -> Result<()> {
        let job = lab.job(&("source_date_epoch = \"commit\"\n".to_owned() + &body(url, commit, "")))?;
        let ran = daemon.ended(daemon.submit(&job, &format!("{url} {commit}")).start()?)?;
        never_ran(&ran.exits(status)?.says(&[code])?, commit)
    };
    let absent = "0123456789".repeat(4);
    run(&server.url("r"), &absent, "input.missing", 64)?;
    run(&server.url("none"), &commit, "input.missing", 64)?;
    run(&closed.url("r"), &commit, "input.source_denied", 77)?;
    equal("requests to who is not listed", &closed.requests().len(), &0)?;
    daemon.stop()
}

fn signed(lab: &Lab) -> Result<()> {
    let dir = lab.path("repositories/r");
    let unsigned = project(&dir)?;
    let (mine, other) = (key(lab, "mine")?, key(lab, "other")?);
    let signing = format!("user.signingKey={}", lab.path("mine").display());
    git(&dir, &["-c", "gpg.format=ssh", "-c", &signing, "commit", "-q", "--allow-empty", "-S", "-m", "x"]);
    let commit = git(&dir, &["rev-parse", "HEAD"]);
    git(&dir, &["-c", "gpg.format=ssh", "-c", &signing, "tag", "-s", "-m", "x", "v1", &unsigned]);
    let server = GitServer::start(&lab.path("repositories"));
    let url = server.url("r");
    lab.list(&url)?;
    let allowed = format!("me@example.org namespaces=\"git\" {mine}");
    lab.write("operators/allowed", &allowed)?;
    lab.write("allowed", &allowed)?;
    let tables = "[project.default]\nallowed_signers = \"operators/allowed\"\n";
    let daemon = Ampouled::start_with(lab, tables)?;
    let run = |commit: &str, more: &str, key: &str| -> Result<Ran> {
        let more = format!(", allowed_signers = \"allowed\"{more}");
        let job = lab.job(&body(&url, commit, &more))?;
        daemon.ended(daemon.submit(&job, key).start()?)
    };
    let ran = run(&commit, "", "commit")?.ended(&SUCCEEDED)?;
    let notes = dependency(&ran, "out")?["annotations"].clone();
    equal("principal", &notes["ampoule_signed_by"], &json!("me@example.org"))?;
    equal("file", &notes["ampoule_allowed_signers_sha256"], &json!(sha256(allowed.as_bytes())))?;
    let ran = run(&unsigned, ", tag = \"v1\"", "tag")?.ended(&SUCCEEDED)?;
    equal("tag", &dependency(&ran, "out")?["annotations"]["ampoule_signed_tag"], &json!("v1"))?;
    // In the store by now, and refused all the same.
    run(&unsigned, "", "unsigned")?.exits(2)?.says(&["input.unsigned", "not signed"])?;
    // The client's file says whom it expects, and not whom the host believes.
    lab.write("allowed", format!("you@example.org {other}"))?;
    let ran = run(&commit, "", "others")?.exits(2)?.says(&["input.unsigned", "this host has sha256:"])?;
    ensure!(!ran.stderr.contains("operators"), "a path of the host: {}", ran.stderr);
    never_ran(&ran, &commit)?;
    let more = ", allowed_signers = \"allowed\"";
    let job = lab.job(&body(&url, &commit, more))?;
    let elsewhere = daemon.submit(&job, "elsewhere").args(["--project", "other"]);
    elsewhere.end()?.exits(64)?.says(&["job.invalid", "allowed nobody to sign"])?;
    daemon.stop()
}

/// Has the server wait while it is told to.
fn waits(waiting: &Arc<AtomicBool>) -> Arc<Tamper> {
    let waiting = Arc::clone(waiting);
    Arc::new(move |_, body| {
        while waiting.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        Answer::Bytes(body)
    })
}

fn killed(lab: &Lab) -> Result<()> {
    let commit = project(&lab.path("repositories/r"))?;
    let waiting = Arc::new(AtomicBool::new(true));
    let server = GitServer::tampering(&lab.path("repositories"), waits(&waiting));
    lab.list(&server.url("r"))?;
    let mut daemon = Ampouled::start(lab)?;
    let text = "source_date_epoch = \"commit\"\n".to_owned() + &body(&server.url("r"), &commit, "");
    let job = lab.job(&text)?;
    let live = daemon.submit(&job, "k").start()?;
    let asked = || !server.requests().is_empty();
    procs::eventually(Duration::from_secs(30), "the commit is asked for", asked)?;
    daemon.kill_and_start(Duration::ZERO)?;
    waiting.store(false, Ordering::SeqCst);
    let ran = daemon.ended(live)?.ended(&SUCCEEDED)?;
    equal("digest", &dependency(&ran, "out")?["digest"], &json!({"gitCommit": commit}))?;
    let seen = ran.log_text("0-a.stdout")?;
    ensure!(seen.ends_with(&format!("{COMMITTED}\n{COMMITTED}\n")), "{seen}");
    let records = fs::read_dir(lab.path("daemon/records")).context("the records")?.count();
    equal("records", &records, &1)?;
    daemon.stop()
}
