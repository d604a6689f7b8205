//! What an operator writes about one server (or one cluster) of the Vault API.

use crate::jobfile::values::duration_ms;
use reqwest::Url;
use serde::{Deserialize, Deserializer};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The most addresses of one cluster.
const ADDRESSES_MAX: usize = 16;
/// The longest name: of a mount, a role, a namespace.
const NAME_BYTES_MAX: usize = 256;
/// Where Kubernetes puts the token of a pod's service account.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}; {remedy}")]
pub struct ConfigError {
    /// The field, with the tables it is in.
    pub field: &'static str,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: &'static str,
}

impl ConfigError {
    pub(super) fn new(field: &'static str, reason: impl Into<String>, remedy: &'static str) -> Self {
        Self { field, reason: reason.into(), remedy }
    }
}

/// One server or cluster. A TOML table of the operator's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Addresses of one cluster, `https://HOST[:PORT]`, tried in this order.
    pub addresses: Vec<String>,
    /// PEM file of the authorities of the servers' certificates. No other authority is believed.
    pub ca: Option<PathBuf>,
    /// The namespace (OpenBao; Vault Enterprise).
    pub namespace: Option<String>,
    /// How long a connection may take to open, TLS included.
    #[serde(default = "connect_timeout", deserialize_with = "duration")]
    pub connect_timeout: Duration,
    /// How long one request may take.
    #[serde(default = "timeout", deserialize_with = "duration")]
    pub timeout: Duration,
    /// How long one call may take, with all its tries.
    #[serde(default = "budget", deserialize_with = "duration")]
    pub budget: Duration,
    /// How long a new step waits for a server that is away.
    #[serde(default = "wait_for_vault", deserialize_with = "duration")]
    pub wait_for_vault: Duration,
    /// Development: `http://` on a loopback address.
    #[serde(default)]
    pub loopback_without_tls: bool,
    /// How the agent itself logs in.
    pub login: Login,
    /// Where steps' tokens come from.
    #[serde(default)]
    pub step: StepLogin,
}

/// How the agent itself logs in.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Login {
    /// With a JSON Web Token that the agent signs.
    Jwt(JwtLogin),
    /// With an AppRole.
    Approle(ApproleLogin),
    /// With a TLS certificate.
    Cert(CertLogin),
    /// With the token of a pod's service account.
    Kubernetes(KubernetesLogin),
    /// With a token that somebody else keeps in a file (an agent of Vault's).
    Token {
        /// The file; read again when the token nears its end.
        file: PathBuf,
    },
}

/// A login by JSON Web Token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtLogin {
    /// Where the auth method is, below `auth/`.
    #[serde(default = "jwt_mount")]
    pub mount: String,
    /// Its role.
    pub role: String,
    /// The claim `aud`; the role's `bound_audiences` has it.
    pub audience: String,
}

/// A login by AppRole.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApproleLogin {
    /// Where the auth method is, below `auth/`.
    #[serde(default = "approle_mount")]
    pub mount: String,
    /// The role's id.
    pub role_id: String,
    /// A file with the secret id, or with a wrapping token that holds it.
    pub secret_id: PathBuf,
    /// The file has a wrapping token, and this is where it must have been made:
    /// `auth/approle/role/NAME/secret-id`.
    pub wrapped: Option<String>,
}

/// A login by TLS certificate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertLogin {
    /// Where the auth method is, below `auth/`.
    #[serde(default = "cert_mount")]
    pub mount: String,
    /// Its role.
    pub role: String,
    /// The certificate chain, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM (PKCS#8).
    pub key: PathBuf,
}

/// A login by Kubernetes service account.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KubernetesLogin {
    /// Where the auth method is, below `auth/`.
    #[serde(default = "kubernetes_mount")]
    pub mount: String,
    /// Its role.
    pub role: String,
    /// The service account's token.
    #[serde(default = "service_account_token")]
    pub token: PathBuf,
}

