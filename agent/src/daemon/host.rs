//! Whether the host is still what it was when an operator looked at it.
//!
//! Facts are texts under names, so that a baseline can be read and compared by anybody. What is guaranteed: a fact that cannot
//! be read is a fact too, and a baseline that cannot be read is an error, never the absence of drift.

use super::config::Config;
use crate::files::read_file;
use ampoule_spec::Sha256;
use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The version of the format of a baseline.
const FORMAT: u32 = 1;
/// The largest baseline, and the largest text of the kernel's, in bytes.
const TEXT_BYTES_MAX: u64 = 1 << 20;
/// The largest file that is digested, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Settings of the kernel that the isolation of jobs, or what they are protected from, rests on.
const SYSCTLS: &[&str] = &[
    "fs.protected_fifos",
    "fs.protected_hardlinks",
    "fs.protected_regular",
    "fs.protected_symlinks",
    "fs.suid_dumpable",
    "kernel.core_pattern",
    "kernel.dmesg_restrict",
    "kernel.kptr_restrict",
    "kernel.modules_disabled",
    "kernel.perf_event_paranoid",
    "kernel.randomize_va_space",
    "kernel.unprivileged_bpf_disabled",
    "kernel.unprivileged_userns_clone",
    "kernel.yama.ptrace_scope",
    "user.max_user_namespaces",
    "vm.memfd_noexec",
];
/// Where package managers keep what is installed: the digest of the first that is there stands for it.
const PACKAGES: &[&str] = &[
    "/var/lib/dpkg/status",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/var/lib/rpm/rpmdb.sqlite",
    "/lib/apk/db/installed",
];

/// Facts by name.
pub type Facts = BTreeMap<String, String>;

/// Why there is nothing to compare with.
#[derive(Debug, thiserror::Error)]
#[error("host.baseline: {path}: {reason}", path = .path.display())]
pub struct BaselineError {
    path: PathBuf,
    reason: String,
}

/// A fact that is not what was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// Which.
    pub fact: String,
    /// What was recorded; none: there was no such fact.
    pub recorded: Option<String>,
    /// What it is; none: there is no such fact now.
    pub found: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Baseline {
    baseline: u32,
    facts: Facts,
}

/// What the host is now. Reads files, some of them whole: it takes a moment.
pub fn facts(config: &Config) -> Facts {
    let mut facts = Facts::new();
    let system = rustix::system::uname();
    facts.insert("kernel.release".to_owned(), system.release().to_string_lossy().into_owned());
    facts.insert("kernel.version".to_owned(), system.version().to_string_lossy().into_owned());
    facts.insert("kernel.cmdline".to_owned(), text("/proc/cmdline"));
    facts.insert("kernel.lsm".to_owned(), text("/sys/kernel/security/lsm"));
    for name in SYSCTLS {
        facts.insert(format!("sysctl.{name}"), text(&format!("/proc/sys/{}", name.replace('.', "/"))));
    }
    let mounts = text("/proc/self/mountinfo");
    for (name, path) in [("state", &config.state), ("runner", &config.runner.state)] {
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        facts.insert(format!("mount.{name}"), mount_of(&mounts, &path));
    }
    let own = Path::new("/proc/self/exe");
    facts.insert("program.ampouled".to_owned(), digest(own));
    if let Ok(runner) = crate::local::find_runner() {
        facts.insert("program.ampoule-runner".to_owned(), digest(&runner));
    }
    if let Some(packages) = PACKAGES.iter().find(|path| Path::new(path).exists()) {
        facts.insert("packages".to_owned(), digest(Path::new(packages)));
    }
    facts
}

/// Writes what the host is now as the baseline, in the place of the one before.
///
/// # Errors
/// If it cannot be written.
pub fn record(path: &Path, facts: Facts) -> Result<(), BaselineError> {
    let failed = |e: io::Error| BaselineError { path: path.to_owned(), reason: e.to_string() };
    let mut text = serde_json::to_string_pretty(&Baseline { baseline: FORMAT, facts })
        .map_err(|e| failed(io::Error::other(e)))?;
    text.push('\n');
    let aside = path.with_extension("new");
    let mut file = File::create(&aside).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&aside, path).map_err(failed)
}

