//! Tasks of the repository: `cargo xtask <command>`.

mod bench;
mod deb;
mod demo;
mod fuzz;
mod profiles;
mod shell;
mod test;
mod tidy;
mod vm;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the repository")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a real job from end to end: build, attest, verify.
    Demo,
    /// Install what the tests need and run all of them.
    Test,
    /// Run integration tests on this machine, as root and as an ordinary user.
    Integration {
        /// Suites, or single tests as SUITE/TEST; all if none is named.
        tests: Vec<String>,
    },
    /// Run integration tests in a virtual machine with systemd and version 2 control groups.
    Vm(vm::Options),
    /// Measure.
    Bench {
        #[command(subcommand)]
        bench: bench::Bench,
    },
    /// Write man pages and completions to target/papers/.
    Papers,
    /// Make a Debian package of programs, units and papers.
    Deb,
    /// Feed what reads strangers' bytes with bytes that no one has thought of.
    Fuzz(fuzz::Options),
    /// Check the rules of the house that the compiler does not.
    Tidy {
        /// Rewrite the frozen list of the runner's crates.
        #[arg(long)]
        bless: bool,
    },
    /// Compile sandbox-profiles/ to what the launcher reads.
    Profiles {
        /// Change nothing; fail if a compiled file differs from its source.
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let root = root()?;
    match Cli::parse().command {
        Command::Demo => demo::run(&root),
        Command::Test => test::run(&root),
        Command::Integration { tests } => test::integration(&root, tests),
        Command::Vm(options) => vm::run(&root, &options),
        Command::Papers => deb::papers(&root),
        Command::Deb => deb::run(&root),
        Command::Fuzz(options) => fuzz::run(&root, &options),
        Command::Bench { bench } => bench::run(&root, bench),
        Command::Tidy { bless } => tidy::run(&root, bless),
        Command::Profiles { check } => profiles::run(&root, check),
    }
}

/// The root of the repository: the parent of this package.
///
/// Cargo says where that is when it runs a program. What was true at compile time may be another checkout,
/// if both share a target folder.
fn root() -> Result<PathBuf> {
    let built = env!("CARGO_MANIFEST_DIR").into();
    let package = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(built));
    package.parent().map(Path::to_path_buf).context("xtask/ has a parent")
}
