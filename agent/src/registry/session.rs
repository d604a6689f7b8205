//! A conversation with one repository of a registry (OCI distribution-spec 1.1, over https).
//!
//! What is guaranteed: credentials go to the registry's own origin and to the token service that the registry
//! names, if that is on the registry's own host or listed for it; a request that is sent elsewhere by a redirect
//! carries none.

use super::Access;
use super::answer::{bounded, failed, unsent, within};
use super::auth_file::Credentials;
use super::challenge::{Challenge, challenges};
use super::reference::Reference;
use crate::inputs::InputError;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Method, Request, Response, StatusCode, Url};
use serde::Deserialize;
use zeroize::Zeroizing;

/// The largest answer of a token service, in bytes.
const TOKEN_BYTES_MAX: usize = 128 << 10;

/// What is to be done with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Pull,
    Push,
}

impl Purpose {
    fn actions(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        }
    }
}

/// A conversation with one repository.
#[derive(Debug)]
pub(crate) struct Session<'a> {
    access: &'a Access,
    reference: &'a Reference,
    purpose: Purpose,
    base: Url,
    credentials: Option<Credentials>,
    /// What the registry is shown, once it has asked for it. Never printed: marked as sensitive.
    authorization: Option<HeaderValue>,
}

impl<'a> Session<'a> {
    /// Begins a conversation; nothing is sent yet.
    pub(crate) fn new(
        access: &'a Access,
        reference: &'a Reference,
        purpose: Purpose,
    ) -> Result<Self, InputError> {
        let base = |scheme: &str| {
            Url::parse(&format!("{scheme}://{}/v2/{}/", reference.host, reference.repository))
                .map_err(|e| InputError::Url { url: reference.to_string(), reason: e.to_string() })
        };
        // Without TLS only where the operator has written so, and nothing else for the same place.
        let (secure, plain) = (base("https")?, base("http")?);
        let base =
            if access.wire.is_listed(&plain) && !access.wire.is_listed(&secure) { plain } else { secure };
        let credentials = match &access.auth {
            Some(file) => file.credentials(reference)?,
            None => None,
        };
        Ok(Self { access, reference, purpose, base, credentials, authorization: None })
    }

    pub(crate) fn reference(&self) -> &Reference {
        self.reference
    }

    /// The URL of something below the repository.
    pub(crate) fn url(&self, path: &str) -> Result<Url, InputError> {
        self.base
            .join(path)
            .map_err(|e| InputError::Url { url: self.reference.to_string(), reason: e.to_string() })
    }

