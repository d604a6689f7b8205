//! Limits hold, and what reached one says which.

use super::outcomes::ends;
use super::{probe, sh, with_probe};
use crate::check::{Ending, equal, said};
use crate::harness::Test;
use crate::lab::Lab;
use crate::procs::patience;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::both("full_disk_is_limit_disk", disk),
    Test::both("disk_holds_across_every_writable_place", disk_everywhere),
    Test::both("files_are_limited_too", inodes),
    Test::root("fork_bomb_is_bounded_and_is_limit_pids", forks),
    Test::root("memory_hog_is_limit_oom", oom),
    Test::root("thread_bomb_is_bounded_and_is_limit_pids", threads),
    Test::root("memory_without_an_owner_counts_as_the_jobs", memfd),
    Test::root("more_than_the_memory_limit_fits_on_the_disk", disk_is_not_memory),
    Test::root("processor_time_is_bounded", processor),
    Test::both("open_files_are_bounded", open_files),
    Test::both("room_cannot_be_had_by_the_back_door", room),
    Test::both("many_names_and_a_deep_tree_are_torn_down_soon", names),
    Test::both("stopped_processes_in_sessions_of_their_own_die_with_the_step", stopped),
    Test::both("more_log_than_is_kept_is_limit_log_for_a_job_that_says_so", log_overflow),
    Test::root("oom_of_a_child_ends_the_step", oom_child),
    Test::both("limit_above_the_ceiling_is_refused", ceiling),
    Test::both("effective_limits_are_attested", attested),
    Test::user("limits_that_are_not_enforced_are_said_to_be_absent", not_enforced),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

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

fn threads(lab: &Lab) -> Result<()> {
    let body = with_probe(lab)? + &probe("bomb", &["threads", "5000"]) + "[limits]\npids = 64\n";
    let ran = lab.run_job(&body)?.ended(&Ending("killed_by_limit", "limit.pids", 1))?;
    let text = ran.log_text("0-bomb.stdout")?;
    let count: u32 = said(&text, "threads")?.parse()?;
    ensure!((32..=64).contains(&count), "{count} threads with a limit of 64");
    equal("refused with", said(&text, "refused")?, "EAGAIN")
}

fn memfd(lab: &Lab) -> Result<()> {
    let body = with_probe(lab)? + &probe("a", &["memfd", "200"]) + "[limits]\nmemory = \"64MiB\"\n";
    lab.run_job(&body)?.ended(&Ending("killed_by_limit", "limit.oom", 1)).map(drop)
}

/// Two processes turn for a second and may have half a processor between them.
fn processor(lab: &Lab) -> Result<()> {
    let body = with_probe(lab)? + &probe("a", &["spin", "1000", "2"]) + "[limits]\ncpus = 0.5\n";
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let report = ran.report()?;
    let step = ran.step(&report, 0)?;
    let at = |name: &str| step[name].as_u64().unwrap_or(0);
    let (wall, used) =
        ((at("finished") - at("started")) / 1000, step["usage"]["cpu_micros"].as_u64().unwrap_or(0));
    ensure!(wall >= 1_000_000, "it lasted {wall} µs only");
    // A period of 100 ms may be used up at either end.
    ensure!(used > 50_000 && used <= wall / 2 + 150_000, "{used} of {wall} µs with half a processor");
    Ok(())
}

fn open_files(lab: &Lab) -> Result<()> {
    let body = with_probe(lab)? + &probe("a", &["descriptors"]) + "[limits]\nopen_files = 200\n";
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let text = ran.log_text("0-a.stdout")?;
    equal("opened beside the three streams", said(&text, "opened")?, "197")?;
    equal("refused with", said(&text, "refused")?, "EMFILE")
}

