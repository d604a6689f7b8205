//! `cargo xtask profiles`: compiles `sandbox-profiles/` to what the launcher reads.
//!
//! The output depends on the sources and on the compiler in this folder alone, so that the digest of a
//! profile in an attestation can be recomputed from the repository.

mod bpf;
mod compile;
mod import;
mod rules;
mod source;
#[cfg(test)]
mod tests;
mod units;

use ampoule_spec::{FORMAT, Profile, Seccomp};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use source::{Policy, User};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The house's policy: what it refuses stays refused, whatever list is imported.
const HOUSE: &str = "seccomp/x86_64.json";

/// A profile as people write it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileSource {
    ampoule: u32,
    name: String,
    summary: String,
    seccomp: SeccompSource,
    namespaces: Vec<ampoule_spec::Namespace>,
    network: ampoule_spec::Network,
    mounts: ampoule_spec::Mounts,
    devices: Vec<ampoule_spec::Device>,
    capabilities: ampoule_spec::Capabilities,
    no_new_privs: bool,
    requires: ampoule_spec::Requirements,
    landlock: ampoule_spec::LandlockRules,
    limits: LimitsSource,
    ceiling: LimitsSource,
    #[serde(default)]
    read_back: ampoule_spec::ReadPolicy,
}

/// Where a profile's system call policy comes from, relative to the folder of the profiles.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "seccomp is the path of a policy, or { oci = \"path of an OCI seccomp section\" }"
)]
enum SeccompSource {
    /// A policy in our format.
    Policy(String),
    /// A list in the form of OCI runtimes, which narrows the house's policy.
    List(ListSource),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListSource {
    oci: String,
}

/// Limits with units, under the names that a job file uses.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsSource {
    memory: String,
    cpus: u64,
    pids: u64,
    disk: String,
    disk_inodes: u64,
    log: String,
    timeout: String,
    open_files: u64,
}

impl LimitsSource {
    fn resolve(&self) -> Result<Value> {
        Ok(json!({
            "memory_bytes": units::bytes(&self.memory)?,
            "cpu_millis": self.cpus.checked_mul(1000).context("cpus is too large")?,
            "pids": self.pids,
            "disk_bytes": units::bytes(&self.disk)?,
            "disk_inodes": self.disk_inodes,
            "log_bytes": units::bytes(&self.log)?,
            "timeout_ms": units::milliseconds(&self.timeout)?,
            "open_files": self.open_files,
        }))
    }
}

/// A compiled profile and where it belongs.
pub(crate) struct Compiled {
    /// The file, relative to the root of the repository.
    pub(crate) path: PathBuf,
    /// Its whole text.
    pub(crate) text: String,
    /// What was left out of a list that the profile imports, for people.
    pub(crate) notes: Vec<String>,
}

/// Compiles all profiles, and writes them or compares them with what is there.
pub(crate) fn run(root: &Path, check: bool) -> Result<bool> {
    let mut same = true;
    for compiled in compile_all(root)? {
        for note in &compiled.notes {
            eprintln!("{}: {note}", compiled.path.display());
        }
        let path = root.join(&compiled.path);
        if fs::read_to_string(&path).is_ok_and(|text| text == compiled.text) {
            continue;
        }
        same = false;
        if check {
            eprintln!("{}: differs from its source; run `cargo xtask profiles`", compiled.path.display());
        } else {
            let folder = path.parent().context("a file in a folder")?;
            fs::create_dir_all(folder)?;
            fs::write(&path, &compiled.text)?;
            eprintln!("{}: written", compiled.path.display());
        }
    }
    Ok(same || !check)
}

/// Compiles every `sandbox-profiles/*.toml`, in the order of their names.
pub(crate) fn compile_all(root: &Path) -> Result<Vec<Compiled>> {
    let folder = root.join("sandbox-profiles");
    let mut sources: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| folder.display().to_string())?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    sources.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    sources.sort();
    ensure!(!sources.is_empty(), "{}: no profile", folder.display());
    sources
        .iter()
        .map(|path| {
            let (profile, notes) =
                compile_profile(&folder, path).with_context(|| path.display().to_string())?;
            let file = format!("sandbox-profiles/compiled/{}.json", profile.name);
            Ok(Compiled { path: file.into(), text: pretty(&serde_json::to_value(&profile)?)?, notes })
        })
        .collect()
}

