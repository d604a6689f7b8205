//! From a spec of the wire to a store that has all of it: uploads are looked up, downloads are fetched.

use super::options::Shown;
use crate::git::GitPlace;
use crate::jobfile::{GitPlan, ImagePlan, InputPlan, SourcePlan};
use crate::local::intake::{Intake, Taking};
use crate::local::{LocalError, Note, Runner};
use crate::registry::{Reference, SCHEME};
use crate::visits::{Memory, Source, Visit};
use ampoule_evidence::AgentClaims;
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, Failure, Image, Input, InputSource, JobSpec, Name};
use std::sync::Arc;

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
            _ => {
                let is_file = matches!(
                    error,
                    LocalError::File { .. } | LocalError::Input(crate::inputs::InputError::File { .. })
                );
                Self::Failed(heard(error.code(), is_file, crate::chain::chain(&error)))
            }
        }
    }
}

/// What a tenant hears of an error, and a record says for good: of the host's own files that something is wrong with them,
/// and no path.
fn heard(code: Code, is_file: bool, message: String) -> Failure {
    if !is_file && !matches!(code, Code::Internal | Code::FileUnusable) {
        return failure(code, message);
    }
    tracing::error!(reason = message, "a job's inputs cannot be taken in");
    match code {
        Code::StoreFull | Code::FileFull => failure(code, "the host has no room for them now".to_owned()),
        _ => failure(Code::Internal, crate::api::DEFECT.to_owned()),
    }
}

fn failure(code: Code, message: String) -> Failure {
    Failure { code, message, step: None, teardown: None }
}

/// Refuses what only a client could vouch for, as long as the agent does not verify it itself.
///
/// A reference that is not one of a registry's is nobody's origin: the image was uploaded.
///
/// # Errors
/// `job.invalid` with the field of the message.
pub(super) fn check_wire(spec: &JobSpec) -> Result<(), Failure> {
    let invalid = |message: String| failure(Code::JobInvalid, message);
    ampoule_evidence::check_uris(spec).map_err(|error| invalid(error.to_string()))?;
    if let Image::Oci { reference, .. } = &spec.image
        && reference.starts_with(SCHEME)
    {
        Reference::parse(reference).map_err(|error| invalid(format!("image.oci.reference: {error}")))?;
    }
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

/// What is known of the project of a job.
#[derive(Debug)]
pub(super) struct OfProject {
    pub(super) project: Name,
    pub(super) shown: Arc<dyn Shown>,
}

impl Memory for OfProject {
    fn visit(&self, source: &Source) -> Option<Visit> {
        self.shown.visit(&self.project, source)
    }

    fn keep(&self, source: &Source, visit: &Visit) {
        self.shown.record_visit(&self.project, source, visit);
    }

    fn has_bytes(&self, content: &Content) -> bool {
        self.shown.has(&self.project, content)
    }
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

/// Files that an operator has named are for tenants the names of things.
fn without_paths(with: &Intake, failure: Failure) -> Failure {
    let secrets = with.registry_auth.iter().chain(with.sources.secrets());
    let message = secrets.fold(failure.message, |message, path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        message.replace(&path.display().to_string(), &name)
    });
    Failure { message, ..failure }
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
        self.take(say).map_err(|error| match error {
            NotReady::Failed(failure) => NotReady::Failed(without_paths(self.with, failure)),
            other => other,
        })
    }

    fn take(&self, say: &mut dyn FnMut(Note)) -> Result<AgentClaims, NotReady> {
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
    use crate::local::{Cancel, Watch};
    use crate::sources::Policy;
    use serde_json::json;
    use std::path::PathBuf;

    fn spec() -> JobSpec {
        serde_json::from_value(json!({
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
        .unwrap()
    }

    #[test]
    fn what_is_fetched_for_a_project_is_what_has_a_place() {
        let spec = spec();
        let all: Vec<_> = fetched(&spec).collect();
        assert_eq!(all.len(), 3);
        assert!(all.contains(&Content::Archive { sha256: spec.inputs[0].source.sha256(), epoch: 7 }));
    }

    #[test]
    fn reference_that_is_asked_nowhere_reads_as_no_origin() {
        let check = |text: &str| {
            let mut spec = spec();
            let Image::Oci { reference, .. } = &mut spec.image else { panic!("an image of a registry") };
            *reference = text.to_owned();
            check_wire(&spec)
        };
        for taken in ["docker://h.example/r", "docker://h.example/r:1", "oci:base", "base", ""] {
            assert!(check(taken).is_ok(), "{taken}");
        }
        for refused in
            ["oci://h.example/r", "docker://h.example/Base", "docker:/h.example/r", "DOCKER://h/r", "oci:a/b"]
        {
            let failure = check(refused).unwrap_err();
            assert!(failure.code == Code::JobInvalid && failure.message.contains("image"), "{failure:?}");
        }
    }

    #[test]
    fn failure_of_an_intake_has_no_path_of_the_host() {
        let file = |code, reason: &str| LocalError::File {
            code,
            what: "the file",
            path: PathBuf::from("/var/lib/x"),
            reason: reason.to_owned(),
        };
        for (code, heard) in [(Code::FileUnusable, Code::Internal), (Code::FileFull, Code::FileFull)] {
            let NotReady::Failed(failure) = NotReady::from(file(code, "no")) else { panic!("it failed") };
            assert_eq!((failure.code, failure.message.contains('/')), (heard, false));
        }
        let with = Intake {
            sources: Policy::built_in(),
            registry_auth: Some(PathBuf::from("/etc/ampoule/auth.json")),
            commits: None,
            watch: Watch::default(),
            cancel: Cancel::default(),
            memory: Arc::new(()),
        };
        let hidden =
            without_paths(&with, failure_of("the registry credentials /etc/ampoule/auth.json: no JSON"));
        assert_eq!(hidden.message, "the registry credentials auth.json: no JSON");
    }

    fn failure_of(message: &str) -> Failure {
        super::failure(Code::InputRefused, message.to_owned())
    }
}
