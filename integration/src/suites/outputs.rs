//! Outputs: plain files, and never a byte of the host's. (Directories are beside this file.)

use super::imports::Small;
use super::store::{go_on, verifies};
use super::{output, probe, sh, with_probe};
use crate::check::{Ending, anything_holds, equal};
use crate::harness::Test;
use crate::lab::{Lab, tree};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

pub(super) const TESTS: &[Test] = &[
    Test::both("output_that_is_missing_is_named", missing),
    Test::both("output_that_is_no_plain_file_is_refused_by_name", refused),
    Test::both("output_with_a_set_user_id_bit_is_refused", set_id),
    Test::both("output_in_a_place_of_the_systems_is_refused_or_the_sandboxs", places),
    Test::both("hostile_output_paths_never_leak_bytes_of_the_host", leaks),
    Test::both("always_outputs_are_taken_out_of_a_failed_job", always),
    Test::both("first_output_that_fails_leaves_none_behind", partial),
    Test::both("output_of_many_megabytes_is_whole", large),
    Test::root("disk_that_fills_while_outputs_become_objects_leaves_no_part_of_one", filling),
];

const REFUSED: Ending = Ending("failed", "output.refused", 1);
const MISSING: Ending = Ending("failed", "output.missing", 1);

fn missing(lab: &Lab) -> Result<()> {
    let ran = lab.run_job(&(sh("a", "true") + &output("lib.a", "/build/none/lib.a")))?.ended(&MISSING)?;
    ran.says(&["lib.a", "/build/none/lib.a"]).map(drop)
}

fn refused(lab: &Lab) -> Result<()> {
    let script = "cd /build; echo x > plain; mkdir dir; echo x > dir/plain; mkfifo fifo; ln -s plain link; ln -s dir dirlink; \
                  /build/probe socket /build/socket";
    for (path, why) in [
        ("/build/link", "symbolic link"),
        ("/build/dirlink/plain", "symbolic link"),
        ("/build/fifo", "pipe"),
        ("/build/socket", "socket"),
        ("/dev/null", "device"),
        ("/dev/stdout", "link"),
    ] {
        let body = with_probe(lab)? + &sh("a", script) + &output("out", path);
        let ran = lab.run_job(&body)?.ended(&REFUSED).with_context(|| path.to_owned())?;
        equal("outputs", &tree(&ran.out.join("outputs"))?, &Vec::new())?;
        ran.says(&["output out at", path, why])?;
    }
    Ok(())
}

