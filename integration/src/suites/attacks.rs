//! Attacks that are known from the field: a row of docs/cve-review.md each, tried from inside.

use super::{input, probe, sh, with_probe};
use crate::check::{Ending, equal, said};
use crate::harness::Test;
use crate::image::{self, Entry};
use crate::lab::Lab;
use crate::procs;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;

pub(super) const TESTS: &[Test] = &[
    Test::both("s1_to_s29_from_inside", known),
    Test::both("s3_image_with_links_in_our_places_reaches_nothing", links_in_our_places),
    Test::both("s5_input_with_links_at_every_depth_writes_nothing_outside", links_at_every_depth),
    Test::both("link_in_the_place_of_a_writable_directory_opens_nothing", moved_directory),
    Test::both("s2_s9_hostile_names_and_directories_are_refused", hostile_names),
    Test::both("s10_output_that_is_written_on_after_the_step_has_the_digest_of_its_bytes", kept_descriptor),
    Test::root("s11_failed_job_leaves_its_ids_as_clean_as_a_good_one", failed_job),
    Test::both("s13_no_abstract_socket_of_ours_on_the_host", abstract_sockets),
    Test::root("s25_nothing_is_executed_but_the_steps", executions),
    Test::root("s28_processes_of_a_set_up_cannot_be_attached_to", attach),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

/// The numbers of all calls that the policy always refuses.
pub(super) fn refused_calls(lab: &Lab) -> Result<Vec<String>> {
    let policy: Value =
        serde_json::from_slice(&fs::read(lab.repository("sandbox-profiles/seccomp/x86_64.json"))?)?;
    let table = fs::read_to_string(lab.repository("xtask/src/profiles/x86_64.txt"))?;
    let numbers: BTreeMap<&str, &str> = table.lines().filter_map(|line| line.split_once(' ')).collect();
    let mut refused = Vec::new();
    for group in policy["groups"].as_array().context("no groups")? {
        let always = group["when"].as_array().is_none_or(Vec::is_empty);
        if always && matches!(group["action"].as_str(), Some("eperm" | "enosys")) {
            let names = group["names"].as_array().into_iter().flatten().filter_map(Value::as_str);
            refused.extend(names.filter_map(|name| numbers.get(name)).map(|n| (*n).to_owned()));
        }
    }
    // Numbers that no header has given a name yet.
    refused.extend((480..600).map(|n| n.to_string()));
    ensure!(refused.len() > 180, "only {} calls are refused", refused.len());
    Ok(refused)
}

/// A job whose step tries everything, over an image with a directory that everybody may write to.
pub(super) fn attacking_job(lab: &Lab) -> Result<String> {
    let calls = refused_calls(lab)?;
    let mut args = vec!["attacks", "/build/sealed/file"];
    args.extend(calls.iter().map(String::as_str));
    lab.write("sealed/file", "sealed")?;
    let source = format!("path = '{}'", lab.path("sealed").display());
    Ok(with_probe(lab)? + &input("sealed", &source, "/build/sealed", false) + &probe("a", &args))
}

/// That image.
pub(super) fn open_image(lab: &Lab) -> Result<String> {
    let archive = image::tar(&[
        Entry::Dir("usr"),
        Entry::Dir("bin"),
        Entry::File("bin/x", 0o755, b"x"),
        Entry::Open("open"),
    ])?;
    let path = lab.write("open.tar", &archive)?;
    Ok(format!("tar:{}@sha256:{}", path.display(), crate::check::sha256(&archive)))
}

/// What the answers to all attacks have to be.
pub(super) fn expectations(text: &str, open_files: &str) -> Result<Vec<String>> {
    let mut red = Vec::new();
    let mut want = |name: &str, holds: &dyn Fn(&str) -> bool| -> Result<()> {
        let value = said(text, name)?;
        if !holds(value) {
            red.push(format!("{name}={value}"));
        }
        Ok(())
    };
    for (name, expected) in [
        ("S1.writable", "0"),
        ("S1.busy", "0"),
        ("S2.top_is_root", "yes"),
        ("S2.path_top_is_root", "yes"),
        ("S2.descriptors", "0"),
        ("S15.ctty", "none"),
        ("S16.wrong", "0"),
        ("S17.int80", "SIGSYS"),
        ("S19.other_families", ""),
        ("S24.setgid_kept", "no"),
        ("cgroup_paths_outside", "0"),
        ("rlimit.core", "1"),
        ("rlimit.rtprio", "0"),
        ("rlimit.nice", "0"),
        ("fs.input", "overlay"),
        ("rlimit.nofile", open_files),
    ] {
        want(name, &|value| value == expected)?;
    }
    let answers = text.lines().filter_map(|line| line.split_once('='));
    for (name, value) in
        answers.filter(|(name, _)| name.starts_with('S') || name.contains('.') || name.contains('_'))
    {
        // A directory is made without the bit; that it is made is no attack.
        if value == "ALLOWED" && name != "S24.mkdir_setgid" {
            red.push(format!("{name}={value}"));
        }
    }
    Ok(red)
}

/// The first Landlock ABI that keeps signals within a domain: Linux 6.12.
const ABI_OF_SIGNALS: u32 = 6;

/// What the doctor says is used.
fn landlock_abi(lab: &Lab) -> Result<u32> {
    let doctor = lab.ampoule().args(["doctor", "--json", "--profile", lab.profile(), "--state"]);
    let ran = doctor.arg(lab.state()).end()?.exits(0)?;
    let said: Value = serde_json::from_slice(&ran.stdout)?;
    let detail = said["layers"]["landlock"]["detail"].as_str().context("no landlock")?;
    let abi = detail.strip_prefix("ABI ").and_then(|rest| rest.split(' ').next()).context("no ABI")?;
    Ok(abi.parse()?)
}

/// Init has the id of an ordinary user's steps, and before Linux 6.12 no Landlock keeps their signals in. That a job ends
/// well shows that it heard none of them: process 1 of a pid namespace is deaf to those from within
/// (pid_namespaces(7)).
pub(super) fn init_may_be_signalled(lab: &Lab) -> Result<bool> {
    Ok(!lab.is_root() && landlock_abi(lab)? < ABI_OF_SIGNALS)
}

fn known(lab: &Lab) -> Result<()> {
    let ran = lab.run(&lab.job_of(&open_image(lab)?, &attacking_job(lab)?)?).end()?.ended(&SUCCEEDED)?;
    let text = ran.log_text("0-a.stdout")?;
    let mut red = expectations(&text, "4096")?;
    if init_may_be_signalled(lab)? {
        red.retain(|line| line != "dumpable_init=ALLOWED");
    }
    ensure!(red.is_empty(), "{}\nall answers:\n{text}", red.join("\n"));
    // Each namespace is another than ours.
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let ours = fs::read_link(format!("/proc/self/ns/{name}"))?;
        ensure!(said(&text, &format!("ns.{name}"))? != ours.to_string_lossy(), "{name} is the host's");
    }
    let rows = [
        "S1.", "S2.", "S14.", "S15.", "S16.", "S17.", "S18.", "S19.", "S20.", "S21.", "S22.", "S23.", "S24.",
        "S29.",
    ];
    for row in rows {
        ensure!(text.lines().any(|line| line.starts_with(row)), "nothing was tried for {row}");
    }
    Ok(())
}