/// Compares the host with a baseline.
///
/// # Errors
/// If the baseline cannot be read, or others could have written it.
pub fn compare(path: &Path, found: &Facts) -> Result<Vec<Drift>, BaselineError> {
    let failed = |reason: String| BaselineError { path: path.to_owned(), reason };
    let text = crate::files::read_operators(path).map_err(|e| failed(e.reason))?;
    let baseline: Baseline = serde_json::from_str(&text).map_err(|e| failed(e.to_string()))?;
    if baseline.baseline != FORMAT {
        return Err(failed(format!("version {} is not one that this build reads", baseline.baseline)));
    }
    let recorded = baseline.facts;
    let mut names: Vec<&String> = recorded.keys().chain(found.keys()).collect();
    names.sort();
    names.dedup();
    let drift = |name: &String| {
        let (recorded, found) = (recorded.get(name), found.get(name));
        (recorded != found).then(|| Drift {
            fact: name.clone(),
            recorded: recorded.cloned(),
            found: found.cloned(),
        })
    };
    Ok(names.into_iter().filter_map(drift).collect())
}

/// A text of the kernel's, or why there is none.
fn text(path: &str) -> String {
    match read_file(Path::new(path), TEXT_BYTES_MAX) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim_end().to_owned(),
        Err(error) => format!("not readable: {}", error.kind()),
    }
}

/// How the file system is mounted that a path is on (proc_pid_mountinfo(5)): kind, options, source.
fn mount_of(mountinfo: &str, path: &Path) -> String {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(4);
        let (point, options) = (left.next()?, left.next()?);
        path.starts_with(point.replace("\\040", " ")).then(|| (point.len(), format!("{right} {options}")))
    });
    // Of mounts at the same point the last one is on top.
    mounts.max_by_key(|(length, _)| *length).map_or_else(|| "no mount".to_owned(), |(_, text)| text)
}

fn digest(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?.take(FILE_BYTES_MAX);
        let mut context = Context::new(&SHA256);
        let mut buffer = vec![0; 64 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => context.update(buffer.get(..count).unwrap_or_default()),
            }
        }
        let digest = <[u8; 32]>::try_from(context.finish().as_ref()).map_err(io::Error::other)?;
        Ok(format!("sha256:{}", Sha256::new(digest)))
    };
    read().unwrap_or_else(|error| format!("not readable: {}", error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts_of(pairs: &[(&str, &str)]) -> Facts {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_fact_that_changes_comes_or_goes_is_drift() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("baseline.json");
        record(&path, facts_of(&[("a", "1"), ("b", "2"), ("c", "3")])).unwrap();
        assert_eq!(compare(&path, &facts_of(&[("a", "1"), ("b", "2"), ("c", "3")])).unwrap(), []);
        let drift = compare(&path, &facts_of(&[("a", "1"), ("b", "x"), ("d", "4")])).unwrap();
        let names: Vec<_> = drift.iter().map(|d| d.fact.as_str()).collect();
        assert_eq!(names, ["b", "c", "d"]);
        assert_eq!((drift[0].recorded.as_deref(), drift[0].found.as_deref()), (Some("2"), Some("x")));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn baseline_that_cannot_be_used_is_an_error_and_not_the_absence_of_drift() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("baseline.json");
        let none = Facts::new();
        assert!(compare(&path, &none).is_err());
        for text in ["", "{}", "{\"baseline\":2,\"facts\":{}}", "{\"baseline\":1,\"facts\":{},\"more\":1}"] {
            std::fs::write(&path, text).unwrap();
            assert!(compare(&path, &none).is_err(), "{text}");
        }
        std::fs::write(&path, "{\"baseline\":1,\"facts\":{}}").unwrap();
        compare(&path, &none).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        assert!(compare(&path, &none).unwrap_err().to_string().contains("they would decide"));
    }

    #[test]
    fn facts_of_this_host_stay_and_say_something() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "dev = true\nstate = \"{0}\"\n[listen]\nunix = \"s\"\n[runner]\nstate = \"{0}\"\n",
            dir.path().display()
        );
        let config = Config::parse(&text, "c", Path::new("/")).unwrap();
        let first = facts(&config);
        assert_eq!(facts(&config), first);
        assert!(first["program.ampouled"].starts_with("sha256:"));
        assert_eq!(first["sysctl.kernel.randomize_va_space"].len(), 1);
        assert!(!first["mount.state"].is_empty() && first["mount.state"] != "no mount");
    }

    #[test]
    fn mount_is_the_deepest_and_last_one() {
        let mountinfo = "1 0 8:1 / / rw,relatime - ext4 /dev/a rw\n2 1 8:2 / /var/lib rw - xfs /dev/b rw\n\
                         3 1 8:3 / /var/lib ro,nosuid - btrfs /dev/c rw\n";
        assert_eq!(mount_of(mountinfo, Path::new("/var/lib/x")), "btrfs /dev/c rw ro,nosuid");
        assert_eq!(mount_of(mountinfo, Path::new("/var/library")), "ext4 /dev/a rw rw,relatime");
    }
}
