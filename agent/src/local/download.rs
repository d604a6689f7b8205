//! Downloads of a run, and what is remembered of where they came from.

use super::intake::{Intake, unusable};
use super::watch::{Watch, Work};
use super::{Cancel, LocalError, Note};
use crate::block::with_runtime;
use crate::git::GitPlace;
use crate::inputs::{FetchOptions, Fetcher, InputError, PassedOver, scratch_file};
use crate::jobfile::{ArtifactPlace, ImagePlan, InputPlan, SourcePlan, git_url};
use crate::registry;
use crate::sources::{Policy, Purpose};
use ampoule_evidence::AgentClaims;
use ampoule_spec::{Name, Sha256};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;

type Result<T> = std::result::Result<T, LocalError>;

/// The claim that says where downloads came from.
const CLAIM: &str = "downloads";

/// What is downloaded for one run.
#[derive(Debug)]
pub(super) struct Downloads {
    fetcher: Fetcher,
    policy: Policy,
    cancel: Cancel,
    watch: Watch,
    /// Of the input at hand.
    passed: RefCell<Vec<PassedOver>>,
    last: RefCell<Option<String>>,
    /// Where each input that was downloaded came from in the end.
    from: BTreeMap<Name, String>,
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
            from: BTreeMap::new(),
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
        *self.last.borrow_mut() = Some(fetched?.final_url);
        Ok(file)
    }

    /// The input is taken in, or not: says what was passed over, and remembers where it came from.
    pub(super) fn done(&mut self, input: &Name, say: &mut dyn FnMut(Note)) {
        for passed in self.passed.take() {
            say(Note::PassedOver { input: input.clone(), passed });
        }
        if let Some(url) = self.last.take() {
            self.from.insert(input.clone(), url);
        }
    }

    /// What is claimed in the run attestation: of each input that was downloaded, where it came from. What the store had
    /// already is not in it.
    pub(super) fn claims(&self) -> AgentClaims {
        let mut claims = AgentClaims::new();
        if self.from.is_empty() {
            return claims;
        }
        if let (Ok(name), Ok(text)) = (Name::parse(CLAIM), serde_json::to_string(&self.from)) {
            claims.insert(name, text);
        }
        claims
    }
}
