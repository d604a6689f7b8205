//! Unpacking one tar archive.

use super::place::{Attributes, Place, Policy};
use super::{Claims, WorkError};
use crate::entry_path::EntryPath;
use crate::limits::BUFFER_BYTES;
use crate::refusal::{Refusal, shown};
use crate::stream::Stream;
use crate::tar::{Archive, Entry, Kind};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::fs::File;
use std::io::Write;

/// Smaller files are left to the sync at the end, which writes them in one go.
const WHOLE_BYTES: u64 = 256 << 10;
/// Ids that the store keeps; a worker has no others.
const OWNERS: u64 = 65_536;
/// The prefix that makes a name in a layer a whiteout (OCI image-spec, "Representing Changes").
const WHITEOUT: &[u8] = b".wh.";
/// The rest of the name that makes a directory opaque: `.wh..wh..opq`.
const OPAQUE: &[u8] = b".wh..opq";

struct Unpacker {
    archive: Archive,
    place: Place,
    buffer: Vec<u8>,
    /// Bytes that may still be written.
    bytes_left: u64,
    /// Headers that may still come: directories may come twice, so entries alone are no bound.
    headers_left: u64,
    devices_skipped: u64,
    /// Is told of whole files.
    whole: fn(BorrowedFd<'_>),
}

/// Unpacks all of `stream` into `place`.
pub(super) fn unpack(stream: Stream, place: Place, whole: fn(BorrowedFd<'_>)) -> Result<Claims, WorkError> {
    let limits = *place.limits();
    let mut unpacker = Unpacker {
        archive: Archive::new(stream),
        place,
        buffer: vec![0; BUFFER_BYTES],
        bytes_left: limits.bytes_max,
        headers_left: limits.entries_max.saturating_mul(2),
        devices_skipped: 0,
        whole,
    };
    while let Some(entry) = unpacker.archive.next_entry()? {
        let left = unpacker.headers_left.checked_sub(1);
        unpacker.headers_left = left.ok_or(Refusal::TooMany { entries_max: limits.entries_max })?;
        unpacker.entry(&entry)?;
    }
    unpacker.place.finish()?;
    let stream = unpacker.archive.into_stream();
    Ok(Claims {
        stream_bytes: stream.bytes(),
        stream_sha256: stream.finish(),
        owners_left: unpacker.place.owners_left,
        devices_skipped: unpacker.devices_skipped,
        implied_directories: unpacker.place.implied,
    })
}

impl Unpacker {
    fn entry(&mut self, entry: &Entry) -> Result<(), WorkError> {
        let path = EntryPath::parse(&entry.name)?;
        if entry.kind != Kind::Directory {
            if path.split().is_none() {
                return Err(Refusal::EmptyName { entry: shown(&entry.name) }.into());
            }
            if path.as_directory {
                return Err(Refusal::SlashOnFile { entry: shown(&entry.name) }.into());
            }
        }
        if self.place.policy() == Policy::Layer
            && let Some((parent, name)) = path.split()
        {
            if parent.split(|byte| *byte == b'/').any(|part| part.starts_with(WHITEOUT)) {
                return Err(Refusal::Whiteout { entry: shown(&entry.name) }.into());
            }
            if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                return self.whiteout(entry, &path, parent, hidden);
            }
        }
        let with = self.attributes(entry)?;
        match entry.kind {
            Kind::Directory => self.place.directory(&path, with),
            Kind::File => self.file(entry, &path, with),
            Kind::Symlink => self.place.symlink(&path, &entry.link, with),
            Kind::HardLink => self.place.hard_link(&path, &entry.link),
            Kind::CharDevice => self.special(&path, "character device"),
            Kind::BlockDevice => self.special(&path, "block device"),
            Kind::Fifo => self.special(&path, "FIFO"),
        }
    }

    fn file(&mut self, entry: &Entry, path: &EntryPath, with: Attributes) -> Result<(), WorkError> {
        let bytes_max = self.place.limits().bytes_max;
        self.bytes_left = self.bytes_left.checked_sub(entry.size).ok_or(Refusal::TooLarge { bytes_max })?;
        let mut file = File::from(self.place.file(path)?);
        loop {
            let count = self.archive.read(&mut self.buffer)?;
            if count == 0 {
                break;
            }
            let part = self.buffer.get(..count).unwrap_or_default();
            file.write_all(part).map_err(|error| super::single::write_error(&error, path.bytes()))?;
        }
        let file = OwnedFd::from(file);
        self.place.finish_file(&file, path, with)?;
        if entry.size >= WHOLE_BYTES {
            (self.whole)(file.as_fd());
        }
        Ok(())
    }

    /// Root file systems come with device nodes for a `/dev` that every sandbox makes itself.
    fn special(&mut self, path: &EntryPath, kind: &'static str) -> Result<(), WorkError> {
        let image = matches!(self.place.policy(), Policy::Image | Policy::Layer);
        if image && path.bytes().starts_with(b"dev/") {
            self.devices_skipped += 1;
            return Ok(());
        }
        Err(Refusal::SpecialFile { entry: shown(path.bytes()), kind }.into())
    }

    fn whiteout(
        &mut self,
        entry: &Entry,
        path: &EntryPath,
        parent: &[u8],
        hidden: &[u8],
    ) -> Result<(), WorkError> {
        let plain = !hidden.is_empty() && !matches!(hidden, b"." | b"..") && !hidden.starts_with(WHITEOUT);
        match hidden {
            _ if entry.kind != Kind::File || entry.size != 0 => {
                Err(Refusal::Whiteout { entry: shown(&entry.name) }.into())
            }
            // overlayfs merges the roots of all layers, whatever they say.
            OPAQUE if !parent.is_empty() => self.place.opaque(parent, path),
            _ if plain => self.place.whiteout(parent, hidden, path),
            _ => Err(Refusal::Whiteout { entry: shown(&entry.name) }.into()),
        }
    }

    fn attributes(&self, entry: &Entry) -> Result<Attributes, WorkError> {
        let directory = entry.kind == Kind::Directory;
        if let Policy::Input { epoch } = self.place.policy() {
            let mode = if directory || entry.mode & 0o100 != 0 { 0o755 } else { 0o644 };
            let mtime = (i64::try_from(epoch).unwrap_or(i64::MAX), 0);
            return Ok(Attributes { mode, owner: None, mtime });
        }
        let id = |id: u64| {
            u32::try_from(id)
                .ok()
                .filter(|id| u64::from(*id) < OWNERS)
                .ok_or_else(|| WorkError::from(Refusal::OwnerTooLarge { entry: shown(&entry.name), id }))
        };
        // The owner's own read bit stays on, so that an ordinary user's store can be read back and removed.
        let owner_bits = if directory { 0o700 } else { 0o400 };
        Ok(Attributes {
            mode: (entry.mode & 0o1777) | owner_bits,
            owner: Some((id(entry.uid)?, id(entry.gid)?)),
            mtime: entry.mtime,
        })
    }
}
