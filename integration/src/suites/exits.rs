//! Every exit status of the README that can occur today, each from the real program.
//!
//! A panic (70) is planted in a unit test of the command line; everything else happens here.

use super::{exec, input, output, sh};
use crate::check::{Ending, equal, sha256};
use crate::harness::Test;
use crate::lab::{Lab, Live};
use crate::procs::{self, Cast};
use crate::serve::Server;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

pub(super) const TESTS: &[Test] = &[
    Test::both("0_help_and_version", help),
    Test::both("1_the_job_failed", failed),
    Test::both("2_verification_refused", refused),
    Test::both("3_cancelled", cancelled),
    Test::both("64_usage", usage),
    Test::both("64_runner_that_is_told_to_fail_or_be_weak", no_faults),
    Test::both("64_bad_job_file_with_its_place", bad_job),
    Test::both("64_bad_out_directory", bad_out),
    Test::both("64_key_that_cannot_sign", bad_key),
    Test::both("65_digest_mismatch", digest),
    Test::user("69_hermetic_as_an_ordinary_user_with_the_remedy", hermetic_user),
    Test::root("69_profile_that_demands_what_no_kernel_has", demanding),
    Test::both("69_profile_whose_proxy_is_not_there", fetching),
    Test::both("69_runner_that_is_not_there", no_runner),
    Test::both("70_record_that_was_changed_releases_nothing", changed_record),
    Test::both("70_report_that_is_no_report_releases_nothing", garbage_report),
    Test::both("75_supervisor_lost", lost),
    Test::both("75_runner_that_says_nothing", mute_runner),
    Test::both("77_redirect_to_a_source_that_is_denied", denied),
    Test::both("doctor_answers_for_a_profile", doctor),
];

fn help(lab: &Lab) -> Result<()> {
    for args in [
        &["--help"][..],
        &["--version"],
        &["run", "--help"],
        &["verify", "--help"],
        &["job", "check", "--help"],
    ] {
        let ran = lab.ampoule().args(args).end()?.exits(0)?;
        ensure!(!ran.stdout.is_empty() && ran.stderr.is_empty(), "{args:?}: {ran:?}");
    }
    lab.run_job(&sh("a", "true"))?.ended(&Ending("succeeded", "", 0)).map(drop)
}

/// What tests ask of a runner that is built for them does not exist in one that is installed.
fn no_faults(lab: &Lab) -> Result<()> {
    for fault in ["weak", "unmeasured", "by-name", "supervisor:1:fail:/tmp/x"] {
        let runner = lab.call(lab.program("ampoule-runner")).args(["serve", "--state"]).arg(lab.state());
        runner.args(["--fault", fault]).end()?.exits(64)?.says(&["\"--fault\" is not an option"])?;
    }
    Ok(())
}

fn failed(lab: &Lab) -> Result<()> {
    lab.run_job(&sh("a", "exit 64"))?.ended(&Ending("failed", "step.exit_nonzero", 1)).map(drop)
}

fn refused(lab: &Lab) -> Result<()> {
    let ran = super::evidence::signed_run(lab)?;
    let other = lab.write("other", "x")?;
    let found =
        crate::check::verify(&ran.program, &other, &ran.evidence("libz.a.intoto.jsonl"), &ran.key, &[])?;
    equal("exit status", &found.0, &Some(2))
}

fn sleeping<'l>(lab: &'l Lab<'_>) -> Result<(Live<'l>, String)> {
    let marker = lab.marker();
    let mut live = lab.run(&lab.job(&exec("a", &["sleep", &marker]))?).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    Ok((live, marker))
}

fn cancelled(lab: &Lab) -> Result<()> {
    let (live, _) = sleeping(lab)?;
    live.signal(Signal::TERM)?;
    live.end()?.ended(&Ending("cancelled", "job.cancelled", 3)).map(drop)
}

