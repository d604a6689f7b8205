//! Reads an OCI image layout directory (image-spec 1.1, `image-layout.md`).
//!
//! What is guaranteed: index and manifest have the digests under which they were asked for, and every blob
//! is a regular file of the length that its descriptor says. The digests of configuration and layers are
//! checked where they are imported.

use super::error::InputError;
use super::sha256_of;
use ampoule_spec::Sha256;
use aws_lc_rs::digest::{SHA256, digest};
use oci_spec::image::{ANNOTATION_REF_NAME, OciLayout as Header, SCHEMA_VERSION};
use oci_spec::image::{Descriptor, Digest, DigestAlgorithm, ImageIndex, ImageManifest, MediaType, Platform};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde_json::Value;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The largest `index.json`, nested index, manifest or configuration, in bytes.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// The most layers of an image.
const LAYERS_MAX: usize = 128;
/// The most nested indexes that are searched for a manifest.
const NESTED_MAX: usize = 64;

type Result<T> = std::result::Result<T, InputError>;

/// An open OCI layout directory.
#[derive(Debug)]
pub struct OciLayout {
    dir: OwnedFd,
    path: PathBuf,
    index: ImageIndex,
}

/// A blob of a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// SHA-256 of its bytes, as its descriptor says.
    pub sha256: Sha256,
    /// Its length, which the file has.
    pub bytes: u64,
    /// Its media type.
    pub media_type: String,
    /// Its path below the layout's directory.
    pub path: String,
}

/// An image in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutImage {
    /// The manifest; its bytes have this digest.
    pub manifest: Blob,
    /// The configuration.
    pub config: Blob,
    /// The layers, the base first.
    pub layers: Vec<Blob>,
}

