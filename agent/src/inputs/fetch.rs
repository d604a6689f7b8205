//! Downloads: one pass from the source through the hash into a file.

use super::error::InputError;
use super::guard::{Guard, GuardOptions, unreachable};
use super::url::{parse_url, without_query};
use crate::sources::{Policy, Purpose};
use ampoule_spec::Sha256;
use aws_lc_rs::digest::{Context, SHA256};
use futures_util::StreamExt;
use reqwest::{Method, Request, Response, StatusCode, Url};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

/// How many bytes are collected before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// The bounds of a download.
#[derive(Debug, Clone, Copy)]
pub struct FetchOptions {
    /// The most bytes that are accepted.
    pub bytes_max: u64,
    /// How long a connection may take to open.
    pub connect_timeout: Duration,
    /// How long the source may be silent.
    pub read_timeout: Duration,
    /// How long the whole download may take, redirects included.
    pub total_timeout: Duration,
}

impl Default for FetchOptions {
    /// 16 GiB; 10 s to connect, 60 s of silence, one hour in all.
    fn default() -> Self {
        Self {
            bytes_max: 16 << 30,
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(60),
            total_timeout: Duration::from_secs(3600),
        }
    }
}

/// A finished download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// How many bytes were written.
    pub bytes: u64,
    /// Where they came from in the end, without the query, which may hold a token.
    pub final_url: String,
    /// Which of the [places](Fetcher::places) that were asked gave them.
    pub place: usize,
}

/// How far a download is, for whoever looks at it meanwhile.
#[derive(Debug, Default)]
pub struct Counted {
    bytes: AtomicU64,
    total: AtomicU64,
}

impl Counted {
    /// Another download begins.
    fn begin(&self) {
        self.bytes.store(0, Ordering::Relaxed);
        self.total.store(0, Ordering::Relaxed);
    }

    /// Bytes that have come.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many the source says that there are, if it does.
    pub fn total(&self) -> Option<u64> {
        Some(self.total.load(Ordering::Relaxed)).filter(|total| *total > 0)
    }
}

/// Fetches inputs.
#[derive(Debug)]
pub struct Fetcher {
    options: FetchOptions,
    guard: Guard,
    counted: Arc<Counted>,
}

impl Fetcher {
    /// A fetcher with these bounds, from where this policy allows.
    pub fn new(options: FetchOptions, policy: Policy) -> Self {
        let FetchOptions { connect_timeout, read_timeout, .. } = options;
        let guard = Guard::new(policy, GuardOptions { connect_timeout, read_timeout });
        Self { options, guard, counted: Arc::default() }
    }

    /// How far the download is.
    pub fn counted(&self) -> Arc<Counted> {
        Arc::clone(&self.counted)
    }

    pub(crate) fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Fetches `url` into `into`, which is emptied first and stands at its beginning afterwards.
    ///
    /// The file holds bytes only if they are the right ones: after any error it is empty. A future that is
    /// dropped before its end leaves anything in it.
    ///
    /// # Errors
    /// [`InputError`]; a source that answers with other bytes is `input.digest_mismatch` and never retried.
    pub async fn fetch(&self, url: &str, expected: &Sha256, into: &mut File) -> Result<Fetched, InputError> {
        empty(into)?;
        let start = parse_url(url)
            .map_err(|reason| InputError::Url { url: url.chars().take(200).collect(), reason })?;
        let outcome = self.fetch_parsed(start, expected, into).await;
        match outcome {
            Ok(fetched) => into.rewind().map_err(scratch).map(|()| fetched),
            Err(error) => {
                empty(into)?;
                Err(error)
            }
        }
    }

    pub(super) async fn fetch_parsed(
        &self,
        start: Url,
        expected: &Sha256,
        into: &File,
    ) -> Result<Fetched, InputError> {
        let what = without_query(&start);
        self.counted.begin();
        let (found, fetched) = self.take(start, into).await?;
        if found == *expected {
            Ok(fetched)
        } else {
            Err(InputError::DigestMismatch { what, expected: *expected, found })
        }
    }

    /// Writes whatever the place gives into `into`.
    pub(super) async fn take(&self, start: Url, into: &File) -> Result<(Sha256, Fetched), InputError> {
        let into = into.try_clone().map_err(scratch)?;
        if start.scheme() != "file" {
            return self.download(start, into).await;
        }
        let bytes_max = self.options.bytes_max;
        let task = tokio::task::spawn_blocking(move || copy_local(&start, bytes_max, into));
        task.await.map_err(|e| scratch(std::io::Error::other(e)))?
    }

