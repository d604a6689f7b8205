//! From a spec of the wire to a store that has all of it: uploads are looked up, downloads are fetched.

use super::options::Shown;
use crate::git::GitPlace;
use crate::jobfile::{GitPlan, ImagePlan, InputPlan, SourcePlan};
use crate::local::intake::{Intake, Taking};
use crate::local::{LocalError, Note, Runner};
use crate::registry::Reference;
use ampoule_evidence::AgentClaims;
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, Failure, Image, Input, InputSource, JobSpec, Name};
use std::collections::BTreeSet;

/// Why a job's inputs are not there.
#[derive(Debug)]
pub(super) enum NotReady {
    /// The job ends with this.
    Failed(Failure),
    /// The launcher is gone or busy: to be tried again.
    Again,
    /// Somebody has ended it.
    Cancelled,
}

impl From<LocalError> for NotReady {
    fn from(error: LocalError) -> Self {
        match &error {
            LocalError::Cancelled => Self::Cancelled,
            LocalError::Runner(runner) if super::launcher::passes(runner) => Self::Again,
            _ => Self::Failed(failure(error.code(), crate::chain::chain(&error))),
        }
    }
}

fn failure(code: Code, message: String) -> Failure {
    Failure { code, message, step: None, teardown: None }
}

/// Refuses what only a client could vouch for, as long as the agent does not verify it itself.
///
/// # Errors
/// `job.invalid` with the field of the message.
pub(super) fn check_wire(spec: &JobSpec) -> Result<(), Failure> {
    for (at, input) in spec.inputs.iter().enumerate() {
        let (field, what) = match &input.source {
            InputSource::Attestation { .. } => ("attestation", "whose attestation an input has"),
            InputSource::Git { signer: Some(_), .. } => ("git.signer", "who has signed a commit"),
            _ => continue,
        };
        let remedy = "use `ampoule run`, or leave it out and verify before you submit";
        let message = format!("inputs[{at}].{field}: this daemon does not verify {what}; {remedy}");
        return Err(failure(Code::JobInvalid, message));
    }
    Ok(())
}

/// What the agent fetches for a job and its project has not shown: that the store has it, from whomever, does not count.
pub(super) fn unshown(spec: &JobSpec, project: &Name, shown: &dyn Shown) -> BTreeSet<Content> {
    fetched(spec).filter(|content| !shown.has(project, content)).collect()
}

/// What the agent fetches for a job, as the store names it.
fn fetched(spec: &JobSpec) -> impl Iterator<Item = Content> + '_ {
    let image = match &spec.image {
        Image::Oci { manifest, reference } if Reference::parse(reference).is_ok() => {
            Some(Content::OciManifest { sha256: *manifest })
        }
        _ => None,
    };
    let epoch = spec.source_date_epoch;
    let inputs = spec.inputs.iter().filter_map(move |input| match &input.source {
        InputSource::Http { sha256, unpack: true, .. } => Some(Content::Archive { sha256: *sha256, epoch }),
        InputSource::Http { sha256, unpack: false, .. } => {
            Some(Content::File { sha256: Some(*sha256), executable: false, epoch })
        }
        InputSource::Git { url: Some(_), commit, submodules, .. } => {
            Some(Content::Git { commit: *commit, submodules: *submodules, epoch })
        }
        _ => None,
    });
    image.into_iter().chain(inputs)
}

/// One job's intake.
pub(super) struct Preparation<'a> {
    pub(super) spec: &'a JobSpec,
    pub(super) project: &'a Name,
    pub(super) runner: &'a Runner,
    pub(super) with: &'a Intake,
    pub(super) shown: &'a dyn Shown,
}

