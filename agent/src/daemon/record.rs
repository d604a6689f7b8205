//! The one way into the audit log: what is about to be done waits until it is durable; what was refused is counted, and told
//! when there is time.

use super::vitals::Vitals;
use crate::audit::{Action, AuditError, AuditEvent, AuditLog, Tally};
use crate::audit_sink::{AuditSink, Refusal, Refused};
use crate::job::{End, Job, Witness};
use ampoule_spec::JobId;
use futures_util::future::{BoxFuture, join_all};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long refused calls are counted before they are told, at first and at most: doubled as long as strangers make many entries.
const WINDOW: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));
/// How many entries of a window are many.
const MANY: usize = 16;
/// How often a refused call is logged; all are counted.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Writes to the audit log.
#[derive(Debug, Clone)]
pub(super) struct Recorder {
    log: Arc<AuditLog>,
    vitals: Arc<Vitals>,
    refused: Arc<Mutex<Tally>>,
    /// Rings when there is something in `refused`; all of them gone end the task.
    bell: mpsc::Sender<()>,
    logged: Arc<Mutex<Option<Instant>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// Begins to write. The task tells of refused calls, and ends when nobody can ask it any more.
    pub(super) fn begin(log: AuditLog, vitals: Arc<Vitals>) -> (Self, tokio::task::JoinHandle<()>) {
        let (bell, rung) = mpsc::channel(1);
        let (log, refused) = (Arc::new(log), Arc::new(Mutex::default()));
        let task = tokio::spawn(tell(log.clone(), vitals.clone(), refused.clone(), rung));
        (Self { log, vitals, refused, bell, logged: Arc::default() }, task)
    }

    /// Writes an entry, and waits until it is durable.
    ///
    /// # Errors
    /// [`AuditError`]; it is counted, and what it was to tell of must not be done.
    pub(super) async fn write(&self, event: &AuditEvent) -> Result<(), AuditError> {
        append(&self.log, &self.vitals, event).await
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

/// Tells of refused calls. What cannot be written is kept, and new ones are counted meanwhile.
async fn tell(
    log: Arc<AuditLog>,
    vitals: Arc<Vitals>,
    refused: Arc<Mutex<Tally>>,
    mut rung: mpsc::Receiver<()>,
) {
    let (mut window, mut left) = (WINDOW.0, Vec::new());
    loop {
        let is_over = if left.is_empty() { rung.recv().await.is_none() } else { false };
        let is_over = is_over || pause(window, &mut rung).await;
        if left.is_empty() || is_over {
            left.extend(locked(&refused).take());
        }
        let count = left.len();
        let told = join_all(left.iter().map(|event| append(&log, &vitals, event))).await;
        let failed = left.into_iter().zip(told).filter(|(_, told)| told.is_err());
        left = failed.map(|(event, _)| event).collect();
        if is_over {
            return;
        }
        window = if count > MANY || !left.is_empty() { window * 2 } else { window / 2 };
        window = window.clamp(WINDOW.0, WINDOW.1);
    }
}

/// Waits for a window's time, or until nobody is left who could ask; whether that is so.
async fn pause(window: Duration, rung: &mut mpsc::Receiver<()>) -> bool {
    let end = tokio::time::Instant::now() + window;
    loop {
        match tokio::time::timeout_at(end, rung.recv()).await {
            Ok(Some(())) => {}
            Ok(None) => return true,
            // Whoever rang within the window is told of now, or rings for the next one.
            Err(_) => return false,
        }
    }
}

impl AuditSink for Recorder {
    fn record(&self, refused: &Refused<'_>) {
        let metrics = &self.vitals.metrics;
        match refused.refusal {
            Refusal::Unidentified => metrics.auth_failures.inc(),
            Refusal::Denied => metrics.denied.inc(),
            Refusal::NotDone => 0,
        };
        locked(&self.refused).count(refused);
        // One that rings is enough.
        let _ = self.bell.try_send(());
        let mut logged = locked(&self.logged);
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

    fn write<'a>(&'a self, event: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        Box::pin(Recorder::write(self, event))
    }
}

impl Witness for Recorder {
    fn ends<'a>(&'a self, job: &'a Job, end: &'a End) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let mut event = AuditEvent::now(Action::JobFinished, job.caller.subject.clone())
                .with("outcome", end.outcome.as_str())
                .with("attestation", end.attestation.to_string());
            (event.project, event.job) = (Some(job.project.clone()), Some(job.id.clone()));
            self.write(&event).await.map_err(|error| crate::chain::chain(&error))
        })
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
