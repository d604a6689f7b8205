//! What has happened to a job, from its directory's `events`: read where it lies, from a place that is a frame's end.

use ampoule_journal::{Next, ReadError, Reader};
use ampoule_spec::{Event, FRAME_EVENT, FRAME_LOG, LogChunk, UnixNanos};
use std::fs::File;
use std::io;
use std::path::Path;

/// How many frames are looked at for the one that says that a job is admitted: it is the third.
const ADMITTED_WITHIN: usize = 8;

/// When a job was admitted, by its own events.
pub(super) fn admitted_at(job_dir: &Path) -> Option<UnixNanos> {
    let mut reader = Reader::new(File::open(job_dir.join("events")).ok()?);
    for _ in 0..ADMITTED_WITHIN {
        let frame = reader.next_frame().ok()?.frame()?;
        if frame.kind == FRAME_EVENT
            && let Ok(Event::Admitted { at, .. }) = serde_json::from_slice(&frame.payload)
        {
            return Some(at);
        }
    }
    None
}

/// Something in the events, and where what comes after it begins.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Found {
    pub(super) end: u64,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    Event(Box<Event>),
    Log(LogChunk),
}

/// Why reading cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum TailError {
    /// The cursor is none of this job's.
    #[error("cursor {0} is none of this job's; begin at 0, or with one that a watch of it gave")]
    Cursor(u64),
    /// The events are damaged.
    #[error("the job's events are damaged at byte {0}; its record is what counts")]
    Damaged(u64),
    #[error("the job's events cannot be read: {0}")]
    Io(#[from] io::Error),
}

impl From<ReadError> for TailError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged { offset } => Self::Damaged(offset),
            ReadError::Io(error) => Self::Io(error),
            other => Self::Io(io::Error::other(other.to_string())),
        }
    }
}

/// The events from where somebody stands in them.
#[derive(Debug)]
pub(super) struct Tail {
    reader: Reader<File>,
    file: File,
    pub(super) at: u64,
}

impl Tail {
    /// Opens the events of a job after a cursor; none: there are none yet. A cursor counts only if a frame ends there: in the
    /// middle of one, whoever wrote its bytes would say what looks like a frame. Blocks.
    pub(super) fn open(job_dir: &Path, after: u64) -> Result<Option<Self>, TailError> {
        let file = match File::open(job_dir.join("events")) {
            Ok(file) => file,
            // The runner is about to share what it has just made.
            Err(error)
                if matches!(
                    error.kind(),
                    // One that was fenced has a file instead of a directory, and never has events.
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        // Before all of it is read for nothing.
        if after > file.metadata()?.len() {
            return Err(TailError::Cursor(after));
        }
        let mut reader = Reader::new(file.try_clone()?);
        let mut at = 0;
        while at < after {
            match reader.next_frame()? {
                Next::Frame(frame) => at = frame.end,
                Next::End { .. } | Next::TornTail { .. } => return Err(TailError::Cursor(after)),
            }
        }
        if at != after {
            return Err(TailError::Cursor(after));
        }
        Ok(Some(Self { reader, file, at }))
    }

    /// How many bytes there are; nothing, if that cannot be said.
    pub(super) fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.len())
    }

    /// Whether there may be more than was read.
    pub(super) fn has_grown(&self) -> bool {
        self.bytes() > self.at
    }

    /// What comes next, of about so many bytes and a frame at most; nothing: that was all for now. Blocks.
    pub(super) fn batch(&mut self, logs: bool, bytes: u64) -> Result<Vec<Found>, TailError> {
        let mut found = Vec::new();
        let begun = self.at;
        while self.at.saturating_sub(begun) < bytes {
            let Next::Frame(frame) = self.reader.next_frame()? else { break };
            self.at = frame.end;
            let what = match frame.kind {
                FRAME_EVENT => serde_json::from_slice(&frame.payload).ok().and_then(told).map(What::Event),
                FRAME_LOG if logs => LogChunk::decode(&frame.payload).map(What::Log),
                _ => None,
            };
            found.extend(what.map(|what| Found { end: frame.end, what }));
        }
        Ok(found)
    }
}

