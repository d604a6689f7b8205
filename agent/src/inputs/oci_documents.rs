//! Image documents of OCI (image-spec 1.1) and Docker (schema 2), wherever they come from: pure reading, no IO.
//!
//! What is guaranteed: a document is what its descriptor says, can be taken for nothing else, and names only
//! what is fetched by digest. Whoever fetched it has held its bytes against their digest before.

use super::error::InputError;
use ampoule_spec::Sha256;
use oci_spec::image::{Descriptor, DigestAlgorithm, ImageIndex, ImageManifest, Platform, SCHEMA_VERSION};
use serde::Deserialize;
use serde_json::Value;

/// The largest index, manifest or configuration, in bytes.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// The most layers of an image.
const LAYERS_MAX: usize = 128;

const MANIFESTS: &[&str] =
    &["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const INDEXES: &[&str] =
    &["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// Docker's first schema: its digest is not that of the bytes, and its layers have no length.
const SCHEMA_ONE: &[&str] = &[
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];
const CONFIGS: &[&str] =
    &["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// Gzip, zstd or neither: the import worker looks at the bytes.
const LAYERS: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
const FOREIGN_LAYERS: &[&str] = &[
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// What a registry is asked for: every kind of document that is read here.
pub(crate) fn accepted() -> String {
    [MANIFESTS, INDEXES].concat().join(", ")
}

type Result<T> = std::result::Result<T, InputError>;

/// A blob that a document names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// SHA-256 of its bytes, as its descriptor says.
    pub sha256: Sha256,
    /// Its length, as its descriptor says.
    pub bytes: u64,
    /// Its media type.
    pub media_type: String,
}

impl Blob {
    /// Its path below the directory of an OCI layout.
    pub fn path(&self) -> String {
        format!("blobs/sha256/{}", self.sha256)
    }
}

/// What a manifest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) config: Blob,
    /// The base first.
    pub(crate) layers: Vec<Blob>,
}

/// The two kinds of document that an image can be named by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Manifest,
    Index,
}

impl Kind {
    /// The kind that a media type names. `what` is the document's name for messages.
    pub(crate) fn of(media_type: &str, what: &str) -> Result<Self> {
        if MANIFESTS.contains(&media_type) {
            return Ok(Self::Manifest);
        }
        if INDEXES.contains(&media_type) {
            return Ok(Self::Index);
        }
        if SCHEMA_ONE.contains(&media_type) {
            let reason = "it is a Docker schema 1 manifest, which no digest of its bytes names; push the image \
                          again with a tool of this decade (skopeo, podman, docker)";
            return Err(refused(what, reason.to_owned()));
        }
        Err(unknown_type(what, "image", media_type))
    }

    fn alien(self) -> &'static [&'static str] {
        match self {
            Self::Manifest => &["manifests", "fsLayers", "signatures"],
            Self::Index => &["layers", "config", "fsLayers", "signatures"],
        }
    }
}

/// What a document says of itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Own {
    #[serde(default)]
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: Option<String>,
}

/// Refuses a manifest of Docker's first schema by its name, and nothing else.
pub(crate) fn refuse_schema_one(bytes: &[u8], what: &str) -> Result<()> {
    match serde_json::from_slice::<Own>(bytes) {
        Ok(Own { schema_version: Some(1), .. }) => {
            Kind::of("application/vnd.docker.distribution.manifest.v1+json", what).map(drop)
        }
        _ => Ok(()),
    }
}

/// The kind of a document that was asked for by its digest alone: what it says of itself, or else what the
/// answer's header says. The two must not differ (distribution-spec 1.1, "Pulling manifests").
pub(crate) fn kind_of(bytes: &[u8], content_type: Option<&str>, what: &str) -> Result<Kind> {
    refuse_schema_one(bytes, what)?;
    let own: Own = document(bytes, what)?;
    let header = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    let header = header.filter(|text| *text != "application/json" && !text.is_empty());
    match (own.media_type.as_deref(), header) {
        (Some(own), Some(header)) if own != header => {
            let header: String = header.chars().take(120).collect();
            Err(refused(
                what,
                format!("the registry calls it {header:?}, and it calls itself something else"),
            ))
        }
        (Some(one), _) | (None, Some(one)) => Kind::of(one, what),
        (None, None) => Err(refused(what, "neither it nor the registry says what it is".to_owned())),
    }
}

/// Reads an index.
pub(crate) fn index(bytes: &[u8], what: &str) -> Result<ImageIndex> {
    let index: ImageIndex = document(bytes, what)?;
    let media_type = index.media_type().as_ref().map(AsRef::as_ref);
    check_own(bytes, index.schema_version(), media_type, Kind::Index, what)?;
    Ok(index)
}

/// The one manifest of an index for linux/amd64.
///
/// One without a variant, or for `v1`, is what every such machine runs. A later variant would make the image
/// depend on the machine, so it is taken only where its own digest is pinned.
pub(crate) fn for_this_platform<'i>(index: &'i ImageIndex, what: &str) -> Result<&'i Descriptor> {
    let suits = |d: &&Descriptor| {
        MANIFESTS.contains(&d.media_type().as_ref())
            && d.platform().as_ref().is_some_and(|p| here(p) && base(p))
    };
    let mut suiting = index.manifests().iter().filter(suits);
    match (suiting.next(), suiting.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => {
            let listed = index.manifests().iter().filter_map(|d| d.platform().as_ref()).map(platform_name);
            let listed: Vec<String> = listed.take(16).collect();
            let reason = format!("no image for linux/amd64; it lists {}", shown(&listed.join(", ")));
            Err(InputError::Missing { what: what.to_owned(), reason })
        }
        (Some(_), Some(_)) => {
            Err(refused(what, "several images for linux/amd64; pin the digest of one".to_owned()))
        }
    }
}