fn links_in_our_places(lab: &Lab) -> Result<()> {
    let victim = lab.path("victim");
    fs::create_dir(&victim)?;
    let victim_file = lab.write("victim/file", "theirs")?;
    let (dir, file) = (victim.display().to_string(), victim_file.display().to_string());
    let probe_bytes = fs::read(lab.probe()?)?;
    for (number, place) in [
        "dev",
        "proc",
        "etc",
        "tmp",
        "build",
        "run",
        "var/tmp",
        "home",
        "dev/null",
        "etc/hosts",
        "usr",
        "proc/self",
    ]
    .iter()
    .enumerate()
    {
        let target = if place.contains('/') { &file } else { &dir };
        let mut entries = vec![Entry::Dir("bin"), Entry::File("bin/probe", 0o755, &probe_bytes)];
        if let Some((parent, _)) = place.rsplit_once('/') {
            entries.push(Entry::Dir(parent));
        }
        entries.push(Entry::Symlink(place, target));
        let archive = image::tar(&entries)?;
        let path = lab.write(&format!("image-{number}.tar"), &archive)?;
        let name = format!("tar:{}@sha256:{}", path.display(), crate::check::sha256(&archive));
        let body = super::exec("a", &["/bin/probe", "write", "/tmp/x", "y"]);
        let ran = lab.run(&lab.job_of(&name, &body)?).end()?;
        ensure!(matches!(ran.status, Some(0 | 1)), "{place}: {ran:?}");
        let mode = fs::metadata(&victim)?.mode() & 0o777;
        ensure!(fs::read_to_string(&victim_file)? == "theirs", "{place}: the host's file was written to");
        ensure!(
            fs::read_dir(&victim)?.count() == 1 && mode == 0o755,
            "{place}: the host's directory was touched"
        );
    }
    Ok(())
}

