//! Events: what a supervisor writes into the job directory's `events` file while the job runs.

use crate::report::{Outcome, StepReport, UnixNanos};
use crate::{Code, Damage, JobId, Name, Sha256, SlotId};
use serde::{Deserialize, Serialize};

/// The journal frame kind of a lifecycle event: a JSON [`Event`].
pub const FRAME_EVENT: u8 = 1;
/// The journal frame kind of log bytes: a [`LogChunk`].
pub const FRAME_LOG: u8 = 2;
/// The journal frame kind of the spec's bytes, as they arrived.
pub const FRAME_SPEC: u8 = 3;
/// The journal frame kind of a part of the report's bytes that another part follows.
pub const FRAME_REPORT_PART: u8 = 4;
/// The journal frame kind of the last part of the report's bytes: with it the report is whole.
pub const FRAME_REPORT_END: u8 = 5;

/// A lifecycle event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The intent: what is about to exist on the host, for whichever job. Durable before any of it does.
    Intent {
        /// When.
        at: UnixNanos,
        /// The slot: the name of everything below that has a name.
        slot: SlotId,
        /// The first host user id of the block that is used, if there is one.
        uid_base: Option<u32>,
        /// The control groups that will be made, as absolute paths.
        cgroups: Vec<String>,
    },
    /// The job is admitted: it ends in one record, whatever happens from here on.
    Admitted {
        /// When.
        at: UnixNanos,
        /// The job.
        job: JobId,
        /// SHA-256 of `spec.json`.
        spec: Sha256,
    },
    /// An object of the store was found damaged while the job's inputs were looked up. It is in quarantine, and what
    /// the job uses was taken in anew.
    Damaged {
        /// When.
        at: UnixNanos,
        /// What was found.
        damage: Damage,
    },
    /// The job entered a phase.
    Phase {
        /// When.
        at: UnixNanos,
        /// The phase, by its name in `docs/formats.md`.
        phase: String,
    },
    /// A step that names secrets waits for their values on the job's control socket, in this order.
    StepReady {
        /// When.
        at: UnixNanos,
        /// The step's place in the job, from 0.
        step: u32,
        /// The secrets' names.
        names: Vec<Name>,
    },
    /// A step's program is about to run.
    StepStarted {
        /// When.
        at: UnixNanos,
        /// The step's place in the job, from 0.
        step: u32,
        /// Its name.
        name: Name,
    },
    /// A step ended.
    StepFinished {
        /// When.
        at: UnixNanos,
        /// The step's place in the job, from 0.
        step: u32,
        /// How it ended.
        report: StepReport,
    },
    /// Something went wrong; the first one is the job's failure.
    Failed {
        /// When.
        at: UnixNanos,
        /// What.
        code: Code,
        /// For people.
        message: String,
    },
    /// Packets on the job's control socket that were no cancel, or came from somebody who may not send one.
    ControlIgnored {
        /// When.
        at: UnixNanos,
        /// How many.
        packets: u64,
    },
    /// The sandbox is destroyed. The report follows, and nothing after it.
    Closed {
        /// When.
        at: UnixNanos,
        /// How the job ended.
        outcome: Outcome,
    },
}

/// Which of a step's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Stream {
    /// The stream's spelling.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Bytes that a step wrote, with our own time and place; nothing in `bytes` can look like a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogChunk {
    /// The step's place in the job, from 0.
    pub step: u32,
    /// Which stream.
    pub stream: Stream,
    /// When the bytes were read.
    pub at: UnixNanos,
    /// Where they stand in the whole stream, cut bytes counted.
    pub offset: u64,
    /// The bytes, as written.
    pub bytes: Vec<u8>,
}

const LOG_HEAD_BYTES: usize = 21;

impl LogChunk {
    /// The frame's payload: step, stream, time, offset (little-endian), then the bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(LOG_HEAD_BYTES + self.bytes.len());
        out.extend_from_slice(&self.step.to_le_bytes());
        out.push(match self.stream {
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        });
        out.extend_from_slice(&self.at.0.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.bytes);
        out
    }

    /// Reads a payload back; `None` if it is too short or names no stream.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let (step, rest) = payload.split_first_chunk::<4>()?;
        let (stream, rest) = rest.split_first_chunk::<1>()?;
        let (at, rest) = rest.split_first_chunk::<8>()?;
        let (offset, bytes) = rest.split_first_chunk::<8>()?;
        let stream = match stream {
            [1] => Stream::Stdout,
            [2] => Stream::Stderr,
            _ => return None,
        };
        Some(Self {
            step: u32::from_le_bytes(*step),
            stream,
            at: UnixNanos(u64::from_le_bytes(*at)),
            offset: u64::from_le_bytes(*offset),
            bytes: bytes.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_chunk_round_trips_and_short_payload_is_none() {
        let chunk = LogChunk {
            step: 3,
            stream: Stream::Stderr,
            at: UnixNanos(17),
            offset: 99,
            bytes: b"\0\x1b[31m\xff".to_vec(),
        };
        let payload = chunk.encode();
        assert_eq!(LogChunk::decode(&payload), Some(chunk));
        for cut in 0..LOG_HEAD_BYTES {
            assert_eq!(LogChunk::decode(&payload[..cut]), None);
        }
    }
}