fn usage(lab: &Lab) -> Result<()> {
    let job = lab.job(&sh("a", "true"))?.display().to_string();
    let state = lab.state().display().to_string();
    for args in [
        &[][..],
        &["no-such-command"],
        &["run"],
        &["run", "--no-such-flag", &job],
        &["run", &job, "--", "make"],
        &["run", "--"],
        &["run", &job, "--param", "x"],
        &["run", &job, "--param", "=x"],
        &["run", &job, "--image", "host"],
        &["run", &job, "--json", "--raw"],
        &["verify", &job],
        &["verify", &job, "--attestation", &job],
        &["verify", &job, "--attestation", &job, "--key", &job, "--trust", &job],
        &["inspect"],
        &["job"],
    ] {
        // With a state directory of the test's, should one of them run after all.
        let separator = args.iter().position(|a| *a == "--").unwrap_or(args.len());
        let of_run = args.first() == Some(&"run") && args.len() > 1;
        let place = if of_run { &["--state", state.as_str()][..] } else { &[] };
        let call =
            lab.ampoule().args(args.iter().take(separator)).args(place).args(args.iter().skip(separator));
        let ran = call.end()?.exits(64).with_context(|| format!("{args:?}"))?;
        ensure!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{args:?}: {ran:?}");
    }
    for (args, says) in [
        (vec!["run", &job, "--authority", "ftp://x"], "--authority"),
        (vec!["run", &job, "--profile", "../x"], "--profile"),
        (vec!["run", &job, "--profile", "no-such"], "no-such"),
        (vec!["run", "--output", "../x", "--", "true"], "--output"),
        (vec!["run", "--output", "/x", "--", "true"], "--output"),
        (vec!["run", "--image", "docker", "--", "true"], "--image"),
        (vec!["run", &job, "--param", "a=1", "--param", "a=2"], "twice"),
        (vec!["doctor", "--profile", "no-such"], "no-such"),
    ] {
        let mut call = lab.ampoule();
        let separator = args.iter().position(|a| *a == "--").unwrap_or(args.len());
        call = call
            .args(args.iter().take(separator))
            .args(["--state", &state])
            .args(args.iter().skip(separator));
        call.end()?
            .exits(64)
            .with_context(|| format!("{args:?}"))?
            .says(&[says])
            .with_context(|| format!("{args:?}"))?;
    }
    Ok(())
}

fn bad_job(lab: &Lab) -> Result<()> {
    let head = "ampoule = 1\nname = \"x\"\nimage = \"host\"\n";
    let step = "[[step]]\nrun = [\"true\"]\n";
    let big = "#".repeat(10 << 20);
    let cases: [(&str, Vec<u8>, &[&str]); 12] = [
        ("unknown-key", format!("{head}{step}timout = \"1m\"\n").into(), &[":6:", "step[0].timout", "\"timeout\""]),
        ("wrong-type", format!("{head}{step}timeout = 10\n").into(), &[":6:", "step[0].timeout"]),
        ("unpinned", format!("{head}{step}[[input]]\nname = \"a\"\nmount = \"/build/a\"\nhttp = {{ url = \"http://h/x\" }}\n").into(), &["input.unpinned", "sha256"]),
        ("no-step", head.into(), &["step"]),
        ("newer", "ampoule = 2\nfuture = true\n".into(), &["ampoule", "2"]),
        ("escape", format!("{head}{step}cwd = \"/build/../etc\"\n").into(), &["step[0].cwd"]),
        ("reserved", format!("{head}{step}[[input]]\nname = \"a\"\nmount = \"/etc/x\"\npath = \".\"\n").into(), &["input[0].mount"]),
        ("secret", format!("{head}{step}[[secret]]\nname = \"a\"\nfile = \"/etc/a\"\n").into(), &["secret[0].file"]),
        ("evidence", format!("{head}{step}[[output]]\nname = \"run\"\npath = \"/x\"\n").into(), &["output[0].name"]),
        ("large", big.into_bytes(), &["1048576"]),
        ("not-utf8", b"ampoule = 1\nname = \"\xff\xfe\"\n".to_vec(), &["UTF-8"]),
        ("not-toml", b"{ \"ampoule\": 1 }".to_vec(), &[":1:"]),
    ];
    for (name, bytes, says) in cases {
        let file = lab.write(&format!("{name}.toml"), bytes)?;
        for command in [&["run"][..], &["job", "check"]] {
            let mut call = lab.ampoule().args(command).arg(&file);
            if command == ["run"] {
                call = call.arg("--state").arg(lab.state());
            }
            let ran = call.end()?.exits(64).with_context(|| name)?;
            ran.says(&[&format!("{name}.toml")])?.says(says).with_context(|| name)?;
        }
    }
    lab.ampoule()
        .arg("run")
        .arg(lab.path("none.toml"))
        .arg("--state")
        .arg(lab.state())
        .end()?
        .exits(64)?
        .says(&["file.unusable"])?;
    lab.ampoule()
        .arg("run")
        .arg(lab.path(""))
        .arg("--state")
        .arg(lab.state())
        .end()?
        .exits(64)?
        .says(&["file.unusable"])?;
    ensure!(!lab.state().exists(), "a bad job file made a state directory");
    Ok(())
}

fn bad_out(lab: &Lab) -> Result<()> {
    let job = lab.job(&sh("a", "echo it ran"))?;
    lab.write("full/file", "mine")?;
    for (out, says) in
        [("full", "not empty"), ("none/out", "No such file or directory"), ("full/file", "full/file")]
    {
        let call = lab.ampoule().arg("run").arg(&job).arg("--state").arg(lab.state());
        let ran = call.arg("--out").arg(lab.path(out)).end()?.exits(64)?.says(&["--out", says])?;
        ensure!(!ran.was_admitted(), "the job ran:\n{}", ran.stderr);
    }
    equal("a file of the caller's", &fs::read_to_string(lab.path("full/file"))?, &"mine".to_owned())
}

