//! What is mounted for the steps of a job, by digest: where it came from, and what names it.

use crate::{GitId, GitSigner, JobId, Name, OutputName, SandboxPath, Sha256};
use serde::{Deserialize, Serialize};

/// A tree or file that is mounted for the steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// The input's name, unique in the job.
    pub name: Name,
    /// Where it appears.
    pub mount: SandboxPath,
    /// Whether steps may write to a copy-on-write layer over it.
    #[serde(default)]
    pub writable: bool,
    /// What it is, by digest.
    pub source: InputSource,
    /// A directory's: what was left out when it was taken in, as patterns of .gitignore. Where nothing was, it is empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
}

/// Where an input came from and the digest that names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum InputSource {
    /// A directory of the client's, by its tree digest (docs/formats.md).
    Directory {
        /// The tree digest.
        tree: Sha256,
    },
    /// A file of the client's.
    File {
        /// SHA-256 of its bytes.
        sha256: Sha256,
        /// Whether its owner may execute it.
        #[serde(default)]
        executable: bool,
    },
    /// A download.
    Http {
        /// Where it was fetched.
        url: String,
        /// SHA-256 of the bytes that were fetched.
        sha256: Sha256,
        /// Whether it is an archive that is unpacked.
        #[serde(default)]
        unpack: bool,
        /// Where else the same bytes are, in the order in which they are asked.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        mirrors: Vec<String>,
    },
    /// The checkout of a commit.
    Git {
        /// The repository's URL; none: a repository of the client's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
        /// The commit.
        commit: GitId,
        /// Whether submodules are checked out; else their directories are empty.
        #[serde(default)]
        submodules: bool,
        /// The tree digest of the checkout; none as long as nobody has fetched it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tree: Option<Sha256>,
        /// Who signed it, where the job demands that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signer: Option<GitSigner>,
    },
    /// An archive of the client's, unpacked.
    Tar {
        /// SHA-256 of the archive's bytes.
        sha256: Sha256,
    },
    /// What another job has made, by the provenance that was verified for it.
    Attestation {
        /// SHA-256 of its bytes, or its tree digest, as the provenance says.
        sha256: Sha256,
        /// Whether it may be executed. The provenance does not say.
        #[serde(default)]
        executable: bool,
        /// Whether it is an archive that is unpacked.
        #[serde(default)]
        unpack: bool,
        /// Whether it is a directory, and the digest its tree's: so the provenance says.
        #[serde(default, skip_serializing_if = "is_false")]
        tree: bool,
        /// The job that made it, and whose word that is.
        made_by: MadeBy,
    },
}

pub(crate) fn is_false(value: &bool) -> bool {
    !*value
}

/// Provenance that was verified before what it is about was used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MadeBy {
    /// The builder that signed: an absolute URI.
    pub builder: String,
    /// The OpenSSH fingerprint of its key.
    pub key: String,
    /// The job that made it.
    pub job: JobId,
    /// The name under which it is a subject.
    pub subject: OutputName,
    /// SHA-256 of the statement: the same in an envelope and in a bundle.
    pub statement: Sha256,
}

impl InputSource {
    /// The SHA-256 that the launcher holds the input against: of the bytes, or the tree digest. None: nobody knows it yet.
    pub fn sha256(&self) -> Option<Sha256> {
        match self {
            Self::Git { tree, .. } => *tree,
            Self::Directory { tree: sha256 }
            | Self::File { sha256, .. }
            | Self::Http { sha256, .. }
            | Self::Tar { sha256 }
            | Self::Attestation { sha256, .. } => Some(*sha256),
        }
    }
}