fn room(lab: &Lab) -> Result<()> {
    let body =
        with_probe(lab)? + &probe("a", &["room", "64"]) + "[limits]\ndisk = \"16MiB\"\ninodes = 4096\n";
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let text = ran.log_text("0-a.stdout")?;
    equal("fallocate", said(&text, "fallocate")?, "ENOSPC")?;
    // A hole takes no room, however long it is.
    let blocks: u64 = said(&text, "sparse_blocks")?.parse()?;
    ensure!(blocks < 64, "a file of holes has {blocks} blocks");
    let attributes: u64 = said(&text, "xattrs")?.parse()?;
    // A tmpfs counts attributes as inodes, of 1 KiB.
    let most = if lab.is_root() { 16 << 20 } else { 4096 << 10 };
    ensure!(attributes * 3000 <= most, "{attributes} attributes of 3000 bytes within {most} bytes");
    Ok(())
}

fn names(lab: &Lab) -> Result<()> {
    let body = with_probe(lab)? + &probe("a", &["names", "50000", "1500"]);
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let report = ran.report()?;
    let text = ran.log_text("0-a.stdout")?;
    equal("depth", said(&text, "depth")?, "1500")?;
    let micros = report["teardown"]["micros"].as_u64().unwrap_or(u64::MAX);
    ensure!(
        u128::from(micros) < patience(Duration::from_secs(10)).as_micros(),
        "the teardown took {micros} µs"
    );
    Ok(())
}

fn stopped(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let body =
        with_probe(lab)? + &probe("a", &["stopped", "5", &marker]) + &sh("b", "ls /proc | grep -c '^[0-9]'");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let report = ran.report()?;
    let survivors = ran.step(&report, 0)?["survivors_killed"].as_u64().unwrap_or(0);
    ensure!((5..=10).contains(&survivors), "{survivors} survivors");
    ensure!(crate::procs::with_args(&marker).is_empty(), "one of them lives on");
    // The shell, ls and grep.
    equal("processes that the next step sees", &ran.log_text("1-b.stdout")?, &"3\n".to_owned())
}

fn log_overflow(lab: &Lab) -> Result<()> {
    let job = |policy: &str| -> Result<String> {
        let steps = probe("a", &["pattern", "3000000"]) + &sh("b", "true");
        Ok(with_probe(lab)? + &steps + "[limits]\nlog = \"1MiB\"\n" + policy)
    };
    let ran = lab.run_job(&job("log_overflow = \"fail\"")?)?;
    let ran = ran.ended(&Ending("killed_by_limit", "limit.log", 1))?.says(&["limits.log"])?;
    ends(&ran, &["killed_by_limit", "not_run"])?;
    // Without it the middle is cut and counted, and the job goes on.
    let ran = lab.run_job(&job("log_overflow = \"cut\"")?)?.ended(&SUCCEEDED)?;
    let report = ran.report()?;
    let log = &ran.step(&report, 0)?["logs"][0];
    equal("bytes", &log["bytes"], &Value::from(3_000_000))?;
    ensure!(log["cut_bytes"].as_u64().unwrap_or(0) >= 3_000_000 - (1 << 20), "{log}");
    Ok(())
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

/// `disk` is never charged to `memory`.
fn disk_is_not_memory(lab: &Lab) -> Result<()> {
    let body = sh(
        "a",
        "dd if=/dev/zero of=/tmp/big bs=1M count=96 2>/dev/null; stat -c size=%s /tmp/big; cksum < /tmp/big",
    ) + "[limits]\nmemory = \"64MiB\"\ndisk = \"512MiB\"\n";
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let text = ran.log_text("0-a.stdout")?;
    equal("size", said(&text, "size")?, &(96 << 20).to_string())?;
    // What was written is what is read, although it did not fit into memory.
    let expected = lab.call("sh").args(["-c", "head -c 100663296 /dev/zero | cksum"]).end()?.stdout_text();
    ensure!(text.ends_with(&expected), "{text} is not {expected}");
    Ok(())
}

fn oom_child(lab: &Lab) -> Result<()> {
    let body = with_probe(lab)?
        + &sh("a", "/build/probe hog || echo survived; sleep 600")
        + "[limits]\nmemory = \"64MiB\"\n";
    let ran = lab.run_job(&body)?.ended(&Ending("killed_by_limit", "limit.oom", 1))?;
    ensure!(ran.took < patience(Duration::from_secs(50)), "it went on for {:?}", ran.took);
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
