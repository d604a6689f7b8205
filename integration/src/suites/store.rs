//! What the store promises: what is mounted is what its name says, before a job and after it; what somebody needs stays;
//! a full disk holds up imports and no record.

use super::{input, output, sh};
use crate::check::{Ending, Ran, equal};
use crate::faulty::Faulty;
use crate::harness::{Test, skip};
use crate::image::{self, Entry};
use crate::lab::{Call, Lab, tree};
use crate::procs;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("collection_killed_at_any_point_loses_nothing", killed_collection),
    Test::both("damaged_object_is_moved_aside_and_taken_in_anew_by_the_same_run", damaged),
    Test::both("object_that_changes_under_a_job_has_no_provenance", changed),
    Test::root("bytes_that_a_disk_lost_are_found_by_a_sample", lost_bytes),
    Test::root("profile_that_says_always_reads_every_byte", always),
    Test::root("package_list_that_changes_under_a_job_has_no_provenance", packages),
    Test::root("file_of_the_host_that_changes_under_a_job_has_no_provenance", host_files),
    Test::both("collection_leaves_what_a_job_uses", collection_beside_a_job),
    Test::root("collection_leaves_what_an_orphaned_job_uses", orphan),
    Test::both("collection_leaves_what_kept_evidence_needs", kept),
    Test::both("store_commands_say_what_is_there_and_what_is_damaged", commands),
    Test::root("full_disk_refuses_imports_and_keeps_records", full_disk),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
const CHANGED: Ending = Ending("aborted", "input.changed", 70);

/// The trees of the store that have a file of this name, and the file in each.
fn stored(lab: &Lab, name: &str) -> Result<Vec<PathBuf>> {
    let trees = lab.state().join("store/trees");
    let found = tree(&trees)?.into_iter().filter(|path| {
        let mut parts = path.splitn(3, '/').skip(1);
        parts.next() == Some("tree") && parts.next() == Some(name)
    });
    Ok(found.map(|path| trees.join(path)).collect())
}

fn the_stored(lab: &Lab, name: &str) -> Result<PathBuf> {
    let mut found = stored(lab, name)?;
    ensure!(found.len() == 1, "{name} is in {found:?}");
    found.pop().context("none")
}

fn store<'l>(lab: &'l Lab<'l>, args: &[&str]) -> Call<'l> {
    lab.ampoule().arg("store").args(args).arg("--state").arg(lab.state())
}

/// The one object that a store command says on standard output.
fn said(ran: &Ran) -> Result<Value> {
    ran.json_lines()?.pop().context("it said nothing")
}

fn collect_all(lab: &Lab) -> Result<Value> {
    said(&store(lab, &["gc", "--max-size", "1B", "--json"]).end()?.exits(0)?)
}

pub(super) fn verifies(lab: &Lab) -> Result<()> {
    let result = said(&store(lab, &["verify", "--json"]).end()?.exits(0)?)?;
    ensure!(result["objects"].as_u64() > Some(0), "nothing was read: {result}");
    equal("damaged", &result["damaged"], &Value::from(0))
}

fn quarantined(lab: &Lab) -> Result<usize> {
    Ok(fs::read_dir(lab.state().join("store/quarantine"))?.count())
}

/// A job over a directory and an archive, which copies both out.
fn two_inputs(lab: &Lab) -> Result<PathBuf> {
    lab.write("src/a", "from the directory\n")?;
    let archive = image::tar(&[Entry::Dir("d"), Entry::File("d/b", 0o644, b"from the archive\n")])?;
    let file = lab.write("b.tar", &archive)?;
    let packed =
        format!("tar = {{ path = '{}', sha256 = \"{}\" }}", file.display(), crate::check::sha256(&archive));
    let body = input("src", &format!("path = '{}'", lab.path("src").display()), "/build/src", false)
        + &input("packed", &packed, "/build/packed", false)
        + &sh("a", "cat /build/src/a /build/packed/d/b > /build/x")
        + &output("x", "/build/x");
    lab.job(&body)
}

const BOTH: &str = "from the directory\nfrom the archive\n";

