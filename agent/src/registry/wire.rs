//! How requests to registries leave this process: through the guarded client, all of them.

use crate::inputs::{Guard, GuardOptions, InputError};
use crate::sources::{Policy, Purpose};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Request, Response, Url};

/// The way to registries.
#[derive(Debug)]
pub(crate) struct Wire {
    guard: Guard,
}

impl Wire {
    /// What this policy allows.
    pub(crate) fn new(policy: Policy) -> Self {
        Self { guard: Guard::new(policy, GuardOptions::default()) }
    }

    /// Whether the operator has listed a place, and not merely not forbidden it.
    pub(crate) fn is_listed(&self, url: &Url) -> bool {
        self.guard.check(Purpose::Registry, url).is_ok_and(|origin| origin.is_some())
    }

    /// What the operator has given for an origin in a header that a token service reads too.
    pub(crate) fn credential(&self, url: &Url) -> Result<Option<HeaderValue>, InputError> {
        let header = self.guard.credential(Purpose::Registry, url)?;
        Ok(header.filter(|(name, _)| *name == AUTHORIZATION).map(|(_, value)| value))
    }

    /// Sends a request. Redirects of reading ones are followed; each is looked at, and one that leaves its origin carries no
    /// credentials.
    pub(crate) async fn send(&self, request: Request) -> Result<Response, InputError> {
        self.guard.send(Purpose::Registry, request).await.map(|(response, _)| response)
    }

    /// As [`send`](Self::send), without what the operator has given for where it goes.
    pub(crate) async fn send_unknown(&self, request: Request) -> Result<Response, InputError> {
        self.guard.send_unknown(Purpose::Registry, request).await.map(|(response, _)| response)
    }
}
