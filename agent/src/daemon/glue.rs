//! What the parts of the daemon ask of each other, where neither knows the other.

use super::config::Config;
use super::vitals::Vitals;
use crate::api::host::{Host, HostFacts};
use crate::api::jobs::Uploads;
use crate::content::{ContentError, Contents, ImportError, Importer, content_ref};
use crate::job::queue::Amount;
use crate::job::{JobsError, Shown};
use crate::local::{Runner, RunnerError};
use crate::visits::{Source, Visit};
use ampoule_spec::wire::{Content, Imported};
use ampoule_spec::{Code, JobSpec, Name};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often a launcher that could not be asked is asked again.
const MEASURE_AGAIN: Duration = Duration::from_secs(30);

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
    /// Profiles that jobs may ask for.
    pub(super) profiles: Vec<Name>,
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
        if !self.profiles.contains(&spec.profile) {
            let known: Vec<&str> = self.profiles.iter().map(Name::as_str).collect();
            let message = format!(
                "profile {} is not allowed on this host; allowed: {}",
                spec.profile,
                known.join(", ")
            );
            return Err(JobsError { code: Code::AdmissionDenied, message, retry_after: None });
        }
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

/// What the host can do, as far as it is known.
#[derive(Debug)]
pub(super) struct ThisHost {
    profiles: Vec<Name>,
    socket: PathBuf,
    capacity: Mutex<Amount>,
    /// What the launcher measured last, and its version.
    measured: Mutex<HostFacts>,
}

impl ThisHost {
    pub(super) fn new(of: &Config, capacity: Amount) -> Self {
        let (profiles, socket) = (of.profiles.clone(), of.runner.socket.clone());
        Self { profiles, socket, capacity: Mutex::new(capacity), measured: Mutex::default() }
    }

    /// It promises so much from now on.
    pub(super) fn promise(&self, capacity: Amount) {
        *self.capacity.lock().unwrap_or_else(PoisonError::into_inner) = capacity;
    }

    /// Has the launcher measure each profile until it has.
    pub(super) async fn measure(self: Arc<Self>) {
        loop {
            let host = self.clone();
            let measured = tokio::task::spawn_blocking(move || host.ask()).await;
            if let Ok(Ok(facts)) = measured {
                *self.measured.lock().unwrap_or_else(PoisonError::into_inner) = facts;
                return;
            }
            tokio::time::sleep(MEASURE_AGAIN).await;
        }
    }

    fn ask(&self) -> Result<HostFacts, RunnerError> {
        let mut facts = HostFacts::default();
        for profile in &self.profiles {
            let runner = Runner::connect(&self.socket)?;
            let measured = runner.doctor(profile.clone())?;
            facts.profiles.push((profile.to_string(), measured.missing));
        }
        Ok(facts)
    }
}

impl Host for ThisHost {
    async fn facts(&self) -> HostFacts {
        let measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let capacity = *self.capacity.lock().unwrap_or_else(PoisonError::into_inner);
        HostFacts {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            cpu_millis: capacity.cpu_millis,
            memory_bytes: capacity.memory_bytes,
            disk_bytes: capacity.disk_bytes,
            ..measured
        }
    }
}
