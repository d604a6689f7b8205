//! Pushing (OCI distribution-spec 1.1): blobs that are not there yet, then manifests, then who refers to them.
//!
//! What is guaranteed: the registry has said that it holds bytes with the digest that was meant, and nothing that
//! names a blob is there before the blob. Pushing the same again changes nothing.

use super::answer::bounded;
use super::session::Session;
use crate::inputs::InputError;
use crate::inputs::oci_documents::{DOCUMENT_BYTES_MAX, refused, too_large};
use ampoule_spec::Sha256;
use futures_util::stream;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use reqwest::{Body, Method, Request, Response, StatusCode, Url};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::sync::Arc;

/// The media type of an index, which the fallback for registries without a referrers API is.
pub(crate) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// How much of a file is in memory at a time, in bytes.
const CHUNK_BYTES: usize = 256 << 10;

const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");
const SUBJECT_HEADER: HeaderName = HeaderName::from_static("oci-subject");

type Result<T> = std::result::Result<T, InputError>;

/// Where the bytes of a blob are.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Memory(Vec<u8>),
    File(PathBuf),
    /// One without a name; read from its beginning, and by nobody else meanwhile.
    Open(Arc<File>),
}

/// A blob to be pushed.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) sha256: Sha256,
    pub(crate) bytes: u64,
    pub(crate) source: Source,
}

/// What the tag says, or the digest.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Called<'a> {
    Tag(&'a str),
    Digest(&'a Sha256),
}

impl Session<'_> {
    fn what(&self, part: &str) -> String {
        format!("{}, {part}", self.reference().repository_name())
    }

    /// Pushes a blob unless the registry has it. True: it was sent.
    pub(crate) async fn push_blob(&mut self, piece: &Piece) -> Result<bool> {
        let what = self.what(&format!("blob sha256:{}", piece.sha256));
        let url = self.url(&format!("blobs/sha256:{}", piece.sha256))?;
        let response = self.send(&what, url, &|url| Ok(Request::new(Method::HEAD, url))).await?;
        match response.status() {
            StatusCode::OK => return Ok(false),
            StatusCode::NOT_FOUND => {}
            _ => return Err(self.refused(&what, response).await),
        }
        let url = self.url("blobs/uploads/")?;
        let begin = |url: Url| {
            let mut request = Request::new(Method::POST, url);
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
            Ok(request)
        };
        let response = self.send(&what, url, &begin).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.refused(&what, response).await);
        }
        let mut place = upload_place(&what, &response)?;
        place.query_pairs_mut().append_pair("digest", &format!("sha256:{}", piece.sha256));
        let make = |url: Url| {
            let mut request = Request::new(Method::PUT, url);
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(piece.bytes));
            let binary = HeaderValue::from_static("application/octet-stream");
            request.headers_mut().insert(CONTENT_TYPE, binary);
            *request.body_mut() = Some(body(&piece.source)?);
            Ok(request)
        };
        let response = self.send(&what, place, &make).await?;
        if response.status() != StatusCode::CREATED {
            return Err(self.refused(&what, response).await);
        }
        same_digest(&what, &response, &piece.sha256).map(|()| true)
    }

    /// Pushes a manifest or index. True: the registry has said that it knows what the manifest refers to.
    pub(crate) async fn push_manifest(
        &mut self,
        called: Called<'_>,
        sha256: &Sha256,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<bool> {
        let name = match called {
            Called::Tag(tag) => tag.to_owned(),
            Called::Digest(digest) => format!("sha256:{digest}"),
        };
        let what = self.what(&format!("manifest {name}"));
        let content_type = HeaderValue::from_str(media_type).map_err(|e| refused(&what, e.to_string()))?;
        let url = self.url(&format!("manifests/{name}"))?;
        let make = |url: Url| {
            let mut request = Request::new(Method::PUT, url);
            request.headers_mut().insert(CONTENT_TYPE, content_type.clone());
            *request.body_mut() = Some(Body::from(bytes.to_vec()));
            Ok(request)
        };
        let response = self.send(&what, url, &make).await?;
        if response.status() != StatusCode::CREATED {
            return Err(self.refused(&what, response).await);
        }
        same_digest(&what, &response, sha256)?;
        Ok(response.headers().contains_key(SUBJECT_HEADER))
    }

    /// The index under a tag; none if there is none.
    pub(crate) async fn index_of(&mut self, tag: &str) -> Result<Option<Vec<u8>>> {
        let what = self.what(&format!("tag {tag}"));
        let url = self.url(&format!("manifests/{tag}"))?;
        let make = |url: Url| {
            let mut request = Request::new(Method::GET, url);
            request.headers_mut().insert(ACCEPT, HeaderValue::from_static(INDEX_TYPE));
            Ok(request)
        };
        let response = self.send(&what, url, &make).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(self.refused(&what, response).await),
        }
        let bytes_max = usize::try_from(DOCUMENT_BYTES_MAX).unwrap_or(usize::MAX);
        match bounded(response, bytes_max).await {
            Ok(Some(bytes)) => Ok(Some(bytes)),
            Ok(None) => Err(too_large(&what, DOCUMENT_BYTES_MAX + 1)),
            Err(error) => Err(super::answer::broken(&what, "the registry broke off".to_owned(), Some(error))),
        }
    }
}

/// Where the registry wants the bytes.
fn upload_place(what: &str, response: &Response) -> Result<Url> {
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let place = location.and_then(|text| response.url().join(text).ok());
    let place =
        place.ok_or_else(|| refused(what, "the registry says not where the upload goes".to_owned()))?;
    if response.url().scheme() == "https" && place.scheme() != "https" {
        let reason =
            "the registry wants the upload without TLS; its operator must correct its own address".to_owned();
        return Err(InputError::Denied { url: what.to_owned(), reason });
    }
    Ok(place)
}

/// Holds what the registry says it has stored against what was meant.
fn same_digest(what: &str, response: &Response, sha256: &Sha256) -> Result<()> {
    let Some(said) = response.headers().get(DIGEST_HEADER) else { return Ok(()) };
    let said = said.to_str().ok().and_then(|text| Sha256::parse(text.strip_prefix("sha256:")?).ok());
    match said {
        Some(found) if found == *sha256 => Ok(()),
        Some(found) => Err(InputError::DigestMismatch { what: what.to_owned(), expected: *sha256, found }),
        None => Err(refused(what, "the registry names what it has stored by no sha256 digest".to_owned())),
    }
}

fn body(source: &Source) -> Result<Body> {
    match source {
        Source::Memory(bytes) => Ok(Body::from(bytes.clone())),
        Source::File(path) => {
            let unusable = |source| InputError::File { what: path.display().to_string(), source };
            Ok(stream_of(File::open(path).map_err(unusable)?))
        }
        Source::Open(file) => {
            let unusable = |source| InputError::File { what: "a temporary file".to_owned(), source };
            let mut file = file.try_clone().map_err(unusable)?;
            file.rewind().map_err(unusable)?;
            Ok(stream_of(file))
        }
    }
}

fn stream_of(file: File) -> Body {
    // One task alone waits for these reads.
    Body::wrap_stream(stream::try_unfold(file, |mut file| async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        let count = file.read(&mut chunk)?;
        chunk.truncate(count);
        Ok::<_, std::io::Error>((count > 0).then_some((chunk, file)))
    }))
}

#[cfg(test)]
#[path = "push_tests.rs"]
mod tests;
