//! What a run has released, as its output directory has it.

use super::documents::Named;
use super::error::ExportError;
use super::image::is_layout;
use crate::artifact::artifact;
use crate::files::read_file;
use ampoule_evidence::{ATTESTATION_BYTES_MAX, Bundle, PROVENANCE_PREDICATE_TYPE};
use ampoule_spec::{OutputName, Sha256};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, ExportError>;

/// The largest `result.json`, in bytes.
const RESULT_BYTES_MAX: u64 = 1 << 20;

/// An output that provenance names.
#[derive(Debug)]
pub(super) struct Artifact {
    pub(super) named: Named,
    pub(super) path: PathBuf,
    pub(super) tree: bool,
}

/// What a run has released.
#[derive(Debug)]
pub(super) struct Released {
    /// Never empty, in the order of the statement.
    pub(super) artifacts: Vec<Artifact>,
    /// The only one of them, if it is an OCI layout.
    pub(super) image: Option<PathBuf>,
    pub(super) bundle: Vec<u8>,
}

#[derive(Deserialize)]
struct ResultFile {
    outcome: String,
    attestation: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    name: String,
    digest: BTreeMap<String, String>,
}

impl Released {
    /// Reads an output directory: its provenance, and the artifacts of these names, of all that it names if there is none.
    ///
    /// # Errors
    /// [`ExportError::NotReleased`] without provenance; [`ExportError::Changed`] if an artifact is not what it names;
    /// [`ExportError::Refused`] for a name that it does not have.
    pub(super) fn read(out: &Path, only: &[String]) -> Result<Self> {
        let evidence = out.join("evidence");
        let path = evidence.join("result.json");
        if !path.is_file() {
            let reason = format!(
                "{} is not the output directory of a run: it has no evidence/result.json",
                out.display()
            );
            return Err(ExportError::refused(reason));
        }
        let result = read_limited(&path, RESULT_BYTES_MAX)?;
        let result: ResultFile = serde_json::from_slice(&result)
            .map_err(|e| changed(format!("{}/result.json: {e}", evidence.display())))?;
        let name = result.attestation.strip_suffix(".intoto.jsonl").filter(|name| *name != "run");
        let (true, Some(name)) = (result.outcome == "succeeded", name) else {
            let outcome: String = result.outcome.chars().take(40).collect();
            let reason = format!("no provenance was released for the job of {} ({outcome})", out.display());
            return Err(ExportError::NotReleased { reason });
        };
        let name = OutputName::parse(name).map_err(|e| changed(format!("result.json, attestation: {e}")))?;
        let path = evidence.join(format!("{name}.sigstore.json"));
        let limit = u64::try_from(ATTESTATION_BYTES_MAX).unwrap_or(u64::MAX);
        let bundle = read_limited(&path, limit)?;
        let subjects =
            subjects(&bundle).map_err(|reason| changed(format!("{}: {reason}", path.display())))?;
        let subjects = chosen(subjects, only)?;
        let outputs = out.join("outputs");
        let artifacts = subjects.into_iter().map(|(name, sha256)| read_artifact(&outputs, &name, sha256));
        let artifacts: Vec<Artifact> = artifacts.collect::<Result<_>>()?;
        let image = match artifacts.as_slice() {
            [only] if only.tree && is_layout(&only.path) => Some(only.path.clone()),
            _ => None,
        };
        Ok(Self { artifacts, image, bundle })
    }
}

/// The subjects of a provenance statement in a bundle.
fn subjects(bundle: &[u8]) -> std::result::Result<Vec<(OutputName, Sha256)>, String> {
    let bundle = Bundle::parse(bundle).map_err(|e| e.to_string())?;
    let statement: Statement =
        serde_json::from_slice(bundle.envelope().payload()).map_err(|e| format!("the statement: {e}"))?;
    if statement.predicate_type != PROVENANCE_PREDICATE_TYPE {
        return Err("it is no provenance".to_owned());
    }
    if statement.subject.is_empty() {
        return Err("it has no subject".to_owned());
    }
    let read = |subject: Subject| {
        let name = OutputName::parse(&subject.name).map_err(|e| e.to_string())?;
        let hex = subject.digest.get("sha256").ok_or_else(|| format!("subject {name} has no sha256"))?;
        Ok((name, Sha256::parse(hex).map_err(|e| e.to_string())?))
    };
    statement.subject.into_iter().map(read).collect()
}

/// The subjects of these names; all of them if there is none.
fn chosen(subjects: Vec<(OutputName, Sha256)>, only: &[String]) -> Result<Vec<(OutputName, Sha256)>> {
    if let Some(unknown) = only.iter().find(|name| !subjects.iter().any(|(n, _)| n.as_str() == **name)) {
        let names: Vec<&str> = subjects.iter().map(|(name, _)| name.as_str()).collect();
        let reason = format!("provenance names no output {unknown:?}; it names {}", names.join(", "));
        return Err(ExportError::refused(reason));
    }
    let wanted = |name: &OutputName| only.is_empty() || only.iter().any(|n| n == name.as_str());
    Ok(subjects.into_iter().filter(|(name, _)| wanted(name)).collect())
}

fn read_artifact(outputs: &Path, name: &OutputName, sha256: Sha256) -> Result<Artifact> {
    let path = outputs.join(name.as_str());
    let cannot = |e| ExportError::file(path.display().to_string(), e);
    let meta = std::fs::symlink_metadata(&path).map_err(cannot)?;
    if !meta.is_file() && !meta.is_dir() {
        return Err(changed(format!("{} is neither file nor directory", path.display())));
    }
    let found = artifact(&path).map_err(|e| changed(format!("{}: {e}", path.display())))?;
    if found.sha256 != sha256 {
        let reason = format!(
            "{} is no longer what provenance names: expected sha256:{sha256}, found sha256:{}",
            path.display(),
            found.sha256
        );
        return Err(changed(reason));
    }
    let executable = meta.mode() & 0o100 != 0;
    let executable = executable && !found.tree;
    // What a directory is as a blob is not known before it is packed.
    let tree = found.tree.then_some(sha256);
    let named = Named { name: name.as_str().to_owned(), sha256, bytes: meta.len(), executable, tree };
    Ok(Artifact { named, path, tree: found.tree })
}

fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    read_file(path, limit).map_err(|e| ExportError::file(path.display().to_string(), e))
}

fn changed(reason: String) -> ExportError {
    ExportError::Changed { reason }
}
