//! Tests on a real kernel: the programs as they are installed, real processes, real mounts.
//!
//! `ampoule-integration [SUITE…] [--list]` runs as root and as an ordinary user; each test says for whom it
//! is. Nothing here knows the product's types: what is checked is what a stranger sees.

#![allow(clippy::indexing_slicing, reason = "only JSON values are indexed: what they lack is null")]

mod ampouled;
mod audit_log;
mod certificates;
mod check;
mod faulty;
mod harness;
mod image;
mod importing;
mod island;
mod keeper;
mod lab;
mod launcher;
mod listener;
mod middleman;
mod postgres;
mod procs;
mod registry;
mod residue;
mod serve;
mod servers;
mod suites;
mod vault;

use std::process::ExitCode;

const USAGE: &str = "usage: ampoule-integration [SUITE[/TEST]...] [--list]\n\
    environment: AMPOULE_BIN_DIR (ampoule and ampoule-runner), AMPOULE_REPOSITORY, AMPOULE_PYTHON, AMPOULE_CLIENTS_PYTHON,\n\
    AMPOULE_PATIENCE (a factor, where the processor is emulated), AMPOULE_LEASED_KILLS (how often the daemon is killed at each point; 1),\n    CI=true (a skip is a failure)";

fn main() -> ExitCode {
    let mut wanted = Vec::new();
    let mut list = false;
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--list" => list = true,
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            flag if flag.starts_with('-') => {
                eprintln!("{flag} is not an option\n{USAGE}");
                return ExitCode::from(64);
            }
            name => wanted.push(name.to_owned()),
        }
    }
    match harness::run(suites::ALL, &wanted, list) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ampoule-integration: {error:#}");
            ExitCode::from(64)
        }
    }
}
