//! The job as the runner executes it.
//!
//! A [`JobSpec`] holds no host path and no privilege: what an image or input is, is said by digest, and the
//! launcher looks it up in its own store. `spec.json` in a job directory is this type, byte for byte as it
//! arrived.

use crate::input::{Input, InputSource};
use crate::limits::LimitsRequest;
use crate::output::Output;
use crate::{EnvName, JobId, Name, SandboxPath, Secret, Sha256};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The most steps, inputs, outputs, parameters or variables of each kind in one job.
pub const ITEMS_MAX: usize = 256;
/// The most bytes in one argument or environment value.
pub const TEXT_BYTES_MAX: usize = 128 << 10;
/// The longest time limit of one step, in milliseconds: a day.
pub const STEP_TIMEOUT_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// The most mirrors of one download.
pub const MIRRORS_MAX: usize = 16;

/// One job: an image, inputs, steps, outputs and limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// The version of this format: [`crate::FORMAT`].
    pub ampoule: u32,
    /// The id of this attempt's sandbox.
    pub id: JobId,
    /// Which attempt at the job this is, from 1.
    pub attempt: u32,
    /// The job's name.
    pub name: Name,
    /// The profile's name.
    pub profile: Name,
    /// What the sandbox's root is made of.
    pub image: Image,
    /// Who the steps are inside the sandbox.
    #[serde(default, skip_serializing_if = "StepUser::is_default")]
    pub user: StepUser,
    /// Seconds since 1970: `SOURCE_DATE_EPOCH` and the modification time of every imported file.
    pub source_date_epoch: u64,
    /// Whether that is still to be found: the time of the commit of the first git input.
    #[serde(default, skip_serializing_if = "crate::input::is_false")]
    pub epoch_of_commit: bool,
    /// Variables for all steps.
    #[serde(default)]
    pub env: BTreeMap<EnvName, String>,
    /// Values that entered from outside, as they were given.
    #[serde(default)]
    pub params: BTreeMap<Name, ParamValue>,
    /// What is mounted for the steps to read.
    #[serde(default)]
    pub inputs: Vec<Input>,
    /// The secrets that steps may have, by name: never a value, nor where it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    /// What is run, in this order.
    pub steps: Vec<Step>,
    /// What is taken out.
    #[serde(default)]
    pub outputs: Vec<Output>,
    /// What the job asks to use.
    #[serde(default)]
    pub limits: LimitsRequest,
    /// What it means that a step writes more log than is kept.
    #[serde(default, skip_serializing_if = "LogOverflow::is_default")]
    pub log_overflow: LogOverflow,
}

/// Who the steps of a job are inside its sandbox. On the host they are ids of the job's own, either way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepUser {
    /// Uid and gid 1000, without any capability.
    #[default]
    Build,
    /// Uid and gid 0 with the capabilities that the profile gives it, over the sandbox's files and processes
    /// alone: for package managers.
    Root,
}

impl StepUser {
    /// Whether it is what a job that says nothing has.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The user's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Root => "root",
        }
    }

    /// The user and group id inside the sandbox.
    pub fn id(self) -> u32 {
        match self {
            Self::Build => crate::BUILD_ID,
            Self::Root => 0,
        }
    }
}

/// What it means that a step writes more log than is kept. Either way the middle is cut and counted, and the
/// digest is of the whole stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogOverflow {
    /// Nothing else.
    #[default]
    Cut,
    /// The step has failed.
    Fail,
}

impl LogOverflow {
    /// Whether it is what a job that says nothing has.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Its spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cut => "cut",
            Self::Fail => "fail",
        }
    }
}

/// What the sandbox's root is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Image {
    /// The host's own `/usr`, read-only, with a generated `/etc`.
    Host,
    /// An OCI image by the digest of its manifest.
    Oci {
        /// SHA-256 of the manifest's bytes.
        manifest: Sha256,
        /// The name under which the job asked for it, without any host path.
        reference: String,
    },
    /// A root file system in one tar archive.
    Tar {
        /// SHA-256 of the archive's bytes.
        sha256: Sha256,
    },
}

/// A layer of an imported image, as the launcher found it in its store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageLayer {
    /// SHA-256 of the layer as it is distributed.
    pub sha256: Sha256,
    /// Its length in bytes.
    pub bytes: u64,
}

/// One program run in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The step's name, unique in the job.
    pub name: Name,
    /// The program and its arguments. There is no implicit shell.
    pub run: Vec<String>,
    /// The working directory.
    pub cwd: SandboxPath,
    /// Variables for this step, over the job's.
    #[serde(default)]
    pub env: BTreeMap<EnvName, String>,
    /// The step's own time limit in milliseconds.
    pub timeout_ms: u64,
    /// The secrets that it has, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Name>,
}

