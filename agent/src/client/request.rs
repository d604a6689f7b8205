//! From a job file to a request: what lies here is uploaded, the rest is named.

use super::channel::Client;
use super::upload::Uploader;
use crate::api::convert::job_request;
use crate::files::read_file;
use crate::git::{AllowedSigners, GitPlace};
use crate::inputs::parse_url;
use crate::jobfile::{ArtifactPlace, GitPlan, InputPlan, JobPlan, SourcePlan, UpstreamPlan};
use crate::local::intake::{Intake, open, unusable};
use crate::local::path::PathIntake;
use crate::local::record::sha256;
use crate::local::take::{self, Taker};
use crate::local::upstream::Upstream;
use crate::local::{Cancel, LocalError, Watch};
use crate::sources::Policy;
use ampoule_proto::v1 as proto;
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, GitSigner, InputSource, JobId, Name};
use tokio::runtime::Handle;

type Result<T> = std::result::Result<T, LocalError>;

/// What a request is made with.
#[derive(Debug)]
pub struct Requesting<'a> {
    /// The daemon.
    pub client: Client,
    /// The runtime that its calls are made in. The thread that makes the request is none of its.
    pub runtime: Handle,
    /// The project.
    pub project: &'a Name,
    /// What ends it.
    pub cancel: &'a Cancel,
    /// Who is told how far it is.
    pub watch: &'a Watch,
}

impl Requesting<'_> {
    /// Uploads what the plan names and the project does not have, and gives the request. Blocks.
    ///
    /// # Errors
    /// [`LocalError`]; what only this client could vouch for is refused before anything is uploaded.
    pub fn request(&self, mut plan: JobPlan, say: &mut dyn FnMut(String)) -> Result<proto::JobRequest> {
        plan.inputs.iter().try_for_each(|input| submittable(input, plan.epoch_of_commit))?;
        let taker = Uploader {
            client: self.client.clone(),
            runtime: self.runtime.clone(),
            project: self.project.to_string(),
            cancel: self.cancel,
        };
        self.watch.about("the image");
        if let Some(manifest) = take::image(&plan.image, &taker, &mut || say("the image".to_owned()))? {
            plan.resolve_image(manifest);
        }
        let with = Intake {
            sources: Policy::built_in(),
            registry_auth: None,
            commits: None,
            watch: self.watch.clone(),
            cancel: self.cancel.clone(),
            memory: std::sync::Arc::new(()),
        };
        let (mut sources, mut proofs) = (Vec::new(), Vec::new());
        for input in &plan.inputs {
            if self.cancel.is_cancelled() {
                return Err(LocalError::Cancelled);
            }
            self.watch.about(format_args!("input {}", input.name));
            let mut uploading = || say(format!("input {}", input.name));
            let source = source(input, plan.source_date_epoch, (&taker, &with, &mut proofs), &mut uploading);
            sources.push(source.map_err(|error| named(&input.name, error))?);
        }
        // The id is the daemon's to draw; the request has none.
        let id = JobId::parse(&uuid::Uuid::now_v7().to_string()).map_err(|e| refused(&e.to_string()))?;
        let mut request = job_request(&plan.into_spec(id, 1, sources)?);
        prove(&mut request, proofs);
        Ok(request)
    }
}

/// Puts the provenance of other jobs' outputs beside what is said of them.
fn prove(request: &mut proto::JobRequest, proofs: Vec<Vec<u8>>) {
    let made = request.inputs.iter_mut().filter_map(|input| match &mut input.source {
        Some(proto::input::Source::Attestation(made)) => Some(made),
        _ => None,
    });
    for (made, proof) in made.zip(proofs) {
        made.provenance = proof;
    }
}

fn refused(reason: &str) -> LocalError {
    LocalError::Server { code: Code::JobInvalid, message: reason.to_owned() }
}

fn named(input: &Name, error: LocalError) -> LocalError {
    match error {
        LocalError::Server { code, message } => {
            LocalError::Server { code, message: format!("input {input}: {message}") }
        }
        other => other,
    }
}

