//! The workload identity: a token for each step, signed with a key of the agent's own, by which a server knows the step and not the agent.
//!
//! Keys lie in a directory of the agent's, 0600, and never leave it. The next one is made and published a week before anything is signed
//! with it, and the one before is published until nothing that it has signed is valid any more.

use crate::local::Place;
use crate::signing::{SigningError, create_private, read_private};
use crate::vault::Secret;
use ampoule_spec::{JobId, Name};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// How long a token is valid, in seconds.
const VALID_S: u64 = 300;
/// How far clocks may be apart, in seconds: a token is valid from so long ago.
const SKEW_S: u64 = 10;
/// A key signs for so long, in seconds: 90 days.
const SIGNS_S: u64 = 90 * DAY_S;
/// A key is published for so long before it signs: whoever copies keys by hand has a week.
const LEAD_S: u64 = 7 * DAY_S;
/// A key is published for so long after the next one signs.
const AFTER_S: u64 = DAY_S;
const DAY_S: u64 = 86_400;
/// The published keys, in the directory.
const JWKS: &str = "jwks.json";
/// The most keys of a directory that are read.
const KEYS_MAX: usize = 16;

/// What a token says of a step.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// The job.
    pub job: &'a JobId,
    /// The step's name.
    pub step: &'a Name,
    /// The job's project.
    pub project: &'a Name,
    /// The job's profile.
    pub profile: &'a Name,
    /// Who has submitted it.
    pub caller: &'a str,
    /// For which ref the caller's own token was given, if it says so.
    pub reference: Option<&'a str>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: String,
    aud: &'a str,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
    #[serde(flatten)]
    of: Option<OfStep<'a>>,
}

/// What only the token of a step says.
#[derive(Serialize)]
struct OfStep<'a> {
    job: &'a str,
    step: &'a str,
    project: &'a str,
    profile: &'a str,
    caller: &'a str,
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    reference: Option<&'a str>,
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    typ: &'static str,
    kid: &'a str,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A key.
    #[error(transparent)]
    Key(#[from] SigningError),
    /// The directory.
    #[error("the directory {path} of the workload identity cannot be used")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The library refused.
    #[error("a token cannot be signed")]
    Sign,
}

/// A key, since when it is published (seconds since 1970), and its name.
struct Key {
    since: u64,
    kid: String,
    pair: EcdsaKeyPair,
}

/// The agent as an issuer of tokens.
pub struct Identity {
    dir: PathBuf,
    issuer: String,
    keys: RwLock<Arc<Vec<Key>>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// What is to be done about keys.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Another one is made.
    make: bool,
    /// Those that go, by since when they are published.
    remove: Vec<u64>,
    /// The one that signs, likewise; none: the one that is made.
    sign: Option<u64>,
}

/// Decides about keys that are published since these times, in order.
fn plan(since: &[u64], now: u64) -> Plan {
    let ripe = |at: &&u64| at.saturating_add(LEAD_S) <= now;
    // Of an agent that was away for long none has led: the first there is signs.
    let sign = since.iter().rev().find(ripe).or(since.first()).copied();
    let newest = since.last().copied();
    let make = newest.is_none_or(|at| at.saturating_add(SIGNS_S) <= now);
    let signs_since = sign.map_or(0, |at| at.saturating_add(LEAD_S));
    let over = signs_since.saturating_add(AFTER_S) <= now;
    let before = |at: &&u64| over && sign.is_some_and(|sign| **at < sign);
    Plan { make, remove: since.iter().filter(before).copied().collect(), sign }
}

