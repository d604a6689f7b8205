//! The connection: a local socket, or TLS 1.3.

use super::error::ClientError;
use super::retry::{Backoff, Say};
use super::trust;
use crate::files::read_file;
use ampoule_proto::v1::content_service_client::ContentServiceClient;
use ampoule_proto::v1::host_service_client::HostServiceClient;
use ampoule_proto::v1::job_service_client::JobServiceClient;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpStream, UnixStream};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use zeroize::Zeroizing;

type Result<T> = std::result::Result<T, ClientError>;

/// Where a daemon of this host listens.
const SOCKET: &str = "/run/ampoule/agent.sock";
/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a socket that is not for us may be one that is just being made, and how often it is tried.
const OWNED_WITHIN: Duration = Duration::from_secs(2);
const OWNED_LOOK: Duration = Duration::from_millis(100);
/// A peer that says nothing for so long is asked whether it is there, and has as long to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// The most bytes of a file of certificates or keys, and of a token.
const PEM_BYTES_MAX: u64 = 1 << 20;
const TOKEN_BYTES_MAX: u64 = 64 << 10;
/// The largest message: evidence, of which an attestation alone may have 16 MiB.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// Where a daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// A socket of this host.
    Unix(PathBuf),
    /// A host, by TLS.
    Https {
        /// Its name or address, as its certificate says it.
        host: String,
        /// Its port.
        port: u16,
    },
}

impl Default for Server {
    fn default() -> Self {
        Self::Unix(PathBuf::from(SOCKET))
    }
}

impl Server {
    /// Reads an address: `unix:///run/ampoule/agent.sock` or `https://host:port`.
    ///
    /// # Errors
    /// [`ClientError::Setting`] with what to write.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |reason: &str| {
            let reason = format!("{text:?}: {reason}; write unix://{SOCKET} or https://HOST:PORT");
            ClientError::Setting { what: "--server", reason }
        };
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(PathBuf::from(path))),
                false => Err(wrong("the path of a socket begins with a slash")),
            };
        }
        let url = url::Url::parse(text).map_err(|e| wrong(&e.to_string()))?;
        let is_plain = url.username().is_empty()
            && url.password().is_none()
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none();
        match (url.scheme(), url.host_str(), url.port_or_known_default()) {
            ("https", Some(host), Some(port)) if is_plain => {
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                Ok(Self::Https { host, port })
            }
            ("http", ..) => Err(wrong("without TLS nobody knows who answers")),
            _ => Err(wrong("not an address of a daemon")),
        }
    }
}

/// What a client shows, and by what it knows the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Certificate authorities (PEM) that the daemon's certificate is from. Needed for `https:`.
    pub ca: Option<PathBuf>,
    /// The client's certificate chain (PEM).
    pub certificate: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
    /// A file with a token, read again for each call: whoever renews it writes a new file.
    pub token: Option<PathBuf>,
}

