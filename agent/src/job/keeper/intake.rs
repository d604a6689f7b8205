//! From a spec of the wire to a store that has all of it: uploads are looked up, downloads are fetched.

use super::options::{ProjectFiles, Shown};
use crate::content::uploaded;
use crate::git::GitPlace;
use crate::jobfile::{GitPlan, ImagePlan, InputPlan, SourcePlan};
use crate::local::intake::{Intake, Taking};
use crate::local::{LocalError, Note, Runner};
use crate::registry::{Reference, SCHEME};
use crate::visits::{Memory, Source, Visit};
use ampoule_evidence::AgentClaims;
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, Failure, GitSigner, Image, Input, InputSource, JobSpec, Name};
use std::path::PathBuf;
use std::sync::Arc;

/// Why a job's inputs are not there.
#[derive(Debug)]
pub(super) enum NotReady {
    /// The job ends with this.
    Failed(Failure),
    /// The launcher is gone or busy: to be tried again.
    Again,
    /// Something has to be fetched, and nothing was to be.
    Fetches,
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
        return Failure::new(code, message);
    }
    tracing::error!(reason = message, "a job's inputs cannot be taken in");
    match code {
        Code::StoreFull | Code::FileFull => {
            Failure::new(code, "the host has no room for them now".to_owned())
        }
        _ => Failure::new(Code::Internal, crate::api::DEFECT.to_owned()),
    }
}

/// Refuses what only a client could vouch for.
///
/// A reference that is not one of a registry's is nobody's origin: the image was uploaded.
///
/// # Errors
/// `job.invalid` with the field of the message.
pub(super) fn check_wire(spec: &JobSpec) -> Result<(), Failure> {
    let invalid = |message: String| Failure::new(Code::JobInvalid, message);
    ampoule_evidence::check_uris(spec).map_err(|error| invalid(error.to_string()))?;
    if let Image::Oci { reference, .. } = &spec.image
        && reference.starts_with(SCHEME)
    {
        Reference::parse(reference).map_err(|error| invalid(format!("image.oci.reference: {error}")))?;
    }
    for (at, input) in spec.inputs.iter().enumerate() {
        let reason = match &input.source {
            InputSource::Git { url: None, .. } => {
                "git.url: a repository of the client's cannot be fetched from here; upload it as a directory"
            }
            _ if spec.epoch_of_commit && uploaded(&input.source, 0).is_some() => {
                "source: what is uploaded has its times already, and the commit's time is not known yet; give source_date_epoch in \
                 seconds since 1970"
            }
            _ => continue,
        };
        return Err(invalid(format!("inputs[{at}].{reason}")));
    }
    Ok(())
}

/// The same, and refuses what only this agent finds out and a caller says to know.
///
/// # Errors
/// `job.invalid` with the field of the message.
pub(super) fn check_asked(spec: &JobSpec, files: &ProjectFiles) -> Result<(), Failure> {
    check_wire(spec)?;
    for (at, input) in spec.inputs.iter().enumerate() {
        let InputSource::Git { signer: Some(signer), .. } = &input.source else { continue };
        if signer.is_found() {
            let message =
                format!("inputs[{at}].git.signer: who has signed a commit is found here; leave it out");
            return Err(Failure::new(Code::JobInvalid, message));
        }
    }
    check_signers(spec, files)
}

