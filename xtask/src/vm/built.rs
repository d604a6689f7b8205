//! What is built for the guest.

use super::{Options, Service, disk};
use crate::{deb, shell};
use anyhow::Result;
use std::fs;
use std::path::{Path, PathBuf};

/// The package that a release before would have installed, and one that comes after it. They differ in their version alone:
/// what is tried is what dpkg, systemd and both daemons do when one takes the other's place.
const VERSIONS: [&str; 2] = ["0.1.0-1", "0.1.1-1"];

/// What was built for the guest.
pub(super) struct Built {
    /// What the suites need, if one runs.
    pub(super) suites: Option<Suites>,
    /// Our packages, the older first, if one is installed.
    pub(super) packages: Option<[PathBuf; 2]>,
}

/// Programs for `ampoule-integration`.
pub(super) struct Suites {
    /// The folder of the programs.
    pub(super) programs: PathBuf,
    /// The runner that does what a test asks for (`integration/src/faulty.rs`).
    pub(super) faulty: PathBuf,
}

/// Builds what the services need.
pub(super) fn build(root: &Path, folder: &Path, options: &Options) -> Result<Built> {
    let wants = |package: bool| options.services.iter().any(|s| (*s == Service::Daemon) == package);
    let packages = || match options.packages.as_slice() {
        [older, newer] => Ok([older.clone(), newer.clone()]),
        _ => packages(root, folder),
    };
    Ok(Built {
        suites: wants(false).then(|| suites(root)).transpose()?,
        packages: wants(true).then(packages).transpose()?,
    })
}

fn suites(root: &Path) -> Result<Suites> {
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
    let target = metadata.target_directory.into_std_path_buf();
    let mut cargo = shell::cargo(root);
    shell::run(
        cargo
            .args(["build", "--locked", "--bins", "--examples", "-p", "ampoule-agent"])
            .args(disk::PROGRAMS.iter().flat_map(|name| ["-p", name])),
    )?;
    shell::run(&mut shell::build_faulty(root, &target))?;
    Ok(Suites { programs: target.join("debug"), faulty: target.join(shell::FAULTY) })
}

fn packages(root: &Path, folder: &Path) -> Result<[PathBuf; 2]> {
    deb::build(root)?;
    let to = folder.join("packages");
    fs::create_dir_all(&to)?;
    let files = VERSIONS.map(|version| to.join(format!("ampoule_{version}.deb")));
    for (version, file) in VERSIONS.iter().zip(&files) {
        deb::pack(root, version, file)?;
    }
    Ok(files)
}
