//! A server on real sockets, certificates, tokens, and clients.

use crate::fake::Fake;
use ampoule_agent::admission::Desk;
use ampoule_agent::api::{ContentGate, Limits, Listener, Parts, Server, Tls, TlsFiles, host, jobs};
use ampoule_agent::audit::{AuditError, AuditEvent};
use ampoule_agent::audit_sink::{AuditSink, Refused};
use ampoule_agent::content::{self, ContentLimits, Contents};
use ampoule_agent::identity::{Fetch, Identities};
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

pub(crate) const CI: &str = "spiffe://test.example/ci";
pub(crate) const IDLE: &str = "spiffe://test.example/idle";
/// By token: who may ask what the host can do, and not drain it.
pub(crate) const LOOKER: &str = "looker";

/// A certificate authority.
pub(crate) struct Ca(pub(crate) CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn server(&self) -> Pair {
        self.issue(|params| {
            params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        })
    }

    pub(crate) fn client(&self, name: &str) -> Pair {
        self.issue(|params| {
            params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    pub(crate) fn expired(&self, name: &str) -> Pair {
        self.issue(|params| {
            params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        })
    }

    pub(crate) fn wrong_use(&self, name: &str) -> Pair {
        self.issue(|params| {
            params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        })
    }

    fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::default();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Pair { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

/// An issuer of tokens.
pub(crate) struct Issuer {
    key: jsonwebtoken::EncodingKey,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        let pem = KeyPair::generate().unwrap().serialize_pem();
        Self { key: jsonwebtoken::EncodingKey::from_ec_pem(pem.as_bytes()).unwrap() }
    }

    fn jwks(&self) -> String {
        let mut key =
            jsonwebtoken::jwk::Jwk::from_encoding_key(&self.key, jsonwebtoken::Algorithm::ES256).unwrap();
        key.common.key_id = Some("k".to_owned());
        json!({ "keys": [key] }).to_string()
    }

    pub(crate) fn token(&self, subject: &str, audience: &str, age: i64) -> String {
        let now = jsonwebtoken::get_current_timestamp() as i64;
        let claims = json!({ "iss": "https://i.example", "aud": audience, "sub": subject, "nbf": now - age - 60, "exp": now - age + 300 });
        let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
        header.kid = Some("k".to_owned());
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }
}

/// Keeps what it is told: refused calls, and what was written down.
#[derive(Debug, Default)]
pub(crate) struct Told(pub(crate) Mutex<Vec<String>>, pub(crate) Written);

/// What was written down before it was done.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) events: Mutex<Vec<AuditEvent>>,
    /// Entries and effects, as they came.
    pub(crate) order: Arc<Mutex<Vec<String>>>,
    /// Whether nothing can be written.
    pub(crate) is_full: std::sync::atomic::AtomicBool,
}

impl Told {
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl AuditSink for Told {
    fn record(&self, refused: &Refused<'_>) {
        let who = refused.caller.unwrap_or("nobody");
        let line = format!("{} {} {who}: {}", refused.refusal.as_str(), refused.call, refused.reason);
        self.0.lock().unwrap().push(line);
    }

    fn write<'a>(&'a self, event: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        Box::pin(async move {
            // What does not wait for this is seen before it.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            if self.1.is_full.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(AuditError::NotWritten("/var/lib/ampouled: no space".to_owned()));
            }
            self.1.events.lock().unwrap().push(event.clone());
            self.1.order.lock().unwrap().push(event.action.as_str().to_owned());
            Ok(())
        })
    }
}

/// How a server is to be.
pub(crate) struct Wish {
    pub(crate) limits: Limits,
    /// Whether the uid of this process has a role.
    pub(crate) peer_has_role: bool,
    /// Whether clients without a certificate may try with a token.
    pub(crate) tokens: bool,
}

impl Default for Wish {
    fn default() -> Self {
        Self { limits: Limits::default(), peer_has_role: true, tokens: true }
    }
}

/// A server and what its clients need. It ends with this value.
pub(crate) struct Running {
    pub(crate) dir: TempDir,
    pub(crate) address: SocketAddr,
    pub(crate) socket: PathBuf,
    pub(crate) ca: Ca,
    pub(crate) issuer: Issuer,
    pub(crate) told: Arc<Told>,
    pub(crate) fake: Arc<Fake>,
    pub(crate) tls: Arc<Tls>,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: Vec<tokio::task::JoinHandle<()>>,
    server: Arc<Server>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(crate) fn provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

pub(crate) async fn start(wish: Wish) -> Running {
    let (mut running, listeners) = prepare(wish).await;
    running.serve(listeners);
    running
}

/// A server that does not serve yet, and its listeners, whose backlogs take connections already.
pub(crate) async fn prepare(wish: Wish) -> (Running, Vec<Listener>) {
    provider();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (ca, issuer) = (Ca::new(), Issuer::new());
    let server = ca.server();
    std::fs::write(at("server.pem"), &server.certificate).unwrap();
    std::fs::write(at("server.key"), &server.key).unwrap();
    mode(&at("server.key"), 0o600);
    std::fs::write(at("clients.pem"), ca.0.pem()).unwrap();
    std::fs::write(at("keys.json"), issuer.jwks()).unwrap();
    policy(dir.path(), wish.peer_has_role);
    let told = Arc::new(Told::default());
    let desk = Arc::new(Desk::open(dir.path().to_owned(), told.clone()).unwrap());
    let identities = Identities::open(&at("identities.toml"), Arc::new(Fetch::new(None).unwrap())).unwrap();
    let files = TlsFiles {
        certificate: at("server.pem"),
        key: at("server.key"),
        client_ca: Some(at("clients.pem")),
        tokens: wish.tokens,
    };
    let tls = Arc::new(Tls::open(files).unwrap());
    let fake = Arc::new(Fake { order: told.1.order.clone(), ..Fake::default() });
    let contents = Contents::open(&at("content"), Fake::default(), ContentLimits::default()).unwrap();
    let routes =
        tonic::service::Routes::new(jobs::service(fake.clone(), fake.clone(), desk.clone()).unwrap())
            .add_service(host::service(fake.clone(), fake.clone(), fake.clone(), desk.clone()))
            .add_service(content::service(Arc::new(contents), ContentGate(desk.clone())));
    let server = Server::new(Parts {
        routes,
        identities: Arc::new(identities),
        desk,
        health: tonic_health::server::HealthReporter::new(),
        reflection: false,
        limits: wish.limits,
        traces: Default::default(),
    })
    .unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let socket = at("agent.sock");
    let unix = UnixListener::bind(&socket).unwrap();
    let stop = CancellationToken::new();
    let listeners = vec![Listener::Tcp(tcp, tls.clone()), Listener::Unix(unix)];
    let tasks = Vec::new();
    (Running { dir, address, socket, ca, issuer, told, fake, tls, stop, tasks, server }, listeners)
}

pub(crate) fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

/// Writes the example's policy with roles of the tests, and who is known.
fn policy(dir: &Path, peer_has_role: bool) {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policy/authz.rego");
    std::fs::copy(example, dir.join("authz.rego")).unwrap();
    let mut bindings = Vec::new();
    let mut subjects = vec![CI.to_owned(), "https://i.example#ci".to_owned()];
    if peer_has_role {
        subjects.push(format!("uid:{}", rustix::process::geteuid().as_raw()));
    }
    for subject in subjects {
        bindings.push(json!({ "subject": subject, "role": "tenant", "projects": ["mine", "panics"], "host_image": true }));
        bindings.push(json!({ "subject": subject, "role": "host", "projects": ["*"] }));
    }
    let looks = format!("https://i.example#{LOOKER}");
    bindings.push(json!({ "subject": looks, "role": "looker", "projects": ["*"] }));
    let tenant = ["submit", "read", "cancel", "evidence", "download", "upload", "describe"];
    let roles = json!({ "tenant": tenant, "host": ["capabilities", "drain", "leases", "revoke", "check"], "looker": ["capabilities"] });
    let data = json!({ "roles": roles, "bindings": bindings });
    std::fs::write(dir.join("data.json"), data.to_string()).unwrap();
    let identities = format!(
        "format = 1\ncertificates = [\"{CI}\", \"{IDLE}\"]\n[[tokens]]\nissuer = \"https://i.example\"\naudience = \"ampouled\"\n\
         algorithms = [\"ES256\"]\njwks = \"keys.json\"\n"
    );
    std::fs::write(dir.join("identities.toml"), identities).unwrap();
}

impl Running {
    pub(crate) fn serve(&mut self, listeners: Vec<Listener>) {
        let serve = |listener| tokio::spawn(self.server.clone().serve(listener, self.stop.clone()));
        self.tasks = listeners.into_iter().map(serve).collect();
    }

    pub(crate) fn config(&self, pair: Option<&Pair>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.0.der().clone()).unwrap();
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let mut config = match pair {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    /// A TLS connection, or why there is none.
    pub(crate) async fn tls_stream(
        &self,
        config: ClientConfig,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::IpAddress(self.address.ip().into());
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    pub(crate) fn tcp(&self, pair: Option<&Pair>) -> Channel {
        let (address, config) = (self.address, Arc::new(self.config(pair)));
        Endpoint::from_static("http://daemon").connect_with_connector_lazy(tower::service_fn(move |_| {
            let config = Arc::clone(&config);
            async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::IpAddress(address.ip().into());
                let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        }))
    }

    pub(crate) fn plain(&self) -> Channel {
        let address = self.address;
        Endpoint::from_static("http://daemon").connect_with_connector_lazy(tower::service_fn(
            move |_| async move { Ok::<_, std::io::Error>(TokioIo::new(TcpStream::connect(address).await?)) },
        ))
    }

    pub(crate) fn unix(&self) -> Channel {
        let socket = self.socket.clone();
        Endpoint::from_static("http://daemon").connect_with_connector_lazy(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        }))
    }
}
