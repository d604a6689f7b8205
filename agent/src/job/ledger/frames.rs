//! What a frame of the ledger holds (docs/formats.md, "Ledger").

use crate::job::state::{Change, Life};
use ampoule_journal::Frame;
use ampoule_spec::{JobId, UnixNanos};
use serde::{Deserialize, Serialize};

/// The first frame of a file, and the only one of its kind.
pub(super) const OPENED: u8 = 1;
/// A spec's bytes; the frame of its job follows.
pub(super) const SPEC: u8 = 2;
/// The same of a spec that leaves something to be found. A kind of its own, so that a build that knows of no such job says that
/// the ledger is a newer one.
pub(super) const OPEN_SPEC: u8 = 7;
/// A whole job.
pub(super) const JOB: u8 = 3;
/// A change of a job.
pub(super) const CHANGE: u8 = 4;
/// Everything before it was durable when it was written.
pub(super) const MARK: u8 = 5;
/// A finished job was forgotten.
pub(super) const FORGOTTEN: u8 = 6;

/// The version of the ledger that this build reads and writes.
const FORMAT: u32 = 1;

/// Bytes that were cut off the end of a file because they had never been acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// Where they began.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
    /// Whether the operator has accepted their loss: then some of them may have been acknowledged.
    pub accepted: bool,
}

/// Who began this file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Opened {
    pub(super) ledger: u32,
    /// Grows by one with each start: of two writers the one with the smaller number is over.
    pub(super) generation: u64,
    /// The boot of the host that it was begun in.
    pub(super) boot: String,
    pub(super) at: UnixNanos,
    /// Random, so that nobody who can choose bytes of the file can make a mark.
    pub(super) nonce: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cut: Option<Cut>,
}

impl Opened {
    pub(super) fn new(generation: u64, boot: String, at: UnixNanos, nonce: u64, cut: Option<Cut>) -> Self {
        Self { ledger: FORMAT, generation, boot, at, nonce, cut }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Changed {
    pub(super) job: JobId,
    pub(super) what: Change,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Forgotten {
    pub(super) job: JobId,
}

/// What a frame says.
#[derive(Debug)]
pub(super) enum Said {
    Opened(Opened),
    Spec { is_open: bool },
    Job(Box<Life>),
    Changed(Changed),
    Mark,
    Forgotten(JobId),
}

/// Reads a frame whose checksums are right.
pub(super) fn read(frame: &Frame) -> Result<Said, String> {
    let json = |error: serde_json::Error| format!("its frame of kind {} cannot be read: {error}", frame.kind);
    match frame.kind {
        OPENED => {
            let opened: Opened = serde_json::from_slice(&frame.payload).map_err(json)?;
            if opened.ledger != FORMAT {
                return Err(format!("it has version {}, this build reads {FORMAT}", opened.ledger));
            }
            Ok(Said::Opened(opened))
        }
        SPEC => Ok(Said::Spec { is_open: false }),
        OPEN_SPEC => Ok(Said::Spec { is_open: true }),
        JOB => serde_json::from_slice(&frame.payload).map(|life| Said::Job(Box::new(life))).map_err(json),
        CHANGE => serde_json::from_slice(&frame.payload).map(Said::Changed).map_err(json),
        MARK => Ok(Said::Mark),
        FORGOTTEN => {
            serde_json::from_slice::<Forgotten>(&frame.payload).map(|f| Said::Forgotten(f.job)).map_err(json)
        }
        kind => Err(format!("a frame of the unknown kind {kind}; an older build cannot read a newer ledger")),
    }
}

/// The payload of a mark: the file's nonce and how far it was durable, both little endian.
pub(super) fn mark(nonce: u64, durable: u64) -> [u8; 16] {
    let mut payload = [0; 16];
    let (head, tail) = payload.split_at_mut(8);
    head.copy_from_slice(&nonce.to_le_bytes());
    tail.copy_from_slice(&durable.to_le_bytes());
    payload
}

/// How far a mark of this file says that it was durable.
pub(super) fn marked(nonce: u64, payload: &[u8]) -> Option<u64> {
    let (head, tail) = payload.split_first_chunk::<8>()?;
    let durable = tail.first_chunk::<8>().filter(|_| tail.len() == 8)?;
    (u64::from_le_bytes(*head) == nonce).then(|| u64::from_le_bytes(*durable))
}
