//! The suites, and how they write job files.

mod attacks;
mod by_name;
mod canaries;
mod cancel;
mod cgroups;
mod chains;
mod ci;
mod commits;
mod crash;
mod daemon;
mod directories;
mod evidence;
mod exits;
mod frozen;
mod git;
mod images;
mod imports;
mod inputs;
mod isolation;
mod leased;
mod liar;
mod limits;
mod listen;
mod listen_faults;
mod logs;
mod mutual;
mod origins;
mod out;
mod outcomes;
mod outputs;
mod pinned;
mod poison;
mod pool;
mod progress;
mod push;
mod python;
mod registry;
mod root;
mod run;
mod secrets;
mod service;
mod soak;
mod sources;
mod step;
mod store;
mod stranger;
mod stuck;
mod submit;
mod teardown;
mod tools;
mod traces;
mod transit;
mod units;
mod upstream;
mod weak;

use crate::harness::Suite;
use crate::lab::Lab;
use anyhow::Result;

/// All of them, in the order in which they are started: the slow ones first.
pub(crate) const ALL: &[Suite] = &[
    Suite { name: "teardown", tests: teardown::TESTS },
    Suite { name: "crash", tests: crash::TESTS },
    Suite { name: "daemon", tests: daemon::TESTS },
    Suite { name: "commits", tests: commits::TESTS },
    Suite { name: "ci", tests: ci::TESTS },
    Suite { name: "python", tests: python::TESTS },
    Suite { name: "leased", tests: leased::TESTS },
    Suite { name: "canaries", tests: canaries::TESTS },
    Suite { name: "traces", tests: traces::TESTS },
    Suite { name: "imports", tests: imports::TESTS },
    Suite { name: "stuck", tests: stuck::TESTS },
    Suite { name: "soak", tests: soak::TESTS },
    Suite { name: "weak", tests: weak::TESTS },
    Suite { name: "store", tests: store::TESTS },
    Suite { name: "poison", tests: poison::TESTS },
    Suite { name: "liar", tests: liar::TESTS },
    Suite { name: "listen_faults", tests: listen_faults::TESTS },
    Suite { name: "listen", tests: listen::TESTS },
    Suite { name: "secrets", tests: secrets::TESTS },
    Suite { name: "limits", tests: limits::TESTS },
    Suite { name: "outcomes", tests: outcomes::TESTS },
    Suite { name: "cancel", tests: cancel::TESTS },
    Suite { name: "cgroups", tests: cgroups::TESTS },
    Suite { name: "pool", tests: pool::TESTS },
    Suite { name: "out", tests: out::TESTS },
    Suite { name: "outputs", tests: outputs::TESTS },
    Suite { name: "progress", tests: progress::TESTS },
    Suite { name: "directories", tests: directories::TESTS },
    Suite { name: "run", tests: run::TESTS },
    Suite { name: "step", tests: step::TESTS },
    Suite { name: "logs", tests: logs::TESTS },
    Suite { name: "inputs", tests: inputs::TESTS },
    Suite { name: "pinned", tests: pinned::TESTS },
    Suite { name: "git", tests: git::TESTS },
    Suite { name: "images", tests: images::TESTS },
    Suite { name: "registry", tests: registry::TESTS },
    Suite { name: "push", tests: push::TESTS },
    Suite { name: "by_name", tests: by_name::TESTS },
    Suite { name: "root", tests: root::TESTS },
    Suite { name: "isolation", tests: isolation::TESTS },
    Suite { name: "attacks", tests: attacks::TESTS },
    Suite { name: "evidence", tests: evidence::TESTS },
    Suite { name: "submit", tests: submit::TESTS },
    Suite { name: "origins", tests: origins::TESTS },
    Suite { name: "mutual", tests: mutual::TESTS },
    Suite { name: "upstream", tests: upstream::TESTS },
    Suite { name: "chains", tests: chains::TESTS },
    Suite { name: "sources", tests: sources::TESTS },
    Suite { name: "tools", tests: tools::TESTS },
    Suite { name: "service", tests: service::TESTS },
    Suite { name: "transit", tests: transit::TESTS },
    Suite { name: "units", tests: units::TESTS },
    Suite { name: "exits", tests: exits::TESTS },
    Suite { name: "stranger", tests: stranger::TESTS },
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
