//! Pulling: documents whole and verified, layers as a stream whose digest decides.

use super::answer::{bounded, broken, within};
use super::session::Session;
use crate::inputs::oci_documents::{
    Blob, DOCUMENT_BYTES_MAX, Kind, Parts, accepted, blob, check_config, check_platform, for_this_platform,
    index, kind_of, manifest, refuse_schema_one, refused, too_large,
};
use crate::inputs::{InputError, sha256_of};
use ampoule_spec::Sha256;
use aws_lc_rs::digest::{Context, SHA256, digest};
use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use reqwest::{Method, Request, Response, StatusCode, Url};
use std::io::Write;
use std::time::Duration;
use tokio::time::Instant;

/// How often a download that breaks off is taken up again.
const RESUMES_MAX: u32 = 3;
/// How long to wait before that, times the number of the attempt.
const PAUSE: Duration = Duration::from_millis(500);
/// How long one layer may take.
const LAYER_TIMEOUT: Duration = Duration::from_secs(3600);

type Result<T> = std::result::Result<T, InputError>;

/// A document as the registry gave it; its bytes have this digest.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) sha256: Sha256,
    pub(crate) bytes: Vec<u8>,
}

/// An image on a registry: its documents are here, its layers are not.
#[derive(Debug)]
pub(crate) struct RemoteImage {
    pub(crate) manifest: Document,
    pub(crate) config: Document,
    /// The base first.
    pub(crate) layers: Vec<Blob>,
}

impl Session<'_> {
    /// What a document or blob of this repository is called in messages.
    fn named(&self, digest: &Sha256) -> String {
        format!("{}@sha256:{digest}", self.reference().repository_name())
    }

    /// Finds the manifest of the image with this digest: its own, or the one for linux/amd64 of an index.
    pub(crate) async fn manifest_of(&mut self, pinned: &Sha256) -> Result<Document> {
        let what = self.named(pinned);
        let (root, kind) = self.document(&what, pinned, None).await?;
        if kind == Kind::Manifest {
            return Ok(root);
        }
        let index = index(&root.bytes, &what)?;
        let chosen = for_this_platform(&index, &what)?;
        check_platform(chosen, &what)?;
        let chosen = blob(chosen, &what)?;
        let what = format!("{} of the index {what}", self.named(&chosen.sha256));
        match self.document(&what, &chosen.sha256, Some(chosen.bytes)).await? {
            (manifest, Kind::Manifest) => Ok(manifest),
            (_, Kind::Index) => {
                Err(refused(&what, "it is an index, and its descriptor says a manifest".to_owned()))
            }
        }
    }

    /// Reads the rest of what an image is named by.
    pub(crate) async fn image_of(&mut self, manifest_of: Document) -> Result<RemoteImage> {
        let what = self.named(&manifest_of.sha256);
        let Parts { config, layers } = manifest(&manifest_of.bytes, &what)?;
        let mut bytes = Vec::new();
        self.blob("configuration", &config, &mut bytes).await?;
        check_config(&bytes, &format!("{what}, configuration sha256:{}", config.sha256))?;
        let config = Document { sha256: config.sha256, bytes };
        Ok(RemoteImage { manifest: manifest_of, config, layers })
    }

    /// What the reference's tag names now.
    pub(crate) async fn resolve(&mut self, tag: &str) -> Result<Sha256> {
        let what = format!("{}:{tag}", self.reference().repository_name());
        let (bytes, _) = self.fetch_document(&what, tag).await?;
        sha256_of(digest(&SHA256, &bytes).as_ref())
    }

    async fn document(
        &mut self,
        what: &str,
        sha256: &Sha256,
        length: Option<u64>,
    ) -> Result<(Document, Kind)> {
        let (bytes, content_type) = self.fetch_document(what, &format!("sha256:{sha256}")).await?;
        let found = sha256_of(digest(&SHA256, &bytes).as_ref())?;
        if found != *sha256 {
            // The digest of Docker's first schema is never that of the bytes.
            refuse_schema_one(&bytes, what)?;
            return Err(InputError::DigestMismatch { what: what.to_owned(), expected: *sha256, found });
        }
        if let Some(length) = length.filter(|length| Ok(*length) != u64::try_from(bytes.len())) {
            let reason = format!("it has {} bytes, its descriptor says {length}", bytes.len());
            return Err(refused(what, reason));
        }
        let kind = kind_of(&bytes, content_type.as_deref(), what)?;
        Ok((Document { sha256: found, bytes }, kind))
    }

    async fn fetch_document(&mut self, what: &str, name: &str) -> Result<(Vec<u8>, Option<String>)> {
        within(what, self.ask_document(what, name)).await
    }

    async fn ask_document(&mut self, what: &str, name: &str) -> Result<(Vec<u8>, Option<String>)> {
        let accept = HeaderValue::from_str(&accepted()).map_err(|e| refused(what, e.to_string()))?;
        let make = move |url: Url| {
            let mut request = Request::new(Method::GET, url);
            request.headers_mut().insert(ACCEPT, accept.clone());
            Ok(request)
        };
        let url = self.url(&format!("manifests/{name}"))?;
        let response = self.send(what, url, &make).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(what, response).await);
        }
        let header = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = header.map(str::to_owned);
        let bytes_max = usize::try_from(DOCUMENT_BYTES_MAX).unwrap_or(usize::MAX);
        match bounded(response, bytes_max).await {
            Ok(Some(bytes)) => Ok((bytes, content_type)),
            Ok(None) => Err(too_large(what, DOCUMENT_BYTES_MAX + 1)),
            Err(error) => {
                Err(broken(what, "the registry broke off; try again later".to_owned(), Some(error)))
            }
        }
    }

    /// Writes a blob to `out`, whole and with the digest of its descriptor, or fails. What it has written then is
    /// part of it, or other bytes.
    ///
    /// A download that breaks off is taken up where it was, a few times; wrong bytes are not asked for again.
    pub(crate) async fn blob(&mut self, part: &str, blob: &Blob, out: &mut (dyn Write + Send)) -> Result<()> {
        let what = format!("{}, {part} sha256:{}", self.reference().repository_name(), blob.sha256);
        let deadline = Instant::now() + LAYER_TIMEOUT;
        let mut receiving =
            Receiving { what: &what, blob, hash: Context::new(&SHA256), done: 0, out: Some(out) };
        let mut attempt = 0;
        loop {
            let tried = tokio::time::timeout_at(deadline, self.receive(&mut receiving)).await;
            let off = match tried {
                Ok(Ok(())) => break,
                Ok(Err(Broken::Finally(error))) => return Err(error),
                Ok(Err(Broken::Off(error))) => error,
                Err(_) => {
                    let reason = format!("not complete after {} s", LAYER_TIMEOUT.as_secs());
                    return Err(broken(&what, reason, None));
                }
            };
            attempt += 1;
            if attempt > RESUMES_MAX {
                return Err(off);
            }
            tokio::time::sleep(PAUSE * attempt).await;
        }
        let found = sha256_of(receiving.hash.finish().as_ref())?;
        if found == blob.sha256 {
            return Ok(());
        }
        Err(InputError::DigestMismatch { what, expected: blob.sha256, found })
    }

    async fn receive(&mut self, receiving: &mut Receiving<'_>) -> std::result::Result<(), Broken> {
        let done = receiving.done;
        let make = move |url: Url| {
            let mut request = Request::new(Method::GET, url);
            if let (true, Ok(range)) = (done > 0, HeaderValue::from_str(&format!("bytes={done}-"))) {
                request.headers_mut().insert(RANGE, range);
            }
            Ok(request)
        };
        let what = receiving.what;
        let url = self.url(&format!("blobs/sha256:{}", receiving.blob.sha256)).map_err(Broken::Finally)?;
        let response = match self.send(what, url, &make).await {
            Ok(response) => response,
            // Only what had begun is taken up again.
            Err(error @ InputError::Unreachable { .. }) if done > 0 => return Err(Broken::Off(error)),
            Err(error) => return Err(Broken::Finally(error)),
        };
        let skip = match (response.status(), done) {
            (StatusCode::OK, _) => done,
            (StatusCode::PARTIAL_CONTENT, 1..) if continues(&response, done) => 0,
            _ => return Err(Broken::Finally(self.refused(what, response).await)),
        };
        receiving.all(response, skip).await
    }
}

