//! Many jobs that end in every way there is, some at the same time, and then nothing.

use super::{exec, input, output, sh};
use crate::check::{equal, json};
use crate::harness::Test;
use crate::lab::Lab;
use crate::procs::{self, Cast};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

pub(super) const TESTS: &[Test] = &[Test::both("jobs_that_end_in_every_way_leave_nothing", mixed)];

/// How many jobs, if `AMPOULE_SOAK_JOBS` does not say.
const JOBS: u32 = 100;
/// How many run at the same time.
const SIDE_BY_SIDE: u32 = 3;

/// How a job is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Succeeds,
    Fails,
    TimesOut,
    IsCancelled,
    LosesItsClient,
    LosesItsSupervisor,
    LosesItsLauncher,
}

const ENDS: [End; 10] = [
    End::Succeeds,
    End::Succeeds,
    End::Fails,
    End::Succeeds,
    End::TimesOut,
    End::IsCancelled,
    End::LosesItsClient,
    End::Succeeds,
    End::LosesItsSupervisor,
    End::LosesItsLauncher,
];

/// The job files, by how the job ends; those that wait have an argument by which their step is found.
struct Jobs(BTreeMap<End, PathBuf>, AtomicU32);

impl Jobs {
    fn write(lab: &Lab) -> Result<Self> {
        lab.write("src/a", "a")?;
        let source = format!("path = '{}'", lab.path("src").display());
        let work =
            input("src", &source, "/build/src", true) + &sh("a", "echo b > /build/src/b; (sleep 60 &); true");
        let made = [
            (End::Succeeds, work.clone() + &output("b", "/build/src/b")),
            (End::Fails, work.clone() + &sh("b", "exit 7")),
            (End::TimesOut, work.clone() + &exec("b", &["sleep", "60"]) + "[limits]\ntimeout = \"300ms\"\n"),
        ];
        let mut files = BTreeMap::new();
        for (end, body) in made {
            files.insert(end, lab.job(&body)?);
        }
        Ok(Self(files, AtomicU32::new(0)))
    }

    /// A job whose step waits, and by what it is found.
    fn waiting(&self, lab: &Lab) -> Result<(PathBuf, String)> {
        let marker = format!("{}{:04}", lab.marker(), self.1.fetch_add(1, Ordering::Relaxed));
        Ok((
            lab.job(&(sh("a", "echo x > /tmp/x") + &exec("b", &["sleep", &marker])))?,
            format!("sleep {marker}"),
        ))
    }
}

fn mixed(lab: &Lab) -> Result<()> {
    let count = match std::env::var("AMPOULE_SOAK_JOBS") {
        Ok(text) => text.parse().context("AMPOULE_SOAK_JOBS")?,
        Err(_) => JOBS,
    };
    let jobs = Jobs::write(lab)?;
    let number = AtomicU32::new(0);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    let next = number.fetch_add(1, Ordering::Relaxed);
                    let Some(end) = ENDS.get(next as usize % ENDS.len()).filter(|_| next < count) else {
                        break;
                    };
                    if let Err(error) = one(lab, &jobs, *end) {
                        failed
                            .lock()
                            .unwrap_or_else(|e| e.into_inner())
                            .push(format!("job {next} {end:?}: {error:#}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(|e| e.into_inner());
    ensure!(failed.is_empty(), "{} of {count} jobs: {}", failed.len(), failed.join("\n"));
    // Whoever lost its client is ended by a next run.
    lab.run_job(&sh("a", "true"))?.exits(0)?;
    equal("job directories", &crate::lab::tree(&lab.state().join("jobs"))?, &Vec::new())?;
    let clean = records_are_clean(&lab.state().join("records"))?;
    println!("soak: {count} jobs, {SIDE_BY_SIDE} at a time, {clean} of them ended by a later run");
    Ok(())
}

fn one(lab: &Lab, jobs: &Jobs, end: End) -> Result<()> {
    let Some(job) = jobs.0.get(&end) else { return interrupted(lab, jobs, end) };
    let ran = lab.run(job).end()?;
    let (exit, outcome) = match end {
        End::Fails => (1, "failed"),
        End::TimesOut => (1, "timed_out"),
        _ => (0, "succeeded"),
    };
    let out = ran.out.clone();
    let ran = ran.exits(exit)?;
    equal("outcome", ran.result()?["outcome"].as_str().unwrap_or_default(), outcome)?;
    is_clean(&out.join("evidence/report.json"))?;
    Ok(fs::remove_dir_all(out)?)
}

/// Something of it is killed, or asked to end, while its step waits.
fn interrupted(lab: &Lab, jobs: &Jobs, end: End) -> Result<()> {
    let (job, args) = jobs.waiting(lab)?;
    let mut live = lab.run(&job).start()?;
    live.until_runs(&args)?;
    let victim =
        |of: fn(&Cast) -> i32| -> Result<()> { procs::signal(of(&Cast::of(live.pid())?), Signal::KILL) };
    match end {
        End::LosesItsClient => victim(|cast| cast.client)?,
        End::LosesItsSupervisor => victim(|cast| cast.supervisor)?,
        End::LosesItsLauncher => victim(|cast| cast.launcher)?,
        _ => live.signal(Signal::INT)?,
    }
    let ran = live.end()?;
    procs::eventually(std::time::Duration::from_secs(10), "its step is gone", || {
        procs::with_args(&args).is_empty()
    })?;
    let expected = match end {
        End::IsCancelled => Some(3),
        End::LosesItsClient => None,
        _ => Some(75),
    };
    equal("exit status", &ran.status, &expected).with_context(|| ran.stderr.clone())?;
    if ran.out.exists() {
        is_clean(&ran.out.join("evidence/report.json"))?;
        fs::remove_dir_all(&ran.out)?;
    }
    fs::remove_file(job)?;
    Ok(())
}

fn is_clean(report: &Path) -> Result<()> {
    let report = json(report)?;
    let checks = report["teardown"]["checks"].as_array().context("no checks")?;
    ensure!(checks.iter().all(|check| check["state"] != "left"), "left behind: {checks:?}");
    Ok(())
}

/// The records of jobs that a later run had to end.
fn records_are_clean(records: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(records).into_iter().flatten().flatten() {
        is_clean(&entry.path().join("report.json"))?;
        count += 1;
    }
    Ok(count)
}
