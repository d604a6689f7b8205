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
    let inputs = spec.inputs.iter().filter_map(|input| match &input.source {
        InputSource::Directory { tree } => Some(Content::Directory { tree: Some(*tree), epoch }),
        InputSource::File { sha256, executable } => {
            Some(Content::File { sha256: Some(*sha256), executable: *executable, epoch })
        }
        InputSource::Tar { sha256 } => Some(Content::Archive { sha256: *sha256, epoch }),
        InputSource::Attestation { sha256, unpack: true, .. } => {
            Some(Content::Archive { sha256: *sha256, epoch })
        }
        InputSource::Attestation { sha256, executable, .. } => {
            Some(Content::File { sha256: Some(*sha256), executable: *executable, epoch })
        }
        InputSource::Git { url: None, commit, submodules, .. } => {
            Some(Content::Git { commit: *commit, submodules: *submodules, epoch })
        }
        InputSource::Http { .. } | InputSource::Git { url: Some(_), .. } => None,
    });
    image.into_iter().chain(inputs).collect()
}
