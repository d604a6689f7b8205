//! `cargo xtask test`: installs what the tests need, runs all of them, and says in one line how it went.
//!
//! A suite that cannot run counts as skipped, with the reason; where `CI=true`, a skipped suite that is
//! required counts as failed. Output goes to the terminal and to `target/test-logs/`.

pub(crate) mod count;
mod suites;

use crate::shell;
use anyhow::{Context as _, Result};
use count::{Counting, Counts};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A group of tests that runs as one command.
pub(crate) struct Suite {
    /// Short, and the name of its log.
    pub(crate) name: &'static str,
    /// Whether a machine that claims to run everything may leave it out.
    pub(crate) required: bool,
    /// How to read the number of tests from what it prints.
    pub(crate) counting: Counting,
    /// What to run, or why it cannot run here.
    pub(crate) plan: Result<Command, String>,
}

/// What suites need to know about the machine.
pub(crate) struct Machine {
    pub(crate) root: PathBuf,
    /// Cargo's target folder, where the programs are.
    pub(crate) programs: PathBuf,
    pub(crate) is_root: bool,
    /// The interpreter that has the packages of `xtask/requirements.txt`.
    pub(crate) python: Result<PathBuf, String>,
    /// Whether the agent's tests have a server of the Vault API and PostgreSQL; why not.
    pub(crate) servers: Result<(), String>,
    /// Packages that could not be installed.
    pub(crate) missing: Vec<&'static str>,
    pub(crate) has_integration: bool,
    /// Which integration tests to run; all if it is empty.
    pub(crate) integration: Vec<String>,
}

struct Finished {
    name: &'static str,
    counts: Counts,
    took: Duration,
    note: String,
}

/// Runs everything. False if anything failed.
pub(crate) fn run(root: &Path) -> Result<bool> {
    run_suites(root, suites::ALL, Vec::new())
}

/// Builds and runs integration tests: these suites or single tests, or all. False if anything failed.
pub(crate) fn integration(root: &Path, tests: Vec<String>) -> Result<bool> {
    run_suites(root, suites::INTEGRATION, tests)
}

fn run_suites(
    root: &Path,
    makers: &[fn(&Machine) -> Option<Suite>],
    integration: Vec<String>,
) -> Result<bool> {
    let logs = root.join("target/test-logs");
    fs::create_dir_all(&logs)?;
    let must_run = std::env::var_os("CI").is_some_and(|v| v == "true");
    let machine = Machine { integration, ..prepare(root)? };
    // Suites are made one at a time: a later one may need what an earlier one built.
    let mut finished = Vec::new();
    for make in makers {
        if let Some(suite) = make(&machine) {
            finished.push(run_suite(suite, &logs, must_run)?);
        }
    }
    let total = print_summary(&finished);
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    Ok(total.failed == 0)
}

fn prepare(root: &Path) -> Result<Machine> {
    let missing = shell::install(suites::NEEDED);
    for package in &missing {
        eprintln!("missing: {package}; install it as root (apt-get install {package})");
    }
    // The integration tests find it there, and say themselves what they cannot do without it.
    if let Err(error) = python(root, "venv-clients", "integration/requirements.txt") {
        eprintln!("missing: clients and CI systems of integration/requirements.txt: {error:#}");
    }
    let servers = servers(root);
    if let Err(reason) = &servers {
        eprintln!("missing: {reason}");
    }
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
    let integration = metadata.packages.iter().find(|p| p.name == "ampoule-integration");
    Ok(Machine {
        root: root.to_path_buf(),
        programs: metadata.target_directory.join("debug").into_std_path_buf(),
        is_root: shell::is_root(),
        python: python(root, "venv", "xtask/requirements.txt").map_err(|error| format!("{error:#}")),
        servers,
        missing,
        has_integration: integration.is_some_and(|p| p.targets.iter().any(cargo_metadata::Target::is_bin)),
        integration: Vec::new(),
    })
}