impl OciLayout {
    /// Opens a layout and reads its index.
    ///
    /// # Errors
    /// `input.missing` if it is no layout; `input.refused` for another version, or an index that is too
    /// large or not valid.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(CWD, path, flags, Mode::empty())
            .map_err(|errno| unreadable(&path.display().to_string(), errno))?;
        let name = |file: &str| path.join(file).display().to_string();
        let header = read_document(dir.as_fd(), "oci-layout", &name("oci-layout"))?;
        let header: Header = document(&header, &name("oci-layout"))?;
        if header.image_layout_version() != "1.0.0" {
            let reason = format!("version {:?} of the layout is not known", header.image_layout_version());
            return Err(refused(&name("oci-layout"), reason));
        }
        let index = read_document(dir.as_fd(), "index.json", &name("index.json"))?;
        let index = index_of(&index, &name("index.json"))?;
        Ok(Self { dir, path: path.to_owned(), index })
    }

    /// Finds the image with this digest: of a manifest, or of an index that lists one for linux/amd64.
    ///
    /// # Errors
    /// `input.missing` if the layout has no such image, tag or blob; `input.digest_mismatch` if `tag` names
    /// another digest, or bytes are not what their name says; `input.refused` for foreign layers and for
    /// media types and digests that are not read.
    pub fn image(&self, pinned: &Sha256, tag: Option<&str>) -> Result<LayoutImage> {
        if let Some(tag) = tag {
            self.check_tag(tag, pinned)?;
        }
        let found = self.find(pinned)?;
        let manifest = match found.media_type() {
            MediaType::ImageManifest => found,
            MediaType::ImageIndex => self.for_this_platform(&found)?,
            other => return Err(self.unknown_type("image", other)),
        };
        self.manifest(&manifest)
    }

    /// The digest that a tag names; without one, that of the only image.
    ///
    /// # Errors
    /// `input.missing` if the tag is not there; `input.refused` if it, or no tag, could mean several images.
    pub fn digest(&self, tag: Option<&str>) -> Result<Sha256> {
        let named = |d: &&Descriptor| {
            let name = d.annotations().as_ref().and_then(|a| a.get(ANNOTATION_REF_NAME));
            tag.is_none_or(|tag| name.is_some_and(|name| name == tag))
        };
        let what = self.name("index.json");
        let mut digests = self.index.manifests().iter().filter(named).map(|d| self.sha256(d.digest()));
        let Some(first) = digests.next().transpose()? else {
            let reason =
                tag.map_or("it has no image".to_owned(), |tag| format!("the tag {tag:?} is not in it"));
            return Err(InputError::Missing { what, reason });
        };
        for other in digests {
            if other? != first {
                return Err(refused(&what, "several images could be meant; name one by its tag".to_owned()));
            }
        }
        Ok(first)
    }

    /// Opens a blob.
    ///
    /// # Errors
    /// `input.missing` if it is not there; `input.refused` if it is no regular file or of another length.
    pub fn open_blob(&self, blob: &Blob) -> Result<File> {
        let (file, length) = open_regular(self.dir.as_fd(), &blob.path, &self.name(&blob.path))?;
        if length == blob.bytes {
            return Ok(file);
        }
        let reason = format!("the file has {length} bytes, its descriptor says {}", blob.bytes);
        Err(refused(&self.name(&blob.path), reason))
    }

    fn name(&self, file: &str) -> String {
        self.path.join(file).display().to_string()
    }

    fn unknown_type(&self, what: &str, found: &MediaType) -> InputError {
        let found: String = found.as_ref().chars().take(120).collect();
        let remedy = "convert the image with `skopeo copy --format oci`";
        refused(&self.name(""), format!("the media type {found:?} of the {what} is not supported; {remedy}"))
    }

    fn check_tag(&self, tag: &str, pinned: &Sha256) -> Result<()> {
        let named = |d: &&Descriptor| {
            d.annotations().as_ref().and_then(|a| a.get(ANNOTATION_REF_NAME)).is_some_and(|name| name == tag)
        };
        let mut found = false;
        for descriptor in self.index.manifests().iter().filter(named) {
            let digest = self.sha256(descriptor.digest())?;
            if digest != *pinned {
                let what = format!("{}, tag {tag:?}", self.name("index.json"));
                return Err(InputError::DigestMismatch { what, expected: *pinned, found: digest });
            }
            found = true;
        }
        if found {
            return Ok(());
        }
        let reason = format!("no image has the tag {tag:?}");
        Err(InputError::Missing { what: self.name("index.json"), reason })
    }

    /// The descriptor with this digest, in the layout's index or one level below.
    fn find(&self, pinned: &Sha256) -> Result<Descriptor> {
        let same = |d: &&Descriptor| is(d.digest(), pinned);
        if let Some(found) = self.index.manifests().iter().find(same) {
            return Ok(found.clone());
        }
        let nested = self.index.manifests().iter().filter(|d| *d.media_type() == MediaType::ImageIndex);
        for descriptor in nested.take(NESTED_MAX) {
            if let Some(found) = self.nested(descriptor)?.manifests().iter().find(same) {
                return Ok(found.clone());
            }
        }
        let reason = format!("no image has the digest sha256:{pinned}");
        Err(InputError::Missing { what: self.name("index.json"), reason })
    }

    fn nested(&self, descriptor: &Descriptor) -> Result<ImageIndex> {
        let blob = self.blob(descriptor)?;
        index_of(&self.read_verified(&blob)?, &self.name(&blob.path))
    }

    fn for_this_platform(&self, index: &Descriptor) -> Result<Descriptor> {
        let nested = self.nested(index)?;
        let suits = |d: &&Descriptor| {
            *d.media_type() == MediaType::ImageManifest && d.platform().as_ref().is_some_and(here)
        };
        let mut suiting = nested.manifests().iter().filter(suits);
        let what = || format!("{}, index {}", self.name(""), index.digest());
        match (suiting.next(), suiting.next()) {
            (Some(one), None) => Ok(one.clone()),
            (None, _) => {
                Err(InputError::Missing { what: what(), reason: "no image for linux/amd64".to_owned() })
            }
            (Some(_), Some(_)) => {
                Err(refused(&what(), "several images for linux/amd64; pin the digest of one".to_owned()))
            }
        }
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<LayoutImage> {
        if let Some(platform) = descriptor.platform()
            && !here(platform)
        {
            let reason = format!("the image is for {}/{}", platform.os(), platform.architecture());
            return Err(refused(&self.name(""), format!("{reason}; linux/amd64 is needed")));
        }
        let blob = self.blob(descriptor)?;
        let name = self.name(&blob.path);
        let bytes = self.read_verified(&blob)?;
        let manifest: ImageManifest = document(&bytes, &name)?;
        let own = Own { schema: manifest.schema_version(), media_type: manifest.media_type().as_ref() };
        check_own(&bytes, &own, &MediaType::ImageManifest, &["manifests"], &name)?;
        if *manifest.config().media_type() != MediaType::ImageConfig {
            return Err(self.unknown_type("configuration", manifest.config().media_type()));
        }
        if manifest.layers().len() > LAYERS_MAX {
            let reason = format!("{} layers; at most {LAYERS_MAX} are accepted", manifest.layers().len());
            return Err(refused(&name, reason));
        }
        let config = self.present(manifest.config())?;
        if config.bytes > DOCUMENT_BYTES_MAX {
            return Err(too_large(&self.name(&config.path), config.bytes));
        }
        let layers = manifest.layers().iter().map(|layer| self.layer(layer)).collect::<Result<_>>()?;
        Ok(LayoutImage { manifest: blob, config, layers })
    }

    fn layer(&self, descriptor: &Descriptor) -> Result<Blob> {
        use MediaType::{
            ImageLayer, ImageLayerGzip, ImageLayerNonDistributable, ImageLayerNonDistributableGzip,
            ImageLayerNonDistributableZstd, ImageLayerZstd,
        };
        match descriptor.media_type() {
            ImageLayer | ImageLayerGzip | ImageLayerZstd => self.present(descriptor),
            ImageLayerNonDistributable | ImageLayerNonDistributableGzip | ImageLayerNonDistributableZstd => {
                Err(refused(&self.name(""), "the image has foreign (nondistributable) layers".to_owned()))
            }
            other => Err(self.unknown_type("layer", other)),
        }
    }

    fn sha256(&self, digest: &Digest) -> Result<Sha256> {
        let shown: String = digest.as_ref().chars().take(160).collect();
        if *digest.algorithm() != DigestAlgorithm::Sha256 {
            return Err(refused(
                &self.name(""),
                format!("the digest {shown:?} is not sha256, and only sha256 is read"),
            ));
        }
        Sha256::parse(digest.digest())
            .map_err(|e| refused(&self.name(""), format!("the digest {shown:?}: {e}")))
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Blob> {
        let sha256 = self.sha256(descriptor.digest())?;
        if descriptor.urls().as_ref().is_some_and(|urls| !urls.is_empty()) {
            let reason = format!("blob sha256:{sha256} has foreign URLs, which are never fetched");
            return Err(refused(&self.name(""), reason));
        }
        Ok(Blob {
            sha256,
            bytes: descriptor.size(),
            media_type: descriptor.media_type().as_ref().to_owned(),
            path: format!("blobs/sha256/{sha256}"),
        })
    }

    /// A blob that is there with the length that its descriptor says.
    fn present(&self, descriptor: &Descriptor) -> Result<Blob> {
        let blob = self.blob(descriptor)?;
        self.open_blob(&blob)?;
        Ok(blob)
    }

    fn read_verified(&self, blob: &Blob) -> Result<Vec<u8>> {
        let name = self.name(&blob.path);
        self.open_blob(blob)?;
        let bytes = read_document(self.dir.as_fd(), &blob.path, &name)?;
        let found = sha256_of(digest(&SHA256, &bytes).as_ref())?;
        if found == blob.sha256 {
            return Ok(bytes);
        }
        Err(InputError::DigestMismatch { what: name, expected: blob.sha256, found })
    }
}

fn is(digest: &Digest, sha256: &Sha256) -> bool {
    *digest.algorithm() == DigestAlgorithm::Sha256 && Sha256::parse(digest.digest()).as_ref() == Ok(sha256)
}

fn here(platform: &Platform) -> bool {
    platform.os().to_string() == "linux" && platform.architecture().to_string() == "amd64"
}

fn index_of(bytes: &[u8], name: &str) -> Result<ImageIndex> {
    let index: ImageIndex = document(bytes, name)?;
    let own = Own { schema: index.schema_version(), media_type: index.media_type().as_ref() };
    check_own(bytes, &own, &MediaType::ImageIndex, &["layers", "config"], name)?;
    Ok(index)
}

/// What a document says of itself.
struct Own<'a> {
    schema: u32,
    media_type: Option<&'a MediaType>,
}

