//! The one way into the audit log: what is about to be done waits until it is durable; what was refused, or is read again, is counted,
//! and told when there is time.

use super::vitals::Vitals;
use crate::audit::{Action, AuditError, AuditEvent, AuditLog, OURSELVES, Pace, Rate, Repeats, Tally};
use crate::audit_sink::{AuditSink, Refusal, Refused};
use crate::job::{End, Job, Witness};
use ampoule_spec::{Code, JobId, Name};
use futures_util::future::{BoxFuture, join_all};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// How long refused calls are counted before they are told, at first and at most: doubled as long as strangers make many entries.
const WINDOW: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));
/// How long reads are counted that stand in the log.
const READS_WINDOW: Duration = Duration::from_secs(60);
/// How many entries of a window are many.
const MANY: usize = 16;
/// How often a refused call is logged; all are counted.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Writes to the audit log.
#[derive(Debug, Clone)]
pub(super) struct Recorder {
    log: Arc<AuditLog>,
    vitals: Arc<Vitals>,
    refused: Counted<Tally>,
    reads: Counted<Repeats>,
    pace: Arc<Mutex<Pace>>,
    logged: Arc<Mutex<Option<Instant>>>,
}

/// What is counted, and a bell for the task that tells of it: all of them gone end the task.
#[derive(Debug)]
struct Counted<T> {
    kept: Arc<Mutex<T>>,
    bell: mpsc::Sender<()>,
}

impl<T> Clone for Counted<T> {
    fn clone(&self) -> Self {
        Self { kept: self.kept.clone(), bell: self.bell.clone() }
    }
}

impl<T: Default> Counted<T> {
    fn new() -> (Self, mpsc::Receiver<()>) {
        let (bell, rung) = mpsc::channel(1);
        (Self { kept: Arc::default(), bell }, rung)
    }

    fn with<R>(&self, count: impl FnOnce(&mut T) -> R) -> R {
        let counted = count(&mut locked(&self.kept));
        // One that rings is enough.
        let _ = self.bell.try_send(());
        counted
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    /// Begins to write, for each caller at this rate. The task tells of what was counted, and ends when nobody can ask it any more.
    pub(super) fn begin(
        log: AuditLog,
        vitals: Arc<Vitals>,
        rate: Rate,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let log = Arc::new(log);
        let (refused, refusals) = Counted::<Tally>::new();
        let (reads, repeats) = Counted::<Repeats>::new();
        let (of_refused, of_reads) = (refused.kept.clone(), reads.kept.clone());
        let to = (log.clone(), vitals.clone());
        let task = tokio::spawn(async move {
            tokio::join!(
                tell(&to, || locked(&of_refused).take(), refusals, WINDOW),
                tell(&to, || locked(&of_reads).take(), repeats, (READS_WINDOW, READS_WINDOW)),
            );
        });
        let pace = Arc::new(Mutex::new(Pace::new(rate)));
        (Self { log, vitals, refused, reads, pace, logged: Arc::default() }, task)
    }

    /// Another rate for each caller from now on.
    pub(super) fn set_rate(&self, rate: Rate) {
        locked(&self.pace).set(rate);
    }

    /// Writes an entry, and waits until it is durable.
    ///
    /// # Errors
    /// [`AuditError`]; it is counted, and what it was to tell of must not be done.
    pub(super) async fn write(&self, event: &AuditEvent) -> Result<(), AuditError> {
        append(&self.log, &self.vitals, event).await
    }

    /// Takes one of the entries that a caller may have; we ourselves may have all. Being refused is counted, not written.
    fn may(&self, event: &AuditEvent) -> Result<(), AuditError> {
        if event.actor == OURSELVES {
            return Ok(());
        }
        let taken = locked(&self.pace).take(&event.actor, Instant::now());
        taken.map_err(|retry_after| {
            let text = |name: &str| event.detail.get(name).map(String::as_str).unwrap_or_default();
            self.record(&Refused {
                refusal: Refusal::NotDone,
                peer: text("peer"),
                caller: Some(&event.actor),
                call: text("call"),
                action: Some(event.action.as_str()),
                project: event.project.as_ref().map(Name::as_str),
                job: None,
                reason: Code::CallBusy.as_str(),
            });
            AuditError::TooOften { retry_after }
        })
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

/// Tells of what was counted. What cannot be written is kept, and more is counted meanwhile.
async fn tell(
    (log, vitals): &(Arc<AuditLog>, Arc<Vitals>),
    take: impl Fn() -> Vec<AuditEvent>,
    mut rung: mpsc::Receiver<()>,
    windows: (Duration, Duration),
) {
    let (mut window, mut left) = (windows.0, Vec::new());
    loop {
        let is_over = if left.is_empty() { rung.recv().await.is_none() } else { false };
        let is_over = is_over || pause(window, &mut rung).await;
        if left.is_empty() || is_over {
            left.extend(take());
        }
        let count = left.len();
        let told = join_all(left.iter().map(|event| append(log, vitals, event))).await;
        let failed = left.into_iter().zip(told).filter(|(_, told)| told.is_err());
        left = failed.map(|(event, _)| event).collect();
        if is_over {
            return;
        }
        window = if count > MANY || !left.is_empty() { window * 2 } else { window / 2 };
        window = window.clamp(windows.0, windows.1);
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
        self.refused.with(|tally| tally.count(refused));
        if refused.refusal == Refusal::NotDone {
            // The caller hears why, and it is nothing for an operator to look at.
            return;
        }
        let mut logged = locked(&self.logged);
        if logged.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            return;
        }
        *logged = Some(Instant::now());
        tracing::warn!(
            refusal = refused.refusal.as_str(),
            peer = refused.peer,
            caller = refused.caller,
            call = refused.call,
            job = refused.job.map(JobId::as_str),
            reason = refused.reason,
            "a call was refused"
        );
    }

    fn write<'a>(&'a self, event: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        Box::pin(async move {
            self.may(event)?;
            Recorder::write(self, event).await
        })
    }

    fn read<'a>(&'a self, event: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        Box::pin(async move {
            if self.reads.with(|reads| reads.count(event)) {
                return Ok(());
            }
            AuditSink::write(self, event).await?;
            self.reads.with(|reads| reads.stands(event));
            Ok(())
        })
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
