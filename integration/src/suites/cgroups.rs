//! Control groups: whose subtree the jobs' are in, and what happens when somebody else has a hand in them.

use super::teardown::groups_of_live;
use super::{output, sh};
use crate::check::{Ending, Ran, equal};
use crate::harness::{Test, skip};
use crate::lab::{Call, Lab, Live};
use crate::procs::{self, Cast};
use anyhow::{Context, Result, ensure};
use rustix::fs::{XattrFlags, setxattr};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("limit_that_somebody_takes_away_fails_the_job", taken_away),
    Test::root("job_that_somebody_moves_out_of_its_group_fails", moved_out),
    Test::root("delegated_subtree_of_the_command_line_alone_is_used", delegated),
    Test::root("delegated_subtree_that_others_are_in_is_left_as_it_is", shared),
    Test::root("scope_of_systemd_with_a_subtree_is_used", scope).may_lack("systemd as process 1"),
    Test::root("limits_hold_whatever_systemd_does_meanwhile", systemd).may_lack("systemd as process 1"),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
const UNSUPPORTED: Ending = Ending("aborted", "sandbox.unsupported", 69);

/// A job whose one step goes on until its `sleep` is ended, and goes well then.
struct Sleeper<'l> {
    live: Live<'l>,
    marker: String,
}

impl<'l> Sleeper<'l> {
    fn job(lab: &Lab) -> Result<(PathBuf, String)> {
        let marker = lab.marker();
        let script = format!("echo made > /build/x; sleep {marker} || true");
        Ok((lab.job(&(sh("a", &script) + &output("x", "/build/x")))?, marker))
    }

    fn start(lab: &'l Lab<'_>) -> Result<Self> {
        let (job, marker) = Self::job(lab)?;
        Self::started(lab.run(&job), marker)
    }

    fn started(call: Call<'l>, marker: String) -> Result<Self> {
        let mut live = call.start()?;
        live.until_runs(&format!("sleep {marker}"))?;
        Ok(Self { live, marker })
    }

    fn end(self) -> Result<Ran> {
        let sleeps = || procs::with_args(&self.marker).into_iter().filter(|p| p.comm == "sleep");
        procs::eventually(Duration::from_secs(10), "the step sleeps", || sleeps().next().is_some())?;
        for sleep in sleeps() {
            procs::signal(sleep.pid, Signal::TERM)?;
        }
        self.live.end()
    }
}

/// The first of these files that is in one of the groups.
fn limit_file(groups: &[PathBuf], names: &[&str]) -> Result<PathBuf> {
    let files = groups.iter().flat_map(|group| names.iter().map(move |name| group.join(name)));
    files.into_iter().find(|file| file.exists()).with_context(|| format!("no {names:?} in {groups:?}"))
}

fn is_found_out(ran: Ran, file: &str) -> Result<()> {
    let ran = ran.ended(&UNSUPPORTED)?.says(&[file, "Delegate=yes"])?;
    ensure!(!ran.out.join("outputs/x").exists(), "an output was released");
    let statement = ran.statement("run.intoto.jsonl")?;
    let limits = &statement["predicate"]["isolation"]["limits"];
    equal("in force", &limits["inForce"], &Value::from(false))?;
    ensure!(limits["detail"].as_str().is_some_and(|d| d.contains(file)), "the reason is {limits}");
    Ok(())
}

fn taken_away(lab: &Lab) -> Result<()> {
    let job = Sleeper::start(lab)?.end()?.ended(&SUCCEEDED)?;
    equal("output", &job.output_text("x")?, &"made\n".to_owned())?;
    for names in [
        ["memory.max", "memory.limit_in_bytes"].as_slice(),
        ["pids.max"].as_slice(),
        ["cpu.max", "cpu.cfs_quota_us"].as_slice(),
    ] {
        let job = Sleeper::start(lab)?;
        let file = limit_file(&groups_of_live(lab)?, names)?;
        let before = fs::read_to_string(&file)?;
        // Half the memory is another limit too, and one that no order of writes stands in the way of.
        let other = match before.trim().parse::<u64>() {
            Ok(bytes) if file.ends_with("memory.max") || file.ends_with("memory.limit_in_bytes") => {
                (bytes / 2).to_string()
            }
            _ if file.ends_with("cpu.cfs_quota_us") => "-1".to_owned(),
            _ => "max".to_owned(),
        };
        fs::write(&file, &other).with_context(|| format!("{} to {}", other, file.display()))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        is_found_out(job.end()?, &name).with_context(|| format!("{name} was {before:?}"))?;
    }
    Ok(())
}

fn moved_out(lab: &Lab) -> Result<()> {
    let job = Sleeper::start(lab)?;
    let groups = groups_of_live(lab)?;
    let limited = limit_file(&groups, &["pids.max"])?;
    // The root of a tree may always hold processes, and has no limits.
    let mut root = limited.parent().context("no group")?.to_path_buf();
    while root.parent().is_some_and(|above| above.join("cgroup.procs").exists()) {
        root.pop();
    }
    let init = Cast::of(job.live.pid())?.init;
    fs::write(root.join("cgroup.procs"), init.to_string())?;
    is_found_out(job.end()?, "moved out of its control group")
}