fn links_at_every_depth(lab: &Lab) -> Result<()> {
    lab.write("victim/file", "theirs")?;
    let victim = lab.path("victim");
    // An input under a path of which each part is a link in another input or in the image cannot be asked for: mounts
    // may not lie within each other. What can be asked for is a place below a link of the image's.
    for depth in 1..=6 {
        let parts: Vec<String> = (0..depth).map(|n| format!("d{n}")).collect();
        let parent = parts.get(..depth - 1).unwrap_or_default().join("/");
        let link =
            if parent.is_empty() { parts[0].clone() } else { format!("{parent}/{}", parts[depth - 1]) };
        let mut entries = Vec::new();
        let dirs: Vec<String> = (1..depth).map(|n| parts.get(..n).unwrap_or_default().join("/")).collect();
        entries.extend(dirs.iter().map(|dir| Entry::Dir(dir)));
        let target = victim.display().to_string();
        entries.push(Entry::Symlink(&link, &target));
        let probe_bytes = fs::read(lab.probe()?)?;
        entries.push(Entry::Dir("bin"));
        entries.push(Entry::File("bin/probe", 0o755, &probe_bytes));
        let archive = image::tar(&entries)?;
        let path = lab.write(&format!("depth-{depth}.tar"), &archive)?;
        let name = format!("tar:{}@sha256:{}", path.display(), crate::check::sha256(&archive));
        lab.write("in/x", "x")?;
        let source = format!("path = '{}'", lab.path("in").display());
        let body = input("in", &source, &format!("/{link}/below/here"), true)
            + &super::exec("a", &["/bin/probe", "write", &format!("/{link}/below/here/y"), "y"]);
        lab.run(&lab.job_of(&name, &body)?).end()?.ended(&SUCCEEDED)?;
        let found: Vec<_> = fs::read_dir(&victim)?.flatten().map(|e| e.file_name()).collect();
        ensure!(found == ["file"], "depth {depth}: {found:?}");
    }
    Ok(())
}

fn hostile_names(lab: &Lab) -> Result<()> {
    let long = "x".repeat(300);
    let directories = [
        "..",
        ".",
        "relative",
        "/..",
        "/build/../..",
        "//",
        "/build//x",
        "/build/",
        "/a\\u0000b",
        "/a\\nb",
        long.as_str(),
    ];
    for cwd in directories {
        let body = format!("[[step]]\nname = \"a\"\nrun = [\"true\"]\ncwd = \"{cwd}\"\n");
        lab.run_job(&body)?.exits(64)?.says(&["cwd"])?;
    }
    for cwd in ["/nowhere", "/proc/1/root", "/proc/self/fd/9", "/dev/null"] {
        let body = format!("[[step]]\nname = \"a\"\nrun = [\"true\"]\ncwd = \"{cwd}\"\n");
        lab.run_job(&body)?.ended(&Ending("failed", "step.not_started", 1))?;
    }
    for name in ["..", "/", "a/b", "%2e%2e", "a\\u0000", "\\u2024\\u2024", ".hidden", long.as_str()] {
        let body = format!("[[step]]\nname = \"{name}\"\nrun = [\"true\"]\n");
        lab.run_job(&body)?.exits(64)?;
        let body = sh("a", "true") + &format!("[[output]]\nname = \"{name}\"\npath = \"/build/x\"\n");
        lab.run_job(&body)?.exits(64)?;
    }
    Ok(())
}

/// A process of the step that goes on writing to an output as fast as it can.
fn kept_descriptor(lab: &Lab) -> Result<()> {
    let script = "(exec 9<> /build/out; setsid sh -c 'while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx >&9; done' & ) ; sleep 0.05";
    for _ in 0..5 {
        let ran = lab.run_job(&(sh("a", script) + &super::output("out", "/build/out")))?.ended(&SUCCEEDED)?;
        let bytes = fs::read(ran.out.join("outputs/out"))?;
        let report = ran.report()?;
        equal("digest", &report["outputs"][0]["sha256"], &Value::from(crate::check::sha256(&bytes)))?;
        ran.verifies_output("out")?;
        ensure!(report["steps"][0]["survivors_killed"].as_u64().unwrap_or(0) >= 1, "nobody was writing");
    }
    Ok(())
}

