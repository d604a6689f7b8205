//! A step's process before it is known what it runs.
//!
//! It takes its place in the inner namespaces, gives everything up that a step must not have, measures that it
//! has given it up, and waits. What was measured is the very process that then runs the step's program.

use crate::confine::Confinement;
use crate::error::{Stage, StageError};
use crate::fault;
use crate::inner::{self, Inner};
use crate::probe::{self, Layers};
use crate::protocol::{Handed, StepPlan};
use ampoule_ipc::Channel;
use ampoule_spec::{Measured, SECRET_BYTES_MAX};
use ampoule_sys::process::{Child, Keep, Namespaces, Which, spawn, wait};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use serde::{Deserialize, Serialize};
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// The most bytes that the process may say of itself.
const SAID_BYTES_MAX: u64 = 64 << 10;

/// Where a step's process is connected to.
pub(crate) struct Streams {
    pub(crate) out: OwnedFd,
    pub(crate) err: OwnedFd,
    /// On which it is told what to run, and says why it cannot.
    pub(crate) plan: Channel,
}

/// What a process says once it is confined.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    Confined(Layers),
    Failed(StageError),
}

/// Makes the process and waits until it is confined and, if asked to, has measured itself.
///
/// # Errors
/// The stage that failed, here or in the process.
pub(crate) fn prepare(
    confinement: &Confinement<'_>,
    inner: Option<&Inner>,
    streams: &Streams,
    measure: bool,
) -> Result<(Child, Layers), StageError> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).stage("step: pipe")?;
    // Everything that init holds closes on exec; some of it is needed until then.
    let child = spawn(Namespaces::default(), None, Keep::AllBut(&[read.as_fd()]), move || {
        fault::role("step");
        let said = match confine(confinement, inner, streams, measure) {
            Ok(layers) => Said::Confined(layers),
            Err(error) => Said::Failed(error),
        };
        let failed = matches!(said, Said::Failed(_));
        if say(write, &said).is_err() || failed {
            return 70;
        }
        wait_and_run(&streams.plan)
    })
    .stage("step: clone")?;
    let mut bytes = Vec::new();
    let heard = File::from(read).take(SAID_BYTES_MAX).read_to_end(&mut bytes);
    match heard.ok().and_then(|_| serde_json::from_slice(&bytes).ok()) {
        Some(Said::Confined(layers)) => Ok((child, layers)),
        Some(Said::Failed(error)) => {
            let _ = wait(Which::Pid(child.pid), true);
            Err(error)
        }
        None => {
            let _ = wait(Which::Pid(child.pid), true);
            Err(Errno::SRCH).stage("step: its process died before it was confined")
        }
    }
}

/// Says it and closes the pipe, so that init reads to an end.
fn say(write: OwnedFd, said: &Said) -> std::io::Result<()> {
    File::from(write).write_all(&serde_json::to_vec(said)?)
}

fn confine(
    confinement: &Confinement<'_>,
    inner: Option<&Inner>,
    streams: &Streams,
    measure: bool,
) -> Result<Layers, StageError> {
    prefer_as_victim().stage("step: oom_score_adj")?;
    rustix::process::setsid().stage("step: setsid")?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty())
        .stage("step: /dev/null")?;
    rustix::stdio::dup2_stdin(&null).stage("step: standard input")?;
    rustix::stdio::dup2_stdout(&streams.out).stage("step: standard output")?;
    rustix::stdio::dup2_stderr(&streams.err).stage("step: standard error")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(ampoule_spec::UMASK));
    ampoule_sys::signal::reset().stage("step: signals")?;
    if let Some(inner) = inner {
        inner.enter()?;
    }
    let locked = measure.then(inner::mounts_are_locked);
    confinement.apply()?;
    let Some(locked) = locked else { return Ok(Layers::new()) };
    let mut layers = probe::measure(confinement);
    let detail = "with every capability, before they are dropped, the step's process cannot unmount /proc";
    layers.insert("mounts_locked".to_owned(), Measured { in_force: locked, detail: detail.to_owned() });
    Ok(layers)
}