fn bad_key(lab: &Lab) -> Result<()> {
    let job = lab.job(&sh("a", "true"))?;
    let (_, public) = super::run::make_key(lab, "pair")?;
    let text = lab.write("text", "hello")?;
    let rsa = lab.path("rsa.key");
    lab.call("openssl").args(["genpkey", "-algorithm", "ED25519", "-out"]).arg(&rsa).end()?.exits(0)?;
    for key in [public, text, rsa, lab.path("none")] {
        let ran =
            lab.run(&job).arg("--key").arg(&key).end()?.exits(64)?.says(&[&key.display().to_string()])?;
        ensure!(!ran.was_admitted(), "the job ran although nobody could sign:\n{}", ran.stderr);
    }
    Ok(())
}

fn digest(lab: &Lab) -> Result<()> {
    let file = lab.write("data", "x")?;
    let source = format!("http = {{ url = \"file://{}\", sha256 = \"{}\" }}", file.display(), sha256(b"y"));
    let ran = lab.run_job(&(input("a", &source, "/build/a", false) + &sh("a", "true")))?;
    ran.exits(65)?.says(&["input.digest_mismatch"]).map(drop)
}

fn hermetic_user(lab: &Lab) -> Result<()> {
    lab.write("src/a", "one")?;
    let job = lab.job(&(super::input("src", "path = 'src'", "/build/src", false) + &sh("a", "true")))?;
    let ran = lab.run(&job).args(["--profile", "hermetic"]).end()?.exits(69)?;
    let ran = ran.says(&["sandbox.unsupported", "root", "--profile dev"])?;
    ensure!(!ran.stderr.contains("importing"), "it was refused after the import: {}", ran.stderr);
    ensure!(!ran.out.exists() && !ran.was_admitted(), "{}", ran.stderr);
    lab.ampoule()
        .args(["doctor", "--profile", "hermetic", "--state"])
        .arg(lab.state())
        .end()?
        .exits(69)
        .map(drop)
}

/// A profile as the runner reads it, with one demand raised.
fn demanding(lab: &Lab) -> Result<()> {
    let mut profile = crate::check::json(&lab.repository("sandbox-profiles/compiled/hermetic.json"))?;
    profile["requires"]["landlock_abi"] = Value::from(99);
    lab.write("profiles/hermetic.json", profile.to_string())?;
    for (path, mode) in [("profiles", 0o755), ("profiles/hermetic.json", 0o644)] {
        fs::set_permissions(lab.path(path), fs::Permissions::from_mode(mode))?;
    }
    let job = lab.job(&(sh("a", "echo it ran > /build/x") + &output("x", "/build/x")))?;
    let ran = lab.run(&job).arg("--profiles").arg(lab.path("profiles")).end()?.exits(69)?;
    let ran = ran.says(&["sandbox.unsupported", "99", "Landlock"])?;
    ensure!(!ran.out.join("outputs/x").exists(), "there is no fallback, but it ran");
    let doctor = lab.ampoule().arg("doctor").arg("--profiles").arg(lab.path("profiles"));
    doctor.arg("--state").arg(lab.state()).end()?.exits(69)?.says(&["99"]).map(drop)
}

/// The profile is known, so that it can be named and read; no job runs under it.
fn fetching(lab: &Lab) -> Result<()> {
    let says = [
        "sandbox.unsupported",
        "profile fetch needs the egress proxy, which this version does not have; use hermetic with pinned inputs",
    ];
    let head = "ampoule = 1\nname = \"test\"\nprofile = \"fetch\"\nimage = \"host\"\n";
    lab.write("src/a", "one")?;
    let body = super::input("src", "path = 'src'", "/build/src", false) + &sh("a", "true");
    let job = lab.write("fetch.toml", head.to_owned() + &body)?;
    let ran = lab.run(&job).end()?.exits(69)?.says(&says)?;
    ensure!(!ran.stderr.contains("importing"), "it was refused after the import: {}", ran.stderr);
    ensure!(!ran.out.exists() && !ran.was_admitted(), "{}", ran.stderr);
    let doctor = lab.ampoule().args(["doctor", "--profile", "fetch", "--state"]).arg(lab.state());
    doctor.end()?.exits(69)?.says(&says).map(drop)
}

/// Copies a program by another process: a descriptor that we write to could be inherited by a test beside
/// this one, and what is open for writing cannot be run.
fn install(lab: &Lab, from: &std::path::Path, to: &str, mode: &str) -> Result<PathBuf> {
    lab.call("install").args(["-D", "-m", mode]).arg(from).arg(lab.path(to)).end()?.exits(0)?;
    Ok(lab.path(to))
}

