//! From a plan to a spec: every image and input goes into the runner's store, and only digests come back.

use super::download::{Came, Downloads};
use super::follow::Note;
use super::git::GitIntakes;
use super::path::PathIntake;
use super::pulled::Pull;
use super::runner::{Runner, RunnerError};
use super::watch::Watch;
use super::{Cancel, LocalError, Options, SigningKey, take, upstream};
use crate::jobfile::{ImagePlan, InputPlan, JobPlan, SourcePlan};
use crate::sources::Policy;
use crate::visits::{Here, Memory};
use ampoule_evidence::AgentClaims;
use ampoule_spec::wire::Content;
use ampoule_spec::{InputSource, JobId, Sha256};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Result<T> = std::result::Result<T, LocalError>;

/// What an intake works with: one of `ampoule run` as one of a job of the daemon.
#[derive(Debug, Clone)]
pub(crate) struct Intake {
    /// Where inputs may come from.
    pub(crate) sources: Policy,
    /// A file of credentials for registries.
    pub(crate) registry_auth: Option<PathBuf>,
    /// A directory of commits and tags that need not be fetched again; made when there is one to keep.
    pub(crate) commits: Option<PathBuf>,
    /// Who is told how far something is that lasts.
    pub(crate) watch: Watch,
    /// What ends it.
    pub(crate) cancel: Cancel,
    /// What its project has fetched and shown before: the rest is asked for, whatever the store has.
    pub(crate) memory: Arc<dyn Memory>,
}

/// What a job is made of, all of it in the store.
pub(super) struct TakenIn {
    /// The spec's bytes.
    pub(super) spec: Vec<u8>,
    /// The job's new id.
    pub(super) id: JobId,
    /// What the run attestation is to say about it.
    pub(super) claims: AgentClaims,
}

/// Imports what the plan names.
pub(super) fn take_in(
    mut plan: JobPlan,
    runner: &mut Runner,
    options: &Options,
    cancel: &Cancel,
    say: &mut dyn FnMut(Note),
) -> Result<TakenIn> {
    plan.inputs.iter().try_for_each(|input| keeps_our_secrets(input, options))?;
    let with = Intake {
        sources: options.sources.clone(),
        registry_auth: options.registry_auth.clone(),
        commits: Some(options.state.join("git")),
        watch: options.watch.clone(),
        cancel: cancel.clone(),
        memory: Arc::new(Here {
            dir: options.state.join("visits"),
            project: options.sources.project().to_owned(),
        }),
    };
    let mut taking = Taking::new(&plan.inputs, &with);
    taking.check(&plan.image, &plan.inputs)?;
    if let Some(manifest) = taking.image(&plan.image, runner, say)? {
        plan.resolve_image(manifest);
    }
    if plan.epoch_of_commit
        && let Some(seconds) = taking.epoch(&plan.inputs, say)?
    {
        plan.resolve_epoch(seconds);
    }
    let sources = taking.inputs(&plan.inputs, plan.source_date_epoch, runner, say)?;
    let claims = taking.claims();
    let id = new_id()?;
    let spec = plan.into_spec(id.clone(), 1, sources)?;
    // What provenance could not name is refused now, and not after the job has run.
    ampoule_evidence::check_uris(&spec)
        .map_err(|e| LocalError::Evidence { code: ampoule_spec::Code::JobInvalid, reason: e.to_string() })?;
    let bytes = serde_json::to_vec_pretty(&spec).map_err(|e| LocalError::Evidence {
        code: ampoule_spec::Code::Internal,
        reason: format!("the spec cannot be written: {e}"),
    })?;
    Ok(TakenIn { spec: bytes, id, claims })
}

/// One intake.
pub(crate) struct Taking<'a> {
    with: &'a Intake,
    downloads: Downloads,
    gits: GitIntakes<'a>,
}