/// When the job's memory is used up, the kernel shall kill a step and not init, which has to say what happened.
/// Init's own score cannot be lowered without CAP_SYS_RESOURCE, so the steps' is raised. The file belongs to us
/// only while we are dumpable; nothing else runs in the sandbox now, and exec resets the flag anyway.
fn prefer_as_victim() -> std::io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    std::fs::write("/proc/self/oom_score_adj", "1000")?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Waits to be told what to run, and runs it. Returns only if that failed; the reason has been said.
fn wait_and_run(plan: &Channel) -> i32 {
    // Without a plan the job is over.
    let Ok((mut step, secrets)) = StepPlan::receive(plan) else { return 0 };
    let reason =
        match fault::point("step: run").map_err(|e| e.to_string()).and_then(|()| run(&mut step, secrets)) {
            Ok(never) => match never {},
            Err(reason) => reason,
        };
    let _ = plan.send_bytes(reason.as_bytes(), &[]);
    127
}

enum Never {}

fn run(step: &mut StepPlan, secrets: Vec<OwnedFd>) -> Result<Never, String> {
    let files = Rlimit { current: Some(step.open_files), maximum: Some(step.open_files) };
    setrlimit(Resource::Nofile, files).map_err(|e| format!("limit of open files: {e}"))?;
    rustix::process::chdir(step.cwd.as_str()).map_err(|e| format!("working directory {}: {e}", step.cwd))?;
    ampoule_sys::fd::close_on_exec_from(3).map_err(|e| format!("descriptors: {e}"))?;
    // Those that the program gets stay open until it is there.
    let _open = hand_over(step, secrets)?;
    exec(step)
}

/// Puts what is said of secrets into the environment; a message says nothing of a value.
fn hand_over(step: &mut StepPlan, secrets: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, String> {
    if secrets.len() != step.secrets.len() {
        return Err("a secret's descriptor is missing".to_owned());
    }
    let mut open = Vec::new();
    for (handed, secret) in std::mem::take(&mut step.secrets).into_iter().zip(secrets) {
        match handed {
            Handed::Fd(name) => {
                fcntl_setfd(&secret, FdFlags::empty()).map_err(|e| format!("secret in ${name}: {e}"))?;
                step.env.push(format!("{name}={}", secret.as_raw_fd()));
                open.push(secret);
            }
            Handed::Env(name) => {
                let mut value = String::new();
                let read = File::from(secret).take(SECRET_BYTES_MAX as u64).read_to_string(&mut value);
                if read.is_err() || value.contains('\0') {
                    return Err(format!(
                        "the secret in ${name} is no text without NUL bytes; deliver it by file"
                    ));
                }
                step.env.push(format!("{name}={value}"));
            }
        }
    }
    Ok(open)
}

/// Looks the program up as execvp(3) does, in the step's own PATH, already confined.
fn exec(step: &StepPlan) -> Result<Never, String> {
    let text = |s: &String| CString::new(s.as_str()).map_err(|_| "a NUL byte in an argument".to_owned());
    let args = step.run.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let env = step.env.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let program = step.run.first().map(String::as_str).unwrap_or_default();
    let path = step.env.iter().find_map(|e| e.strip_prefix("PATH=")).unwrap_or_default();
    let candidates: Vec<String> = if program.contains('/') {
        vec![program.to_owned()]
    } else {
        path.split(':').filter(|p| p.starts_with('/')).map(|p| format!("{p}/{program}")).collect()
    };
    let mut reason = nix::errno::Errno::ENOENT;
    for candidate in candidates {
        let Ok(file) = CString::new(candidate) else { continue };
        match nix::unistd::execve(&file, &args, &env) {
            Ok(never) => match never {},
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => {}
            Err(errno) => reason = errno,
        }
    }
    Err(format!("{program}: {}", reason.desc()))
}