/// A step cannot make such a file; one of an image's can be declared.
fn set_id(lab: &Lab) -> Result<()> {
    let ran = lab.run_job(&sh("a", "cd /build; echo x > f; chmod 4755 f"))?;
    ran.ended(&Ending("failed", "step.exit_nonzero", 1))?;
    let programs = ["/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "/usr/bin/chsh"];
    let is_set = |path: &&&str| std::fs::metadata(path).is_ok_and(|m| m.permissions().mode() & 0o6000 != 0);
    let Some(program) = programs.iter().find(is_set) else {
        return crate::harness::skip("no program of this host has the bit");
    };
    let ran = lab.run_job(&(sh("a", "true") + &output("su", program)))?.ended(&REFUSED)?;
    ran.says(&["set-user-id"]).map(drop)
}

fn places(lab: &Lab) -> Result<()> {
    for path in ["/proc/self/environ", "/proc/version", "/proc/1/environ", "/etc/shadow", "/root"] {
        let ran = lab.run_job(&(sh("a", "true") + &output("x", path)))?;
        let code = ran.result()?["code"].as_str().unwrap_or_default().to_owned();
        let ending = if code == "output.missing" { MISSING } else { REFUSED };
        ran.ended(&ending).with_context(|| path.to_owned())?;
    }
    Ok(())
}

fn leaks(lab: &Lab) -> Result<()> {
    let canary = lab.write("canary/file", lab.token())?;
    let host = canary.display().to_string();
    let dir = lab.path("canary").display().to_string();
    let cases = [
        (format!("ln -s {host} /build/x"), "/build/x"),
        (format!("ln -s {dir} /build/d"), "/build/d/file"),
        ("ln -s / /build/d".to_owned(), "/build/d/etc/shadow"),
        ("ln -s /proc/1/root /build/d".to_owned(), "/build/d/etc/shadow"),
        ("ln -s /proc/self/cwd /build/d".to_owned(), "/build/d/x"),
        (format!("mkdir -p /build/up; ln -s ../../../../../../../..{dir} /build/up/d"), "/build/up/d/file"),
        (format!("mkdir -p /tmp{dir}; ln -s {host} /tmp{host}"), "/tmp/x"),
    ];
    for (script, path) in cases {
        let ran = lab.run_job(&(sh("a", &script) + &output("x", path)))?;
        let code = ran.result()?["code"].as_str().unwrap_or_default().to_owned();
        let ending = if code == "output.missing" { MISSING } else { REFUSED };
        let ran = ran.ended(&ending).with_context(|| path.to_owned())?;
        for place in [&ran.out, &lab.state()] {
            let found = anything_holds(place, lab.token().as_bytes())?;
            ensure!(found.is_none(), "{path}: bytes of the host in {found:?}");
        }
    }
    Ok(())
}

fn always(lab: &Lab) -> Result<()> {
    let body = with_probe(lab)?
        + &sh("a", "echo report > /build/r.xml; echo x > /build/x; exit 5")
        + &(output("r.xml", "/build/r.xml") + "when = \"always\"\nkind = \"report\"\n")
        + &(output("none.xml", "/build/none.xml") + "when = \"always\"\n")
        + &output("x", "/build/x");
    let ran = lab.run_job(&body)?.ended(&Ending("failed", "step.exit_nonzero", 1))?;
    equal("outputs", &tree(&ran.out.join("outputs"))?, &vec!["r.xml".to_owned()])?;
    equal("report", &ran.output_text("r.xml")?, &"report\n".to_owned())?;
    let statement = ran.statement("run.intoto.jsonl")?;
    equal("attested", &statement["predicate"]["outputs"][0]["name"], &serde_json::Value::from("r.xml"))?;
    let late = with_probe(lab)?
        + &sh("a", "echo r > /build/r; sleep 600")
        + "timeout = \"1s\"\n"
        + &(output("r", "/build/r") + "when = \"always\"\n")
        + &probe("b", &["self"]);
    let ran = lab.run_job(&late)?.ended(&Ending("timed_out", "limit.timeout", 1))?;
    equal("output of a job that timed out", &ran.output_text("r")?, &"r\n".to_owned())
}

fn partial(lab: &Lab) -> Result<()> {
    let body = sh("a", "echo x > /build/x") + &output("x", "/build/x") + &output("y", "/build/y");
    let ran = lab.run_job(&body)?.ended(&MISSING)?;
    // An artifact of a job that failed may be looked at, but it is never signed for.
    let statement = ran.statement("run.intoto.jsonl")?;
    let subjects = statement["subject"].to_string();
    ensure!(!subjects.contains("\"x\""), "the artifact of a failed job is a subject: {subjects}");
    let released = tree(&ran.out.join("outputs"))?;
    ensure!(
        released.is_empty(),
        "an artifact with `when = success` is released from a failed job: {released:?}"
    );
    Ok(())
}

fn large(lab: &Lab) -> Result<()> {
    let body = sh("a", "dd if=/dev/urandom of=/build/big bs=1M count=24 2>/dev/null; sha256sum /build/big")
        + &output("big", "/build/big");
    let ran = lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))?;
    let digest = crate::check::sha256(&ran.output("big")?);
    ensure!(ran.log_text("0-a.stdout")?.starts_with(&digest), "the output is not what the step wrote");
    ran.verifies_output("big")
}

/// The state directory on disks that have less and less room when the outputs are taken out: the job says why it failed or
/// has all of them, and the store has whole objects alone.
fn filling(lab: &Lab) -> Result<()> {
    // A file, and a tree of 64 files: a mebibyte, and some for names and records.
    let script = "mkdir /build/d; for n in $(seq 64); do head -c 8192 /dev/urandom > /build/d/$n; done
                  head -c 524288 /dev/urandom > /build/x; sync";
    let mut ended = BTreeMap::<i32, u32>::new();
    for room in (0..16_u64).map(|level| level * 100_000) {
        let small = Small::mount(&lab.state(), "size=96m,mode=0700")?;
        let marker = lab.marker();
        let body = sh("a", &format!("{script}; sleep {marker} || true")) + &output("d", "/build/d");
        let mut live = lab.run(&lab.job(&(body + &output("x", "/build/x")))?).start()?;
        live.until_runs(&format!("sleep {marker}"))?;
        let free = rustix::fs::statvfs(lab.state())?;
        let filler = fs::File::create(lab.state().join("filler"))?;
        let taken = (free.f_bavail * free.f_frsize).saturating_sub(room);
        rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, taken)?;
        go_on(&marker)?;
        let ran = live.end()?;
        fs::remove_file(lab.state().join("filler"))?;
        let code = ran.status.context("it was killed")?;
        *ended.entry(code).or_default() += 1;
        match code {
            0 => {
                equal("files", &tree(&ran.out.join("outputs/d"))?.len(), &64)?;
                ran.verifies_output("x")?;
            }
            75 => drop(ran.says(&["store.full", "ampoule store gc"])?),
            _ => anyhow::bail!("with room for {room} bytes: {code}, {}", ran.stderr),
        }
        // What the next run finds is swept, so that nothing but whole objects is there.
        lab.run_job(&(sh("a", "echo x > /build/x") + &output("x", "/build/x")))?.ended(&Ending(
            "succeeded",
            "",
            0,
        ))?;
        verifies(lab)?;
        drop(small);
    }
    println!("outputs: exits of jobs on disks that fill: {ended:?}");
    ensure!(
        ended.values().all(|count| *count >= 4) && ended.len() == 2,
        "not both were met often: {ended:?}"
    );
    Ok(())
}
