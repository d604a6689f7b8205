//! What another job has made, as an input: its provenance is verified before a byte of it is taken in.

use super::LocalError;
use super::download::Downloads;
use super::intake::{Intake, UntilCancelled, open, unusable};
use super::runner::Runner;
use super::take::Taker;
use crate::chain::chain;
use crate::files::read_file;
use crate::jobfile::{ArtifactPlace, UpstreamPlan};
use ampoule_evidence::{ATTESTATION_BYTES_MAX, Made, MadeByRequest, made_by};
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, InputSource};
use ampoule_store::Limits;
use ampoule_store::pack::{PackError, pack};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::AsFd;
use std::path::Path;

type Result<T> = std::result::Result<T, LocalError>;

/// What another job has made, as its provenance proves to whoever believes whom the plan believes.
pub(crate) struct Upstream<'a> {
    plan: &'a UpstreamPlan,
    /// The attestation, as it lies here.
    pub(crate) attestation: Vec<u8>,
    made: Made,
    epoch: u64,
}

impl<'a> Upstream<'a> {
    /// Verifies the provenance.
    ///
    /// # Errors
    /// [`LocalError`]: files that cannot be read, and everything that does not verify.
    pub(crate) fn verify(plan: &'a UpstreamPlan, epoch: u64) -> Result<Self> {
        let trusted = plan.believed.keys().map_err(|error| LocalError::Upstream {
            code: Code::FileUnusable,
            file: error.path,
            reason: error.reason,
        })?;
        let attestation = read_file(&plan.file, ATTESTATION_BYTES_MAX as u64);
        let attestation = attestation.map_err(|e| unusable(&plan.file, e))?;
        let request = MadeByRequest {
            attestation: &attestation,
            trusted: &trusted,
            subject: plan.subject.as_ref().map(|name| name.as_str()),
            builder: plan.builder.as_deref(),
            allow_dev: plan.allow_dev,
        };
        let made = made_by(&request).map_err(|error| refused(plan, error.code(), chain(&error)))?;
        if made.tree && (plan.unpack || plan.executable) {
            let reason = format!("{} is a directory; remove unpack and executable", made.by.subject);
            return Err(refused(plan, Code::JobInvalid, reason));
        }
        Ok(Self { plan, attestation, made, epoch })
    }

    /// What it is in the store.
    pub(crate) fn content(&self) -> Content {
        let (sha256, epoch) = (self.made.sha256, self.epoch);
        match (self.made.tree, self.plan.unpack) {
            (true, _) => Content::Directory { tree: Some(sha256), epoch },
            (false, true) => Content::Archive { sha256, epoch },
            (false, false) => Content::File { sha256: Some(sha256), executable: self.plan.executable, epoch },
        }
    }

    /// What it is in a job.
    pub(crate) fn into_source(self) -> InputSource {
        let UpstreamPlan { executable, unpack, .. } = *self.plan;
        let Made { sha256, tree, by } = self.made;
        InputSource::Attestation { sha256, executable, unpack, tree, made_by: by }
    }

    /// Has the artifact taken that lies here. Who takes it holds its bytes against the digest that was verified.
    ///
    /// # Errors
    /// [`LocalError`].
    pub(crate) fn hand_over(&self, path: &Path, taker: &dyn Taker, with: &Intake) -> Result<()> {
        let file = open(path)?;
        let meta = file.metadata().map_err(|e| unusable(path, e))?;
        if meta.is_dir() != self.made.tree {
            let (is, path) = (if self.made.tree { "a directory" } else { "a file" }, path.display());
            let reason = format!("{} is {is}, and {path} is not", self.made.by.subject);
            return Err(self.refused(Code::InputRefused, reason));
        }
        match self.made.tree {
            true => self.hand_over_directory(&file, taker, with),
            false => taker.take_file(self.content(), file).map(drop),
        }
    }

    fn hand_over_directory(&self, dir: &File, taker: &dyn Taker, with: &Intake) -> Result<()> {
        let (cancel, watch) = (&with.cancel, &with.watch);
        let packing = |out: &mut dyn Write| {
            let mut out = BufWriter::with_capacity(256 << 10, UntilCancelled { out, cancel, watch });
            pack(dir.as_fd(), &mut out, &|_| false, &Limits::default())
        };
        let (packed, taken) = taker.take_packed(self.content(), &packing)?;
        if cancel.is_cancelled() {
            return Err(LocalError::Cancelled);
        }
        match (packed, taken) {
            (_, Ok(_)) => Ok(()),
            // What cannot be packed is why the rest was refused.
            (Err(error), Err(_)) if !matches!(error, PackError::Write(_)) => {
                Err(self.refused(Code::InputRefused, format!("what it is about: {error}")))
            }
            (_, Err(error)) => Err(error),
        }
    }

    pub(crate) fn refused(&self, code: Code, reason: String) -> LocalError {
        refused(self.plan, code, reason)
    }

    /// The refusal of what nobody has.
    pub(crate) fn missing(&self, where_not: &str) -> LocalError {
        let reason = format!("{} is not {where_not}", self.made.by.subject);
        self.refused(Code::InputMissing, reason)
    }
}

fn refused(plan: &UpstreamPlan, code: Code, reason: String) -> LocalError {
    LocalError::Upstream { code, file: plan.file.clone(), reason }
}

/// Verifies the provenance, and imports what it is about unless the store has it.
pub(super) fn take(
    plan: &UpstreamPlan,
    epoch: u64,
    runner: &Runner,
    downloads: &Downloads,
    with: &Intake,
    importing: &mut dyn FnMut(),
) -> Result<InputSource> {
    let upstream = Upstream::verify(plan, epoch)?;
    let content = upstream.content();
    if runner.find(content.clone())?.is_none() {
        importing();
        // What the store has with other times, or as a file that is to be unpacked, is taken from there: for the job it is
        // the same, because its digest is.
        let (sha256, tree) = (upstream.made.sha256, upstream.made.tree);
        let stored = match &content {
            Content::Archive { .. } => Content::File { sha256: Some(sha256), executable: false, epoch },
            other => other.clone(),
        };
        match (runner.open(stored)?.map(File::from), &plan.artifact) {
            (Some(dir), _) if tree => upstream.hand_over_directory(&dir, runner, with)?,
            (Some(file), _) => {
                runner.import(content, file.into())?;
            }
            (None, ArtifactPlace::Path(path)) => upstream.hand_over(path, runner, with)?,
            (None, ArtifactPlace::Url(_)) if tree => {
                let reason = format!(
                    "{} is a directory, which no URL is; name it with path",
                    upstream.made.by.subject
                );
                return Err(upstream.refused(Code::JobInvalid, reason));
            }
            (None, ArtifactPlace::Url(url)) => {
                let file = downloads.fetch(url, &[], &sha256)?;
                runner.import(content, file.into())?;
            }
            (None, ArtifactPlace::Store) => {
                return Err(upstream.missing("in the store of this host; name it with path or url"));
            }
        }
    }
    Ok(upstream.into_source())
}
