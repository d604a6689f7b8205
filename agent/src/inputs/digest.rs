//! The digest of what a URL gives now, for `ampoule pin`: whoever asks believes the answer.

use super::error::InputError;
use super::fetch::{Fetched, Fetcher, scratch};
use super::mirrors::passes_over;
use super::url::without_query;
use crate::sources::Purpose;
use ampoule_spec::Sha256;
use reqwest::Url;
use std::fs::OpenOptions;

impl Fetcher {
    /// Downloads from the first of the URL's [places](Self::places) that has it, and keeps the digest alone. Whoever asks
    /// believes that place.
    ///
    /// # Errors
    /// Those of [`places`](Self::places) and of a download; `input.source_denied` for an `http` URL that the operator does
    /// not list, because anybody on the way could choose the bytes that are pinned.
    pub async fn digest(&self, url: &str, mirrors: &[String]) -> Result<(Sha256, Fetched), InputError> {
        let mut first = None;
        for place in self.places(url, mirrors)? {
            if place.scheme() == "http" && self.guard().check(Purpose::Http, &place)?.is_none() {
                return Err(InputError::unpinnable(&place));
            }
            let nowhere = OpenOptions::new().write(true).open("/dev/null").map_err(scratch)?;
            match self.take(place, &nowhere).await {
                Err(error) if passes_over(&error) => drop(first.get_or_insert(error)),
                other => return other,
            }
        }
        Err(first.unwrap_or_else(|| InputError::Missing {
            what: url.to_owned(),
            reason: "no place has it".to_owned(),
        }))
    }
}

impl InputError {
    /// Nothing is pinned over plain `http` from who is not listed.
    pub(crate) fn unpinnable(url: &Url) -> Self {
        Self::Denied {
            url: without_query(url),
            reason: "nothing is pinned over plain http: anybody on the way could choose what; use https, list the origin in \
                     a sources file, or look yourself and write the digest"
                .to_owned(),
        }
    }
}
