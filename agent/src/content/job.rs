//! What a job names by digest and a client has to upload.

use crate::registry::SCHEME;
use ampoule_spec::wire::Content;
use ampoule_spec::{Image, InputSource, JobSpec};

/// The content that a job names, without what the host fetches for it: downloads, checkouts of commits with a URL, images
/// in registries.
pub fn contents_of(spec: &JobSpec) -> Vec<Content> {
    let epoch = spec.source_date_epoch;
    let image = match &spec.image {
        Image::Oci { reference, .. } if reference.starts_with(SCHEME) => None,
        Image::Oci { manifest, .. } => Some(Content::OciManifest { sha256: *manifest }),
        Image::Tar { sha256 } => Some(Content::ImageTar { sha256: *sha256 }),
        Image::Host => None,
    };
    image.into_iter().chain(spec.inputs.iter().filter_map(|input| uploaded(&input.source, epoch))).collect()
}

/// The content of one input, unless the host fetches it.
pub fn uploaded(source: &InputSource, epoch: u64) -> Option<Content> {
    Some(match source {
        InputSource::Directory { tree } | InputSource::Attestation { sha256: tree, tree: true, .. } => {
            Content::Directory { tree: Some(*tree), epoch }
        }
        InputSource::Tar { sha256 } | InputSource::Attestation { sha256, unpack: true, .. } => {
            Content::Archive { sha256: *sha256, epoch }
        }
        InputSource::File { sha256, executable } | InputSource::Attestation { sha256, executable, .. } => {
            Content::File { sha256: Some(*sha256), executable: *executable, epoch }
        }
        InputSource::Http { .. } | InputSource::Git { .. } => return None,
    })
}
