//! What one process says to another: read or refused, never a panic, and what is read is said again as the same.

use ampoule_spec::wire::{Reply, Request};
use ampoule_spec::{Event, JobSpec, LogChunk, RunReport};
use ampoule_store::worker::WorkerResult;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads the bytes as every message there is.
pub fn run(data: &[u8]) {
    again::<Request>(data);
    again::<Reply>(data);
    again::<Event>(data);
    again::<RunReport>(data);
    if let Some(spec) = again::<JobSpec>(data) {
        // Refused or not, it says so in one line.
        if let Err(error) = spec.validate() {
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
        }
    }
    if let Ok(WorkerResult::Refused { message, .. }) = WorkerResult::from_json(data) {
        assert!(
            message.len() < 1100 && message.chars().all(|c| c.is_ascii_graphic() || c == ' '),
            "{message:?}"
        );
    }
    if let Some(chunk) = LogChunk::decode(data) {
        assert_eq!(chunk.encode(), data);
    }
}

fn again<T: DeserializeOwned + Serialize>(data: &[u8]) -> Option<T> {
    let value: T = serde_json::from_slice(data).ok()?;
    let once = serde_json::to_vec(&value).expect("what was read can be said");
    let read: T = serde_json::from_slice(&once).expect("what was said can be read");
    assert_eq!(serde_json::to_vec(&read).unwrap(), once);
    Some(value)
}
