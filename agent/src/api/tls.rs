//! TLS 1.3 for the TCP listeners: certificates that are read again without a restart.

use crate::export::sha256_of;
use crate::files::read_file;
use crate::identity::{Certificate, Shown};
use ampoule_spec::Sha256;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use zeroize::Zeroizing;

/// The largest file of certificates or keys.
const PEM_BYTES_MAX: u64 = 1 << 20;
/// The one protocol that is spoken above TLS.
const ALPN: &[u8] = b"h2";

/// How long a client that is refused may take to read why, and how often it is listened to meanwhile.
const LAST_WITHIN: Duration = Duration::from_secs(1);
const LAST_READS_MAX: usize = 16;

/// Files of a listener, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of client certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate may try it with a token.
    pub tokens: bool,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct TlsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// What tells one version of a file from another, without reading it.
type Stamp = Vec<Option<(u64, u64, i64, i64)>>;

/// The certificates of a listener.
pub struct Tls {
    files: TlsFiles,
    config: RwLock<Arc<ServerConfig>>,
    stamp: Mutex<Stamp>,
    version: watch::Sender<u64>,
}

/// Certificates that were read and are not in force yet.
pub struct NewTls {
    stamp: Stamp,
    config: ServerConfig,
    sha256: Sha256,
}

impl NewTls {
    /// SHA-256 of the listener's certificate, DER.
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }
}

impl std::fmt::Debug for NewTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NewTls({})", self.sha256)
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`]: a file that cannot be used; a key of another certificate; neither authorities nor tokens.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let stamp = stamp(&files);
        let config = RwLock::new(Arc::new(config(&files)?.0));
        Ok(Self { files, config, stamp: Mutex::new(stamp), version: watch::Sender::new(0) })
    }

    /// Reads the files again; what cannot be used changes nothing. Connections that are older end gracefully.
    ///
    /// # Errors
    /// As [`Tls::open`].
    pub fn reload(&self) -> Result<(), TlsError> {
        self.take(self.read()?);
        Ok(())
    }

    /// Reads the files as they are now; what they say is not in force yet. Files that cannot be used are not read a second
    /// time until they are others.
    ///
    /// # Errors
    /// As [`Tls::open`].
    pub fn read(&self) -> Result<NewTls, TlsError> {
        let stamp = stamp(&self.files);
        let new = config(&self.files);
        match new {
            Ok((config, sha256)) => Ok(NewTls { stamp, config, sha256 }),
            Err(error) => {
                *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = stamp;
                Err(error)
            }
        }
    }

    /// Puts what was read in force. Connections that are older end gracefully.
    pub fn take(&self, new: NewTls) {
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) = new.stamp;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new.config);
        self.version.send_modify(|version| *version += 1);
    }

    /// Whether the files are others than those that were read last.
    pub fn has_changed(&self) -> bool {
        *self.stamp.lock().unwrap_or_else(PoisonError::into_inner) != stamp(&self.files)
    }

    /// Changes whenever other certificates are in force.
    pub(super) fn version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Shakes hands.
    ///
    /// # Errors
    /// For the operator: what rustls says, or that the client does not speak HTTP/2.
    pub(super) async fn accept(&self, stream: TcpStream) -> Result<(TlsStream<TcpStream>, Shown), String> {
        let config = Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner));
        let stream = match TlsAcceptor::from(config).accept(stream).into_fallible().await {
            Ok(stream) => stream,
            Err((error, stream)) => {
                let_read(stream).await;
                return Err(error.to_string());
            }
        };
        let (_, session) = stream.get_ref();
        if session.alpn_protocol() != Some(ALPN) {
            return Err("the client does not say that it speaks HTTP/2 (ALPN h2)".to_owned());
        }
        let shown = match session.peer_certificates().and_then(<[_]>::first) {
            None => Shown::Nothing,
            Some(der) => Shown::Certificate(Arc::new(Certificate::read(der).map_err(|e| e.to_string())?)),
        };
        Ok((stream, shown))
    }
}

/// Lets a client read why it is refused: a socket that is closed with bytes unread is reset, and what was said is lost. The
/// client goes when it has read that; one that does not is not waited for.
async fn let_read(mut stream: TcpStream) {
    let rest = async {
        stream.shutdown().await?;
        let mut bytes = [0; 4 << 10];
        for _ in 0..LAST_READS_MAX {
            if stream.read(&mut bytes).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    let _ = tokio::time::timeout(LAST_WITHIN, rest).await;
}

fn stamp(files: &TlsFiles) -> Stamp {
    let of = |path: &Path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
    };
    let all = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
    all.into_iter().flatten().map(|path| of(path)).collect()
}

/// What the files say, and the SHA-256 of the first certificate.
fn config(files: &TlsFiles) -> Result<(ServerConfig, Sha256), TlsError> {
    let wrong = |path: &Path, reason: &dyn std::fmt::Display| TlsError {
        path: path.to_owned(),
        reason: reason.to_string(),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = certificates(&files.certificate)?;
    let sha256 = sha256_of(chain.first().map(|own| own.as_ref()).unwrap_or_default());
    let mode = std::fs::metadata(&files.key).map_err(|e| wrong(&files.key, &e))?.mode();
    if mode & 0o077 != 0 {
        return Err(wrong(&files.key, &"others can read or write the key; chmod go= it"));
    }
    let pem = Zeroizing::new(read_file(&files.key, PEM_BYTES_MAX).map_err(|e| wrong(&files.key, &e))?);
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| wrong(&files.key, &e))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| wrong(&files.certificate, &e))?;
    let builder = match &files.client_ca {
        None if files.tokens => builder.with_no_client_auth(),
        None => {
            return Err(wrong(
                &files.certificate,
                &"a listener needs authorities of client certificates, or issuers of tokens",
            ));
        }
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(|e| wrong(path, &e))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if files.tokens { verifier.allow_unauthenticated() } else { verifier };
            builder.with_client_cert_verifier(verifier.build().map_err(|e| wrong(path, &e))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|e| wrong(&files.key, &e))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A session that is resumed would not have its certificate looked at.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok((config, sha256))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError { path: path.to_owned(), reason };
    let pem = read_file(path, PEM_BYTES_MAX).map_err(|e| wrong(e.to_string()))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|e| wrong(e.to_string()))?;
    if all.is_empty() { Err(wrong("there is no certificate in it".to_owned())) } else { Ok(all) }
}
