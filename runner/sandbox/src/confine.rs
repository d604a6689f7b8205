//! What a process gives up before it becomes a step: the same code confines the self-probe.

use crate::error::{Stage, StageError};
use crate::identity::Authority;
use crate::protocol::PreparePlan;
use ampoule_spec::{Profile, SandboxPath, StepUser};
use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::CapabilitiesSecureBits;
use std::os::fd::OwnedFd;

/// What confines a step, prepared by init inside the new root.
pub struct Confinement<'a> {
    profile: &'a Profile,
    authority: Authority,
    /// Who the step is.
    pub(crate) user: StepUser,
    landlock: Option<RulesetCreated>,
}

/// The Landlock ABI of this library that goes with the kernel's; the rights of newer ones are not known here.
fn known_abi(kernel: u32) -> ABI {
    match kernel {
        0 => ABI::Unsupported,
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        6 => ABI::V6,
        _ => ABI::V7,
    }
}

/// Above this the library knows no further rights.
const ABI_KNOWN_MAX: u32 = 7;

/// The Landlock ABI that is used on this kernel.
///
/// # Errors
/// As landlock_create_ruleset(2).
pub fn landlock_abi() -> std::io::Result<u32> {
    Ok(ampoule_sys::landlock::abi()?.min(ABI_KNOWN_MAX))
}

impl<'a> Confinement<'a> {
    /// Builds the Landlock ruleset. To be called inside the new root, where its paths mean what they say.
    ///
    /// # Errors
    /// [`StageError::unsupported`] below the profile's floor; else the stage that failed.
    pub(crate) fn prepare(
        profile: &'a Profile,
        authority: Authority,
        plan: &PreparePlan,
    ) -> Result<Self, StageError> {
        let abi = landlock_abi().stage("landlock: read the kernel's ABI")?;
        if abi < profile.requires.landlock_abi {
            let remedy = format!(
                "this kernel's Landlock ABI is {abi}, the profile demands {}; boot a newer kernel, or enable \
                 Landlock with lsm=landlock,…",
                profile.requires.landlock_abi
            );
            return Err(StageError::unsupported("landlock", remedy));
        }
        let landlock = match abi {
            0 => None,
            _ if !profile.landlock.enforce => None,
            _ => Some(ruleset(abi, profile, plan).map_err(|_| failed("landlock: build the ruleset"))?),
        };
        Ok(Self { profile, authority, user: plan.user, landlock })
    }

    /// Confines the calling process for good. What follows can only be exec, or the probe.
    ///
    /// # Errors
    /// The stage that failed; the caller then has to end.
    pub fn apply(&self) -> Result<(), StageError> {
        limits()?;
        let keep = self.capabilities()?;
        drop_bounding(&keep)?;
        if self.authority.is_root() {
            nix::unistd::setgroups(&[]).stage("identity: drop groups")?;
            let gid = nix::unistd::Gid::from_raw(self.user.id());
            let uid = nix::unistd::Uid::from_raw(self.user.id());
            nix::unistd::setresgid(gid, gid, gid).stage("identity: setresgid")?;
            nix::unistd::setresuid(uid, uid, uid).stage("identity: setresuid")?;
        }
        for set in [CapSet::Ambient, CapSet::Inheritable] {
            caps::clear(None, set).map_err(|_| failed("capabilities: clear a set"))?;
        }
        for set in [CapSet::Effective, CapSet::Permitted] {
            caps::set(None, set, &keep).map_err(|_| failed("capabilities: set those of the profile"))?;
        }
        if self.profile.no_new_privs {
            rustix::thread::set_no_new_privs(true).stage("no_new_privs")?;
        }
        if let Some(ruleset) = &self.landlock {
            let ruleset = ruleset.try_clone().stage("landlock: duplicate the ruleset")?;
            let status = ruleset.restrict_self().map_err(|_| failed("landlock: restrict"))?;
            if status.ruleset != RulesetStatus::FullyEnforced {
                return Err(failed("landlock: enforced only in part"));
            }
        }
        for program in self.profile.filters(self.user) {
            ampoule_sys::seccomp::load(&program.instructions).stage("seccomp: load a filter")?;
        }
        Ok(())
    }
}

impl Confinement<'_> {
    /// The capabilities of the step.
    pub(crate) fn capabilities(&self) -> Result<CapsHashSet, StageError> {
        let names = self.profile.capabilities_of(self.user).iter();
        names
            .map(|name| {
                name.parse().map_err(|_| failed("capabilities: the profile names one that is unknown"))
            })
            .collect()
    }

    /// Under which authority the sandbox was made.
    pub(crate) fn authority(&self) -> Authority {
        self.authority
    }

    /// The profile.
    pub(crate) fn profile(&self) -> &Profile {
        self.profile
    }
}

fn failed(stage: &str) -> StageError {
    StageError { stage: stage.to_owned(), errno: 0, unsupported: None }
}