fn failed_job(lab: &Lab) -> Result<()> {
    let block = |ran: &crate::check::Ran| -> Result<String> {
        let report = ran.report()?;
        Ok(report["teardown"]["checks"].to_string())
    };
    let good = lab.run_job(&sh("a", "touch /tmp/x"))?.ended(&SUCCEEDED)?;
    let bad = lab.run_job(&sh("a", "chmod 0 /tmp /build; exit 3"))?;
    let bad = bad.ended(&Ending("failed", "step.exit_nonzero", 1))?;
    let count = |text: String| text.matches("\"state\":\"gone\"").count();
    equal("checks that say gone", &count(block(&bad)?), &count(block(&good)?))
}

/// Landlock's rules are made for each step, when an earlier one may have moved what they are for.
fn moved_directory(lab: &Lab) -> Result<()> {
    lab.write("src/a", "a")?;
    let source = format!("path = '{}'", lab.path("src").display());
    let attempt = "(echo x > /proc/self/comm) 2>/dev/null && echo wrote || echo denied";
    let body = input("src", &source, "/build/a/proc", true)
        + &sh("one", &format!("{attempt}; mv /build/a /build/b; ln -s / /build/a"))
        + &sh("two", &format!("ls /build/a/proc/self/comm; {attempt}"));
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    equal("before", &ran.log_text("0-one.stdout")?, &"denied\n".to_owned())?;
    equal("after", &ran.log_text("1-two.stdout")?, &"/build/a/proc/self/comm\ndenied\n".to_owned())
}

fn abstract_sockets(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let mut live = lab.run(&lab.job(&sh("a", &format!("sleep {marker}")))?).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    let sockets = fs::read_to_string("/proc/net/unix")?;
    live.signal(rustix::process::Signal::INT)?;
    live.end()?.exits(3)?;
    let ours: Vec<&str> =
        sockets.lines().filter(|line| line.contains("@") && line.contains("ampoule")).collect();
    equal("abstract sockets", &ours, &Vec::new())
}

/// Every execve(2) below `ampoule run`: the runner itself, and what the steps ask for.
fn executions(lab: &Lab) -> Result<()> {
    if !std::process::Command::new("strace").arg("-V").output().is_ok_and(|o| o.status.success()) {
        return crate::harness::skip("strace is not installed");
    }
    let trace = lab.path("trace");
    let job = super::teardown::whole_job(lab)?;
    let ran = lab
        .call("strace")
        .args(["-f", "-qq", "-e", "trace=execve", "-e", "signal=none", "-o"])
        .arg(&trace)
        .arg(lab.program("ampoule"))
        .arg("run")
        .arg(job)
        .arg("--state")
        .arg(lab.state())
        .arg("--out")
        .arg(lab.path("traced"))
        .end()?;
    ran.exits(0)?;
    let text = fs::read_to_string(trace)?;
    let calls = text.lines().filter(|line| line.contains("execve(") && line.ends_with("= 0"));
    let names: Vec<&str> = calls.filter_map(|line| line.split('"').nth(1)).collect();
    let expected = |name: &&str| {
        name.ends_with("/ampoule")
            || name.ends_with("/ampoule-runner")
            || ["/usr/bin/sh", "/usr/bin/cat", "/usr/bin/cp"].contains(name)
    };
    let others: Vec<&&str> = names.iter().filter(|name| !expected(name)).collect();
    ensure!(others.is_empty(), "also executed: {others:?}");
    equal("runs of the runner", &names.iter().filter(|n| n.ends_with("/ampoule-runner")).count(), &1)
}

/// Another user of the host tries to look into every process of the runner while sandboxes are made. (The map of a dead
/// one opens, and is empty.)
fn attach(lab: &Lab) -> Result<()> {
    let place = lab.path("");
    let script = format!(
        "n=0; while [ $n -lt 400 ]; do n=$((n + 1)); for p in /proc/[0-9]*; do \
         read -r comm < $p/comm 2>/dev/null || continue; [ \"$comm\" = ampoule-runner ] || continue; \
         tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q '{}' || continue; \
         for f in mem environ maps auxv; do [ \"$(head -c 1 $p/$f 2>/dev/null | wc -c)\" = 0 ] || echo \"$p/$f\"; done; \
         ls $p/fd $p/root/ > /dev/null 2>&1 && echo \"$p\"; done; done; echo end",
        place.display()
    );
    let watcher = lab
        .call("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &script])
        .start()?;
    for _ in 0..10 {
        lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?;
    }
    let _ = procs::all();
    let ran = watcher.end()?.exits(0)?;
    equal("looks into the runner", &ran.stdout_text(), &"end\n".to_owned())
}
