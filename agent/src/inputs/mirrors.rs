//! A download that is in several places: which are asked, and which bytes are taken.

use super::error::InputError;
use super::fetch::{Fetched, Fetcher, empty};
use super::url::{parse_url, without_query};
use crate::chain::chain;
use crate::sources::Purpose;
use ampoule_spec::{Code, Sha256};
use reqwest::Url;
use std::fs::File;
use std::io::Seek;

/// A place that was asked and did not give the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    /// The URL, without its query.
    pub url: String,
    /// What it did instead.
    pub code: Code,
    /// For people; names the URL.
    pub reason: String,
}

impl Fetcher {
    /// The places of a download in the order in which they are asked: the operator's mirrors, the URL, the job's mirrors.
    /// Asks nobody.
    ///
    /// The name in provenance is the URL: so it must be allowed itself, or be mirrored by the operator. It is not
    /// asked when it is only mirrored.
    ///
    /// # Errors
    /// `job.invalid` for what is no URL; `input.source_denied` if the URL or one of the job's mirrors is not allowed.
    pub fn places(&self, url: &str, mirrors: &[String]) -> Result<Vec<Url>, InputError> {
        let parse = |text: &str| {
            parse_url(text)
                .map_err(|reason| InputError::Url { url: text.chars().take(200).collect(), reason })
        };
        let start = parse(url)?;
        if start.scheme() == "file" {
            return Ok(vec![start]);
        }
        let mut places = self.guard().policy().mirrors(&start);
        for place in &places {
            self.guard().check(Purpose::Http, place)?;
        }
        match self.guard().check(Purpose::Http, &start) {
            Ok(_) => places.push(start),
            Err(error) if places.is_empty() => return Err(error),
            Err(_) => {}
        }
        for mirror in mirrors {
            let mirror = parse(mirror)?;
            self.guard().check(Purpose::Http, &mirror)?;
            if !places.contains(&mirror) {
                places.push(mirror);
            }
        }
        Ok(places)
    }

    /// Fetches a download into `into` from the first of its [places](Self::places) that gives the right bytes. The file
    /// is emptied first, stands at its beginning afterwards, and holds nothing after an error.
    ///
    /// A place that has nothing, does not answer or gives other bytes is added to `passed`, and the next one is asked. One
    /// that leads to where nothing may come from ends the download: that is not to be hidden by a mirror.
    ///
    /// # Errors
    /// Those of [`places`](Self::places) and [`fetch`](Self::fetch); if several places were asked in vain,
    /// [`InputError::Nowhere`], whose code is `input.digest_mismatch` if any of them gave other bytes.
    pub async fn fetch_any(
        &self,
        url: &str,
        mirrors: &[String],
        expected: &Sha256,
        into: &mut File,
        passed: &mut Vec<PassedOver>,
    ) -> Result<Fetched, InputError> {
        empty(into)?;
        let places = self.places(url, mirrors)?;
        let alone = places.len() == 1;
        let mut reasons = Vec::new();
        let mut code = Code::InputMissing;
        for (at, place) in places.into_iter().enumerate() {
            let shown = without_query(&place);
            let error = match self.fetch_parsed(place, expected, into).await {
                Ok(fetched) => {
                    into.rewind().map_err(super::fetch::scratch)?;
                    return Ok(Fetched { place: at, ..fetched });
                }
                Err(error) => error,
            };
            empty(into)?;
            if alone || !passes_over(&error) {
                return Err(error);
            }
            code = worse(code, error.code());
            let reason = chain(&error);
            reasons.push(reason.clone());
            passed.push(PassedOver { url: shown, code: error.code(), reason });
        }
        Err(InputError::Nowhere {
            url: url.split(['?', '#']).next().unwrap_or_default().to_owned(),
            code,
            reasons,
        })
    }
}

/// Whether the next place may be asked.
pub(super) fn passes_over(error: &InputError) -> bool {
    matches!(
        error,
        InputError::Missing { .. }
            | InputError::Unreachable { .. }
            | InputError::TooLarge { .. }
            | InputError::DigestMismatch { .. }
    )
}

/// Which of two failures counts: other bytes before anything, and one that may pass before one that will not.
fn worse(one: Code, other: Code) -> Code {
    let rank = |code| match code {
        Code::InputDigestMismatch => 3,
        Code::InputUnreachable => 2,
        Code::InputRefused => 1,
        _ => 0,
    };
    if rank(other) > rank(one) { other } else { one }
}
