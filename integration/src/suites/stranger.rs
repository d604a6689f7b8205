//! What a stranger's machine and a stranger's habits do to it.

use super::{input, output, sh};
use crate::check::{Ending, Ran, equal};
use crate::harness::Test;
use crate::lab::{Lab, mode_of};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Stdio;

pub(super) const TESTS: &[Test] = &[
    Test::both("state_directory_that_cannot_be_made_is_named", state_unusable),
    Test::both("state_directory_that_others_can_write_is_refused", state_open),
    Test::root("state_directory_of_somebody_else_is_refused", state_foreign),
    Test::both("state_directory_that_is_a_link_is_named", state_link),
    Test::both("blanks_and_unicode_in_every_path_work", odd_names),
    Test::both("relative_paths_and_slashes_at_the_end_work", relative),
    Test::both("runs_at_once_in_one_state_directory_all_succeed", at_once),
    Test::both("input_with_our_keys_in_it_is_refused", exposed),
    Test::both("root_of_a_user_namespace_is_told_what_it_is", namespaced_root),
    Test::both("state_directory_of_any_name_works", odd_state),
    Test::both("json_says_why_nothing_was_run", json_error),
    Test::user("no_home_directory_asks_for_a_state_directory", no_home),
    Test::both("closed_or_short_stdout_is_no_panic", short_stdout),
    Test::both("full_stdout_is_no_success", full_stdout),
    Test::both("reader_that_leaves_does_not_end_the_job", reader_leaves),
    Test::both("streams_that_are_closed_at_the_start_do_no_harm", closed_streams),
    Test::both("working_directory_that_cannot_be_written_or_is_gone", odd_cwd),
    Test::both("umask_of_the_caller_changes_nothing", umask),
    Test::both("job_file_that_never_ends_is_no_hang", endless_job),
    Test::both("job_of_many_steps_and_outputs_works", many),
    Test::both("few_open_files_are_enough", few_files),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

/// `ampoule run` of a small job in this state directory.
fn in_state(lab: &Lab, state: &Path) -> Result<Ran> {
    let job = lab.job(&sh("a", "true"))?;
    lab.ampoule().arg("run").arg(job).arg("--out").arg(lab.path("o")).arg("--state").arg(state).end()
}

fn state_unusable(lab: &Lab) -> Result<()> {
    let file = lab.write("file", "x")?;
    let mut places = vec![file.join("state"), file.clone(), Path::new("/proc/state").to_owned()];
    if !lab.is_root() {
        places.push(Path::new("/usr/ampoule-state").to_owned());
    }
    for place in places {
        let ran = in_state(lab, &place)?.exits(64)?.says(&["file.unusable", "--state"])?;
        ran.says(&[&place.display().to_string()])?;
    }
    Ok(())
}

/// Whoever may write there may write the record.
fn state_open(lab: &Lab) -> Result<()> {
    fs::create_dir(lab.path("open"))?;
    fs::set_permissions(lab.path("open"), fs::Permissions::from_mode(0o777))?;
    let ran = in_state(lab, &lab.path("open"))?;
    ensure!(!lab.path("o").exists(), "it ran");
    ran.exits(64)?.says(&["--state", &lab.path("open").display().to_string()]).map(drop)
}

fn state_foreign(lab: &Lab) -> Result<()> {
    fs::create_dir(lab.path("foreign"))?;
    chown(lab.path("foreign"), Some(65534), Some(65534))?;
    let ran = in_state(lab, &lab.path("foreign"))?;
    ensure!(!lab.path("o").exists(), "it ran");
    ran.exits(64)?.says(&["--state", &lab.path("foreign").display().to_string()]).map(drop)
}

fn state_link(lab: &Lab) -> Result<()> {
    fs::create_dir(lab.path("real"))?;
    fs::set_permissions(lab.path("real"), fs::Permissions::from_mode(0o700))?;
    symlink("real", lab.path("link"))?;
    let ran = in_state(lab, &lab.path("link"))?;
    // Either it is followed or it is refused with its name; never an internal error.
    match ran.status {
        Some(0) => Ok(()),
        _ => ran.exits(64)?.says(&["link"]).map(drop),
    }
}

fn odd_names(lab: &Lab) -> Result<()> {
    let place = "Größe & co/日本 'quoted'";
    let source = lab.write(&format!("{place}/src dir/ein Name.txt"), "text\n")?;
    let text = format!(
        "ampoule = 1\nname = \"odd\"\nprofile = \"{}\"\nimage = \"host\"\n{}{}{}",
        lab.profile(),
        input("src", "path = \"src dir\"", "/build/ein ordner/ö", false),
        sh("a", "cp '/build/ein ordner/ö/ein Name.txt' '/build/a b.txt'"),
        output("x", "/build/a b.txt"),
    );
    let job = lab.write(&format!("{place}/mein job.toml"), text)?;
    let state = lab.path(&format!("{place}/state dir"));
    let mut ran = lab
        .ampoule()
        .within(source.parent().context("no parent")?)
        .arg("run")
        .arg(job)
        .arg("--state")
        .arg(&state)
        .arg("--out")
        .arg(lab.path(&format!("{place}/out dir")))
        .end()?
        .exits(0)?;
    ran.out = lab.path(&format!("{place}/out dir"));
    ran.key = state.join("keys/development.pub");
    let ran = ran.ended(&SUCCEEDED)?;
    equal("output", &ran.output_text("x")?, &"text\n".to_owned())?;
    ran.verifies_output("x")
}

fn relative(lab: &Lab) -> Result<()> {
    lab.write("project/src/a", "text\n")?;
    let text = format!(
        "ampoule = 1\nname = \"relative\"\nprofile = \"{}\"\nimage = \"host\"\n{}{}{}",
        lab.profile(),
        input("src", "path = \"src/\"", "/build/src", false),
        sh("a", "cp /build/src/a /build/x"),
        output("x", "/build/x"),
    );
    lab.write("project/job.toml", text)?;
    for (dir, job, out) in [
        ("project", "job.toml", "../out1"),
        ("", "project/job.toml", "out2/"),
        ("project/src", "../job.toml", "./../../out3"),
    ] {
        let call = lab.ampoule().within(&lab.path(dir)).args(["run", job, "--out", out, "--state"]);
        call.arg(lab.state()).end()?.exits(0).with_context(|| out.to_owned())?;
    }
    let call = lab.ampoule().within(&lab.path("project")).args([
        "run",
        "job.toml",
        "--out",
        "out4",
        "--state",
        "own/state",
    ]);
    call.end()?.exits(0)?;
    for out in ["out1", "out2", "out3", "project/out4"] {
        equal(out, &fs::read_to_string(lab.path(out).join("outputs/x"))?, &"text\n".to_owned())?;
    }
    Ok(())
}

fn at_once(lab: &Lab) -> Result<()> {
    lab.write("src/a", vec![3; 1 << 20])?;
    let body = input("src", &format!("path = '{}'", lab.path("src").display()), "/build/src", true)
        + &sh("a", "sha256sum /build/src/a > /build/x; sleep 0.3")
        + &output("x", "/build/x");
    let mut lives = Vec::new();
    for _ in 0..4 {
        // The state directory, the key and the store are all new: every run may make them.
        lives.push(lab.run(&lab.job(&body)?).start()?);
    }
    let mut outputs = Vec::new();
    for live in lives {
        let ran = live.end()?.ended(&SUCCEEDED)?;
        ensure!(!ran.stderr.contains("recovered"), "one took another for dead:\n{}", ran.stderr);
        ran.verifies_output("x")?;
        outputs.push(ran.output("x")?);
    }
    outputs.dedup();
    equal("different outputs", &outputs.len(), &1)
}

/// A step that can read the key can sign what it likes.
fn exposed(lab: &Lab) -> Result<()> {
    lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?;
    let own = lab.write("mine/key.pem", fs::read(lab.state().join("keys/development.pem"))?)?;
    fs::set_permissions(&own, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let input = |path: &Path| super::input("in", &format!("path = '{}'", path.display()), "/build/in", false);
    let keys = lab.state().join("keys");
    for path in [lab.path(""), lab.state(), keys.clone(), keys.join("development.pem")] {
        let ran = lab.run_job(&(input(&path) + &sh("a", "true")))?;
        ran.exits(64)?.says(&["input.refused", "a step could read that; keep it elsewhere"])?;
    }
    let job = lab.job(&(input(&lab.path("mine")) + &sh("a", "true")))?;
    let run = lab.run(&job).arg("--key").arg(&own).end()?;
    run.exits(64)?.says(&["input.refused", "the signing key"])?;
    Ok(())
}

/// What rootless containers are.
fn namespaced_root(lab: &Lab) -> Result<()> {
    lab.write("src/a", "a")?;
    let source = format!("path = '{}'", lab.path("src").display());
    let bodies = [sh("a", "true"), super::input("src", &source, "/build/src", false) + &sh("a", "true")];
    for (number, body) in bodies.iter().enumerate() {
        let job = lab.job(body)?;
        let state = lab.path(&format!("other-{number}"));
        let call = lab.call("unshare").args(["-Ur"]).arg(lab.program("ampoule")).arg("run").arg(&job);
        let ran = call.arg("--state").arg(state).arg("--out").arg(lab.path("o")).end()?.exits(69)?;
        // Root's program may not be its caller's in there, who is told that first.
        let said =
            ["not root of the host", "belongs to user 65534"].iter().any(|text| ran.stderr.contains(text));
        ensure!(said, "{}", ran.stderr);
    }
    let doctor = lab.call("unshare").args(["-Ur"]).arg(lab.program("ampoule")).args(["doctor", "--state"]);
    doctor.arg(lab.path("other")).end()?.exits(69)?;
    Ok(())
}

fn odd_state(lab: &Lab) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    for name in [b"with blank".as_slice(), b"\xff\xfe", b"-dash", b"quote'\""] {
        let state = lab.path("").join(std::ffi::OsStr::from_bytes(name));
        let ran = in_state(lab, &state)?.exits(0)?;
        ensure!(!ran.stderr.contains("panic"), "{}", ran.stderr);
        fs::remove_dir_all(lab.path("o"))?;
    }
    Ok(())
}

fn json_error(lab: &Lab) -> Result<()> {
    let ran = lab.ampoule().args(["run", "/nowhere.toml", "--json"]).end()?.exits(64)?;
    let last = ran.stdout_text();
    let said: serde_json::Value = serde_json::from_str(last.lines().last().context("nothing")?)?;
    equal("event", &said["event"], &serde_json::Value::from("error"))?;
    equal("code", &said["code"], &serde_json::Value::from("file.unusable"))?;
    equal("exit", &said["exit"], &serde_json::Value::from(64))
}

fn no_home(lab: &Lab) -> Result<()> {
    let job = lab.job(&sh("a", "true"))?;
    let mut call = lab.ampoule().arg("run").arg(&job);
    call.command.env_remove("HOME");
    call.end()?.exits(64)?.says(&["--state"])?;
    let home = lab.ampoule().arg("run").arg(&job).env("HOME", lab.path("home"));
    home.end()?.exits(0)?;
    ensure!(lab.path("home/.local/state/ampoule/keys/development.pub").exists(), "no state below HOME");
    lab.ampoule().arg("run").arg(&job).env("HOME", "relative").end()?.exits(64)?.says(&["--state"]).map(drop)
}

/// `… | head -c1`, and a stdout that is closed from the start.
fn short_stdout(lab: &Lab) -> Result<()> {
    let ran = super::evidence::signed_run(lab)?;
    let attestation = ran.evidence("libz.a.intoto.jsonl");
    for (args, pipe) in [
        ("inspect", "| head -c1 > /dev/null"),
        ("inspect --pae", "| head -c1 > /dev/null"),
        ("inspect", ">&-"),
        ("inspect --pae", ">&-"),
    ] {
        let script = format!("set -o pipefail; \"$0\" {args} \"$1\" {pipe}");
        let done = lab.call("bash").arg("-c").arg(script).arg(&ran.program).arg(&attestation).end()?;
        for word in ["panic", "internal error", "backtrace"] {
            ensure!(!done.stderr.contains(word), "{args} {pipe}: {}", done.stderr);
        }
        ensure!(done.status != Some(70), "{args} {pipe}: exit status 70");
    }
    Ok(())
}

/// A disk that is full must not make a cut file look whole.
fn full_stdout(lab: &Lab) -> Result<()> {
    let ran = super::evidence::signed_run(lab)?;
    for args in [&["inspect"][..], &["inspect", "--pae"]] {
        let mut child = std::process::Command::new(&ran.program)
            .args(args)
            .arg(ran.evidence("libz.a.intoto.jsonl"))
            .stdout(File::options().write(true).open("/dev/full")?)
            .stderr(Stdio::null())
            .spawn()?;
        let status = child.wait()?;
        ensure!(!status.success(), "{args:?} > /dev/full succeeds, and nothing was written");
    }
    Ok(())
}

fn reader_leaves(lab: &Lab) -> Result<()> {
    let body =
        sh("a", "i=0; while [ $i -lt 3000 ]; do echo line $i of many; i=$((i + 1)); done; echo x > /build/x")
            + &output("x", "/build/x");
    let job = lab.job(&body)?;
    for (flag, out) in [("--json", "o1"), ("--raw", "o2")] {
        let script =
            "\"$0\" run \"$1\" --state \"$2\" --out \"$3\" $4 | head -n 1 > /dev/null; echo ${PIPESTATUS[0]}";
        let call =
            lab.call("bash").args(["-c", script]).arg(lab.program("ampoule")).arg(&job).arg(lab.state());
        let done = call.arg(lab.path(out)).arg(flag).end()?;
        equal("exit status", &done.stdout_text(), &"0\n".to_owned())?;
        let log = fs::read(lab.path(out).join("evidence/logs/0-a.stdout"))?;
        equal("lines in the log", &log.iter().filter(|b| **b == b'\n').count(), &3000)?;
    }
    Ok(())
}

fn closed_streams(lab: &Lab) -> Result<()> {
    let job = lab.job(&(sh("a", "echo out; echo err >&2; echo x > /build/x") + &output("x", "/build/x")))?;
    for (number, closed) in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"].iter().enumerate() {
        let out = lab.path(&format!("o{number}"));
        let script = format!("\"$0\" run \"$1\" --state \"$2\" --out \"$3\" {closed}");
        let call = lab.call("bash").arg("-c").arg(script).arg(lab.program("ampoule")).arg(&job);
        let mut ran = call.arg(lab.state()).arg(&out).end()?;
        ran.out = out;
        let ran = ran.ended(&SUCCEEDED).with_context(|| (*closed).to_owned())?;
        equal("output", &ran.output_text("x")?, &"x\n".to_owned())?;
        equal("log", &ran.log_text("0-a.stdout")?, &"out\n".to_owned())?;
    }
    Ok(())
}