    async fn download(&self, start: Url, into: File) -> Result<(Sha256, Fetched), InputError> {
        let deadline = Instant::now() + self.options.total_timeout;
        let what = without_query(&start);
        let late = |_: Elapsed| {
            let seconds = self.options.total_timeout.as_secs();
            unreachable(&what, format!("not complete after {seconds} s"), None)
        };
        let (response, url) = timeout_at(deadline, self.follow(start)).await.map_err(late)??;
        let bytes_max = self.options.bytes_max;
        if response.content_length().is_some_and(|length| length > bytes_max) {
            return Err(InputError::TooLarge { url: without_query(&url), bytes_max });
        }
        self.counted.total.store(response.content_length().unwrap_or(0), Ordering::Relaxed);
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, tokio::fs::File::from_std(into));
        let received = timeout_at(deadline, self.receive(response, &url, &mut file)).await.map_err(late);
        // A write may be under way on another thread: it is over before anyone empties the file.
        let settled = file.get_mut().flush().await.map_err(scratch);
        let (sha256, bytes) = received??;
        settled?;
        Ok((sha256, Fetched { bytes, final_url: without_query(&url), place: 0 }))
    }

    async fn receive(
        &self,
        response: Response,
        url: &Url,
        file: &mut BufWriter<tokio::fs::File>,
    ) -> Result<(Sha256, u64), InputError> {
        let bytes_max = self.options.bytes_max;
        let mut hash = Context::new(&SHA256);
        let mut bytes = 0_u64;
        let mut body = response.bytes_stream();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|e| {
                let reason =
                    if e.is_timeout() { "the source fell silent" } else { "the answer is not complete" };
                unreachable(&without_query(url), format!("{reason}, after {bytes} bytes"), Some(e))
            })?;
            bytes = bytes.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            if bytes > bytes_max {
                return Err(InputError::TooLarge { url: without_query(url), bytes_max });
            }
            self.counted.bytes.store(bytes, Ordering::Relaxed);
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(scratch)?;
        }
        file.flush().await.map_err(scratch)?;
        Ok((finish(hash)?, bytes))
    }

    /// Asks until something other than a redirect answers.
    async fn follow(&self, start: Url) -> Result<(Response, Url), InputError> {
        let (response, url) = self.guard.send(Purpose::Http, Request::new(Method::GET, start)).await?;
        match response.status() {
            StatusCode::OK => Ok((response, url)),
            status => Err(refused(&url, status)),
        }
    }
}

/// The error for a status that is neither success nor redirect.
fn refused(url: &Url, status: StatusCode) -> InputError {
    let what = without_query(url);
    let reason = format!("the source answered {}", status.as_u16());
    let later = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    if status.is_client_error() && !later {
        InputError::Missing { what, reason }
    } else {
        unreachable(&what, reason, None)
    }
}

/// Copies a local file.
fn copy_local(url: &Url, bytes_max: u64, mut into: File) -> Result<(Sha256, Fetched), InputError> {
    let what = without_query(url);
    let path = url
        .to_file_path()
        .map_err(|()| InputError::Url { url: what.clone(), reason: "not the path of a file".to_owned() })?;
    let unreadable = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            InputError::Missing { what: what.clone(), reason: "no such file".to_owned() }
        }
        _ => InputError::File { what: what.clone(), source },
    };
    let irregular = || InputError::Refused { what: what.clone(), reason: "not a regular file".to_owned() };
    // Looked at before it is opened: opening a FIFO would wait for a writer.
    if !fs::metadata(&path).map_err(unreadable)?.is_file() {
        return Err(irregular());
    }
    let file = File::open(&path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(irregular());
    }
    let mut from = file.take(bytes_max.saturating_add(1));
    let mut hash = Context::new(&SHA256);
    let mut buffer = vec![0_u8; BUFFER_BYTES];
    let mut bytes = 0_u64;
    loop {
        let count = from.read(&mut buffer).map_err(unreadable)?;
        let chunk = buffer.get(..count).unwrap_or_default();
        if chunk.is_empty() {
            break;
        }
        bytes = bytes.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if bytes > bytes_max {
            return Err(InputError::TooLarge { url: what, bytes_max });
        }
        hash.update(chunk);
        into.write_all(chunk).map_err(scratch)?;
    }
    Ok((finish(hash)?, Fetched { bytes, final_url: what, place: 0 }))
}

fn finish(hash: Context) -> Result<Sha256, InputError> {
    super::sha256_of(hash.finish().as_ref())
}

pub(super) fn empty(file: &mut File) -> Result<(), InputError> {
    file.set_len(0).and_then(|()| file.rewind()).map_err(scratch)
}

pub(super) fn scratch(source: std::io::Error) -> InputError {
    InputError::File { what: "the file for a download".to_owned(), source }
}

/// A new file without a name below `dir`: it is gone when its last descriptor is closed, whatever happens.
///
/// # Errors
/// The error of creating or removing it.
pub fn scratch_file(dir: &Path) -> std::io::Result<File> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!(".ampoule-{}-{number}", std::process::id()));
        match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return fs::remove_file(&path).map(|()| file),
            // Left by an earlier process of the same number.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && number < 10_000 => {}
            Err(e) => return Err(e),
        }
    }
}
