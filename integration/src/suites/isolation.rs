//! Isolation, smoke: what a hostile step tries first. (`weak` proves it layer by layer, `attacks` attack by attack.)

use super::{attacks, probe, sh, with_probe};
use crate::check::{Ending, equal, said};
use crate::harness::Test;
use crate::lab::Lab;
use crate::procs;
use crate::serve::Server;
use anyhow::{Result, ensure};
use rustix::process::Signal;
use std::fs;

pub(super) const TESTS: &[Test] = &[
    Test::both("nothing_that_a_hostile_step_tries_is_allowed", attempts),
    Test::both("files_of_the_host_cannot_be_read", host_files),
    Test::both("jobs_side_by_side_do_not_see_each_other", side_by_side),
    Test::both("mounts_of_a_job_do_not_show_on_the_host", mounts),
    Test::both("runner_processes_show_no_secrets_and_take_no_traces", runner_processes),
    Test::both("every_namespace_is_the_jobs_own", namespaces),
    Test::both("layers_in_the_report_are_the_ones_measured", layers),
    Test::root("each_job_has_user_ids_of_its_own", user_ids),
    Test::root("limits_for_each_user_are_the_jobs_own", user_limits),
    Test::root("devices_are_the_jobs_own", devices),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
const CANCELLED: Ending = Ending("cancelled", "job.cancelled", 3);

fn attempts(lab: &Lab) -> Result<()> {
    let server = Server::start("200 OK", b"host".to_vec())?;
    let port = server.port().to_string();
    let ran = lab.run_job(&(with_probe(lab)? + &probe("a", &["isolation", &port])))?.ended(&SUCCEEDED)?;
    let text = ran.log_text("0-a.stdout")?;
    let mut allowed: Vec<&str> = text.lines().filter(|l| l.ends_with("=ALLOWED")).collect();
    if attacks::init_may_be_signalled(lab)? {
        allowed.retain(|line| *line != "kill_init=ALLOWED");
    }
    ensure!(allowed.is_empty(), "a step may: {allowed:?}");
    ensure!(text.lines().count() > 70, "the probe did not try everything:\n{text}");
    for (name, expected) in [
        ("interfaces_but_lo", ""),
        ("connect_outside_udp", "ENETUNREACH"),
        ("connect_host_loopback", "ECONNREFUSED"),
        ("mount", "EPERM"),
        ("unshare_user", "EPERM"),
        ("clone3", "ENOSYS"),
        ("ptrace_traceme", "EPERM"),
        ("mknod_char", "EPERM"),
        ("keyctl", "EPERM"),
        ("roots_home", "ENOENT"),
    ] {
        equal(name, said(&text, name)?, expected)?;
    }
    equal("connections to the host", &server.requests(), &0)?;
    let pid = said(&text, "own_pid")?;
    let listed: Vec<&str> =
        said(&text, "proc")?.split_whitespace().filter(|n| n.parse::<i32>().is_ok()).collect();
    equal("processes in /proc", &listed, &vec![pid])
}

fn host_files(lab: &Lab) -> Result<()> {
    let token = lab.token();
    let canary = std::env::temp_dir().join(format!("canary-{token}"));
    fs::write(&canary, token)?;
    let hidden = lab.write("elsewhere/canary", token)?;
    // The token is put together in the sandbox, so that the job itself does not hold it.
    let (one, two) = token.split_at(token.len() / 2);
    let script = format!(
        "t={one}; t=${{t}}{two}; for f in '/tmp/canary-'$t /root /etc/shadow /etc/sudoers /etc/ssh /boot /sys /var/lib /var/log; do \
         ! test -e \"$f\" || echo \"there: $f\"; done; \
         grep -rsl $t /tmp /var /home /etc /build /run /dev/shm /srv /mnt /opt /root 2>/dev/null || echo none"
    );
    let hides = sh("b", &format!("! cat {} && ! ls {}", hidden.display(), lab.path("").display()));
    let done = lab.run_job(&(sh("a", &script) + &hides));
    fs::remove_file(canary)?;
    let ran = done?.ended(&SUCCEEDED)?;
    equal("found", &ran.log_text("0-a.stdout")?, &"none\n".to_owned())
}

fn side_by_side(lab: &Lab) -> Result<()> {
    let token = lab.token();
    let marker = lab.marker();
    let first = with_probe(lab)?
        + &sh(
            "a",
            &format!(
                "for d in /tmp /dev/shm /build /home/build; do echo x > $d/{token}; done; (/build/probe listen {token} &) | head -1; exec sleep {marker}"
            ),
        );
    let mut live = lab.run(&lab.job(&first)?).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    live.until_says("a | listening=yes")?;
    let second = with_probe(lab)?
        + &probe("socket", &["connect", token])
        + &sh(
            "files",
            &format!(
                "! ls /tmp/{token} /dev/shm/{token} /build/{token} /home/build/{token} 2>/dev/null; ls /proc | grep -c '^[0-9]'; ! kill -0 2 2>/dev/null; kill -9 -1 || true"
            ),
        );
    // In its own state directory, as another caller, and beside it in the same one.
    let elsewhere = lab.job(&second)?;
    let ran = lab.run(&elsewhere).end()?.ended(&SUCCEEDED)?;
    equal("its socket", &ran.log_text("0-socket.stdout")?, &"abstract=ECONNREFUSED\n".to_owned())?;
    ensure!(live.is_running(), "the other job's kill reached it");
    ensure!(procs::with_args(&format!("sleep {marker}")).len() == 1, "its step is gone");
    live.signal(Signal::INT)?;
    live.end()?.ended(&CANCELLED).map(drop)
}

fn mounts(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let table = || fs::read_to_string("/proc/self/mountinfo");
    let before = table()?;
    let mut live = lab.run(&lab.job(&sh("a", &format!("sleep {marker}")))?).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    let during = table()?;
    let new: Vec<&str> = during.lines().filter(|l| !before.lines().any(|b| b == *l)).collect();
    live.signal(Signal::INT)?;
    live.end()?.ended(&CANCELLED)?;
    equal("new mounts", &new, &Vec::new())
}

/// The processes around a job: their environment is empty, and nobody but root may look into them.
fn runner_processes(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let job = lab.job(&sh("a", &format!("sleep {marker}")))?;
    let mut live = lab.run(&job).env("AMPOULE_CANARY", lab.token()).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    let cast = procs::Cast::of(live.pid())?;
    let mut leaks = Vec::new();
    for (name, pid) in [
        ("launcher", cast.launcher),
        ("supervisor", cast.supervisor),
        ("init", cast.init),
        ("pump", cast.pump),
    ] {
        let environment = fs::read(format!("/proc/{pid}/environ"));
        if environment.is_ok_and(|bytes| !bytes.is_empty()) {
            leaks.push(format!("{name} has an environment"));
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        if name == "pump" && !status.contains("NoNewPrivs:\t1") {
            leaks.push("the pump may gain privileges".to_owned());
        }
        // An entry of /proc belongs to root where a process may not be dumped (proc(5)).
        use std::os::unix::fs::MetadataExt;
        let owner = fs::metadata(format!("/proc/{pid}/environ"))?.uid();
        if matches!(name, "init" | "pump") && !lab.is_root() && owner != 0 {
            leaks.push(format!("{name} can be traced by its user"));
        }
    }
    live.signal(Signal::INT)?;
    live.end()?.ended(&CANCELLED)?;
    equal("leaks", &leaks, &Vec::new())
}

fn namespaces(lab: &Lab) -> Result<()> {
    let names = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts", "time"];
    let ran = lab.run_job(&sh(
        "a",
        &format!("for n in {}; do echo $n=$(readlink /proc/self/ns/$n); done", names.join(" ")),
    ))?;
    let text = ran.ended(&SUCCEEDED)?.log_text("0-a.stdout")?;
    for name in names.iter().filter(|n| **n != "time") {
        let host = fs::read_link(format!("/proc/self/ns/{name}"))?.display().to_string();
        let inside = said(&text, name)?;
        ensure!(inside.starts_with(name) && inside != host, "{name}: {inside} inside, {host} on the host");
    }
    Ok(())
}

fn layers(lab: &Lab) -> Result<()> {
    let ran = lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?;
    let report = ran.report()?;
    for layer in [
        "capabilities",
        "identity",
        "landlock",
        "namespace.ipc",
        "namespace.mnt",
        "namespace.net",
        "namespace.pid",
        "namespace.user",
        "namespace.uts",
        "network",
        "no_new_privs",
        "proc",
        "rootfs",
        "seccomp",
    ] {
        let measured = &report["isolation"][layer];
        ensure!(measured["in_force"] == true, "{layer}: {measured}");
    }
    equal("limits", &report["isolation"]["limits"]["in_force"], &serde_json::Value::from(lab.is_root()))?;
    let doctor = lab.ampoule().args(["doctor", "--json", "--state"]).arg(lab.state()).end()?.exits(0)?;
    let text = doctor.stdout_text();
    ensure!(text.contains("landlock") && text.contains("seccomp"), "doctor: {text}");
    Ok(())
}

/// The kernel lets a user have 128 instances of inotify.
fn user_limits(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let count = |ran: &crate::check::Ran| said(&ran.log_text("0-a.stdout")?, "watches").map(str::to_owned);
    let alone =
        lab.run_job(&(with_probe(lab)? + &probe("a", &["watches", "1000", ""])))?.ended(&SUCCEEDED)?;
    let job = lab.job(&(with_probe(lab)? + &probe("a", &["watches", "100", &marker])))?;
    let mut live = lab.run(&job).start()?;
    live.until_runs(&format!("probe wait {marker}"))?;
    let beside =
        lab.run_job(&(with_probe(lab)? + &probe("a", &["watches", "1000", ""])))?.ended(&SUCCEEDED)?;
    live.signal(Signal::INT)?;
    live.end()?.ended(&CANCELLED)?;
    ensure!(count(&alone)?.parse::<u32>()? >= 100, "alone it can have {}", count(&alone)?);
    equal("beside another", &count(&beside)?, &count(&alone)?)
}

/// Times, locks and watches on a device are those of an inode.
fn devices(lab: &Lab) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let marker = lab.marker();
    let of_host =
        || fs::metadata("/dev/full").map(|m| (m.mtime(), m.mtime_nsec(), m.atime(), m.atime_nsec()));
    let before = of_host()?;
    let script = format!("touch /dev/full; exec flock /dev/full sleep {marker}");
    let mut live = lab.run(&lab.job(&sh("a", &script))?).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    let host = fs::File::open("/dev/full")?;
    let locked = rustix::fs::flock(&host, rustix::fs::FlockOperation::NonBlockingLockExclusive);
    live.signal(Signal::INT)?;
    live.end()?.ended(&CANCELLED)?;
    ensure!(locked.is_ok(), "a step's lock is the host's: {locked:?}");
    equal("times of the host's device", &of_host()?, &before)
}

fn user_ids(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let mut lives = Vec::new();
    for number in 0..2 {
        let mut live = lab.run(&lab.job(&sh("a", &format!("sleep {marker}{number}")))?).start()?;
        live.until_runs(&format!("sleep {marker}{number}"))?;
        lives.push(live);
    }
    let blocks: Vec<u32> = (0..2)
        .flat_map(|n| procs::with_args(&format!("sleep {marker}{n}")))
        .filter(|p| p.comm == "sleep")
        .map(|p| p.uid / 65_536)
        .collect();
    for live in &lives {
        live.signal(Signal::INT)?;
    }
    for live in lives {
        live.end()?.ended(&CANCELLED)?;
    }
    let [one, two] = blocks.as_slice() else { anyhow::bail!("{blocks:?}") };
    ensure!(one != two, "two jobs share the block {one}");
    Ok(())
}
