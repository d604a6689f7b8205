//! The configuration of `ampouled`: one TOML file, read as strictly as a job file.
//!
//! What is guaranteed: a configuration that was read names everything it lets in. Nothing of it comes from the
//! environment or from a second file.

mod keys;
mod read;
mod show;

pub use keys::reference;

use crate::audit::Rate;
use crate::client::{Credentials, Server};
use crate::job::ProjectFiles;
use ampoule_evidence::Authority;
use ampoule_spec::Name;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What an operator has decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Whether this is no daemon that anybody relies on.
    pub dev: bool,
    /// Base of builder ids and type URIs.
    pub authority: Authority,
    /// The daemon's own directory.
    pub state: PathBuf,
    /// The audit log's name.
    pub audit_origin: String,
    /// Directory of the policy.
    pub policy: PathBuf,
    /// Where inputs may come from; none: from nowhere.
    pub sources: Option<PathBuf>,
    /// Who is known by certificate or token.
    pub identities: PathBuf,
    /// Files that are for one project.
    pub files: BTreeMap<Name, ProjectFiles>,
    /// Profiles that jobs may ask for; never empty.
    pub profiles: Vec<Name>,
    /// Where callers come in.
    pub listen: Listen,
    /// Certificates of the TCP listeners.
    pub tls: Option<Tls>,
    /// The privileged side.
    pub runner: Runner,
    /// What is promised at most.
    pub limits: Limits,
    /// What a project may have that is not named.
    pub quota: Quota,
    /// What those may have that are.
    pub projects: BTreeMap<Name, Quota>,
    /// How long things are kept.
    pub retention: Retention,
    /// What signs; none only with `dev`.
    pub signing: Option<SigningKey>,
    /// Which secrets projects have; none: none.
    pub secrets: Option<PathBuf>,
    /// How often a caller may have something written into the audit log.
    pub audit: Rate,
    /// Where metrics can be asked for.
    pub metrics: MetricsListener,
    /// Where spans go; none: there are none.
    pub traces: Option<Traces>,
    /// What is logged, and how.
    pub log: Log,
    /// How long calls in flight may take at the end.
    pub drain_deadline: Duration,
    /// What the host must stay.
    pub host: Host,
}

/// Where callers come in; at least one of them is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// A local socket.
    pub unix: Option<PathBuf>,
    /// An address, with TLS.
    pub tcp: Option<SocketAddr>,
    /// Names of sockets that systemd has opened.
    pub systemd: Vec<String>,
    /// Whether the schema can be asked for.
    pub reflection: bool,
}

/// Files of the TLS listener, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Certificate chain.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of client certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether a caller without a certificate may try it with a token.
    pub tokens: bool,
}

/// Where the launcher is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// Its socket.
    pub socket: PathBuf,
    /// Its state directory.
    pub state: PathBuf,
}

/// What is promised at most. What is none is the host's own, see [`Host`](super::host).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Jobs that wait.
    pub queue: u64,
    /// Jobs that run.
    pub running: u64,
    /// Starts that may pass a job that does not fit.
    pub patience: u64,
    /// Processors, in thousandths.
    pub cpu_millis: Option<u64>,
    /// Memory, in bytes.
    pub memory_bytes: Option<u64>,
    /// Disk, in bytes.
    pub disk_bytes: Option<u64>,
    /// Disk for uploads that are not complete, in bytes.
    pub upload_bytes: u64,
}

/// What a project may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Its weight among projects.
    pub weight: u64,
    /// Jobs that wait.
    pub queue: u64,
    /// Jobs that run.
    pub running: u64,
}

/// How long things are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Logs and outputs of finished jobs.
    pub jobs: Duration,
    /// How many bytes of them.
    pub bytes: u64,
    /// Their records. Not shorter than `jobs`.
    pub records: Duration,
    /// The same at least. Not longer than `records`.
    pub least: Duration,
    /// How many records of a project.
    pub count: u64,
    /// How many bytes of them.
    pub record_bytes: u64,
}

/// Where the signing key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SigningKey {
    /// A file.
    File(PathBuf),
    /// A credential of the unit, `systemd.exec(5)`.
    Credential(String),
    /// A file that names a key of Vault's Transit.
    Transit(PathBuf),
}

/// Where metrics can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsListener {
    /// Nowhere.
    Off,
    /// A loopback address.
    Loopback(SocketAddr),
    /// A local socket.
    Unix(PathBuf),
}

/// A collector of traces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// Where it is.
    pub endpoint: Collector,
    /// By what we know it, and what we show. Of use with TLS alone.
    pub credentials: Credentials,
}

/// Where a collector is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Collector {
    /// On this host, without TLS.
    Loopback(SocketAddr),
    /// Anywhere, with TLS.
    Https(Server),
}

impl std::fmt::Display for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Loopback(address) => write!(f, "http://{address}"),
            Self::Https(Server::Https { host, port }) if host.contains(':') => {
                write!(f, "https://[{host}]:{port}")
            }
            Self::Https(Server::Https { host, port }) => write!(f, "https://{host}:{port}"),
            Self::Https(Server::Unix(path)) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// How.
    pub format: LogFormat,
    /// What: a filter as of `tracing_subscriber::EnvFilter`.
    pub level: String,
}

/// How a log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// An object a line on stderr.
    Json,
    /// For people, on stderr.
    Text,
    /// To journald by its own protocol, with fields.
    Journal,
}

/// What the host must stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The recorded baseline.
    pub baseline: Option<PathBuf>,
    /// How often it is compared.
    pub every: Duration,
    /// Whether drift ends the intake.
    pub refuse_on_drift: bool,
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// `file.unusable` with line, field and remedy.
    pub fn load(path: &Path) -> Result<Self, crate::jobfile::JobFileError> {
        let text = crate::files::read_operators(path)?;
        read::config(&text, &path.display().to_string(), path.parent().unwrap_or(Path::new("")))
    }

    /// Parses a file that messages call `name`; relative paths in it are taken from `base`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, name: &str, base: &Path) -> Result<Self, crate::jobfile::JobFileError> {
        read::config(text, name, base)
    }

    /// The keys that another configuration says something else of, as in `listen.tcp`.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        show::differences(self, other)
    }

    /// The whole configuration as a file that reads back as the same. It holds no secret.
    pub fn show(&self) -> String {
        show::show(self)
    }
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