fn ruleset(
    abi: u32,
    profile: &Profile,
    plan: &PreparePlan,
) -> Result<RulesetCreated, landlock::RulesetError> {
    let abi = known_abi(abi);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))?;
    // Signals and abstract sockets stay within the domain; the network wall is the namespace.
    let scopes = Scope::from_all(abi);
    if !scopes.is_empty() {
        ruleset = ruleset.scope(scopes)?;
    }
    let mut created = ruleset.create()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(rustix::fs::CWD, "/", flags, Mode::empty()).ok();
    if let Some(root) = &root {
        let mut read = AccessFs::from_read(abi);
        if abi >= ABI::V2 {
            read |= AccessFs::Refer;
        }
        created = created.add_rule(PathBeneath::new(root, read))?;
    }
    for path in profile.writable(plan.user).iter().chain(&plan.writable) {
        // A directory that this image does not have needs no rule.
        let Some(dir) = root.as_ref().and_then(|root| beneath(root, path)) else { continue };
        let file = rustix::fs::fstat(&dir)
            .is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode) != rustix::fs::FileType::Directory);
        let access = if file { AccessFs::from_file(abi) } else { AccessFs::from_all(abi) };
        created = created.add_rule(PathBeneath::new(dir, access))?;
    }
    Ok(created)
}

/// Opens what a rule is for. An earlier step may have put a link in the place of a directory above it: nothing is
/// followed, and what is not there any more has no rule.
fn beneath(root: &OwnedFd, path: &SandboxPath) -> Option<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.relative().is_empty() { "." } else { path.relative() };
    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).ok()
}

fn limits() -> Result<(), StageError> {
    set_limits(&[
        // Not 0: with 1 the kernel leaves a handler of cores alone, too, which would run as the host's root (core(5)).
        (Resource::Core, 1),
        (Resource::Memlock, 64 << 10),
        (Resource::Nice, 0),
        (Resource::Rtprio, 0),
        (Resource::Msgqueue, 819_200),
    ])
}

/// The most address space of an import worker, in bytes: a window of 128 MiB, and the names of a million entries.
const WORKER_BYTES_MAX: u64 = 2 << 30;
/// The most processor time of one, in seconds.
const WORKER_SECONDS_MAX: u64 = 60 * 60;

/// Limits what an import worker can use, whatever it reads: `file_bytes_max` is the size of the largest file. It makes no
/// process.
///
/// # Errors
/// The stage that failed.
pub fn limit_worker(file_bytes_max: u64) -> Result<(), StageError> {
    set_limits(&[
        (Resource::As, WORKER_BYTES_MAX),
        (Resource::Core, 1),
        (Resource::Cpu, WORKER_SECONDS_MAX),
        (Resource::Fsize, file_bytes_max),
        (Resource::Memlock, 0),
        (Resource::Nofile, 256),
        (Resource::Nproc, 0),
    ])
}

fn set_limits(limits: &[(Resource, u64)]) -> Result<(), StageError> {
    for (resource, most) in limits.iter().copied() {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        match setrlimit(resource, limit) {
            // Without CAP_SYS_RESOURCE a hard limit that is lower already stays: it is stricter than ours.
            Err(rustix::io::Errno::PERM) => {}
            other => other.stage("limits: setrlimit")?,
        }
    }
    Ok(())
}

/// Empties the bounding set but for what is kept, and locks the rules by which capabilities are regained
/// (capabilities(7)). With none to keep, uid 0 is an id like any other.
fn drop_bounding(keep: &CapsHashSet) -> Result<(), StageError> {
    for capability in caps::all().into_iter().filter(|capability| !keep.contains(capability)) {
        match caps::drop(None, CapSet::Bounding, capability) {
            Ok(()) => {}
            // A capability that this kernel does not have cannot be in the set.
            Err(_) if !bounded(capability) => {}
            Err(_) => return Err(failed("capabilities: empty the bounding set")),
        }
    }
    let mut bits =
        CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    if keep.is_empty() {
        bits |= CapabilitiesSecureBits::NO_ROOT
            | CapabilitiesSecureBits::NO_ROOT_LOCKED
            | CapabilitiesSecureBits::KEEP_CAPS_LOCKED;
    }
    rustix::thread::set_capabilities_secure_bits(bits).stage("capabilities: lock the secure bits")
}

fn bounded(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(true)
}

/// Confines the calling process to what lies below one directory, for good: for an import worker, which gets
/// its work by descriptor and has no business anywhere else.
///
/// # Errors
/// The stage that failed. A kernel without Landlock is not an error: the worker then has its user namespace
/// alone, in which it owns nothing but that directory.
pub fn confine_to_directory(dir: std::os::fd::BorrowedFd<'_>) -> Result<(), StageError> {
    confine_to(Some(dir))
}

/// Confines the calling process to the descriptors that it has, for good: for one that only turns bytes into others.
///
/// # Errors
/// As [`confine_to_directory`].
pub fn confine_to_descriptors() -> Result<(), StageError> {
    confine_to(None)
}

fn confine_to(dir: Option<std::os::fd::BorrowedFd<'_>>) -> Result<(), StageError> {
    rustix::thread::set_no_new_privs(true).stage("no_new_privs")?;
    let abi = known_abi(landlock_abi().stage("landlock: read the kernel's ABI")?);
    if abi == ABI::Unsupported {
        return Ok(());
    }
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(abi))
        .and_then(Ruleset::create)
        .and_then(|ruleset| match dir {
            Some(dir) => ruleset.add_rule(PathBeneath::new(dir, AccessFs::from_all(abi))),
            None => Ok(ruleset),
        })
        .and_then(RulesetCreated::restrict_self);
    match restricted {
        Ok(status) if status.ruleset == RulesetStatus::FullyEnforced => Ok(()),
        _ => Err(failed("landlock: confine to a directory")),
    }
}
