//! Evidence that is kept in the state directory keeps what it speaks of.
//!
//! A job whose evidence lies below `runs/` or `records/` leaves a list of the contents that it used in `kept/`, made
//! before its directory is removed and dropped by a collection when the evidence is gone. Of what the agent wrote there
//! only the name is looked at. A job that still has a directory, whoever runs or recovers it, keeps what its spec names.

use crate::admission::{Refusal, contents, refuse};
use crate::jobdir::State;
use ampoule_spec::wire::Content;
use ampoule_spec::{Blake3, Code, FORMAT, JobId, JobSpec, REPORT_BYTES_MAX, RunReport, SPEC_BYTES_MAX};
use ampoule_store::Store;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// `kept/<job id>`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    ampoule: u32,
    contents: Vec<Content>,
}

/// Before a job's directory is removed: remembers what it used, if its evidence stays here.
pub(crate) fn remember(state: &State, job: &JobId) -> Result<(), String> {
    if !state.has_evidence(job) {
        return Ok(());
    }
    // Without a readable spec nobody can say what it was; the evidence itself says the same.
    let Some(spec) = spec_of(state, job) else { return Ok(()) };
    let kept = Kept { ampoule: FORMAT, contents: contents(&spec) };
    let bytes = serde_json::to_vec(&kept).map_err(|e| e.to_string())?;
    state.keep(job, &bytes).map_err(|e| format!("what the job's evidence needs cannot be remembered: {e}"))
}

/// Every object that a job with a directory or with evidence here needs.
///
/// A list that cannot be read ends it: nothing is removed then, since nobody knows what it needs.
pub(crate) fn needed(state: &State, store: &Store, tidy: bool) -> Result<BTreeSet<Blake3>, Refusal> {
    let io = |e: std::io::Error| refuse(Code::Internal, format!("the state directory cannot be read: {e}"));
    let (mut objects, mut made) = (BTreeSet::new(), Vec::new());
    let mut add = |contents: Vec<Content>| -> Result<(), Refusal> {
        for content in contents {
            let found = store.objects_of(&content).map_err(|e| refuse(e.code(), e.to_string()))?;
            objects.extend(found);
        }
        Ok(())
    };
    // Directories first: a job that is forgotten meanwhile has its list by then.
    for job in state.jobs().map_err(io)? {
        if let Some(spec) = spec_of(state, &job) {
            add(contents(&spec))?;
        }
        made.extend(made_by(state, &job));
    }
    for job in state.kept().map_err(io)? {
        if !state.has_evidence(&job) {
            if tidy && !state.has_directory(&job) {
                state.unkeep(&job).map_err(io)?;
            }
            continue;
        }
        let bytes = state.read_kept(&job, SPEC_BYTES_MAX).map_err(io)?;
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|e| {
            let text = format!(
                "kept/{job} in the state directory is damaged ({e}), so that nobody can say what the job's evidence needs; \
                 remove that file to give it up"
            );
            refuse(Code::Internal, text)
        })?;
        add(kept.contents)?;
    }
    objects.extend(made);
    Ok(objects)
}

/// What a job has made, as its report says: it is not released yet. Afterwards nothing keeps it.
fn made_by(state: &State, job: &JobId) -> Vec<Blake3> {
    let Ok(dir) = state.look_into(job.as_str()) else { return Vec::new() };
    let parse = |bytes: &[u8]| serde_json::from_slice::<RunReport>(bytes).ok();
    let copy = dir.read("report.json", REPORT_BYTES_MAX).ok().and_then(|bytes| parse(&bytes));
    let report = copy.or_else(|| dir.record().ok()?.report.and_then(|bytes| parse(&bytes)));
    report.into_iter().flat_map(|report| report.outputs).map(|output| output.blake3).collect()
}

/// A job's spec: the copy, or what stands in its journal.
fn spec_of(state: &State, job: &JobId) -> Option<JobSpec> {
    let dir = state.look_into(job.as_str()).ok()?;
    let parse = |bytes: &[u8]| serde_json::from_slice(bytes).ok();
    let copy = dir.read("spec.json", SPEC_BYTES_MAX).ok().and_then(|bytes| parse(&bytes));
    copy.or_else(|| dir.record().ok()?.spec.and_then(|bytes| parse(&bytes)))
}
