//! What a supervisor and the init of its sandbox say to each other.
//!
//! Orders and answers take turns, but for [`Answer::Ended`], which comes by itself, and [`Order::Terminate`],
//! [`Order::Kill`], [`Order::Rotated`] and [`Order::Leave`], which have no answer. Messages with descriptors are sent with `Channel::send_all`.

use crate::error::StageError;
use crate::probe::Layers;
use ampoule_ipc::{Channel, IpcError};
use ampoule_spec::{EnvName, RotateSignal, SandboxPath, StepUser};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// What the supervisor asks of init.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// Join the control groups, take an id and make the sandbox's own names. Descriptors: the `tasks` files of
    /// version 1 groups.
    Join,
    /// Enter the root. Descriptors: as [`EnterPlan`] says.
    Enter(EnterPlan),
    /// Move more mounts into place. Descriptors: the mounts.
    Attach {
        /// Where they go.
        targets: Vec<SandboxPath>,
    },
    /// Show the next step the files of its secrets. Descriptor: the mount, which stays writable for whoever has it.
    Secrets,
    /// Take them away; no step runs.
    NoSecrets,
    /// Tell the step's program that a secret has another value.
    Rotated {
        /// By this signal.
        signal: RotateSignal,
    },
    /// Make the process of the next step. Descriptors: its standard output, its standard error, and the channel
    /// on which it will be told what to run.
    Prepare(PreparePlan),
    /// End a process that was made and told nothing.
    Discard,
    /// Ask the step's program to end (SIGTERM).
    Terminate,
    /// Kill every process of the sandbox but init.
    Kill,
    /// End with the step that runs now: it is the last, and nothing will be taken out.
    Leave,
}

/// What init answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// Made; waits for its id maps.
    Made,
    /// Joined.
    Joined {
        /// The inode number of init's control group namespace.
        cgroup_namespace: u64,
        /// Where the time went: stage and microseconds since the one before.
        stages: Vec<(String, u64)>,
    },
    /// Entered. Descriptor: the root directory.
    Entered {
        /// As for [`Answer::Joined`].
        stages: Vec<(String, u64)>,
    },
    /// The mounts are in place.
    Attached,
    /// The next step's process is there, confined, and waits. Descriptors: the step's user and mount namespaces, if
    /// they are new.
    Prepared {
        /// What it measured, if it was asked to.
        layers: Layers,
        /// As for [`Answer::Joined`].
        stages: Vec<(String, u64)>,
    },
    /// The process is gone.
    Discarded,
    /// The step's process ended and no process of it is left.
    Ended {
        /// Exit status, if it exited.
        status: Option<i32>,
        /// Signal, if one ended it.
        signal: Option<i32>,
        /// Processor time of all its processes in microseconds.
        cpu_micros: u64,
        /// Resident set of its largest process in bytes.
        memory_peak_bytes: u64,
        /// Processes that outlived its program.
        survivors: u32,
    },
    /// Something failed; init ends.
    Failed(StageError),
}

/// How init enters.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "enter", rename_all = "snake_case")]
pub enum EnterPlan {
    /// The root and its mounts were made by host root. Descriptors: the root, then each mount.
    Mounted {
        /// Where the mounts go.
        mounts: Vec<SandboxPath>,
    },
    /// Init makes them, as an ordinary user. Descriptors: the layers, then each input's tree.
    Assemble(AssemblePlan),
}

/// `rootfs::MountPlan` without its descriptors.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AssemblePlan {
    /// How many image layers there are; none: the host's `/usr`.
    pub layers: Option<usize>,
    /// Target, single file, writable.
    pub inputs: Vec<(SandboxPath, bool, bool)>,
    /// Where each descriptor's directory lies on the host: a layer of an overlay has to be opened in the mount
    /// namespace that the overlay is made in.
    pub places: Vec<PathBuf>,
    /// Size of the writable layer in bytes.
    pub disk_bytes: u64,
    /// Inodes in the writable layer.
    pub disk_inodes: u64,
}

/// What the process of a step is made like.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PreparePlan {
    /// Who it is.
    pub user: StepUser,
    /// Where it may write besides the profile's directories.
    pub writable: Vec<SandboxPath>,
    /// Whether it measures what confines it before it waits.
    pub measure: bool,
}

/// What a step's process is told in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepPlan {
    /// The program and its arguments.
    pub run: Vec<String>,
    /// The working directory.
    pub cwd: SandboxPath,
    /// The whole environment, `NAME=value`.
    pub env: Vec<String>,
    /// The most descriptors that it may have open.
    pub open_files: u64,
    /// The secrets that come as descriptors beside the plan, in this order: never their values.
    #[serde(default)]
    pub secrets: Vec<Handed>,
}

/// A secret that a step's process makes of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handed {
    /// The descriptor stays open, and this variable says its number.
    Fd(EnvName),
    /// What is in it becomes this variable.
    Env(EnvName),
}

/// Above this a plan goes as a file: arguments alone may have more bytes than a packet.
const INLINE_BYTES_MAX: usize = 32 << 10;

impl StepPlan {
    /// Tells a step's process what to run, and hands it the secrets that it says.
    ///
    /// # Errors
    /// [`IpcError::Closed`] if the process is gone.
    pub fn send(&self, channel: &Channel, secrets: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        let bytes = serde_json::to_vec(self).map_err(IpcError::Malformed)?;
        if bytes.len() <= INLINE_BYTES_MAX {
            return channel.send_bytes(&bytes, secrets);
        }
        let mut file = File::from(memfd_create("step", MemfdFlags::CLOEXEC)?);
        let written = file.write_all(&bytes).and_then(|()| file.rewind());
        written.map_err(|e| {
            IpcError::Kernel(rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO))
        })?;
        channel.send_bytes(b" ", &[&[file.as_fd()], secrets].concat())
    }

    /// Waits for it, and for the secrets beside it.
    ///
    /// # Errors
    /// [`IpcError::Closed`] if nothing will come.
    pub fn receive(channel: &Channel) -> Result<(Self, Vec<OwnedFd>), IpcError> {
        let (mut bytes, descriptors) = channel.receive_bytes()?;
        let mut descriptors = descriptors.into_iter();
        if bytes == b" "
            && let Some(file) = descriptors.next()
        {
            let read = File::from(file).take(ampoule_spec::SPEC_BYTES_MAX * 2).read_to_end(&mut bytes);
            read.map_err(|e| {
                IpcError::Kernel(rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::IO))
            })?;
        }
        let plan = serde_json::from_slice(&bytes).map_err(IpcError::Malformed)?;
        Ok((plan, descriptors.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_plan_of_any_size_crosses() {
        let (a, b) = Channel::pair().unwrap();
        for length in [0, 1000, INLINE_BYTES_MAX, 100 << 10, 500 << 10] {
            let plan = StepPlan {
                run: vec!["true".into(), "x".repeat(length)],
                cwd: SandboxPath::parse("/").unwrap(),
                env: vec!["A=b".into()],
                open_files: 7,
                secrets: vec![Handed::Env(EnvName::parse("A").unwrap())],
            };
            plan.send(&a, &[a.as_fd()]).unwrap();
            let (read, secrets) = StepPlan::receive(&b).unwrap();
            assert_eq!((read, secrets.len()), (plan, 1));
        }
    }
}
