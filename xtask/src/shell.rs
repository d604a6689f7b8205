//! Programs of the machine: are they there, can they be had, and running them in the open.

use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

/// What a command needs, how to see that it is there, and the Debian package that brings it.
pub(crate) struct Needed {
    /// A command that succeeds when the thing is there.
    pub(crate) probe: &'static [&'static str],
    pub(crate) package: &'static str,
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Whether a program of this name is on the PATH.
pub(crate) fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| {
        fs::metadata(folder.join(name)).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}

/// Whether a command runs and succeeds; its output is dropped.
pub(crate) fn succeeds(argv: &[&str]) -> bool {
    let Some((program, args)) = argv.split_first() else { return false };
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Installs what is missing. Returns the packages that are missing still, because this is not root or
/// the package manager failed.
pub(crate) fn install(needed: &[Needed]) -> Vec<&'static str> {
    let missing = |needed: &[Needed]| -> Vec<&'static str> {
        needed.iter().filter(|n| !succeeds(n.probe)).map(|n| n.package).collect()
    };
    let packages = missing(needed);
    if packages.is_empty() || !is_root() || !has_program("apt-get") {
        return packages;
    }
    eprintln!("installing: {}", packages.join(" "));
    let apt = |args: &[&str]| {
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(args)
            .status()
            .is_ok_and(|s| s.success())
    };
    let install: Vec<&str> =
        ["install", "-y", "--no-install-recommends"].into_iter().chain(packages.iter().copied()).collect();
    if !apt(&install) {
        apt(&["update"]);
        apt(&install);
    }
    missing(needed)
}

/// Cargo, in the repository.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// Where the runner with faults for tests lies in the target folder: beside the folder of the other programs, where
/// `integration/src/faulty.rs` looks for it.
pub(crate) const FAULTY: &str = "faults/debug/ampoule-runner";

/// The command that builds that runner.
pub(crate) fn build_faulty(root: &Path, target: &Path) -> Command {
    let mut command = cargo(root);
    command.args(["build", "--locked", "-p", "ampoule-runner", "--features", "faults", "--target-dir"]);
    command.arg(target.join("faults"));
    command
}

/// Prints a command, runs it with the terminal as its own, and wants success.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = run_status(command)?;
    ensure!(status.success(), "{}: {status}", shown(command));
    Ok(())
}

/// Prints a command and runs it with the terminal as its own.
pub(crate) fn run_status(command: &mut Command) -> Result<ExitStatus> {
    println!("$ {}", shown(command));
    command.status().with_context(|| shown(command))
}

/// Runs a command whose output goes to the terminal, to a file and to the caller, in the order written.
pub(crate) fn stream(mut command: Command, log: &Path) -> Result<(ExitStatus, String)> {
    let (mut reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| shown(&command))?;
    drop(command); // holds the pipe's writing ends
    let mut file = File::create(log).with_context(|| log.display().to_string())?;
    let mut all = Vec::new();
    let mut buffer = [0; 8192];
    loop {
        let count = reader.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..count).filter(|b| !b.is_empty()) else { break };
        file.write_all(bytes)?;
        io::stdout().write_all(bytes)?;
        io::stdout().flush()?;
        all.extend_from_slice(bytes);
    }
    Ok((child.wait()?, String::from_utf8_lossy(&all).into_owned()))
}

/// A command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@+%".contains(c);
        if !word.is_empty() && word.chars().all(plain) { word.into_owned() } else { format!("'{word}'") }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_gives_both_outputs_and_the_status() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let (status, text) = stream(command, &log).unwrap();
        assert_eq!((status.code(), text.as_str()), (Some(3), "one\ntwo\n"));
        assert_eq!(fs::read_to_string(log).unwrap(), text);
    }

    #[test]
    fn has_program_tells_what_is_there() {
        assert!(has_program("sh") && !has_program("no-such-program-here"));
        assert!(succeeds(&["true"]) && !succeeds(&["false"]) && !succeeds(&["no-such-program-here"]));
    }
}