/// Whether a partial answer begins where we are.
fn continues(response: &Response, done: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range
        .and_then(|text| text.strip_prefix("bytes "))
        .is_some_and(|text| text.starts_with(&format!("{done}-")))
}

/// Why an attempt at a download ended.
enum Broken {
    /// It broke off, and may be taken up again.
    Off(InputError),
    /// For good.
    Finally(InputError),
}

/// A blob on its way.
struct Receiving<'a> {
    what: &'a str,
    blob: &'a Blob,
    hash: Context,
    done: u64,
    /// None: whoever took the bytes has gone. The digest still decides what is said.
    out: Option<&'a mut (dyn Write + Send)>,
}

impl Receiving<'_> {
    /// Takes a body, of which the first `skip` bytes were taken before.
    async fn all(&mut self, mut response: Response, mut skip: u64) -> std::result::Result<(), Broken> {
        let left = self.blob.bytes - self.done + skip;
        if let Some(length) = response.content_length().filter(|length| *length != left) {
            let reason = format!("the registry offers {length} bytes, its descriptor says {left}");
            return Err(Broken::Finally(refused(self.what, reason)));
        }
        loop {
            let mut chunk = match response.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break,
                Err(error) => {
                    let reason = self.broken_off();
                    let source: Option<Box<dyn std::error::Error + Send + Sync>> =
                        Some(Box::new(error.without_url()));
                    let url = self.what.to_owned();
                    return Err(Broken::Off(InputError::Unreachable { url, reason, source }));
                }
            };
            let known = chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            let _ = chunk.split_to(known);
            skip -= known as u64;
            self.take(&chunk)?;
        }
        if self.done == self.blob.bytes {
            return Ok(());
        }
        Err(Broken::Off(InputError::Unreachable {
            url: self.what.to_owned(),
            reason: self.broken_off(),
            source: None,
        }))
    }

    fn take(&mut self, chunk: &[u8]) -> std::result::Result<(), Broken> {
        self.done = self.done.saturating_add(chunk.len() as u64);
        if self.done > self.blob.bytes {
            let reason = format!("more bytes come than the {} that its descriptor says", self.blob.bytes);
            return Err(Broken::Finally(refused(self.what, reason)));
        }
        self.hash.update(chunk);
        if let Some(out) = &mut self.out {
            match out.write_all(chunk) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => self.out = None,
                Err(source) => {
                    return Err(Broken::Finally(InputError::File { what: self.what.to_owned(), source }));
                }
            }
        }
        Ok(())
    }

    fn broken_off(&self) -> String {
        format!("the registry broke off after {} of {} bytes; try again later", self.done, self.blob.bytes)
    }
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;
