//! What another job has made, as an input: its provenance is verified before a byte of it is taken in.

use super::LocalError;
use super::download::Downloads;
use super::intake::{open, unusable};
use super::runner::Runner;
use crate::chain::chain;
use crate::files::read_file;
use crate::jobfile::{ArtifactPlace, UpstreamPlan};
use ampoule_evidence::{ATTESTATION_BYTES_MAX, MadeByRequest, made_by};
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, InputSource};

type Result<T> = std::result::Result<T, LocalError>;

/// Verifies the provenance, and imports what it is about unless the store has it.
pub(super) fn take(
    plan: &UpstreamPlan,
    epoch: u64,
    runner: &Runner,
    downloads: &Downloads,
    importing: &mut dyn FnMut(),
) -> Result<InputSource> {
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
    let (sha256, made_by) = made_by(&request).map_err(|error| LocalError::Upstream {
        code: error.code(),
        file: plan.file.clone(),
        reason: chain(&error),
    })?;
    let content = match plan.unpack {
        true => Content::Archive { sha256, epoch },
        false => Content::File { sha256: Some(sha256), executable: plan.executable, epoch },
    };
    if runner.find(content.clone())?.is_none() {
        importing();
        // The import holds the bytes against the digest that was verified.
        let bytes = match &plan.artifact {
            ArtifactPlace::Path(path) => open(path)?,
            ArtifactPlace::Url(url) => downloads.fetch(url, &[], &sha256)?,
        };
        runner.import(content, bytes.into())?;
    }
    Ok(InputSource::Attestation { sha256, executable: plan.executable, unpack: plan.unpack, made_by })
}
