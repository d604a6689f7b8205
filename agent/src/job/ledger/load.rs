//! Reading a ledger at start, and beginning the next file from what is kept.

use super::frames::{self, Changed, Cut, MARK, Opened, Said};
use super::index::{Index, Kept, SpecAt};
use super::{OpenError, Options};
use crate::job::model::State;
use crate::job::state::{Change, Life, sha256};
use ampoule_journal::{Frame, HEADER_BYTES, MAGIC, Medium, Next, ReadError, Reader, WriteError, Writer};
use ampoule_spec::{JobId, Sha256, UnixNanos};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

/// The ledger's file in the state directory.
pub(super) const FILE: &str = "ledger";
/// The next one, until it is whole.
const NEXT: &str = "ledger.new";
/// Bytes of a mark with its header.
const MARK_BYTES: usize = HEADER_BYTES + 16;
/// How much is looked through for a mark at once.
const WINDOW_BYTES: usize = 1 << 20;

/// A file from an offset on, by `pread`: descriptors of the same file may be read by several threads.
pub(super) struct From<'a> {
    pub(super) file: &'a File,
    pub(super) offset: u64,
}

impl Read for From<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset = self.offset.saturating_add(count.try_into().unwrap_or(u64::MAX));
        Ok(count)
    }
}

/// A spec's bytes, from where its frame is.
pub(super) fn spec_bytes(at: &SpecAt) -> io::Result<Vec<u8>> {
    let frame = Reader::new(From { file: &at.file, offset: at.offset })
        .next_frame()
        .map_err(io::Error::other)?
        .frame();
    let frame = frame.filter(|frame| frame.kind == spec_kind(at.is_open));
    frame.map(|frame| frame.payload).ok_or_else(|| io::Error::other("there is no spec at its place"))
}

/// The kind of a spec's frame.
pub(super) fn spec_kind(is_open: bool) -> u8 {
    if is_open { frames::OPEN_SPEC } else { frames::SPEC }
}

/// What a file held.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) index: Index,
    pub(super) generation: u64,
    pub(super) cut: Option<Cut>,
}

/// Where reading stopped before the end.
struct Stop {
    offset: u64,
    reason: String,
    /// The bytes are no whole frame: what a crash may leave of bytes that were never acknowledged.
    may_be_torn: bool,
}

struct Loading {
    file: Arc<File>,
    loaded: Loaded,
    opened: Option<Opened>,
    /// A spec whose job, or whose change of a job, must be the next frame.
    spec: Option<(SpecAt, Sha256)>,
}

impl Loading {
    fn take(&mut self, frame: &Frame) -> Result<(), String> {
        let said = frames::read(frame)?;
        let spec = self.spec.take();
        match (said, &self.opened) {
            (Said::Opened(opened), None) => {
                self.loaded.generation = opened.generation;
                self.opened = Some(opened);
                Ok(())
            }
            (Said::Opened(_), Some(_)) => Err("it begins a second time".to_owned()),
            (_, None) => Err("it does not begin as a ledger".to_owned()),
            (Said::Spec { is_open }, _) => {
                let digest = sha256(&frame.payload).map_err(|e| e.to_string())?;
                let (file, bytes) = (self.file.clone(), length(&frame.payload));
                self.spec = Some((SpecAt { file, offset: frame.offset, is_open, bytes }, digest));
                Ok(())
            }
            (Said::Mark, _) => Ok(()),
            (Said::Job(life), _) => self.job(*life, spec),
            (Said::Changed(changed), _) => self.changed(&changed, spec),
            (Said::Forgotten(id), _) => self.forgotten(&id),
        }
    }

    fn job(&mut self, life: Life, spec: Option<(SpecAt, Sha256)>) -> Result<(), String> {
        let job = &life.job;
        let index = &mut self.loaded.index;
        if index.kept(&job.id).is_some() || index.by_key(&job.caller.subject, &job.key).is_some() {
            return Err(format!("job {} or its key is there twice", job.id));
        }
        let spec = spec.filter(|(_, digest)| *digest == life.spec).map(|(at, _)| at);
        if spec.is_none() && job.state != State::Finished {
            return Err(format!("the spec of job {} is not in front of it", job.id));
        }
        index.put(Kept { life: Arc::new(life), spec });
        Ok(())
    }

