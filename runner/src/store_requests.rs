//! What an operator asks of the store.

use crate::admission::{Refusal, chain, refuse};
use crate::holdings::Holdings;
use crate::jobdir::State;
use crate::kept;
use ampoule_ipc::{Channel, IpcError};
use ampoule_sandbox::fault;
use ampoule_spec::wire::{Content, Reply};
use ampoule_spec::{Blake3, Code, Collect, ReadPolicy, StoreStat};
use ampoule_store::{Budget, Checked, Limits, Store, StoreError};
use std::os::fd::AsFd;

/// So many objects in one message: each with eight names of contents has less than 1.5 KiB.
const PAGE: usize = 40;
/// The most bytes of a finding that is told.
const REASON_BYTES_MAX: usize = 1 << 10;

fn failed(error: &StoreError) -> Refusal {
    refuse(error.code(), chain(error))
}

/// `swept` is what the launcher removed when it began.
pub(crate) fn stat(state: &State, store: &Store, swept: u64) -> Result<Reply, Refusal> {
    let kept = kept::needed(state, store, false)?;
    let stat = store.stat(&kept).map_err(|e| failed(&e))?;
    Ok(Reply::StoreStat(StoreStat { swept, ..stat }))
}

pub(crate) fn list(store: &Store, after: Option<Blake3>, named: Option<&str>) -> Result<Reply, Refusal> {
    if named.is_some_and(|named| Blake3::parse(named).is_err()) {
        return Err(refuse(Code::JobInvalid, "a digest has 64 lower-case hexadecimal digits"));
    }
    let (objects, more) = store.list(after, named, PAGE).map_err(|e| failed(&e))?;
    Ok(Reply::StoreObjects { objects, more })
}

/// Reads an object back, every byte of it. One that is gone by now is not damaged.
pub(crate) fn verify(store: &Store, object: Blake3, quarantine: bool) -> Result<Reply, Refusal> {
    let sound = |bytes| Reply::StoreVerified { damage: None, quarantined: false, bytes };
    let Some(lease) = store.peek(object).map_err(|e| failed(&e))? else { return Ok(sound(0)) };
    let checked = lease.check(ReadPolicy::Always, Budget::OBJECT, store.owner(), Limits::default());
    match checked.map_err(|e| failed(&e))? {
        Checked::Sound(read) => Ok(sound(read.bytes)),
        Checked::Damaged(reason) => {
            if quarantine {
                store.quarantine_leased(&lease, &reason).map_err(|e| failed(&e))?;
            }
            let reason = reason.chars().take(REASON_BYTES_MAX / 4).collect();
            Ok(Reply::StoreVerified { damage: Some(reason), quarantined: quarantine, bytes: 0 })
        }
    }
}

pub(crate) fn collect(state: &State, store: &Store, wanted: &Collect) -> Result<Reply, Refusal> {
    let now = crate::clock::now();
    let kept = kept::needed(state, store, !wanted.dry_run)?;
    let mut point = |stage: &'static str| {
        fault::point(stage).map_err(|error| StoreError::Io {
            doing: stage,
            entry: "store".to_owned(),
            errno: rustix::io::Errno::from_raw_os_error(error.errno),
        })
    };
    store.collect(wanted, &kept, now, &mut point).map(Reply::StoreCollected).map_err(|e| failed(&e))
}

/// Passes on a descriptor of what the store has by this digest, and answers.
pub(crate) fn open(
    store: &Store,
    holdings: &mut Holdings,
    channel: &Channel,
    content: &Content,
) -> Result<Option<Reply>, Refusal> {
    let is_file = match content {
        Content::File { sha256: Some(_), .. } => true,
        Content::Directory { tree: Some(_), .. } => false,
        _ => {
            return Err(refuse(Code::JobInvalid, "only files and directories are opened, by their digest"));
        }
    };
    let Some(content) = store.like(content).map_err(|e| failed(&e))? else {
        return Ok(Some(Reply::Opened { found: false }));
    };
    // Held as what is announced is: nobody collects it while it is read.
    let Some(needed) = holdings.take(store, &content, ReadPolicy::default())? else {
        return Ok(Some(Reply::Opened { found: false }));
    };
    let own = needed.first().ok_or_else(|| refuse(Code::Internal, "a content without an object"))?;
    let lease = holdings.used(own, "what is opened".to_owned(), 1)?.lease;
    let opened = lease.open(is_file).map_err(|e| failed(&e))?;
    match channel.send(&Reply::Opened { found: true }, &[opened.as_fd()]) {
        Ok(()) | Err(IpcError::Closed) => Ok(None),
        Err(error) => Err(refuse(Code::Internal, chain(&error))),
    }
}
