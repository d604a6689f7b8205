//! The suites, and how they write job files.

mod cancel;
mod crash;
mod evidence;
mod exits;
mod images;
mod inputs;
mod isolation;
mod limits;
mod logs;
mod outcomes;
mod outputs;
mod run;
mod step;
mod stranger;
mod tools;

use crate::harness::Suite;
use crate::lab::Lab;
use anyhow::Result;

/// All of them, in the order in which they are started: the slow ones first.
pub(crate) const ALL: &[Suite] = &[
    Suite { name: "crash", groups: &[crash::TESTS] },
    Suite { name: "outcomes", groups: &[outcomes::TESTS, limits::TESTS, cancel::TESTS, outputs::TESTS] },
    Suite { name: "run", groups: &[run::TESTS, step::TESTS, logs::TESTS, inputs::TESTS, images::TESTS] },
    Suite { name: "isolation", groups: &[isolation::TESTS] },
    Suite { name: "evidence", groups: &[evidence::TESTS, tools::TESTS] },
    Suite { name: "exits", groups: &[exits::TESTS] },
    Suite { name: "stranger", groups: &[stranger::TESTS] },
];

/// A step that runs a shell script, stopping at the first error.
fn sh(name: &str, script: &str) -> String {
    format!("[[step]]\nname = \"{name}\"\nrun = [\"sh\", \"-euc\", '''\n{script}\n''']\n")
}

/// A step that runs a program with its arguments.
fn exec(name: &str, argv: &[&str]) -> String {
    let argv: Vec<String> = argv.iter().map(|a| format!("'{a}'")).collect();
    format!("[[step]]\nname = \"{name}\"\nrun = [{}]\n", argv.join(", "))
}

/// A step that runs the probe.
fn probe(name: &str, args: &[&str]) -> String {
    exec(name, &[&["/build/probe"], args].concat())
}

/// The probe as an input.
fn with_probe(lab: &Lab) -> Result<String> {
    Ok(input("probe", &format!("path = '{}'", lab.probe()?.display()), "/build/probe", false))
}

fn input(name: &str, source: &str, mount: &str, writable: bool) -> String {
    format!("[[input]]\nname = \"{name}\"\n{source}\nmount = \"{mount}\"\nwritable = {writable}\n")
}

fn output(name: &str, path: &str) -> String {
    format!("[[output]]\nname = \"{name}\"\npath = \"{path}\"\n")
}