    fn changed(&mut self, changed: &Changed, spec: Option<(SpecAt, Sha256)>) -> Result<(), String> {
        let index = &mut self.loaded.index;
        let kept = index.kept(&changed.job).ok_or_else(|| format!("job {} is not there", changed.job))?;
        let (life, _) = kept.life.after(&changed.what).map_err(|e| format!("job {}: {e}", changed.job))?;
        let spec = match changed.what {
            Change::Resolved { spec: digest } => {
                let spec = spec.filter(|(at, found)| *found == digest && !at.is_open).map(|(at, _)| at);
                Some(spec.ok_or_else(|| {
                    format!("the spec of job {} is not in front of its change", changed.job)
                })?)
            }
            _ => kept.spec.clone().filter(|_| life.job.state != State::Finished),
        };
        index.put(Kept { life: Arc::new(life), spec });
        Ok(())
    }

    fn forgotten(&mut self, id: &JobId) -> Result<(), String> {
        let index = &mut self.loaded.index;
        match index.kept(id) {
            Some(kept) if kept.life.job.state == State::Finished => {
                index.remove(id);
                Ok(())
            }
            _ => Err(format!("job {id} was forgotten, but is not there or not finished")),
        }
    }
}

/// Reads a ledger.
///
/// What a crash can have left is cut: an incomplete frame at the end, or anything unreadable after which no mark says that
/// it had been acknowledged. Everything else is damage.
pub(super) fn load(path: &Path, file: &Arc<File>, options: &Options) -> Result<Loaded, OpenError> {
    let mut reader = Reader::new(BufReader::with_capacity(256 << 10, From { file, offset: 0 }));
    let mut loading = Loading { file: file.clone(), loaded: Loaded::default(), opened: None, spec: None };
    let failed = |source| OpenError::File { path: path.to_owned(), doing: "read", source };
    let stop = loop {
        match reader.next_frame() {
            Ok(Next::Frame(frame)) => {
                if let Err(reason) = loading.take(&frame) {
                    break Some(Stop { offset: frame.offset, reason, may_be_torn: false });
                }
            }
            Ok(Next::End { offset }) if loading.opened.is_some() => {
                tracing::debug!(offset, "the ledger is whole");
                break None;
            }
            Ok(Next::End { offset } | Next::TornTail { offset }) | Err(ReadError::Damaged { offset }) => {
                let reason = "the bytes there are no whole frame".to_owned();
                break Some(Stop { offset, reason, may_be_torn: true });
            }
            Err(ReadError::Io(source)) => return Err(failed(source)),
            Err(other) => return Err(failed(io::Error::other(other))),
        }
    };
    let Some(stop) = stop else { return Ok(loading.loaded) };
    let bytes = file.metadata().map_err(failed)?.len().saturating_sub(stop.offset);
    let torn = match (&loading.opened, stop.may_be_torn) {
        (Some(opened), true) => !acknowledged_after(file, opened.nonce, stop.offset).map_err(failed)?,
        _ => false,
    };
    let accepted = options.accept_loss == Some(stop.offset);
    if !torn && !accepted {
        return Err(OpenError::Damaged { path: path.to_owned(), offset: stop.offset, reason: stop.reason });
    }
    loading.loaded.cut = Some(Cut { offset: stop.offset, bytes, accepted: !torn });
    Ok(loading.loaded)
}

/// Whether a mark behind `damage` says that more than `damage` bytes were durable, and so perhaps acknowledged.
///
/// A mark inside a payload would count, too: but its nonce is random, and whoever chooses payloads does not know it.
fn acknowledged_after(file: &File, nonce: u64, damage: u64) -> io::Result<bool> {
    let mut from = From { file, offset: damage };
    let mut window: Vec<u8> = Vec::with_capacity(WINDOW_BYTES + MARK_BYTES);
    loop {
        let room = WINDOW_BYTES.saturating_sub(window.len()).try_into().unwrap_or(u64::MAX);
        if from.by_ref().take(room).read_to_end(&mut window)? == 0 {
            return Ok(false);
        }
        let hits = window.windows(MARK_BYTES).filter(|bytes| bytes.starts_with(&MAGIC));
        for bytes in hits {
            let Ok(Next::Frame(frame)) = Reader::new(bytes).next_frame() else { continue };
            let durable = frames::marked(nonce, &frame.payload).filter(|_| frame.kind == MARK);
            if durable.is_some_and(|durable| durable > damage) {
                return Ok(true);
            }
        }
        let seen = window.len().saturating_sub(MARK_BYTES - 1);
        window.drain(..seen);
    }
}

/// A new file that holds what is kept, durable.
pub(super) struct Begun<M> {
    pub(super) writer: Writer<M>,
    pub(super) file: Arc<File>,
    pub(super) index: Index,
}

