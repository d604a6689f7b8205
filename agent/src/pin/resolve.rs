//! From a name to a digest: each kind of source has its own way.

use super::edit::{Kind, Repository, Unpinned};
use crate::block::with_runtime;
use crate::git::{resolve_here, resolve_ref};
use crate::inputs::{FetchOptions, Fetcher, Guard, GuardOptions, InputError, OciLayout};
use crate::registry::{Access, AuthFile, Reference, SCHEME, resolve_tag};
use crate::sources::{Policy, Purpose};
use std::path::{Path, PathBuf};

/// Waits for an answer.
fn wait<T>(asked: impl Future<Output = Result<T, InputError>>) -> Result<T, InputError> {
    let failed = |source| InputError::File { what: "a resolver".to_owned(), source };
    with_runtime(|runtime| runtime.block_on(asked)).map_err(failed)?
}

/// Looks up digests.
pub(super) struct Resolver {
    fetcher: Fetcher,
    registries: Access,
    guard: Guard,
    /// Where relative paths are taken from.
    base: PathBuf,
}

/// A digest's digits, and where it was looked up.
type Found = (String, Option<String>);

impl Resolver {
    pub(super) fn new(policy: Policy, auth: Option<AuthFile>, base: PathBuf) -> Self {
        let registries = Access::new(policy.clone(), auth);
        let guard = Guard::new(policy.clone(), GuardOptions::default());
        let fetcher = Fetcher::new(FetchOptions::default(), policy);
        Self { fetcher, registries, guard, base }
    }

    pub(super) fn resolve(&self, unpinned: &Unpinned) -> Result<Found, InputError> {
        match &unpinned.kind {
            Kind::Image => self.image(unpinned.what()),
            Kind::Http(_, url, mirrors) => self.download(url, mirrors),
            Kind::Git { place, name, .. } => self.commit(place, unpinned.what(), name),
            Kind::Tar(_, path) => self.file(Path::new(path)),
        }
    }

    fn download(&self, url: &str, mirrors: &[String]) -> Result<Found, InputError> {
        let (sha256, fetched) = wait(self.fetcher.digest(url, mirrors))?;
        Ok((sha256.to_string(), Some(fetched.final_url)))
    }

    fn commit(&self, place: &Repository, what: &str, name: &str) -> Result<Found, InputError> {
        let url = match place {
            Repository::Path(path) => {
                return Ok((resolve_here(&self.base.join(path), name)?.to_string(), None));
            }
            Repository::Url(url) => url,
        };
        let parsed = crate::jobfile::git_url(url);
        let parsed = parsed.map_err(|reason| InputError::Url { url: what.to_owned(), reason })?;
        if parsed.scheme() == "file"
            && let Ok(path) = parsed.to_file_path()
        {
            return Ok((resolve_here(&path, name)?.to_string(), None));
        }
        if parsed.scheme() == "http" && self.guard.check(Purpose::Git, &parsed)?.is_none() {
            return Err(InputError::unpinnable(&parsed));
        }
        let commit = wait(resolve_ref(&self.guard, url, name))?;
        Ok((commit.to_string(), None))
    }

    fn file(&self, path: &Path) -> Result<Found, InputError> {
        let path = std::path::absolute(self.base.join(path))
            .map_err(|source| InputError::File { what: path.display().to_string(), source })?;
        let url = reqwest::Url::from_file_path(&path).map_err(|()| InputError::Missing {
            what: path.display().to_string(),
            reason: "not the path of a file".to_owned(),
        })?;
        Ok((self.download(url.as_str(), &[])?.0, None))
    }

    fn image(&self, image: &str) -> Result<Found, InputError> {
        if let Some(file) = image.strip_prefix("tar:") {
            return self.file(Path::new(file));
        }
        if let Some(place) = image.strip_prefix("oci:") {
            let (dir, tag) = crate::jobfile::split_tag(place);
            return Ok((OciLayout::open(&self.base.join(dir))?.digest(tag)?.to_string(), None));
        }
        if image.starts_with(SCHEME) {
            let refused = |e: crate::registry::ReferenceError| InputError::Refused {
                what: image.to_owned(),
                reason: e.to_string(),
            };
            let (reference, _) = Reference::parse(image).map_err(refused)?;
            return Ok((wait(resolve_tag(&self.registries, &reference))?.to_string(), None));
        }
        Err(InputError::Refused {
            what: image.to_owned(),
            reason: "images of this kind are not resolved by this version".to_owned(),
        })
    }
}
