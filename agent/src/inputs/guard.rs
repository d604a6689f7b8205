//! The guarded client: the only way in which this process asks the network for anything.
//!
//! What is guaranteed: nothing is asked, not even by opening a connection, unless the operator's policy admits the URL, and
//! the address that is connected to is one that was looked at: the names are resolved by the client's own resolver, which
//! hands on either allowed addresses or none. Every redirect is looked at like a first URL, and what one origin is shown is
//! shown to no other.

mod credential;
mod resolve;

pub use resolve::{Lookup, SystemLookup};

use super::error::InputError;
use super::url::{check, without_query};
use crate::sources::{Origin, Policy, Purpose, public};
use reqwest::header::{
    AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue, LOCATION, PROXY_AUTHORIZATION,
};
use reqwest::{Certificate, Client, Method, Request, Response, StatusCode, Url, redirect};
use resolve::{DeniedAddress, GuardedResolver};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How many redirects are followed.
const REDIRECTS_MAX: usize = 5;

/// The bounds of a guarded client.
#[derive(Debug, Clone, Copy)]
pub struct GuardOptions {
    /// How long a connection may take to open, the name's resolution included.
    pub connect_timeout: Duration,
    /// How long the source may be silent.
    pub read_timeout: Duration,
}

impl Default for GuardOptions {
    /// 10 s to connect, 60 s of silence.
    fn default() -> Self {
        Self { connect_timeout: Duration::from_secs(10), read_timeout: Duration::from_secs(60) }
    }
}

