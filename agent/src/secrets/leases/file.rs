//! The journal's file: what an entry is and does, how the file is read, and how it is written anew.

use super::{Grant, GrantId, LeasesError};
use ampoule_journal::{MAGIC, Medium, Next, ReadError, Reader, Writer};
use ampoule_spec::{JobId, UnixNanos};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The file, and the one that takes its place.
pub(super) const FILE: &str = "leases";
const NEXT: &str = "leases.next";
/// A frame with an entry, and one with several: those that one sync makes durable.
pub(super) const ENTRY: u8 = 1;
pub(super) const LOT: u8 = 2;

/// All grants that are not forgotten.
pub(super) type Grants = BTreeMap<GrantId, Grant>;
/// What a journal is written to.
pub(super) type Wrap<M> = Box<dyn FnMut(File) -> M + Send>;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Entry {
    /// A token was made; also a grant as it is when the file is written anew.
    Minted { id: GrantId, grant: Box<Grant> },
    /// The next grant has this number or a higher one. It begins each file that is written anew: what is forgotten gives no number back.
    Next { id: GrantId },
    /// Paths were read that have leases.
    Leased { id: GrantId, leases: Vec<String> },
    /// The token lives longer.
    Renewed { id: GrantId, until: UnixNanos },
    /// The step has the values.
    HandedOver { id: GrantId, at: UnixNanos },
    /// It is to be revoked.
    Revoking { id: GrantId, at: UnixNanos },
    /// The server has said that there is nothing left of it.
    Closed { id: GrantId, at: UnixNanos },
    /// The job's record is signed.
    Forgotten { job: JobId },
}

impl Entry {
    /// Does to the grants what it says; else which one is not there.
    pub(super) fn apply(self, grants: &mut Grants) -> Result<(), GrantId> {
        match self {
            Self::Minted { id, grant } => drop(grants.insert(id, *grant)),
            Self::Next { .. } => {}
            Self::Leased { id, leases } => of(grants, id)?.leases.extend(leases),
            Self::Renewed { id, until } => of(grants, id)?.until = until,
            Self::HandedOver { id, at } => of(grants, id)?.given_at = Some(at),
            // The first time counts: two may be on their way at once.
            Self::Revoking { id, at } => _ = of(grants, id)?.revoking_at.get_or_insert(at),
            Self::Closed { id, at } => of(grants, id)?.closed_at = Some(at),
            Self::Forgotten { job } => grants.retain(|_, grant| grant.job != job || grant.is_open()),
        }
        Ok(())
    }
}

fn of(grants: &mut Grants, id: GrantId) -> Result<&mut Grant, GrantId> {
    grants.get_mut(&id).ok_or(id)
}

/// Reads a journal. A last frame that was cut short was told to nobody.
pub(super) fn load(path: &Path) -> Result<(Grants, GrantId), LeasesError> {
    let failed = |source| LeasesError::File { path: path.to_owned(), doing: "read", source };
    let (mut grants, mut next) = (Grants::new(), 0);
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((grants, next)),
        other => other.map_err(failed)?,
    };
    let mut reader = Reader::new(io::BufReader::new(file));
    loop {
        let damaged = |offset| LeasesError::Damaged { path: path.to_owned(), offset };
        let frame = match reader.next_frame() {
            Ok(Next::Frame(frame)) => frame,
            Ok(Next::End { .. } | Next::TornTail { .. }) => return Ok((grants, next)),
            Err(ReadError::Damaged { offset }) if is_last(path, offset).map_err(failed)? => {
                return Ok((grants, next));
            }
            Err(ReadError::Damaged { offset }) => return Err(damaged(offset)),
            Err(ReadError::Io(error)) => return Err(failed(error)),
            Err(error) => return Err(failed(io::Error::other(error))),
        };
        let entries = match frame.kind {
            ENTRY => serde_json::from_slice(&frame.payload).map(|entry| vec![entry]).ok(),
            LOT => serde_json::from_slice::<Vec<Entry>>(&frame.payload).ok(),
            _ => None,
        };
        for entry in entries.ok_or_else(|| damaged(frame.offset))? {
            match &entry {
                Entry::Minted { id, .. } => next = next.max(id.saturating_add(1)),
                Entry::Next { id } => next = next.max(*id),
                _ => {}
            }
            entry.apply(&mut grants).map_err(|_| damaged(frame.offset))?;
        }
    }
}

/// Whether there is no whole frame behind what cannot be read: then nobody was told of it, since each is durable before the next is
/// begun, and entries that share a sync share a frame.
fn is_last(path: &Path, offset: u64) -> io::Result<bool> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut rest = Vec::new();
    file.read_to_end(&mut rest)?;
    let mut later = (1..rest.len()).filter_map(|at| rest.get(at..)).filter(|bytes| bytes.starts_with(&MAGIC));
    Ok(!later.any(|bytes| matches!(Reader::new(bytes).next_frame(), Ok(Next::Frame(_)))))
}

/// Writes what is kept into a new file, makes it durable, and gives it the name; that is durable when the directory has been synced.
pub(super) fn write_anew<M: Medium>(
    dir: &Path,
    (grants, next): (&Grants, GrantId),
    wrap: &mut Wrap<M>,
) -> Result<Writer<M>, LeasesError> {
    let path = dir.join(NEXT);
    let failed = |doing| {
        let path = path.clone();
        move |source| LeasesError::File { path, doing, source }
    };
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("removed")(error)),
        _ => {}
    }
    let file =
        File::options().append(true).create_new(true).mode(0o600).open(&path).map_err(failed("made"))?;
    let mut writer = Writer::on(wrap(file));
    let kept = grants.iter().map(|(id, grant)| Entry::Minted { id: *id, grant: Box::new(grant.clone()) });
    for entry in std::iter::once(Entry::Next { id: next }).chain(kept) {
        let bytes = serde_json::to_vec(&entry).map_err(|e| LeasesError::Write(e.into()))?;
        writer.append(ENTRY, &bytes)?;
    }
    writer.sync()?;
    std::fs::rename(&path, dir.join(FILE)).map_err(failed("renamed"))?;
    Ok(writer)
}
