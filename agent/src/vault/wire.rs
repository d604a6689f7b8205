//! One request and its answer: bounded, over TLS under one authority, to whom it is addressed and nobody else.

use super::config::{CertLogin, Config, ConfigError, Login};
use super::error::VaultError;
use super::outage::ServerState;
use crate::files::{read_file, read_operators};
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Certificate, Client, Identity, Request, redirect};
use rustix::process::geteuid;
use std::error::Error;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use zeroize::Zeroizing;

/// The largest answer, in bytes. A secret has 64 KiB at most; its escapes six times as much.
const BODY_BYTES_MAX: usize = 1 << 20;
/// The largest file with a certificate, a key, a token or a secret id.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// The header that carries a token.
pub(super) const TOKEN_HEADER: &str = "X-Vault-Token";

/// An answer.
pub(super) struct Reply {
    pub(super) status: u16,
    /// Where it sends to.
    pub(super) location: Option<String>,
    pub(super) body: Zeroizing<Vec<u8>>,
}

/// No answer.
#[derive(Debug)]
pub(super) struct Silence {
    pub(super) state: ServerState,
    /// Whether the server may have got the request.
    pub(super) sent: bool,
    pub(super) reason: String,
}

/// Sends requests.
pub(super) struct Wire(Client);

impl Wire {
    /// The client: no redirect, no proxy, the configured authority alone, and nothing of the environment.
    pub(super) fn new(config: &Config) -> Result<Self, VaultError> {
        let mut builder = Client::builder()
            .tls_backend_rustls()
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .https_only(!config.loopback_without_tls)
            .connect_timeout(config.connect_timeout)
            .timeout(config.timeout)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(4)
            .user_agent(concat!("ampoule/", env!("CARGO_PKG_VERSION")));
        let authorities = match &config.ca {
            Some(path) => certificates(path)?,
            None => Vec::new(),
        };
        builder = builder.tls_certs_only(authorities);
        if let Login::Cert(cert) = &config.login {
            builder = builder.identity(identity(cert)?);
        }
        let client = builder
            .build()
            .map_err(|e| ConfigError::new("ca", chain(&e), "check the files of this server"))?;
        Ok(Self(client))
    }

    /// Sends a request, and reads all of the answer. Takes `most` at most.
    pub(super) async fn send(
        &self,
        request: http::Request<Vec<u8>>,
        most: Duration,
    ) -> Result<Reply, Silence> {
        let silence = |state, sent, reason: String| Silence { state, sent, reason };
        // The body is overwritten when the library has done with it.
        let request = request.map(|body| Bytes::from_owner(Zeroizing::new(body)));
        let mut request = Request::try_from(request)
            .map_err(|e| silence(ServerState::Failing, false, chain(&e.without_url())))?;
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(token) = headers.get_mut(TOKEN_HEADER) {
            token.set_sensitive(true);
        }
        match tokio::time::timeout(most, self.exchange(request)).await {
            Ok(done) => done,
            Err(_) => Err(silence(ServerState::Hung, true, format!("no answer within {most:?}"))),
        }
    }

    async fn exchange(&self, request: Request) -> Result<Reply, Silence> {
        let mut response = self.0.execute(request).await.map_err(silent)?;
        let status = response.status().as_u16();
        let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        let large = || Silence {
            state: ServerState::Failing,
            sent: true,
            reason: format!("the answer has more than {BODY_BYTES_MAX} bytes"),
        };
        let length = response.content_length().unwrap_or(0);
        if length > BODY_BYTES_MAX as u64 {
            return Err(large());
        }
        let room = if length > 0 { usize::try_from(length).unwrap_or(0) } else { 4096 };
        let mut body = Zeroizing::new(Vec::with_capacity(room));
        while let Some(chunk) = response.chunk().await.map_err(silent)? {
            if body.len().saturating_add(chunk.len()) > BODY_BYTES_MAX {
                return Err(large());
            }
            append(&mut body, &chunk);
        }
        Ok(Reply { status, location, body })
    }
}

/// Appends without leaving a copy behind in memory that was too small.
fn append(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    if body.capacity().saturating_sub(body.len()) < chunk.len() {
        let room = body.len().saturating_add(chunk.len()).saturating_mul(2);
        let mut larger = Zeroizing::new(Vec::with_capacity(room));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(chunk);
}

fn silent(error: reqwest::Error) -> Silence {
    let error = error.without_url();
    let state = if error.is_timeout() {
        ServerState::Hung
    } else if error.is_connect() {
        ServerState::Unreachable
    } else {
        ServerState::Failing
    };
    Silence { state, sent: !error.is_connect(), reason: chain(&error) }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, VaultError> {
    let unusable = |reason: String| VaultError::File { field: "ca", path: path.to_owned(), reason };
    let text = read_operators(path).map_err(|e| unusable(e.reason))?;
    let found = Certificate::from_pem_bundle(text.as_bytes()).map_err(|e| unusable(chain(&e)))?;
    if found.is_empty() {
        return Err(unusable("has no certificate in PEM".to_owned()));
    }
    Ok(found)
}

fn identity(cert: &CertLogin) -> Result<Identity, VaultError> {
    let path = &cert.certificate;
    let unusable =
        |reason: String| VaultError::File { field: "login.cert.certificate", path: path.clone(), reason };
    let chain_pem = read_file(path, FILE_BYTES_MAX).map_err(|e| unusable(format!("cannot be read: {e}")))?;
    let key = read_private("login.cert.key", &cert.key)?;
    let mut both = Zeroizing::new(Vec::with_capacity(chain_pem.len() + key.len() + 1));
    both.extend_from_slice(&chain_pem);
    both.push(b'\n');
    both.extend_from_slice(&key);
    Identity::from_pem(&both).map_err(|e| unusable(format!("is no certificate with its key: {}", chain(&e))))
}

/// Reads a file that only its owner may read: root or this user. (A credential of systemd's shows the mask of its access
/// control list as the group's read bit.)
pub(super) fn read_private(field: &'static str, path: &Path) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let unusable = |reason: String| VaultError::File { field, path: path.to_owned(), reason };
    let cannot = |e: std::io::Error| unusable(format!("cannot be read: {e}"));
    let file = File::open(path).map_err(cannot)?;
    let meta = file.metadata().map_err(cannot)?;
    let mode = meta.mode() & 0o777;
    if !meta.is_file() {
        return Err(unusable("is no file".to_owned()));
    }
    if mode & 0o037 != 0 {
        return Err(unusable(format!(
            "can be read or written by others (mode {mode:03o}); run chmod 600 on it"
        )));
    }
    if ![0, geteuid().as_raw()].contains(&meta.uid()) {
        return Err(unusable("belongs to somebody else; it must be root's or this user's".to_owned()));
    }
    // As much room as it may take, at once.
    let room = usize::try_from(meta.len().min(FILE_BYTES_MAX)).unwrap_or(0).saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    std::io::Read::read_to_end(&mut std::io::Read::take(file, FILE_BYTES_MAX + 1), &mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(unusable(format!("has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// The one line of such a file.
pub(super) fn read_line(field: &'static str, path: &Path) -> Result<super::Secret, VaultError> {
    let bytes = read_private(field, path)?;
    let line = bytes.trim_ascii();
    if line.is_empty() || !line.iter().all(u8::is_ascii_graphic) {
        let reason = "has not one line of visible ASCII characters".to_owned();
        return Err(VaultError::File { field, path: path.to_owned(), reason });
    }
    Ok(super::Secret::new(line.to_vec()))
}
