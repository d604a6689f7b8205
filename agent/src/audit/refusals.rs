//! Refused calls into the audit log, bounded: a stranger decides how often they come.

use super::{Action, AuditEvent, AuditLog, Decision};
use crate::audit_sink::{AuditSink, Refusal, Refused};
use ampoule_spec::{Name, UnixNanos};
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// How many may wait to be written down.
const WAITING_MAX: usize = 256;

/// Takes refused calls without waiting. Those for which there is no room are counted, and the count is written down.
#[derive(Debug)]
pub struct Refusals {
    waiting: mpsc::Sender<AuditEvent>,
    uncounted: Arc<AtomicU64>,
    clock: fn() -> UnixNanos,
}

impl Refusals {
    /// A sink, and the task that writes down what it takes: it ends with the sink, and reports what it could not write to the
    /// system's log.
    pub fn new(log: Arc<AuditLog>, clock: fn() -> UnixNanos) -> (Self, impl Future<Output = ()> + Send) {
        let (waiting, mut asks) = mpsc::channel::<AuditEvent>(WAITING_MAX);
        let uncounted = Arc::new(AtomicU64::new(0));
        let lost = uncounted.clone();
        let task = async move {
            // All that wait, under one checkpoint.
            let mut events = Vec::new();
            while asks.recv_many(&mut events, WAITING_MAX).await > 0 {
                join_all(events.drain(..).map(|event| append(&log, event))).await;
                append_count(&log, &lost, clock).await;
            }
            append_count(&log, &lost, clock).await;
        };
        (Self { waiting, uncounted, clock }, task)
    }
}

async fn append(log: &AuditLog, event: AuditEvent) {
    if let Err(error) = log.append(&event).await {
        tracing::error!(%error, actor = event.actor, "a refused call is not in the audit log");
    }
}

async fn append_count(log: &AuditLog, lost: &AtomicU64, clock: fn() -> UnixNanos) {
    let more = lost.swap(0, Ordering::Relaxed);
    if more > 0 {
        append(log, summary(more, clock())).await;
    }
}

/// That more calls were refused than could be written down.
fn summary(more: u64, at: UnixNanos) -> AuditEvent {
    AuditEvent {
        at,
        actor: "daemon".to_owned(),
        action: Action::Denied,
        project: None,
        job: None,
        decision: Decision::Denied,
        reason: "more calls were refused than could be written down one by one".to_owned(),
        detail: [("calls".to_owned(), more.to_string())].into(),
    }
}

impl AuditSink for Refusals {
    fn record(&self, refused: &Refused<'_>) {
        let mut detail = BTreeMap::new();
        let caller = refused.caller;
        let texts = [
            ("peer", Some(refused.peer)),
            ("call", Some(refused.call)),
            ("action", refused.action),
            // What a stranger calls a project need not be a name.
            ("project", refused.project),
        ];
        for (name, text) in texts {
            detail.extend(text.map(|text| (name.to_owned(), text.chars().take(256).collect())));
        }
        let event = AuditEvent {
            at: (self.clock)(),
            actor: caller.map_or_else(|| "unknown".to_owned(), |caller| caller.subject.clone()),
            action: match refused.refusal {
                Refusal::Unidentified => Action::AuthFailed,
                Refusal::Denied => Action::Denied,
            },
            project: refused.project.and_then(|project| Name::parse(project).ok()),
            job: refused.job.cloned(),
            decision: Decision::Denied,
            reason: refused.reason.to_owned(),
            detail,
        };
        if self.waiting.try_send(event).is_err() {
            self.uncounted.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::verify::read_entries;
    use crate::audit::verify_log;
    use ampoule_evidence::tlog::{NoteKey, Tile, TileKind};

    fn refused<'a>(call: &'a str, project: Option<&'a str>) -> Refused<'a> {
        Refused {
            refusal: Refusal::Denied,
            peer: "unix",
            caller: None,
            call,
            action: None,
            project,
            job: None,
            reason: "r",
        }
    }

    #[tokio::test]
    async fn every_refused_call_is_written_down_or_counted() {
        let dir = tempfile::tempdir().unwrap();
        let log = Arc::new(AuditLog::open(dir.path(), "audit.host.example").unwrap());
        let (sink, task) = Refusals::new(log.clone(), || UnixNanos(1));
        for number in 0..WAITING_MAX + 44 {
            sink.record(&refused("C", Some(if number == 0 { "../x" } else { "p" })));
        }
        drop(sink);
        task.await;
        let key = NoteKey::parse(log.public_key()).unwrap();
        let size = verify_log(dir.path(), &key, None).unwrap().checkpoint.size;
        assert_eq!(size, WAITING_MAX as u64 + 1);
        let read = |index, width| {
            let entries = read_entries(dir.path(), &Tile { kind: TileKind::Entries, index, width }).unwrap();
            entries.into_iter().map(|entry| String::from_utf8(entry).unwrap()).collect::<Vec<_>>()
        };
        let (entries, last) = (read(0, 256), read(1, 1));
        assert!(
            entries[0].contains(r#""project":"../x"#) && !entries[0].contains(r#""project":"p""#),
            "{entries:?}"
        );
        assert!(entries[1].contains(r#""project":"p""#), "{}", entries[1]);
        assert!(last[0].contains(r#""detail":{"calls":"44"}"#), "{}", last[0]);
    }
}
