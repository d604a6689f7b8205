//! `cargo xtask vm`: suites of `ampoule-integration` in a virtual machine, where systemd is process 1 and
//! control groups are of version 2 alone.
//!
//! The machine is Debian's kernel and systemd, made from packages by the host's own apt. It has no network and
//! its disk forgets: nothing of a run is in the next one. Everything is kept below `target/vm/`.
//!
//! `--service daemon` is another thing: our own package is installed there, used, upgraded and purged
//! (`integration/vm/package/`).

mod built;
mod disk;
mod image;
mod machine;
mod report;

pub(crate) use image::mirror;

use crate::shell::{self, Needed};
use crate::test::count::Counts;
use anyhow::{Result, ensure};
use built::Built;
use clap::{Args, ValueEnum};
use machine::Machine;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const NEEDED: &[Needed] = &[
    Needed { probe: &["cc", "--version"], package: "gcc" },
    Needed { probe: &["strip", "--version"], package: "binutils" },
    Needed { probe: &["qemu-system-x86_64", "--version"], package: "qemu-system-x86" },
    Needed { probe: &["mmdebstrap", "--version"], package: "mmdebstrap" },
    Needed { probe: &["test", "-r", image::KEYRING], package: "debian-archive-keyring" },
    Needed { probe: &["mkfs.ext4", "-V"], package: "e2fsprogs" },
    Needed { probe: &["setpriv", "--version"], package: "util-linux" },
    Needed { probe: &["timeout", "--version"], package: "coreutils" },
];

/// How many times longer than natively the tests may take on an emulated processor.
const EMULATED_PATIENCE: u32 = 10;

#[derive(Args)]
pub(crate) struct Options {
    /// The Debian release that gives kernel and systemd; may be given again.
    #[arg(long = "kernel", value_enum, default_values_t = [Release::Bookworm])]
    releases: Vec<Release>,
    /// How the suites are started inside; may be given again.
    #[arg(long = "service", value_enum, default_values_t = [Service::Plain])]
    services: Vec<Service>,
    /// What runs the machine's instructions.
    #[arg(long, value_enum, default_value_t = Accelerator::Tcg)]
    accel: Accelerator,
    /// After how many minutes a machine is ended.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u64).range(1..=1440))]
    minutes: u64,
    /// For `--service daemon`: the package to install, and the one that takes its place. Without them both are built here.
    #[arg(long, num_args = 2, value_names = ["OLDER", "NEWER"])]
    packages: Vec<PathBuf>,
    /// Names of suites, or SUITE/TEST; none means all.
    #[arg(value_parser = suite_name)]
    suites: Vec<String>,
}

/// A Debian release.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Release {
    /// Linux 6.1, systemd 252.
    Bookworm,
    /// Linux 6.12, systemd 257.
    Trixie,
}

/// A unit `suites-*.service` of `integration/vm/`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Service {
    /// As root, in a control group like any service's.
    Plain,
    /// As root, with a delegated subtree of control groups.
    Delegated,
    /// As an ordinary user.
    User,
    /// No suites: the package, installed as an operator would.
    Daemon,
}

/// A way of QEMU to run the guest's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Accelerator {
    /// Emulation, which needs nothing of the host.
    Tcg,
    /// The host's processor, through /dev/kvm.
    Kvm,
}

impl Release {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

impl Service {
    pub(crate) const ALL: [Self; 4] = [Self::Plain, Self::Delegated, Self::User, Self::Daemon];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Delegated => "delegated",
            Self::User => "user",
            Self::Daemon => "daemon",
        }
    }
}

impl Accelerator {
    fn patience(self) -> u32 {
        match self {
            Self::Tcg => EMULATED_PATIENCE,
            Self::Kvm => 1,
        }
    }
}

/// A line of the table.
struct Row {
    what: String,
    counts: Counts,
    note: String,
}

/// Runs the suites in each machine. False if anything failed.
pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    ensure!(shell::is_root(), "an image has files of root and of other users; run this as root");
    let missing = shell::install(NEEDED);
    ensure!(missing.is_empty(), "missing: {0}; install it (apt-get install {0})", missing.join(" "));
    let folder = root.join("target/vm");
    fs::create_dir_all(&folder)?;
    let built = built::build(root, &folder, options)?;
    let mut rows = Vec::new();
    for release in &options.releases {
        rows.extend(run_machine(root, &built, &folder, *release, options)?);
    }
    println!("\n{:<20} {:>7} {:>7} {:>8}", "machine/service", "passed", "failed", "skipped");
    let mut total = Counts::default();
    for Row { what, counts, note } in rows {
        let line =
            format!("{what:<20} {:>7} {:>7} {:>8}  {note}", counts.passed, counts.failed, counts.skipped);
        println!("{}", line.trim_end());
        total = total + counts;
    }
    println!("\n{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    Ok(total.failed == 0)
}

fn run_machine(
    root: &Path,
    built: &Built,
    folder: &Path,
    release: Release,
    options: &Options,
) -> Result<Vec<Row>> {
    let base = image::base(root, folder, release)?;
    let place = folder.join(release.name());
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(&place)?;
    let environment = disk::environment(&options.suites, &options.services, options.accel.patience());
    let second = disk::make(root, built, &place, &environment)?;
    let console = place.join("console.log");
    let machine = Machine {
        base: &base,
        second: &second,
        console: &console,
        accel: options.accel,
        limit: Duration::from_secs(options.minutes.saturating_mul(60)),
    };
    println!("\n=== {}: kernel and systemd write to {}", release.name(), console.display());
    let begun = Instant::now();
    let (status, output) = shell::stream(machine.command(), &place.join("tests.log"))?;
    let took = begun.elapsed().as_secs_f64();
    let mut rows = Vec::new();
    for service in &options.services {
        let said = report::section(&output, service.name());
        let counts = report::counts(said.as_ref());
        let note =
            if said.is_some() { format!("in {took:.0} s") } else { machine::why_silent(status, &console) };
        rows.push(Row { what: format!("{}/{}", release.name(), service.name()), counts, note });
    }
    Ok(rows)
}

/// Names go into a file that a shell reads.
fn suite_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/');
    if !text.is_empty() && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("no name of a suite".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suite_name_with_a_blank_or_a_quote_is_refused() {
        assert_eq!(
            suite_name("outcomes/full_disk_is_limit_disk").unwrap(),
            "outcomes/full_disk_is_limit_disk"
        );
        for bad in ["", "a b", "a'b", "a\"b", "$a"] {
            assert!(suite_name(bad).is_err(), "{bad}");
        }
    }
}