/// Asks origins that the policy admits. Uses no proxy and no cookie, and of the environment only `SSL_CERT_FILE` and
/// `SSL_CERT_DIR`, which the TLS library reads to find the host's certificate authorities.
pub struct Guard {
    policy: Policy,
    options: GuardOptions,
    lookup: Arc<dyn Lookup>,
    /// One for each origin (none: for those that are not listed) and kind of connection. A client of its own has
    /// addresses and authorities of its own.
    clients: Mutex<BTreeMap<(Option<String>, bool), Client>>,
}

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard")
            .field("policy", &self.policy)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Guard {
    /// A guard of this policy that resolves names as the host does.
    pub fn new(policy: Policy, options: GuardOptions) -> Self {
        Self::with_lookup(policy, options, Arc::new(SystemLookup))
    }

    /// A guard that resolves names otherwise.
    pub fn with_lookup(policy: Policy, options: GuardOptions, lookup: Arc<dyn Lookup>) -> Self {
        Self { policy, options, lookup, clients: Mutex::default() }
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether a URL may be asked, as far as its text says, and as which origin (none: as one that is not listed). Asks
    /// nobody, not even for the addresses of a name: those are looked at when it is connected to.
    ///
    /// # Errors
    /// `job.invalid` for what is no URL of the network, else `input.source_denied` with rule and remedy.
    pub fn check(&self, purpose: Purpose, url: &Url) -> Result<Option<&Origin>, InputError> {
        let wrong = |reason: String| InputError::Url { url: without_query(url), reason };
        check(url).map_err(wrong)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(format!("the scheme {:?} is not one of the network", url.scheme())));
        }
        let denied = |reason: String| InputError::Denied { url: without_query(url), reason };
        let origin = self.policy.admit(purpose, url).map_err(denied)?;
        if let Some(address) = literal(url) {
            may_have(origin, address).map_err(|kind| {
                denied(format!("the address is {kind}; {}", self.policy.address_remedy(origin, purpose, url)))
            })?;
        }
        Ok(origin)
    }

    /// The client for a URL, after [`check`](Self::check). It follows no redirect, and connects to no address that this
    /// URL's origin may not have: use it for nothing else.
    ///
    /// # Errors
    /// Those of [`check`](Self::check); `file.unusable` if the certificate authorities cannot be read.
    pub fn client(&self, purpose: Purpose, url: &Url) -> Result<Client, InputError> {
        let origin = self.check(purpose, url)?;
        let secure = url.scheme() == "https";
        let key = (origin.map(|origin| origin.name.clone()), secure);
        if let Some(client) = self.clients.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(client.clone());
        }
        let client = self.build(origin, secure)?;
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).insert(key, client.clone());
        Ok(client)
    }

    fn build(&self, origin: Option<&Origin>, secure: bool) -> Result<Client, InputError> {
        // reqwest's `rustls` feature brings aws-lc-rs as its provider when no default is installed.
        let mut builder = Client::builder();
        if !secure {
            // It knows no certificate authority and needs none.
            builder = builder.tls_certs_only(std::iter::empty());
        } else if let Some(file) = origin.and_then(|origin| origin.ca.as_ref()) {
            let wrong = |reason: String| InputError::File {
                what: format!("the certificate authorities in {}", file.display()),
                source: std::io::Error::other(reason),
            };
            let pem = std::fs::read(file).map_err(|e| wrong(e.to_string()))?;
            let authorities = Certificate::from_pem_bundle(&pem).map_err(|e| wrong(e.to_string()))?;
            if authorities.is_empty() {
                return Err(wrong("no certificate in PEM form is in it".to_owned()));
            }
            builder = builder.tls_certs_only(authorities);
        }
        builder
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            // A connection that is used again may just be closing, which no one could tell from a failure.
            .pool_max_idle_per_host(0)
            .referer(false)
            .user_agent(concat!("ampoule/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.options.connect_timeout)
            .read_timeout(self.options.read_timeout)
            .dns_resolver(Arc::new(GuardedResolver::new(Arc::clone(&self.lookup), origin.cloned())))
            .build()
            .map_err(|source| InputError::Client { source })
    }

    /// Sends a request and follows redirects of GET and HEAD, each looked at like a first URL: at most five, never
    /// from `https` to `http`. Adds what the origin knows us by, unless the request brings that header itself. Any status
    /// that is no such redirect is handed on, with the URL that answered.
    ///
    /// # Errors
    /// [`InputError`]; `input.source_denied` before a byte is sent to whom it concerns.
    pub async fn send(&self, purpose: Purpose, request: Request) -> Result<(Response, Url), InputError> {
        self.send_as(purpose, request, true).await
    }

    /// As [`send`](Self::send), without what the origin knows us by: for a request that a stranger has sent us to, and
    /// whose answer it will see.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_unknown(
        &self,
        purpose: Purpose,
        request: Request,
    ) -> Result<(Response, Url), InputError> {
        self.send_as(purpose, request, false).await
    }

    async fn send_as(
        &self,
        purpose: Purpose,
        request: Request,
        known: bool,
    ) -> Result<(Response, Url), InputError> {
        let start = without_query(request.url());
        let follows = matches!(*request.method(), Method::GET | Method::HEAD);
        let mut next = request;
        let mut from = None;
        for _ in 0..=REDIRECTS_MAX {
            let url = next.url().clone();
            let client = self.client(purpose, &url).map_err(|e| led_by(from.as_ref(), e))?;
            let again = if follows { next.try_clone() } else { None };
            let credential = if known { self.credential(purpose, &url)? } else { None };
            if let Some((name, value)) = credential
                && !next.headers().contains_key(&name)
            {
                next.headers_mut().insert(name, value);
            }
            let response = client.execute(next).await;
            let response = response.map_err(|e| led_by(from.as_ref(), self.failed(purpose, &url, e)))?;
            let Some(mut again) = again.filter(|_| is_redirect(response.status())) else {
                return Ok((response, url));
            };
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let to = redirected(&url, location)?;
            if to.origin() != url.origin() {
                forget_secrets(again.headers_mut());
            }
            *again.url_mut() = to;
            next = again;
            from = Some(url);
        }
        Err(unreachable(&start, format!("more than {REDIRECTS_MAX} redirects"), None))
    }

    /// The header by which the origin of a URL knows us. [`send`](Self::send) adds it by itself.
    ///
    /// # Errors
    /// Those of [`check`](Self::check); `file.unusable` if the file that holds it cannot be read.
    pub fn credential(
        &self,
        purpose: Purpose,
        url: &Url,
    ) -> Result<Option<(HeaderName, HeaderValue)>, InputError> {
        let origin = self.check(purpose, url)?;
        origin.and_then(|origin| origin.auth.as_ref()).map(credential::header).transpose()
    }

    /// Why a request has no answer.
    fn failed(&self, purpose: Purpose, url: &Url, error: reqwest::Error) -> InputError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(here) = cause {
            if let Some(denied) = here.downcast_ref::<DeniedAddress>() {
                return self.denied(purpose, url, denied);
            }
            cause = here.source();
        }
        let reason = if error.is_timeout() { "no answer in time" } else { "cannot be reached" };
        unreachable(&without_query(url), reason.to_owned(), Some(error))
    }

    fn denied(&self, purpose: Purpose, url: &Url, denied: &DeniedAddress) -> InputError {
        let origin = self.policy.admit(purpose, url).ok().flatten();
        let remedy = self.policy.address_remedy(origin, purpose, url);
        InputError::Denied { url: without_query(url), reason: format!("{denied}; {remedy}") }
    }
}

