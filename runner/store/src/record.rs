//! The small JSON files beside the trees.

use crate::error::StoreError;
use ampoule_spec::wire::{Content, Imported};
use ampoule_spec::{Blake3, Sha256};
use serde::{Deserialize, Serialize};

/// The largest of these files.
const RECORD_BYTES_MAX: usize = 64 << 10;

/// `trees/<blake3>/meta.json`: what a tree is, whoever asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TreeMeta {
    /// The tree digest for the world.
    pub(crate) tree_sha256: Sha256,
    /// The digest that names the tree here.
    pub(crate) blake3: Blake3,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) whiteouts: u64,
    pub(crate) opaque_directories: u64,
}

/// `index/<key>`: where a content lies and how it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The content, with its digest filled in.
    pub(crate) content: Content,
    pub(crate) imported: Imported,
    /// The tree's name.
    pub(crate) tree: Blake3,
    /// The bytes of the source as they came.
    pub(crate) source_bytes: u64,
    /// SHA-256 of them.
    pub(crate) source_sha256: Sha256,
    /// What the worker said besides.
    pub(crate) claims: crate::worker::Claims,
}

pub(crate) fn write<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

pub(crate) fn read<T: for<'de> Deserialize<'de>>(entry: &str, bytes: &[u8]) -> Result<T, StoreError> {
    let damaged = |reason: String| StoreError::Damaged { entry: entry.to_owned(), reason };
    if bytes.len() > RECORD_BYTES_MAX {
        return Err(damaged("it is too long".to_owned()));
    }
    serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))
}

/// The name of a content's record; nothing if its digest is not known yet.
pub(crate) fn key(content: &Content) -> Option<String> {
    Some(match content {
        Content::Directory { tree, epoch } => format!("directory-{}-{epoch}", (*tree)?),
        Content::File { sha256, executable: false, epoch } => format!("file-{}-{epoch}", (*sha256)?),
        Content::File { sha256, executable: true, epoch } => format!("file-{}-{epoch}-x", (*sha256)?),
        Content::Archive { sha256, epoch } => format!("archive-{sha256}-{epoch}"),
        Content::Git { commit, submodules: false, epoch } => format!("git-{commit}-{epoch}"),
        Content::Git { commit, submodules: true, epoch } => format!("git-{commit}-{epoch}-submodules"),
        Content::ImageTar { sha256 } => format!("image-tar-{sha256}"),
        Content::OciManifest { sha256 } => format!("oci-manifest-{sha256}"),
        Content::OciConfig { sha256 } => format!("oci-config-{sha256}"),
        Content::OciLayer { sha256 } => format!("oci-layer-{sha256}"),
    })
}
