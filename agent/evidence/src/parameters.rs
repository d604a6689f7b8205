//! The two parameter objects of the build type `sandbox/v1` (docs/provenance.md).
//!
//! [`ExternalParameters`] is a function of the job alone and holds every field of it but `ampoule` (a
//! constant), `id` and `attempt` (which name the run, not the build). [`InternalParameters`] is a function of
//! the report alone. They share no key. Whole numbers are strings, because many readers keep only 53 bits.

use crate::git::{self, GitParameter};
use crate::secrets::SecretParameter;
use crate::statement::sha256_only;
use crate::uri::{UriError, image_uri, mirror_uris, source_uri};
use ampoule_spec::{
    ENV_DEFAULTS, EnvName, HOSTNAME, Image, Input, InputSource, Isolation, JobSpec, Limits, LimitsRequest,
    LogOverflow, MadeBy, Name, OutputForm, OutputKind, OutputName, OutputWhen, ParamValue, RunReport,
    SandboxPath, Sha256, StepUser, UMASK,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The names of all limits.
pub(crate) const LIMITS: [&str; 8] = [
    "memory_bytes",
    "cpu_millis",
    "pids",
    "disk_bytes",
    "disk_inodes",
    "log_bytes",
    "timeout_ms",
    "open_files",
];

/// Everything a tenant chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalParameters {
    /// The job's name.
    pub name: Name,
    /// The profile's name.
    pub profile: Name,
    /// What the root was asked to be.
    pub image: ImageParameter,
    /// Who the steps are inside the sandbox: `build` or `root`, also where the job says nothing.
    pub user: StepUser,
    /// Seconds since 1970.
    pub source_date_epoch: String,
    /// Variables for all steps.
    pub env: BTreeMap<EnvName, String>,
    /// Values that entered from outside.
    pub params: BTreeMap<Name, Param>,
    /// What is mounted.
    pub inputs: Vec<InputParameter>,
    /// The secrets that steps could have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretParameter>,
    /// What is run.
    pub steps: Vec<StepParameter>,
    /// What is taken out.
    pub outputs: Vec<OutputParameter>,
    /// The limits that the job named, as it asked.
    pub limits: BTreeMap<String, String>,
    /// What it means that a step writes more log than is kept: `cut` or `fail`, also where the job says nothing.
    pub log_overflow: LogOverflow,
}

/// What the root was asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageParameter {
    /// `host`, `oci` or `tar`.
    pub kind: String,
    /// The URI, the same as in `resolvedDependencies`.
    pub uri: String,
    /// OCI: the name under which the job asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// OCI: of the manifest. Tar: of the archive. Host: none, because the job names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<BTreeMap<String, String>>,
}

/// A parameter with its type: the text `1` and the number 1 differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Param {
    /// `boolean`, `integer` or `string`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The value as text.
    pub value: String,
}

/// One input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InputParameter {
    /// Its name.
    pub name: Name,
    /// Where it appears.
    pub mount: SandboxPath,
    /// Whether steps may write to a copy-on-write layer over it.
    pub writable: bool,
    /// `directory`, `file`, `git`, `http`, `tar` or `attestation`.
    pub kind: String,
    /// The URI, the same as in `resolvedDependencies`.
    pub uri: String,
    /// The digest that the job demands: `sha256`, or `gitCommit`.
    pub digest: BTreeMap<String, String>,
    /// File and attestation: whether its owner may execute it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<bool>,
    /// Directory: the patterns of what was left out of it, where there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Http and attestation: whether it is an archive that is unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpack: Option<bool>,
    /// Attestation: there and true if it is a directory, and the digest its tree's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<bool>,
    /// Http: where else the same bytes are, in the order in which they are asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// Attestation: whose word it is that the job in the URI made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<MadeByParameter>,
    /// Git: what else it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitParameter>,
}