impl Preparation<'_> {
    /// Sees to it that the store has everything that the spec names, and says what the run attestation is to say about
    /// it. Blocks.
    pub(super) fn make(&self, say: &mut dyn FnMut(Note)) -> Result<AgentClaims, NotReady> {
        check_wire(self.spec).map_err(NotReady::Failed)?;
        let image = self.image_plan()?;
        let fetched: Vec<InputPlan> = self.spec.inputs.iter().filter_map(plan).collect();
        let mut taking = Taking::new(&fetched, self.with);
        taking.check(&image, &fetched)?;
        for (at, input) in self.spec.inputs.iter().enumerate() {
            if let Some(content) = uploaded(input, self.spec.source_date_epoch) {
                self.find(&content, &format!("inputs[{at}] ({})", input.name))?;
            }
        }
        if let Some(manifest) = taking.image(&image, self.runner, say)?
            && !matches!(&self.spec.image, Image::Oci { manifest: wanted, .. } if *wanted == manifest)
        {
            return Err(other_digest("image", &manifest.to_string()));
        }
        let sources = taking.inputs(&fetched, self.spec.source_date_epoch, self.runner, say)?;
        for (plan, source) in fetched.iter().zip(&sources) {
            let wanted = self.spec.inputs.iter().find(|input| input.name == plan.name);
            if wanted.is_none_or(|wanted| wanted.source != *source) {
                return Err(other_digest(&format!("input {}", plan.name), &source.sha256().to_string()));
            }
        }
        // What was fetched for a project is its own from now on.
        self::fetched(self.spec).for_each(|content| self.shown.record(self.project, &content));
        Ok(taking.claims())
    }

    /// Where the image is fetched, or nothing to fetch.
    fn image_plan(&self) -> Result<ImagePlan, NotReady> {
        match &self.spec.image {
            Image::Host => Ok(ImagePlan::Host),
            Image::Tar { sha256 } => {
                self.find(&Content::ImageTar { sha256: *sha256 }, "the image")?;
                Ok(ImagePlan::Host)
            }
            Image::Oci { manifest, reference } => {
                let content = Content::OciManifest { sha256: *manifest };
                if let Ok((reference, _)) = Reference::parse(reference) {
                    return Ok(ImagePlan::Registry { reference, pinned: *manifest, manifest: *manifest });
                }
                self.find(&content, "the image")?;
                Ok(ImagePlan::Host)
            }
        }
    }

    /// What was uploaded must be there, and the project must have shown it.
    fn find(&self, content: &Content, what: &str) -> Result<(), NotReady> {
        let there = self.shown.has(self.project, content)
            && self.runner.find(content.clone()).map_err(LocalError::from)?.is_some();
        if there {
            return Ok(());
        }
        let message = format!("{what} is not there; upload it and submit the job under a new key");
        Err(NotReady::Failed(failure(Code::InputMissing, message)))
    }
}

fn other_digest(what: &str, found: &str) -> NotReady {
    let message = format!("{what}: what was fetched has the digest {found}, not the one that the job names");
    NotReady::Failed(failure(Code::InputDigestMismatch, message))
}

/// What the agent fetches itself.
fn plan(input: &Input) -> Option<InputPlan> {
    let source = match &input.source {
        InputSource::Http { url, sha256, unpack, mirrors } => {
            SourcePlan::Http { url: url.clone(), sha256: *sha256, unpack: *unpack, mirrors: mirrors.clone() }
        }
        InputSource::Git { url: Some(url), commit, submodules, .. } => SourcePlan::Git(GitPlan {
            place: GitPlace::Url(url.clone()),
            commit: *commit,
            submodules: *submodules,
            allowed_signers: None,
            tag: None,
        }),
        _ => return None,
    };
    Some(InputPlan {
        name: input.name.clone(),
        mount: input.mount.clone(),
        writable: input.writable,
        source,
        exclude: Vec::new(),
    })
}

/// What a client has uploaded, as the store names it.
fn uploaded(input: &Input, epoch: u64) -> Option<Content> {
    match &input.source {
        InputSource::Directory { tree } => Some(Content::Directory { tree: Some(*tree), epoch }),
        InputSource::File { sha256, executable } => {
            Some(Content::File { sha256: Some(*sha256), executable: *executable, epoch })
        }
        InputSource::Tar { sha256 } => Some(Content::Archive { sha256: *sha256, epoch }),
        InputSource::Git { url: None, commit, submodules, .. } => {
            Some(Content::Git { commit: *commit, submodules: *submodules, epoch })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// One project has shown one archive.
    #[derive(Debug)]
    struct One(Content);

    impl Shown for One {
        fn has(&self, project: &Name, content: &Content) -> bool {
            project.as_str() == "a" && *content == self.0
        }

        fn record(&self, _: &Name, _: &Content) {}
    }

    #[test]
    fn what_a_project_has_not_shown_is_fetched_although_the_store_has_it() {
        let spec: JobSpec = serde_json::from_value(json!({
            "ampoule": 1, "id": "01890a5d-ac96-774b-bcce-b302099a8057", "attempt": 1, "name": "j", "profile": "hermetic",
            "image": {"kind": "oci", "manifest": "1".repeat(64), "reference": "docker://h.example/r"},
            "source_date_epoch": 7, "steps": [],
            "inputs": [
                {"name": "web", "mount": "/build/w", "source":
                    {"kind": "http", "url": "https://h.example/a", "sha256": "2".repeat(64), "unpack": true}},
                {"name": "git", "mount": "/build/g", "source": {"kind": "git", "url": "https://h.example/g",
                    "commit": "3".repeat(40), "tree": "4".repeat(64)}},
                {"name": "up", "mount": "/build/u", "source": {"kind": "tar", "sha256": "5".repeat(64)}},
            ],
        }))
        .unwrap();
        let all: BTreeSet<_> = fetched(&spec).collect();
        assert_eq!(all.len(), 3);
        let shown = One(Content::Archive { sha256: spec.inputs[0].source.sha256(), epoch: 7 });
        let unshown = |name: &str| super::unshown(&spec, &Name::parse(name).unwrap(), &shown);
        assert_eq!(unshown("b"), all);
        assert_eq!(all.difference(&unshown("a")).collect::<Vec<_>>(), [&shown.0]);
        assert!(super::unshown(&spec, &Name::parse("b").unwrap(), &super::super::ShownToAll).is_empty());
    }
}
