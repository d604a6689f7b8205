//! `cargo xtask bench`: how long things take, beside others that do the same.

mod contender;
mod cpu;
mod daemon;
mod hashing;
mod import;
mod intake;
mod launch;
mod layout;
mod rate;
mod sizes;
mod soak;
mod staging;
mod start;
mod submit;
mod usage;
mod verdict;
mod volume;
mod worker;

use anyhow::Result;
use clap::Subcommand;
use std::path::{Path, PathBuf};

/// What is measured.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// From asking for a sandbox to the end of /bin/true in it.
    Start {
        /// Measured runs of each contender, after the warm-up.
        #[arg(long, default_value_t = 100)]
        runs: usize,
        /// Runs of each contender that are not counted.
        #[arg(long, default_value_t = 10)]
        warm_up: usize,
    },
    /// Many sandboxes in a row through one launcher: what the slow ones take, and whether anything grows.
    Soak {
        /// How many.
        #[arg(long, default_value_t = 10_000)]
        jobs: usize,
    },
    /// Sandboxes a second with two in flight, beside crun.
    Rate {
        /// Rounds of three seconds each.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Processor time of a real build in a sandbox and without one. Needs the sources of `cargo xtask demo`.
    Cpu {
        /// Measured builds of each kind.
        #[arg(long, default_value_t = 7)]
        runs: usize,
    },
    /// An import of a Debian beside plain unpacking, umoci, podman and skopeo; hashing beside sha256sum and b3sum.
    Import {
        /// Measured runs of each contender.
        #[arg(long, default_value_t = 7)]
        runs: usize,
    },
    /// Whether a job's start depends on the size of what it is given, and what imports cost against size.
    Staging {
        /// Measured jobs of each kind, and a third of that of each import.
        #[arg(long, default_value_t = 15)]
        runs: usize,
    },
    /// The daemon: from the call that submits a job to its signed record, beside crun and runc; its rate, logs, readers and
    /// memory. Needs root.
    Submit {
        /// Measured jobs, and runs of each contender.
        #[arg(long, default_value_t = 100)]
        runs: usize,
        /// A folder of programs that were built before, to be measured instead of this tree's.
        #[arg(long)]
        programs: Option<PathBuf>,
    },
    /// Times one command again and again, at the word of the parent.
    #[command(hide = true)]
    Worker {
        /// The first word is `ampoule-runner`: a job is sent to it.
        #[arg(long)]
        job: Option<worker::Job>,
        /// The command; `{n}` stands for the number of the run.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        argv: Vec<String>,
    },
}

pub(crate) fn run(root: &Path, bench: Bench) -> Result<bool> {
    match bench {
        Bench::Start { runs, warm_up } => start::run(root, runs, warm_up).map(|()| true),
        Bench::Soak { jobs } => soak::run(root, jobs),
        Bench::Rate { rounds } => rate::run(root, rounds).map(|()| true),
        Bench::Cpu { runs } => cpu::run(root, runs).map(|()| true),
        Bench::Import { runs } => import::run(root, runs),
        Bench::Staging { runs } => staging::run(root, runs),
        Bench::Submit { runs, programs } => submit::run(root, runs, programs),
        Bench::Worker { job, argv } => worker::serve(&argv, job).map(|()| true),
    }
}

/// Programs as they would be shipped.
fn build_release(root: &Path, packages: &[&str]) -> Result<()> {
    build(root, &packages.iter().flat_map(|package| ["-p", package]).collect::<Vec<_>>())
}

/// An example of a package: what only a measurement needs.
fn build_release_example(root: &Path, package: &str, example: &str) -> Result<()> {
    build(root, &["-p", package, "--example", example])
}

fn build(root: &Path, what: &[&str]) -> Result<()> {
    let mut command = crate::shell::cargo(root);
    command.args(["build", "--release", "--locked"]).args(what);
    anyhow::ensure!(command.status()?.success(), "{} cannot be built", what.join(" "));
    Ok(())
}

/// The middle of what was measured; 0 if nothing was.
fn median(mut measured: Vec<f64>) -> f64 {
    measured.sort_unstable_by(f64::total_cmp);
    measured.get(measured.len() / 2).copied().unwrap_or(0.0)
}
