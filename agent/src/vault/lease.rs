//! Leases: what Vault takes back by itself when their time is over, and at once when it is asked to.

use super::Vault;
use super::answer::{Answer, life};
use super::call::Call;
use super::config::{ConfigError, check_path};
use super::error::VaultError;
use super::token::without;
use super::value::Data;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// The longest lease id, in bytes: a path and a random part.
const ID_BYTES_MAX: usize = 1024;
/// How much shorter than asked a grant may be: Vault rounds down and counts from when it began.
const SLACK: Duration = Duration::from_secs(2);

/// The name of a lease. No secret: it reads nothing, and goes into the journal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LeaseId(String);

impl LeaseId {
    /// Takes one over: 1 to 1024 visible ASCII characters and spaces.
    pub fn new(text: String) -> Option<Self> {
        let fits = (1..=ID_BYTES_MAX).contains(&text.len());
        (fits && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic())).then_some(Self(text))
    }

    /// It.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for LeaseId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::new(text).ok_or("no name of a lease")
    }
}

impl From<LeaseId> for String {
    fn from(id: LeaseId) -> Self {
        id.0
    }
}

/// A lease as it was given with a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// How long it runs from when it was given.
    pub duration: Duration,
    /// Whether it can be prolonged.
    pub renewable: bool,
}

/// What was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// How long from now.
    pub ttl: Duration,
    /// Whether it can be prolonged again.
    pub renewable: bool,
}

impl Renewed {
    /// Whether it is what was asked for. Vault caps in silence (200 and a warning).
    pub fn covers(&self, asked: Duration) -> bool {
        self.ttl.saturating_add(SLACK) >= asked
    }
}

/// How a revocation ended: in both cases it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// The server has done it (or knew nothing of it and did not say so).
    Now,
    /// The server says that it knows nothing of it.
    Unknown,
}

/// What is known of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseInfo {
    /// How long it runs.
    pub ttl: Duration,
    /// Whether it can be prolonged.
    pub renewable: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    lease_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    increment: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sync: Option<bool>,
}

impl Body<'_> {
    fn of(id: &LeaseId) -> Body<'_> {
        Body { lease_id: id.as_str(), increment: None, sync: None }
    }
}

impl Vault {
    /// Prolongs a lease to `increment` from now.
    ///
    /// # Errors
    /// [`VaultError`]; [`VaultError::Refused`] if it has ended or cannot be prolonged.
    pub async fn renew_lease(&self, id: &LeaseId, increment: Duration) -> Result<Renewed, VaultError> {
        let doing = "prolonging a lease";
        let body = Body { increment: Some(increment.as_secs().max(1)), ..Body::of(id) };
        let reply = self.own(doing, &Call::post("sys/leases/renew".to_owned(), &body)).await?;
        let answer: Answer = reply.parse(doing)?;
        let ttl = answer.lease_duration.ok_or_else(|| without(doing, "lease_duration"))?;
        Ok(Renewed { ttl: life(ttl), renewable: answer.renewable.unwrap_or(false) })
    }

    /// Ends a lease, and comes back when its backend has taken it back. A lease that is none has ended: the server says so by
    /// success. (A 404 is said by who does not know the call, as a proxy or a namespace that is none.)
    ///
    /// # Errors
    /// [`VaultError`]: the lease stays (its backend is away, for example), and the server tries again for a while; try
    /// again.
    pub async fn revoke_lease(&self, id: &LeaseId) -> Result<Revoked, VaultError> {
        let doing = "revoking a lease";
        let body = Body { sync: Some(true), ..Body::of(id) };
        match self.own(doing, &Call::post("sys/leases/revoke".to_owned(), &body)).await {
            Ok(_) => Ok(Revoked::Now),
            Err(error) => Err(error),
        }
    }

    /// What a lease is. None: there is none of that name any more.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn lookup_lease(&self, id: &LeaseId) -> Result<Option<LeaseInfo>, VaultError> {
        let doing = "looking up a lease";
        let call = Call::post("sys/leases/lookup".to_owned(), &Body::of(id));
        let reply = match self.own(doing, &call).await {
            Ok(reply) => reply,
            Err(VaultError::Missing { .. }) => return Ok(None),
            Err(VaultError::Refused { status: 400, detail, .. })
                if detail.shown().contains("invalid lease") =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let data: Data = reply.parse(doing)?.data.ok_or_else(|| without(doing, "data"))?;
        let renewable = data.field("renewable").is_some_and(|flag| flag.expose() == b"true");
        Ok(Some(LeaseInfo { ttl: life(data.number("ttl").unwrap_or(0)), renewable }))
    }

    /// The leases below a prefix such as `database/creds/app`, by the last part of their names. Needs `sudo` on
    /// `sys/leases/lookup/`, which the agent does not need otherwise.
    ///
    /// # Errors
    /// [`VaultError`].
    pub async fn leases_below(&self, prefix: &str) -> Result<Vec<String>, VaultError> {
        let doing = "listing leases";
        check_path("prefix", prefix).map_err(|e: ConfigError| VaultError::from(e))?;
        let reply = match self.own(doing, &Call::list(format!("sys/leases/lookup/{prefix}"))).await {
            Err(VaultError::Missing { .. }) => return Ok(Vec::new()),
            other => other?,
        };
        let found: Keys = reply.parse(doing)?.data.ok_or_else(|| without(doing, "data"))?;
        Ok(found.keys)
    }
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grant_that_was_capped_does_not_cover_what_was_asked() {
        let renewed = |seconds| Renewed { ttl: Duration::from_secs(seconds), renewable: true };
        assert!(renewed(59).covers(Duration::from_secs(60)));
        assert!(!renewed(57).covers(Duration::from_secs(60)));
    }

    #[test]
    fn names_of_leases_are_bounded() {
        assert!(LeaseId::new("database/creds/app/x y".to_owned()).is_some());
        assert!(LeaseId::new(String::new()).is_none() && LeaseId::new("a\n".to_owned()).is_none());
        assert!(LeaseId::new("a".repeat(1025)).is_none());
    }
}
