//! Outputs that are directories: as trees and as archives, whole or not at all, and never a byte of the host's.

use super::{input, output, sh, with_probe};
use crate::check::{Ending, Ran, anything_holds, equal, sha256, verify};
use crate::harness::Test;
use crate::lab::{Lab, mode_of, tree};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

pub(super) const TESTS: &[Test] = &[
    Test::both("directory_leaves_as_a_tree_that_verifies", as_tree),
    Test::both("tree_that_was_changed_does_not_verify", changed),
    Test::both("directory_leaves_as_a_reproducible_archive", as_archive),
    Test::both("archive_of_a_directory_is_an_input_by_its_provenance", again),
    Test::both("form_that_was_asked_for_leaves_or_nothing", forms),
    Test::both("hostile_directory_is_refused_by_name_and_leaks_nothing", hostile),
    Test::both("limits_of_outputs_hold_for_directories", limits),
    Test::both("when_kind_and_optional_hold_for_directories", options),
    Test::both("compressor_has_no_privilege_and_its_death_fails_the_job", compressor),
    Test::both("umask_of_the_caller_leaves_a_tree_that_verifies", umask),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
const REFUSED: Ending = Ending("failed", "output.refused", 1);
const MISSING: Ending = Ending("failed", "output.missing", 1);

/// A directory with everything that may leave.
const MAKE: &str = "mkdir -p /build/dist/lib/deep/empty /build/dist/bin; cd /build/dist; \
    head -c 300000 /dev/zero > lib/libx.so.1; echo code >> lib/libx.so.1; ln -s libx.so.1 lib/libx.so; \
    ln -s ../../bin/tool lib/deep/up; printf '#!/bin/sh\\necho works\\n' > bin/tool; chmod 700 bin/tool; \
    echo secret > private; chmod 600 private; ln private 'hard link'; ln -s nowhere dangling; \
    echo n > \"$(printf 'new\\nline')\"; chmod 500 lib/deep/empty";

fn form(name: &str) -> String {
    format!("form = \"{name}\"\n")
}

fn as_tree(lab: &Lab) -> Result<()> {
    let body =
        "source_date_epoch = 1600000000\n".to_owned() + &sh("a", MAKE) + &output("dist", "/build/dist");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let dist = ran.out.join("outputs/dist");
    let names = [
        "bin/tool",
        "dangling",
        "hard link",
        "lib/deep/empty/",
        "lib/deep/up",
        "lib/libx.so",
        "lib/libx.so.1",
        "new\nline",
        "private",
    ];
    equal("names", &tree(&dist)?, &names.map(str::to_owned).to_vec())?;
    equal("link", &fs::read_link(dist.join("lib/libx.so"))?, &Path::new("libx.so.1").to_owned())?;
    equal("bytes", &fs::metadata(dist.join("lib/libx.so.1"))?.len(), &300_005)?;
    equal("names of one file", &fs::metadata(dist.join("private"))?.nlink(), &1)?;
    for (path, mode) in [("bin/tool", 0o755), ("private", 0o644), ("lib/deep/empty", 0o755), (".", 0o755)] {
        equal(path, &mode_of(&dist.join(path))?, &mode)?;
        equal(path, &fs::symlink_metadata(dist.join(path))?.mtime(), &1_600_000_000)?;
    }
    lab.call(dist.join("bin/tool")).end()?.exits(0)?;
    ran.verifies_output("dist")?;
    let statement = ran.statement("dist.intoto.jsonl")?;
    let subject = &statement["subject"][0];
    equal("media type", &subject["mediaType"], &Value::from("application/vnd.ampoule.tree.v1"))?;
    let report = ran.report()?;
    let entry = &report["outputs"][0];
    equal("report", &(&entry["form"], &entry["entries"]), &(&Value::from("tree"), &Value::from(12)))?;
    equal("digest", &subject["digest"]["sha256"], &entry["sha256"])?;
    ran.says(&["output dist: a tree of 12 entries, "]).map(drop)?;
    // It is the digest that the same directory has as an input.
    let again = input("dist", &format!("path = '{}'", dist.display()), "/build/dist", false)
        + &sh("a", "/build/dist/bin/tool > /build/x")
        + &output("x", "/build/x");
    let next = lab.run_job(&again)?.ended(&SUCCEEDED)?;
    let dependency =
        &next.statement("x.intoto.jsonl")?["predicate"]["buildDefinition"]["resolvedDependencies"][1];
    equal("as an input", &dependency["digest"], &subject["digest"])
}

fn changed(lab: &Lab) -> Result<()> {
    let body = sh("a", MAKE) + &output("dist", "/build/dist");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let dist = ran.out.join("outputs/dist");
    let attestation = ran.evidence("dist.intoto.jsonl");
    let refused = |what: &str| -> Result<()> {
        let (status, said) = verify(&ran.program, &dist, &attestation, &ran.key, &[])?;
        ensure!(status == Some(2) && said.contains("refused"), "{what}: {status:?} {said}");
        Ok(())
    };
    let path = |name: &str| dist.join(name);
    fs::write(path("private"), "secreT\n")?;
    refused("a byte")?;
    fs::write(path("private"), "secret\n")?;
    ran.verifies_output("dist")?;
    fs::set_permissions(path("private"), fs::Permissions::from_mode(0o744))?;
    refused("an executable bit")?;
    fs::set_permissions(path("private"), fs::Permissions::from_mode(0o600))?;
    ran.verifies_output("dist")?;
    fs::write(path("more"), "")?;
    refused("a name more")?;
    fs::remove_file(path("more"))?;
    fs::remove_file(path("dangling"))?;
    refused("a name less")?;
    symlink("elsewhere", path("dangling"))?;
    refused("another target")?;
    fs::remove_file(path("dangling"))?;
    symlink("nowhere", path("dangling"))?;
    fs::rename(path("bin/tool"), path("bin/tool2"))?;
    refused("another name")?;
    fs::rename(path("bin/tool2"), path("bin/tool"))?;
    ran.verifies_output("dist")
}

/// What `tar` lists of an archive, one entry a line with mode, owner and time.
fn listed(lab: &Lab, archive: &Path) -> Result<String> {
    let mut plain = lab.call("zstd");
    plain = plain.arg("-dqf").arg(archive).arg("-o").arg(lab.path("plain.tar"));
    plain.end()?.exits(0)?;
    let list = lab.call("tar").args(["--utc", "--full-time", "--numeric-owner", "-tvf"]);
    Ok(list.arg(lab.path("plain.tar")).end()?.exits(0)?.stdout_text())
}

fn as_archive(lab: &Lab) -> Result<()> {
    let body = |script: &str| {
        "source_date_epoch = 1600000000\n".to_owned()
            + &sh("a", script)
            + "[[output]]\npath = \"/build/dist\"\n"
            + &form("tar.zst")
    };
    let ran = lab.run_job(&body(MAKE))?.ended(&SUCCEEDED)?;
    let archive = ran.output("dist.tar.zst")?;
    // Another order on the disk, other times, files of their own in place of hard links, other modes for others.
    let other = format!(
        "mkdir -p /build/dist; echo n > \"$(printf '/build/dist/new\\nline')\"; {MAKE}; cp private 'hard link.'; \
         mv 'hard link.' 'hard link'; chmod 750 bin/tool; touch -d @77 private lib bin/tool; sleep 1"
    );
    let again = lab.run_job(&body(&other))?.ended(&SUCCEEDED)?;
    ensure!(archive == again.output("dist.tar.zst")?, "equal trees gave other bytes");
    ran.verifies_output("dist.tar.zst")?;
    let statement = ran.statement("dist.tar.zst.intoto.jsonl")?;
    let subject = &statement["subject"][0];
    equal("digest", &subject["digest"]["sha256"], &Value::from(sha256(&archive)))?;
    ensure!(subject.get("mediaType").is_none(), "an archive is a file: {subject}");
    let report = ran.report()?["outputs"][0].clone();
    equal("form", &report["form"], &Value::from("tar.zst"))?;
    equal("bytes", &report["bytes"], &Value::from(archive.len()))?;
    // To everybody else it is an archive like any other.
    let path = ran.out.join("outputs/dist.tar.zst");
    let lines = listed(lab, &path)?;
    for expected in [
        "drwxr-xr-x 0/0",
        "-rwxr-xr-x 0/0",
        "-rw-r--r-- 0/0",
        "lrwxrwxrwx 0/0",
        " 2020-09-13 12:26:40 bin/tool",
    ] {
        ensure!(lines.contains(expected), "no {expected:?} in\n{lines}");
    }
    let times = lines.matches("2020-09-13 12:26:40").count();
    equal("entries of that time", &times, &12)?;
    fs::create_dir(lab.path("unpacked"))?;
    lab.call("tar")
        .arg("-xf")
        .arg(lab.path("plain.tar"))
        .arg("-C")
        .arg(lab.path("unpacked"))
        .end()?
        .exits(0)?;
    // The tree in it is the one that leaves as a tree.
    let as_tree =
        "source_date_epoch = 1600000000\n".to_owned() + &sh("a", MAKE) + &output("dist", "/build/dist");
    let tree = lab.run_job(&as_tree)?.ended(&SUCCEEDED)?;
    let attestation = tree.evidence("dist.intoto.jsonl");
    let (status, said) = verify(&tree.program, &lab.path("unpacked"), &attestation, &tree.key, &[])?;
    ensure!(status == Some(0), "the unpacked archive is another tree: {said}");
    Ok(())
}

/// A later job takes it, unpacked, without anybody's word for it but the builder's; and as the tree that it is, by the same provenance.
fn again(lab: &Lab) -> Result<()> {
    let body = sh("a", MAKE)
        + "[[output]]\npath = \"/build/dist\"\nform = \"tar.zst\"\n"
        + &output("dist", "/build/dist");
    let made = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let source = |subject: &str, more: &str| {
        format!(
            "attestation = {{ file = '{}', path = '{}', key = '{}', builder = 'https://ampoule.example/builders/dev/v1', \
             subject = '{subject}', allow_dev = true{more} }}",
            made.evidence("dist.intoto.jsonl").display(),
            made.out.join("outputs/dist.tar.zst").display(),
            made.key.display(),
        )
    };
    let next = input("dist", &source("dist.tar.zst", ", unpack = true"), "/build/dist", true)
        + &sh("a", "/build/dist/bin/tool; chmod 600 /build/dist/private")
        + &output("dist", "/build/dist");
    let ran = lab.run_job(&next)?.ended(&SUCCEEDED)?;
    equal("log", &ran.log_text("0-a.stdout")?, &"works\n".to_owned())?;
    // What it gives on is the tree that it took.
    let digest = |ran: &Ran, name: &str| -> Result<Value> {
        let statement = ran.statement("dist.intoto.jsonl")?;
        let subjects = statement["subject"].as_array().context("no subjects")?.clone();
        Ok(subjects.into_iter().find(|s| s["name"] == name).context("no subject")?["digest"].clone())
    };
    equal("tree", &digest(&ran, "dist")?, &digest(&made, "dist")?)?;
    let tree = source("dist", "")
        .replace(&format!("path = '{}', ", made.out.join("outputs/dist.tar.zst").display()), "");
    let tree = input("dist", &tree, "/build/dist", false) + &sh("a", "/build/dist/bin/tool");
    lab.run_job(&tree)?.ended(&SUCCEEDED).map(drop)
}

fn forms(lab: &Lab) -> Result<()> {
    let script = "mkdir /build/dir; echo x > /build/dir/f; echo x > /build/file";
    for (path, asked, says) in [
        ("/build/file", "tree", "it is a file"),
        ("/build/file", "tar.zst", "it is a file"),
        ("/build/dir", "file", "it is a directory"),
    ] {
        let ran = lab.run_job(&(sh("a", script) + &output("o", path) + &form(asked)))?.ended(&REFUSED)?;
        ran.says(&["output o at", says])?;
    }
    let ran =
        lab.run_job(&(sh("a", script) + &output("o", "/build/file") + &form("file")))?.ended(&SUCCEEDED)?;
    equal("file", &ran.output_text("o")?, &"x\n".to_owned())?;
    let outputs =
        &ran.statement("o.intoto.jsonl")?["predicate"]["buildDefinition"]["externalParameters"]["outputs"];
    equal("recorded", &outputs[0]["form"], &Value::from("file"))?;
    let ran = lab.run_job(&(sh("a", script) + &output("o", "/build/dir") + "form = \"zip\"\n"))?.exits(64)?;
    ran.says(&["output[0].form", "\"zip\" is not known"]).map(drop)
}

fn refused_with(lab: &Lab, body: &str, says: &[&str]) -> Result<Ran> {
    let ran = lab.run_job(body)?.ended(&REFUSED).with_context(|| body.to_owned())?;
    equal("outputs", &tree(&ran.out.join("outputs"))?, &Vec::new())?;
    ran.says(says)
}

fn hostile(lab: &Lab) -> Result<()> {
    let canary = lab.write("canary/file", lab.token())?.display().to_string();
    lab.write("mounted/in", "x")?;
    let outside = lab.path("canary").display().to_string();
    let cases = [
        (format!("ln -s {canary} d/l"), "/build/d", "absolute"),
        (format!("ln -s {outside} d/l"), "/build/d", "absolute"),
        (format!("ln -s ../../../../../../../..{canary} d/l"), "/build/d", "leads out"),
        ("ln -s ../../f d/e/l".to_owned(), "/build/d", "leads out"),
        ("ln -s e d/in; ln -s in/../../f d/l".to_owned(), "/build/d", "behind a name"),
        ("ln -s /proc/1/root d/l".to_owned(), "/build/d", "absolute"),
        ("mkfifo d/e/p".to_owned(), "/build/d", "e/p in it is a FIFO"),
        ("/build/probe socket /build/d/s".to_owned(), "/build/d", "s in it is a socket"),
        ("true".to_owned(), "/dev", "the link to"),
        ("true".to_owned(), "/proc", "/proc"),
        ("true".to_owned(), "/build/m", "something else is mounted there"),
        ("p=d; for i in $(seq 70); do p=$p/x; done; mkdir -p $p".to_owned(), "/build/d", "64 components"),
    ];
    for (script, path, says) in cases {
        for asked in ["tree", "tar.zst"] {
            let body = with_probe(lab)?
                + &input("m", &format!("path = '{}'", lab.path("mounted").display()), "/build/m/in", false)
                + &sh("a", &format!("cd /build; mkdir -p d/e; echo x > f; echo x > d/e/f; {script}"))
                + &output("out", path)
                + &form(asked);
            let ran = refused_with(lab, &body, &["output out at", path, says])?;
            for place in [&ran.out, &lab.state()] {
                let found = anything_holds(place, lab.token().as_bytes())?;
                ensure!(found.is_none(), "{script}: bytes of the host in {found:?}");
            }
        }
    }
    // A directory on whose way is a link is not looked at.
    let body = sh("a", "cd /build; mkdir d; ln -s d l") + &output("out", "/build/l");
    refused_with(lab, &body, &["symbolic link"])?;
    if lab.is_root() {
        // No step of the build user's can make such a file.
        let body = "user = \"root\"\n".to_owned()
            + &sh("a", "cd /build; mkdir d; echo x > d/s; chmod 4755 d/s")
            + &output("out", "/build/d");
        refused_with(lab, &body, &["s has a set-user-id or set-group-id bit"])?;
    }
    Ok(())
}

fn limits(lab: &Lab) -> Result<()> {
    let small = "[limits]\ndisk = \"64MiB\"\ninodes = 1000\n";
    let sparse = sh("a", "cd /build; mkdir d; truncate -s 1T d/big || truncate -s 60G d/big");
    refused_with(lab, &(sparse + &output("out", "/build/d") + small), &["limits.disk"])?;
    // What is not in the writable layer counts too.
    let body = sh("a", "true") + &output("out", "/usr/lib") + &form("tree") + small;
    let ran = lab.run_job(&body)?.ended(&REFUSED)?;
    equal("outputs", &tree(&ran.out.join("outputs"))?, &Vec::new())?;
    // All outputs together.
    let two = sh("a", "cd /build; mkdir c d; head -c 30M /dev/urandom > c/a; cp c/a d/a")
        + &output("c", "/build/c")
        + &output("d", "/build/d")
        + "[limits]\ndisk = \"80MiB\"\n";
    lab.run_job(&two)?.ended(&SUCCEEDED)?;
    let hard = sh("a", "cd /build; mkdir d; head -c 30M /dev/urandom > d/a; ln d/a d/b; ln d/a d/c")
        + &output("d", "/build/d")
        + "[limits]\ndisk = \"80MiB\"\n";
    refused_with(lab, &hard, &["limits.disk"]).map(drop)
}

fn options(lab: &Lab) -> Result<()> {
    let body = with_probe(lab)?
        + &sh("a", "mkdir -p /build/r/s; echo report > /build/r/s/r.xml; exit 5")
        + &(output("reports", "/build/r") + "when = \"always\"\nkind = \"report\"\n")
        + &(output("archive", "/build/r") + &form("tar.zst") + "when = \"always\"\nkind = \"report\"\n")
        + &(output("none", "/build/none") + "when = \"always\"\n")
        + &output("x", "/build/r");
    let ran = lab.run_job(&body)?.ended(&Ending("failed", "step.exit_nonzero", 1))?;
    let expected = vec!["archive".to_owned(), "reports/s/r.xml".to_owned()];
    equal("outputs", &tree(&ran.out.join("outputs"))?, &expected)?;
    let run = ran.statement("run.intoto.jsonl")?;
    let outputs = run["predicate"]["outputs"].as_array().context("no outputs")?;
    let forms: Vec<_> = outputs.iter().map(|o| o["form"].as_str().unwrap_or_default()).collect();
    equal("attested forms", &forms, &vec!["tree", "tar.zst"])?;
    let optional = sh("a", "mkdir /build/d; echo x > /build/d/x")
        + &(output("none", "/build/none") + &form("tree") + "optional = true\n")
        + &(output("report", "/build/d") + "kind = \"report\"\n")
        + &output("d", "/build/d");
    let ran = lab.run_job(&optional)?.ended(&SUCCEEDED)?;
    equal("released", &tree(&ran.out.join("outputs"))?, &vec!["d/x".to_owned(), "report/x".to_owned()])?;
    ensure!(!ran.evidence("report.intoto.jsonl").exists(), "a report is a subject");
    ran.verifies_output("d")?;
    let missing = sh("a", "true") + &(output("d", "/build/d") + &form("tree"));
    lab.run_job(&missing)?.ended(&MISSING)?.says(&["no step has made it"]).map(drop)
}

fn compressor(lab: &Lab) -> Result<()> {
    let body = sh("a", "mkdir /build/d; head -c 400M /dev/urandom > /build/d/big")
        + &output("d", "/build/d")
        + &form("tar.zst");
    let mut live = lab.run(&lab.job(&body)?).start()?;
    let client = live.pid();
    let found = std::cell::RefCell::new(None);
    let of_job = |all: &[crate::procs::Process]| {
        let child_of = |parent: i32| all.iter().filter(move |p| p.parent == parent);
        // Client, launcher, supervisor; init has a pid namespace of its own, the compressor has none.
        child_of(client)
            .flat_map(|launcher| child_of(launcher.pid))
            .flat_map(|supervisor| child_of(supervisor.pid))
            .find(|p| p.pids.len() == crate::procs::own_depth())
            .map(|p| (p.pid, p.uid))
    };
    let ran_out = |pid: i32| {
        let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let read = io.lines().find_map(|l| l.strip_prefix("rchar: ")?.parse::<u64>().ok());
        // Only root may know it: the process is not dumpable.
        read.map_or(!lab.is_root(), |bytes| bytes > 10 << 20)
    };
    crate::procs::eventually(std::time::Duration::from_secs(60), "a compressor", || {
        let said = fs::read_to_string(&live.stderr).unwrap_or_default();
        if !said.contains("step a: exited") && !said.contains("step a exited") {
            return !live.is_running();
        }
        *found.borrow_mut() = of_job(&crate::procs::all()).filter(|(pid, _)| ran_out(*pid));
        found.borrow().is_some() || !live.is_running()
    })?;
    let (pid, uid) = found.into_inner().context("it was never there")?;
    crate::procs::signal(pid, rustix::process::Signal::STOP)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let network = fs::read_link(format!("/proc/{pid}/ns/net"));
    crate::procs::signal(pid, rustix::process::Signal::KILL)?;
    let line =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    equal("no_new_privs", &line("NoNewPrivs:"), &"1".to_owned())?;
    if lab.is_root() {
        equal("capabilities", &line("CapEff:"), &"0000000000000000".to_owned())?;
        ensure!(uid > 65_536, "it is somebody else's uid: {uid}");
        ensure!(network? != fs::read_link("/proc/self/ns/net")?, "it has the host's network");
    }
    let ran = live.end()?.ended(&Ending("aborted", "internal", 70))?;
    equal("outputs", &tree(&ran.out.join("outputs"))?, &Vec::new())?;
    ran.says(&["output d at /build/d: it cannot be copied: the compressor"]).map(drop)
}

fn umask(lab: &Lab) -> Result<()> {
    let job = lab.job(&(sh("a", MAKE) + &output("dist", "/build/dist")))?;
    // One that takes an owner's own bits leaves nobody but root a directory.
    let masks: &[&str] = if lab.is_root() { &["000", "077", "133"] } else { &["000", "077"] };
    for mask in masks {
        let out = lab.path(&format!("out-{mask}"));
        let call = lab.call("sh").args(["-c", &format!("umask {mask}; exec \"$@\""), "sh"]);
        let call = call.arg(lab.program("ampoule")).arg("run").arg(&job).arg("--state").arg(lab.state());
        let mut ran = call.arg("--out").arg(&out).end()?;
        ran.out = out;
        let ran = ran.ended(&SUCCEEDED).with_context(|| (*mask).to_owned())?;
        ran.verifies_output("dist").with_context(|| (*mask).to_owned())?;
    }
    Ok(())
}
