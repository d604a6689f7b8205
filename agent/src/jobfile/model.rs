//! A job file as it was written: what it leaves out is `None`.

use super::error::Position;
use super::fields::Fields;
use super::git::GitEntry;
use super::image::ImageRef;
use super::upstream::UpstreamEntry;
use ampoule_spec::{
    Delivery, EnvName, LimitsRequest, LogOverflow, Name, OutputForm, OutputKind, OutputName, OutputWhen,
    ParamValue, RotateSignal, SandboxPath, Secret, Sha256, StepUser,
};
use std::collections::BTreeMap;

/// A job file whose every field was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFile {
    /// The job's name.
    pub name: Name,
    /// The profile's name.
    pub profile: Option<Name>,
    /// What the sandbox's root is made of.
    pub image: ImageRef,
    /// Who the steps are inside the sandbox.
    pub user: Option<StepUser>,
    /// Seconds since 1970.
    pub source_date_epoch: Option<u64>,
    /// Whether it is the time of the commit of the first git input.
    pub epoch_of_commit: bool,
    /// Variables for all steps.
    pub env: BTreeMap<EnvName, Text>,
    /// The parameters that may be given.
    pub params: BTreeMap<Name, Param>,
    /// The inputs, in the order of the file.
    pub inputs: Vec<InputEntry>,
    /// The secrets that steps may have, in the order of the file.
    pub secrets: Vec<SecretEntry>,
    /// The steps, in the order of the file.
    pub steps: Vec<StepEntry>,
    /// The outputs, in the order of the file.
    pub outputs: Vec<OutputEntry>,
    /// What the job asks to use.
    pub limits: LimitsRequest,
    /// What it means that a step writes more log than is kept: `log_overflow` of `[limits]`.
    pub log_overflow: Option<LogOverflow>,
    pub(crate) fields: Fields,
}

impl JobFile {
    /// The file, as the caller of [`parse`](super::parse) named it.
    pub fn file_name(&self) -> &str {
        &self.fields.file
    }

    /// Where a field stands, as in `step[0].run`; of one that is not written, where the table around it
    /// stands.
    pub fn position(&self, field: &str) -> Option<Position> {
        self.fields.place(field)
    }
}

/// A value that may be a parameter's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// The text itself.
    Literal(String),
    /// `"${params.NAME}"`.
    Param(Name),
}

/// A declared parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// The type of its values.
    pub kind: ParamType,
    /// Its value when none is given.
    pub default: Option<ParamValue>,
    /// What it is for.
    pub description: Option<String>,
}

/// The type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamType {
    /// Any text.
    String,
    /// A whole number of 64 bits.
    Integer,
    /// `true` or `false`.
    Bool,
}

impl ParamType {
    /// The type's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Bool => "bool",
        }
    }

    pub(crate) fn example(self) -> &'static str {
        match self {
            Self::String => "TEXT",
            Self::Integer => "1",
            Self::Bool => "true",
        }
    }
}

/// `[[input]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputEntry {
    /// The input's name.
    pub name: Name,
    /// Where it appears.
    pub mount: SandboxPath,
    /// Whether steps may write to a layer over it.
    pub writable: Option<bool>,
    /// Where its bytes come from.
    pub source: SourceEntry,
    /// What of a directory is left out, as patterns of .gitignore.
    pub exclude: Vec<String>,
}

/// The digest of a `path`. Which key it has says what the path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathDigest {
    /// `tree_sha256`: the tree digest of a directory, without what is left out of it.
    Tree(Sha256),
    /// `sha256`: of a file's bytes.
    File(Sha256),
}

impl PathDigest {
    /// Its key in the job file.
    pub fn key(self) -> &'static str {
        match self {
            Self::Tree(_) => "tree_sha256",
            Self::File(_) => "sha256",
        }
    }

    /// The digest itself.
    pub fn sha256(self) -> Sha256 {
        match self {
            Self::Tree(sha256) | Self::File(sha256) => sha256,
        }
    }
}

/// Where an input's bytes come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceEntry {
    /// `path`: a file or directory here.
    Path {
        /// Where.
        path: String,
        /// What it must hold, if that is written.
        digest: Option<PathDigest>,
    },
    /// `http`: a download.
    Http {
        /// Where to fetch.
        url: String,
        /// SHA-256 of the bytes.
        sha256: Sha256,
        /// Whether it is an archive to unpack.
        unpack: Option<bool>,
        /// Where else the same bytes are.
        mirrors: Vec<String>,
    },
    /// `git`: the checkout of a commit.
    Git(GitEntry),
    /// `tar`: an archive here, to unpack.
    Tar {
        /// The archive.
        path: String,
        /// SHA-256 of its bytes.
        sha256: Sha256,
    },
    /// `attestation`: what another job has made.
    Attestation(UpstreamEntry),
}

/// `[[step]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepEntry {
    /// The step's name.
    pub name: Option<Name>,
    /// The program and its arguments.
    pub run: Vec<Text>,
    /// The working directory.
    pub cwd: Option<SandboxPath>,
    /// Variables for this step.
    pub env: BTreeMap<EnvName, Text>,
    /// The step's own time limit in milliseconds.
    pub timeout_ms: Option<u64>,
    /// The secrets that it has.
    pub secrets: Vec<Name>,
}

/// `[[secret]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretEntry {
    /// Its name.
    pub name: Name,
    /// How a step gets it; a file in `/run/secrets` where nothing is written.
    pub delivery: Delivery,
    /// What the step is told when it has changed.
    pub on_rotate: Option<RotateSignal>,
}

/// `[[output]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputEntry {
    /// The output's name; none when the path's file name is to be used, which is then a valid one.
    pub name: Option<OutputName>,
    /// Where it lies in the sandbox.
    pub path: SandboxPath,
    /// What it has to be, and how a directory leaves.
    pub form: Option<OutputForm>,
    /// For which outcomes it is taken out.
    pub when: Option<OutputWhen>,
    /// Whether it is a subject of provenance.
    pub kind: Option<OutputKind>,
    /// Whether the job may succeed without it.
    pub optional: Option<bool>,
}

impl SecretEntry {
    /// The same in a spec.
    pub(crate) fn declared(&self) -> Secret {
        let Self { name, delivery, on_rotate } = self.clone();
        Secret { name, delivery, on_rotate }
    }
}

impl OutputEntry {
    /// The output's name, written or taken from the path.
    pub fn effective_name(&self) -> Option<OutputName> {
        self.name.clone().or_else(|| name_of(&self.path, self.form))
    }
}

/// The output name that a path gives; an archive of a directory has its ending.
pub(crate) fn name_of(path: &SandboxPath, form: Option<OutputForm>) -> Option<OutputName> {
    let last = path.components().last()?;
    let name = match form {
        Some(OutputForm::TarZst) => format!("{last}.tar.zst"),
        _ => last.to_owned(),
    };
    OutputName::parse(&name).ok()
}
