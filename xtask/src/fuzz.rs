//! `cargo xtask fuzz`: builds the fuzz targets with coverage, runs them under libFuzzer, and says what they did.
//!
//! The toolchain of the repository will do: coverage is a stable option of the compiler, and libFuzzer comes with the crate
//! libfuzzer-sys and wants a C++ compiler. Inputs that are worth keeping stay in `target/fuzz/corpus`, so that a
//! later run goes on from there; inputs that break something in `target/fuzz/crashes`.

use crate::shell::{self, Needed};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The targets, as they are named in `fuzz/Cargo.toml` after `fuzz-`.
const TARGETS: &[&str] = &["tar", "tree", "oci", "jobfile", "wire", "journal"];

/// What libFuzzer is built with.
pub(crate) const NEEDED: &[Needed] = &[Needed { probe: &["c++", "--version"], package: "g++" }];

/// Seconds for one input beyond which it counts as a hang. The slowest that is known takes a tenth of one.
const HANG_SECONDS: u32 = 20;
/// Mebibytes beyond which a target has taken too much.
const MEMORY_MIB: u32 = 2048;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which targets: tar, tree, oci, jobfile, wire, journal; all if none is named.
    targets: Vec<String>,
    /// Seconds for each.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// What one target did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Done {
    runs: u64,
    features: u64,
    kept: u64,
    crashes: Vec<PathBuf>,
    failed: bool,
}

/// False if an input broke something.
pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    let named: Vec<&str> = options.targets.iter().map(String::as_str).collect();
    for name in &named {
        ensure!(TARGETS.contains(name), "{name} is no target; there are {}", TARGETS.join(", "));
    }
    let targets = if named.is_empty() { TARGETS.to_vec() } else { named };
    let missing = shell::install(NEEDED);
    ensure!(missing.is_empty(), "install {} as root", missing.join(" "));
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
    let programs = metadata.target_directory.join("debug").into_std_path_buf();
    let place = metadata.target_directory.join("fuzz").into_std_path_buf();
    build(root, &place, &targets)?;
    let mut all = Vec::new();
    for target in &targets {
        let program = programs.join(format!("fuzz-{target}"));
        all.push((*target, fuzz(&program, &place, target, options.seconds)?));
    }
    Ok(print(&all, options.seconds))
}

/// Writes the seeds with an ordinary build, and builds the targets with `fuzz/instrument.sh` for a compiler. Both use what
/// other builds left of everything that is not ours.
fn build(root: &Path, place: &Path, targets: &[&str]) -> Result<()> {
    let _ = fs::remove_dir_all(place.join("seeds"));
    let mut seeds = shell::cargo(root);
    seeds.args(["run", "--quiet", "--locked", "-p", "ampoule-fuzz", "--bin", "fuzz-seeds"]);
    shell::run(seeds.arg(place.join("seeds")))?;
    let mut cargo = shell::cargo(root);
    cargo.env("RUSTC_WORKSPACE_WRAPPER", root.join("fuzz/instrument.sh"));
    cargo.args(["build", "--locked", "-p", "ampoule-fuzz", "--features", "libfuzzer"]);
    for target in targets {
        cargo.args(["--bin", &format!("fuzz-{target}")]);
    }
    shell::run(&mut cargo)
}