/// A directory with the command line alone, or with something in the runner's place.
fn installed(lab: &Lab, runner: Option<&str>) -> Result<PathBuf> {
    if let Some(script) = runner {
        install(lab, &lab.write("script", script)?, "bin/ampoule-runner", "0755")?;
    }
    install(lab, &lab.program("ampoule"), "bin/ampoule", "0755")
}

fn no_runner(lab: &Lab) -> Result<()> {
    let program = installed(lab, None)?;
    let job = lab.job(&sh("a", "true"))?;
    let call = |program: &PathBuf| lab.call(program).arg("run").arg(&job).arg("--state").arg(lab.state());
    // A runner in PATH is never taken.
    let path = lab.program("ampoule").parent().context("no parent")?.display().to_string();
    call(&program).env("PATH", path).end()?.exits(69)?.says(&["ampoule-runner is not found"])?;
    if lab.is_root() {
        install(lab, &lab.program("ampoule-runner"), "bin/ampoule-runner", "0777")?;
        call(&program).end()?.exits(69)?.says(&["others than root can change it", "chmod"])?;
    }
    Ok(())
}

/// Where the one job of the state directory lies.
fn job_dir(lab: &Lab) -> Result<PathBuf> {
    let entry = fs::read_dir(lab.state().join("jobs"))?.flatten().next();
    Ok(entry.context("no job")?.path())
}

fn release_after(lab: &Lab, change: impl Fn(&std::path::Path) -> Result<()>) -> Result<()> {
    let marker = lab.marker();
    let body =
        sh("a", &format!("echo x > /build/x; timeout 2 sleep {marker} || true")) + &output("x", "/build/x");
    let mut live = lab.run(&lab.job(&body)?).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    change(&job_dir(lab)?)?;
    let ran = live.end()?.exits(70)?.says(&["nothing was released"])?;
    ensure!(!ran.out.exists(), "something was released: {:?}", crate::lab::tree(&ran.out));
    // What counts stands in the journal; the next run puts the copy right and signs the record.
    let next = lab.run_job(&sh("a", "true"))?.ended(&Ending("succeeded", "", 0))?;
    next.says(&["recovered job", "its report had not been signed"]).map(drop)
}

fn changed_record(lab: &Lab) -> Result<()> {
    release_after(lab, |dir| {
        let spec = dir.join("spec.json");
        let text = fs::read_to_string(&spec)?;
        fs::write(spec, text.replacen("echo x", "echo y", 1)).map_err(Into::into)
    })
}

fn garbage_report(lab: &Lab) -> Result<()> {
    release_after(lab, |dir| {
        fs::write(dir.join("report.json"), "{\"outcome\": \"succeeded\"}").map_err(Into::into)
    })
}

fn lost(lab: &Lab) -> Result<()> {
    let (live, marker) = sleeping(lab)?;
    procs::signal(Cast::of(live.pid())?.supervisor, Signal::KILL)?;
    let ran = live.end()?.exits(75)?;
    equal("retryable", &ran.result()?["retryable"], &Value::from(true))?;
    ran.says(&["job.aborted"])?;
    super::outcomes::gone(&marker)
}

fn mute_runner(lab: &Lab) -> Result<()> {
    let program = installed(lab, Some("#!/bin/sh\nexit 0\n"))?;
    let job = lab.job(&sh("a", "true"))?;
    let ran = lab.call(program).arg("run").arg(job).arg("--state").arg(lab.state()).end()?.exits(75)?;
    ran.says(&["ampoule-runner ended without an answer"]).map(drop)
}

fn denied(lab: &Lab) -> Result<()> {
    let server = Server::start("302 Found\r\nlocation: file:///etc/passwd", Vec::new())?;
    lab.list(&server.url(""))?;
    let source = format!("http = {{ url = \"{}\", sha256 = \"{}\" }}", server.url("a"), sha256(b"x"));
    let ran = lab.run_job(&(input("a", &source, "/build/a", false) + &sh("a", "true")))?;
    ran.exits(77)?.says(&["input.source_denied", "a redirect to the scheme"]).map(drop)
}

fn doctor(lab: &Lab) -> Result<()> {
    let own = lab.ampoule().args(["doctor", "--state"]).arg(lab.state()).end()?.exits(0)?;
    let table = own.stdout_text() + &own.stderr;
    for layer in ["landlock", "seccomp", "namespace.net"] {
        ensure!(table.contains(layer), "doctor does not name {layer}:\n{table}");
    }
    let ran = lab
        .ampoule()
        .args(["doctor", "--profile", "dev", "--json", "--state"])
        .arg(lab.state())
        .end()?
        .exits(0)?;
    let lines = ran.json_lines()?;
    equal("lines", &lines.len(), &1)
}