    /// Whether a URL is on the registry's own origin.
    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// Sends a request that `make` makes, and once more with what the registry asks for, if it asks. `what` names
    /// it in errors.
    pub(crate) async fn send(
        &mut self,
        what: &str,
        url: Url,
        make: &(dyn Fn(Url) -> Result<Request, InputError> + Sync),
    ) -> Result<Response, InputError> {
        let response = self.ask(what, url.clone(), make).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let asked = challenges(response.headers());
        if !self.authorize(what, &asked).await? {
            return Err(failed(what, response, false).await);
        }
        let response = self.ask(what, url, make).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(failed(what, response, self.credentials.is_some()).await);
        }
        Ok(response)
    }

    /// The error of an answer that is no success.
    pub(crate) async fn refused(&self, what: &str, response: Response) -> InputError {
        failed(what, response, self.credentials.is_some()).await
    }

    /// Redirects are followed by whoever sends: each is looked at, and one that leaves the origin is shown nothing.
    async fn ask(
        &self,
        what: &str,
        url: Url,
        make: &(dyn Fn(Url) -> Result<Request, InputError> + Sync),
    ) -> Result<Response, InputError> {
        let mut request = make(url)?;
        // An upload's location may be elsewhere.
        if let Some(authorization) = self.authorization.as_ref().filter(|_| self.is_own(request.url())) {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        self.access.wire.send(request).await.map_err(|e| unsent(what, e))
    }

    /// Gets what the registry asks for. False: there is nothing to show it.
    async fn authorize(&mut self, what: &str, asked: &[Challenge]) -> Result<bool, InputError> {
        for challenge in asked {
            if let Challenge::Bearer { realm, service } = challenge {
                self.authorization = Some(self.token(what, realm, service.as_deref()).await?);
                return Ok(true);
            }
        }
        if !asked.contains(&Challenge::Basic) {
            return Ok(false);
        }
        match &self.credentials {
            Some(Credentials::Password { user, password }) => {
                self.authorization = Some(basic(user, password)?);
                Ok(true)
            }
            Some(Credentials::IdentityToken(_)) => {
                let reason =
                    "the credentials are an identity token, and the registry asks for a password".to_owned();
                Err(InputError::Denied { url: what.to_owned(), reason })
            }
            None => Ok(false),
        }
    }

    /// Whether the credentials may go to a token service.
    fn check_realm(&self, realm: &str) -> Result<Url, InputError> {
        let denied =
            |reason: String| Err(InputError::Denied { url: self.reference.repository_name(), reason });
        let Ok(url) = Url::parse(realm) else {
            return denied("the registry names a token service that is no URL".to_owned());
        };
        let bare = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
        if self.base.scheme() == "https" && url.scheme() != "https" {
            return denied("the registry sends its clients to a token service without TLS".to_owned());
        }
        // What a token is for is said below, and not by a registry about another one's service.
        if !self.is_own(&url) && url.query().is_some() {
            return denied("the registry names a token service elsewhere with a query of its own".to_owned());
        }
        if bare && (self.is_own(&url) || self.access.wire.is_listed(&url)) {
            return Ok(url);
        }
        let place = url.origin().ascii_serialization();
        denied(format!(
            "the registry sends its clients to {place} for a token, which is not its own host; if that is right, list it \
             in a sources file (--sources FILE): [origin.NAME] with url = \"{place}/\""
        ))
    }

    /// Gets a token (distribution's token specification; with a refresh token, its OAuth2 variant).
    async fn token(&self, what: &str, realm: &str, service: Option<&str>) -> Result<HeaderValue, InputError> {
        let mut url = self.check_realm(realm)?;
        let scope = format!("repository:{}:{}", self.reference.repository, self.purpose.actions());
        let what = format!("{what}, token of {}", url.origin().ascii_serialization());
        let service = service.map(|service| ("service", service));
        let request = match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                let fixed =
                    [("grant_type", "refresh_token"), ("client_id", "ampoule"), ("scope", scope.as_str())];
                let pairs = fixed.into_iter().chain(service).chain([("refresh_token", token.as_str())]);
                let mut form = url.clone();
                form.set_query(None);
                let body = form
                    .query_pairs_mut()
                    .extend_pairs(pairs)
                    .finish()
                    .query()
                    .unwrap_or_default()
                    .to_owned();
                let mut request = Request::new(Method::POST, url);
                let form = HeaderValue::from_static("application/x-www-form-urlencoded");
                request.headers_mut().insert(reqwest::header::CONTENT_TYPE, form);
                *request.body_mut() = Some(body.into());
                request
            }
            other => {
                url.query_pairs_mut().extend_pairs(service.into_iter().chain([("scope", scope.as_str())]));
                let shown = match other {
                    Some(Credentials::Password { user, password }) => Some(basic(user, password)?),
                    _ => self.access.wire.credential(&self.base)?,
                };
                let mut request = Request::new(Method::GET, url);
                if let Some(shown) = shown {
                    request.headers_mut().insert(AUTHORIZATION, shown);
                }
                request
            }
        };
        // A redirect is not followed: it would carry the credentials to where nobody has looked.
        // What the operator has given for another origin buys no token there that this registry would then see.
        let own = self.is_own(request.url());
        let wire = &self.access.wire;
        let asked = async {
            let sent = if own { wire.send(request).await } else { wire.send_unknown(request).await };
            let response = sent.map_err(|e| unsent(&what, e))?;
            if response.status() != StatusCode::OK {
                return Err(failed(&what, response, self.credentials.is_some()).await);
            }
            read_token(&what, response).await
        };
        within(&what, asked).await
    }
}

async fn read_token(what: &str, response: Response) -> Result<HeaderValue, InputError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        token: Option<Zeroizing<String>>,
        #[serde(default)]
        access_token: Option<Zeroizing<String>>,
    }
    let bad = || InputError::Unreachable {
        url: what.to_owned(),
        reason: "the token service answered without a token".to_owned(),
        source: None,
    };
    let bytes = Zeroizing::new(bounded(response, TOKEN_BYTES_MAX).await.ok().flatten().ok_or_else(bad)?);
    let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty()).ok_or_else(bad)?;
    sensitive(&Zeroizing::new(format!("Bearer {}", token.as_str()))).ok_or_else(bad)
}

fn basic(user: &str, password: &str) -> Result<HeaderValue, InputError> {
    use base64::Engine as _;
    let pair = Zeroizing::new(format!("{user}:{password}"));
    let coded = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(pair.as_bytes()));
    sensitive(&Zeroizing::new(format!("Basic {}", coded.as_str()))).ok_or_else(|| InputError::Refused {
        what: "the registry credentials".to_owned(),
        reason: "they cannot stand in a request".to_owned(),
    })
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