/// Refuses a document that can be read as something else than what its descriptor says (CVE-2021-41190).
fn check_own(bytes: &[u8], own: &Own<'_>, is: &MediaType, alien: &[&str], name: &str) -> Result<()> {
    if own.schema != SCHEMA_VERSION {
        return Err(refused(name, format!("schemaVersion {} is not supported; 2 is", own.schema)));
    }
    if own.media_type.is_some_and(|own| own != is) {
        return Err(refused(name, "it calls itself something else than its descriptor does".to_owned()));
    }
    let value: Value = document(bytes, name)?;
    match alien.iter().find(|key| value.get(**key).is_some()) {
        Some(key) => Err(refused(name, format!("it has {key:?} and could be taken for something else"))),
        None => Ok(()),
    }
}

fn document<T: serde::de::DeserializeOwned>(bytes: &[u8], name: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| refused(name, format!("not valid: {e}")))
}

fn read_document(dir: BorrowedFd<'_>, path: &str, name: &str) -> Result<Vec<u8>> {
    let (file, length) = open_regular(dir, path, name)?;
    if length > DOCUMENT_BYTES_MAX {
        return Err(too_large(name, length));
    }
    let mut bytes = Vec::new();
    let failed = |source| InputError::File { what: name.to_owned(), source };
    file.take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= DOCUMENT_BYTES_MAX => Ok(bytes),
        _ => Err(too_large(name, DOCUMENT_BYTES_MAX + 1)),
    }
}

