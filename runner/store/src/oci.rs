//! The parts of image documents that the store relies on (OCI image-spec v1.1, Docker schema 2).
//!
//! Unknown fields are ignored, as the specification demands; a known one of a wrong type, a field given twice,
//! another media type or another digest than sha256 is refused.

use crate::limits::DOCUMENT_BYTES_MAX;
use crate::refusal::{Refusal, shown};
use ampoule_spec::Sha256;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The most layers of an image; overlayfs takes 500 lower directories.
const LAYERS_MAX: usize = 256;

const MANIFESTS: &[&str] =
    &["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: &[&str] =
    &["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// A part of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) sha256: Sha256,
    pub(crate) bytes: u64,
}

/// What a manifest says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Part,
    /// The lowest first.
    pub(crate) layers: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    config: RawPart,
    layers: Vec<RawPart>,
    /// Only an index has it: a document that is both is read differently by different programs (CVE-2021-41190).
    #[serde(default)]
    manifests: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPart {
    media_type: String,
    digest: String,
    size: u64,
}

#[derive(Deserialize)]
struct RawConfig {
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Vec<String>,
}

fn parse<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, Refusal> {
    if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
        return Err(Refusal::TooLarge { bytes_max: DOCUMENT_BYTES_MAX });
    }
    serde_json::from_slice(bytes).map_err(|error| wrong(what, &error.to_string()))
}

/// The reason may quote the document, so it is shown as a name is.
fn wrong(what: &'static str, reason: &str) -> Refusal {
    Refusal::Document { what, reason: shown(reason.as_bytes()) }
}

fn digest(what: &'static str, text: &str) -> Result<Sha256, Refusal> {
    let hex = text.strip_prefix("sha256:").ok_or_else(|| wrong(what, "a digest that is not sha256"))?;
    Sha256::parse(hex).map_err(|error| wrong(what, &error.to_string()))
}

impl RawPart {
    fn check(&self, known: &[&str]) -> Result<Part, Refusal> {
        if !known.contains(&self.media_type.as_str()) {
            return Err(wrong("manifest", &format!("the media type {} is not known here", self.media_type)));
        }
        Ok(Part { sha256: digest("manifest", &self.digest)?, bytes: self.size })
    }
}

/// Reads a manifest.
pub(crate) fn manifest(bytes: &[u8]) -> Result<Manifest, Refusal> {
    const WHAT: &str = "manifest";
    let raw: RawManifest = parse(WHAT, bytes)?;
    if raw.schema_version != 2 {
        return Err(wrong(WHAT, "its schemaVersion is not 2"));
    }
    if raw.manifests.is_some() {
        return Err(wrong(WHAT, "it is an index too; name the manifest of one platform"));
    }
    if let Some(media_type) = &raw.media_type
        && !MANIFESTS.contains(&media_type.as_str())
    {
        return Err(wrong(WHAT, &format!("the media type {media_type} is no manifest")));
    }
    if raw.layers.is_empty() || raw.layers.len() > LAYERS_MAX {
        return Err(wrong(WHAT, "it has no layers, or more than 256"));
    }
    let config = raw.config.check(CONFIGS)?;
    let layers = raw.layers.iter().map(|layer| layer.check(LAYERS)).collect::<Result<_, _>>()?;
    Ok(Manifest { config, layers })
}

/// Reads the digests of a configuration's uncompressed layers, the lowest first.
pub(crate) fn diff_ids(bytes: &[u8]) -> Result<Vec<Sha256>, Refusal> {
    const WHAT: &str = "configuration";
    let raw: RawConfig = parse(WHAT, bytes)?;
    if raw.rootfs.kind != "layers" || raw.rootfs.diff_ids.len() > LAYERS_MAX {
        return Err(wrong(WHAT, "its rootfs is not a list of at most 256 layers"));
    }
    raw.rootfs.diff_ids.iter().map(|id| digest(WHAT, id)).collect()
}
