//! What the parts of the daemon ask of each other, where neither knows the other.

use super::able::ThisHost;
use super::vitals::Vitals;
use crate::api::ContentGate;
use crate::api::jobs::Uploads;
use crate::content::{ContentError, Contents, Gate, ImportError, Importer, content_ref};
use crate::job::{JobsError, Shown};
use crate::local::{Runner, RunnerError};
use crate::visits::{Source, Visit};
use ampoule_spec::wire::{Content, Imported};
use ampoule_spec::{Code, JobSpec, Name};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use tonic::{Extensions, Status};

/// The content of all projects, over the launcher's store.
pub(super) type ProjectContents = Contents<ToLauncher>;

/// Brings uploads into the launcher's store: a session for each, because a session does one thing at a time.
#[derive(Debug)]
pub(super) struct ToLauncher {
    pub(super) socket: PathBuf,
    pub(super) vitals: Arc<Vitals>,
}

impl ToLauncher {
    fn session(&self) -> Result<Runner, ImportError> {
        Runner::connect(&self.socket).map_err(refused)
    }
}

/// A launcher that is away comes back; what it says itself is its word.
fn refused(error: RunnerError) -> ImportError {
    let code = match &error {
        RunnerError::Refused { code, .. } => *code,
        _ => Code::AdmissionBusy,
    };
    ImportError { code, message: crate::chain::chain(&error) }
}

impl Importer for ToLauncher {
    fn present(&self, contents: &[Content]) -> Result<Vec<bool>, ImportError> {
        let session = self.session()?;
        contents
            .iter()
            .map(|content| session.find(content.clone()).map(|found| found.is_some()).map_err(refused))
            .collect()
    }

    fn import(&self, content: Content, bytes: File) -> Result<Imported, ImportError> {
        let imported = self.session()?.import(content, bytes.into()).map_err(refused)?;
        self.vitals.metrics.imports.inc();
        self.vitals.metrics.import_bytes.inc_by(imported.bytes);
        Ok(imported)
    }
}

/// What projects have shown, for those who ask about jobs.
#[derive(Debug)]
pub(super) struct OfProjects {
    pub(super) contents: Arc<ProjectContents>,
    /// Says which profiles jobs may ask for.
    pub(super) host: Arc<ThisHost>,
}

impl Shown for OfProjects {
    fn has(&self, project: &Name, content: &Content) -> bool {
        self.contents.is_known(project, content)
    }

    fn record(&self, project: &Name, content: &Content) {
        if let Err(error) = self.contents.record(project, content) {
            // The job goes on; a later one may have to upload what was fetched for this one.
            tracing::warn!(%error, project = project.as_str(), "a content is not recorded");
        }
    }

    fn visit(&self, project: &Name, source: &Source) -> Option<Visit> {
        self.contents.visit(project, source)
    }

    fn record_visit(&self, project: &Name, source: &Source, visit: &Visit) {
        if let Err(error) = self.contents.record_visit(project, source, visit) {
            // A later job asks there again.
            tracing::warn!(%error, project = project.as_str(), "where something was fetched is not recorded");
        }
    }
}

impl Uploads for OfProjects {
    async fn missing(&self, project: &Name, spec: &JobSpec) -> Result<Vec<String>, JobsError> {
        self.host.takes(&spec.profile).await?;
        let missing = self.contents.check(project, spec).await.map_err(unknown)?;
        Ok(missing.iter().map(named).collect())
    }
}

fn unknown(error: ContentError) -> JobsError {
    JobsError { code: error.code, message: error.message, retry_after: error.retry_after }
}

/// A content as `kind:digest`.
fn named(content: &Content) -> String {
    let reference = content_ref(content).unwrap_or_default();
    let kind = reference.kind().as_str_name().trim_start_matches("CONTENT_KIND_").to_ascii_lowercase();
    format!("{kind}:{}", reference.sha256)
}

/// The gate of content, which counts what passes it.
#[derive(Debug)]
pub(super) struct CountedGate {
    pub(super) gate: ContentGate,
    pub(super) vitals: Arc<Vitals>,
}

impl Gate for CountedGate {
    async fn allow(&self, call: &'static str, project: &Name, extensions: &Extensions) -> Result<(), Status> {
        self.gate.allow(call, project, extensions).await
    }

    fn received(&self, bytes: u64) {
        self.vitals.metrics.upload_bytes.inc_by(bytes);
    }
}
