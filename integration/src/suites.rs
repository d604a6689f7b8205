//! The suites, and how they write job files.

mod attacks;
mod by_name;
mod cancel;
mod cgroups;
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
mod pool;
mod root;
mod run;
mod soak;
mod step;
mod stranger;
mod teardown;
mod tools;
mod weak;

use crate::harness::Suite;
use crate::lab::Lab;
use anyhow::Result;

/// All of them, in the order in which they are started: the slow ones first.
pub(crate) const ALL: &[Suite] = &[
    Suite { name: "teardown", groups: &[teardown::TESTS] },
    Suite { name: "crash", groups: &[crash::TESTS] },
    Suite { name: "soak", groups: &[soak::TESTS] },
    Suite { name: "weak", groups: &[weak::TESTS] },
    Suite { name: "limits", groups: &[limits::TESTS] },
    Suite { name: "outcomes", groups: &[outcomes::TESTS] },
    Suite { name: "cancel", groups: &[cancel::TESTS] },
    Suite { name: "cgroups", groups: &[cgroups::TESTS] },
    Suite { name: "pool", groups: &[pool::TESTS] },
    Suite { name: "outputs", groups: &[outputs::TESTS] },
    Suite { name: "run", groups: &[run::TESTS] },
    Suite { name: "step", groups: &[step::TESTS] },
    Suite { name: "logs", groups: &[logs::TESTS] },
    Suite { name: "inputs", groups: &[inputs::TESTS] },
    Suite { name: "images", groups: &[images::TESTS, by_name::TESTS] },
    Suite { name: "root", groups: &[root::TESTS] },
    Suite { name: "isolation", groups: &[isolation::TESTS] },
    Suite { name: "attacks", groups: &[attacks::TESTS] },
    Suite { name: "evidence", groups: &[evidence::TESTS] },
    Suite { name: "tools", groups: &[tools::TESTS] },
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