fn odd_cwd(lab: &Lab) -> Result<()> {
    let job = lab.job(&(sh("a", "echo x > /build/x") + &output("x", "/build/x")))?;
    lab.run(&job).within(Path::new("/proc")).end()?.ended(&SUCCEEDED)?;
    lab.run(&job).within(Path::new("/")).end()?.ended(&SUCCEEDED)?;
    let script = "mkdir gone && cd gone && rmdir ../gone && exec \"$@\"";
    let args = |call: crate::lab::Call<'_>| -> Vec<std::ffi::OsString> {
        let program = std::iter::once(call.command.get_program());
        program.chain(call.command.get_args()).map(ToOwned::to_owned).collect()
    };
    let call = lab.run(&job);
    lab.call("sh").args(["-c", script, "sh"]).args(args(call)).end()?.exits(0)?;
    // Without a job file the working directory is the input.
    let quick = lab.ampoule().arg("run").arg("--state").arg(lab.state()).args(["--", "true"]);
    let done = lab.call("sh").args(["-c", script, "sh"]).args(args(quick)).end()?.exits(64)?;
    ensure!(!done.stderr.contains("panic"), "{}", done.stderr);
    Ok(())
}

fn umask(lab: &Lab) -> Result<()> {
    let job = lab.job(&(sh("a", "umask > /build/x") + &output("x", "/build/x")))?;
    for mask in ["000", "077"] {
        let state = lab.path(&format!("state-{mask}"));
        let out = lab.path(&format!("out-{mask}"));
        let script = format!("umask {mask}; exec \"$@\"");
        let run = |out: &Path| {
            let call =
                lab.call("sh").args(["-c", &script, "sh"]).arg(lab.program("ampoule")).arg("run").arg(&job);
            call.arg("--state").arg(&state).arg("--out").arg(out).end()
        };
        let mut ran = run(&out)?;
        (ran.out, ran.key) = (out, state.join("keys/development.pub"));
        let ran = ran.ended(&SUCCEEDED).with_context(|| mask.to_owned())?;
        equal("the step's umask", &ran.output_text("x")?, &"0022\n".to_owned())?;
        equal("private key", &mode_of(&state.join("keys/development.pem"))?, &0o600)?;
        equal("state directory", &(mode_of(&state)? & 0o022), &0)?;
        run(&lab.path(&format!("again-{mask}")))?.exits(0).with_context(|| mask.to_owned())?;
    }
    Ok(())
}