fn compile_profile(folder: &Path, path: &Path) -> Result<(Profile, Vec<String>)> {
    let source: ProfileSource = toml::from_str(&fs::read_to_string(path)?)?;
    ensure!(source.ampoule == FORMAT, "ampoule = {}; this build knows {FORMAT}", source.ampoule);
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    ensure!(source.name == stem, "name = {:?}, but the file is called {stem:?}", source.name);
    let (seccomp, notes) = source.seccomp.compile(folder)?;
    let profile: Profile = serde_json::from_value(json!({
        "ampoule": source.ampoule,
        "name": source.name,
        "summary": source.summary,
        "namespaces": source.namespaces,
        "network": source.network,
        "mounts": source.mounts,
        "devices": source.devices,
        "capabilities": source.capabilities,
        "no_new_privs": source.no_new_privs,
        "requires": source.requires,
        "landlock": source.landlock,
        "seccomp": seccomp,
        "limits": source.limits.resolve().context("limits")?,
        "ceiling": source.ceiling.resolve().context("ceiling")?,
        "read_back": source.read_back,
    }))?;
    for ((name, default), (_, ceiling)) in profile.limits.entries().iter().zip(profile.ceiling.entries()) {
        ensure!((1..=ceiling).contains(default), "{name}: default {default}, ceiling {ceiling}");
    }
    let weak = profile.weaknesses();
    ensure!(weak.is_empty(), "weaker than a profile may be: {}", weak.join("; "));
    Ok((profile, notes))
}

impl SeccompSource {
    /// The programs, and what was left out of an imported list.
    fn compile(&self, folder: &Path) -> Result<(Seccomp, Vec<String>)> {
        let (policy, list) = match self {
            Self::Policy(policy) => (policy.as_str(), None),
            Self::List(list) => (HOUSE, Some(list.oci.as_str())),
        };
        let house = Policy::parse(&read_source(folder, policy)?).with_context(|| policy.to_owned())?;
        let imported = list
            .map(|name| import::read(&read_source(folder, name)?).with_context(|| name.to_owned()))
            .transpose()?;
        let programs = |user| {
            compile::programs(&house, imported.as_ref().map(|list| &list.policy), user)
                .with_context(|| list.unwrap_or(policy).to_owned())
        };
        let seccomp = Seccomp { build: programs(User::Build)?, root: programs(User::Root)? };
        let notes = imported.map(|list| list.notes).unwrap_or_default();
        Ok((seccomp, notes.into_iter().map(|note| format!("{}: {note}", list.unwrap_or(policy))).collect()))
    }
}

/// Reads a source that a profile names; it lies in the folder of the profiles, or the repository would not say
/// all that a profile is.
fn read_source(folder: &Path, name: &str) -> Result<String> {
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    ensure!(inside, "{name}: write a path below sandbox-profiles/");
    fs::read_to_string(folder.join(name)).with_context(|| name.to_owned())
}

/// Indented JSON in which a list of numbers fills its lines.
fn pretty(value: &Value) -> Result<String> {
    let mut out = String::new();
    write_value(&mut out, value, 0)?;
    out.push('\n');
    Ok(out)
}

fn write_value(out: &mut String, value: &Value, depth: usize) -> Result<()> {
    let pad = "  ".repeat(depth + 1);
    let end = "  ".repeat(depth);
    match value {
        Value::Object(map) => {
            out.push('{');
            // Sorted here: whether the map sorts by itself depends on a feature that other crates can turn on.
            let sorted: BTreeMap<_, _> = map.iter().collect();
            for (index, (key, item)) in sorted.into_iter().enumerate() {
                write!(out, "{}\n{pad}{}: ", if index > 0 { "," } else { "" }, serde_json::to_string(key)?)?;
                write_value(out, item, depth + 1)?;
            }
            write!(out, "\n{end}}}")?;
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                let comma = if index > 0 { "," } else { "" };
                if item.is_number() && index % 5 > 0 {
                    write!(out, "{comma} ")?;
                } else {
                    write!(out, "{comma}\n{pad}")?;
                }
                write_value(out, item, depth + 1)?;
            }
            write!(out, "\n{end}]")?;
        }
        plain => out.push_str(&serde_json::to_string(plain)?),
    }
    Ok(())
}
