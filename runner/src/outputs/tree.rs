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
    pub(super) fn show(&self, seen: Seen<'_>) -> io::Result<()> {
        self.search.map_or(Ok(()), |search| search.see(seen))
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
    stop: &mut Stop<'_>,
) -> Result<Packed, Refused> {
    let passed = &mut |bytes| stop.check(bytes);
    let copied = into.directory(dir, packing.epoch, &limits(budget), passed, &mut |seen| packing.show(seen));
    copied.map_err(|error| ended(error, budget, stop))
}

/// Packs a directory into one compressed archive.
pub(super) fn compress(
    dir: BorrowedFd<'_>,
    into: File,
    packing: Packing<'_>,
    budget: &Budget,
    stop: &mut Stop<'_>,
) -> Result<(Packed, Sunk), Refused> {
    let limits = limits(budget);
    let taken = compressed(dir, Sink::new(into, limits.stream_bytes_max(), stop), packing, &limits);
    taken.map_err(|error| ended(error, budget, stop))
}

fn compressed(
    dir: BorrowedFd<'_>,
    sink: Sink<'_, '_>,
    packing: Packing<'_>,
    limits: &Limits,
) -> Result<(Packed, Sunk), PackError> {
    let compressor = Compressor::start(sink, packing.compress_as).map_err(PackError::Write)?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, compressor);
    let packed = pack_output_watched(dir, &mut out, packing.epoch, limits, &mut |seen| packing.show(seen))?;
    out.flush().map_err(PackError::Write)?;
    let compressor = out.into_inner().map_err(|error| PackError::Write(error.into_error()))?;
    Ok((packed, compressor.finish().map_err(PackError::Write)?))
}

fn ended(error: PackError, budget: &Budget, stop: &mut Stop<'_>) -> Refused {
    match stop.said.take() {
        Some(failure) => Refused { stopped: Some(failure), ..refused("stopped") },
        None => reason(error, budget),
    }
}

/// Why a directory is not taken out.
fn reason(error: PackError, budget: &Budget) -> Refused {
    match error {
        PackError::Refused(Refusal::TooLarge { .. }) => budget.too_large(),
        PackError::Refused(Refusal::TooMany { .. }) => {
            refused(format!("outputs have more entries than limits.inodes allows ({} left)", budget.entries))
        }
        PackError::Special { path, kind } => refused(format!("{path} in it is a {kind}")),
        PackError::Io { path, errno: Errno::ACCESS | Errno::PERM } => {
            refused(format!("{path} in it cannot be read; let its owner read it with chmod"))
        }
        PackError::Io { path, errno } => internal(std::io::Error::other(format!("{path}: {errno}"))),
        PackError::Write(error) => internal(error),
        other => refused(format!("in it, {other}")),
    }
}