/// A parameter's value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ParamValue {
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A text.
    String(String),
}

/// A rule that a job breaks, with the path of the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// The field, as in `step[0].cwd`.
    pub field: String,
    /// What is wrong and what to write instead.
    pub reason: String,
}

pub(crate) fn wrong(field: impl Into<String>, reason: impl Into<String>) -> SpecError {
    SpecError { field: field.into(), reason: reason.into() }
}

/// Where no input may be mounted: Ampoule's own mounts, and what an image is made of.
const RESERVED: &[&str] = &[
    "/.probe", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run",
    "/sbin", "/sys", "/tmp", "/usr",
];

impl JobSpec {
    /// Holds the job against every rule that does not need the host: sizes, counts, uniqueness, places.
    ///
    /// Both sides call it: the agent to answer with the field's path, the launcher because it does not
    /// trust the agent. What a job has asked for and nobody has found yet is allowed here: see
    /// [`check_resolved`](Self::check_resolved).
    ///
    /// # Errors
    /// The first [`SpecError`] in the order of the fields.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.ampoule != crate::FORMAT {
            let reason = format!("version {} is not known; this build reads {}", self.ampoule, crate::FORMAT);
            return Err(wrong("ampoule", reason));
        }
        if self.attempt == 0 {
            return Err(wrong("attempt", "attempts count from 1"));
        }
        // 253402300799 is the last second of the year 9999, the end of RFC 3339.
        if self.source_date_epoch > 253_402_300_799 {
            return Err(wrong("source_date_epoch", "it lies after the year 9999; give seconds since 1970"));
        }
        if self.epoch_of_commit {
            let is_git = |input: &Input| matches!(input.source, InputSource::Git { .. });
            let rule = match self.source_date_epoch {
                0 if self.inputs.iter().any(is_git) => None,
                0 => Some("there is no git input whose commit has a time; give seconds since 1970"),
                _ => Some("it is the time of a commit or a number; give one of both"),
            };
            rule.map_or(Ok(()), |rule| Err(wrong("source_date_epoch", rule)))?;
        }
        check_env("env", &self.env)?;
        check_count("params", self.params.len())?;
        for (name, value) in &self.params {
            if let ParamValue::String(text) = value {
                check_text(&format!("params.{name}"), text)?;
            }
        }
        if let Image::Oci { reference, .. } = &self.image {
            check_text("image", reference)?;
        }
        self.validate_inputs()?;
        self.validate_steps()?;
        self.validate_secrets()?;
        self.validate_outputs()
    }

    /// Whether everything is known that the job leaves to be found: what its commits hold, when they were made and who signed
    /// them. Only such a job is run or has provenance.
    ///
    /// # Errors
    /// The first [`SpecError`] in the order of the fields.
    pub fn check_resolved(&self) -> Result<(), SpecError> {
        if self.epoch_of_commit {
            return Err(wrong("source_date_epoch", "the time of the commit is not known yet"));
        }
        for (at, input) in self.inputs.iter().enumerate() {
            let InputSource::Git { tree, signer, .. } = &input.source else { continue };
            if tree.is_none() {
                return Err(wrong(format!("input[{at}].git"), "the commit was not fetched yet"));
            }
            if signer.as_ref().is_some_and(|signer| !signer.is_found()) {
                return Err(wrong(format!("input[{at}].git"), "nobody has looked yet who signed the commit"));
            }
        }
        Ok(())
    }

    fn validate_inputs(&self) -> Result<(), SpecError> {
        check_count("input", self.inputs.len())?;
        let mut names = BTreeSet::new();
        for (at, input) in self.inputs.iter().enumerate() {
            if !names.insert(&input.name) {
                return Err(wrong(format!("input[{at}].name"), format!("{} is used twice", input.name)));
            }
            let field = format!("input[{at}].mount");
            let first = input.mount.components().next();
            let reserved =
                first.is_none_or(|first| RESERVED.iter().any(|r| r.strip_prefix('/') == Some(first)));
            if reserved {
                let reason = format!("{} is Ampoule's or the image's own; mount below /build", input.mount);
                return Err(wrong(field, reason));
            }
            if let Some(other) = self.inputs.iter().take(at).find(|o| overlap(&o.mount, &input.mount)) {
                let reason = format!("{} overlaps input {} at {}", input.mount, other.name, other.mount);
                return Err(wrong(field, reason));
            }
            let field = format!("input[{at}].exclude");
            if !input.exclude.is_empty() && !matches!(input.source, InputSource::Directory { .. }) {
                return Err(wrong(field, "patterns are for directories; leave them out"));
            }
            check_count(&field, input.exclude.len())?;
            for pattern in &input.exclude {
                check_text(&field, pattern)?;
            }
            match &input.source {
                InputSource::Http { url, mirrors, .. } => {
                    check_text(&format!("input[{at}].http.url"), url)?;
                    let field = format!("input[{at}].http.mirrors");
                    if mirrors.len() > MIRRORS_MAX {
                        return Err(wrong(field, format!("at most {MIRRORS_MAX} mirrors")));
                    }
                    mirrors.iter().try_for_each(|mirror| check_text(&field, mirror))?;
                }
                InputSource::Git { url, signer, .. } => {
                    let signer = signer.iter().flat_map(|s| [&s.principal, &s.key].into_iter().chain(&s.tag));
                    for text in url.iter().chain(signer) {
                        check_text(&format!("input[{at}].git"), text)?;
                    }
                }
                InputSource::Attestation { executable, unpack, tree, made_by, .. } => {
                    if *tree && (*executable || *unpack) {
                        let field = format!("input[{at}].attestation.tree");
                        return Err(wrong(
                            field,
                            "a directory is neither an archive nor a file to be executed",
                        ));
                    }
                    if *executable && *unpack {
                        let field = format!("input[{at}].attestation.executable");
                        return Err(wrong(field, "an archive says itself what in it may be executed"));
                    }
                    for text in [&made_by.builder, &made_by.key] {
                        check_text(&format!("input[{at}].attestation"), text)?;
                    }
                }
                InputSource::Directory { .. } | InputSource::File { .. } | InputSource::Tar { .. } => {}
            }
        }
        Ok(())
    }

    fn validate_steps(&self) -> Result<(), SpecError> {
        check_count("step", self.steps.len())?;
        if self.steps.is_empty() {
            return Err(wrong("step", "a job has at least one step"));
        }
        let mut names = BTreeSet::new();
        for (at, step) in self.steps.iter().enumerate() {
            if !names.insert(&step.name) {
                return Err(wrong(format!("step[{at}].name"), format!("{} is used twice", step.name)));
            }
            let field = format!("step[{at}].run");
            if step.run.first().is_none_or(String::is_empty) {
                return Err(wrong(field, "give the program and its arguments, as in [\"make\", \"all\"]"));
            }
            if step.run.len() > 4096 {
                return Err(wrong(field, "at most 4096 arguments"));
            }
            for text in &step.run {
                check_text(&field, text)?;
            }
            check_env(&format!("step[{at}].env"), &step.env)?;
            if step.timeout_ms == 0 || step.timeout_ms > STEP_TIMEOUT_MS_MAX {
                return Err(wrong(format!("step[{at}].timeout"), "give between 1ms and 24h"));
            }
        }
        Ok(())
    }

    fn validate_outputs(&self) -> Result<(), SpecError> {
        check_count("output", self.outputs.len())?;
        let mut names = BTreeSet::new();
        for (at, output) in self.outputs.iter().enumerate() {
            // Compared without case: two names that differ in case alone collide on some file systems.
            if !names.insert(output.name.as_str().to_ascii_lowercase()) {
                return Err(wrong(format!("output[{at}].name"), format!("{} is used twice", output.name)));
            }
            if output.path.components().next().is_none() {
                return Err(wrong(format!("output[{at}].path"), "the root itself cannot be an output"));
            }
        }
        Ok(())
    }
}

fn overlap(a: &SandboxPath, b: &SandboxPath) -> bool {
    a.is_within(b) || b.is_within(a)
}

fn check_count(field: &str, count: usize) -> Result<(), SpecError> {
    if count > ITEMS_MAX {
        Err(wrong(field, format!("at most {ITEMS_MAX}, this has {count}")))
    } else {
        Ok(())
    }
}

fn check_text(field: &str, text: &str) -> Result<(), SpecError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(wrong(field, format!("at most {TEXT_BYTES_MAX} bytes, this has {}", text.len())));
    }
    if text.contains('\0') { Err(wrong(field, "a NUL byte cannot be passed to a program")) } else { Ok(()) }
}

fn check_env(field: &str, env: &BTreeMap<EnvName, String>) -> Result<(), SpecError> {
    check_count(field, env.len())?;
    for (name, value) in env {
        check_text(&format!("{field}.{name}"), value)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
