//! An output that is an OCI layout leaves as the image in it.

use super::documents::{Document, sha256_of};
use super::error::ExportError;
use crate::files::read_file;
use crate::inputs::oci_documents::{Blob, DOCUMENT_BYTES_MAX, Kind, Parts, blob, index, manifest};
use crate::registry::{Piece, Source};
use oci_spec::image::Descriptor;
use std::path::Path;

type Result<T> = std::result::Result<T, ExportError>;

/// How deep indexes are nested in each other.
const DEPTH_MAX: u32 = 2;
/// The most manifests of an index.
const MANIFESTS_MAX: usize = 64;

/// What an image is made of.
#[derive(Debug, Default)]
pub(super) struct Image {
    pub(super) pieces: Vec<Piece>,
    /// Its manifests and indexes, each before what names it. The last is the image's own.
    pub(super) documents: Vec<Document>,
}

/// Whether a directory is an OCI layout.
pub(super) fn is_layout(dir: &Path) -> bool {
    dir.join("oci-layout").is_file() && dir.join("index.json").is_file()
}

/// Reads the one image of a layout whose bytes were held against provenance before.
pub(super) fn read(dir: &Path) -> Result<Image> {
    let what = dir.join("index.json").display().to_string();
    let index = index(&limited(&dir.join("index.json"))?, &what)?;
    let [root] = index.manifests().as_slice() else {
        let reason = format!("{what}: {} images; an output that is pushed has one", index.manifests().len());
        return Err(ExportError::refused(reason));
    };
    let mut image = Image::default();
    add(&mut image, dir, root, 0)?;
    Ok(image)
}

fn add(image: &mut Image, dir: &Path, descriptor: &Descriptor, depth: u32) -> Result<()> {
    let named = blob(descriptor, &dir.display().to_string())?;
    let path = dir.join(named.path());
    let what = path.display().to_string();
    let bytes = limited(&path)?;
    if sha256_of(&bytes) != named.sha256 || bytes.len() as u64 != named.bytes {
        return Err(ExportError::refused(format!("{what} is not what its descriptor says")));
    }
    match Kind::of(&named.media_type, &what)? {
        Kind::Manifest => {
            let Parts { config, layers } = manifest(&bytes, &what)?;
            for part in std::iter::once(config).chain(layers) {
                image.pieces.push(piece(dir, &part)?);
            }
        }
        Kind::Index => {
            let index = index(&bytes, &what)?;
            if depth >= DEPTH_MAX || index.manifests().len() > MANIFESTS_MAX {
                let reason =
                    format!("{what}: an index of more than {MANIFESTS_MAX} manifests, or too deep in others");
                return Err(ExportError::refused(reason));
            }
            for inner in index.manifests() {
                add(image, dir, inner, depth + 1)?;
            }
        }
    }
    image.documents.push(Document {
        sha256: named.sha256,
        media_type: named.media_type,
        artifact_type: None,
        bytes,
    });
    Ok(())
}

fn piece(dir: &Path, part: &Blob) -> Result<Piece> {
    let path = dir.join(part.path());
    let meta =
        std::fs::symlink_metadata(&path).map_err(|e| ExportError::file(path.display().to_string(), e))?;
    if !meta.is_file() || meta.len() != part.bytes {
        return Err(ExportError::refused(format!("{} is not what its descriptor says", path.display())));
    }
    Ok(Piece { sha256: part.sha256, bytes: part.bytes, source: Source::File(path) })
}

fn limited(path: &Path) -> Result<Vec<u8>> {
    read_file(path, DOCUMENT_BYTES_MAX).map_err(|e| ExportError::file(path.display().to_string(), e))
}