/// Where the token of a step comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StepLogin {
    /// Nowhere: the server is for something else (it signs), or each secret names its token role.
    #[default]
    #[serde(skip)]
    Nowhere,
    /// The agent's token mints it from this token role, which must have `orphan = true`.
    TokenRole {
        /// The role, unless a secret names another.
        name: String,
    },
    /// The step logs in by a token that the agent signs for it; the role's claims decide what it may read.
    Jwt(JwtLogin),
}

impl Login {
    /// The file that lets whoever has it in, if there is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::Jwt(_) => None,
            Self::Approle(approle) => Some(&approle.secret_id),
            Self::Cert(cert) => Some(&cert.key),
            Self::Kubernetes(kubernetes) => Some(&kubernetes.token),
            Self::Token { file } => Some(file),
        }
    }
}

fn connect_timeout() -> Duration {
    Duration::from_secs(2)
}

fn timeout() -> Duration {
    Duration::from_secs(5)
}

fn budget() -> Duration {
    Duration::from_secs(30)
}

fn wait_for_vault() -> Duration {
    Duration::from_secs(300)
}

fn jwt_mount() -> String {
    "jwt".to_owned()
}

fn approle_mount() -> String {
    "approle".to_owned()
}

fn cert_mount() -> String {
    "cert".to_owned()
}

fn kubernetes_mount() -> String {
    "kubernetes".to_owned()
}

fn service_account_token() -> PathBuf {
    PathBuf::from(SERVICE_ACCOUNT_TOKEN)
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    duration_ms(&text).map(Duration::from_millis).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?} is no duration; write one such as \"5s\" or \"1m30s\""))
    })
}

impl Config {
    /// Takes relative paths from the directory of the file that the configuration was in.
    #[must_use]
    pub fn based(mut self, base: &Path) -> Self {
        let place = |path: &mut PathBuf| *path = base.join(&path);
        self.ca.as_mut().map(place);
        match &mut self.login {
            Login::Approle(approle) => place(&mut approle.secret_id),
            Login::Cert(cert) => {
                place(&mut cert.certificate);
                place(&mut cert.key);
            }
            Login::Kubernetes(kubernetes) => place(&mut kubernetes.token),
            Login::Token { file } => place(file),
            Login::Jwt(_) => (),
        }
        self
    }

    /// What a client reads when it is made.
    pub(super) fn files(&self) -> impl Iterator<Item = &Path> {
        let cert = match &self.login {
            Login::Cert(cert) => Some([&cert.certificate, &cert.key]),
            _ => None,
        };
        self.ca.iter().chain(cert.into_iter().flatten()).map(PathBuf::as_path)
    }