fn fuzz(program: &Path, place: &Path, target: &str, seconds: u32) -> Result<Done> {
    let (corpus, crashes) = (place.join("corpus").join(target), place.join("crashes").join(target));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&crashes)?;
    let before = files(&crashes)?;
    let mut command = Command::new(program);
    command.arg(&corpus).arg(place.join("seeds").join(target));
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-timeout={HANG_SECONDS}"),
        format!("-rss_limit_mb={MEMORY_MIB}"),
        format!("-artifact_prefix={}/", crashes.display()),
    ]);
    command.args(["-max_len=65536", "-use_value_profile=1", "-print_final_stats=1", "-verbosity=1"]);
    // No core files, and no library path of cargo's.
    command.env_remove("LD_LIBRARY_PATH").env("RUST_BACKTRACE", "1");
    let log = place.join(format!("{target}.log"));
    println!("$ {}", shell::shown(&command));
    let output = command.output().with_context(|| program.display().to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    fs::write(&log, &said)?;
    let mut done = read(&said);
    done.failed = !output.status.success();
    // Inputs that are only slow lie there too; they are no failure.
    let new = files(&crashes)?.into_iter().filter(|path| !before.contains(path) && !is_slow(path));
    done.crashes = new.collect();
    if done.failed {
        let lines: Vec<_> = said.lines().filter(|line| !line.starts_with('#')).collect();
        let last = lines.get(lines.len().saturating_sub(60)..).unwrap_or_default();
        println!("{}", last.join("\n"));
    }
    Ok(done)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

fn is_slow(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("slow-unit-"))
}

/// Reads libFuzzer's numbers: `#4096 NEW cov: 278 ft: 738 corp: 90/9909b …` and `stat::number_of_executed_units: 4096`.
fn read(said: &str) -> Done {
    let mut done = Done::default();
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |word: &str| words.iter().position(|w| *w == word).and_then(|at| words.get(at + 1));
        let number = |text: &&str| text.split('/').next().and_then(|text| text.parse().ok());
        if let Some(runs) =
            line.strip_prefix('#').and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        {
            done.runs = done.runs.max(runs);
            done.features = after("ft:").and_then(number).unwrap_or(done.features);
            done.kept = after("corp:").and_then(number).unwrap_or(done.kept);
        }
        if let ["stat::number_of_executed_units:", runs] = words.as_slice() {
            done.runs = runs.parse().unwrap_or(done.runs);
        }
    }
    done
}

/// Says how it went, the last line for whoever counts tests. A target that ran nothing has not run.
fn print(all: &[(&str, Done)], seconds: u32) -> bool {
    println!(
        "\n{:<10} {:>8} {:>12} {:>10} {:>8} {:>8}",
        "target", "seconds", "runs", "features", "kept", "crashes"
    );
    let mut failed = 0;
    for (target, done) in all {
        let Done { runs, features, kept, crashes, .. } = done;
        println!("{target:<10} {seconds:>8} {runs:>12} {features:>10} {kept:>8} {:>8}", crashes.len());
        for path in crashes {
            println!("  {}", path.display());
        }
        failed += usize::from(is_failed(done));
    }
    println!("\n{} passed, {failed} failed, 0 skipped", all.len() - failed);
    failed == 0
}

fn is_failed(done: &Done) -> bool {
    done.failed || !done.crashes.is_empty() || done.runs == 0 || done.features == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "INFO: seed corpus: files: 179\n\
        #180\tINITED cov: 900 ft: 2100 corp: 150/90Kb exec/s: 0 rss: 60Mb\n\
        #4096\tpulse  cov: 911 ft: 2150 corp: 160/91Kb lim: 4096 exec/s: 2048 rss: 61Mb\n\
        Done 5000 runs in 3 second(s)\nstat::number_of_executed_units: 5000\n";

    #[test]
    fn numbers_are_those_of_libfuzzer() {
        let done = read(SAID);
        assert_eq!((done.runs, done.features, done.kept), (5000, 2150, 160));
        // One that died says no sum.
        assert_eq!(read("#180\tINITED cov: 9 ft: 21 corp: 15/9Kb\npanicked\n").runs, 180);
    }

    #[test]
    fn target_that_died_or_ran_nothing_has_failed() {
        assert!(!is_failed(&read(SAID)));
        assert!(is_failed(&read("")));
        assert!(is_failed(&Done { failed: true, ..read(SAID) }));
        assert!(is_failed(&Done { crashes: vec![PathBuf::from("crash-1")], ..read(SAID) }));
        assert!(is_slow(Path::new("a/slow-unit-1")) && !is_slow(Path::new("a/timeout-1")));
    }
}
