//! `--out`: where outputs and evidence are to be, and what is in the way.

use super::{output, sh};
use crate::check::{Ending, Ran, equal};
use crate::harness::Test;
use crate::lab::{Lab, tree};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

pub(super) const TESTS: &[Test] = &[
    Test::both("same_out_twice_is_refused_and_keeps_the_first", same_out),
    Test::both("same_out_at_once_is_given_to_one", same_out_at_once),
    Test::both("out_that_cannot_be_filled_is_refused_before_the_job", out_unusable),
    Test::both("out_that_was_there_keeps_its_mode", out_like_before),
    Test::both("out_on_another_file_system_works", other_file_system),
    Test::root("disk_that_is_full_is_a_reason_to_try_again", full),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

fn same_out(lab: &Lab) -> Result<()> {
    let job = lab.job(&(sh("a", "echo one > /build/x") + &output("x", "/build/x")))?;
    let run = |job: &Path| {
        lab.ampoule()
            .arg("run")
            .arg(job)
            .arg("--state")
            .arg(lab.state())
            .arg("--out")
            .arg(lab.path("same"))
            .end()
    };
    run(&job)?.exits(0)?;
    let before = tree(&lab.path("same"))?;
    let other = lab.job(&(sh("a", "echo two > /build/x") + &output("x", "/build/x")))?;
    run(&other)?.exits(64)?.says(&["not empty"])?;
    equal("files", &tree(&lab.path("same"))?, &before)?;
    equal("output", &fs::read_to_string(lab.path("same/outputs/x"))?, &"one\n".to_owned())
}

fn same_out_at_once(lab: &Lab) -> Result<()> {
    let mut lives = Vec::new();
    for word in ["one", "two"] {
        let script = format!("echo {word} > /build/x; sleep 1");
        let job = lab.job(&(sh("a", &script) + &output("x", "/build/x")))?;
        let call = lab.ampoule().arg("run").arg(job).arg("--state").arg(lab.state());
        lives.push(call.arg("--out").arg(lab.path("same")).start()?);
    }
    let ran: Vec<Ran> = lives.into_iter().map(|live| live.end()).collect::<Result<_>>()?;
    let winners = ran.iter().filter(|r| r.status == Some(0)).count();
    equal("winners", &winners, &1)?;
    for loser in ran.into_iter().filter(|r| r.status != Some(0)) {
        // Its job is not lost.
        let kept = loser.exits(64)?.says(&["cannot be used", "outputs and evidence are in"])?;
        let place = kept.stderr.trim_end().rsplit_once(" are in ").context("no place")?.1;
        let place = place.rsplit_once(" [").context("no code")?.0;
        ensure!(Path::new(place).join("outputs/x").exists(), "nothing is in {place}");
        ensure!(Path::new(place).join("evidence/x.intoto.jsonl").exists(), "no provenance is in {place}");
    }
    let result = crate::check::json(&lab.path("same/evidence/result.json"))?;
    equal("outcome", &result["outcome"], &serde_json::Value::from("succeeded"))?;
    ensure!(
        !tree(&lab.path(""))?.iter().any(|n| n.starts_with(".ampoule-")),
        "a half-made directory is left"
    );
    let next = lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?;
    ensure!(!next.stderr.contains("recovered"), "{}", next.stderr);
    Ok(())
}

fn out_unusable(lab: &Lab) -> Result<()> {
    let job = lab.job(&sh("a", "echo ran"))?;
    fs::create_dir(lab.path("empty"))?;
    std::os::unix::fs::symlink(lab.path("empty"), lab.path("link"))?;
    let run =
        |out: &Path| lab.ampoule().arg("run").arg(&job).arg("--state").arg(lab.state()).arg("--out").arg(out);
    for out in [lab.path("link"), lab.path("no/where"), Path::new("/proc/out").to_owned(), job.clone()] {
        let ran = run(&out).end()?.exits(64)?.says(&["file.unusable", "--out"])?;
        ensure!(!ran.stderr.contains("admitted"), "{}: the job has run", out.display());
    }
    let here =
        run(Path::new(".")).within(&lab.path("empty")).end()?.exits(64)?.says(&["no name of its own"])?;
    ensure!(!here.stderr.contains("admitted"), "the job has run");
    if lab.is_root() {
        // Every container has one.
        let script = "mount -t tmpfs tmpfs \"$1\" && exec \"$2\" run \"$3\" --state \"$4\" --out \"$1\"";
        let call = lab.call("unshare").args(["-m", "sh", "-c", script, "sh"]).arg(lab.path("empty"));
        let call = call.arg(lab.program("ampoule")).arg(&job).arg(lab.state());
        let ran = call.end()?.exits(64)?.says(&["it is a mount point"])?;
        ensure!(!ran.stderr.contains("admitted"), "the job has run");
    }
    Ok(())
}

fn out_like_before(lab: &Lab) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let out = lab.path("mine");
    fs::create_dir(&out)?;
    fs::set_permissions(&out, PermissionsExt::from_mode(0o700))?;
    let job = lab.job(&sh("a", "true"))?;
    lab.ampoule()
        .arg("run")
        .arg(job)
        .arg("--state")
        .arg(lab.state())
        .arg("--out")
        .arg(&out)
        .end()?
        .exits(0)?;
    equal("mode", &(fs::metadata(&out)?.permissions().mode() & 0o777), &0o700)
}

