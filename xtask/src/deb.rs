//! `cargo xtask papers` and `cargo xtask deb`: man pages, completions, and a Debian package.

use crate::shell;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where man pages and completions are made.
const PAPERS: &str = "target/papers";
/// The packages whose programs are in the package.
const PROGRAMS: [&str; 3] = ["ampoule", "ampoule-agent", "ampoule-runner"];

/// Writes man pages and completions. True if that went well.
pub(crate) fn papers(root: &Path) -> Result<bool> {
    shell::run(shell::cargo(root).args(["run", "--locked", "-q", "-p", "ampoule", "--", "papers", PAPERS]))?;
    println!("{PAPERS}: man pages and completions");
    Ok(true)
}

/// Makes the package. True if that went well.
pub(crate) fn run(root: &Path) -> Result<bool> {
    build(root)?;
    shell::run(&mut cargo_deb(root))?;
    println!("{}", made(&root.join("target/debian"))?.display());
    Ok(true)
}

/// Builds what goes into a package.
pub(crate) fn build(root: &Path) -> Result<()> {
    if !shell::succeeds(&["cargo", "deb", "--version"]) {
        shell::run(shell::cargo(root).args(["install", "--locked", "cargo-deb"])).context("cargo-deb")?;
    }
    let mut build = shell::cargo(root);
    build.args(["build", "--locked", "--release"]);
    shell::run(build.args(PROGRAMS.iter().flat_map(|name| ["-p", name])))?;
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
    let ampoule = metadata.target_directory.join("release/ampoule");
    shell::run(Command::new(ampoule).args(["papers", PAPERS]).current_dir(root))
}

/// Packs what was built as a package of this version, into a file that nobody ships: it is larger, and made sooner.
pub(crate) fn pack(root: &Path, version: &str, file: &Path) -> Result<()> {
    shell::run(cargo_deb(root).args(["--fast", "--deb-version", version, "--output"]).arg(file))
}

fn cargo_deb(root: &Path) -> Command {
    let mut pack = shell::cargo(root);
    pack.args(["deb", "--no-build", "--locked", "-p", "ampoule"]);
    pack
}

/// The newest package in a folder.
fn made(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?.flatten();
    let packages = entries.filter(|e| e.path().extension().is_some_and(|e| e == "deb"));
    let newest = packages.max_by_key(|e| e.metadata().and_then(|m| m.modified()).ok());
    Ok(newest.context("cargo-deb left no package")?.path())
}
