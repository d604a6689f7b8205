//! Directories: copied entry by entry into an object of the store's, or packed and compressed into one file.
//!
//! Either way the directory is read once, from its first entry to its last, by descriptor, and hashed while it is read.

use super::compressor::Compressor;
use super::sink::{Sink, Stop, Sunk};
use super::{Budget, Refused, internal, refused};
use crate::search::Search;
use ampoule_store::pack::{PackError, Packed, Seen, pack_output_watched};
use ampoule_store::{Leaving, Limits, Refusal};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::BorrowedFd;

/// The buffer before a compressor: a header alone has 512 bytes.
const BUFFER_BYTES: usize = 256 << 10;

/// What outputs are packed with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packing<'a> {
    /// The time of every entry, in seconds since 1970.
    pub(crate) epoch: u64,
    /// As which host id a compressor runs, if this is host root.
    pub(crate) compress_as: Option<u32>,
    /// What searches them, if there were secrets.
    pub(crate) search: Option<&'a Search>,
}

impl Packing<'_> {
    /// Shows the search what goes out.
    pub(super) fn show(&self, seen: Seen<'_>, stop: &Stop<'_>) -> io::Result<()> {
        self.search.map_or(Ok(()), |search| search.see(seen, &|| stop.check(0)))
    }
}

fn limits(budget: &Budget) -> Limits {
    Limits { bytes_max: budget.bytes, entries_max: budget.entries, ..Limits::default() }
}

/// Copies a directory as a tree.
pub(super) fn copy(
    dir: BorrowedFd<'_>,
    into: &Leaving,
    packing: Packing<'_>,
    budget: &Budget,
    stop: &Stop<'_>,
) -> Result<Packed, Refused> {
    let passed = &mut |bytes| stop.check(bytes);
    let watch = &mut |seen: Seen<'_>| packing.show(seen, stop);
    let copied = into.directory(dir, packing.epoch, &limits(budget), passed, watch);
    copied.map_err(|error| ended(error, budget, packing, stop))
}

/// Packs a directory into one compressed archive.
pub(super) fn compress(
    dir: BorrowedFd<'_>,
    into: File,
    packing: Packing<'_>,
    budget: &Budget,
    stop: &Stop<'_>,
) -> Result<(Packed, Sunk), Refused> {
    let limits = limits(budget);
    let sink = Sink::new(into, limits.stream_bytes_max(), stop);
    let taken = compressed(dir, sink, packing, &limits, stop);
    taken.map_err(|error| ended(error, budget, packing, stop))
}

fn compressed(
    dir: BorrowedFd<'_>,
    sink: Sink<'_, '_>,
    packing: Packing<'_>,
    limits: &Limits,
    stop: &Stop<'_>,
) -> Result<(Packed, Sunk), PackError> {
    let compressor = Compressor::start(sink, packing.compress_as).map_err(PackError::Write)?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, compressor);
    let watch = &mut |seen: Seen<'_>| packing.show(seen, stop);
    let packed = pack_output_watched(dir, &mut out, packing.epoch, limits, watch)?;
    out.flush().map_err(PackError::Write)?;
    let compressor = out.into_inner().map_err(|error| PackError::Write(error.into_error()))?;
    Ok((packed, compressor.finish().map_err(PackError::Write)?))
}

fn ended(error: PackError, budget: &Budget, packing: Packing<'_>, stop: &Stop<'_>) -> Refused {
    match stop.take() {
        Some(failure) => Refused { stopped: Some(failure), ..refused("stopped") },
        None => reason(error, budget, packing.search.is_some()),
    }
}

/// Why a directory is not taken out. Of a job with secrets it is not said what anything in it is called or leads to:
/// nobody has searched that, and a reason goes where an output does not.
fn reason(error: PackError, budget: &Budget, is_unnamed: bool) -> Refused {
    match error {
        PackError::Refused(Refusal::TooLarge { .. }) => budget.too_large(),
        PackError::Refused(Refusal::TooMany { .. }) => {
            refused(format!("outputs have more entries than limits.inodes allows ({} left)", budget.entries))
        }
        PackError::Write(error) => internal(error),
        error if is_unnamed => unnamed(&error),
        PackError::Special { path, kind } => refused(format!("{path} in it is a {kind}")),
        PackError::Io { path, errno: Errno::ACCESS | Errno::PERM } => {
            refused(format!("{path} in it cannot be read; let its owner read it with chmod"))
        }
        PackError::Io { path, errno } => internal(std::io::Error::other(format!("{path}: {errno}"))),
        other => refused(format!("in it, {other}")),
    }
}

/// The same without a name.
fn unnamed(error: &PackError) -> Refused {
    refused(match error {
        PackError::Special { kind, .. } => format!("something in it is a {kind}"),
        PackError::Io { errno: Errno::ACCESS | Errno::PERM, .. } => {
            "something in it cannot be read; let its owner read it with chmod".to_owned()
        }
        PackError::Io { errno, .. } => return internal((*errno).into()),
        PackError::Link { reason, .. } => format!("a link in it {reason}"),
        PackError::SetId { .. } => {
            "a file in it has a set-user-id or set-group-id bit; remove it with chmod".to_owned()
        }
        PackError::Changed { .. } => "a file in it changed while it was read".to_owned(),
        PackError::Mounted { .. } => {
            "something else is mounted in it; name a directory without that".to_owned()
        }
        PackError::Refused(Refusal::TooDeep { .. }) => "a path in it has more than 64 components".to_owned(),
        PackError::Refused(Refusal::PathTooLong { .. }) => "a path in it has more than 4096 bytes".to_owned(),
        PackError::Refused(Refusal::NameTooLong { .. }) => "a name in it has more than 255 bytes".to_owned(),
        PackError::Refused(Refusal::LinkTooLong { .. }) => {
            "the target of a link in it is empty or has more than 4095 bytes".to_owned()
        }
        PackError::Refused(refusal) => format!("something in it breaks the rule {}", refusal.name()),
        PackError::Stopped => "it was not read to its end".to_owned(),
        _ => "something in it cannot be taken out".to_owned(),
    })
}
