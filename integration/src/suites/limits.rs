//! Limits hold, and what reached one says which.

use super::outcomes::ends;
use super::{probe, sh, with_probe};
use crate::check::{Ending, equal, said};
use crate::harness::Test;
use crate::lab::Lab;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::both("full_disk_is_limit_disk", disk),
    Test::both("disk_holds_across_every_writable_place", disk_everywhere),
    Test::both("files_are_limited_too", inodes),
    Test::root("fork_bomb_is_bounded_and_is_limit_pids", forks),
    Test::root("memory_hog_is_limit_oom", oom),
    Test::root("tmpfs_pages_count_and_end_as_a_limit", tmpfs),
    Test::root("oom_of_a_child_ends_the_step", oom_child),
    Test::both("limit_above_the_ceiling_is_refused", ceiling),
    Test::both("effective_limits_are_attested", attested),
    Test::user("limits_that_are_not_enforced_are_said_to_be_absent", not_enforced),
];

fn disk(lab: &Lab) -> Result<()> {
    let body = sh("fill", "dd if=/dev/zero of=/build/big bs=1M count=64")
        + &sh("b", "true")
        + "[limits]\ndisk = \"16MiB\"\n";
    let ran = lab.run_job(&body)?.ended(&Ending("killed_by_limit", "limit.disk", 1))?;
    ends(&ran, &["killed_by_limit", "not_run"])?;
    let report = ran.report()?;
    equal("code", &ran.step(&report, 0)?["end"]["code"], &Value::from("limit.disk"))?;
    ensure!(ran.log_text("0-fill.stderr")?.contains("No space left"), "it had room");
    Ok(())
}

fn disk_everywhere(lab: &Lab) -> Result<()> {
    lab.write("src/a", "a")?;
    let src = lab.path("src");
    // One layer holds all of them: together they cannot take more than the limit.
    let script = "n=0; for d in /build /build/src /tmp /var/tmp /home/build /dev/shm /run; do \
                  dd if=/dev/zero of=$d/big bs=64k count=1024 2>/dev/null || true; \
                  n=$((n + $(stat -c %s $d/big 2>/dev/null || echo 0))); done; echo total=$n; exit 1";
    let body = super::input("src", &format!("path = '{}'", src.display()), "/build/src", true)
        + &sh("fill", script)
        + "[limits]\ndisk = \"16MiB\"\n";
    let ran = lab.run_job(&body)?.ended(&Ending("killed_by_limit", "limit.disk", 1))?;
    let text = ran.log_text("0-fill.stdout")?;
    let total: u64 = said(&text, "total")?.parse()?;
    ensure!((8 << 20..=16 << 20).contains(&total), "{total} bytes in all writable places");
    Ok(())
}

fn inodes(lab: &Lab) -> Result<()> {
    let script = "i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); : > /build/f$i; done";
    let ran = lab.run_job(&(sh("a", script) + "[limits]\ninodes = 1000\n"))?;
    ran.ended(&Ending("killed_by_limit", "limit.disk", 1))?.says(&["limits.inodes"]).map(drop)
}

fn forks(lab: &Lab) -> Result<()> {
    let body =
        with_probe(lab)? + &probe("bomb", &["forks", "5000"]) + &sh("b", "true") + "[limits]\npids = 64\n";
    let ran = lab.run_job(&body)?.ended(&Ending("killed_by_limit", "limit.pids", 1))?;
    ends(&ran, &["killed_by_limit", "not_run"])?;
    let text = ran.log_text("0-bomb.stdout")?;
    let count: u32 = said(&text, "forked")?.parse()?;
    ensure!((32..=64).contains(&count), "{count} processes with a limit of 64");
    equal("refused with", said(&text, "refused")?, "EAGAIN")?;
    let report = ran.report()?;
    // Killed and counted, each of them.
    equal("survivors", &ran.step(&report, 0)?["survivors_killed"], &Value::from(count))
}

fn oom(lab: &Lab) -> Result<()> {
    let body =
        with_probe(lab)? + &probe("hog", &["hog"]) + &sh("b", "true") + "[limits]\nmemory = \"64MiB\"\n";
    let ran = lab.run_job(&body)?.ended(&Ending("killed_by_limit", "limit.oom", 1))?;
    ends(&ran, &["killed_by_limit", "not_run"])?;
    let report = ran.report()?;
    let peak = ran.step(&report, 0)?["usage"]["memory_peak_bytes"].as_u64().unwrap_or(0);
    ensure!((48 << 20..=65 << 20).contains(&peak), "the peak was {peak} bytes with a limit of 64 MiB");
    Ok(())
}

fn tmpfs(lab: &Lab) -> Result<()> {
    let body = sh("a", "dd if=/dev/zero of=/tmp/big bs=1M count=200")
        + "[limits]\nmemory = \"64MiB\"\ndisk = \"512MiB\"\n";
    let ran = lab.run_job(&body)?;
    ensure!(ran.took < Duration::from_secs(60), "it took {:?}", ran.took);
    // DESIGN §6: disk never counts against memory. The pages of today's layer do, so a limit ends it.
    let ending = if ran.status == Some(0) {
        Ending("succeeded", "", 0)
    } else {
        Ending("killed_by_limit", "limit.oom", 1)
    };
    ran.ended(&ending).map(drop)
}

fn oom_child(lab: &Lab) -> Result<()> {
    let body = with_probe(lab)?
        + &sh("a", "/build/probe hog || echo survived; sleep 60")
        + "[limits]\nmemory = \"64MiB\"\n";
    let ran = lab.run_job(&body)?.ended(&Ending("killed_by_limit", "limit.oom", 1))?;
    ensure!(ran.took < Duration::from_secs(50), "it went on for {:?}", ran.took);
    Ok(())
}

fn ceiling(lab: &Lab) -> Result<()> {
    let body = sh("a", "true") + "[limits]\npids = 1000000\n";
    let ran = lab.run_job(&body)?.exits(64)?.says(&["job.invalid", "limits.pids", "65536"])?;
    ensure!(!ran.out.exists(), "there is an output directory");
    Ok(())
}

fn attested(lab: &Lab) -> Result<()> {
    let body = sh("a", "ulimit -n") + "[limits]\npids = 77\nopen_files = 99\nlog = \"2MiB\"\n";
    let ran = lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))?;
    equal("open files", &ran.log_text("0-a.stdout")?, &"99\n".to_owned())?;
    let statement = ran.statement("run.intoto.jsonl")?;
    let limits = &statement["predicate"]["limits"];
    for (name, value) in
        [("pids", "77"), ("open_files", "99"), ("log_bytes", "2097152"), ("timeout_ms", "1800000")]
    {
        equal(name, &limits[name], &Value::from(value))?;
    }
    Ok(())
}

fn not_enforced(lab: &Lab) -> Result<()> {
    let ran = lab.run_job(&sh("a", "true"))?.ended(&Ending("succeeded", "", 0))?;
    let statement = ran.statement("run.intoto.jsonl")?;
    let limits = &statement["predicate"]["isolation"]["limits"];
    equal("in force", &limits["inForce"], &Value::from(false))?;
    let detail = limits["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains("ordinary user"), "no reason: {detail}");
    Ok(())
}
