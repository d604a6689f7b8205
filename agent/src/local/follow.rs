//! Following a job while it runs: its events file grows, its runner answers when it is over.

use super::runner::{Runner, RunnerError};
use super::watch::{Watch, Work};
use super::{Cancel, LocalError, Options};
use crate::inputs::PassedOver;
use ampoule_journal::{Next, Reader};
use ampoule_spec::wire::{Reply, Request};
use ampoule_spec::{Event, FRAME_EVENT, FRAME_LOG, JobId, LogChunk, Name, Outcome};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the events file is looked at.
const FOLLOW_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// How long a supervisor may go on without its launcher before we stop waiting for its report.
const ORPHAN_LIMIT: Duration = Duration::from_secs(60);

/// What there is to tell while a run goes on.
#[derive(Debug, Clone, PartialEq)]
pub enum Note {
    /// A job of an earlier run was cleaned up and signed; `outcome` is none if it could not be signed.
    Recovered {
        /// The job.
        job: JobId,
        /// What was found and removed.
        removed: Vec<String>,
        /// How it ended.
        outcome: Option<Outcome>,
        /// Where its signed record is.
        record: PathBuf,
    },
    /// Something goes into the store.
    Importing {
        /// What.
        what: String,
    },
    /// A place did not give an input's bytes, and another one is asked.
    PassedOver {
        /// The input.
        input: Name,
        /// The place and what it did.
        passed: PassedOver,
    },
    /// The job is admitted.
    Admitted {
        /// The job.
        job: JobId,
    },
    /// An event of the job.
    Event(Box<Event>),
    /// Bytes of a log.
    Log(LogChunk),
    /// The launcher died; the job is being ended.
    LauncherLost,
}

/// Runs an imported job and tells what happens. Returns when its report is durable.
pub(super) fn run_job(
    runner: &mut Runner,
    options: &Options,
    id: &JobId,
    spec: &[u8],
    cancel: &Cancel,
    say: &mut dyn FnMut(Note),
) -> Result<(), LocalError> {
    let file_error =
        |error: std::io::Error| LocalError::file("a temporary file", &std::env::temp_dir(), &error);
    let mut spec_file = crate::inputs::scratch_file(&std::env::temp_dir()).map_err(file_error)?;
    spec_file.write_all(spec).and_then(|()| spec_file.rewind()).map_err(file_error)?;
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| file_error(e.into()))?;
    runner.send(&Request::Run { lifetime: true }, &[spec_file.as_fd(), theirs.as_fd()])?;
    drop((theirs, spec_file));
    cancel.arm(ours);
    match runner.receive()? {
        Reply::Admitted { job } if job == *id => say(Note::Admitted { job }),
        _ => return Err(RunnerError::OutOfTurn.into()),
    }
    let job_dir = options.state.join("jobs").join(id.as_str());
    let finished = follow(runner, &job_dir, &options.watch, say);
    cancel.disarm();
    match finished {
        Err(lost @ RunnerError::Lost(_)) => {
            say(Note::LauncherLost);
            wait_for_orphan(&job_dir);
            Err(lost.into())
        }
        other => Ok(other?),
    }
}

fn follow(
    runner: &Runner,
    job_dir: &Path,
    watch: &Watch,
    say: &mut dyn FnMut(Note),
) -> Result<(), RunnerError> {
    let mut tail = Tail::open(job_dir);
    let mut copying = None;
    loop {
        let answered = {
            let mut ready = [PollFd::from_borrowed_fd(runner.channel(), PollFlags::IN)];
            match poll(&mut ready, Some(&FOLLOW_EVERY)) {
                Ok(count) => count > 0,
                Err(Errno::INTR) => false,
                Err(_) => true,
            }
        };
        let reply = if answered { Some(runner.receive()) } else { None };
        // After the answer once more: everything was written before it.
        tail.read(&mut |note| {
            if let Note::Event(event) = &note
                && let Event::Phase { phase, .. } = &**event
            {
                watch.about("the outputs");
                copying = (phase.as_str() == "outputs").then(|| watch.begin(Work::Outputs));
            }
            say(note);
        });
        if let Some(meter) = copying.as_mut().filter(|meter| meter.is_due()) {
            meter.at(bytes_in(&job_dir.join("outputs")), None);
        }
        match reply {
            None => {}
            Some(Ok(Reply::Finished { .. })) => return Ok(()),
            Some(Ok(_)) => return Err(RunnerError::OutOfTurn),
            Some(Err(error)) => return Err(error),
        }
    }
}

