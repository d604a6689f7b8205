//! Where refused calls are told: the seam between what judges callers and the audit log.

use crate::job::Caller;
use ampoule_spec::JobId;

/// Why a call was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// It is not known who called.
    Unidentified,
    /// The policy did not allow it.
    Denied,
}

impl Refusal {
    /// Its spelling in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unidentified => "unidentified",
            Self::Denied => "denied",
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
    /// Who called, as far as it is known.
    pub caller: Option<&'a Caller>,
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

/// What refused calls are told to. It must not wait: it is called while a caller does.
///
/// A stranger decides how often it is called; whoever keeps what is told bounds it.
pub trait AuditSink: Send + Sync + 'static {
    /// Takes one refused call.
    fn record(&self, refused: &Refused<'_>);
}
