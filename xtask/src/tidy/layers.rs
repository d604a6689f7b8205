//! Who may depend on whom. Folders follow trust; this keeps the crates from leaving them.

use super::{Finding, Tree};
use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The crates that are linked into the privileged binary or run while it is built.
const FROZEN: &str = "xtask/runner-crates.txt";
const FROZEN_CRATE: &str = "ampoule-runner";
const FROZEN_HEADER: &str = "# Crates in the normal dependency tree of ampoule-runner. A new one needs a line in a design page.\n\
    # Rewrite with `cargo xtask tidy --bless`.\n";

/// A crate and what must not be in its resolved tree of normal dependencies.
struct Rule {
    krate: &'static str,
    never: &'static [&'static str],
    why: &'static str,
}

const NETWORK: &[&str] = &[
    "tokio",
    "tonic",
    "prost",
    "rustls",
    "hyper",
    "h2",
    "reqwest",
    "toml",
    "toml_edit",
    "native-tls",
    "openssl",
    "ampoule-proto",
    "ampoule-agent",
    "ampoule-evidence",
    "ampoule",
];
const IMPURE: &[&str] = &[
    "tokio",
    "tonic",
    "prost",
    "hyper",
    "reqwest",
    "rustls",
    "rustix",
    "nix",
    "caps",
    "landlock",
    "rand",
    "getrandom",
    "tempfile",
    "ampoule-sys",
    "ampoule-sandbox",
    "ampoule-store",
    "ampoule-journal",
    "ampoule-runner",
    "ampoule-agent",
];
const PRIVILEGED: &[&str] = &["ampoule-sys", "ampoule-sandbox", "ampoule-runner"];

const RULES: &[Rule] = &[
    Rule {
        krate: "ampoule-runner",
        never: NETWORK,
        why: "the privileged side has no network, TLS, async or TOML",
    },
    Rule {
        krate: "ampoule-sandbox",
        never: NETWORK,
        why: "the privileged side has no network, TLS, async or TOML",
    },
    Rule {
        krate: "ampoule-store",
        never: NETWORK,
        why: "the privileged side has no network, TLS, async or TOML",
    },
    Rule {
        krate: "ampoule-sys",
        never: NETWORK,
        why: "the privileged side has no network, TLS, async or TOML",
    },
    Rule {
        krate: "ampoule-spec",
        never: IMPURE,
        why: "shared types do no IO, read no clock, draw no randomness",
    },
    Rule {
        krate: "ampoule-evidence",
        never: IMPURE,
        why: "evidence does no IO, reads no clock, draws no randomness",
    },
    Rule { krate: "ampoule-agent", never: PRIVILEGED, why: "nothing under agent/ ever holds privilege" },
    Rule {
        krate: "ampoule",
        never: PRIVILEGED,
        why: "the command line executes the runner, it does not contain it",
    },
    Rule { krate: "ampoule-proto", never: PRIVILEGED, why: "the wire schema has no rules" },
];

/// What cargo says about the workspace.
pub(crate) struct Layers {
    /// Names of all crates in each workspace crate's tree of normal dependencies, itself left out.
    trees: BTreeMap<String, BTreeSet<String>>,
    /// Normal and build dependencies that each workspace crate names, with its manifest.
    direct: BTreeMap<String, (String, BTreeSet<String>)>,
}