fn damaged(lab: &Lab) -> Result<()> {
    let job = two_inputs(lab)?;
    lab.run(&job).end()?.ended(&SUCCEEDED)?;
    for (name, count) in [("a", 1), ("d/b", 2)] {
        fs::write(the_stored(lab, name)?, "poison\n")?;
        let ran = lab.run(&job).end()?.ended(&SUCCEEDED)?;
        equal("output", &ran.output_text("x")?, &BOTH.to_owned())?;
        equal("quarantined", &quarantined(lab)?, &count)?;
        let report = ran.report()?;
        let reread = report["reread"].as_array().context("nothing was read back")?;
        equal("read back", &reread.len(), &3)?;
        if name == "d/b" {
            // The directory's tree was there already when the same tree came again: the import took its place.
            ran.says(&["was damaged", "it is in quarantine"])?;
            equal("in the report", &report["damaged"].as_array().map_or(0, Vec::len), &1)?;
        }
    }
    // An index entry that cannot be read.
    for entry in fs::read_dir(lab.state().join("store/index"))?.flatten() {
        fs::write(entry.path(), "rubbish")?;
    }
    let ran = lab.run(&job).end()?.ended(&SUCCEEDED)?;
    equal("output", &ran.output_text("x")?, &BOTH.to_owned())?;
    verifies(lab)
}

/// A job that waits while something is done to the host.
fn waiting<'l>(lab: &'l Lab<'l>, job: &Path, marker: &str) -> Result<crate::lab::Live<'l>> {
    let mut live = lab.run(job).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    Ok(live)
}

/// Ends the step's `sleep`, so that the job goes on.
pub(super) fn go_on(marker: &str) -> Result<()> {
    for process in procs::with_args(&format!("sleep {marker}")) {
        if process.comm == "sleep" {
            procs::signal(process.pid, Signal::TERM)?;
        }
    }
    Ok(())
}

fn waiting_job(lab: &Lab, marker: &str) -> Result<PathBuf> {
    lab.write("src/a", "original\n")?;
    lab.write("src/other", "untouched\n")?;
    let body = input("src", &format!("path = '{}'", lab.path("src").display()), "/build/src", false)
        + &sh("a", &format!("cat /build/src/other > /build/x; sleep {marker} || true"))
        + &output("x", "/build/x");
    lab.job(&body)
}

fn changed(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let job = waiting_job(lab, &marker)?;
    let live = waiting(lab, &job, &marker)?;
    fs::write(the_stored(lab, "a")?, "poison\n")?;
    go_on(&marker)?;
    let ran =
        live.end()?.ended(&CHANGED)?.says(&["input src was changed on the host while the job used it"])?;
    ensure!(!ran.out.join("outputs/x").exists(), "an output was released");
    let report = ran.report()?;
    let src = &report["reread"][1];
    equal("what", &src["what"], &Value::from("input src"))?;
    equal("unchanged", &src["unchanged"], &Value::from(false))?;
    // The next job has the input as it was, and the damaged object is aside.
    let live = waiting(lab, &job, &marker)?;
    go_on(&marker)?;
    live.end()?.ended(&SUCCEEDED)?;
    equal("quarantined", &quarantined(lab)?, &1)?;
    // Only the times: everything is read, and nothing is wrong.
    let live = waiting(lab, &job, &marker)?;
    let file = the_stored(lab, "a")?;
    let time = fs::metadata(&file)?.modified()?;
    fs::File::open(&file)?.set_modified(time)?;
    go_on(&marker)?;
    let ran = live.end()?.ended(&SUCCEEDED)?;
    equal("how", &ran.report()?["reread"][1]["how"], &Value::from("all"))?;
    verifies(lab)
}

/// Has a command run with a file system of its own in the place of the state directory, which nobody else sees.
fn over<'l>(lab: &Lab, call: Call<'l>, mount: &str) -> Call<'l> {
    let script = format!("mount {mount} '{0}' && chmod 700 '{0}' && \"$@\"", lab.state().display());
    call.through("unshare", &["--mount", "--propagation", "private", "sh", "-euc", &script, "sh"])
}

fn disk_image(lab: &Lab, bytes: u64) -> Result<PathBuf> {
    let disk = lab.path("disk");
    fs::File::create(&disk)?.set_len(bytes)?;
    lab.call("mkfs.ext4").args(["-q", "-F"]).arg(&disk).end()?.exits(0)?;
    fs::create_dir_all(lab.state())?;
    Ok(disk)
}

