//! Whose output an input is: the provenance that came with the request, verified with the keys that the operator believes.

use super::options::ProjectFiles;
use crate::chain::chain;
use crate::job::model::Proofs;
use crate::trusted::Believed;
use ampoule_evidence::{Made, MadeByRequest, TrustedKey, made_by};
use ampoule_spec::{Code, Failure, Input, InputSource, JobSpec};
use std::path::Path;

/// Believes what a request says of other jobs' outputs only as far as the provenance beside it proves it. Reads the operator's
/// file; the bytes of all proofs are bounded before. Blocks.
///
/// # Errors
/// `job.invalid` or what [`made_by`] refuses with, with the field of the message.
pub(super) fn check(spec: &JobSpec, proofs: &Proofs, files: &ProjectFiles) -> Result<(), Failure> {
    let mut trusted = None;
    for (at, input) in spec.inputs.iter().enumerate() {
        if !matches!(input.source, InputSource::Attestation { .. }) {
            continue;
        }
        let wrong = |code, field: &str, reason: String| {
            Failure::new(code, format!("inputs[{at}].attestation{field}: {reason}"))
        };
        let Some(file) = &files.trust else {
            let text = "the operator believes nobody's provenance for this project: have its `trust` set";
            return Err(wrong(Code::JobInvalid, "", text.to_owned()));
        };
        let proof = proofs.get(&at).map(Vec::as_slice).unwrap_or_default();
        let keys = match &trusted {
            Some(keys) => keys,
            None => trusted.insert(keys(file)?),
        };
        holds(input, proof, keys).map_err(|(code, reason)| wrong(code, "", reason))?;
    }
    Ok(())
}

/// Whether a job has anything to prove.
pub(super) fn is_needed(spec: &JobSpec) -> bool {
    spec.inputs.iter().any(|input| matches!(input.source, InputSource::Attestation { .. }))
}

/// What a tenant hears of a file of the operator's is that something is wrong with it.
fn keys(file: &Path) -> Result<Vec<TrustedKey>, Failure> {
    Believed::Trust(file.to_owned()).keys().map_err(|error| {
        tracing::error!(file = %file.display(), reason = error.reason, "the keys that a project's jobs believe cannot be read");
        Failure::new(Code::Internal, crate::api::DEFECT.to_owned())
    })
}

/// A development builder proves nothing: no field of the wire asks for one.
fn holds(input: &Input, proof: &[u8], trusted: &[TrustedKey]) -> Result<(), (Code, String)> {
    let InputSource::Attestation { sha256, tree, made_by: said, .. } = &input.source else { return Ok(()) };
    let request = MadeByRequest {
        attestation: proof,
        trusted,
        subject: Some(said.subject.as_str()),
        builder: Some(&said.builder),
        allow_dev: false,
    };
    let proved = made_by(&request).map_err(|error| (error.code(), chain(&error)))?;
    if proved == (Made { sha256: *sha256, tree: *tree, by: said.clone() }) {
        return Ok(());
    }
    let Made { sha256, tree, by } = proved;
    let kind = if tree { "directory" } else { "file" };
    let reason = format!(
        "its provenance proves something else: the {kind} sha256:{sha256}, made by job {} and signed with {} in statement sha256:{}",
        by.job, by.key, by.statement
    );
    Err((Code::JobInvalid, reason))
}
