//! An issuer's public keys: read when they are needed, kept for a while, and read again when a key is not among them.

use super::file::KeySource;
use crate::files::read_operators;
use futures_util::StreamExt;
use jsonwebtoken::jwk::{Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::Instant;

/// The largest key set, in bytes.
const BYTES_MAX: usize = 256 << 10;
/// The most keys of one issuer.
const KEYS_MAX: usize = 64;
/// After so long keys are read again before they are used.
const FRESH: Duration = Duration::from_secs(600);
/// Keys that could not be read again are used for so long: an issuer that is away for a moment must not stop everything.
const STALE_MAX: Duration = Duration::from_secs(3600);
/// Reads are so far apart, whatever tokens say: whoever invents key ids causes no storm.
const BETWEEN: Duration = Duration::from_secs(30);
/// How long an issuer may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What fetches a key set from an https URL.
pub trait FetchKeys: Send + Sync + 'static {
    /// At most `bytes_max` bytes of what is there; an error for people otherwise.
    fn fetch<'a>(
        &'a self,
        url: &'a str,
        bytes_max: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send + 'a>>;
}

/// Asks by https, without a proxy and without following anybody elsewhere. The URL is the operator's, and nobody else's.
#[derive(Debug, Clone)]
pub struct Fetch(reqwest::Client);

impl Fetch {
    /// A client that trusts the host's authorities, or these (PEM) alone.
    ///
    /// # Errors
    /// If the authorities are none.
    pub fn new(authorities: Option<&[u8]>) -> Result<Self, String> {
        let mut builder = reqwest::Client::builder()
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(ANSWER);
        if let Some(pem) = authorities {
            let certificates = reqwest::Certificate::from_pem_bundle(pem).map_err(|e| e.to_string())?;
            builder = builder.tls_certs_only(certificates);
        }
        builder.build().map(Self).map_err(|e| e.to_string())
    }
}

impl FetchKeys for Fetch {
    fn fetch<'a>(
        &'a self,
        url: &'a str,
        bytes_max: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send + 'a>> {
        Box::pin(async move {
            let answer = self.0.get(url).send().await.map_err(|e| crate::chain::chain(&e))?;
            if !answer.status().is_success() {
                return Err(format!("it answers {}", answer.status()));
            }
            let (mut bytes, mut parts) = (Vec::new(), answer.bytes_stream());
            while let Some(part) = parts.next().await {
                bytes.extend_from_slice(&part.map_err(|e| crate::chain::chain(&e))?);
                if bytes.len() > bytes_max {
                    return Err(format!("more than {bytes_max} bytes"));
                }
            }
            Ok(bytes)
        })
    }
}

#[derive(Default)]
struct Kept {
    keys: Option<(Arc<JwkSet>, Instant)>,
    tried: Option<Instant>,
}

/// The keys of one issuer.
pub(super) struct KeySet {
    source: KeySource,
    fetch: Arc<dyn FetchKeys>,
    kept: RwLock<Kept>,
    /// Held by who reads them again; who has a key that is known does not wait for it.
    reading: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySet").field("source", &self.source).finish_non_exhaustive()
    }
}

impl KeySet {
    pub(super) fn new(source: KeySource, fetch: Arc<dyn FetchKeys>) -> Self {
        Self { source, fetch, kept: RwLock::default(), reading: tokio::sync::Mutex::new(()) }
    }

    /// The key that a token names.
    ///
    /// # Errors
    /// For people: no keys, or none that fits.
    pub(super) async fn key(&self, id: Option<&str>, algorithm: Algorithm) -> Result<DecodingKey, String> {
        if let Some((keys, true)) = self.usable()
            && let Some(key) = pick(&keys, id, algorithm)
        {
            return DecodingKey::from_jwk(key).map_err(|e| e.to_string());
        }
        let failed = self.read_again().await.err();
        let Some((keys, _)) = self.usable() else {
            return Err(format!(
                "there are no keys: {}",
                failed.unwrap_or_else(|| "not read lately".to_owned())
            ));
        };
        let key = pick(&keys, id, algorithm).ok_or("none of the issuer's keys is meant by it")?;
        DecodingKey::from_jwk(key).map_err(|e| e.to_string())
    }

    /// The keys, and whether they are fresh; none if they are too old for use.
    fn usable(&self) -> Option<(Arc<JwkSet>, bool)> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let (keys, at) = kept.keys.as_ref()?;
        let age = at.elapsed();
        (age < STALE_MAX).then(|| (Arc::clone(keys), age < FRESH))
    }

    async fn read_again(&self) -> Result<(), String> {
        let _reading = self.reading.lock().await;
        {
            let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
            if kept.tried.is_some_and(|tried| tried.elapsed() < BETWEEN) {
                return Err("they were asked for a moment ago".to_owned());
            }
            kept.tried = Some(Instant::now());
        }
        let bytes = match &self.source {
            KeySource::Https(url) => self.fetch.fetch(url, BYTES_MAX).await,
            KeySource::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || read_operators(&path)).await;
                let read = read.map_err(|e| e.to_string()).and_then(|read| read.map_err(|e| e.reason));
                read.map(String::into_bytes)
            }
        };
        let keys = bytes.and_then(|bytes| parse(&bytes));
        match keys {
            Ok(keys) => {
                let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
                kept.keys = Some((Arc::new(keys), Instant::now()));
                Ok(())
            }
            Err(reason) => {
                tracing::warn!(source = ?self.source, reason, "an issuer's keys cannot be read");
                Err(reason)
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Result<JwkSet, String> {
    let keys: JwkSet = serde_json::from_slice(bytes).map_err(|e| format!("no key set: {e}"))?;
    if keys.keys.is_empty() || keys.keys.len() > KEYS_MAX {
        return Err(format!("a key set of {} keys; 1 to {KEYS_MAX}", keys.keys.len()));
    }
    Ok(keys)
}

/// The one key with this id, or the only one for a token that names none.
fn pick<'a>(keys: &'a JwkSet, id: Option<&str>, algorithm: Algorithm) -> Option<&'a Jwk> {
    let mut named = keys.keys.iter().filter(|key| match id {
        Some(id) => key.common.key_id.as_deref() == Some(id),
        None => keys.keys.len() == 1,
    });
    let (key, None) = (named.next()?, named.next()) else { return None };
    let is_for_signing = matches!(key.common.public_key_use, None | Some(PublicKeyUse::Signature));
    let is_for_it = key.common.key_algorithm.is_none_or(|of| of.to_string() == format!("{algorithm:?}"));
    (is_for_signing && is_for_it).then_some(key)
}

#[cfg(test)]
#[path = "jwks_tests.rs"]
mod tests;
