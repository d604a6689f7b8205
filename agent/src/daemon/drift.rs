//! When the host is compared with its baseline, and what follows from that.
//!
//! It is compared by the clock; at once when the launcher has come up, because that may be another one, and no job is given to it
//! before; and within a second when the file of a program is another, whoever runs it.

use super::config::Config;
use super::host;
use super::services::{Services, Trouble};
use super::vitals::Vitals;
use crate::audit::{Action, AuditEvent, OURSELVES};
use crate::job::Keeper;
use std::future::pending;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Which file a program is, without reading it: its path, device, inode, length, and the times of its last change.
type Stamp = (PathBuf, [u64; 3], [i64; 2]);

/// Looks at the host, if it has a baseline.
pub(super) struct Watch {
    config: Config,
    vitals: Arc<Vitals>,
    /// The facts that were last told to be others.
    told: Vec<String>,
    /// How often the launcher had come up before the last look.
    under: u64,
    /// The programs as they were before the last look.
    stamps: Vec<Stamp>,
    /// What the first look found, until it is told.
    first: Option<Vec<String>>,
}

impl Watch {
    /// Looks for the first time, before there is any launcher.
    ///
    /// # Errors
    /// If the host cannot be compared: then nobody knows what it is.
    pub(super) async fn begin(config: &Config, vitals: &Arc<Vitals>) -> Result<Self, Trouble> {
        let mut watch = Self {
            config: config.clone(),
            vitals: vitals.clone(),
            told: Vec::new(),
            under: 0,
            stamps: stamps(),
            first: None,
        };
        watch.first = Some(watch.compare().await?);
        Ok(watch)
    }

    /// Whether the first look found drift that ends the intake. None: drift ends nothing here.
    pub(super) fn drifted(&self) -> Option<bool> {
        let is_other = self.first.as_ref().is_some_and(|first| !first.is_empty());
        self.config.host.refuse_on_drift.then_some(is_other)
    }

    /// Tells what the first look found.
    pub(super) async fn tell_first(&mut self, services: &Services) {
        let found = self.first.take().unwrap_or_default();
        self.see(found, services).await;
    }

    /// Looks again. What cannot be compared is not known to be as it was.
    pub(super) async fn look(&mut self, services: &Services) {
        if self.config.host.baseline.is_none() {
            return;
        }
        (self.under, self.stamps) = (*services.keeper.launchers().borrow(), stamps());
        let found = self.compare().await.unwrap_or_else(|error| {
            tracing::error!(%error, "the host cannot be compared with its baseline");
            self.vitals.set_drift(1, self.config.host.refuse_on_drift);
            vec!["the host cannot be compared with its baseline".to_owned()]
        });
        self.see(found, services).await;
    }

    /// The same if the file of a program is another than at the last look.
    pub(super) async fn look_if_replaced(&mut self, services: &Services) {
        if self.config.host.baseline.is_some() && stamps() != self.stamps {
            self.look(services).await;
        }
    }

    /// Returns when the launcher has come up since the last look.
    pub(super) async fn until_risen(&self, keeper: &Keeper) {
        let mut launchers = keeper.launchers();
        let is_another = launchers.wait_for(|risen| *risen != self.under).await.is_ok();
        if self.config.host.baseline.is_none() || !is_another {
            pending::<()>().await;
        }
    }

    /// The facts that are others.
    async fn compare(&self) -> Result<Vec<String>, Trouble> {
        let Some(path) = self.config.host.baseline.clone() else { return Ok(Vec::new()) };
        let config = self.config.clone();
        let compared = tokio::task::spawn_blocking(move || host::compare(&path, &host::facts(&config))).await;
        let drift = compared.map_err(|e| Trouble::Defect(format!("the host's facts: {e}")))?;
        let drift = drift.map_err(|e| Trouble::Config(e.to_string()))?;
        for host::Drift { fact, recorded, found } in &drift {
            tracing::warn!(fact, recorded, found, "the host is not what its baseline says");
        }
        self.vitals.set_drift(drift.len(), self.config.host.refuse_on_drift);
        Ok(drift.into_iter().map(|host::Drift { fact, .. }| fact).collect())
    }

    /// Writes down a drift that is another than before, and ends or resumes the intake. What could not be written is tried
    /// again at the next look, and until then what is better than before does not count.
    async fn see(&mut self, found: Vec<String>, services: &Services) {
        let refuses = self.config.host.refuse_on_drift;
        if found != self.told {
            let entry = AuditEvent::now(Action::Drifted, OURSELVES).with("facts", found.len().to_string());
            if services.recorder.write(&entry.with("first", found.join(", "))).await.is_err() {
                if !found.is_empty() {
                    services.set_drifted(refuses, self.under).await;
                }
                return;
            }
            self.told = found;
        }
        services.set_drifted(refuses && !self.told.is_empty(), self.under).await;
    }
}

/// Our own program and the launcher's, as far as they are there.
fn stamps() -> Vec<Stamp> {
    let paths = std::env::current_exe().ok().into_iter().chain(crate::local::find_runner().ok());
    let stamp = |path: PathBuf| {
        let of = std::fs::metadata(&path).ok()?;
        Some((path, [of.dev(), of.ino(), of.size()], [of.ctime(), of.ctime_nsec()]))
    };
    paths.filter_map(stamp).collect()
}
