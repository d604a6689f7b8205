//! The record of a job whose outputs and logs stay where they are: its signed evidence alone, made once and read back.

use super::evidence::Signing;
use super::place::Place;
use super::release::{
    Evidence, Released, aside, builder_of, content_of, parent, provenance_of, read_limited, write_evidence,
    write_result,
};
use super::{LocalError, ReleasedOutput};
use ampoule_evidence::{ATTESTATION_BYTES_MAX, JobRecord};
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, Failure, Outcome, OutputForm, REPORT_BYTES_MAX, RunReport, SPEC_BYTES_MAX, Sha256};
use serde::Deserialize;
use std::io;
use std::path::Path;

/// The run attestation in a record: with it the record is whole.
const RUN: &str = "run.intoto.jsonl";
/// The most bytes of `result.json`; its message is the report's.
const RESULT_BYTES_MAX: u64 = REPORT_BYTES_MAX;

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recorded {
    pub(crate) outcome: Outcome,
    pub(crate) failure: Option<Failure>,
    pub(crate) outputs: Vec<ReleasedOutput>,
    /// The run attestation's envelope, as it lies there.
    pub(crate) attestation: Vec<u8>,
    pub(crate) builder: String,
}

/// What is read of `result.json`.
#[derive(Debug, Deserialize)]
struct ResultRead {
    code: Option<Code>,
    message: Option<String>,
    builder: String,
}

/// Signs a job and makes its evidence durable as `dir`, which must be new. Outputs and logs stay in the job's directory.
pub(crate) fn record(evidence: &Evidence, dir: &Path, signing: &Signing) -> Result<(), LocalError> {
    let (sealed, refused) = provenance_of(evidence, signing)?;
    let run = signing.attest_run(evidence, sealed.as_ref().map(|s| s.statement_sha256))?;
    let failed = |e: io::Error| LocalError::file("the record", dir, &e);
    let released = Released {
        provenance: sealed.is_some(),
        builder: builder_of(evidence, signing),
        outputs: released_outputs(evidence.record.report(), refused.as_ref()),
        refused,
    };
    let id = evidence.record.spec().id.as_str();
    let parent = Place::open(&parent(dir)).map_err(failed)?;
    let aside = aside(id);
    let made = parent.make(&aside).map_err(failed)?;
    let written = write_evidence(evidence, &made, sealed.as_ref(), &run)
        .and_then(|()| write_result(evidence, &released, &made))
        .and_then(|()| made.sync())
        .and_then(|()| parent.publish(&aside, &made, id));
    written.map_err(|error| {
        parent.discard(&aside, &made);
        failed(error)
    })
}

/// The outputs that a job's evidence lets out.
pub(super) fn released_outputs(report: &RunReport, refused: Option<&Failure>) -> Vec<ReleasedOutput> {
    let withheld = refused.is_some() || report.outcome == Outcome::Quarantined;
    let outputs = report.outputs.iter().filter(|_| !withheld);
    outputs.map(ReleasedOutput::of).collect()
}

/// Reads a record back; none: there is none. A record appears whole or not at all.
pub(crate) fn recorded(dir: &Path) -> Result<Option<Recorded>, LocalError> {
    if !dir.join(RUN).exists() {
        return Ok(None);
    }
    let spec = read_limited(&dir.join("spec.json"), SPEC_BYTES_MAX)?;
    let report = read_limited(&dir.join("report.json"), REPORT_BYTES_MAX)?;
    let wrong = |reason: String| LocalError::file("the record", dir, &io::Error::other(reason));
    let record = JobRecord::read(&spec, &report).map_err(|e| wrong(e.to_string()))?;
    let result = read_limited(&dir.join("result.json"), RESULT_BYTES_MAX)?;
    let result: ResultRead = serde_json::from_slice(&result).map_err(|e| wrong(e.to_string()))?;
    let report = record.report();
    let refused = match (report.outcome, result.code) {
        // The job succeeded, and its provenance was refused: nothing of it is let out.
        (Outcome::Succeeded, Some(code)) => {
            let message = result.message.unwrap_or_default();
            Some(Failure::new(code, message))
        }
        _ => None,
    };
    Ok(Some(Recorded {
        outcome: refused.as_ref().map_or(report.outcome, |refused| Outcome::of(refused.code)),
        outputs: released_outputs(report, refused.as_ref()),
        failure: refused.or_else(|| report.failure.clone()),
        attestation: read_limited(&dir.join(RUN), ATTESTATION_BYTES_MAX as u64)?,
        builder: result.builder,
    }))
}

/// What the store has of an output, by the record: its content, its form, and the modification time of its entries.
pub(crate) fn recorded_output(
    dir: &Path,
    name: &str,
) -> Result<Option<(Content, OutputForm, u64)>, LocalError> {
    let spec = read_limited(&dir.join("spec.json"), SPEC_BYTES_MAX)?;
    let report = read_limited(&dir.join("report.json"), REPORT_BYTES_MAX)?;
    let record = JobRecord::read(&spec, &report)
        .map_err(|e| LocalError::file("the record", dir, &io::Error::other(e.to_string())))?;
    let epoch = record.spec().source_date_epoch;
    let output = record.report().outputs.iter().find(|output| output.name.as_str() == name);
    Ok(output.map(|output| (content_of(output, epoch), output.form, epoch)))
}

/// SHA-256 of an envelope.
pub(crate) fn sha256(bytes: &[u8]) -> Sha256 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    Sha256::new(digest.as_ref().try_into().unwrap_or_default())
}