fn other_file_system(lab: &Lab) -> Result<()> {
    let base = tempfile::Builder::new().prefix("ampoule-it-").tempdir_in("/dev/shm").context("/dev/shm")?;
    let job = lab.job(&(sh("a", "echo x > /build/x") + &output("x", "/build/x")))?;
    let out = base.path().join("out");
    let call = lab.ampoule().arg("run").arg(&job).arg("--state").arg(lab.state());
    let mut ran = call.arg("--out").arg(&out).end()?;
    ran.out = out;
    ran.ended(&SUCCEEDED)?.verifies_output("x")?;
    // And the state directory on a tmpfs, as on many CI machines.
    let state = base.path().join("state");
    let mut ran = lab
        .ampoule()
        .arg("run")
        .arg(&job)
        .arg("--state")
        .arg(&state)
        .arg("--out")
        .arg(lab.path("o"))
        .end()?;
    (ran.out, ran.key) = (lab.path("o"), state.join("keys/development.pub"));
    ran.ended(&SUCCEEDED).map(drop)
}

/// Keys, `--out` for a file and for a directory of an output, and evidence below the state directory, each on a file system
/// of its own that is full.
fn full(lab: &Lab) -> Result<()> {
    let big = "mkdir /build/d; head -c 1000000 /dev/urandom > /build/d/f; cp /build/d/f /build/x";
    let (file, tree) = (output("x", "/build/x"), output("d", "/build/d"));
    let jobs = [&file, &tree].map(|what| lab.job(&(sh("a", big) + what)));
    let [file, tree] = jobs;
    let (file, tree) = (file?, tree?);
    let place = lab.path("full");
    fs::create_dir(&place)?;
    let call = |mounted: &Path, job: &Path, out: Option<&Path>, room: u32| -> Result<Ran> {
        let out = out.map(|out| format!("--out '{}'", out.display())).unwrap_or_default();
        let script = format!(
            "mount -t tmpfs -o mode=700,size={room}k tmpfs '{mounted}'
             [ {room} -gt 4 ] || head -c 4096 /dev/zero > '{mounted}/filler'
             exec '{ampoule}' run '{job}' --state '{state}' --sources '{sources}' {out}",
            mounted = mounted.display(),
            ampoule = lab.program("ampoule").display(),
            job = job.display(),
            state = lab.state().display(),
            sources = lab.sources().display(),
        );
        lab.call("unshare").args(["--mount", "--propagation", "private", "sh", "-euc", &script]).end()
    };
    for job in [&file, &tree] {
        let ran = call(&place, job, Some(&place.join("out")), 512)?.exits(75)?;
        let ran = ran.says(&["file.full", "--out", "outputs and evidence are in"])?;
        let kept = ran.stderr.trim_end().rsplit_once(" are in ").context("no place")?.1;
        let kept = Path::new(kept.rsplit_once(" [").context("no code")?.0);
        ensure!(kept.join("evidence/result.json").exists(), "nothing is in {}", kept.display());
    }
    // Not even a name has room.
    call(&place, &file, Some(&place.join("out")), 4)?.exits(75)?.says(&["file.full", "--out"])?;
    call(&lab.state().join("runs"), &file, None, 512)?
        .exits(75)?
        .says(&["file.full", "the output directory"])?;
    call(&lab.state().join("keys"), &file, None, 4)?.exits(75)?.says(&["file.full", "key"])?;
    // The job whose evidence had no room is signed by the next run.
    lab.run(&file).end()?.ended(&SUCCEEDED)?;
    equal("records", &fs::read_dir(lab.state().join("records"))?.count(), &1)
}