/// The address in a URL's place of a host.
fn literal(url: &Url) -> Option<IpAddr> {
    match url.host()? {
        url::Host::Ipv4(address) => Some(address.into()),
        url::Host::Ipv6(address) => Some(address.into()),
        url::Host::Domain(_) => None,
    }
}

fn may_have(origin: Option<&Origin>, address: IpAddr) -> Result<(), crate::sources::Forbidden> {
    origin.map_or_else(|| public(address), |origin| origin.may_have(address))
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    )
}

/// Says who has led to a place that is denied.
fn led_by(from: Option<&Url>, error: InputError) -> InputError {
    match (from, error) {
        (Some(from), InputError::Denied { url, reason }) => {
            let reason = format!("a redirect to {url} is not followed: {reason}");
            InputError::Denied { url: without_query(from), reason }
        }
        (_, error) => error,
    }
}

/// Takes out of a request what was meant for the origin before.
fn forget_secrets(headers: &mut HeaderMap) {
    let secret: Vec<HeaderName> = headers
        .iter()
        .filter(|(name, value)| {
            value.is_sensitive() || [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION].contains(name)
        })
        .map(|(name, _)| name.clone())
        .collect();
    for name in secret {
        headers.remove(name);
    }
}

/// Where a redirect leads, if its text may be followed.
fn redirected(from: &Url, location: Option<&str>) -> Result<Url, InputError> {
    let denied = |reason: String| InputError::Denied { url: without_query(from), reason };
    let location = location.ok_or_else(|| denied("a redirect without a readable Location".to_owned()))?;
    let to = from.join(location).map_err(|e| denied(format!("a redirect to no URL: {e}")))?;
    check(&to).map_err(|reason| denied(format!("a redirect is not followed: {reason}")))?;
    match (from.scheme(), to.scheme()) {
        ("http", "http") | (_, "https") => Ok(to),
        ("https", "http") => Err(denied(format!("a redirect from https to {}", without_query(&to)))),
        (_, scheme) => Err(denied(format!("a redirect to the scheme {scheme:?} is not followed"))),
    }
}

/// The error for a source that does not answer, or not completely.
pub(super) fn unreachable(url: &str, reason: String, cause: Option<reqwest::Error>) -> InputError {
    // reqwest repeats the URL, query included.
    let source = cause.map(|e| Box::new(e.without_url()) as Box<dyn std::error::Error + Send + Sync>);
    InputError::Unreachable { url: url.to_owned(), reason, source }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