impl Layers {
    /// Asks cargo. The trees are resolved one crate at a time, so that features which another member
    /// turns on do not show.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let metadata = MetadataCommand::new().current_dir(root).no_deps().exec()?;
        let (mut trees, mut direct) = (BTreeMap::new(), BTreeMap::new());
        for package in &metadata.packages {
            let manifest = package.manifest_path.strip_prefix(root).unwrap_or(&package.manifest_path);
            let named = package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development);
            let named = named.map(|d| d.name.clone()).collect();
            direct.insert(package.name.to_string(), (manifest.to_string(), named));
            if RULES.iter().any(|rule| package.name == rule.krate) || package.name == "ampoule-journal" {
                trees.insert(package.name.to_string(), resolved(root, &package.name)?);
            }
        }
        Ok(Self { trees, direct })
    }

    /// Writes the list of the runner's crates anew.
    pub(crate) fn bless(&self, root: &Path) -> Result<()> {
        let tree = self.trees.get(FROZEN_CRATE).context("no ampoule-runner in the workspace")?;
        let names: String = tree.iter().map(|name| format!("{name}\n")).collect();
        fs::write(root.join(FROZEN), format!("{FROZEN_HEADER}{names}")).context(FROZEN)
    }

    pub(crate) fn check(&self, tree: &Tree) -> Vec<Finding> {
        let mut findings = Vec::new();
        for rule in RULES {
            let Some(names) = self.trees.get(rule.krate) else { continue };
            for name in rule.never.iter().filter(|name| names.contains(**name)) {
                findings.push(Finding::new(
                    self.manifest(rule.krate),
                    1,
                    format!("{} depends on {name}: {}", rule.krate, rule.why),
                    "see who brings it with `cargo tree -e normal -i`, and move the code to where it may be",
                ));
            }
        }
        if let Some(name) = self.trees.get("ampoule-journal").and_then(|names| names.first()) {
            findings.push(Finding::new(
                self.manifest("ampoule-journal"),
                1,
                format!("ampoule-journal depends on {name}: both sides share it because it is std only"),
                "do without the crate",
            ));
        }
        for (name, (manifest, named)) in &self.direct {
            let tests = matches!(name.as_str(), "ampoule-tests" | "ampoule-integration");
            if named.contains("anyhow") && !tests && name != "xtask" {
                findings.push(Finding::new(
                    manifest,
                    1,
                    format!("{name} depends on anyhow: its errors need a code and a fault"),
                    "write an error enum with thiserror",
                ));
            }
        }
        findings.extend(self.check_frozen(tree));
        findings
    }

    fn check_frozen(&self, tree: &Tree) -> Vec<Finding> {
        const REMEDY: &str =
            "do without, or write it down in a design page and run `cargo xtask tidy --bless`";
        let Some(now) = self.trees.get(FROZEN_CRATE) else { return Vec::new() };
        let text = tree.texts.get(FROZEN).map_or("", String::as_str);
        let frozen: BTreeSet<String> =
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        let added = now.difference(&frozen).map(|name| format!("{name} is new in the runner"));
        let gone = frozen.difference(now).map(|name| format!("{name} is no longer in the runner"));
        added.chain(gone).map(|message| Finding::new(FROZEN, 1, message, REMEDY)).collect()
    }

    fn manifest<'a>(&'a self, krate: &'a str) -> &'a str {
        self.direct.get(krate).map_or(krate, |(manifest, _)| manifest)
    }
}

/// The names in a crate's tree of normal dependencies, as built for the shipped target.
fn resolved(root: &Path, krate: &str) -> Result<BTreeSet<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "-p", krate, "-e", "normal", "--target", "x86_64-unknown-linux-gnu"])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(root)
        .output()?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr).trim());
    let text = String::from_utf8(output.stdout)?;
    let names = text.lines().filter_map(|line| line.split(' ').next());
    Ok(names.filter(|name| !name.is_empty() && *name != krate).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn findings(krate: &str, tree: &[&str], direct: &[&str], frozen: &str) -> Vec<String> {
        let layers = Layers {
            trees: [(krate.to_owned(), set(tree))].into(),
            direct: [(krate.to_owned(), (format!("{krate}/Cargo.toml"), set(direct)))].into(),
        };
        layers.check(&Tree::of(&[(FROZEN, frozen)])).into_iter().map(|f| f.message).collect()
    }

    #[test]
    fn layers_forbidden_crates_are_red() {
        for (krate, other) in [
            ("ampoule-runner", "tokio"),
            ("ampoule-sandbox", "toml"),
            ("ampoule-agent", "ampoule-sys"),
            ("ampoule", "ampoule-sandbox"),
            ("ampoule-evidence", "rustix"),
            ("ampoule-spec", "getrandom"),
            ("ampoule-journal", "serde"),
        ] {
            let found = findings(krate, &[other], &[], other);
            assert_eq!(found.len(), 1, "{krate} {other}: {found:?}");
        }
        assert_eq!(findings("ampoule-agent", &[], &["anyhow"], "").len(), 1);
        assert_eq!(findings("xtask", &[], &["anyhow"], "").len(), 0);
    }

    #[test]
    fn layers_frozen_list_is_exact() {
        assert_eq!(findings("ampoule-runner", &["libc"], &[], "# a comment\nlibc\n").len(), 0);
        assert_eq!(findings("ampoule-runner", &["libc"], &[], ""), ["libc is new in the runner"]);
        assert_eq!(findings("ampoule-runner", &[], &[], "libc\n"), ["libc is no longer in the runner"]);
    }

    #[test]
    fn layers_every_rule_names_a_crate_of_the_workspace() {
        let root = &crate::root().unwrap();
        let layers = Layers::read(root).unwrap();
        for rule in RULES {
            assert!(layers.trees.contains_key(rule.krate), "{}", rule.krate);
        }
    }
}
