//! A profile: the policy that the launcher reads by name, compiled from `sandbox-profiles/`.

use crate::limits::Limits;
use crate::store::ReadPolicy;
use crate::{Name, SandboxPath, StepUser};
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
    /// Which namespaces are the sandbox's own.
    pub namespaces: Vec<Namespace>,
    /// What a step can reach beyond its sandbox.
    pub network: Network,
    /// What is mounted, and how.
    pub mounts: Mounts,
    /// Which devices are in `/dev`.
    pub devices: Vec<Device>,
    /// Which capabilities a step has, over the sandbox alone.
    pub capabilities: Capabilities,
    /// Whether no program can give a step more than it has (`no_new_privs`).
    pub no_new_privs: bool,
    /// What the host must be able to give.
    pub requires: Requirements,
    /// Which paths a step may write to.
    pub landlock: LandlockRules,
    /// System call filters of the steps.
    pub seccomp: Seccomp,
    /// Limits of a job that names none.
    pub limits: Limits,
    /// The highest limits a job may ask for.
    pub ceiling: Limits,
    /// How what a job uses of the store is read back, before the job and after it.
    #[serde(default, skip_serializing_if = "ReadPolicy::is_default")]
    pub read_back: ReadPolicy,
}

/// A namespace of the sandbox's own (namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Namespace {
    /// Control groups.
    Cgroup,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Mounts.
    Mnt,
    /// Network.
    Net,
    /// Process ids.
    Pid,
    /// The steps' own user and mount namespaces inside the job's: what is mounted is locked for them.
    Steps,
    /// User ids.
    User,
    /// Host name.
    Uts,
}

impl Namespace {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Cgroup, Self::Ipc, Self::Mnt, Self::Net, Self::Pid, Self::Steps, Self::User, Self::Uts];

    /// The namespace's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::Ipc => "ipc",
            Self::Mnt => "mnt",
            Self::Net => "net",
            Self::Pid => "pid",
            Self::Steps => "steps",
            Self::User => "user",
            Self::Uts => "uts",
        }
    }
}

/// What is mounted into a sandbox, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mounts {
    /// What `/proc` shows.
    pub proc: Proc,
    /// What keeps inputs and the host's image as they are.
    pub sealed: Sealed,
}

/// What `/proc` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proc {
    /// The steps' own processes alone: `subset=pid,hidepid=invisible`.
    Own,
    /// Everything that the kernel shows in a pid namespace, sysctls included.
    All,
}

/// What keeps a read-only mount as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sealed {
    /// An overlay without an upper layer, whose file system is read-only for good.
    Overlay,
    /// A read-only bind mount, which whoever has CAP_SYS_ADMIN over it can make writable.
    Bind,
}

/// A device that may be in a sandbox's `/dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// `/dev/null`
    Null,
    /// `/dev/zero`
    Zero,
    /// `/dev/full`
    Full,
    /// `/dev/random`
    Random,
    /// `/dev/urandom`
    Urandom,
    /// `/dev/kmsg`: the kernel's log. No profile may have it.
    Kmsg,
}

impl Device {
    /// The device's name in `/dev`, and its numbers (Documentation/admin-guide/devices.txt).
    pub fn node(self) -> (&'static str, u8, u8) {
        match self {
            Self::Null => ("null", 1, 3),
            Self::Zero => ("zero", 1, 5),
            Self::Full => ("full", 1, 7),
            Self::Random => ("random", 1, 8),
            Self::Urandom => ("urandom", 1, 9),
            Self::Kmsg => ("kmsg", 1, 11),
        }
    }
}

/// Capabilities by the user that a step is in the sandbox, as in `CAP_CHOWN` (capabilities(7)). They hold in the
/// steps' own user namespace: over files and processes with ids of the job's block, and over nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capabilities {
    /// Of the ordinary step.
    pub build: Vec<String>,
    /// Of a step that is uid 0 in the sandbox.
    pub root: Vec<String>,
}

/// What root in a sandbox may have at most: what package managers need for the files and processes of the sandbox.
const ROOT_CAPABILITIES: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETUID",
];

/// What a step can reach by network, beyond the loopback device of its own sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Nothing.
    None,
    /// A proxy that records what is fetched, and nothing else.
    Proxy,
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
    /// Whether there are rules at all.
    pub enforce: bool,
    /// Directories below which a step may write, where they exist. Mounts of writable inputs come on top.
    pub write: Vec<SandboxPath>,
    /// The same for a step that is uid 0 in the sandbox.
    pub write_root: Vec<SandboxPath>,
}

/// System call filters by the user that a step is in the sandbox. A step gets the programs of one list, loaded
/// in its order; the kernel takes the strictest answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seccomp {
    /// For the ordinary step, which is the build user.
    pub build: Vec<SeccompProgram>,
    /// For a step that is uid 0 in the sandbox and holds no privilege outside: package managers set set-id bits.
    pub root: Vec<SeccompProgram>,
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

impl Profile {
    /// The filters of a step.
    pub fn filters(&self, user: StepUser) -> &[SeccompProgram] {
        match user {
            StepUser::Build => &self.seccomp.build,
            StepUser::Root => &self.seccomp.root,
        }
    }

    /// The capabilities of a step.
    pub fn capabilities_of(&self, user: StepUser) -> &[String] {
        match user {
            StepUser::Build => &self.capabilities.build,
            StepUser::Root => &self.capabilities.root,
        }
    }

    /// Where a step may write.
    pub fn writable(&self, user: StepUser) -> &[SandboxPath] {
        match user {
            StepUser::Build => &self.landlock.write,
            StepUser::Root => &self.landlock.write_root,
        }
    }

    /// Whether a namespace is the sandbox's own.
    pub fn has(&self, namespace: Namespace) -> bool {
        self.namespaces.contains(&namespace)
    }

    /// In what the profile is weaker than every profile has to be; empty: in nothing. A profile chooses within this
    /// floor, and none goes below it.
    pub fn weaknesses(&self) -> Vec<String> {
        let mut found = Vec::new();
        let missing = Namespace::ALL.into_iter().filter(|namespace| !self.has(*namespace));
        found.extend(missing.map(|n| format!("namespaces: {} is not the sandbox's own", n.as_str())));
        let mut need = |holds: bool, what: &str| {
            if !holds {
                found.push(what.to_owned());
            }
        };
        need(self.mounts.proc == Proc::Own, "mounts.proc: it shows more than the steps' own processes");
        need(self.mounts.sealed == Sealed::Overlay, "mounts.sealed: a bind mount can be made writable");
        need(!self.devices.contains(&Device::Kmsg), "devices: kmsg is the host's");
        need(self.capabilities.build.is_empty(), "capabilities.build: the ordinary step has none");
        let root = self.capabilities.root.iter().all(|c| ROOT_CAPABILITIES.contains(&c.as_str()));
        need(root, "capabilities.root: more than the sandbox's files and processes need");
        need(self.no_new_privs, "no_new_privs: it is not set");
        need(self.landlock.enforce, "landlock.enforce: there are no rules");
        let at_root = |paths: &[SandboxPath]| paths.iter().any(|path| path.components().next().is_none());
        let whole = at_root(&self.landlock.write) || at_root(&self.landlock.write_root);
        need(!whole, "landlock: everything is writable; name directories");
        let filtered = !self.seccomp.build.is_empty() && !self.seccomp.root.is_empty();
        need(filtered, "seccomp: there is no filter");
        found
    }
}