/// Opens a regular file; a link in its place is not followed, and a FIFO does not make us wait.
fn open_regular(dir: BorrowedFd<'_>, path: &str, name: &str) -> Result<(File, u64)> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat(dir, path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        // ELOOP: a symbolic link. ENXIO: a socket.
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NXIO) => {
            return Err(refused(name, "not a regular file".to_owned()));
        }
        Err(errno) => return Err(unreadable(name, errno)),
    };
    let metadata = file.metadata().map_err(|source| InputError::File { what: name.to_owned(), source })?;
    if metadata.is_file() {
        Ok((file, metadata.len()))
    } else {
        Err(refused(name, "not a regular file".to_owned()))
    }
}

fn unreadable(name: &str, errno: rustix::io::Errno) -> InputError {
    use rustix::io::Errno;
    match errno {
        Errno::NOENT | Errno::NOTDIR => InputError::Missing {
            what: name.to_owned(),
            reason: "not there; an OCI layout has oci-layout, index.json and blobs/".to_owned(),
        },
        _ => InputError::File { what: name.to_owned(), source: errno.into() },
    }
}

fn refused(what: &str, reason: String) -> InputError {
    InputError::Refused { what: what.to_owned(), reason }
}

fn too_large(name: &str, length: u64) -> InputError {
    refused(name, format!("{length} bytes; at most {DOCUMENT_BYTES_MAX} are accepted"))
}
