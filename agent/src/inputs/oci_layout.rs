//! Reads an OCI image layout directory (image-spec 1.1, `image-layout.md`).
//!
//! What is guaranteed: index and manifest have the digests under which they were asked for, and every blob
//! is a regular file of the length that its descriptor says. The digests of layers are checked where they are
//! imported.

use super::error::InputError;
use super::oci_documents::{
    Blob, DOCUMENT_BYTES_MAX, Kind, Parts, check_config, check_platform, document, for_this_platform, index,
    manifest, refused, sha256, too_large,
};
use super::{oci_documents, sha256_of};
use ampoule_spec::Sha256;
use aws_lc_rs::digest::{SHA256, digest};
use oci_spec::image::{ANNOTATION_REF_NAME, Descriptor, ImageIndex, OciLayout as Header};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

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
        let bytes = read_document(dir.as_fd(), "index.json", &name("index.json"))?;
        let index = index(&bytes, &name("index.json"))?;
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
        match Kind::of(found.media_type().as_ref(), &self.name(""))? {
            Kind::Manifest => self.manifest(&found),
            Kind::Index => {
                let what = format!("{}, index {}", self.name(""), found.digest());
                self.manifest(for_this_platform(&self.nested(&found)?, &what)?)
            }
        }
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
        let mut digests = self.index.manifests().iter().filter(named).map(|d| sha256(d, &what));
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
        let name = self.name(&blob.path());
        let (file, length) = open_regular(self.dir.as_fd(), &blob.path(), &name)?;
        if length == blob.bytes {
            return Ok(file);
        }
        let reason = format!("the file has {length} bytes, its descriptor says {}", blob.bytes);
        Err(refused(&name, reason))
    }

    fn name(&self, file: &str) -> String {
        self.path.join(file).display().to_string()
    }

    fn check_tag(&self, tag: &str, pinned: &Sha256) -> Result<()> {
        let named = |d: &&Descriptor| {
            d.annotations().as_ref().and_then(|a| a.get(ANNOTATION_REF_NAME)).is_some_and(|name| name == tag)
        };
        let mut found = false;
        for descriptor in self.index.manifests().iter().filter(named) {
            let digest = sha256(descriptor, &self.name(""))?;
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
        let same = |d: &&Descriptor| sha256(d, "").is_ok_and(|digest| digest == *pinned);
        if let Some(found) = self.index.manifests().iter().find(same) {
            return Ok(found.clone());
        }
        let is_index =
            |d: &&Descriptor| Kind::of(d.media_type().as_ref(), "").is_ok_and(|k| k == Kind::Index);
        for descriptor in self.index.manifests().iter().filter(is_index).take(NESTED_MAX) {
            if let Some(found) = self.nested(descriptor)?.manifests().iter().find(same) {
                return Ok(found.clone());
            }
        }
        let reason = format!("no image has the digest sha256:{pinned}");
        Err(InputError::Missing { what: self.name("index.json"), reason })
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Blob> {
        oci_documents::blob(descriptor, &self.name(""))
    }

    fn nested(&self, descriptor: &Descriptor) -> Result<ImageIndex> {
        let blob = self.blob(descriptor)?;
        index(&self.read_verified(&blob)?, &self.name(&blob.path()))
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<LayoutImage> {
        check_platform(descriptor, &self.name(""))?;
        let blob = self.blob(descriptor)?;
        let Parts { config, layers } = manifest(&self.read_verified(&blob)?, &self.name(&blob.path()))?;
        // Everything must be there before anything is imported.
        layers.iter().try_for_each(|layer| self.open_blob(layer).map(drop))?;
        check_config(&self.read_verified(&config)?, &self.name(&config.path()))?;
        Ok(LayoutImage { manifest: blob, config, layers })
    }

    fn read_verified(&self, blob: &Blob) -> Result<Vec<u8>> {
        let name = self.name(&blob.path());
        self.open_blob(blob)?;
        let bytes = read_document(self.dir.as_fd(), &blob.path(), &name)?;
        let found = sha256_of(digest(&SHA256, &bytes).as_ref())?;
        if found == blob.sha256 {
            return Ok(bytes);
        }
        Err(InputError::DigestMismatch { what: name, expected: blob.sha256, found })
    }
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
