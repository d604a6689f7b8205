//! The launcher's own admission: a spec is held against the profile, the host and the store before anything
//! of it exists.

use crate::holdings::{Holdings, Used};
use crate::profiles::{Loaded, Profiles};
use ampoule_sandbox::cgroup::Hierarchies;
use ampoule_sandbox::identity::Authority;
use ampoule_sandbox::rootfs::{InputMount, MountPlan, RootPlan};
use ampoule_sandbox::uid_block::{self, Claim};
use ampoule_spec::wire::Content;
use ampoule_spec::{
    Code, Damage, Image, Input, InputSource, Isolation, JobSpec, Limits, LimitsRequest, Name, Network,
    Profile, ReadPolicy, SPEC_BYTES_MAX, Sha256, SlotId, StepUser, UnixNanos,
};
use ampoule_store::{Needed, Store};
use sha2::{Digest, Sha256 as Hasher};
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// A job that may run, with everything that was looked up for it.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) at: UnixNanos,
    pub(crate) job: JobSpec,
    pub(crate) spec_sha256: Sha256,
    pub(crate) profile: Rc<Loaded>,
    pub(crate) limits: Limits,
    pub(crate) mounts: MountPlan,
    /// What of the store is in them.
    pub(crate) used: Vec<Used>,
}

/// A job that is refused before it exists.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) message: String,
}

pub(crate) fn refuse(code: Code, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into() }
}

/// Whether the runner has host root's authority.
pub(crate) fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
}

/// Decides on a job, before anything of it exists.
pub(crate) fn admit(
    spec: &[u8],
    store: &Store,
    holdings: &mut Holdings,
    profiles: &mut Profiles,
) -> Result<Admitted, Refusal> {
    if spec.len() as u64 > SPEC_BYTES_MAX {
        return Err(refuse(Code::JobInvalid, format!("the spec has more than {SPEC_BYTES_MAX} bytes")));
    }
    let job: JobSpec =
        serde_json::from_slice(spec).map_err(|e| refuse(Code::JobInvalid, format!("the spec: {e}")))?;
    job.validate()
        .and_then(|()| job.check_resolved())
        .map_err(|e| refuse(Code::JobInvalid, e.to_string()))?;
    if !job.secrets.is_empty() && !is_privileged() {
        let text = "secret: only a runner that root started has secrets for steps; remove [[secret]]";
        return Err(refuse(Code::SandboxUnsupported, text));
    }
    let (profile, limits) = judge(&job.profile, job.user, &job.limits, profiles)?;
    let (mounts, used) = look_up(&job, store, holdings, profile.profile.read_back)?;
    let spec_sha256 = Sha256::new(Hasher::digest(spec).into());
    Ok(Admitted { at: crate::clock::now(), job, spec_sha256, profile, limits, mounts, used })
}

/// What profile, user and limits of a job say, whatever it is made of.
fn judge(
    profile: &Name,
    user: StepUser,
    limits: &LimitsRequest,
    profiles: &mut Profiles,
) -> Result<(Rc<Loaded>, Limits), Refusal> {
    let profile = usable(profile, profiles)?;
    let limits = limits
        .resolve(&profile.profile.limits, &profile.profile.ceiling)
        .map_err(|e| refuse(Code::JobInvalid, e.to_string()))?;
    demand_files(&limits)?;
    demand_user(user)?;
    Ok((profile, limits))
}

/// Refuses now what would be refused when everything is imported.
pub(crate) fn possible(
    profile: &Name,
    user: StepUser,
    limits: &LimitsRequest,
    profiles: &mut Profiles,
) -> Result<(), Refusal> {
    let (loaded, _) = judge(profile, user, limits, profiles)?;
    demand(&loaded.profile).map(drop)
}

/// A hard limit of ours that is lower than the job's cannot be raised for it.
fn demand_files(limits: &Limits) -> Result<(), Refusal> {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    match most.filter(|most| *most < limits.open_files) {
        None => Ok(()),
        Some(most) => Err(refuse(
            Code::SandboxUnsupported,
            format!(
                "limits.open_files: {} is more than this host lets the runner have ({most}); raise its hard limit of \
                 open files (LimitNOFILE=, ulimit -Hn), or ask for less",
                limits.open_files
            ),
        )),
    }
}

/// Somebody else's steps are uid 1000 of a map that has no other id.
fn demand_user(user: StepUser) -> Result<(), Refusal> {
    if user == StepUser::Build || is_privileged() {
        return Ok(());
    }
    let text = "user: root inside the sandbox needs a block of user ids of the host, which only root can give; run as \
                root, or leave `user` out";
    Err(refuse(Code::SandboxUnsupported, text.to_owned()))
}