    /// Checks what serde cannot.
    ///
    /// # Errors
    /// [`ConfigError`] with the field.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.urls()?;
        if let Some(namespace) = &self.namespace {
            check_path("namespace", namespace)?;
        }
        let times = [
            ("connect_timeout", self.connect_timeout),
            ("timeout", self.timeout),
            ("budget", self.budget),
            ("wait_for_vault", self.wait_for_vault),
        ];
        for (field, time) in times {
            if time.is_zero() || time > Duration::from_secs(3600) {
                let reason = format!("{time:?} is not between 1ms and 1h");
                return Err(ConfigError::new(field, reason, "leave it out, or write for example \"5s\""));
            }
        }
        if self.budget < self.timeout {
            let reason = "it is shorter than `timeout`: no request could take its time";
            return Err(ConfigError::new("budget", reason, "make it some times as long"));
        }
        match &self.login {
            Login::Jwt(jwt) => check_jwt(["login.jwt.mount", "login.jwt.role", "login.jwt.audience"], jwt)?,
            Login::Approle(approle) => {
                check_path("login.approle.mount", &approle.mount)?;
                check_visible("login.approle.role_id", &approle.role_id)?;
                if let Some(path) = &approle.wrapped {
                    check_path("login.approle.wrapped", path)?;
                }
            }
            Login::Cert(cert) => {
                check_path("login.cert.mount", &cert.mount)?;
                check_name("login.cert.role", &cert.role)?;
            }
            Login::Kubernetes(kubernetes) => {
                check_path("login.kubernetes.mount", &kubernetes.mount)?;
                check_name("login.kubernetes.role", &kubernetes.role)?;
            }
            Login::Token { .. } => (),
        }
        match &self.step {
            StepLogin::Nowhere => Ok(()),
            StepLogin::TokenRole { name } => check_name("step.token_role.name", name),
            StepLogin::Jwt(jwt) => check_jwt(["step.jwt.mount", "step.jwt.role", "step.jwt.audience"], jwt),
        }
    }

    /// The addresses.
    pub(super) fn urls(&self) -> Result<Vec<Url>, ConfigError> {
        let wrong = |reason: String, remedy| ConfigError::new("addresses", reason, remedy);
        if self.addresses.is_empty() || self.addresses.len() > ADDRESSES_MAX {
            let reason = format!("{} of them; 1 to {ADDRESSES_MAX} are possible", self.addresses.len());
            return Err(wrong(reason, "name the servers of one cluster"));
        }
        let mut urls: Vec<Url> = Vec::new();
        for text in &self.addresses {
            let url = Url::parse(text)
                .map_err(|e| wrong(format!("{text:?} is no URL: {e}"), "write https://HOST:PORT"))?;
            let bare = url.username().is_empty()
                && url.password().is_none()
                && matches!(url.path(), "" | "/")
                && url.query().is_none()
                && url.fragment().is_none();
            if !bare || url.host_str().is_none() {
                return Err(wrong(
                    format!("{:?} has more than a host and a port", url.origin().ascii_serialization()),
                    "write https://HOST:PORT; a server below a path is not reached",
                ));
            }
            let plain = url.scheme() == "http" && self.loopback_without_tls && is_loopback(&url);
            if url.scheme() != "https" && !plain {
                return Err(wrong(
                    format!("{text:?} has no TLS, and whoever is on the way would read tokens and secrets"),
                    "write https://; for development on 127.0.0.1 set loopback_without_tls = true",
                ));
            }
            if urls.iter().any(|other| other.origin() == url.origin()) {
                return Err(wrong(format!("{text:?} is there twice"), "name each once"));
            }
            urls.push(url);
        }
        if urls.iter().any(|url| url.scheme() == "https") && self.ca.is_none() {
            let remedy = "name the PEM file of the servers' authority; the host's own are not believed";
            return Err(ConfigError::new("ca", "it is missing", remedy));
        }
        Ok(urls)
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn check_jwt([mount, role, audience]: [&'static str; 3], jwt: &JwtLogin) -> Result<(), ConfigError> {
    check_path(mount, &jwt.mount)?;
    check_name(role, &jwt.role)?;
    check_visible(audience, &jwt.audience)
}

fn check_visible(field: &'static str, text: &str) -> Result<(), ConfigError> {
    if text.is_empty() || text.len() > 1024 || !text.bytes().all(|b| b.is_ascii_graphic()) {
        let reason = format!("{text:?} is empty, too long, or has other than visible ASCII characters");
        return Err(ConfigError::new(field, reason, "write it as Vault shows it"));
    }
    Ok(())
}

pub(super) fn check_name(field: &'static str, name: &str) -> Result<(), ConfigError> {
    if name.contains('/') {
        let reason = format!("{name:?} has a slash, and would be another path");
        return Err(ConfigError::new(field, reason, "write the name alone"));
    }
    check_path(field, name)
}

/// A path goes into a URL as it is: each segment is a name, and none leads elsewhere.
pub(super) fn check_path(field: &'static str, path: &str) -> Result<(), ConfigError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.@:+=,~ ".contains(&b);
    let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(plain) && s.trim() == s;
    if path.len() > NAME_BYTES_MAX * 2 || !path.split('/').all(segment) {
        let reason = format!("{path:?} is no path of Vault's");
        let remedy = "write names separated by single slashes, without one at either end, of letters, digits \
                      and -_.@:+=,~";
        return Err(ConfigError::new(field, reason, remedy));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "addresses = [\"https://a.example:8200\"]\nca = \"ca.pem\"\nlogin.jwt = { role = \"a\", \
                        audience = \"vault\" }\nstep.token_role = { name = \"s\" }\n";

    fn read(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|e| e.to_string())?;
        config.check().map_err(|e| e.to_string())?;
        Ok(config)
    }

    #[test]
    fn good_configuration_has_bounds_and_its_own_paths() {
        let config = read(GOOD).unwrap().based(Path::new("/etc/ampoule"));
        assert_eq!(config.ca.as_deref(), Some(Path::new("/etc/ampoule/ca.pem")));
        assert_eq!(
            (config.connect_timeout, config.timeout),
            (Duration::from_secs(2), Duration::from_secs(5))
        );
        assert_eq!(config.budget, Duration::from_secs(30));
        assert_eq!(
            read(&format!("timeout = \"1500ms\"\n{GOOD}")).unwrap().timeout,
            Duration::from_millis(1500)
        );
    }

    #[test]
    fn every_way_in_is_read() {
        let ways = [
            "approle = { role_id = \"r\", secret_id = \"s\", wrapped = \"auth/approle/role/a/secret-id\" }",
            "cert = { role = \"r\", certificate = \"c\", key = \"k\" }",
            "kubernetes = { role = \"r\" }",
            "token = { file = \"t\" }",
        ];
        for way in ways {
            let text = GOOD.replace("jwt = { role = \"a\", audience = \"vault\" }", way);
            assert!(text.contains(way));
            let config = read(&text).unwrap().based(Path::new("/x"));
            assert!(!format!("{:?}", config.login).contains("\"s\""), "a path was not based: {config:?}");
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        let plain = GOOD.replace("https://a.example:8200", "http://127.0.0.1:8200");
        assert!(read(&format!("loopback_without_tls = true\n{plain}")).is_ok());
        let cases = [
            (plain.as_str(), "addresses: "),
            (
                &format!("loopback_without_tls = true\n{}", plain.replace("127.0.0.1", "10.0.0.1")),
                "addresses: ",
            ),
            (
                &format!("loopback_without_tls = true\n{}", plain.replace("127.0.0.1", "localhost")),
                "addresses: ",
            ),
            (&GOOD.replace(":8200", ":8200/vault"), "addresses: "),
            (&GOOD.replace("https://", "https://u:p@"), "addresses: "),
            (&GOOD.replace("[\"https", "[\"https://a.example:8200\", \"https"), "addresses: "),
            (&GOOD.replace("ca = \"ca.pem\"\n", ""), "ca: "),
            (&GOOD.replace("\"a\"", "\"../a\""), "login.jwt.role: "),
            (&GOOD.replace("\"s\"", "\"s/../../root\""), "step.token_role.name: "),
            (&format!("namespace = \"a/../b\"\n{GOOD}"), "namespace: "),
            (&format!("budget = \"1s\"\n{GOOD}"), "budget: "),
            (&format!("timeout = \"5\"\n{GOOD}"), "timeout"),
            (&format!("skip_verify = true\n{GOOD}"), "skip_verify"),
            (&GOOD.replace("audience", "aud"), "aud"),
        ];
        for (text, field) in cases {
            let error = read(text).unwrap_err();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn path_stays_the_path_that_was_written() {
        for good in ["a", "app/npm publish", "a-b_c.d/e:f", "x/@y"] {
            assert!(check_path("path", good).is_ok(), "{good}");
        }
        for wrong in ["", "/a", "a/", "a//b", "a/./b", "..", "a?b", "a#b", "a%2fb", "a\n", "ä", " a", "a\\b"]
        {
            assert!(check_path("path", wrong).is_err(), "{wrong}");
        }
    }
}
