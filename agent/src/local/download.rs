//! Downloads of a run, and what is remembered of where everything that was fetched came from.

use super::intake::{Intake, unusable};
use super::runner::Runner;
use super::watch::{Watch, Work};
use super::{Cancel, LocalError, Note};
use crate::block::with_runtime;
use crate::git::GitPlace;
use crate::inputs::{FetchOptions, Fetcher, InputError, PassedOver, scratch_file};
use crate::jobfile::{ArtifactPlace, ImagePlan, InputPlan, SourcePlan, git_url};
use crate::registry;
use crate::sources::{Policy, Purpose};
use crate::visits::{Memory, Source, Visit};
use ampoule_evidence::{AgentClaims, rfc3339};
use ampoule_spec::wire::Content;
use ampoule_spec::{Name, Sha256};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

type Result<T> = std::result::Result<T, LocalError>;

/// The claim that says where what was fetched came from.
const CLAIM: &str = "downloads";
/// What the image is called there, as in provenance: no input can have this name.
const IMAGE: &str = "image:oci";

/// Where something came from, and whether that was before this run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Came {
    pub(super) visit: Visit,
    pub(super) earlier: bool,
}

/// The same as it is claimed.
#[derive(Debug, serde::Serialize)]
struct Claimed<'a> {
    at: String,
    earlier: bool,
    from: &'a str,
}

/// What is said of a place at most: a server redirects to as long a name as it likes, and all claims are in one statement.
const FROM_BYTES_MAX: usize = 2 << 10;

impl<'a> From<&'a Came> for Claimed<'a> {
    fn from(came: &'a Came) -> Self {
        let from = &came.visit.from;
        let from = from.get(..from.floor_char_boundary(FROM_BYTES_MAX)).unwrap_or_default();
        Self { at: rfc3339(came.visit.at), earlier: came.earlier, from }
    }
}

fn source(place: &reqwest::Url, sha256: &Sha256) -> Source {
    Source::Http { url: place.to_string(), sha256: *sha256 }
}

/// What is downloaded for one run.
#[derive(Debug)]
pub(super) struct Downloads {
    fetcher: Fetcher,
    policy: Policy,
    cancel: Cancel,
    watch: Watch,
    /// Of the input at hand.
    passed: RefCell<Vec<PassedOver>>,
    last: RefCell<Option<Came>>,
    /// Where each input that was fetched came from in the end, and the image.
    from: RefCell<BTreeMap<String, Came>>,
    memory: Arc<dyn Memory>,
}

impl Downloads {
    pub(super) fn new(with: &Intake) -> Self {
        Self {
            fetcher: Fetcher::new(FetchOptions::default(), with.sources.clone()),
            policy: with.sources.clone(),
            cancel: with.cancel.clone(),
            watch: with.watch.clone(),
            passed: RefCell::default(),
            last: RefCell::default(),
            from: RefCell::default(),
            memory: with.memory.clone(),
        }
    }