/// What the agent's tests with servers need. The integration tests say themselves what they cannot do without.
fn servers(root: &Path) -> Result<(), String> {
    python(root, "venv-vault", "integration/vault-requirements.txt").map_err(|error| {
        format!("a server of the Vault API, integration/vault-requirements.txt: {error:#}")
    })?;
    let postgresql = ["sh", "-c", "ls /usr/lib/postgresql/*/bin/initdb"];
    if shell::succeeds(&postgresql) {
        Ok(())
    } else {
        Err("PostgreSQL; apt-get install postgresql".to_owned())
    }
}

/// Makes a folder of `target/` with exactly the packages of a list of requirements, by hash.
fn python(root: &Path, folder: &str, requirements: &str) -> Result<PathBuf> {
    let wanted = fs::read(root.join(requirements)).context(requirements.to_owned())?;
    let venv = root.join("target").join(folder);
    let python = venv.join("bin/python");
    let stamp = venv.join("requirements.txt");
    if python.exists() && fs::read(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    // The system's own: one below somebody's home cannot be run by the ordinary user of the tests.
    let system = Path::new("/usr/bin/python3");
    let base = if system.exists() { system } else { Path::new("python3") };
    shell::run(Command::new(base).args(["-m", "venv", "--clear"]).arg(&venv))?;
    let install =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r"];
    shell::run(Command::new(&python).args(install).arg(root.join(requirements)))?;
    fs::write(&stamp, wanted)?;
    Ok(python)
}

fn run_suite(suite: Suite, logs: &Path, must_run: bool) -> Result<Finished> {
    let start = Instant::now();
    let done = |counts, note| Finished { name: suite.name, counts, took: start.elapsed(), note };
    let mut command = match suite.plan {
        Ok(command) => command,
        Err(reason) => {
            println!("\n=== {}: skipped: {reason}", suite.name);
            let counts = if must_run && suite.required { Counts::FAILED } else { Counts::SKIPPED };
            return Ok(done(counts, format!("cannot run: {reason}")));
        }
    };
    println!("\n=== {}: {}", suite.name, shell::shown(&command));
    // cargo sets the first for `cargo xtask`; children of another user must not inherit it.
    command.env_remove("LD_LIBRARY_PATH").env("CARGO_TERM_COLOR", "never");
    let log = logs.join(format!("{}.log", suite.name));
    match shell::stream(command, &log) {
        Ok((status, output)) => {
            let counts = suite.counting.count(&output, status.success());
            let note =
                if status.success() { String::new() } else { format!("{status}; see {}", log.display()) };
            Ok(done(counts, note))
        }
        Err(error) => Ok(done(Counts::FAILED, format!("{error:#}"))),
    }
}

fn print_summary(finished: &[Finished]) -> Counts {
    println!("\n{:<18} {:>7} {:>7} {:>8} {:>9}", "suite", "passed", "failed", "skipped", "time");
    let mut total = Counts::default();
    for f in finished {
        let Counts { passed, failed, skipped } = f.counts;
        let seconds = f.took.as_secs_f64();
        let line = format!("{:<18} {passed:>7} {failed:>7} {skipped:>8} {seconds:>8.1}s  {}", f.name, f.note);
        println!("{}", line.trim_end());
        total = total + f.counts;
    }
    println!();
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(required: bool, plan: Result<Command, String>) -> Suite {
        Suite { name: "s", required, counting: Counting::Status, plan }
    }

    #[test]
    fn suite_that_cannot_run_is_skipped_and_failed_where_everything_must_run() {
        let folder = tempfile::tempdir().unwrap();
        let run = |required, must_run| {
            run_suite(suite(required, Err("no".into())), folder.path(), must_run).unwrap().counts
        };
        assert_eq!(run(true, false), Counts::SKIPPED);
        assert_eq!(run(false, true), Counts::SKIPPED);
        assert_eq!(run(true, true), Counts::FAILED);
    }

    #[test]
    fn suite_that_fails_or_cannot_start_is_failed() {
        let folder = tempfile::tempdir().unwrap();
        let run =
            |program| run_suite(suite(true, Ok(Command::new(program))), folder.path(), false).unwrap().counts;
        assert_eq!(run("false"), Counts::FAILED);
        assert_eq!(run("no-such-program-here"), Counts::FAILED);
        assert_eq!(run("true"), Counts { passed: 1, failed: 0, skipped: 0 });
    }
}
