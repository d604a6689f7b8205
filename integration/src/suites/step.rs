//! What a step is given: environment, descriptors, identity, places. Nothing of it is the caller's.

use super::{exec, output, probe, sh, with_probe};
use crate::check::{Ending, equal, said};
use crate::harness::Test;
use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;

pub(super) const TESTS: &[Test] = &[
    Test::both("environment_is_exactly_the_documented_one", environment),
    Test::both("environment_of_job_and_step_win_over_the_defaults", own_environment),
    Test::both("descriptors_identity_and_names_are_fixed", identity),
    Test::both("signals_and_limits_of_the_caller_do_not_reach_a_step", callers_state),
    Test::both("broken_pipe_ends_a_program_as_everywhere_else", broken_pipe),
    Test::both("writable_places_are_private_and_empty", places),
    Test::both("working_directory_and_program_lookup_are_the_jobs", lookup),
    Test::both("steps_share_files_but_no_processes", between_steps),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

/// docs/job-file.md and the defaults in provenance.
const DOCUMENTED: [&str; 6] = [
    "HOME=/home/build",
    "LC_ALL=C.UTF-8",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SOURCE_DATE_EPOCH=1700000000",
    "TMPDIR=/tmp",
    "TZ=UTC",
];

fn environment(lab: &Lab) -> Result<()> {
    // No shell: it would add variables of its own.
    let body = "source_date_epoch = 1700000000\n".to_owned() + &exec("a", &["env", "-0"]);
    let canary = lab.token().to_owned();
    let job = lab.job(&body)?;
    let ran = lab
        .run(&job)
        .env("AMPOULE_CANARY", &canary)
        .env("LD_PRELOAD_CANARY", &canary)
        .env("HOME", format!("/nonexistent/{canary}"))
        .env("LANG", "de_DE.UTF-8")
        .env("TZ", "Pacific/Chatham")
        .env("MAKEFLAGS", "-j7")
        .end()?
        .ended(&SUCCEEDED)?;
    let text = ran.log_text("0-a.stdout")?;
    let found: BTreeSet<&str> = text.split('\0').filter(|l| !l.is_empty()).collect();
    equal("environment", &found, &BTreeSet::from(DOCUMENTED))?;
    for file in ["report.json", "spec.json", "run.intoto.jsonl"] {
        let bytes = crate::check::read(&ran.evidence(file))?;
        ensure!(!String::from_utf8_lossy(&bytes).contains(&canary), "{file} holds the caller's environment");
    }
    Ok(())
}

fn own_environment(lab: &Lab) -> Result<()> {
    let body = "env = { LANG = \"C.UTF-8\", TZ = \"CET\", EMPTY = \"\" }\n".to_owned()
        + &exec("a", &["env", "-0"])
        + "env = { TZ = \"EST\", PATH = \"/usr/bin:/bin\" }\n"
        + &exec("b", &["env", "-0"]);
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    for (log, expected, other) in [
        ("0-a.stdout", ["TZ=EST", "PATH=/usr/bin:/bin", "EMPTY="], "TZ=CET"),
        ("1-b.stdout", ["TZ=CET", "LANG=C.UTF-8", "EMPTY="], "TZ=EST"),
    ] {
        let text = ran.log_text(log)?;
        let found: Vec<&str> = text.split('\0').collect();
        for line in expected {
            ensure!(found.contains(&line), "{log} lacks {line}: {found:?}");
        }
        ensure!(!found.contains(&other), "{log} has {other}");
    }
    Ok(())
}

fn identity(lab: &Lab) -> Result<()> {
    let job = lab.job(&(with_probe(lab)? + &probe("a", &["self"])))?;
    let mut call = lab.run(&job);
    // Descriptors that the caller holds open must not reach a step.
    call.command.stdin(std::fs::File::open("/dev/zero")?);
    let ran = call.end()?.ended(&SUCCEEDED)?;
    let text = ran.log_text("0-a.stdout")?;
    // Only root can drop the groups of the caller; they are the overflow group in there.
    let groups = if lab.is_root() { 0 } else { own_groups()? }.to_string();
    for (name, expected) in [
        ("fds", "0,1,2"),
        ("stdin_bytes", "0"),
        ("uid", "1000,1000"),
        ("gid", "1000,1000"),
        ("groups", groups.as_str()),
        ("umask", "0022"),
        ("cwd", "/build"),
        ("hostname", "ampoule"),
        ("session_leader", "yes"),
        ("tty", "none"),
        ("status.CapInh", "0000000000000000"),
        ("status.CapPrm", "0000000000000000"),
        ("status.CapEff", "0000000000000000"),
        ("status.CapBnd", "0000000000000000"),
        ("status.CapAmb", "0000000000000000"),
        ("status.NoNewPrivs", "1"),
        ("status.Seccomp", "2"),
        ("status.PPid", "1"),
    ] {
        equal(name, said(&text, name)?, expected)?;
    }
    Ok(())
}

/// How many supplementary groups we have ourselves.
fn own_groups() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).context("no groups")?;
    Ok(groups.split_whitespace().count())
}