impl<'a> Taking<'a> {
    /// Of these inputs.
    pub(crate) fn new(inputs: &[InputPlan], with: &'a Intake) -> Self {
        Self { with, downloads: Downloads::new(with), gits: GitIntakes::new(inputs, with) }
    }

    /// Refuses what may not be fetched, before anything is.
    pub(crate) fn check(&self, image: &ImagePlan, inputs: &[InputPlan]) -> Result<()> {
        self.downloads.check_image(image)?;
        inputs.iter().try_for_each(|input| self.downloads.check(input))
    }

    /// Takes in the image, and says which manifest it has.
    pub(crate) fn image(
        &self,
        image: &ImagePlan,
        runner: &Runner,
        say: &mut dyn FnMut(Note),
    ) -> Result<Option<Sha256>> {
        self.with.watch.about("the image");
        take_image(image, runner, &self.downloads, self.with, say)
    }

    /// The time of the commit of the first git input, if there is one.
    pub(crate) fn epoch(&mut self, inputs: &[InputPlan], say: &mut dyn FnMut(Note)) -> Result<Option<u64>> {
        self.gits.epoch(inputs, say)
    }

    /// Takes in the inputs, and says what they are in the spec, in their order.
    pub(crate) fn inputs(
        &mut self,
        inputs: &[InputPlan],
        epoch: u64,
        runner: &Runner,
        say: &mut dyn FnMut(Note),
    ) -> Result<Vec<InputSource>> {
        let mut sources = Vec::new();
        for (at, input) in inputs.iter().enumerate() {
            if self.with.cancel.is_cancelled() {
                return Err(LocalError::Cancelled);
            }
            self.with.watch.about(format_args!("input {}", input.name));
            let mut importing = || say(Note::Importing { what: format!("input {}", input.name) });
            let taken = match self.gits.take(at, epoch, runner, &self.downloads, &mut importing) {
                Some(taken) => taken,
                None => take_input(input, epoch, runner, &self.downloads, self.with, &mut importing),
            };
            self.downloads.done(&input.name, say);
            sources.push(taken.map_err(|error| named(&input.name, error))?);
        }
        Ok(sources)
    }

