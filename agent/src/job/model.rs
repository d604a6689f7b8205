//! A job of the daemon, as its ledger knows it.

use crate::local::ReleasedOutput;
use ampoule_spec::{Failure, JobId, JobSpec, Name, Outcome, Sha256, UnixNanos};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Labels of a job, for people and filters.
pub type Labels = BTreeMap<String, String>;

/// How a caller has proven who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Means {
    /// The kernel's word about the peer of a local socket: `SO_PEERCRED`, unix(7).
    Peer,
    /// A client certificate.
    Certificate,
    /// A bearer token.
    Token,
}

/// Who calls, as the transport has proven it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// How.
    pub means: Means,
    /// Who: `uid:1000`, `spiffe://…`, `dns:…`, or `<issuer>#<subject>`.
    pub subject: String,
    /// A token's claims; empty otherwise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, serde_json::Value>,
}

/// What a caller names a job by: 1 to 128 printable ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdempotencyKey(String);

/// The most bytes of an idempotency key.
const KEY_BYTES_MAX: usize = 128;

impl IdempotencyKey {
    /// Checks a key.
    ///
    /// # Errors
    /// A text that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("is missing; choose one that is unique for each job you want".to_owned()),
            _ if text.len() > KEY_BYTES_MAX => Err(format!("is longer than {KEY_BYTES_MAX} bytes")),
            _ if !text.bytes().all(|b| b.is_ascii_graphic() || b == b' ') => {
                Err("has a character that is not printable ASCII".to_owned())
            }
            _ => Ok(Self(text.to_owned())),
        }
    }

    /// The key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for IdempotencyKey {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<IdempotencyKey> for String {
    fn from(key: IdempotencyKey) -> Self {
        key.0
    }
}

/// The provenance that came with a request, by the number of the input that it is of.
pub type Proofs = BTreeMap<usize, Vec<u8>>;

/// A request for a job, decoded, checked and authorised.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// Who submits it.
    pub caller: Caller,
    /// The caller's name for it. It is bound to the caller's subject: two callers never meet in one key.
    pub key: IdempotencyKey,
    /// Whose job it is.
    pub project: Name,
    /// The job; its id was drawn for this request, and is given up if the key was used before.
    pub spec: JobSpec,
    /// What proves whose outputs its inputs are. It is looked at before the job is written down, and not kept.
    pub proofs: Proofs,
    /// SHA-256 of the request's canonical encoding: tells a repetition from another request under the same key.
    pub request: Sha256,
    /// 0 to 9; higher ones of the same project go first.
    pub priority: u8,
    /// As submitted.
    pub labels: Labels,
    /// Milliseconds after which it is cancelled if it still waits; none: never.
    pub queue_timeout_ms: Option<u64>,
}

/// Where a job is in its life. The order is that of the life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Durable; waits for its turn.
    Queued,
    /// Its inputs are fetched.
    Preparing,
    /// The runner has it.
    Running,
    /// The sandbox is gone; its evidence is made.
    Attesting,
    /// Its one signed record is durable.
    Finished,
}

/// A wish for a job's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelWish {
    /// Whose.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: UnixNanos,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// How.
    pub outcome: Outcome,
    /// Why, unless it succeeded.
    pub failure: Option<Failure>,
    /// What it has made, and may be downloaded.
    pub outputs: Vec<ReleasedOutput>,
    /// SHA-256 of the run attestation's envelope.
    pub attestation: Sha256,
    /// The builder that signed.
    pub builder: String,
    /// Bytes of its record on the disk. 0 for one of before this was counted.
    #[serde(default)]
    pub record_bytes: u64,
}

/// A job as the ledger knows it. The spec itself is kept beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id, UUID version 7.
    pub id: JobId,
    /// Whose it is.
    pub project: Name,
    /// Its name.
    pub name: Name,
    /// Its profile.
    pub profile: Name,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// The submitter's key.
    pub key: IdempotencyKey,
    /// The submitter.
    pub caller: Caller,
    /// What was submitted under the key.
    pub request: Sha256,
    /// 0 to 9.
    pub priority: u8,
    /// As submitted.
    pub labels: Labels,
    /// When it was acknowledged.
    pub submitted_at: UnixNanos,
    /// Where it is.
    pub state: State,
    /// When the runner took it.
    pub started_at: Option<UnixNanos>,
    /// When its record was durable.
    pub finished_at: Option<UnixNanos>,
    /// The first wish for its end.
    pub cancel: Option<CancelWish>,
    /// How it ended; with [`State::Finished`] alone.
    pub end: Option<End>,
}
