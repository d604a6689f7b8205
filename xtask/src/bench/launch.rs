//! Jobs through `ampoule-runner`: what `ampoule run` does between importing and signing.
//!
//! Two things are measured. *Warm*: from the request on the socket of a launcher that runs to the answer that the
//! report is durable, teardown verified: what an agent waits for. *Cold*: from the exec of a launcher for one job to its
//! exit. In both the client costs nothing: the spec lies in a file, and the request is one message.

use ampoule_ipc::Channel;
use ampoule_spec::wire::{Reply, Request};
use ampoule_spec::{JobId, Outcome, RunReport};
use anyhow::{Context, Result, bail, ensure};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use serde_json::json;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A run and where its time went, phase by phase in microseconds.
pub(crate) struct Timed {
    pub(crate) took: Duration,
    pub(crate) phases: Vec<(String, u64)>,
}

/// A launcher in a state directory of its own.
pub(crate) struct Launcher {
    child: Child,
    channel: Channel,
    state: PathBuf,
    spec: PathBuf,
    number: usize,
}

impl Launcher {
    /// Starts one that keeps `pool` sandboxes ready.
    pub(crate) fn start(runner: &Path, folder: &Path, pool: usize) -> Result<Self> {
        let state = folder.join(format!("state-{}", std::process::id()));
        fs::create_dir_all(&state)?;
        fs::set_permissions(&state, PermissionsExt::from_mode(0o700))?;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(runner);
        command.arg("serve").arg("--state").arg(&state).args(["--pool", &pool.to_string()]).env_clear();
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit());
        let child = command.spawn()?;
        drop(command);
        let spec = folder.join(format!("spec-{}.json", std::process::id()));
        let launcher = Self { child, channel: Channel::new(ours), state, spec, number: 0 };
        match launcher.channel.receive()?.0 {
            Reply::Hello { .. } => Ok(launcher),
            other => bail!("the launcher said {other:?}"),
        }
    }

    /// The process id of the launcher.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a job, without waiting for it.
    pub(crate) fn send(&mut self) -> Result<(JobId, Instant)> {
        self.number += 1;
        let id =
            format!("01890a5d-ac96-774b-bcce-{:012x}", (u64::from(self.pid()) << 24) + self.number as u64);
        let job = JobId::parse(&id)?;
        // A new file each time: the launcher may not have read the one before.
        let _ = fs::remove_file(&self.spec);
        fs::write(&self.spec, serde_json::to_vec(&spec_of(&id))?)?;
        let file = File::open(&self.spec)?;
        let start = Instant::now();
        self.channel.send(&Request::Run { lifetime: false }, &[file.as_fd()])?;
        Ok((job, start))
    }

    /// Waits until some job's report is readable; says which, and when that was. What parsing the answer takes here is not
    /// the launcher's time.
    pub(crate) fn finished(&self) -> Result<(JobId, Instant)> {
        loop {
            let (bytes, _) = self.channel.receive_bytes()?;
            let at = Instant::now();
            match serde_json::from_slice(&bytes)? {
                Reply::Admitted { .. } | Reply::Forgotten => {}
                Reply::Finished { job } => return Ok((job, at)),
                other => bail!("the launcher said {other:?}"),
            }
        }
    }

    /// Has a job forgotten, without waiting for the answer.
    pub(crate) fn forget(&self, job: JobId) -> Result<()> {
        Ok(self.channel.send(&Request::Forget { job }, &[])?)
    }

    /// Reads a job's report and checks that the job went well.
    pub(crate) fn succeeded(&self, job: &JobId) -> Result<Vec<(String, u64)>> {
        phases_of(&self.state.join("jobs").join(job.as_str()).join("report.json"))
    }

    /// The same, and has it forgotten.
    pub(crate) fn settle(&self, job: &JobId) -> Result<Vec<(String, u64)>> {
        let phases = self.succeeded(job)?;
        self.forget(job.clone())?;
        match self.channel.receive()?.0 {
            Reply::Forgotten => Ok(phases),
            other => bail!("the launcher said {other:?}"),
        }
    }

    /// One job from request to report.
    pub(crate) fn once(&mut self) -> Result<Timed> {
        let (job, start) = self.send()?;
        let (finished, at) = self.finished()?;
        ensure!(finished == job, "another job finished");
        let phases = self.settle(&job)?;
        Ok(Timed { took: at - start, phases })
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = shutdown(&self.channel, Shutdown::Both);
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.state);
        let _ = fs::remove_file(&self.spec);
    }
}

/// Runs `/bin/true` once through a launcher of its own, in a state directory that is laid out beforehand as on any host
/// in use.
pub(crate) fn cold(runner: &Path, folder: &Path, number: usize) -> Result<Timed> {
    let state = folder.join(format!("state-{}-{number}", std::process::id()));
    fs::create_dir_all(&state)?;
    fs::set_permissions(&state, PermissionsExt::from_mode(0o700))?;
    serve(runner, &state, None)?;
    let job = format!("01890a5d-ac96-774b-bcce-{:012x}", std::process::id() as usize * 100_000 + number);
    let spec = folder.join(format!("spec-{}.json", std::process::id()));
    fs::write(&spec, serde_json::to_vec(&spec_of(&job))?)?;
    let took = serve(runner, &state, Some(&File::open(&spec)?))?;
    let phases = phases_of(&state.join("jobs").join(&job).join("report.json"))?;
    fs::remove_dir_all(&state)?;
    fs::remove_file(&spec)?;
    Ok(Timed { took, phases })
}

fn phases_of(report: &Path) -> Result<Vec<(String, u64)>> {
    let report: RunReport = serde_json::from_slice(&fs::read(report).context("the job has no report")?)?;
    ensure!(report.outcome == Outcome::Succeeded, "the job failed: {:?}", report.failure);
    ensure!(!report.teardown.checks.is_empty() && report.teardown.is_clean(), "the teardown was not clean");
    Ok(report.phases.into_iter().map(|p| (p.phase, p.micros)).collect())
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