fn lost_bytes(lab: &Lab) -> Result<()> {
    let disk = disk_image(lab, 96 << 20)?;
    let mount = format!("-o loop '{}'", disk.display());
    let secret = format!("bytes that are nowhere else {}\n", lab.token());
    let archive = image::tar(&[Entry::File("f", 0o644, secret.as_bytes())])?;
    // Compressed, so that the disk has the bytes once.
    let packed = image::gzip(&archive)?;
    let file = lab.write("f.tar.gz", &packed)?;
    let source =
        format!("tar = {{ path = '{}', sha256 = \"{}\" }}", file.display(), crate::check::sha256(&packed));
    let body = input("src", &source, "/build/src", false)
        + &sh("a", "sha256sum < /build/src/f | cut -c1-64 > /build/x")
        + &output("x", "/build/x");
    let job = lab.job(&body)?;
    let digest = format!("{}\n", crate::check::sha256(secret.as_bytes()));
    let first = over(lab, lab.run(&job), &mount).end()?.exits(0)?;
    equal("output", &first.output_text("x")?, &digest)?;
    let mut bytes = fs::read(&disk)?;
    let mut places = Vec::new();
    let mut from = 0;
    while let Some(at) = find(bytes.get(from..).unwrap_or_default(), secret.as_bytes()) {
        places.push(from + at);
        from += at + 1;
    }
    ensure!(!places.is_empty(), "the disk does not have the file's bytes");
    for place in places {
        if let Some(byte) = bytes.get_mut(place) {
            *byte ^= 1;
        }
    }
    fs::write(&disk, bytes)?;
    let again = over(lab, lab.run(&job), &mount).end()?.exits(0)?.says(&["was damaged"])?;
    equal("output", &again.output_text("x")?, &digest)?;
    equal("in the report", &again.report()?["damaged"].as_array().map_or(0, Vec::len), &1)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The hermetic profile, with another way to read back.
fn reading_back(lab: &Lab, policy: &str) -> Result<()> {
    let hermetic = fs::read(lab.repository("sandbox-profiles/compiled/hermetic.json"))?;
    let mut profile: Value = serde_json::from_slice(&hermetic)?;
    profile["read_back"] = policy.into();
    lab.write("profiles/hermetic.json", profile.to_string()).map(drop)
}

fn always(lab: &Lab) -> Result<()> {
    reading_back(lab, "always")?;
    let job = two_inputs(lab)?;
    let with = |call: Call<'_>| -> Result<Ran> { call.arg("--profiles").arg(lab.path("profiles")).end() };
    let ran = with(lab.run(&job))?.ended(&SUCCEEDED)?;
    let report = ran.report()?;
    let how: Vec<_> =
        report["reread"].as_array().into_iter().flatten().filter_map(|one| one["how"].as_str()).collect();
    equal("how", &how, &vec!["host_times", "all", "all"])?;
    reading_back(lab, "never")?;
    with(lab.run(&job))?.exits(69)?.says(&["profile hermetic is malformed"]).map(drop)
}

fn packages(lab: &Lab) -> Result<()> {
    const LIST: &str = "/var/lib/dpkg/status";
    if !Path::new(LIST).exists() {
        return skip(format!("{LIST} is not there"));
    }
    let list = lab.path("status");
    fs::copy(LIST, &list)?;
    let marker = lab.marker();
    let job = lab
        .job(&(sh("a", &format!("echo x > /build/x; sleep {marker} || true")) + &output("x", "/build/x")))?;
    let script = format!("mount --bind '{}' {LIST} && \"$@\"", list.display());
    let run = || {
        lab.run(&job)
            .through("unshare", &["--mount", "--propagation", "private", "sh", "-euc", &script, "sh"])
    };
    let mut live = run().start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    go_on(&marker)?;
    let ran = live.end()?.ended(&SUCCEEDED)?;
    equal("what", &ran.report()?["reread"][0]["what"], &Value::from("host"))?;
    let mut live = run().start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    let mut changed = fs::read(&list)?;
    changed.extend_from_slice(b"\nPackage: planted\nVersion: 1\n");
    fs::write(&list, changed)?;
    go_on(&marker)?;
    let ran = live.end()?.ended(&CHANGED)?.says(&["packages of the host"])?;
    equal("unchanged", &ran.report()?["reread"][0]["unchanged"], &Value::from(false))
}

/// Over a `/usr` of the runner's own mount namespace, so that the machine's is left alone.
fn host_files(lab: &Lab) -> Result<()> {
    reading_back(lab, "always")?;
    let marker = lab.marker();
    let job = lab
        .job(&(sh("a", &format!("echo x > /build/x; sleep {marker} || true")) + &output("x", "/build/x")))?;
    // An overlay could not be id-mapped, so it is a small copy.
    let copy = lab.path("copy");
    let script = format!(
        "mkdir '{0}' && mount -t tmpfs copy '{0}' && for program in /usr/bin/sh /usr/bin/sleep '{1}' '{2}'; do \
         cp -L --parents \"$program\" '{0}'; ldd \"$program\" | grep -o '/[^ ]*' | xargs cp -L --parents -t '{0}'; done && \
         mkdir -p '{0}/usr/share' && cp -a '{0}'/lib* '{0}/usr' && echo old > '{0}/usr/share/planted' && sleep 0.1 && \
         mount --bind '{0}/usr' /usr && \"$@\"",
        copy.display(),
        lab.program("ampoule").display(),
        lab.program("ampoule-runner").display()
    );
    for (change, status) in [(false, &SUCCEEDED), (true, &CHANGED)] {
        let call = lab.run(&job).arg("--profiles").arg(lab.path("profiles"));
        let mut live = call
            .through("unshare", &["--mount", "--propagation", "private", "sh", "-euc", &script, "sh"])
            .start()?;
        live.until_runs(&format!("sleep {marker}"))?;
        if change {
            fs::write(format!("/proc/{}/root/usr/share/planted", live.pid()), "changed")?;
        }
        go_on(&marker)?;
        let ran = live.end()?.ended(status)?;
        fs::remove_dir(&copy)?;
        let host = &ran.report()?["reread"][0];
        equal("how", &(&host["how"], &host["unchanged"]), &(&"host_times".into(), &(!change).into()))?;
        ensure!(host["files"].as_u64().is_some_and(|files| files > 5), "too few files: {host}");
        if change {
            ran.says(&["/usr/share/planted was changed on the host"])?;
        }
    }
    Ok(())
}

fn collection_beside_a_job(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let job = waiting_job(lab, &marker)?;
    let live = waiting(lab, &job, &marker)?;
    let done = collect_all(lab)?;
    equal("removed", &done["removed"], &Value::from(0))?;
    ensure!(stored(lab, "a")?.len() == 1, "the input is gone: {done}");
    go_on(&marker)?;
    live.end()?.ended(&SUCCEEDED)?;
    let done = collect_all(lab)?;
    // And what the job has made.
    equal("removed afterwards", &done["removed"], &Value::from(2))?;
    ensure!(stored(lab, "a")?.is_empty(), "the input is still there: {done}");
    // A job that was collected is run again.
    let live = waiting(lab, &job, &marker)?;
    go_on(&marker)?;
    live.end()?.ended(&SUCCEEDED).map(drop)
}

fn orphan(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let job = waiting_job(lab, &marker)?;
    let live = waiting(lab, &job, &marker)?;
    // The client stands still, so that the job's lifetime pipe stays open, and its launcher is gone.
    live.signal(Signal::STOP)?;
    let client = live.pid();
    let launcher =
        procs::all().into_iter().find(|p| p.parent == client && p.comm.starts_with("ampoule-runne"));
    procs::signal(launcher.context("no launcher")?.pid, Signal::KILL)?;
    let done = collect_all(lab)?;
    equal("removed", &done["removed"], &Value::from(0))?;
    ensure!(stored(lab, "a")?.len() == 1, "the input is gone: {done}");
    live.signal(Signal::CONT)?;
    live.end()?;
    lab.leaves_jobs();
    Ok(())
}

fn kept(lab: &Lab) -> Result<()> {
    let job = two_inputs(lab)?;
    let run = |job: &Path| lab.ampoule().arg("run").arg(job).arg("--state").arg(lab.state()).end();
    run(&job)?.exits(0)?;
    let runs = lab.state().join("runs");
    let evidence: Vec<_> = fs::read_dir(&runs)?.flatten().map(|e| e.path()).collect();
    equal("runs", &evidence.len(), &1)?;
    let stat = said(&store(lab, &["stat", "--json"]).end()?.exits(0)?)?;
    equal("kept", &stat["kept"], &Value::from(2))?;
    let done = collect_all(lab)?;
    // What the job has made is not kept: it was released.
    equal("kept by the collection", &(&done["removed"], &done["kept"]), &(&1.into(), &2.into()))?;
    // What cannot be read keeps everything.
    let list = lab.state().join("kept").join(evidence[0].file_name().context("a name")?);
    let good = fs::read(&list)?;
    fs::write(&list, "{}")?;
    store(lab, &["gc", "--max-size", "1B"]).end()?.exits(70)?.says(&["kept/", "remove that file"])?;
    fs::write(&list, good)?;
    fs::remove_dir_all(&evidence[0])?;
    let done = collect_all(lab)?;
    equal("removed without evidence", &done["removed"], &Value::from(2))?;
    ensure!(!list.exists(), "the list of what was kept is still there");
    Ok(())
}

fn commands(lab: &Lab) -> Result<()> {
    for asked in ["stat", "verify", "gc"] {
        store(lab, &[asked]).end()?.exits(64)?.says(&["file.unusable", "has no store", "--state"])?;
    }
    ensure!(!lab.state().exists(), "asking about a store has made one");
    lab.run(&two_inputs(lab)?).end()?.ended(&SUCCEEDED)?;
    let stat = said(&store(lab, &["stat", "--json"]).end()?.exits(0)?)?;
    // Both inputs, and the output, which is as long as they are together.
    equal("objects", &(&stat["objects"], &stat["bytes"]), &(&3.into(), &(2 * BOTH.len() as u64).into()))?;
    equal("kinds", &stat["kinds"].as_array().map_or(0, Vec::len), &3)?;
    verifies(lab)?;
    let dry = said(&store(lab, &["gc", "--max-size", "1B", "--dry-run", "--json"]).end()?.exits(0)?)?;
    equal("would remove", &dry["removed"], &Value::from(3))?;
    equal("still there", &stored(lab, "a")?.len(), &1)?;

    fs::write(the_stored(lab, "d/b")?, "poison\n")?;
    let archive = crate::check::sha256(&fs::read(lab.path("b.tar"))?);
    let found = store(lab, &["verify", &archive]).end()?.exits(2)?;
    let found = found.says(&["1 objects", "its digest is", &format!("archive-{archive}"), "--quarantine"])?;
    ensure!(found.stdout.is_empty(), "stdout is for data: {}", found.stdout_text());
    store(lab, &["verify", &"0".repeat(64)]).end()?.exits(64)?.says(&["input.missing"])?;
    store(lab, &["verify", "not-a-digest"]).end()?.exits(64)?.says(&["not-a-digest", "[usage]"])?;
    store(lab, &["gc", "--max-size", "many"]).end()?.exits(64)?.says(&["--max-size"])?;
    let found = store(lab, &["verify", "--quarantine", "--json"]).end()?.exits(2)?;
    let lines = found.json_lines()?;
    let damaged: Vec<_> = lines.iter().filter(|line| line["damage"].is_string()).collect();
    equal("damaged", &damaged.len(), &1)?;
    equal("in quarantine", &damaged[0]["quarantined"], &Value::from(true))?;
    equal("quarantined", &quarantined(lab)?, &1)?;
    verifies(lab)
}

/// One killed collection after another, until one meets no point any more; whatever is found afterwards is whole.
fn killed_collection(lab: &Lab) -> Result<()> {
    let faulty = Faulty::install(lab)?;
    let mut number = 1;
    let (mut died, mut most) = (0, 0);
    loop {
        ensure!(number < 200, "there is no end of points");
        let job = two_inputs(lab)?;
        faulty.ask("weak")?;
        lab.run(&job).end()?.ended(&SUCCEEDED)?;
        faulty.fault("launcher", number, "die")?;
        let ran = faulty.call("store").args(["gc", "--max-size", "1B", "--state"]).arg(lab.state()).end()?;
        if faulty.fired() == 0 {
            ran.exits(0)?;
            break;
        }
        died += 1;
        ensure!(ran.status != Some(0), "it said that all is well, and died at point {number}");
        let lying = fs::read_dir(lab.state().join("store/staging"))?.count();
        let stat = said(&store(lab, &["stat", "--json"]).end()?.exits(0)?)?;
        equal("swept", &stat["swept"], &Value::from(lying))?;
        most = most.max(lying);
        let left = said(&store(lab, &["verify", "--json"]).end()?.exits(0)?)?;
        equal("damaged", &left["damaged"], &Value::from(0)).with_context(|| format!("point {number}"))?;
        lab.run(&job).end()?.ended(&SUCCEEDED).with_context(|| format!("point {number}"))?;
        number += procs::stride();
    }
    ensure!(died >= 5 && most > 0, "only {died} points, of which none left anything");
    equal("left", &said(&store(lab, &["stat", "--json"]).end()?)?["objects"], &Value::from(0))
}

fn full_disk(lab: &Lab) -> Result<()> {
    let disk = disk_image(lab, 256 << 20)?;
    let marker = lab.marker();
    let job = lab.job(
        &(sh(
            "a",
            &format!(
                "echo x > /build/x; sleep {marker} || true; head -c 3000000 /dev/zero | tr '\\0' y; echo end"
            ),
        ) + &output("x", "/build/x")),
    )?;
    lab.write("big", vec![b'x'; 300 << 20])?;
    lab.write("small", "s")?;
    let over_file = |name: &str| {
        let source = format!("path = '{}'", lab.path(name).display());
        lab.job(&(input("in", &source, "/build/in", false) + &sh("a", "true")))
    };
    let (big, small) = (over_file("big")?, over_file("small")?);
    // All in one place that sees the disk: a job that runs, a disk that fills, imports that are refused, the job's end.
    let ampoule = lab.program("ampoule");
    let script = format!(
        "mount -o loop '{disk}' '{state}'; chmod 700 '{state}'
         run() {{ '{ampoule}' run \"$1\" --state '{state}' --out \"$2\"; }}
         run '{job}' '{out}-job' 2> '{out}-said' & job=$!
         until test -e '{out}-go'; do sleep 0.1; done
         code=0; run '{big}' '{out}-big' || code=$?; echo big $code
         free=$(($(stat -f -c '%a*%S' '{state}')))
         fallocate -l $((free - 40000000)) '{state}/filler'
         code=0; run '{small}' '{out}-small' || code=$?; echo small $code
         ls -A '{state}/store/staging' | wc -l
         touch '{out}-refused'
         code=0; wait $job || code=$?; echo job $code
         rm '{state}/filler'
         code=0; run '{small}' '{out}-again' || code=$?; echo again $code",
        disk = disk.display(),
        state = lab.state().display(),
        ampoule = ampoule.display(),
        job = job.display(),
        big = big.display(),
        small = small.display(),
        out = lab.path("full").display(),
    );
    let mut live =
        lab.call("unshare").args(["--mount", "--propagation", "private", "sh", "-euc", &script]).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    lab.write("full-go", "")?;
    let refused = lab.path("full-refused");
    procs::eventually(Duration::from_secs(60), "the imports are refused", || refused.exists())?;
    go_on(&marker)?;
    let ran = live.end()?.exits(0)?;
    equal("exits", &ran.stdout_text(), &"big 75\nsmall 75\n0\njob 0\nagain 0\n".to_owned())
        .with_context(|| ran.stderr.clone())?;
    let ran = ran.says(&["store.full", "ampoule store gc"])?;
    equal("refusals", &ran.stderr.matches("[store.full]").count(), &2)?;
    let log = fs::read(lab.path("full-job/evidence/logs/0-a.stdout"))?;
    equal("the job's log", &log.len(), &3_000_004)?;
    let report: Value = serde_json::from_slice(&fs::read(lab.path("full-job/evidence/report.json"))?)?;
    equal("the job's outcome", &report["outcome"], &Value::from("succeeded"))
}
