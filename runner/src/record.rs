//! What stands in a job's events, read back.

use ampoule_journal::{Next, Reader};
use ampoule_sandbox::teardown::Traces;
use ampoule_spec::{Event, FRAME_EVENT, FRAME_REPORT_END, FRAME_REPORT_PART, FRAME_SPEC, REPORT_BYTES_MAX};
use std::io::Read;
use std::path::PathBuf;

/// The whole frames of an events file, without the logs.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// What was about to exist on the host.
    pub(crate) intent: Option<Traces>,
    /// Whether the job was admitted: then it ends in a signed record.
    pub(crate) admitted: bool,
    /// The spec's bytes.
    pub(crate) spec: Option<Vec<u8>>,
    /// The report's bytes, if it is whole.
    pub(crate) report: Option<Vec<u8>>,
    /// Every event, in order.
    pub(crate) events: Vec<Event>,
}

impl Record {
    /// Reads up to the end, or to the first damage: what comes after it cannot be trusted.
    pub(crate) fn read<R: Read>(reader: &mut Reader<R>) -> Self {
        let mut record = Self::default();
        let mut report = Vec::new();
        while let Ok(Next::Frame(frame)) = reader.next_frame() {
            match frame.kind {
                FRAME_EVENT => {
                    if let Ok(event) = serde_json::from_slice(&frame.payload) {
                        record.take(event);
                    }
                }
                FRAME_SPEC => record.spec = Some(frame.payload),
                // The first whole report is the job's.
                FRAME_REPORT_PART | FRAME_REPORT_END if record.report.is_none() => {
                    let Some((number, part)) = frame.payload.split_first() else { break };
                    if *number == 0 {
                        // What stands there of an earlier one was cut short by a crash.
                        report.clear();
                    }
                    report.extend_from_slice(part);
                    if report.len() as u64 > REPORT_BYTES_MAX {
                        break;
                    }
                    if frame.kind == FRAME_REPORT_END {
                        record.report = Some(std::mem::take(&mut report));
                    }
                }
                _ => {}
            }
        }
        record
    }

    fn take(&mut self, event: Event) {
        match &event {
            Event::Intent { slot, uid_base, cgroups, .. } => {
                let cgroups = cgroups.iter().map(PathBuf::from).collect();
                let namespaces = Vec::new();
                self.intent = Some(Traces { slot: slot.clone(), uid_base: *uid_base, cgroups, namespaces });
            }
            Event::Admitted { .. } => self.admitted = true,
            _ => {}
        }
        self.events.push(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::Recorder;
    use ampoule_journal::{PAYLOAD_BYTES_MAX, Writer};

    fn record(write: impl FnOnce(&mut Recorder)) -> Record {
        let file = tempfile::tempfile().unwrap();
        let mut recorder = Recorder::new(Writer::create(file.try_clone().unwrap()).unwrap());
        write(&mut recorder);
        let mut reader = Reader::from_offset(file, 0).unwrap();
        Record::read(&mut reader)
    }

    #[test]
    fn report_of_any_size_is_read_back_and_the_first_whole_one_counts() {
        for length in [1, PAYLOAD_BYTES_MAX - 1, PAYLOAD_BYTES_MAX, 3 * PAYLOAD_BYTES_MAX + 5] {
            let bytes: Vec<u8> = (0..length).map(|n| n.to_le_bytes()[0]).collect();
            let read = record(|recorder| {
                recorder.report_durable(&bytes).unwrap();
                recorder.report_durable(b"later").unwrap();
            });
            assert!(read.report.as_ref() == Some(&bytes), "{length}");
        }
    }

    #[test]
    fn report_that_was_cut_short_is_none_and_one_after_it_counts() {
        let half = |recorder: &mut Recorder| recorder.part(FRAME_REPORT_PART, 0, b"half").unwrap();
        assert!(record(half).report.is_none());
        let read = record(|recorder| {
            half(recorder);
            recorder.report_durable(b"whole").unwrap();
        });
        assert_eq!(read.report.as_deref(), Some(&b"whole"[..]));
    }

    #[test]
    fn report_beyond_the_limit_is_none() {
        let bytes = vec![0; usize::try_from(REPORT_BYTES_MAX).unwrap() + 1];
        assert!(record(|recorder| recorder.report_durable(&bytes).unwrap()).report.is_none());
    }
}