/// `nohup`, `nice` and `ulimit` around `ampoule run` must not change what is built.
fn callers_state(lab: &Lab) -> Result<()> {
    let body = with_probe(lab)?
        + &probe("self", &["self"])
        + &sh("limits", "ulimit -a; cat /proc/self/oom_score_adj; cat /proc/self/coredump_filter")
        + &sh("nice", "nice");
    let job = lab.job(&body)?;
    let plain = lab.run(&job).end()?.ended(&SUCCEEDED)?;
    let script = "trap '' HUP INT QUIT USR1 WINCH; ulimit -S -c 0 -s 4096 -t 4000 -f 4000000; umask 0077; exec nice -n 3 \"$@\"";
    let mut call = lab.run(&job);
    let program = call.command.get_program().to_owned();
    let args: Vec<_> = call.command.get_args().map(ToOwned::to_owned).collect();
    let dir = lab.path("");
    let mut wrapped = lab.call("sh").args(["-c", script, "sh"]).arg(program).args(args).within(&dir);
    std::mem::swap(&mut call.command, &mut wrapped.command);
    let twisted = call.end()?.ended(&SUCCEEDED)?;
    let (one, two) = (plain.log_text("0-self.stdout")?, twisted.log_text("0-self.stdout")?);
    for name in ["umask", "status.SigBlk", "status.SigIgn"] {
        equal(name, said(&two, name)?, said(&one, name)?)?;
    }
    equal("limits", &twisted.log_text("1-limits.stdout")?, &plain.log_text("1-limits.stdout")?)?;
    // Nobody but root may lower niceness again (setpriority(2)); it changes when a build ends, not what it makes.
    let expected = if lab.is_root() { "0\n" } else { "3\n" };
    equal("niceness", &twisted.log_text("2-nice.stdout")?, &expected.to_owned())
}

fn broken_pipe(lab: &Lab) -> Result<()> {
    let body = with_probe(lab)? + &probe("self", &["self"]) + &sh("pipe", "yes | head -n 1");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    // Bit 12 is SIGPIPE: ignored, `yes` would complain instead of ending silently.
    let text = ran.log_text("0-self.stdout")?;
    let ignored = u64::from_str_radix(said(&text, "status.SigIgn")?, 16)?;
    ensure!(ignored & (1 << 12) == 0, "steps start with SIGPIPE ignored (SigIgn {ignored:016x})");
    equal("stderr", &ran.log_text("1-pipe.stderr")?, &String::new())
}

fn places(lab: &Lab) -> Result<()> {
    let canary = format!("canary-{}", lab.token());
    let host = std::env::temp_dir().join(&canary);
    std::fs::write(&host, &canary)?;
    let script = "for d in /tmp /var/tmp /home/build /build /dev/shm /run; do \
                  ls -A $d | grep -v -x -e probe -e src || true; echo x > $d/new; rm $d/new; done; \
                  ls -A /home /mnt /srv /opt /root /media 2>&1 || true";
    let done = lab.run_job(&sh("a", script));
    std::fs::remove_file(host)?;
    let text = done?.ended(&SUCCEEDED)?.log_text("0-a.stdout")?;
    ensure!(!text.contains("canary"), "a file of the host's is there:\n{text}");
    for dir in ["/mnt", "/srv", "/opt", "/root", "/media"] {
        ensure!(!text.lines().any(|l| l == format!("{dir}:")), "{dir} is there:\n{text}");
    }
    let names: Vec<&str> = text.lines().filter(|l| !l.contains("No such file")).collect();
    equal("entries", &names, &vec!["/home:", "build"])
}

fn lookup(lab: &Lab) -> Result<()> {
    let body = sh(
        "make",
        "mkdir -p /build/bin /build/work; printf '#!/bin/sh\\npwd; echo mine' > /build/bin/ls; chmod +x /build/bin/ls",
    ) + "[[step]]\nname = \"b\"\nrun = [\"ls\"]\ncwd = \"/build/work\"\nenv = { PATH = \"/build/bin:/usr/bin:/bin\" }\n"
        + "[[step]]\nname = \"c\"\nrun = [\"bin/ls\"]\n"
        + &sh("d", "echo out > /build/o")
        + &output("o", "/build/o");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    equal("b", &ran.log_text("1-b.stdout")?, &"/build/work\nmine\n".to_owned())?;
    equal("c", &ran.log_text("2-c.stdout")?, &"/build\nmine\n".to_owned())
}

fn between_steps(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let body = sh("one", &format!("echo kept > /build/kept; sleep {marker} & exit 0"))
        + &sh(
            "two",
            &format!(
                "cat /build/kept; for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $p; echo; done | grep -c 'sleep {marker}' || true"
            ),
        );
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let text = ran.log_text("1-two.stdout")?;
    // `grep` and the shell itself hold the marker in their own arguments.
    ensure!(text.starts_with("kept\n"), "{text}");
    let report = ran.report()?;
    equal("survivors", &ran.step(&report, 0)?["survivors_killed"], &serde_json::Value::from(1))?;
    ensure!(
        crate::procs::with_args(&format!("sleep {marker}")).iter().all(|p| p.comm != "sleep"),
        "it sleeps on"
    );
    Ok(())
}
