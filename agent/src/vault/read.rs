//! Reading: one call for one path, all fields of one lease together.

use super::Vault;
use super::answer::{Answer, life};
use super::call::Call;
use super::config::{check_name, check_path};
use super::error::{Detail, VaultError};
use super::fleet::Ask;
use super::lease::{Lease, LeaseId};
use super::token::{Token, without};
use super::value::Data;
use serde::Deserialize;
use std::collections::BTreeMap;

/// In place of the server's reason.
const UNTOLD: &str = "its reason may quote a secret and is not shown; ask the server the same by hand, with the role and parameters of `read`";

/// What is read. A TOML table of the operator's, such as `{ kv2 = { path = "ci/npm", version = 3 } }`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Read {
    /// A secret of a KV engine of version 1.
    Kv1 {
        /// Where the engine is.
        #[serde(default = "secret")]
        mount: String,
        /// The secret's path in it.
        path: String,
    },
    /// A secret of a KV engine of version 2.
    Kv2 {
        /// Where the engine is.
        #[serde(default = "secret")]
        mount: String,
        /// The secret's path in it.
        path: String,
        /// Its version; none: the newest.
        version: Option<u64>,
    },
    /// Credentials of a database, made for this lease.
    Database {
        /// Where the engine is.
        #[serde(default = "database")]
        mount: String,
        /// The engine's role.
        role: String,
    },
    /// A certificate and its key, made for this read.
    Pki {
        /// Where the engine is.
        #[serde(default = "pki")]
        mount: String,
        /// The engine's role.
        role: String,
        /// Parameters: `common_name`, `alt_names`, `ttl` and so on.
        #[serde(default)]
        parameters: BTreeMap<String, String>,
    },
    /// A credential for SSH.
    Ssh {
        /// Where the engine is.
        #[serde(default = "ssh")]
        mount: String,
        /// The engine's role.
        role: String,
        /// Which.
        kind: SshKind,
        /// Parameters: `ip`, `username`; `public_key`, `valid_principals` and so on.
        #[serde(default)]
        parameters: BTreeMap<String, String>,
    },
    /// Any path that answers with data.
    Path {
        /// It, below `/v1/`.
        path: String,
        /// How.
        #[serde(default)]
        method: Method,
        /// What is written, if something is.
        #[serde(default)]
        parameters: BTreeMap<String, String>,
    },
}

/// How a path is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// GET.
    #[default]
    Get,
    /// POST: engines that make something answer to that.
    Write,
}

/// What an SSH engine makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SshKind {
    /// A password for one login (`creds`).
    Otp,
    /// A signature on a public key (`sign`).
    Sign,
    /// A key pair and a certificate (`issue`).
    Issue,
}

/// What was read.
#[derive(Debug)]
pub struct Secrets {
    /// All fields.
    pub data: Data,
    /// The lease on them. None: nobody takes them back (KV; PKI without `generate_lease`).
    pub lease: Option<Lease>,
    /// The version, if the engine has versions: part of a cache's key, where the value is not.
    pub version: Option<u64>,
    /// When they end by themselves, in seconds since 1970, if the answer says so (certificates).
    pub expires_at: Option<u64>,
}

fn secret() -> String {
    "secret".to_owned()
}

fn database() -> String {
    "database".to_owned()
}

fn pki() -> String {
    "pki".to_owned()
}

fn ssh() -> String {
    "ssh".to_owned()
}