/// The bytes of all files in a directory.
fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

/// The launcher is dead and our end of the lifetime pipe is closed: the supervisor ends the job by itself, and lets go of
/// it.
fn wait_for_orphan(job_dir: &Path) {
    let begun = Instant::now();
    while begun.elapsed() < ORPHAN_LIMIT {
        let held = File::open(job_dir)
            .is_ok_and(|dir| flock(&dir, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK));
        if !held {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The events file from where we stand in it.
struct Tail(Option<Reader<File>>);

impl Tail {
    fn open(job_dir: &Path) -> Self {
        Self(File::open(job_dir.join("events")).ok().map(Reader::new))
    }

    /// Tells everything that has come. Damage ends the telling, not the job: the report is what counts.
    fn read(&mut self, say: &mut dyn FnMut(Note)) {
        let Some(reader) = &mut self.0 else { return };
        loop {
            match reader.next_frame() {
                Ok(Next::Frame(frame)) if frame.kind == FRAME_EVENT => {
                    if let Ok(event) = serde_json::from_slice(&frame.payload) {
                        say(Note::Event(Box::new(event)));
                    }
                }
                Ok(Next::Frame(frame)) if frame.kind == FRAME_LOG => {
                    if let Some(chunk) = LogChunk::decode(&frame.payload) {
                        say(Note::Log(chunk));
                    }
                }
                Ok(Next::Frame(_)) => {}
                Ok(Next::End { .. } | Next::TornTail { .. }) => return,
                Err(_) => {
                    self.0 = None;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_journal::Writer;
    use ampoule_spec::{FRAME_REPORT_END, FRAME_REPORT_PART, FRAME_SPEC, SlotId, Stream, UnixNanos};

    #[test]
    fn tail_tells_events_and_logs_and_passes_over_every_other_frame() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::options().append(true).create(true).open(dir.path().join("events")).unwrap();
        let mut journal = Writer::create(file).unwrap();
        let intent = Event::Intent {
            at: UnixNanos(1),
            slot: SlotId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap(),
            uid_base: Some(1_879_113_728),
            cgroups: vec!["/sys/fs/cgroup/ampoule-x".to_owned()],
        };
        let closed = Event::Closed { at: UnixNanos(9), outcome: Outcome::Succeeded };
        let chunk = LogChunk {
            step: 0,
            stream: Stream::Stdout,
            at: UnixNanos(5),
            offset: 0,
            bytes: b"made\n".to_vec(),
        };
        let json = |event: &Event| serde_json::to_vec(event).unwrap();
        // A spec and a report may hold what looks like an event: kinds tell them apart.
        let frames: [(u8, Vec<u8>); 8] = [
            (FRAME_EVENT, json(&intent)),
            (FRAME_SPEC, json(&closed)),
            (FRAME_LOG, chunk.encode()),
            (FRAME_EVENT, b"{\"event\":\"of a later version\"}".to_vec()),
            (FRAME_REPORT_PART, [&[0][..], &json(&closed)].concat()),
            (FRAME_REPORT_END, [&[1][..], &json(&closed)].concat()),
            (200, json(&closed)),
            (FRAME_EVENT, json(&closed)),
        ];
        for (kind, payload) in &frames {
            journal.append(*kind, payload).unwrap();
        }
        let mut told = Vec::new();
        Tail::open(dir.path()).read(&mut |note| told.push(note));
        let event = |event: Event| Note::Event(Box::new(event));
        assert_eq!(told, [event(intent), Note::Log(chunk), event(closed)]);
    }
}