fn here(platform: &Platform) -> bool {
    platform.os().to_string() == "linux" && platform.architecture().to_string() == "amd64"
}

fn base(platform: &Platform) -> bool {
    matches!(platform.variant().as_deref(), None | Some("" | "v1"))
}

fn platform_name(platform: &Platform) -> String {
    let variant = platform.variant().as_deref().map(|v| format!("/{v}")).unwrap_or_default();
    format!("{}/{}{variant}", platform.os(), platform.architecture())
}

/// Refuses a descriptor that says it is for another platform.
pub(crate) fn check_platform(descriptor: &Descriptor, what: &str) -> Result<()> {
    match descriptor.platform() {
        Some(platform) if !here(platform) => Err(wrong_platform(what, &platform_name(platform))),
        _ => Ok(()),
    }
}

fn wrong_platform(what: &str, found: &str) -> InputError {
    refused(what, format!("the image is for {}; linux/amd64 is needed", shown(found)))
}

/// Reads a manifest.
pub(crate) fn manifest(bytes: &[u8], what: &str) -> Result<Parts> {
    let manifest: ImageManifest = document(bytes, what)?;
    let media_type = manifest.media_type().as_ref().map(AsRef::as_ref);
    check_own(bytes, manifest.schema_version(), media_type, Kind::Manifest, what)?;
    let config = manifest.config();
    if !CONFIGS.contains(&config.media_type().as_ref()) {
        return Err(unknown_type(what, "configuration", config.media_type().as_ref()));
    }
    if manifest.layers().len() > LAYERS_MAX {
        let reason = format!("{} layers; at most {LAYERS_MAX} are accepted", manifest.layers().len());
        return Err(refused(what, reason));
    }
    let config = blob(config, what)?;
    if config.bytes > DOCUMENT_BYTES_MAX {
        return Err(too_large(&format!("{what}, configuration"), config.bytes));
    }
    let layers = manifest.layers().iter().map(|layer| self::layer(layer, what)).collect::<Result<_>>()?;
    Ok(Parts { config, layers })
}

fn layer(descriptor: &Descriptor, what: &str) -> Result<Blob> {
    let media_type = descriptor.media_type().as_ref();
    if FOREIGN_LAYERS.contains(&media_type) {
        return Err(refused(what, "the image has foreign (nondistributable) layers".to_owned()));
    }
    if !LAYERS.contains(&media_type) {
        return Err(unknown_type(what, "layer", media_type));
    }
    blob(descriptor, what)
}

/// Refuses a configuration of another platform: a manifest that is pinned itself has no other place that says so.
pub(crate) fn check_config(bytes: &[u8], what: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        os: Option<String>,
        #[serde(default)]
        architecture: Option<String>,
    }
    let config: Config = document(bytes, what)?;
    let (os, architecture) = (config.os.as_deref(), config.architecture.as_deref());
    match (os.unwrap_or("linux"), architecture.unwrap_or("amd64")) {
        ("linux", "amd64") => Ok(()),
        (os, architecture) => Err(wrong_platform(what, &format!("{os}/{architecture}"))),
    }
}

/// A descriptor's digest; only sha256 is read.
pub(crate) fn sha256(descriptor: &Descriptor, what: &str) -> Result<Sha256> {
    let digest = descriptor.digest();
    let text: String = digest.as_ref().chars().take(160).collect();
    if *digest.algorithm() != DigestAlgorithm::Sha256 {
        return Err(refused(what, format!("the digest {text:?} is not sha256, and only sha256 is read")));
    }
    Sha256::parse(digest.digest()).map_err(|e| refused(what, format!("the digest {text:?}: {e}")))
}

/// Reads a descriptor.
pub(crate) fn blob(descriptor: &Descriptor, what: &str) -> Result<Blob> {
    let sha256 = sha256(descriptor, what)?;
    if descriptor.urls().as_ref().is_some_and(|urls| !urls.is_empty()) {
        let reason = format!("blob sha256:{sha256} has foreign URLs, which are never fetched");
        return Err(refused(what, reason));
    }
    let media_type = descriptor.media_type().as_ref().to_owned();
    Ok(Blob { sha256, bytes: descriptor.size(), media_type })
}

/// Refuses a document that can be read as something else than what its descriptor says (CVE-2021-41190).
fn check_own(bytes: &[u8], schema: u32, media_type: Option<&str>, is: Kind, what: &str) -> Result<()> {
    if schema != SCHEMA_VERSION {
        return Err(refused(what, format!("schemaVersion {schema} is not supported; 2 is")));
    }
    if let Some(media_type) = media_type
        && Kind::of(media_type, what)? != is
    {
        return Err(refused(what, "it calls itself something else than its descriptor does".to_owned()));
    }
    let value: Value = document(bytes, what)?;
    match is.alien().iter().find(|key| value.get(**key).is_some()) {
        Some(key) => Err(refused(what, format!("it has {key:?} and could be taken for something else"))),
        None => Ok(()),
    }
}

/// Reads JSON.
pub(crate) fn document<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| refused(what, format!("not valid: {e}")))
}

/// A stranger's text as a message shows it: bounded, without control characters.
fn shown(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn unknown_type(what: &str, part: &str, found: &str) -> InputError {
    let found: String = found.chars().take(120).collect();
    let remedy = "convert the image with `skopeo copy --format oci`";
    refused(what, format!("the media type {found:?} of the {part} is not supported; {remedy}"))
}

pub(crate) fn refused(what: &str, reason: String) -> InputError {
    InputError::Refused { what: what.to_owned(), reason }
}

pub(crate) fn too_large(what: &str, bytes: u64) -> InputError {
    refused(what, format!("{bytes} bytes; at most {DOCUMENT_BYTES_MAX} are accepted"))
}
