//! What a job takes out.

use crate::{OutputName, SandboxPath};
use serde::{Deserialize, Serialize};

/// A file or directory that is taken out after the last process is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// The output's name: its file name outside, and its subject name in the attestation.
    pub name: OutputName,
    /// Where it lies in the sandbox.
    pub path: SandboxPath,
    /// For which outcomes it is taken out.
    #[serde(default)]
    pub when: OutputWhen,
    /// Whether it is a subject of provenance.
    #[serde(default)]
    pub kind: OutputKind,
    /// Whether the job may succeed without it.
    #[serde(default)]
    pub optional: bool,
    /// What it has to be, and how a directory leaves. None: a file as it is, or a directory as a tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<OutputForm>,
}

/// How an output leaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OutputForm {
    /// A file, as it is.
    #[default]
    #[serde(rename = "file")]
    File,
    /// A directory, as a directory, named by its tree digest (docs/formats.md).
    #[serde(rename = "tree")]
    Tree,
    /// A directory as one archive with reproducible bytes, compressed with zstd.
    #[serde(rename = "tar.zst")]
    TarZst,
}

impl OutputForm {
    /// Every form.
    pub const ALL: [Self; 3] = [Self::File, Self::Tree, Self::TarZst];

    /// The form's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Tree => "tree",
            Self::TarZst => "tar.zst",
        }
    }

    /// Whether it is what every report said before there were others.
    pub fn is_file(&self) -> bool {
        *self == Self::File
    }
}

/// For which outcomes an output is taken out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputWhen {
    /// Only when every step succeeded.
    #[default]
    Success,
    /// Also when a step failed.
    Always,
}

/// Whether an output is a subject of provenance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputKind {
    /// It is.
    #[default]
    Artifact,
    /// It never is: a test report, a coverage file.
    Report,
}
