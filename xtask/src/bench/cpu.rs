//! What a sandbox costs a real build: the processor time of compiling zstd, in a job and without one.

use super::usage::children;
use super::{build_release, median};
use crate::shell;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Of the example, what is compiled.
const JOB: &str = "examples/zstd/job.toml";
/// Its sources, which `cargo xtask demo` puts there.
const SOURCES: &str = "target/demo/zstd-sys.crate";

struct Place {
    root: PathBuf,
    folder: PathBuf,
    ampoule: PathBuf,
}

/// Builds in turn, and prints medians.
pub(crate) fn run(root: &Path, runs: usize) -> Result<()> {
    ensure!(shell::is_root(), "the hermetic profile needs root");
    ensure!(root.join(SOURCES).exists(), "{SOURCES} is missing; run cargo xtask demo first");
    let metadata = cargo_metadata::MetadataCommand::new().current_dir(root).no_deps().exec()?;
    build_release(root, &["ampoule-runner", "ampoule"])?;
    let folder = root.join("target/bench/cpu");
    fs::create_dir_all(&folder)?;
    let ampoule = metadata.target_directory.join("release/ampoule").into_std_path_buf();
    let place = Place { root: root.to_path_buf(), folder, ampoule };
    let (mut bare, mut steps, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..=runs {
        let plain = place.bare()?;
        let (job, command) = place.in_a_job()?;
        // The first fills caches.
        if number > 0 {
            bare.push(plain);
            steps.push(job);
            whole.push(command);
        }
    }
    let (bare, steps, whole) = (median(bare), median(steps), median(whole));
    println!("compiling zstd, user and system time, medians of {runs} interleaved runs:");
    println!("bare                       {bare:8.3} s");
    println!("the job's steps            {steps:8.3} s  {:.3} x bare", steps / bare);
    println!("all of `ampoule run`       {whole:8.3} s  {:.3} x bare", whole / bare);
    Ok(())
}

impl Place {
    /// The example's own steps, by the same shell in a directory of the host.
    fn bare(&self) -> Result<f64> {
        let place = self.folder.join("bare");
        let _ = fs::remove_dir_all(&place);
        fs::create_dir_all(&place)?;
        let mut unpack = Command::new("tar");
        unpack.arg("-xzf").arg(self.root.join(SOURCES)).arg("-C").arg(&place);
        shell::run(&mut unpack)?;
        let before = children()?;
        let roundtrip = self.root.join("examples/zstd/roundtrip.c").display().to_string();
        for script in self.scripts()? {
            let mut step = Command::new("sh");
            step.args(["-euc", &script.replace("/build/roundtrip.c", &roundtrip)]).current_dir(&place);
            step.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
            let status = step.stdout(Stdio::null()).status()?;
            ensure!(status.success(), "{status}");
        }
        Ok(children()? - before)
    }

    /// What the steps of the example that compile run.
    fn scripts(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.root.join(JOB))?;
        let scripts: Vec<String> = text.split("'''").skip(1).step_by(2).map(str::to_owned).collect();
        ensure!(scripts.len() == 2, "{JOB} has {} scripts", scripts.len());
        Ok(scripts)
    }

    /// The time that the job's first two steps took by its control groups, and that of the whole command with everything
    /// that it does.
    fn in_a_job(&self) -> Result<(f64, f64)> {
        let out = self.folder.join("out");
        let _ = fs::remove_dir_all(&out);
        let before = children()?;
        let mut run = Command::new(&self.ampoule);
        run.arg("run").arg(self.root.join(JOB)).arg("--state").arg(self.folder.join("state"));
        run.arg("--out").arg(&out).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = run.status()?;
        ensure!(status.success(), "ampoule run: {status}");
        let whole = children()? - before;
        let report: Value = serde_json::from_slice(&fs::read(out.join("evidence/report.json"))?)?;
        let steps =
            report.get("steps").and_then(serde_json::Value::as_array).context("no steps in the report")?;
        let micros: u64 =
            steps.iter().take(2).filter_map(|step| step.pointer("/usage/cpu_micros")?.as_u64()).sum();
        Ok((micros as f64 / 1e6, whole))
    }
}
