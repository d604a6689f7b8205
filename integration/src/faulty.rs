//! The command line with a runner that does what a test asks for: fails at a stage, dies at one, takes a profile
//! below the floor.
//!
//! That runner is a build of its own (`cargo build -p ampoule-runner --features faults`); the command line finds it as it
//! finds every runner, beside itself, and knows nothing of it.

use crate::harness::skip;
use crate::lab::{Call, Lab};
use anyhow::Result;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A copy of the command line, and beside it a script that passes on what is asked for.
pub(crate) struct Faulty<'l> {
    lab: &'l Lab<'l>,
    program: PathBuf,
    asked: PathBuf,
    fired: PathBuf,
}

impl<'l> Faulty<'l> {
    pub(crate) fn install(lab: &'l Lab<'l>) -> Result<Self> {
        let runner = match std::env::var_os("AMPOULE_FAULTY_RUNNER") {
            Some(path) => PathBuf::from(path),
            None => lab.program("ampoule-runner").with_file_name("../faults/debug/ampoule-runner"),
        };
        let Ok(runner) = runner.canonicalize() else {
            return skip(format!(
                "{} is missing; cargo xtask test builds it (cargo build -p ampoule-runner --features faults \
                 --target-dir target/faults)",
                runner.display()
            ));
        };
        let (asked, fired) = (lab.path("asked"), lab.path("fired"));
        // Its environment is empty: what the script needs is in the script or built into the shell.
        let script = format!(
            "#!/bin/sh\nIFS= read -r asked < '{}'\nexec '{}' \"$@\" --fault \"$asked\"\n",
            asked.display(),
            runner.display()
        );
        let place = lab.write("faulty/ampoule-runner", script)?;
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
        let program = lab.path("faulty/ampoule");
        // By another process: what we write to could be inherited open by a test beside this one (ETXTBSY).
        lab.call("install").args(["-m", "755"]).arg(lab.program("ampoule")).arg(&program).end()?.exits(0)?;
        Ok(Self { lab, program, asked, fired })
    }

    /// That runner by itself.
    pub(crate) fn runner(&self) -> PathBuf {
        self.program.with_file_name("ampoule-runner")
    }

    /// Asks for something that holds until something else is asked for.
    pub(crate) fn ask(&self, what: &str) -> Result<()> {
        Ok(fs::write(&self.asked, format!("{what}\n"))?)
    }

    /// Asks for a fault at the n-th point of a process; one of a kernel before 6.15 if the role says so.
    pub(crate) fn fault(&self, role: &str, number: u32, what: &str) -> Result<()> {
        let _ = fs::remove_file(&self.fired);
        let (kernel, role) = match role.strip_prefix("by-name ") {
            Some(role) => ("by-name,", role),
            None => ("", role),
        };
        self.ask(&format!("{kernel}{role}:{number}:{what}:{}", self.fired.display()))
    }

    /// How often it has happened.
    pub(crate) fn fired(&self) -> u64 {
        let bytes = fs::read(&self.fired).unwrap_or_default();
        bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Another command of `ampoule` with that runner.
    pub(crate) fn call(&self, command: &str) -> Call<'l> {
        self.lab.call(&self.program).arg(command)
    }

    /// `ampoule run JOB` with that runner.
    pub(crate) fn run(&self, job: &Path) -> Call<'l> {
        self.lab.run_with(&self.program, job)
    }
}