/// Reads a profile by name, and refuses what this version cannot give on any host.
pub(crate) fn usable(name: &Name, profiles: &mut Profiles) -> Result<Rc<Loaded>, Refusal> {
    let loaded = profiles.load(name).map_err(|e| refuse(e.code(), chain(&e)))?;
    match loaded.profile.network {
        Network::None => Ok(loaded),
        Network::Proxy => Err(refuse(
            Code::SandboxUnsupported,
            format!(
                "profile {name} needs the egress proxy, which this version does not have; use hermetic with pinned \
                 inputs"
            ),
        )),
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

/// What the profile demands of the host, before anything is made; the self-probe measures the rest.
pub(crate) fn demand(profile: &Profile) -> Result<Option<Hierarchies>, Refusal> {
    let unsupported = |text: String| Err(refuse(Code::SandboxUnsupported, text));
    let name = &profile.name;
    if !is_privileged() {
        if profile.requires.cgroup_limits || profile.requires.dedicated_uid {
            return unsupported(format!(
                "profile {name} demands limits by control group and a user id of the job's own, which only root \
                 can give; run as root, or use --profile dev, whose attestations say that nothing was enforced"
            ));
        }
        return Ok(None);
    }
    let hierarchies = Hierarchies::of_host()
        .map_err(|e| refuse(Code::SandboxUnsupported, format!("control groups cannot be read: {e}")))?;
    let missing = hierarchies.missing();
    if !missing.is_empty() && profile.requires.cgroup_limits {
        return unsupported(format!(
            "profile {name} demands limits, but there is no {} controller here; mount cgroup2 with it, or, in a \
             delegated subtree, have it delegated (Delegate=yes)",
            missing.join(" or ")
        ));
    }
    Ok(missing.is_empty().then_some(hierarchies))
}

/// Under which authority a slot's sandbox is made, and the claim to the block of user ids that goes with it.
pub(crate) fn identity(slot: &SlotId) -> Result<(Authority, Option<Claim>), Refusal> {
    if !is_privileged() {
        let uid = rustix::process::getuid().as_raw();
        let gid = rustix::process::getgid().as_raw();
        return Ok((Authority::User { uid, gid }, None));
    }
    let claim = uid_block::claim(slot).map_err(|e| {
        let busy = e.errno == rustix::io::Errno::AGAIN.raw_os_error();
        refuse(if busy { Code::AdmissionBusy } else { e.code() }, e.to_string())
    })?;
    Ok((Authority::Root { base: claim.base }, Some(claim)))
}

/// Uid 0 of a user namespace has no ids to give to jobs or to what the store takes in.
pub(crate) fn demand_host_root() -> Result<(), Refusal> {
    if !is_privileged() {
        return Ok(());
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // user_namespaces(7): the initial one maps every id to itself.
    if map.split_whitespace().eq(["0", "0", "4294967295"]) {
        return Ok(());
    }
    let text = "uid 0 of a user namespace is not root of the host, and has no ids to give to jobs; run as the host's \
                root, or as an ordinary user";
    Err(refuse(Code::SandboxUnsupported, text))
}

/// Holds and reads back what the job names.
fn look_up(
    job: &JobSpec,
    store: &Store,
    holdings: &mut Holdings,
    policy: ReadPolicy,
) -> Result<(MountPlan, Vec<Used>), Refusal> {
    let mut used = Vec::new();
    let mut stored = |content: &Content, what: &str| -> Result<(Vec<OwnedFd>, Option<Sha256>), Refusal> {
        let found = holdings.found();
        let Some(needed) = holdings.take(store, content, policy)? else {
            return Err(not_there(what, holdings.damaged().get(found..).unwrap_or_default()));
        };
        let digest = needed.first().map(Needed::sha256);
        let (parts, mut trees) = (needed.len(), Vec::new());
        for (number, one) in needed.iter().enumerate() {
            let what = match (content, number) {
                // The configuration was held against the layers when the image was taken in.
                (Content::OciManifest { .. }, 1) => continue,
                (Content::OciManifest { .. }, 2..) => format!("image layer {}", number - 2),
                _ => what.to_owned(),
            };
            let one = holdings.used(one, what, parts)?;
            if parts == 1 || number >= 2 {
                trees.push(one.lease.tree().map_err(|e| refuse(e.code(), chain(&e)))?);
            }
            used.push(one);
        }
        Ok((trees, digest))
    };
    let root = match image_content(&job.image) {
        None => RootPlan::Host,
        Some(content) => RootPlan::Layers(stored(&content, "image")?.0),
    };
    let mut inputs = Vec::new();
    for input in &job.inputs {
        let content = content_of(&input.source, job.source_date_epoch);
        let (mut trees, digest) = stored(&content, &format!("input {}", input.name))?;
        let tree = trees.pop();
        expect_tree(input, digest)?;
        inputs.push(InputMount {
            target: input.mount.clone(),
            tree: tree.ok_or_else(|| refuse(Code::Internal, "an input without a tree"))?,
            file: matches!(content, Content::File { .. }),
            writable: input.writable,
        });
    }
    Ok((MountPlan { root, inputs }, used))
}

fn not_there(what: &str, damaged: &[Damage]) -> Refusal {
    match damaged.last() {
        Some(damage) => refuse(
            Code::InputDamaged,
            format!(
                "{what}: the store's object {} was damaged ({}) and is in quarantine; run again, and it is taken in anew",
                damage.object, damage.reason
            ),
        ),
        None => refuse(Code::InputMissing, format!("{what} is not in the store; import it first")),
    }
}

/// Everything of the store that a job names.
pub(crate) fn contents(job: &JobSpec) -> Vec<Content> {
    let inputs = job.inputs.iter().map(|input| content_of(&input.source, job.source_date_epoch));
    image_content(&job.image).into_iter().chain(inputs).collect()
}

fn image_content(image: &Image) -> Option<Content> {
    match image {
        Image::Host => None,
        Image::Tar { sha256 } => Some(Content::ImageTar { sha256: *sha256 }),
        Image::Oci { manifest, .. } => Some(Content::OciManifest { sha256: *manifest }),
    }
}

/// The store names a checkout by its commit; what the job says of its tree goes into the attestation.
fn expect_tree(input: &Input, digest: Option<Sha256>) -> Result<(), Refusal> {
    match &input.source {
        InputSource::Git { tree, .. } if digest.is_none() || digest != *tree => {
            let tree = tree.map(|tree| tree.to_string()).unwrap_or_default();
            let text = format!("input {}: the checkout has another tree digest than {tree}", input.name);
            Err(refuse(Code::InputDigestMismatch, text))
        }
        _ => Ok(()),
    }
}

/// Under which name the store has an input.
pub(crate) fn content_of(source: &InputSource, epoch: u64) -> Content {
    match source {
        InputSource::Directory { tree } => Content::Directory { tree: Some(*tree), epoch },
        InputSource::File { sha256, executable } => {
            Content::File { sha256: Some(*sha256), executable: *executable, epoch }
        }
        InputSource::Attestation { sha256, tree: true, .. } => {
            Content::Directory { tree: Some(*sha256), epoch }
        }
        InputSource::Attestation { sha256, executable, unpack: false, .. } => {
            Content::File { sha256: Some(*sha256), executable: *executable, epoch }
        }
        InputSource::Http { sha256, unpack: false, .. } => {
            Content::File { sha256: Some(*sha256), executable: false, epoch }
        }
        InputSource::Git { commit, submodules, .. } => {
            Content::Git { commit: *commit, submodules: *submodules, epoch }
        }
        InputSource::Http { sha256, unpack: true, .. }
        | InputSource::Tar { sha256 }
        | InputSource::Attestation { sha256, unpack: true, .. } => {
            Content::Archive { sha256: *sha256, epoch }
        }
    }
}

/// Every layer that has to be measured; one that is missing from a measurement is not in force.
const LAYERS: [&str; 20] = [
    "capabilities",
    "devices",
    "groups",
    "identity",
    "landlock",
    "limits",
    "mounts_locked",
    "namespace.cgroup",
    "namespace.ipc",
    "namespace.mnt",
    "namespace.net",
    "namespace.pid",
    "namespace.steps",
    "namespace.user",
    "namespace.uts",
    "network",
    "no_new_privs",
    "proc",
    "rootfs",
    "seccomp",
];

/// Layers that are demanded and were not measured to be in force, each with its reason.
pub(crate) fn missing_layers(isolation: &Isolation, profile: &Profile) -> Vec<String> {
    let spared = |layer: &str| match layer {
        "limits" => !profile.requires.cgroup_limits,
        // Only root can drop the groups of the caller.
        "groups" => !profile.requires.dedicated_uid,
        "landlock" => profile.requires.landlock_abi == 0,
        _ => false,
    };
    let unmeasured = LAYERS.iter().filter(|layer| !isolation.layers.contains_key(**layer));
    let unmeasured = unmeasured.map(|layer| (*layer, "it was not measured"));
    let absent = isolation.layers.iter().filter(|(_, measured)| !measured.in_force);
    let absent = absent.map(|(layer, measured)| (layer.as_str(), measured.detail.as_str()));
    unmeasured
        .chain(absent)
        .filter(|(layer, _)| !spared(layer))
        .map(|(layer, why)| {
            format!("profile {} demands the layer {layer}, which is not in force: {why}", profile.name)
        })
        .collect()
}
