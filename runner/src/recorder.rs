//! The one writer of a job's events.

use ampoule_journal::Writer;
use ampoule_spec::{Event, FRAME_EVENT, FRAME_LOG, LogChunk};

/// Writes events and log chunks in order; a failure is the job's.
pub(crate) struct Recorder {
    writer: Writer,
    /// Whether log bytes were recorded since everything was last made durable.
    logs: bool,
}

impl Recorder {
    pub(crate) fn new(writer: Writer) -> Self {
        Self { writer, logs: false }
    }

    /// Records an event.
    pub(crate) fn event(&mut self, event: &Event) -> Result<(), String> {
        let bytes = serde_json::to_vec(event).map_err(|e| format!("an event cannot be written: {e}"))?;
        self.append(FRAME_EVENT, &bytes)
    }

    /// Records an event and makes it durable with everything before it.
    pub(crate) fn event_durable(&mut self, event: &Event) -> Result<(), String> {
        self.event(event)?;
        self.sync()
    }

    /// Makes recorded log bytes durable, if there are any: the report, which says everything else once more,
    /// has only their digests.
    pub(crate) fn sync_logs(&mut self) -> Result<(), String> {
        if self.logs { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<(), String> {
        self.logs = false;
        self.writer.sync().map_err(|e| format!("the events file cannot be made durable: {e}"))
    }

    /// Records bytes of a log.
    pub(crate) fn log(&mut self, chunk: &LogChunk) -> Result<(), String> {
        self.logs = true;
        self.append(FRAME_LOG, &chunk.encode())
    }

    fn append(&mut self, kind: u8, payload: &[u8]) -> Result<(), String> {
        self.writer
            .append(kind, payload)
            .map(drop)
            .map_err(|e| format!("the events file cannot be written: {e}"))
    }
}