/// Shows a token.
#[derive(Debug, Clone)]
pub struct Bearer(Option<PathBuf>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(path) = &self.0 {
            let value = bearer(path).map_err(|reason| {
                Status::unauthenticated(format!("the token in {}: {reason}", path.display()))
            })?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

fn bearer(path: &Path) -> std::result::Result<MetadataValue<Ascii>, String> {
    let bytes = Zeroizing::new(read_file(path, TOKEN_BYTES_MAX).map_err(|e| e.to_string())?);
    let token = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("it is no token".to_owned());
    }
    let text = Zeroizing::new(format!("Bearer {token}"));
    let mut value: MetadataValue<Ascii> = text.parse().map_err(|_| "it is no token".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

/// What calls go through.
pub type Calls = InterceptedService<Channel, Bearer>;

/// A daemon that is asked. Nothing is sent before the first call; a connection that was lost is opened again by the next.
#[derive(Debug, Clone)]
pub struct Client {
    calls: Calls,
    say: Option<Say>,
}

impl Client {
    /// Prepares a connection. To be called within a runtime.
    ///
    /// # Errors
    /// [`ClientError`] if a file cannot be used.
    pub fn new(server: &Server, credentials: &Credentials) -> Result<Self> {
        let calls = InterceptedService::new(channel(server, credentials)?, Bearer(credentials.token.clone()));
        Ok(Self { calls, say: None })
    }

    /// Has somebody hear why a call is tried again.
    #[must_use]
    pub fn saying(self, say: fn(&ClientError)) -> Self {
        Self { say: Some(say), ..self }
    }

    pub(super) fn backoff(&self) -> Backoff {
        Backoff::saying(self.say)
    }

    /// Jobs.
    pub fn jobs(&self) -> JobServiceClient<Calls> {
        JobServiceClient::new(self.calls.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Content.
    pub fn contents(&self) -> ContentServiceClient<Calls> {
        ContentServiceClient::new(self.calls.clone())
    }

    /// The host.
    pub fn host(&self) -> HostServiceClient<Calls> {
        HostServiceClient::new(self.calls.clone())
    }
}

/// A connection that is opened by its first call. To be called within a runtime.
///
/// # Errors
/// [`ClientError`] if a file cannot be used.
pub(crate) fn channel(server: &Server, credentials: &Credentials) -> Result<Channel> {
    match server {
        Server::Unix(path) => unix(path.clone()),
        Server::Https { host, port } => https(host, *port, credentials),
    }
}

/// One without TLS, to a port of this host.
///
/// # Errors
/// None that can happen: an address is one.
pub(crate) fn loopback(address: std::net::SocketAddr) -> Result<Channel> {
    Ok(endpoint(&format!("http://{address}"))?.connect_lazy())
}

/// Reads the files that [`channel`] would.
///
/// # Errors
/// [`ClientError`] for one that cannot be used.
pub(crate) fn check(credentials: &Credentials) -> Result<()> {
    tls(credentials).map(drop)
}

fn endpoint(uri: &str) -> Result<Endpoint> {
    let wrong = |e: tonic::transport::Error| ClientError::Setting { what: "--server", reason: e.to_string() };
    Ok(Endpoint::from_shared(uri.to_owned())
        .map_err(wrong)?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true))
}

fn unix(path: PathBuf) -> Result<Channel> {
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move {
            let connected = connect_unix(&path).await;
            connected.map(TokioIo::new).map_err(|error| trust::closed(&path, &error))
        }
    });
    Ok(endpoint("http://localhost")?.connect_with_connector_lazy(connect))
}

/// Connects to a socket. One that systemd has just made is root's alone until it has its group (systemd.socket(5),
/// `SocketGroup=`): who follows a job over a restart is not turned away for that.
async fn connect_unix(path: &Path) -> std::io::Result<UnixStream> {
    let until = Instant::now() + OWNED_WITHIN;
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == ErrorKind::PermissionDenied && Instant::now() < until => {
                tokio::time::sleep(OWNED_LOOK).await;
            }
            connected => return connected,
        }
    }
}

fn https(host: &str, port: u16, credentials: &Credentials) -> Result<Channel> {
    let tls = tokio_rustls::TlsConnector::from(Arc::new(tls(credentials)?));
    let name = ServerName::try_from(host.to_owned()).map_err(|e| ClientError::Setting {
        what: "--server",
        reason: format!("{host:?} is no name of a host: {e}"),
    })?;
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let address = authority.clone();
    let connect = tower::service_fn(move |_: Uri| {
        let (tls, name, address) = (tls.clone(), name.clone(), address.clone());
        async move {
            let tcp = TcpStream::connect(&address).await?;
            tcp.set_nodelay(true)?;
            let stream = tls.connect(name, tcp).await.map_err(trust::told)?;
            let begun = trust::begun(stream).await?;
            Ok::<_, trust::Failure>(TokioIo::new(begun))
        }
    });
    Ok(endpoint(&format!("http://{authority}"))?.connect_with_connector_lazy(connect))
}

