//! One job through `ampoule-runner`: what `ampoule run` does between importing and signing.
//!
//! Measured is what the issue defines: exec of the runner for one job to its exit, control groups, the fsynced
//! report and the verified teardown included. The request waits in the socket, so that the client costs nothing.

use ampoule_ipc::Channel;
use ampoule_spec::RunReport;
use ampoule_spec::wire::Request;
use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use serde_json::json;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A run and where its time went, phase by phase in microseconds.
pub(crate) struct Timed {
    pub(crate) took: Duration,
    pub(crate) phases: Vec<(String, u64)>,
}

/// Runs `/bin/true` once in a new state directory, which is laid out beforehand as on any host in use.
pub(crate) fn once(runner: &Path, folder: &Path, number: usize) -> Result<Timed> {
    let state = folder.join(format!("state-{}-{number}", std::process::id()));
    fs::create_dir_all(&state)?;
    fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    serve(runner, &state, None)?;
    let job = format!("01890a5d-ac96-774b-bcce-{:012x}", std::process::id() as usize * 100_000 + number);
    let spec = folder.join(format!("spec-{}.json", std::process::id()));
    fs::write(&spec, serde_json::to_vec(&spec_of(&job))?)?;
    let took = serve(runner, &state, Some(&File::open(&spec)?))?;
    let report = state.join("jobs").join(&job).join("report.json");
    let report: RunReport = serde_json::from_slice(&fs::read(&report).context("the job has no report")?)?;
    ensure!(report.outcome == ampoule_spec::Outcome::Succeeded, "the job failed: {:?}", report.failure);
    ensure!(!report.teardown.checks.is_empty() && report.teardown.is_clean(), "the teardown was not clean");
    fs::remove_dir_all(&state)?;
    fs::remove_file(&spec)?;
    Ok(Timed { took, phases: report.phases.into_iter().map(|p| (p.phase, p.micros)).collect() })
}

fn spec_of(job: &str) -> serde_json::Value {
    json!({
        "ampoule": 1, "id": job, "attempt": 1, "name": "bench", "profile": "hermetic",
        "image": { "kind": "host" }, "source_date_epoch": 0,
        "steps": [{ "name": "true", "run": ["/bin/true"], "cwd": "/", "timeout_ms": 10_000 }],
    })
}

/// Starts the runner with everything it will be asked already in its socket, and waits for its exit.
fn serve(runner: &Path, state: &Path, spec: Option<&File>) -> Result<Duration> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let channel = Channel::new(ours);
    if let Some(spec) = spec {
        channel.send(&Request::Run { lifetime: false }, &[spec.as_fd()])?;
    }
    shutdown(&channel, Shutdown::Write)?;
    let mut command = Command::new(runner);
    command.arg("serve").arg("--state").arg(state).env_clear();
    command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit());
    let start = Instant::now();
    let status = command.spawn()?.wait()?;
    let took = start.elapsed();
    ensure!(status.success(), "{status}");
    Ok(took)
}
