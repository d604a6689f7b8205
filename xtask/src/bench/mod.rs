//! `cargo xtask bench`: how long things take, beside others that do the same.

mod contender;
mod launch;
mod start;
mod worker;

use anyhow::Result;
use clap::Subcommand;
use std::path::Path;

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
        Bench::Worker { job, argv } => worker::serve(&argv, job).map(|()| true),
    }
}