/// Holds the demands for signatures against what the operator has given the project.
fn check_signers(spec: &JobSpec, files: &ProjectFiles) -> Result<(), Failure> {
    let demands =
        |input: &Input| matches!(&input.source, InputSource::Git { signer: Some(s), .. } if !s.is_found());
    match spec.inputs.iter().position(demands) {
        Some(at) if files.allowed_signers.is_none() => {
            let text = "the operator has allowed nobody to sign for this project: have its `allowed_signers` set, or leave the demand out";
            Err(Failure::new(Code::JobInvalid, format!("inputs[{at}].git.signer: {text}")))
        }
        _ => Ok(()),
    }
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
fn without_paths(with: &Intake, signers: Option<&PathBuf>, failure: Failure) -> Failure {
    let secrets = with.registry_auth.iter().chain(with.sources.secrets()).chain(signers);
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
    /// Whether something may be fetched.
    pub(super) fetches: bool,
    pub(super) shown: &'a dyn Shown,
    pub(super) files: &'a ProjectFiles,
}

/// What came of an intake.
#[derive(Debug)]
pub(super) struct Prepared {
    /// What the run attestation is to say about it.
    pub(super) claims: AgentClaims,
    /// The spec with everything in it that was left to be found; none: there was nothing.
    pub(super) resolved: Option<JobSpec>,
}

impl Preparation<'_> {
    /// Sees to it that the store has everything that the spec names, and finds what it leaves to be found. Blocks.
    pub(super) fn make(&self, say: &mut dyn FnMut(Note)) -> Result<Prepared, NotReady> {
        self.take(say).map_err(|error| match error {
            NotReady::Failed(failure) => {
                NotReady::Failed(without_paths(self.with, self.files.allowed_signers.as_ref(), failure))
            }
            other => other,
        })
    }

    fn take(&self, say: &mut dyn FnMut(Note)) -> Result<Prepared, NotReady> {
        check_wire(self.spec)
            .and_then(|()| check_signers(self.spec, self.files))
            .map_err(NotReady::Failed)?;
        let image = self.image_plan()?;
        let signers = self.files.allowed_signers.as_ref();
        let fetched: Vec<InputPlan> =
            self.spec.inputs.iter().filter_map(|input| plan(input, signers)).collect();
        let mut taking = Taking::new(&fetched, self.with);
        taking.check(&image, &fetched)?;
        for (at, input) in self.spec.inputs.iter().enumerate() {
            if let Some(content) = uploaded(&input.source, self.spec.source_date_epoch) {
                self.find(&content, &format!("inputs[{at}] ({})", input.name))?;
            }
        }
        let epoch = self.spec.source_date_epoch;
        // A commit's time is in the commit.
        let has_all = || {
            Ok::<_, NotReady>(
                !self.spec.epoch_of_commit && taking.has_all(&image, &fetched, epoch, self.runner)?,
            )
        };
        if !self.fetches && !has_all()? {
            return Err(NotReady::Fetches);
        }
        if let Some(manifest) = taking.image(&image, self.runner, say)?
            && !matches!(&self.spec.image, Image::Oci { manifest: wanted, .. } if *wanted == manifest)
        {
            return Err(other_digest("image", &manifest.to_string()));
        }
        let mut spec = self.spec.clone();
        if std::mem::take(&mut spec.epoch_of_commit) {
            let of_commit = taking.epoch(&fetched, say)?;
            let none = || super::driver::defect("there is no commit to take the time of");
            spec.source_date_epoch = of_commit.ok_or_else(none)?;
        }
        let sources = taking.inputs(&fetched, spec.source_date_epoch, self.runner, say)?;
        for (plan, source) in fetched.iter().zip(sources) {
            let wanted = spec.inputs.iter_mut().find(|input| input.name == plan.name);
            let wanted =
                wanted.ok_or_else(|| super::driver::defect("an input of another name was fetched"))?;
            resolve(wanted, source)?;
        }
        // What was fetched for a project is its own from now on.
        self::fetched(&spec).for_each(|content| self.shown.record(self.project, &content));
        let resolved = (spec != *self.spec).then_some(spec);
        Ok(Prepared { claims: taking.claims(), resolved })
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
        Err(NotReady::Failed(Failure::new(Code::InputMissing, message)))
    }
}

/// Holds what was fetched against what the job demands of it, and puts in its place what it left to be found.
fn resolve(wanted: &mut Input, mut found: InputSource) -> Result<(), NotReady> {
    let what = format!("input {}", wanted.name);
    if let (
        InputSource::Git { tree, signer: demanded, .. },
        InputSource::Git { tree: found, signer: by, .. },
    ) = (&mut wanted.source, &mut found)
    {
        *tree = tree.or(*found);
        let signer = signed(&what, demanded.take(), by.take())?;
        (*demanded, *by) = (signer.clone(), signer);
    }
    if wanted.source == found {
        return Ok(());
    }
    Err(other_digest(&what, &found.sha256().map(|digest| digest.to_string()).unwrap_or_default()))
}

/// Who signed a commit, as it is demanded and as it was found.
fn signed(
    what: &str,
    demanded: Option<GitSigner>,
    found: Option<GitSigner>,
) -> Result<Option<GitSigner>, NotReady> {
    match (demanded, found) {
        (None, None) => Ok(None),
        // Somebody looked before the last restart.
        (Some(before), None) if before.is_found() => Ok(Some(before)),
        (Some(demanded), Some(found)) if demanded.allowed_signers == found.allowed_signers => Ok(Some(found)),
        (Some(demanded), Some(found)) => {
            let message = format!(
                "{what}: the job demands a signature by the allowed signers sha256:{}, and this host has sha256:{} for the project; \
                 have one of them brought up to the other",
                demanded.allowed_signers, found.allowed_signers
            );
            Err(NotReady::Failed(Failure::new(Code::InputUnsigned, message)))
        }
        (Some(_), None) | (None, Some(_)) => Err(super::driver::defect("another signature was looked at")),
    }
}

