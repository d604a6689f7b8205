//! What is written down.

use ampoule_evidence::tlog::ENTRY_BYTES_MAX;
use ampoule_evidence::{NotCanonical, canonical_json, rfc3339};
use ampoule_spec::{JobId, Name, UnixNanos};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::SystemTime;

/// The most characters of an actor or a reason that are kept: both may come from whoever calls.
const TEXT_CHARS_MAX: usize = 2048;
/// The most characters of one text of the details.
const DETAIL_CHARS_MAX: usize = 256;

macro_rules! actions {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// What was done, or was to be done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[non_exhaustive]
        pub enum Action {
            $($(#[$doc])* #[serde(rename = $text)] $name,)+
        }

        impl Action {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Its spelling.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

actions! {
    /// Somebody could not prove who they are.
    AuthFailed = "auth.failed",
    /// The policy denied a call, or gave no answer.
    Denied = "call.denied",
    /// A job was submitted.
    JobSubmitted = "job.submitted",
    /// A call that was allowed was not done; `reason` says why. It may have been written down before.
    NotDone = "call.not_done",
    /// The end of a job was wished.
    JobCancelled = "job.cancelled",
    /// A job has ended; `detail.attestation` is the SHA-256 of its run attestation's envelope.
    JobFinished = "job.finished",
    /// Logs were read.
    LogsRead = "read.logs",
    /// An output was read.
    OutputsRead = "read.outputs",
    /// Evidence was read.
    EvidenceRead = "read.evidence",
    /// The configuration and what it names were read anew; `detail` has the digest of all that it says, and those of the policy, the
    /// identities, the certificate, the sources and the secrets.
    ConfigReloaded = "reload.config",
    /// Certificates of the listeners were found to be others on the disk; `detail` names them.
    KeysReloaded = "reload.keys",
    /// The intake was stopped or resumed; `detail.drain` says which.
    Drained = "daemon.drained",
    /// Facts of the host are not those of its baseline, or are again; `detail` names them.
    Drifted = "host.drifted",
    /// What a step's secrets come from was taken for it, and is about to be handed over; `detail` names them, never a value.
    SecretGranted = "secret.granted",
    /// A step got no secrets.
    SecretDenied = "secret.denied",
    /// What a step had was taken back by its server.
    SecretRevoked = "secret.revoked",
    /// Somebody listed what steps have.
    LeasesRead = "read.leases",
    /// Somebody wished that what steps have is taken back; `detail` says which.
    RevokeWished = "secret.revoke_wished",
    /// Servers were looked at; of a token that was made for it `detail.accessor_sha256` is there.
    SecretsChecked = "secret.checked",
    /// The daemon has started.
    Started = "daemon.started",
    /// The daemon ends in good order.
    Stopped = "daemon.stopped",
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It was done.
    Allowed,
    /// It was not.
    Denied,
}

/// One entry of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// When.
    pub at: UnixNanos,
    /// Who: a caller's subject, `daemon`, or what an unproven caller called itself.
    pub actor: String,
    /// What.
    pub action: Action,
    /// Whose job it is about.
    pub project: Option<Name>,
    /// Which job.
    pub job: Option<JobId>,
    /// Whether it was done.
    pub decision: Decision,
    /// Why; empty if there is nothing to say.
    pub reason: String,
    /// More, by the action.
    pub detail: BTreeMap<String, String>,
}

/// Why an event cannot be an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// It is too large.
    #[error("the event has {bytes} bytes, an entry of the audit log at most {ENTRY_BYTES_MAX}")]
    Oversize {
        /// Its size.
        bytes: usize,
    },
    /// It has no canonical form.
    #[error("the event cannot be written: {0}")]
    Form(#[from] NotCanonical),
}

#[derive(Serialize)]
struct Written<'a> {
    at: String,
    actor: String,
    action: Action,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<&'a Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'a JobId>,
    decision: Decision,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    detail: &'a BTreeMap<String, String>,
}

fn cut(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

/// Who acts when nobody calls.
pub const OURSELVES: &str = "daemon";

impl AuditEvent {
    /// What somebody does now.
    pub fn now(action: Action, actor: impl Into<String>) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            at: UnixNanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)),
            actor: actor.into(),
            action,
            project: None,
            job: None,
            decision: Decision::Allowed,
            reason: String::new(),
            detail: BTreeMap::new(),
        }
    }

    /// The same with more to say; a text is cut after 256 characters.
    #[must_use]
    pub fn with(mut self, name: &str, text: impl AsRef<str>) -> Self {
        self.detail.insert(name.to_owned(), text.as_ref().chars().take(DETAIL_CHARS_MAX).collect());
        self
    }

    /// The same as what was not done, and why.
    #[must_use]
    pub fn denied(mut self, reason: impl Into<String>) -> Self {
        (self.decision, self.reason) = (Decision::Denied, reason.into());
        self
    }

    /// The entry: canonical JSON (RFC 8785). Actor and reason are cut after 2048 characters.
    ///
    /// # Errors
    /// [`EventError`] if it is larger than an entry may be.
    pub fn entry(&self) -> Result<Vec<u8>, EventError> {
        let entry = canonical_json(&Written {
            at: rfc3339(self.at),
            actor: cut(&self.actor),
            action: self.action,
            project: self.project.as_ref(),
            job: self.job.as_ref(),
            decision: self.decision,
            reason: cut(&self.reason),
            detail: &self.detail,
        })?;
        if entry.len() > ENTRY_BYTES_MAX {
            return Err(EventError::Oversize { bytes: entry.len() });
        }
        Ok(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_canonical_json_and_says_what_is_known() {
        let event = AuditEvent {
            at: UnixNanos(1_700_000_000_500_000_000),
            actor: "uid:7".to_owned(),
            action: Action::JobFinished,
            project: Some(Name::parse("p").unwrap()),
            job: None,
            decision: Decision::Allowed,
            reason: String::new(),
            detail: [("attestation".to_owned(), "ab".to_owned())].into(),
        };
        assert_eq!(
            String::from_utf8(event.entry().unwrap()).unwrap(),
            r#"{"action":"job.finished","actor":"uid:7","at":"2023-11-14T22:13:20.5Z","decision":"allowed","detail":{"attestation":"ab"},"project":"p"}"#
        );
        let long = AuditEvent { actor: "\u{0}".repeat(99_999), reason: "ü".repeat(99_999), ..event.clone() };
        assert!(long.entry().unwrap().len() < 20_000, "what a caller calls itself never keeps an event out");
        let detail = [("x".to_owned(), "y".repeat(70_000))].into();
        assert!(matches!(AuditEvent { detail, ..event }.entry(), Err(EventError::Oversize { .. })));
        for action in Action::ALL {
            assert_eq!(serde_json::to_value(action).unwrap(), action.as_str());
        }
    }
}
