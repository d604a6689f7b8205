//! The two requests of git's smart HTTP protocol.

use super::fetch::GitPlace;
use crate::inputs::{Guard, InputError, parse_url};
use crate::sources::Purpose;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, Request, Response, StatusCode, Url};

type Result<T> = std::result::Result<T, InputError>;

const PROTOCOL: HeaderName = HeaderName::from_static("git-protocol");
const VERSION: HeaderValue = HeaderValue::from_static("version=2");
/// What the first answer's type is if a program answers, and not a plain file server.
const ADVERTISEMENT: &str = "application/x-git-upload-pack-advertisement";
const REQUEST: HeaderValue = HeaderValue::from_static("application/x-git-upload-pack-request");
const RESULT: &str = "application/x-git-upload-pack-result";
const LIST: &str = "/info/refs";

/// What asks: every request goes through the guard.
pub(super) struct Http<'a> {
    guard: &'a Guard,
}

impl<'a> Http<'a> {
    pub(super) fn new(guard: &'a Guard) -> Self {
        Self { guard }
    }

    /// Asks what a repository's server can do. The second value is where the repository lies in the end: as with git, only
    /// this first request may lead elsewhere.
    pub(super) async fn discover(&self, repository: &str) -> Result<(Response, String)> {
        let base = repository.trim_end_matches('/');
        let url = self.url(repository, &format!("{base}{LIST}?service=git-upload-pack"))?;
        let mut request = Request::new(Method::GET, url);
        request.headers_mut().insert(PROTOCOL, VERSION);
        let (response, url) = self.guard.send(Purpose::Git, request).await?;
        let response = expect(response, repository, ADVERTISEMENT)?;
        let end = url.as_str().split(['?', '#']).next().and_then(|url| url.strip_suffix(LIST));
        let base = end.ok_or_else(|| InputError::Denied {
            url: repository.to_owned(),
            reason: format!("a redirect to a place that does not end in {LIST} is not followed"),
        })?;
        Ok((response, base.to_owned()))
    }

    /// Sends a command.
    pub(super) async fn ask(&self, repository: &str, body: Vec<u8>) -> Result<Response> {
        let url = self.url(repository, &format!("{repository}/git-upload-pack"))?;
        let mut request = Request::new(Method::POST, url);
        request.headers_mut().insert(PROTOCOL, VERSION);
        request.headers_mut().insert(CONTENT_TYPE, REQUEST);
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(RESULT));
        *request.body_mut() = Some(body.into());
        let (response, _) = self.guard.send(Purpose::Git, request).await?;
        expect(response, repository, RESULT)
    }

    /// That a submodule of a stranger's is not fetched by what the operator has given for another place than its parent's:
    /// the job file does not name it, and what it holds is nobody's to show to that job.
    ///
    /// # Errors
    /// Why it is not, with the remedy.
    pub(super) fn keeps_credentials(&self, parent: &GitPlace, url: &str) -> std::result::Result<(), String> {
        let Ok(to) = parse_url(url) else { return Ok(()) };
        let parent = match parent {
            GitPlace::Url(parent) => parse_url(parent).ok(),
            GitPlace::Path(_) => None,
        };
        let same = parent.is_some_and(|parent| parent.origin() == to.origin());
        match self.guard.credential(Purpose::Git, &to) {
            Ok(Some(_)) if !same => Err(format!(
                "a submodule at {} would be fetched with credentials that were given for another repository; write \
                 submodules = false and name it as an input of its own",
                to.origin().ascii_serialization()
            )),
            _ => Ok(()),
        }
    }

    fn url(&self, repository: &str, url: &str) -> Result<Url> {
        let shown = || repository.chars().take(200).collect();
        let url = parse_url(url).map_err(|reason| InputError::Url { url: shown(), reason })?;
        match url.scheme() {
            "http" | "https" => Ok(url),
            scheme => {
                let reason = format!("a repository is not fetched by {scheme}; give an https URL");
                Err(InputError::Url { url: shown(), reason })
            }
        }
    }
}

/// An answer of git's, or why there is none.
fn expect(response: Response, repository: &str, wanted: &str) -> Result<Response> {
    let what = repository.to_owned();
    let status = response.status();
    let later = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    match status {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let reason = format!(
                "the server answered {}: it does not have the repository, or wants to know who asks",
                status.as_u16()
            );
            return Err(InputError::Missing { what, reason });
        }
        _ if status.is_client_error() && !later => {
            return Err(InputError::Missing {
                what,
                reason: format!("the server answered {}", status.as_u16()),
            });
        }
        _ => {
            let reason = format!("the server answered {}", status.as_u16());
            return Err(InputError::Unreachable { url: what, reason, source: None });
        }
    }
    let found = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    if found.is_some_and(|found| found.split(';').next().unwrap_or_default().trim() == wanted) {
        return Ok(response);
    }
    let reason =
        "the server does not speak git's smart HTTP protocol; is this the URL that `git clone` takes?";
    Err(InputError::Refused { what, reason: reason.to_owned() })
}
