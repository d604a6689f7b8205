//! The seam between what judges and does calls and the audit log: the one way to an entry.

use crate::audit::{AuditError, AuditEvent};
use ampoule_spec::JobId;
use futures_util::future::BoxFuture;

/// Why a call was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// It is not known who called.
    Unidentified,
    /// The policy did not allow it.
    Denied,
    /// It was allowed, and then it was not done: there was no room for it, or there was nothing to do. It may have been written down.
    NotDone,
}

impl Refusal {
    /// Its spelling in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unidentified => "unidentified",
            Self::Denied => "denied",
            Self::NotDone => "not done",
        }
    }
}

/// A call that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused<'a> {
    /// Why.
    pub refusal: Refusal,
    /// Where it came from: `unix` or an address.
    pub peer: &'a str,
    /// Who called, as far as it is known: a subject.
    pub caller: Option<&'a str>,
    /// The call: `ampoule.v1.JobService/GetJob`, or `tls` for a handshake.
    pub call: &'a str,
    /// What it would have done, in the policy's words.
    pub action: Option<&'a str>,
    /// Whose job or content it was about.
    pub project: Option<&'a str>,
    /// Which job it was about.
    pub job: Option<&'a JobId>,
    /// For the operator alone: what the caller is told says less. It may hold what a stranger sent, cut to 256 bytes.
    pub reason: &'a str,
}

/// What is told of calls.
pub trait AuditSink: Send + Sync + 'static {
    /// Takes one refused call. It must not wait: it is called while a caller does. A stranger decides how often it is called;
    /// whoever keeps what is told bounds it, and keeps it from the room of what [`AuditSink::write`] takes.
    fn record(&self, refused: &Refused<'_>);

    /// Writes down what is about to be done. When it returns that is durable, and only then it may be done.
    ///
    /// # Errors
    /// [`AuditError`]: it is not written down, and must not be done.
    fn write<'a>(&'a self, event: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>>;

    /// The same of something that is about to be read. If that stands in the log as read by the same caller a moment ago, it may be
    /// counted instead, and told when there is time.
    ///
    /// # Errors
    /// As [`AuditSink::write`].
    fn read<'a>(&'a self, event: &'a AuditEvent) -> BoxFuture<'a, Result<(), AuditError>> {
        self.write(event)
    }
}
