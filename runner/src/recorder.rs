//! The one writer of a job's events.

use ampoule_journal::{PAYLOAD_BYTES_MAX, Writer};
use ampoule_sandbox::fault;
use ampoule_spec::{
    Event, FRAME_EVENT, FRAME_LOG, FRAME_REPORT_END, FRAME_REPORT_PART, FRAME_SPEC, LogChunk,
};

/// Writes in order; a failure is the job's.
#[derive(Debug)]
pub(crate) struct Recorder {
    writer: Writer,
}

impl Recorder {
    pub(crate) fn new(writer: Writer) -> Self {
        Self { writer }
    }

    /// Records an event.
    pub(crate) fn event(&mut self, event: &Event) -> Result<(), String> {
        let bytes = serde_json::to_vec(event).map_err(|e| format!("an event cannot be written: {e}"))?;
        self.append(FRAME_EVENT, &bytes)
    }

    /// Records the spec as it arrived.
    pub(crate) fn spec(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.append(FRAME_SPEC, bytes)
    }

    /// Records bytes of a log.
    pub(crate) fn log(&mut self, chunk: &LogChunk) -> Result<(), String> {
        self.append(FRAME_LOG, &chunk.encode())
    }

    /// Records the report and makes everything durable: from then on the job has ended as it says.
    pub(crate) fn report_durable(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut parts = (0_u8..).zip(bytes.chunks(PAYLOAD_BYTES_MAX - 1)).peekable();
        while let Some((number, part)) = parts.next() {
            let kind = if parts.peek().is_some() { FRAME_REPORT_PART } else { FRAME_REPORT_END };
            self.part(kind, number, part)?;
        }
        self.sync()
    }

    /// Records a part of the report: its number from 0, then its bytes.
    pub(crate) fn part(&mut self, kind: u8, number: u8, part: &[u8]) -> Result<(), String> {
        let mut payload = Vec::with_capacity(part.len() + 1);
        payload.push(number);
        payload.extend_from_slice(part);
        self.append(kind, &payload)
    }

    /// Makes everything durable.
    pub(crate) fn sync(&mut self) -> Result<(), String> {
        fault::point("events: sync").map_err(|e| e.to_string())?;
        self.writer.sync().map_err(|e| format!("the events file cannot be made durable: {e}"))
    }

    fn append(&mut self, kind: u8, payload: &[u8]) -> Result<(), String> {
        fault::point("events: append").map_err(|e| e.to_string())?;
        self.writer
            .append(kind, payload)
            .map(drop)
            .map_err(|e| format!("the events file cannot be written: {e}"))
    }
}
