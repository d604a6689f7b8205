//! What the desk tells, for tests.

use crate::audit::{AuditError, AuditEvent};
use crate::audit_sink::{AuditSink, Refused};
use futures_util::future::BoxFuture;
use std::sync::Mutex;

/// Keeps what it is told.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Vec<String>>);

impl Told {
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl AuditSink for Told {
    fn record(&self, refused: &Refused<'_>) {
        let who = refused.caller.unwrap_or("nobody");
        self.0.lock().unwrap().push(format!("{} {} {who}", refused.refusal.as_str(), refused.call));
    }

    fn write<'a>(&'a self, _: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}