fn other_digest(what: &str, found: &str) -> NotReady {
    let message = format!("{what}: what was fetched has the digest {found}, not the one that the job names");
    NotReady::Failed(Failure::new(Code::InputDigestMismatch, message))
}

/// What the agent fetches itself.
fn plan(input: &Input, signers: Option<&PathBuf>) -> Option<InputPlan> {
    let source = match &input.source {
        InputSource::Http { url, sha256, unpack, mirrors } => {
            SourcePlan::Http { url: url.clone(), sha256: *sha256, unpack: *unpack, mirrors: mirrors.clone() }
        }
        InputSource::Git { url: Some(url), commit, submodules, signer, .. } => {
            let demanded = signer.as_ref().filter(|signer| !signer.is_found());
            SourcePlan::Git(GitPlan {
                place: GitPlace::Url(url.clone()),
                commit: *commit,
                submodules: *submodules,
                allowed_signers: demanded.and(signers.cloned()),
                tag: demanded.and_then(|signer| signer.tag.clone()),
            })
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::{Cancel, Watch};
    use crate::sources::Policy;
    use ampoule_spec::Sha256;
    use serde_json::json;

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
        assert!(
            all.contains(&Content::Archive { sha256: spec.inputs[0].source.sha256().unwrap(), epoch: 7 })
        );
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
        let hidden = without_paths(
            &with,
            None,
            failure_of("the registry credentials /etc/ampoule/auth.json: no JSON"),
        );
        assert_eq!(hidden.message, "the registry credentials auth.json: no JSON");
        let signers = PathBuf::from("/etc/ampoule/allowed");
        let hidden = without_paths(&with, Some(&signers), failure_of("/etc/ampoule/allowed: line 1"));
        assert_eq!(hidden.message, "allowed: line 1");
    }

    #[test]
    fn what_a_job_demands_of_a_commit_is_held_against_what_was_found_and_the_rest_is_filled_in() {
        let (one, other) = (Sha256::new([1; 32]), Sha256::new([2; 32]));
        let signer = |name: &str, file: Sha256, tag: Option<&str>| GitSigner {
            principal: name.to_owned(),
            key: name.to_owned(),
            allowed_signers: file,
            tag: tag.map(str::to_owned),
        };
        let source = |tree: Option<Sha256>, signer: Option<GitSigner>| {
            let InputSource::Git { url, commit, submodules, .. } = spec().inputs.remove(1).source else {
                panic!("git")
            };
            InputSource::Git { url, commit, submodules, tree, signer }
        };
        let resolved = |wanted: InputSource, found: InputSource| {
            let mut input = Input { source: wanted, ..spec().inputs.remove(1) };
            match super::resolve(&mut input, found) {
                Ok(()) => Ok(input.source),
                Err(NotReady::Failed(failure)) => Err(failure.code),
                Err(other) => panic!("{other:?}"),
            }
        };
        let found = |tree, signer| source(Some(tree), signer);
        let (demand, me) = (signer("", one, None), signer("me", one, None));
        let cases = [
            (source(None, None), found(one, None), Ok(found(one, None))),
            (found(one, None), found(one, None), Ok(found(one, None))),
            (found(other, None), found(one, None), Err(Code::InputDigestMismatch)),
            (
                source(None, Some(demand.clone())),
                found(one, Some(me.clone())),
                Ok(found(one, Some(me.clone()))),
            ),
            // As it is after a restart.
            (found(one, Some(me.clone())), found(one, None), Ok(found(one, Some(me.clone())))),
            (found(other, Some(me.clone())), found(one, None), Err(Code::InputDigestMismatch)),
            (
                source(None, Some(signer("", other, None))),
                found(one, Some(me.clone())),
                Err(Code::InputUnsigned),
            ),
            // Nobody has looked, or for something else.
            (source(None, Some(demand)), found(one, None), Err(Code::Internal)),
            (source(None, None), found(one, Some(me.clone())), Err(Code::Internal)),
        ];
        for (wanted, found, expected) in cases {
            assert_eq!(resolved(wanted.clone(), found), expected, "{wanted:?}");
        }
    }

    fn failure_of(message: &str) -> Failure {
        Failure::new(Code::InputRefused, message)
    }
}