fn endless_job(lab: &Lab) -> Result<()> {
    for file in ["/dev/zero", "/dev/null", "/dev/stdin"] {
        let script = "timeout -k 1 20 \"$@\"";
        let call = lab.call("sh").args(["-c", script, "sh"]).arg(lab.program("ampoule"));
        let ran = call.args(["job", "check"]).arg(file).end()?;
        ensure!(ran.status != Some(124), "{file} hangs");
        ran.exits(64)?;
    }
    Ok(())
}

fn many(lab: &Lab) -> Result<()> {
    let mut body = String::new();
    for number in 0..100 {
        body +=
            &super::exec(&format!("s{number}"), &["sh", "-c", &format!("echo {number} > /build/o{number}")]);
        body += &output(&format!("o{number}"), &format!("/build/o{number}"));
    }
    let ran = lab.run_job(&body)?.exits(0)?;
    let report = ran.report()?;
    equal("steps", &report["steps"].as_array().map(Vec::len), &Some(100))?;
    let statement = ran.statement("o99.intoto.jsonl")?;
    equal("subjects", &statement["subject"].as_array().map(Vec::len), &Some(100))?;
    let too_many: String = (0..257).map(|n| super::exec(&format!("s{n}"), &["true"])).collect();
    lab.run_job(&too_many)?.exits(64)?.says(&["step", "256"]).map(drop)
}

fn few_files(lab: &Lab) -> Result<()> {
    let job = lab.job(&sh("a", "true"))?;
    let call = lab.run(&job);
    let program = std::iter::once(call.command.get_program());
    let args: Vec<_> = program.chain(call.command.get_args()).map(ToOwned::to_owned).collect();
    let ran = lab.call("sh").args(["-c", "ulimit -S -n 64; exec \"$@\"", "sh"]).args(args).end()?;
    // The job asks for more than the soft limit; the hard one is what counts.
    ran.exits(0).map(drop)
}