    /// Whether nobody need be asked for any of it: it was had before from where it is named, and the store has it.
    pub(crate) fn has_all(
        &self,
        image: &ImagePlan,
        inputs: &[InputPlan],
        epoch: u64,
        runner: &Runner,
    ) -> Result<bool> {
        if let ImagePlan::Registry { reference, pinned, .. } = image {
            let pull = Pull { reference, pinned, runner, with: self.with };
            if pull.had()?.is_none() {
                return Ok(false);
            }
        }
        for (at, input) in inputs.iter().enumerate() {
            let has = match &input.source {
                SourcePlan::Http { url, mirrors, sha256, unpack } => {
                    let content = downloaded(*sha256, *unpack, epoch);
                    self.downloads.had(url, mirrors, sha256, &content, runner)?.is_some()
                }
                SourcePlan::Git(_) => self.gits.has(at, epoch, runner)?,
                _ => false,
            };
            if !has {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the run attestation is to say about it.
    pub(crate) fn claims(&self) -> AgentClaims {
        self.downloads.claims()
    }
}

/// Says which input the runner has refused.
fn named(input: &ampoule_spec::Name, error: LocalError) -> LocalError {
    match error {
        LocalError::Runner(error) => error.within(&format!("input {input}")).into(),
        LocalError::Upstream { code, file, reason } => {
            LocalError::Upstream { code, file, reason: format!("{reason}; input {input} is not used") }
        }
        other => other,
    }
}

/// Refuses an input that has the signing key in it, or the state directory, which has the development key: a step
/// could read what signs its own provenance.
fn keeps_our_secrets(input: &InputPlan, options: &Options) -> Result<()> {
    let SourcePlan::Path { path, .. } = &input.source else { return Ok(()) };
    let Ok(source) = std::fs::canonicalize(path) else { return Ok(()) };
    let key = match &options.key {
        SigningKey::File(key) | SigningKey::Credential(key) => Some(("the signing key", key.clone())),
        SigningKey::Transit(file) => Some(("what names the signing key", file.clone())),
        SigningKey::Development => None,
    };
    let shown = options.sources.secrets().map(|file| ("what an origin knows us by", file.clone()));
    let shown = shown.chain(options.registry_auth.clone().map(|file| ("credentials for registries", file)));
    let ours = [("the state directory", options.state.clone()), ("the keys", options.state.join("keys"))];
    for (what, path) in ours.into_iter().chain(key).chain(shown) {
        let Ok(path) = std::fs::canonicalize(path) else { continue };
        if path.starts_with(&source) || what == "the keys" && source.starts_with(&path) {
            return Err(LocalError::Exposed { input: input.name.to_string(), what, path });
        }
    }
    Ok(())
}

fn new_id() -> Result<JobId> {
    let text = uuid::Uuid::now_v7().to_string();
    JobId::parse(&text)
        .map_err(|e| LocalError::Evidence { code: ampoule_spec::Code::Internal, reason: e.to_string() })
}

fn take_image(
    image: &ImagePlan,
    runner: &Runner,
    downloads: &Downloads,
    with: &Intake,
    say: &mut dyn FnMut(Note),
) -> Result<Option<Sha256>> {
    match image {
        ImagePlan::Registry { reference, pinned, .. } => {
            let pull = Pull { reference, pinned, runner, with };
            let (manifest, came) = pull.take(say)?;
            downloads.image_came(came);
            Ok(Some(manifest))
        }
        here => take::image(here, runner, &mut || say(Note::Importing { what: "the image".to_owned() })),
    }
}

pub(crate) fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| unusable(path, error))
}

pub(crate) fn unusable(path: &Path, error: std::io::Error) -> LocalError {
    LocalError::file("the file", path, &error)
}

/// A download as the store names it.
fn downloaded(sha256: Sha256, unpack: bool, epoch: u64) -> Content {
    match unpack {
        true => Content::Archive { sha256, epoch },
        false => Content::File { sha256: Some(sha256), executable: false, epoch },
    }
}

fn take_input(
    input: &InputPlan,
    epoch: u64,
    runner: &Runner,
    downloads: &Downloads,
    with: &Intake,
    importing: &mut dyn FnMut(),
) -> Result<InputSource> {
    let pinned = input.source.pinned().ok_or_else(|| RunnerError::OutOfTurn.into());
    match &input.source {
        // It has an intake of its own.
        SourcePlan::Git(_) => pinned,
        SourcePlan::Path { path, digest } => {
            PathIntake::new(input, path, epoch, runner, with).take(*digest, importing)
        }
        SourcePlan::Tar { path, sha256 } => {
            take::archive(path, *sha256, epoch, runner, importing)?;
            pinned
        }
        SourcePlan::Http { url, sha256, unpack, mirrors } => {
            let content = downloaded(*sha256, *unpack, epoch);
            match downloads.had(url, mirrors, sha256, &content, runner)? {
                Some(visit) => downloads.came(Came { visit, earlier: true }),
                None => {
                    importing();
                    runner.import(content, downloads.fetch(url, mirrors, sha256)?.into())?;
                }
            }
            pinned
        }
        SourcePlan::Attestation(plan) => upstream::take(plan, epoch, runner, downloads, with, importing),
    }
}

/// A stream that breaks off when the run is cancelled. What it was for is then no whole archive, and is refused.
pub(super) struct UntilCancelled<'a, W> {
    pub(super) out: W,
    pub(super) cancel: &'a Cancel,
    pub(super) watch: &'a Watch,
}

impl<W: Write> Write for UntilCancelled<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(std::io::Error::other("cancelled"));
        }
        let count = self.out.write(bytes)?;
        self.watch.passed(count);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
