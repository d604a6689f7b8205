//! The daemon's own entries in the audit log, and those of others who cannot wait for one.

use super::vitals::Vitals;
use crate::audit::{Action, AuditError, AuditEvent, AuditLog, Decision};
use crate::audit_sink::{AuditSink, Refusal, Refused};
use ampoule_spec::{JobId, Name, UnixNanos};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

/// How many entries of those who cannot wait may wait. A stranger decides how many there are; what is beyond is counted.
const WAITING_MAX: usize = 1024;
/// How often a refused call is logged; all are counted.
const LOG_EVERY: Duration = Duration::from_secs(1);
/// Who acts when nobody calls.
const OURSELVES: &str = "daemon";

/// Writes to the audit log.
#[derive(Debug, Clone)]
pub(super) struct Recorder {
    log: Arc<AuditLog>,
    waiting: mpsc::Sender<AuditEvent>,
    vitals: Arc<Vitals>,
    logged: Arc<Mutex<Option<Instant>>>,
}

/// An entry of the daemon's.
pub(super) fn ours(action: Action, reason: impl Into<String>) -> AuditEvent {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    AuditEvent {
        at: UnixNanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)),
        actor: OURSELVES.to_owned(),
        action,
        project: None,
        job: None,
        decision: Decision::Allowed,
        reason: reason.into(),
        detail: BTreeMap::new(),
    }
}

impl Recorder {
    /// Begins to write. The task ends when nobody can ask it any more.
    pub(super) fn begin(log: AuditLog, vitals: Arc<Vitals>) -> (Self, tokio::task::JoinHandle<()>) {
        let (waiting, mut asked) = mpsc::channel(WAITING_MAX);
        let log = Arc::new(log);
        let recorder = Self { log: log.clone(), waiting, vitals: vitals.clone(), logged: Arc::default() };
        let task = tokio::spawn(async move {
            while let Some(event) = asked.recv().await {
                let _ = append(&log, &vitals, &event).await;
            }
        });
        (recorder, task)
    }

    /// Writes an entry, and waits until it is durable.
    ///
    /// # Errors
    /// [`AuditError`]; it is counted.
    pub(super) async fn write(&self, event: &AuditEvent) -> Result<(), AuditError> {
        append(&self.log, &self.vitals, event).await
    }

    /// Has an entry written soon. One for which there is no room is counted as one that failed.
    pub(super) fn soon(&self, event: AuditEvent) {
        if self.waiting.try_send(event).is_err() {
            self.vitals.metrics.audit_failures.inc();
        }
    }
}

async fn append(log: &AuditLog, vitals: &Vitals, event: &AuditEvent) -> Result<(), AuditError> {
    match log.append(event).await {
        Ok(_) => {
            vitals.metrics.audit_appends.inc();
            Ok(())
        }
        Err(error) => {
            vitals.metrics.audit_failures.inc();
            tracing::error!(error = crate::chain::chain(&error), "the audit log was not written");
            Err(error)
        }
    }
}

impl AuditSink for Recorder {
    fn record(&self, refused: &Refused<'_>) {
        let metrics = &self.vitals.metrics;
        let action = match refused.refusal {
            Refusal::Unidentified => {
                metrics.auth_failures.inc();
                Action::AuthFailed
            }
            Refusal::Denied => {
                metrics.denied.inc();
                Action::Denied
            }
        };
        let mut event = ours(action, refused.reason);
        event.actor = refused.caller.map_or("unknown", |caller| &caller.subject).to_owned();
        event.project = refused.project.and_then(|project| Name::parse(project).ok());
        event.job = refused.job.cloned();
        event.decision = Decision::Denied;
        for (key, value) in
            [("peer", Some(refused.peer)), ("call", Some(refused.call)), ("action", refused.action)]
        {
            if let Some(value) = value {
                event.detail.insert(key.to_owned(), value.to_owned());
            }
        }
        self.soon(event);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            return;
        }
        *logged = Some(Instant::now());
        tracing::warn!(
            refusal = refused.refusal.as_str(),
            peer = refused.peer,
            caller = refused.caller.map(|caller| caller.subject.as_str()),
            call = refused.call,
            job = refused.job.map(JobId::as_str),
            reason = refused.reason,
            "a call was refused"
        );
    }
}