impl Read {
    /// The path below `/v1/`, for preflights, policies and audit logs.
    ///
    /// # Errors
    /// [`VaultError::Config`] if a part of it is no path of Vault's.
    pub fn path(&self) -> Result<String, VaultError> {
        let at = |mount: &str, middle: &str, name: &str| -> Result<String, VaultError> {
            check_path("mount", mount)?;
            check_name("role", name)?;
            Ok(format!("{mount}/{middle}/{name}"))
        };
        Ok(match self {
            Self::Kv1 { mount, path } => {
                check_path("mount", mount)?;
                check_path("path", path)?;
                format!("{mount}/{path}")
            }
            Self::Kv2 { mount, path, .. } => {
                check_path("mount", mount)?;
                check_path("path", path)?;
                format!("{mount}/data/{path}")
            }
            Self::Database { mount, role } => at(mount, "creds", role)?,
            Self::Pki { mount, role, .. } => at(mount, "issue", role)?,
            Self::Ssh { mount, role, kind, .. } => at(mount, kind.middle(), role)?,
            Self::Path { path, .. } => {
                check_path("path", path)?;
                path.clone()
            }
        })
    }

    /// Whether it makes something new each time it is read, so that it must be read once.
    pub fn is_dynamic(&self) -> bool {
        !matches!(self, Self::Kv1 { .. } | Self::Kv2 { .. })
    }

    fn call(&self) -> Result<(String, Call), VaultError> {
        let path = self.path()?;
        let call = match self {
            Self::Kv2 { version: Some(version), .. } => {
                Call::get(path.clone()).with_query(format!("version={version}"))
            }
            Self::Pki { parameters, .. }
            | Self::Ssh { parameters, .. }
            | Self::Path { method: Method::Write, parameters, .. } => Call::post(path.clone(), parameters),
            _ => Call::get(path.clone()),
        };
        Ok((path, call))
    }
}

impl SshKind {
    fn middle(self) -> &'static str {
        match self {
            Self::Otp => "creds",
            Self::Sign => "sign",
            Self::Issue => "issue",
        }
    }
}

impl Vault {
    /// Reads with a step's token. What is dynamic is made by this: a try that failed after it was sent may have left a
    /// lease, which ends with the token.
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::Missing`] says whether a version of KV v2 was deleted.
    pub async fn read(&self, token: &Token, what: &Read) -> Result<Secrets, VaultError> {
        let doing = "reading a secret";
        let (path, call) = what.call()?;
        let ask = Ask { doing, token: Some(token), once: false, budget: self.budget() };
        let reply = self.fleet.send(ask, &call).await?;
        if reply.status == 404 && matches!(what, Read::Kv2 { .. }) {
            // A deleted version has metadata.
            let deleted = reply.parse::<Data>(doing).is_ok_and(|answer| answer.data.is_some());
            let path = match what {
                Read::Kv2 { version: Some(version), .. } => format!("{path}?version={version}"),
                _ => path,
            };
            return Err(VaultError::Missing { doing, path, deleted, detail: Detail::default() });
        }
        if !reply.is_success() {
            // What an engine says about an error may quote what it was about to give.
            let mut error = reply.error(doing, &path, false);
            if let VaultError::Refused { detail, .. } = &mut error {
                *detail = Detail::from(UNTOLD.to_owned());
            }
            return Err(error);
        }
        let answer: Answer = reply.parse(doing)?;
        let lease = lease(doing, &answer)?;
        let mut data = answer.data.ok_or_else(|| without(doing, "data"))?;
        let (mut version, mut expires_at) = (None, data.number("expiration"));
        if let Read::Kv2 { .. } = what {
            expires_at = None;
            version = data.take_map("metadata").and_then(|metadata| metadata.number("version"));
            data = data.take_map("data").ok_or_else(|| without(doing, "data of KV v2"))?;
        }
        Ok(Secrets { data, lease, version, expires_at })
    }
}

/// An empty name means that there is none. (KV v1's duration is a hint, and no lease.)
fn lease(doing: &'static str, answer: &Answer) -> Result<Option<Lease>, VaultError> {
    let Some(name) = answer.lease_id.clone().filter(|id| !id.is_empty()) else { return Ok(None) };
    let id = LeaseId::new(name).ok_or_else(|| without(doing, "usable lease id"))?;
    Ok(Some(Lease {
        id,
        duration: life(answer.lease_duration.unwrap_or(0)),
        renewable: answer.renewable.unwrap_or(false),
    }))
}
