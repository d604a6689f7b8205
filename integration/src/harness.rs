//! Runs tests, a few at a time, and says how each went.

use crate::lab::{Kit, Lab};
use crate::residue::Snapshot;
use anyhow::{Result, bail};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many tests run at a time: most of them wait for a process.
const WORKERS: usize = 3;

/// As whom the tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Root,
    User,
}

/// One test.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    name: &'static str,
    modes: &'static [Mode],
    /// What this machine may lack for the test; a skip for anything else fails where everything must run.
    lack: Option<&'static str>,
    body: fn(&Lab) -> Result<()>,
}

impl Test {
    pub(crate) const fn both(name: &'static str, body: fn(&Lab) -> Result<()>) -> Self {
        Self { name, modes: &[Mode::Root, Mode::User], lack: None, body }
    }

    pub(crate) const fn root(name: &'static str, body: fn(&Lab) -> Result<()>) -> Self {
        Self { name, modes: &[Mode::Root], lack: None, body }
    }

    pub(crate) const fn user(name: &'static str, body: fn(&Lab) -> Result<()>) -> Self {
        Self { name, modes: &[Mode::User], lack: None, body }
    }

    pub(crate) const fn may_lack(mut self, what: &'static str) -> Self {
        self.lack = Some(what);
        self
    }
}

/// A group of tests.
pub(crate) struct Suite {
    pub(crate) name: &'static str,
    pub(crate) tests: &'static [Test],
}

/// Why a test cannot run here. Made by [`skip`], carried as an error.
#[derive(Debug)]
struct Skip(String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Ends a test that cannot run here.
pub(crate) fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Skip(reason.into()).into())
}

/// How a test went.
enum Verdict {
    Passed,
    Skipped(String),
    Failed(String),
}

#[derive(Default)]
struct Counts {
    passed: u32,
    failed: u32,
    skipped: u32,
    failures: Vec<String>,
}

struct Job {
    full_name: String,
    test: Test,
}

/// Runs the suites and tests that are wanted (none: all). False if one failed.
pub(crate) fn run(suites: &[Suite], wanted: &[String], list: bool) -> Result<bool> {
    let mode = if rustix::process::geteuid().is_root() { Mode::Root } else { Mode::User };
    let jobs = select(suites, wanted, mode)?;
    if list {
        for job in &jobs {
            println!("{}", job.full_name);
        }
        return Ok(true);
    }
    let begun = Instant::now();
    let before = Snapshot::take();
    let kit = Kit::make(mode)?;
    let counts = Mutex::new(Counts::default());
    let queue = Mutex::new(VecDeque::from(jobs));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    // Not in the loop's head, where the queue would stay locked while the test runs.
                    let Some(job) = lock(&queue).pop_front() else { break };
                    let begun = Instant::now();
                    let verdict = run_one(&job.test, &job.full_name, &kit);
                    record(&counts, &job, verdict, begun.elapsed());
                }
            });
        }
    });
    let base = kit.base().to_owned();
    drop(kit);
    let residue = Job {
        full_name: "residue/host_is_as_it_was_before".to_owned(),
        test: Test::both("host_is_as_it_was_before", |_| Ok(())),
    };
    let verdict = verdict_of(before.compare(&base), None);
    record(&counts, &residue, verdict, Duration::ZERO);
    let counts = counts.into_inner().unwrap_or_else(PoisonError::into_inner);
    for failure in &counts.failures {
        println!("\n{failure}");
    }
    println!("\nin {:.1} s", begun.elapsed().as_secs_f64());
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    Ok(counts.failed == 0)
}

fn select(suites: &[Suite], wanted: &[String], mode: Mode) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    for suite in suites {
        for test in suite.tests.iter() {
            let full_name = format!("{}/{}", suite.name, test.name);
            let is_wanted = wanted.is_empty() || wanted.iter().any(|w| *w == suite.name || *w == full_name);
            if is_wanted && test.modes.contains(&mode) {
                jobs.push(Job { full_name, test: *test });
            }
        }
    }
    for name in wanted {
        let known = suites.iter().any(|s| {
            *name == s.name
                || s.tests.iter().any(|t| name.strip_prefix(s.name) == Some(&format!("/{}", t.name)))
        });
        if !known {
            let names: Vec<_> = suites.iter().map(|s| s.name).collect();
            bail!("{name} is neither a suite nor a test; the suites are {}", names.join(", "));
        }
    }
    Ok(jobs)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run_one(test: &Test, name: &str, kit: &Kit) -> Verdict {
    let attempt = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::new(kit, name)?;
        let done = (test.body)(&lab);
        // A test that failed may have left things; a test that passed must not.
        let left = lab.finish();
        done.and(left)
    }));
    match attempt {
        Ok(done) => verdict_of(done, test.lack),
        Err(_) => Verdict::Failed("the test itself panicked".to_owned()),
    }
}

fn verdict_of(done: Result<()>, lack: Option<&str>) -> Verdict {
    let must_run = std::env::var_os("CI").is_some_and(|v| v == "true");
    match done {
        Ok(()) => Verdict::Passed,
        Err(error) => match (error.downcast_ref::<Skip>(), lack) {
            (None, _) => Verdict::Failed(format!("{error:#}")),
            (Some(reason), None) if must_run => {
                Verdict::Failed(format!("cannot run, and must where CI=true: {reason}"))
            }
            (Some(reason), None) => Verdict::Skipped(reason.to_string()),
            (Some(reason), Some(lack)) => Verdict::Skipped(format!("this machine lacks {lack}: {reason}")),
        },
    }
}

fn record(counts: &Mutex<Counts>, job: &Job, verdict: Verdict, took: Duration) {
    let mut counts = lock(counts);
    let name = &job.full_name;
    let seconds = took.as_secs_f64();
    match verdict {
        Verdict::Passed => {
            counts.passed += 1;
            println!("passed   {name} ({seconds:.1} s)");
        }
        Verdict::Skipped(reason) => {
            counts.skipped += 1;
            println!("skipped  {name}: {reason}");
        }
        Verdict::Failed(detail) => {
            counts.failed += 1;
            println!("FAILED   {name} ({seconds:.1} s): {}", detail.lines().next().unwrap_or_default());
            counts.failures.push(format!("--- {name}\n{detail}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_tells_a_skip_from_a_failure() {
        assert!(matches!(verdict_of(Ok(()), None), Verdict::Passed));
        assert!(matches!(verdict_of(Err(anyhow::anyhow!("x")), Some("y")), Verdict::Failed(_)));
        let Verdict::Skipped(reason) = verdict_of(skip("no python"), Some("an interpreter")) else {
            panic!("not skipped")
        };
        assert_eq!(reason, "this machine lacks an interpreter: no python");
    }

    #[test]
    fn select_refuses_a_name_that_is_unknown() {
        const SUITES: &[Suite] = &[Suite { name: "a", tests: &[Test::root("b", |_| Ok(()))] }];
        let wanted = |name: &str| vec![name.to_owned()];
        assert_eq!(select(SUITES, &wanted("a"), Mode::Root).unwrap().len(), 1);
        assert_eq!(select(SUITES, &wanted("a/b"), Mode::User).unwrap().len(), 0);
        assert!(select(SUITES, &wanted("c"), Mode::Root).is_err());
    }
}
