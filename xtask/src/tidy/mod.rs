//! `cargo xtask tidy`: the rules of the house that the compiler does not check.
//!
//! Every finding names a place and a remedy. The rules work on a [`Tree`], so that each has a test that
//! shows it turning red.

mod fence;
mod layers;
mod links;
mod prose;
mod rust;
mod size;
mod spec;
mod words;

use crate::profiles;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A broken rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    file: String,
    line: usize,
    message: String,
    remedy: &'static str,
}

impl Finding {
    fn new(file: &str, line: usize, message: impl Into<String>, remedy: &'static str) -> Self {
        Self { file: file.to_owned(), line, message: message.into(), remedy }
    }
}

/// The text files of the repository by path relative to its root, and all other paths with them.
#[derive(Default)]
pub(crate) struct Tree {
    texts: BTreeMap<String, String>,
    /// Files that are not text: known to exist, not read.
    others: Vec<String>,
}

impl Tree {
    /// What git knows or would add. Files that it ignores are nobody's business here.
    fn read(root: &Path) -> Result<Self> {
        let listing = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .context("tidy reads the list of files from git; install it")?;
        anyhow::ensure!(listing.status.success(), "git: {}", String::from_utf8_lossy(&listing.stderr).trim());
        let mut tree = Self::default();
        for name in String::from_utf8(listing.stdout)?.split('\0').filter(|n| !n.is_empty()) {
            // A file that was deleted but not yet committed is listed too.
            let Ok(bytes) = fs::read(root.join(name)) else { continue };
            match String::from_utf8(bytes) {
                Ok(text) => drop(tree.texts.insert(name.to_owned(), text)),
                Err(_) => tree.others.push(name.to_owned()),
            }
        }
        Ok(tree)
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        let texts = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Self { texts, others: Vec::new() }
    }

    fn with_extension<'a>(&'a self, extension: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.texts
            .iter()
            .filter(move |(name, _)| Path::new(name).extension().is_some_and(|e| e == extension))
            .map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Whether a file or a folder of this name exists.
    fn has(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        path.is_empty()
            || self.texts.keys().chain(&self.others).any(|name| name == path || name.starts_with(&folder))
    }
}

/// Runs all rules. `bless` rewrites the frozen list of the runner's crates instead of checking it.
pub(crate) fn run(root: &Path, bless: bool) -> Result<bool> {
    let layers = layers::Layers::read(root)?;
    if bless {
        layers.bless(root)?;
    }
    let tree = Tree::read(root)?;
    let mut findings = layers.check(&tree);
    findings.extend(fence::check(&tree));
    findings.extend(links::check(&tree));
    findings.extend(words::check(&tree));
    findings.extend(size::check(&tree));
    findings.extend(spec::check(&tree));
    findings.extend(prose::check(&tree));
    findings.extend(compiled_profiles(root, &tree)?);
    findings.sort();
    for f in &findings {
        eprintln!("{}:{}: {}\n    remedy: {}", f.file, f.line, f.message, f.remedy);
    }
    match findings.len() {
        0 => eprintln!("tidy: {} files, no findings", tree.texts.len() + tree.others.len()),
        count => eprintln!("tidy: {count} findings"),
    }
    Ok(findings.is_empty())
}

fn compiled_profiles(root: &Path, tree: &Tree) -> Result<Vec<Finding>> {
    let compiled = profiles::compile_all(root)?;
    let mut findings = Vec::new();
    for file in &compiled {
        let name = file.path.display().to_string();
        if tree.texts.get(&name) != Some(&file.text) {
            findings.push(Finding::new(
                &name,
                1,
                "differs from its source",
                "run `cargo xtask profiles` and commit what it writes",
            ));
        }
    }
    for name in tree.texts.keys().filter(|n| n.starts_with("sandbox-profiles/compiled/")) {
        if !compiled.iter().any(|file| file.path.display().to_string() == *name) {
            findings.push(Finding::new(name, 1, "has no source", "remove it, or add the profile's .toml"));
        }
    }
    Ok(findings)
}