impl Identity {
    /// Opens the keys below a directory, and makes the first one there. Blocks.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn open(dir: &Path, issuer: &str, now: u64) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::Directory { path: dir.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let this = Self { dir: dir.to_owned(), issuer: issuer.to_owned(), keys: RwLock::default() };
        this.look(now)?;
        Ok(this)
    }

    /// Makes the next key when it is time, and removes what is over. Blocks.
    ///
    /// # Errors
    /// [`IdentityError`]; the keys stay those before.
    pub fn look(&self, now: u64) -> Result<(), IdentityError> {
        let mut keys = self.read()?;
        let plan = plan(&keys.iter().map(|key| key.since).collect::<Vec<_>>(), now);
        if plan.make {
            let path = self.dir.join(format!("{now}.pem"));
            let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
            create_private(&path, made.map_err(|_| IdentityError::Sign)?.as_ref())?;
            keys = self.read()?;
        }
        keys.retain(|key| !plan.remove.contains(&key.since));
        self.publish(&keys)?;
        for since in &plan.remove {
            // One that is left goes the next time.
            let _ = std::fs::remove_file(self.dir.join(format!("{since}.pem")));
        }
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    fn keys(&self) -> Arc<Vec<Key>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn read(&self) -> Result<Vec<Key>, IdentityError> {
        let failed = |source| IdentityError::Directory { path: self.dir.clone(), source };
        let mut keys = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(failed)?.take(KEYS_MAX) {
            let path = entry.map_err(failed)?.path();
            let since = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".pem")?.parse().ok());
            let Some(since) = since else { continue };
            let der = read_private(&path, 0o077)?;
            let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
                .map_err(|_| SigningError::Unusable { path, reason: "it is a key of another kind" })?;
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, pair.public_key().as_ref());
            let kid = URL_SAFE_NO_PAD.encode(digest.as_ref());
            keys.push(Key { since, kid, pair });
        }
        keys.sort_by_key(|key| key.since);
        Ok(keys)
    }

    fn publish(&self, keys: &[Key]) -> Result<(), IdentityError> {
        let failed = |source| IdentityError::Directory { path: self.dir.clone(), source };
        let text = jwks_of(keys);
        if std::fs::read(self.dir.join(JWKS)).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(());
        }
        Place::open(&self.dir).and_then(|dir| dir.replace(JWKS, text.as_bytes())).map_err(failed)
    }

    /// The public keys by which tokens verify: a JWK set (RFC 7517).
    pub fn jwks(&self) -> String {
        jwks_of(&self.keys())
    }

    /// A token for a step, valid for five minutes for one audience. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`IdentityError::Sign`].
    pub fn token(&self, of: &Workload<'_>, audience: &str, now: u64) -> Result<Secret, IdentityError> {
        // A server keeps an entity for each subject: one for each project, not for each step.
        let subject = format!("project:{}", of.project);
        let of = OfStep {
            job: of.job.as_str(),
            step: of.step.as_str(),
            project: of.project.as_str(),
            profile: of.profile.as_str(),
            caller: of.caller,
            reference: of.reference,
        };
        self.sign(subject, Some(of), audience, now)
    }

    /// A token of the agent's own, likewise.
    ///
    /// # Errors
    /// [`IdentityError::Sign`].
    pub fn agent_token(&self, audience: &str, now: u64) -> Result<Secret, IdentityError> {
        self.sign("ampoule:agent".to_owned(), None, audience, now)
    }

    fn sign(
        &self,
        sub: String,
        of: Option<OfStep<'_>>,
        audience: &str,
        now: u64,
    ) -> Result<Secret, IdentityError> {
        let keys = self.keys();
        let since = plan(&keys.iter().map(|key| key.since).collect::<Vec<_>>(), now).sign;
        let key = keys.iter().find(|key| Some(key.since) == since).ok_or(IdentityError::Sign)?;
        let claims = Claims {
            iss: &self.issuer,
            sub,
            aud: audience,
            iat: now,
            nbf: now.saturating_sub(SKEW_S),
            exp: now.saturating_add(VALID_S),
            jti: uuid::Uuid::now_v7().to_string(),
            of,
        };
        let header = Header { alg: "ES256", typ: "JWT", kid: &key.kid };
        let part = |json: Result<Vec<u8>, serde_json::Error>| {
            json.map(|bytes| URL_SAFE_NO_PAD.encode(bytes)).map_err(|_| IdentityError::Sign)
        };
        let text = format!("{}.{}", part(serde_json::to_vec(&header))?, part(serde_json::to_vec(&claims))?);
        let signature =
            key.pair.sign(&SystemRandom::new(), text.as_bytes()).map_err(|_| IdentityError::Sign)?;
        Ok(Secret::new(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)).into_bytes()))
    }
}

fn jwks_of(keys: &[Key]) -> String {
    let jwks = keys.iter().filter_map(|key| {
        // An uncompressed point (SEC 1): 4, and two numbers of 32 bytes.
        let (x, y) = key.pair.public_key().as_ref().get(1..)?.split_at_checked(32)?;
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        Some(serde_json::json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": key.kid, "x": x, "y": y,
        }))
    });
    format!("{}\n", serde_json::json!({ "keys": jwks.collect::<Vec<_>>() }))
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
