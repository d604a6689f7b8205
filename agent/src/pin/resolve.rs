//! From a name to a digest: each kind of source has its own way.

use super::edit::{Kind, Unpinned};
use crate::inputs::{FetchOptions, Fetcher, InputError, OciLayout};
use crate::registry::{Access, AuthFile, Reference, SCHEME, resolve_tag};
use crate::sources::Policy;
use ampoule_spec::Sha256;
use std::path::{Path, PathBuf};
use tokio::runtime::Runtime;

/// Looks up digests.
pub(super) struct Resolver {
    fetcher: Fetcher,
    registries: Access,
    runtime: Runtime,
    /// Where relative paths are taken from.
    base: PathBuf,
}

/// A digest, and where it was looked up.
type Found = (Sha256, Option<String>);

impl Resolver {
    pub(super) fn new(policy: Policy, auth: Option<AuthFile>, base: PathBuf) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let registries = Access::new(policy.clone(), auth);
        Ok(Self { fetcher: Fetcher::new(FetchOptions::default(), policy), registries, runtime, base })
    }

    pub(super) fn resolve(&self, unpinned: &Unpinned) -> Result<Found, InputError> {
        match &unpinned.kind {
            Kind::Image => self.image(unpinned.what()),
            Kind::Http(_, url) => self.download(url),
            Kind::Tar(_, path) => self.file(Path::new(path)),
        }
    }

    fn download(&self, url: &str) -> Result<Found, InputError> {
        let (sha256, fetched) = self.runtime.block_on(self.fetcher.digest(url))?;
        Ok((sha256, Some(fetched.final_url)))
    }

    fn file(&self, path: &Path) -> Result<Found, InputError> {
        let path = std::path::absolute(self.base.join(path))
            .map_err(|source| InputError::File { what: path.display().to_string(), source })?;
        let url = reqwest::Url::from_file_path(&path).map_err(|()| InputError::Missing {
            what: path.display().to_string(),
            reason: "not the path of a file".to_owned(),
        })?;
        Ok((self.download(url.as_str())?.0, None))
    }

    fn image(&self, image: &str) -> Result<Found, InputError> {
        if let Some(file) = image.strip_prefix("tar:") {
            return self.file(Path::new(file));
        }
        if let Some(place) = image.strip_prefix("oci:") {
            let (dir, tag) = crate::jobfile::split_tag(place);
            return Ok((OciLayout::open(&self.base.join(dir))?.digest(tag)?, None));
        }
        if image.starts_with(SCHEME) {
            let refused = |e: crate::registry::ReferenceError| InputError::Refused {
                what: image.to_owned(),
                reason: e.to_string(),
            };
            let (reference, _) = Reference::parse(image).map_err(refused)?;
            return Ok((self.runtime.block_on(resolve_tag(&self.registries, &reference))?, None));
        }
        Err(InputError::Refused {
            what: image.to_owned(),
            reason: "images of this kind are not resolved by this version".to_owned(),
        })
    }
}