fn file(what: &'static str, path: &Path, reason: impl ToString) -> ClientError {
    ClientError::File { what, path: path.to_owned(), reason: reason.to_string() }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read_file(path, PEM_BYTES_MAX).map_err(|e| file(what, path, e))?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|e| file(what, path, e))?;
    if found.is_empty() { Err(file(what, path, "there is no certificate in it")) } else { Ok(found) }
}

/// TLS 1.3 alone, with the authorities that were named alone.
fn tls(credentials: &Credentials) -> Result<ClientConfig> {
    let setting = |what, reason: &str| ClientError::Setting { what, reason: reason.to_owned() };
    let ca = credentials.ca.as_deref().ok_or_else(|| {
        setting("AMPOULE_CA", "missing; name the file with the authorities of the daemon's certificate")
    })?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates("AMPOULE_CA", ca)? {
        roots.add(certificate).map_err(|e| file("AMPOULE_CA", ca, e))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| setting("TLS", &e.to_string()))?
        .with_root_certificates(roots);
    let mut config = match (&credentials.certificate, &credentials.key) {
        (None, None) => config.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let chain = certificates("AMPOULE_CERT", certificate)?;
            let pem = read_file(key, PEM_BYTES_MAX).map_err(|e| file("AMPOULE_KEY", key, e))?;
            let pem = Zeroizing::new(pem);
            let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| file("AMPOULE_KEY", key, e))?;
            config.with_client_auth_cert(chain, private).map_err(|e| file("AMPOULE_CERT", certificate, e))?
        }
        (Some(_), None) => return Err(setting("AMPOULE_KEY", "missing; AMPOULE_CERT needs it")),
        (None, Some(_)) => return Err(setting("AMPOULE_CERT", "missing; AMPOULE_KEY needs it")),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_spec::Code;

    #[test]
    fn address_without_tls_or_with_more_than_a_host_is_refused() {
        let parse = Server::parse;
        assert_eq!(parse("unix:///run/a.sock").unwrap(), Server::Unix("/run/a.sock".into()));
        let https = |host: &str, port| Server::Https { host: host.to_owned(), port };
        assert_eq!(parse("https://build.example:7000").unwrap(), https("build.example", 7000));
        assert_eq!(parse("https://[::1]:7000/").unwrap(), https("::1", 7000));
        for bad in [
            "http://h:1",
            "unix://run/a",
            "h:1",
            "https://u@h:1",
            "https://h:1/p",
            "https://h:1?q",
            "ftp://h",
            "",
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.code() == Code::Usage && error.to_string().contains("unix:///run"), "{error}");
        }
    }

    #[test]
    fn certificate_needs_its_key_and_https_its_authority() {
        let pem = tempfile::NamedTempFile::new().unwrap();
        let some = || Some(pem.path().to_owned());
        for (credentials, text) in [
            (Credentials::default(), "AMPOULE_CA: missing"),
            (Credentials { ca: some(), ..Credentials::default() }, "no certificate in it"),
        ] {
            assert!(tls(&credentials).unwrap_err().to_string().contains(text));
        }
    }

    #[test]
    fn token_is_read_at_each_call_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let mut bearer = Bearer(Some(path.clone()));
        assert_eq!(bearer.call(Request::new(())).unwrap_err().code(), tonic::Code::Unauthenticated);
        for token in ["abc.def\n", "ghi"] {
            std::fs::write(&path, token).unwrap();
            let request = bearer.call(Request::new(())).unwrap();
            let value = request.metadata().get("authorization").unwrap();
            assert_eq!(value.to_str().unwrap(), format!("Bearer {}", token.trim()));
            assert!(!format!("{value:?}").contains("abc"));
        }
        std::fs::write(&path, "a b").unwrap();
        assert!(bearer.call(Request::new(())).is_err());
    }
}