/// The provenance that was verified for an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MadeByParameter {
    /// The builder that signed.
    pub builder: String,
    /// The OpenSSH fingerprint of its key.
    pub key: String,
    /// SHA-256 of the statement.
    pub statement: Sha256,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StepParameter {
    /// Its name.
    pub name: Name,
    /// The program and its arguments.
    pub run: Vec<String>,
    /// The working directory.
    pub cwd: SandboxPath,
    /// Variables for this step.
    pub env: BTreeMap<EnvName, String>,
    /// The step's own time limit in milliseconds.
    pub timeout_ms: String,
    /// The secrets that it had, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Name>,
}

/// One output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutputParameter {
    /// Its name.
    pub name: OutputName,
    /// Where it lies in the sandbox.
    pub path: SandboxPath,
    /// For which outcomes it is taken out.
    pub when: OutputWhen,
    /// Whether it is a subject.
    pub kind: OutputKind,
    /// Whether the job may succeed without it.
    pub optional: bool,
    /// What it has to be, where the job says so: `file`, `tree` or `tar.zst`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<OutputForm>,
}

impl ExternalParameters {
    /// What the tenant chose in a job.
    ///
    /// # Errors
    /// [`UriError`] if a URL or reference cannot stand in an attestation.
    pub fn of(spec: &JobSpec) -> Result<Self, UriError> {
        Ok(Self {
            name: spec.name.clone(),
            profile: spec.profile.clone(),
            image: ImageParameter::of(&spec.image)?,
            user: spec.user,
            source_date_epoch: spec.source_date_epoch.to_string(),
            env: spec.env.clone(),
            params: spec.params.iter().map(|(name, value)| (name.clone(), Param::of(value))).collect(),
            inputs: spec.inputs.iter().enumerate().map(InputParameter::of).collect::<Result<_, _>>()?,
            secrets: spec.secrets.iter().map(SecretParameter::of).collect(),
            steps: spec.steps.iter().map(StepParameter::of).collect(),
            outputs: spec.outputs.iter().map(OutputParameter::of).collect(),
            limits: asked(&spec.limits),
            log_overflow: spec.log_overflow,
        })
    }
}

impl ImageParameter {
    fn of(image: &Image) -> Result<Self, UriError> {
        let (kind, reference, sha256) = match image {
            Image::Host => ("host", None, None),
            Image::Oci { manifest, reference } => ("oci", Some(reference.clone()), Some(*manifest)),
            Image::Tar { sha256 } => ("tar", None, Some(*sha256)),
        };
        let digest = sha256.map(sha256_only);
        Ok(Self { kind: kind.to_owned(), uri: image_uri(image)?, reference, digest })
    }
}

impl Param {
    fn of(value: &ParamValue) -> Self {
        let (kind, value) = match value {
            ParamValue::Bool(value) => ("boolean", value.to_string()),
            ParamValue::Integer(value) => ("integer", value.to_string()),
            ParamValue::String(value) => ("string", value.clone()),
        };
        Self { kind: kind.to_owned(), value }
    }
}

impl InputParameter {
    fn of((at, input): (usize, &Input)) -> Result<Self, UriError> {
        let (kind, executable, unpack) = match &input.source {
            InputSource::Directory { .. } => ("directory", None, None),
            InputSource::File { executable, .. } => ("file", Some(*executable), None),
            InputSource::Http { unpack, .. } => ("http", None, Some(*unpack)),
            InputSource::Tar { .. } => ("tar", None, None),
            InputSource::Attestation { executable, unpack, .. } => {
                ("attestation", Some(*executable), Some(*unpack))
            }
            InputSource::Git { .. } => ("git", None, None),
        };
        let made_by = match &input.source {
            InputSource::Attestation { made_by, .. } => Some(MadeByParameter::of(made_by)),
            _ => None,
        };
        let tree = matches!(input.source, InputSource::Attestation { tree: true, .. }).then_some(true);
        let digest = match &input.source {
            InputSource::Git { commit, .. } => git::digest(*commit),
            other => other.sha256().map(sha256_only).unwrap_or_default(),
        };
        Ok(Self {
            name: input.name.clone(),
            mount: input.mount.clone(),
            writable: input.writable,
            kind: kind.to_owned(),
            uri: source_uri(at, &input.name, &input.source)?,
            digest,
            executable,
            exclude: input.exclude.clone(),
            unpack,
            tree,
            mirrors: mirror_uris(at, &input.source)?,
            made_by,
            git: git::parameter(&input.source),
        })
    }
}

