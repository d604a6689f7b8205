//! Entries that are durable and not in the log's tiles yet: a journal (docs/formats.md) of lots, each with a signed checkpoint of the
//! log with them.
//!
//! One append and one sync make a lot durable; tiles and `checkpoint` are files of their own, each with its syncs, and are written for
//! many lots at once. Who reads the log reads what is pending as well.

use super::AuditError;
use ampoule_evidence::tlog::{Checkpoint, Edge, NOTE_BYTES_MAX, NoteKey, encode_entry, leaf_hash};
use ampoule_journal::{MAGIC, Medium, Next, ReadError, Reader, WriteError, Writer};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The journal's name.
pub(super) const PENDING: &str = "pending";
/// A frame with a lot.
const LOT: u8 = 1;
/// The most bytes that are read: those of a log whose tiles could not be written for a while.
pub(super) const PENDING_BYTES_MAX: u64 = 64 << 20;

/// What the journal is written to.
pub(super) type Wrap<M> = Box<dyn FnMut(File) -> M + Send>;

/// The journal of a log, by its one writer.
pub(super) struct Pending<M> {
    path: PathBuf,
    file: File,
    wrap: Wrap<M>,
    writer: Writer<M>,
}

impl<M: Medium> Pending<M> {
    /// Opens what a log has pending, or begins it; to be [emptied](Self::clear) before anything is added.
    pub(super) fn open(dir: &Path, mut wrap: Wrap<M>) -> Result<Self, AuditError> {
        let path = dir.join(PENDING);
        let opened = File::options().read(true).append(true).create(true).mode(0o640).open(&path);
        let file = opened.and_then(|file| Ok((file.try_clone()?, file)));
        let (clone, file) =
            file.map_err(|source| AuditError::File { path: path.clone(), doing: "opened", source })?;
        let writer = Writer::on(wrap(clone));
        Ok(Self { path, file, wrap, writer })
    }

    /// How long it is.
    pub(super) fn bytes(&self) -> u64 {
        self.writer.offset()
    }

    /// Makes a lot durable.
    ///
    /// # Errors
    /// [`AuditError`]: it is not there then. A failed sync ends the process: what is on the disk is not known.
    pub(super) fn add(&mut self, note: &str, entries: &[Vec<u8>]) -> Result<(), AuditError> {
        let too_long = || AuditError::NotWritten("an entry is too long".to_owned());
        let mut lot = Vec::new();
        for part in std::iter::once(note.as_bytes()).chain(entries.iter().map(Vec::as_slice)) {
            if !encode_entry(part, &mut lot) {
                return Err(too_long());
            }
        }
        let written = self.writer.append(LOT, &lot).and_then(|_| self.writer.sync());
        let source = match written {
            Ok(()) => return Ok(()),
            Err(WriteError::Full(source)) => source,
            Err(WriteError::Oversize { .. }) => return Err(too_long()),
            Err(error) => super::fatal(&format!("{}: {error}", self.path.display())),
        };
        Err(AuditError::File { path: self.path.clone(), doing: "written", source })
    }

    /// Empties it, after what it has is in the tiles. That need not be durable: what a checkpoint covers is passed over.
    pub(super) fn clear(&mut self) -> Result<(), AuditError> {
        let failed = |source| AuditError::File { path: self.path.clone(), doing: "emptied", source };
        let clone = self.file.set_len(0).and_then(|()| self.file.try_clone()).map_err(failed)?;
        self.writer = Writer::on((self.wrap)(clone));
        Ok(())
    }
}

/// What a log has pending.
#[derive(Debug, Default)]
pub(super) struct Lots {
    pub(super) entries: Vec<Vec<u8>>,
    /// The last one's checkpoint, signed.
    pub(super) newest: Option<Checkpoint>,
}

/// The bytes of what a log has pending.
pub(super) fn load(dir: &Path) -> Result<Vec<u8>, String> {
    match File::open(dir.join(PENDING)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("cannot be read: {error}")),
        Ok(file) => bounded(file).map_err(|e| format!("cannot be read: {e}")),
    }
}

/// Reads what a log has pending behind its tiles, whose edge this is, and holds each lot against its checkpoint. Each entry is given
/// out with the edge with it.
///
/// The last lot may be cut off or torn: a cut of power leaves it so, and nobody was told of it.
pub(super) fn read<E>(
    bytes: &[u8],
    edge: &mut Edge,
    key: &NoteKey,
    wrong: impl Fn(String) -> E,
    mut each: impl FnMut(&Edge) -> Result<(), E>,
) -> Result<Lots, E> {
    let (mut reader, mut lots) = (Reader::new(bytes), Lots::default());
    loop {
        let frame = match reader.next_frame() {
            Ok(Next::Frame(frame)) => frame,
            Ok(Next::End { .. }) => return Ok(lots),
            Ok(Next::TornTail { offset }) | Err(ReadError::Damaged { offset }) => {
                let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
                return match rest.is_some_and(|rest| has_lot(rest, key)) {
                    true => Err(wrong(format!("is damaged at byte {offset}, before entries that were told"))),
                    false => Ok(lots),
                };
            }
            Err(error) => return Err(wrong(error.to_string())),
        };
        let wrong = |reason: &str| wrong(format!("byte {}: {reason}", frame.offset));
        let (checkpoint, entries) =
            decode(&frame.payload, key).ok_or_else(|| wrong("no lot under a checkpoint of this log"))?;
        if checkpoint.size <= edge.size() {
            // It is in the tiles already.
            continue;
        }
        for entry in &entries {
            edge.push(leaf_hash(entry));
            each(edge)?;
        }
        if (checkpoint.size, checkpoint.root) != (edge.size(), edge.root()) {
            return Err(wrong("its entries are not those of its checkpoint"));
        }
        lots.entries.extend(entries);
        lots.newest = Some(checkpoint);
    }
}

fn bounded(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(PENDING_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    let is_large = u64::try_from(bytes.len()).is_ok_and(|length| length > PENDING_BYTES_MAX);
    if is_large { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// A lot: its checkpoint, if this key has signed it, and its entries.
fn decode(mut lot: &[u8], key: &NoteKey) -> Option<(Checkpoint, Vec<Vec<u8>>)> {
    let mut parts = Vec::new();
    while !lot.is_empty() {
        let (length, rest) = lot.split_first_chunk::<2>()?;
        let (part, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        parts.push(part.to_vec());
        lot = rest;
    }
    let note = parts.first().filter(|note| note.len() <= NOTE_BYTES_MAX)?;
    let checkpoint = Checkpoint::open(note, key).ok()?;
    parts.remove(0);
    Some((checkpoint, parts))
}

/// Whether there is a lot in these bytes, wherever it begins. An entry may hold what looks like a frame, but not the signature.
fn has_lot(bytes: &[u8], key: &NoteKey) -> bool {
    let begins = bytes.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC);
    begins.filter_map(|(at, _)| bytes.get(at..)).any(|rest| {
        let frame = Reader::new(rest).next_frame().ok().and_then(Next::frame);
        frame.is_some_and(|frame| frame.kind == LOT && decode(&frame.payload, key).is_some())
    })
}