/// What of the runner's events a caller is told: not the names of things on the host.
fn told(event: Event) -> Option<Box<Event>> {
    (!matches!(event, Event::Intent { .. })).then(|| Box::new(event))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_journal::Writer;
    use ampoule_spec::{FRAME_SPEC, Outcome, Stream};

    const BATCH_BYTES: u64 = 256 << 10;

    fn chunk(offset: u64, bytes: &[u8]) -> LogChunk {
        LogChunk { step: 0, stream: Stream::Stdout, at: UnixNanos(5), offset, bytes: bytes.to_vec() }
    }

    fn journal(dir: &Path) -> Writer<File> {
        let file = File::options().append(true).create_new(true).open(dir.join("events")).unwrap();
        Writer::create(file).unwrap()
    }

    fn event(journal: &mut Writer<File>, event: &Event) {
        journal.append(FRAME_EVENT, &serde_json::to_vec(event).unwrap()).unwrap();
    }

    fn rest(tail: &mut Tail) -> Vec<Found> {
        let mut all = Vec::new();
        while tail.has_grown() {
            let batch = tail.batch(true, BATCH_BYTES).unwrap();
            if batch.is_empty() && !tail.has_grown() {
                break;
            }
            all.extend(batch);
        }
        all
    }

    #[test]
    fn tail_goes_on_where_it_was_told_and_never_twice() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Tail::open(dir.path(), 0).unwrap().is_none());
        let mut journal = journal(dir.path());
        let closed = Event::Closed { at: UnixNanos(9), outcome: Outcome::Succeeded };
        event(&mut journal, &closed);
        journal.append(FRAME_SPEC, b"{}").unwrap();
        for at in 0..2000 {
            journal.append(FRAME_LOG, &chunk(at * 400, &[b'x'; 400]).encode()).unwrap();
        }
        let mut tail = Tail::open(dir.path(), 0).unwrap().unwrap();
        let all = rest(&mut tail);
        assert_eq!(all.len(), 2001);
        for from in [0, 1, 700, 1999, 2000] {
            let mut tail = Tail::open(dir.path(), all[from].end).unwrap().unwrap();
            assert_eq!(rest(&mut tail), all[from + 1..]);
        }
        // Without logs it comes to the same place.
        let mut quiet = Tail::open(dir.path(), 0).unwrap().unwrap();
        let mut events = Vec::new();
        while quiet.has_grown() {
            events.extend(quiet.batch(false, BATCH_BYTES).unwrap());
        }
        assert_eq!((events.len(), quiet.at), (1, tail.at));
    }

    #[test]
    fn cursor_in_the_middle_of_a_frame_or_behind_the_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = journal(dir.path());
        // A step that writes what looks like a frame of ours.
        let mut forged = Vec::new();
        {
            let other = tempfile::tempdir().unwrap();
            let mut inner = super::tests::journal(other.path());
            event(&mut inner, &Event::Closed { at: UnixNanos(1), outcome: Outcome::Succeeded });
            forged.extend(std::fs::read(other.path().join("events")).unwrap());
        }
        journal.append(FRAME_LOG, &chunk(0, &forged).encode()).unwrap();
        let length = std::fs::metadata(dir.path().join("events")).unwrap().len();
        let inside = length - forged.len() as u64;
        for after in [1, inside, length - 1, length + 1, u64::MAX] {
            let refused = Tail::open(dir.path(), after).unwrap_err();
            assert!(matches!(refused, TailError::Cursor(at) if at == after), "{refused}");
        }
        assert!(Tail::open(dir.path(), length).unwrap().is_some());
    }

    #[test]
    fn admission_is_found_and_nobody_is_told_names_of_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = journal(dir.path());
        let id = |text: &str| ampoule_spec::SlotId::parse(text).unwrap();
        let slot = id("01890a5d-ac96-774b-bcce-b302099a8057");
        event(
            &mut journal,
            &Event::Intent { at: UnixNanos(1), slot, uid_base: None, cgroups: vec!["/sys/x".into()] },
        );
        assert_eq!(admitted_at(dir.path()), None);
        let job = ampoule_spec::JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        let admitted = Event::Admitted { at: UnixNanos(7), job, spec: ampoule_spec::Sha256::new([0; 32]) };
        event(&mut journal, &admitted);
        assert_eq!(admitted_at(dir.path()), Some(UnixNanos(7)));
        let mut tail = Tail::open(dir.path(), 0).unwrap().unwrap();
        let whats: Vec<_> = rest(&mut tail).into_iter().map(|found| found.what).collect();
        assert_eq!(whats, [What::Event(Box::new(admitted))]);
    }
}