impl MadeByParameter {
    fn of(made_by: &MadeBy) -> Self {
        let MadeBy { builder, key, job: _, subject: _, statement } = made_by;
        Self { builder: builder.clone(), key: key.clone(), statement: *statement }
    }
}

impl StepParameter {
    fn of(step: &ampoule_spec::Step) -> Self {
        Self {
            name: step.name.clone(),
            run: step.run.clone(),
            cwd: step.cwd.clone(),
            env: step.env.clone(),
            timeout_ms: step.timeout_ms.to_string(),
            secrets: step.secrets.clone(),
        }
    }
}

impl OutputParameter {
    fn of(output: &ampoule_spec::Output) -> Self {
        Self {
            name: output.name.clone(),
            path: output.path.clone(),
            when: output.when,
            kind: output.kind,
            optional: output.optional,
            form: output.form,
        }
    }
}

fn asked(limits: &LimitsRequest) -> BTreeMap<String, String> {
    let LimitsRequest {
        memory_bytes,
        cpu_millis,
        pids,
        disk_bytes,
        disk_inodes,
        log_bytes,
        timeout_ms,
        open_files,
    } = limits;
    let values = [memory_bytes, cpu_millis, pids, disk_bytes, disk_inodes, log_bytes, timeout_ms, open_files];
    let named = LIMITS.iter().zip(values);
    named.filter_map(|(name, value)| Some(((*name).to_owned(), (*value)?.to_string()))).collect()
}

/// Limits in force, by name, as text.
pub(crate) fn in_force(limits: &Limits) -> BTreeMap<String, String> {
    limits.entries().into_iter().map(|(name, value)| (name.to_owned(), value.to_string())).collect()
}

/// What the daemon chose, and what the host showed the build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InternalParameters {
    /// The compiled profile.
    pub profile_digest: BTreeMap<String, String>,
    /// All limits in force.
    pub effective_limits: BTreeMap<String, String>,
    /// The isolation layers in force, with what exactly is.
    pub isolation: BTreeMap<String, String>,
    /// The isolation layers that were measured and are not in force, with the reason.
    pub isolation_absent: BTreeMap<String, String>,
    /// What the build could see of the host although nobody declared it.
    pub host_facts: HostFactsParameter,
    /// What every sandbox is like unless the job says otherwise.
    pub defaults: BTreeMap<String, String>,
}

/// What a build can see of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostFactsParameter {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub machine: String,
    /// The processor's model name.
    pub cpu_model: String,
}

impl InternalParameters {
    /// What the daemon chose, from its report; `None` if the report lacks the profile or the limits.
    pub fn of(report: &RunReport) -> Option<Self> {
        Some(Self {
            profile_digest: sha256_only(report.profile_sha256?),
            effective_limits: in_force(report.limits.as_ref()?),
            isolation: layers(&report.isolation, true),
            isolation_absent: layers(&report.isolation, false),
            host_facts: HostFactsParameter {
                kernel: report.host.kernel.clone(),
                machine: report.host.machine.clone(),
                cpu_model: report.host.cpu_model.clone(),
            },
            defaults: sandbox_defaults(),
        })
    }
}

fn layers(isolation: &Isolation, in_force: bool) -> BTreeMap<String, String> {
    let chosen = isolation.layers.iter().filter(|(_, measured)| measured.in_force == in_force);
    chosen.map(|(name, measured)| (name.clone(), measured.detail.clone())).collect()
}

/// A parameter object as the untyped map that SLSA's schema has in its place.
pub(crate) fn to_map<T: Serialize>(value: &T) -> Result<Map<String, Value>, serde_json::Error> {
    match serde_json::to_value(value)? {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

/// What every sandbox is like unless a job says otherwise.
fn sandbox_defaults() -> BTreeMap<String, String> {
    let variables = ENV_DEFAULTS.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let others = [("hostname", HOSTNAME.to_owned()), ("umask", format!("{UMASK:04o}"))];
    variables.chain(others.map(|(name, value)| (name.to_owned(), value))).collect()
}
