//! What another job has made, as an input: its provenance is verified before a byte of it is taken in.

use super::LocalError;
use super::download::Downloads;
use super::intake::{Intake, UntilCancelled, open, unusable};
use super::runner::{Runner, RunnerError};
use crate::chain::chain;
use crate::files::read_file;
use crate::jobfile::{ArtifactPlace, UpstreamPlan};
use ampoule_evidence::{ATTESTATION_BYTES_MAX, Made, MadeByRequest, made_by};
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, InputSource};
use ampoule_store::Limits;
use ampoule_store::pack::{PackError, pack};
use std::fs::File;
use std::io::BufWriter;
use std::os::fd::AsFd;

type Result<T> = std::result::Result<T, LocalError>;

/// Verifies the provenance, and imports what it is about unless the store has it.
pub(super) fn take(
    plan: &UpstreamPlan,
    epoch: u64,
    runner: &Runner,
    downloads: &Downloads,
    with: &Intake,
    importing: &mut dyn FnMut(),
) -> Result<InputSource> {
    let refused = |code: Code, reason: String| LocalError::Upstream { code, file: plan.file.clone(), reason };
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
    let Made { sha256, tree, by } =
        made_by(&request).map_err(|error| refused(error.code(), chain(&error)))?;
    if tree && (plan.unpack || plan.executable) {
        let reason = format!("{} is a directory; remove unpack and executable", by.subject);
        return Err(refused(Code::JobInvalid, reason));
    }
    let content = match (tree, plan.unpack) {
        (true, _) => Content::Directory { tree: Some(sha256), epoch },
        (false, true) => Content::Archive { sha256, epoch },
        (false, false) => Content::File { sha256: Some(sha256), executable: plan.executable, epoch },
    };
    if runner.find(content.clone())?.is_none() {
        importing();
        // What the store has with other times, or as a file that is to be unpacked, is taken from there: for the job it is
        // the same, because its digest is.
        let stored = match &content {
            Content::Archive { .. } => Content::File { sha256: Some(sha256), executable: false, epoch },
            other => other.clone(),
        };
        let found = runner.open(stored)?.map(File::from);
        let bytes = match (found, &plan.artifact) {
            (Some(found), _) => found,
            (None, ArtifactPlace::Path(path)) => {
                let file = open(path)?;
                let meta = file.metadata().map_err(|e| unusable(path, e))?;
                if meta.is_dir() != tree {
                    let (is, path) = (if tree { "a directory" } else { "a file" }, path.display());
                    let reason = format!("{} is {is}, and {path} is not", by.subject);
                    return Err(refused(Code::InputRefused, reason));
                }
                file
            }
            (None, ArtifactPlace::Url(_)) if tree => {
                let reason = format!("{} is a directory, which no URL is; name it with path", by.subject);
                return Err(refused(Code::JobInvalid, reason));
            }
            (None, ArtifactPlace::Url(url)) => downloads.fetch(url, &[], &sha256)?,
            (None, ArtifactPlace::Store) => {
                let reason =
                    format!("{} is not in the store of this host; name it with path or url", by.subject);
                return Err(refused(Code::InputMissing, reason));
            }
        };
        // The import holds the bytes against the digest that was verified.
        match tree {
            true => import_directory(plan, &bytes, content, runner, with)?,
            false => {
                runner.import(content, bytes.into())?;
            }
        }
    }
    let (executable, unpack) = (plan.executable, plan.unpack);
    Ok(InputSource::Attestation { sha256, executable, unpack, tree, made_by: by })
}

/// Streams a directory to the import worker; the runner holds what comes of it against the digest that was verified.
fn import_directory(
    plan: &UpstreamPlan,
    dir: &File,
    content: Content,
    runner: &Runner,
    with: &Intake,
) -> Result<()> {
    let (cancel, watch) = (&with.cancel, &with.watch);
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| unusable(&plan.file, e.into()))?;
    let (packed, imported) = std::thread::scope(|scope| {
        let packing = scope.spawn(|| {
            let out = UntilCancelled { out: File::from(write), cancel, watch };
            let mut out = BufWriter::with_capacity(256 << 10, out);
            pack(dir.as_fd(), &mut out, &|_| false, &Limits::default())
        });
        let imported = runner.import(content, read);
        (packing.join(), imported)
    });
    if cancel.is_cancelled() {
        return Err(LocalError::Cancelled);
    }
    match (packed, imported) {
        (_, Ok(_)) => Ok(()),
        // What cannot be packed is why the rest was refused.
        (Ok(Err(error)), Err(_)) if !matches!(error, PackError::Write(_)) => {
            let (code, file) = (Code::InputRefused, plan.file.clone());
            Err(LocalError::Upstream { code, file, reason: format!("what it is about: {error}") })
        }
        (Ok(_), Err(error)) => Err(error.into()),
        (Err(_), Err(_)) => Err(RunnerError::OutOfTurn.into()),
    }
}