/// Refuses what a daemon cannot take a client's word for, or could not use.
fn submittable(input: &InputPlan, epoch_of_commit: bool) -> Result<()> {
    let why = match &input.source {
        SourcePlan::Attestation(UpstreamPlan { artifact: ArtifactPlace::Url(_), .. }) => {
            "a daemon fetches no other job's output; download it and name it with path"
        }
        SourcePlan::Attestation(UpstreamPlan { allow_dev: true, .. }) => {
            "a daemon believes no development builder; remove allow_dev, or use `ampoule run`"
        }
        SourcePlan::Git(GitPlan { place: GitPlace::Path(_), .. }) => {
            "a daemon fetches commits itself, and a repository here is none of its; give the repository's URL"
        }
        SourcePlan::Git(_) => return Ok(()),
        SourcePlan::Http { url, .. } if !url.starts_with("file:") => return Ok(()),
        SourcePlan::Path { .. }
        | SourcePlan::Tar { .. }
        | SourcePlan::Http { .. }
        | SourcePlan::Attestation(_)
            if epoch_of_commit =>
        {
            "source_date_epoch = \"commit\" is for jobs that upload no input: files are uploaded with their times, and the commit's is not \
             known here; give seconds since 1970"
        }
        _ => return Ok(()),
    };
    Err(named(&input.name, refused(why)))
}

fn source(
    input: &InputPlan,
    epoch: u64,
    (taker, with, proofs): (&Uploader<'_>, &Intake, &mut Vec<Vec<u8>>),
    uploading: &mut dyn FnMut(),
) -> Result<InputSource> {
    let pinned = input.source.pinned();
    match &input.source {
        SourcePlan::Path { path, digest } => {
            return PathIntake::new(input, path, epoch, taker, with).take(*digest, uploading);
        }
        SourcePlan::Tar { path, sha256 } => take::archive(path, *sha256, epoch, taker, uploading)?,
        SourcePlan::Http { url, sha256, unpack, .. } => {
            // A file URL names a path of this host; any other is the daemon's to fetch.
            let url = parse_url(url).map_err(|reason| refused(&reason))?;
            if let Some(path) = (url.scheme() == "file").then(|| url.to_file_path().ok()).flatten() {
                let content = match unpack {
                    true => Content::Archive { sha256: *sha256, epoch },
                    false => Content::File { sha256: Some(*sha256), executable: false, epoch },
                };
                if !taker.has(&content)? {
                    uploading();
                    taker.take_file(content, open(&path)?)?;
                }
            }
        }
        SourcePlan::Git(plan) => return git(plan),
        SourcePlan::Attestation(plan) => {
            let mut upstream = Upstream::verify(plan, epoch)?;
            if !taker.has(&upstream.content())? {
                let ArtifactPlace::Path(path) = &plan.artifact else {
                    return Err(upstream.missing("with the daemon; name it with path"));
                };
                uploading();
                upstream.hand_over(path, taker, with)?;
            }
            proofs.push(std::mem::take(&mut upstream.attestation));
            return Ok(upstream.into_source());
        }
    }
    pinned.ok_or_else(|| refused("an input without a digest"))
}

/// What is asked of a commit: the daemon finds what it holds, and who signed it.
fn git(plan: &GitPlan) -> Result<InputSource> {
    let GitPlace::Url(url) = &plan.place else { return Err(refused("a repository here")) };
    let signer = match &plan.allowed_signers {
        None => None,
        Some(file) => {
            let bytes = read_file(file, AllowedSigners::BYTES_MAX).map_err(|error| unusable(file, error))?;
            let (principal, key) = (String::new(), String::new());
            Some(GitSigner { principal, key, allowed_signers: sha256(&bytes), tag: plan.tag.clone() })
        }
    };
    let (url, commit, submodules) = (Some(url.clone()), plan.commit, plan.submodules);
    Ok(InputSource::Git { url, commit, submodules, tree: None, signer })
}
