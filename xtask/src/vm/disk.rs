//! The second disk: what is new in each run. Programs, units, the script, and what the tests read of the repository.

use super::built::{Built, Suites};
use super::{Service, image};
use crate::shell;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs, each named like its package.
pub(super) const PROGRAMS: [&str; 3] = ["ampoule", "ampoule-runner", "ampoule-integration"];
/// The programs of the package `ampoule-agent`.
const OF_AGENT: [&str; 2] = ["ampouled", "examples/keeper"];
/// What tests read (`Lab::repository`).
const REPOSITORY: [&str; 7] = [
    "docs",
    "examples",
    "integration/python",
    "integration/weak-profiles",
    "sandbox-profiles",
    "systemd",
    "xtask/src/profiles",
];
/// Debug programs and some text.
const SIZE: &str = "512M";

/// Makes the disk in a folder; returns its file.
pub(super) fn make(root: &Path, built: &Built, place: &Path, environment: &str) -> Result<PathBuf> {
    let tree = place.join("disk");
    fs::create_dir_all(tree.join("units"))?;
    let guest = root.join("integration/vm");
    fs::copy(guest.join("guest.sh"), tree.join("guest.sh")).context("integration/vm/guest.sh")?;
    for service in Service::ALL {
        let unit = format!("suites-{}.service", service.name());
        fs::copy(guest.join(&unit), tree.join("units").join(&unit)).with_context(|| unit.clone())?;
    }
    if let Some(suites) = &built.suites {
        copy_suites(root, suites, &tree)?;
    }
    if let Some([older, newer]) = &built.packages {
        shell::run(Command::new("cp").arg("-r").arg(guest.join("package")).arg(&tree))?;
        fs::copy(older, tree.join("package/older.deb")).with_context(|| older.display().to_string())?;
        fs::copy(newer, tree.join("package/newer.deb")).with_context(|| newer.display().to_string())?;
    }
    fs::write(tree.join("environment"), environment)?;
    let file = place.join("second.ext4");
    shell::run(&mut image::file_system(&tree, &file, SIZE))?;
    fs::remove_dir_all(&tree)?;
    Ok(file)
}

fn copy_suites(root: &Path, suites: &Suites, tree: &Path) -> Result<()> {
    for folder in ["bin/examples", "faulty", "repository/integration", "repository/xtask/src"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    for name in PROGRAMS.into_iter().chain(OF_AGENT) {
        copy_program(&suites.programs.join(name), &tree.join("bin").join(name))?;
    }
    copy_program(&suites.faulty, &tree.join("faulty/ampoule-runner"))?;
    for folder in REPOSITORY {
        let from = root.join(folder);
        shell::run(Command::new("cp").arg("-r").arg(from).arg(tree.join("repository").join(folder)))?;
    }
    Ok(())
}

/// Without what a debugger wants: the guest hashes the runner, and an emulated processor takes long for it.
fn copy_program(from: &Path, to: &Path) -> Result<()> {
    shell::run(Command::new("strip").arg("-o").arg(to).arg(from))
}

/// The file that the guest's units and its script read: for both, blanks stand within quotes.
pub(super) fn environment(suites: &[String], services: &[Service], patience: u32) -> String {
    let services: Vec<&str> = services.iter().map(|s| s.name()).collect();
    format!(
        "AMPOULE_BIN_DIR=/ampoule/bin\nAMPOULE_REPOSITORY=/ampoule/repository\n\
         AMPOULE_FAULTY_RUNNER=/ampoule/faulty/ampoule-runner\nAMPOULE_PATIENCE={patience}\n\
         SERVICES=\"{}\"\nSUITES=\"{}\"\n",
        services.join(" "),
        suites.join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_is_read_by_a_shell() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("environment");
        let suites = ["isolation".to_owned(), "run/a".to_owned()];
        fs::write(&file, environment(&suites, &[Service::Plain, Service::Delegated], 10)).unwrap();
        let script = ". \"$0\"; for s in $SERVICES $SUITES; do echo $s; done; echo $AMPOULE_PATIENCE";
        let said = Command::new("sh").args(["-euc", script]).arg(&file).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout), "plain\ndelegated\nisolation\nrun/a\n10\n");
    }
}