/// Where the version 2 tree is mounted.
fn unified() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let Some(line) = line else { return skip("there is no version 2 tree of control groups") };
    Ok(PathBuf::from(line.split(' ').nth(1).context("no mount point")?))
}

/// A group as systemd(1) delegates one.
struct Delegated(PathBuf);

impl Delegated {
    fn make(lab: &Lab) -> Result<Self> {
        let root = unified()?;
        for controller in fs::read_to_string(root.join("cgroup.controllers"))?.split_whitespace() {
            if ["memory", "pids", "cpu"].contains(&controller) {
                fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"))?;
            }
        }
        let group = Self(root.join(format!("test-{}", lab.token())));
        fs::create_dir(&group.0)?;
        setxattr(&group.0, "trusted.delegate", b"1", XattrFlags::empty())?;
        Ok(group)
    }

    /// `ampoule run JOB`, begun in this group by a shell that is then that program, or stays beside it.
    fn run<'l>(&self, lab: &'l Lab<'_>, job: &Path, stays: bool) -> Call<'l> {
        let begin = format!("echo $$ > '{}/cgroup.procs'; ", self.0.display());
        let run = if stays { "\"$@\"; exit $?" } else { "exec \"$@\"" };
        lab.run(job).through("sh", &["-euc", &(begin + run), "sh"])
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.0.join("launcher"));
        let _ = fs::remove_dir(&self.0);
    }
}

fn delegated(lab: &Lab) -> Result<()> {
    let group = Delegated::make(lab)?;
    let (job, marker) = Sleeper::job(lab)?;
    let job = Sleeper::started(group.run(lab, &job, false), marker)?;
    let groups = groups_of_live(lab)?;
    let client = fs::read_to_string(format!("/proc/{}/cgroup", job.live.pid()))?;
    let ran = job.end()?.ended(&SUCCEEDED)?;
    ensure!(groups.iter().any(|g| g.parent() == Some(&group.0)), "the job's groups are {groups:?}");
    ensure!(client.contains("/launcher\n"), "the command line is in {client}");
    let limits = &ran.report()?["isolation"]["limits"];
    equal("in force", &limits["in_force"], &Value::from(true))
}

fn shared(lab: &Lab) -> Result<()> {
    let group = Delegated::make(lab)?;
    let (job, marker) = Sleeper::job(lab)?;
    let job = Sleeper::started(group.run(lab, &job, true), marker)?;
    let groups = groups_of_live(lab)?;
    let leaf = group.0.join("launcher").exists();
    let shell = fs::read_to_string(format!("/proc/{}/cgroup", job.live.pid()))?;
    job.end()?.ended(&SUCCEEDED)?;
    ensure!(!groups.iter().any(|g| g.starts_with(&group.0)), "the job's groups are {groups:?}");
    let name = group.0.file_name().unwrap_or_default().to_string_lossy().into_owned();
    ensure!(shell.contains(&format!("/{name}\n")), "the shell was moved to {shell}");
    ensure!(!leaf, "a group was left in somebody else's subtree");
    Ok(())
}

/// sd_booted(3).
fn systemd_is_here() -> Result<()> {
    if Path::new("/run/systemd/system").is_dir() {
        return Ok(());
    }
    skip("systemd is not process 1")
}

fn scope(lab: &Lab) -> Result<()> {
    systemd_is_here()?;
    let (job, marker) = Sleeper::job(lab)?;
    let unit = format!("--unit=test-{}", lab.token());
    let args = ["--scope", "--quiet", "--collect", unit.as_str(), "-p", "Delegate=yes", "--"];
    let job = Sleeper::started(lab.run(&job).through("systemd-run", &args), marker)?;
    let groups = groups_of_live(lab);
    job.end()?.ended(&SUCCEEDED)?;
    let groups = groups?;
    let scope = format!("test-{}.scope", lab.token());
    ensure!(groups.iter().any(|g| g.parent().is_some_and(|p| p.ends_with(&scope))), "groups: {groups:?}");
    Ok(())
}

/// What was seen to take a controller from the root's children: a reload, and a unit that wants one and then does not.
fn systemd(lab: &Lab) -> Result<()> {
    systemd_is_here()?;
    let job = Sleeper::start(lab)?;
    let cpu = limit_file(&groups_of_live(lab)?, &["cpu.max", "cpu.cfs_quota_us"])?;
    let before = fs::read_to_string(&cpu)?;
    let unit = |number: u32| format!("--unit=test-{}-{number}", lab.token());
    let (one, two) = (unit(1), unit(2));
    // Scopes, because the other kinds want a message bus, which this machine need not have.
    let scope = ["systemd-run", "--scope", "--quiet", "--collect"];
    for command in [
        &["systemctl", "daemon-reload"],
        [scope.as_slice(), &[&one, "true"]].concat().as_slice(),
        [scope.as_slice(), &[&two, "-p", "CPUQuota=50%", "true"]].concat().as_slice(),
        &["systemctl", "daemon-reload"],
    ] {
        let (program, args) = command.split_first().context("no command")?;
        lab.call(program).args(args).end()?.exits(0)?;
    }
    // It does some of it when it has nothing else to do.
    std::thread::sleep(Duration::from_secs(2));
    let after = fs::read_to_string(&cpu);
    job.end()?.ended(&SUCCEEDED)?;
    equal("the limit of processor time", &after?, &before)
}
