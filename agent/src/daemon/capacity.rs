//! What the host has to promise, and what a job needs that does not say it.

use super::config::Config;
use crate::job::Needs;
use crate::job::queue::Amount;
use ampoule_spec::Profile;
use std::path::Path;

/// The built-in profiles, as the launcher has them.
const PROFILES: [&str; 3] = [
    include_str!("../../../sandbox-profiles/compiled/hermetic.json"),
    include_str!("../../../sandbox-profiles/compiled/fetch.json"),
    include_str!("../../../sandbox-profiles/compiled/dev.json"),
];

/// What is there now, less a tenth of memory and disk for the rest.
pub(super) fn measured(config: &Config) -> Amount {
    Amount {
        cpu_millis: std::thread::available_parallelism().map_or(1, usize::from) as u64 * 1000,
        memory_bytes: most(memory()),
        disk_bytes: most(disk(&config.runner.state)),
    }
}

/// What jobs may be promised: what the operator says, else what was measured.
pub(super) fn of_host(config: &Config, measured: Amount) -> Amount {
    let limits = &config.limits;
    Amount {
        cpu_millis: limits.cpu_millis.unwrap_or(measured.cpu_millis),
        memory_bytes: limits.memory_bytes.unwrap_or(measured.memory_bytes),
        disk_bytes: limits.disk_bytes.unwrap_or(measured.disk_bytes),
    }
}

fn most(of: u64) -> u64 {
    of - of / 10
}

/// Bytes of memory (proc_meminfo(5)); 0 if the kernel does not say.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib =
        line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|n| n.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Bytes that are free where a path is, or will be.
fn disk(path: &Path) -> u64 {
    let found = path.ancestors().find_map(|path| rustix::fs::statvfs(path).ok());
    found.map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
}

/// What a job is taken to need that does not say it: its profile's defaults.
///
/// # Errors
/// If a profile that was compiled in cannot be read.
pub(super) fn needs() -> Result<Needs, String> {
    let profiles = PROFILES.iter().map(|text| {
        let profile: Profile = serde_json::from_str(text).map_err(|e| e.to_string())?;
        Ok((profile.name, Amount::from(&profile.limits)))
    });
    let profiles = profiles.collect::<Result<std::collections::BTreeMap<_, _>, String>>()?;
    let other = profiles.values().copied().next().ok_or("no profile")?;
    Ok(Needs { other, profiles })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_the_operators_word_or_what_is_there() {
        let parse = |more: &str| {
            let text =
                format!("dev = true\n[listen]\nunix = \"s\"\n[runner]\nstate = \"/nowhere/x\"\n{more}");
            let config = Config::parse(&text, "c", Path::new("/")).unwrap();
            of_host(&config, measured(&config))
        };
        let all = parse("");
        assert!(all.cpu_millis >= 1000 && all.memory_bytes > 1 << 20 && all.disk_bytes > 1 << 20, "{all:?}");
        let said = parse("[limits]\ncpus = 1.5\nmemory = \"2GiB\"\ndisk = \"3GiB\"\n");
        assert_eq!(said, Amount { cpu_millis: 1500, memory_bytes: 2 << 30, disk_bytes: 3 << 30 });
    }

    #[test]
    fn needs_are_those_of_the_built_in_profiles() {
        let needs = needs().unwrap();
        let names: Vec<_> = needs.profiles.keys().map(ampoule_spec::Name::as_str).collect();
        assert_eq!(names, ["dev", "fetch", "hermetic"]);
        assert!(needs.profiles.values().all(|amount| amount.memory_bytes > 0));
    }
}