    /// Refuses what may not be fetched, before anything is: whether the store has it already does not count.
    pub(super) fn check(&self, input: &InputPlan) -> Result<()> {
        match &input.source {
            SourcePlan::Http { url, mirrors, .. } => self.fetcher.places(url, mirrors).map(drop)?,
            SourcePlan::Attestation(plan) => match &plan.artifact {
                ArtifactPlace::Url(url) => self.fetcher.places(url, &[]).map(drop)?,
                ArtifactPlace::Path(_) | ArtifactPlace::Store => {}
            },
            SourcePlan::Git(plan) => {
                if let GitPlace::Url(url) = &plan.place {
                    let wrong = |reason| InputError::Url { url: url.clone(), reason };
                    let url = git_url(url).map_err(wrong)?;
                    self.fetcher.guard().check(Purpose::Git, &url).map(drop)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The same for the image.
    pub(super) fn check_image(&self, image: &ImagePlan) -> Result<()> {
        let ImagePlan::Registry { reference, pinned, .. } = image else { return Ok(()) };
        let access = registry::Access::new(self.policy.clone(), None);
        let url = registry::Session::new(&access, reference, registry::Purpose::Pull)?.url("manifests/")?;
        let named = |error| match error {
            InputError::Denied { reason, .. } => {
                InputError::Denied { url: format!("{reference}@sha256:{pinned}"), reason }
            }
            other => other,
        };
        self.fetcher.guard().check(Purpose::Registry, &url).map(drop).map_err(named)?;
        Ok(())
    }

    /// When the project has fetched this from one of its places, if it has and the store has it still: then nobody need be
    /// asked.
    pub(super) fn had(
        &self,
        url: &str,
        mirrors: &[String],
        sha256: &Sha256,
        content: &Content,
        runner: &Runner,
    ) -> Result<Option<Visit>> {
        let places = self.fetcher.places(url, mirrors)?;
        let visit = places.iter().find_map(|place| self.memory.visit(&source(place, sha256)));
        let Some(visit) = visit else { return Ok(None) };
        Ok(runner.find(content.clone())?.map(|_| visit))
    }

    /// Downloads to a file without a name.
    pub(super) fn fetch(&self, url: &str, mirrors: &[String], sha256: &Sha256) -> Result<File> {
        let failed = |error: std::io::Error| unusable(&std::env::temp_dir(), error);
        let mut file = scratch_file(&std::env::temp_dir()).map_err(failed)?;
        let mut passed = Vec::new();
        let fetching = async {
            let cancelled = async {
                let (counted, mut meter) = (self.fetcher.counted(), self.watch.begin(Work::Fetch));
                while !self.cancel.is_cancelled() {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    meter.at(counted.bytes(), counted.total());
                }
            };
            tokio::select! {
                fetched = self.fetcher.fetch_any(url, mirrors, sha256, &mut file, &mut passed) => {
                    fetched.map_err(LocalError::from)
                }
                () = cancelled => Err(LocalError::Cancelled),
            }
        };
        let fetched = with_runtime(|runtime| runtime.block_on(fetching)).map_err(failed)?;
        self.passed.borrow_mut().extend(passed);
        let fetched = fetched?;
        let visit = Visit::now(fetched.final_url);
        if let Some(place) = self.fetcher.places(url, mirrors)?.get(fetched.place) {
            self.memory.keep(&source(place, sha256), &visit);
        }
        self.came(Came { visit, earlier: false });
        Ok(file)
    }

    /// Remembers where the input at hand came from.
    pub(super) fn came(&self, came: Came) {
        *self.last.borrow_mut() = Some(came);
    }

    /// Remembers where the image came from.
    pub(super) fn image_came(&self, came: Came) {
        self.from.borrow_mut().insert(IMAGE.to_owned(), came);
    }

    /// The input is taken in, or not: says what was passed over, and remembers where it came from.
    pub(super) fn done(&self, input: &Name, say: &mut dyn FnMut(Note)) {
        for passed in self.passed.take() {
            say(Note::PassedOver { input: input.clone(), passed });
        }
        if let Some(came) = self.last.take() {
            self.from.borrow_mut().insert(input.to_string(), came);
        }
    }

    /// What is claimed in the run attestation: of each input that was fetched, and of the image, where it came from, when,
    /// and whether that was before this run.
    pub(super) fn claims(&self) -> AgentClaims {
        let mut claims = AgentClaims::new();
        let from = self.from.borrow();
        if from.is_empty() {
            return claims;
        }
        let from: BTreeMap<&String, Claimed<'_>> =
            from.iter().map(|(name, came)| (name, came.into())).collect();
        if let (Ok(name), Ok(text)) = (Name::parse(CLAIM), serde_json::to_string(&from)) {
            claims.insert(name, text);
        }
        claims
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::Policy;
    use ampoule_spec::UnixNanos;

    #[test]
    fn place_of_any_length_is_claimed_in_two_kibibytes_and_whole_letters() {
        let with = Intake {
            sources: Policy::built_in(),
            registry_auth: None,
            commits: None,
            watch: Watch::default(),
            cancel: Cancel::default(),
            memory: Arc::new(()),
        };
        let downloads = Downloads::new(&with);
        let came = |from: String| Came { visit: Visit { at: UnixNanos(0), from }, earlier: false };
        downloads.image_came(came("https://h.example/short".to_owned()));
        // Two bytes each after an odd number: the cut would be within one.
        downloads.came(came(format!("https://h.example{}", "é".repeat(1 << 20))));
        downloads.done(&Name::parse("web").unwrap(), &mut |_| {});
        let claims = downloads.claims();
        let said: serde_json::Value = serde_json::from_str(claims.values().next().unwrap()).unwrap();
        let from = said["web"]["from"].as_str().unwrap();
        assert_eq!((from.len(), from.chars().last()), (FROM_BYTES_MAX - 1, Some('é')));
        assert_eq!(said[IMAGE]["from"], "https://h.example/short");
    }
}
