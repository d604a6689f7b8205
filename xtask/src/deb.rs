//! `cargo xtask papers` and `cargo xtask deb`: man pages, completions, and a Debian package.

use crate::shell;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Where man pages and completions are made.
const PAPERS: &str = "target/papers";

/// Writes man pages and completions. True if that went well.
pub(crate) fn papers(root: &Path) -> Result<bool> {
    shell::run(shell::cargo(root).args(["run", "--locked", "-q", "-p", "ampoule", "--", "papers", PAPERS]))?;
    println!("{PAPERS}: man pages and completions");
    Ok(true)
}

/// Makes the package. True if that went well.
pub(crate) fn run(root: &Path) -> Result<bool> {
    if !shell::succeeds(&["cargo", "deb", "--version"]) {
        shell::run(shell::cargo(root).args(["install", "--locked", "cargo-deb"])).context("cargo-deb")?;
    }
    let mut build = shell::cargo(root);
    build.args(["build", "--locked", "--release"]);
    build.args(["ampoule", "ampoule-agent", "ampoule-runner"].iter().flat_map(|name| ["-p", name]));
    shell::run(&mut build)?;
    papers(root)?;
    let mut pack = shell::cargo(root);
    shell::run(pack.args(["deb", "--no-build", "--locked", "-p", "ampoule"]))?;
    let made = made(&root.join("target/debian"))?;
    println!("{}", made.display());
    Ok(true)
}

/// The newest package in a folder.
fn made(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?.flatten();
    let packages = entries.filter(|e| e.path().extension().is_some_and(|e| e == "deb"));
    let newest = packages.max_by_key(|e| e.metadata().and_then(|m| m.modified()).ok());
    Ok(newest.context("cargo-deb left no package")?.path())
}