/// Begins the next file at start, in its place and durable: all of `loaded`. What is over its retention is in it too: what else there
/// is of such a job, its record above all, goes before the ledger forgets it.
pub(super) fn begin<M: Medium>(
    dir: &Path,
    loaded: &Loaded,
    opened: &Opened,
    wrap: &mut dyn FnMut(File) -> M,
) -> Result<Begun<M>, OpenError> {
    let begun = write_next(dir, &loaded.index, opened, wrap)?;
    if loaded.cut.as_ref().is_some_and(|cut| cut.accepted) {
        // What the operator gave up stays beside it, for whoever wants to look.
        let aside = dir.join(format!("{FILE}.damaged-{}", loaded.generation));
        std::fs::hard_link(dir.join(FILE), &aside).map_err(written(&aside))?;
    }
    put_in_place(dir)?;
    sync(dir).map_err(written(dir))?;
    Ok(begun)
}

fn written(path: &Path) -> impl Fn(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::File { path: path.clone(), doing: "written", source }
}

/// Writes the next file beside the one that is there, durable and without the name that counts.
pub(super) fn write_next<M: Medium>(
    dir: &Path,
    index: &Index,
    opened: &Opened,
    wrap: &mut dyn FnMut(File) -> M,
) -> Result<Begun<M>, OpenError> {
    let path = dir.join(NEXT);
    let failed = written(&path);
    remove_next(dir).map_err(&failed)?;
    let file = OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(&path);
    let file = Arc::new(file.map_err(&failed)?);
    let mut writer = Writer::on(wrap(file.try_clone().map_err(&failed)?));
    let index = copy(&mut writer, &file, index, opened).map_err(&failed)?;
    writer.sync().map_err(|error| failed(io_of(error)))?;
    let durable = writer.offset();
    writer.append(MARK, &frames::mark(opened.nonce, durable)).map_err(|error| failed(io_of(error)))?;
    Ok(Begun { writer, file, index })
}

/// Gives the next file the name that counts, in place of the one before.
pub(super) fn put_in_place(dir: &Path) -> Result<(), OpenError> {
    std::fs::rename(dir.join(NEXT), dir.join(FILE)).map_err(written(&dir.join(NEXT)))
}

/// Makes the names in the directory durable.
pub(super) fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes a next file that was not put in place.
pub(super) fn remove_next(dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(dir.join(NEXT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn copy<M: Medium>(
    writer: &mut Writer<M>,
    file: &Arc<File>,
    from: &Index,
    opened: &Opened,
) -> io::Result<Index> {
    let mut index = Index::default();
    writer.append(frames::OPENED, &serde_json::to_vec(opened)?).map_err(io_of)?;
    for kept in from.iter() {
        let spec = match &kept.spec {
            Some(at) => {
                let bytes = spec_bytes(at)?;
                let offset = writer.append(spec_kind(at.is_open), &bytes).map_err(io_of)?;
                Some(SpecAt { file: file.clone(), offset, ..at.clone() })
            }
            None => None,
        };
        writer.append(frames::JOB, &serde_json::to_vec(&*kept.life)?).map_err(io_of)?;
        index.put(Kept { life: kept.life.clone(), spec });
    }
    Ok(index)
}

pub(super) fn length(bytes: &[u8]) -> u64 {
    bytes.len().try_into().unwrap_or(u64::MAX)
}

/// What a journal's writer met, as an error of the file's.
pub(super) fn io_of(error: WriteError) -> io::Error {
    match error {
        WriteError::Full(error) | WriteError::Broken(error) => error,
        other => io::Error::other(other),
    }
}

/// Gives back what an old file had set aside beyond its end.
pub(super) fn give_back(file: &File) -> io::Result<()> {
    let end = file.metadata()?.len();
    let beyond = u64::try_from(i64::MAX).unwrap_or(u64::MAX).saturating_sub(end);
    Ok(fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, end, beyond)?)
}

/// What begins a file: its generation is one more than that of the file before.
pub(super) fn opening(loaded: &Loaded, at: UnixNanos) -> io::Result<Opened> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let generation = loaded.generation.saturating_add(1);
    Ok(Opened::new(generation, boot.trim().to_owned(), at, nonce()?, loaded.cut.clone()))
}

/// What the marks of a file are known by.
pub(super) fn nonce() -> io::Result<u64> {
    let mut nonce = [0; 8];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| io::Error::other("no random numbers"))?;
    Ok(u64::from_le_bytes(nonce))
}
