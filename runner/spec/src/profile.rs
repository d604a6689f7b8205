//! A profile: the policy that the launcher reads by name, compiled from `sandbox-profiles/`.

use crate::limits::Limits;
use crate::{Name, SandboxPath};
use serde::{Deserialize, Serialize};

/// A compiled profile. Its digest is in every attestation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The version of this format: [`crate::FORMAT`].
    pub ampoule: u32,
    /// The profile's name.
    pub name: Name,
    /// What it is for, in one sentence.
    pub summary: String,
    /// What the host must be able to give.
    pub requires: Requirements,
    /// Which paths a step may write to.
    pub landlock: LandlockRules,
    /// System call filters, loaded in this order; the kernel takes the strictest answer.
    pub seccomp: Vec<SeccompProgram>,
    /// Limits of a job that names none.
    pub limits: Limits,
    /// The highest limits a job may ask for.
    pub ceiling: Limits,
}

/// What a host must be able to give; what it cannot, stops the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirements {
    /// The lowest Landlock ABI that will do; 0 = none.
    pub landlock_abi: u32,
    /// Memory, process and processor limits by cgroup.
    pub cgroup_limits: bool,
    /// A host user id of the job's own, so that no other process of the host shares it.
    pub dedicated_uid: bool,
}

/// Landlock rules for the steps. Reading and executing is allowed everywhere in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LandlockRules {
    /// Directories below which a step may write, where they exist. Mounts of writable inputs come on top.
    pub write: Vec<SandboxPath>,
}

/// A system call filter in classic BPF.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeccompProgram {
    /// What the program is, for people.
    pub name: String,
    /// Instructions: `code << 48 | jt << 40 | jf << 32 | k` (struct sock_filter, linux/filter.h).
    pub instructions: Vec<u64>,
}
