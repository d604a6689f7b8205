//! Contents that are one file: the tree holds it under the name `content`.

use super::place::times;
use super::{Claims, WorkError};
use crate::beneath;
use crate::limits::{BUFFER_BYTES, DOCUMENT_BYTES_MAX, Limits};
use crate::refusal::Refusal;
use crate::stream::Stream;
use rustix::fd::OwnedFd;
use rustix::fs::Mode;
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};

/// The name of the one file.
pub(crate) const CONTENT: &[u8] = b"content";

pub(super) fn write_error(error: &io::Error, entry: &[u8]) -> WorkError {
    WorkError::store("write", entry)(Errno::from_io_error(error).unwrap_or(Errno::IO))
}

/// A client's file.
pub(super) fn file(
    mut stream: Stream,
    staging: OwnedFd,
    executable: bool,
    epoch: u64,
    limits: Limits,
) -> Result<Claims, WorkError> {
    let bytes_max = limits.bytes_max;
    let mut file = Single::new(&staging)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if stream.bytes() > bytes_max {
            return Err(Refusal::TooLarge { bytes_max }.into());
        }
        file.write(buffer.get(..count).unwrap_or_default())?;
    }
    file.finish(&staging, executable, epoch)?;
    Ok(Claims { stream_bytes: stream.bytes(), ..Claims::default() })
}

/// An image's manifest or configuration: kept whole, byte for byte, if `check` can read it.
pub(super) fn document(
    source: OwnedFd,
    staging: OwnedFd,
    limits: Limits,
    check: impl FnOnce(&[u8]) -> Result<(), Refusal>,
) -> Result<Claims, WorkError> {
    let mut stream = Stream::plain(source, limits);
    let mut bytes = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if stream.bytes() > DOCUMENT_BYTES_MAX {
            return Err(Refusal::TooLarge { bytes_max: DOCUMENT_BYTES_MAX }.into());
        }
        bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
    check(&bytes)?;
    let mut file = Single::new(&staging)?;
    file.write(&bytes)?;
    file.finish(&staging, false, 0)?;
    Ok(Claims { stream_bytes: stream.bytes(), ..Claims::default() })
}

struct Single(File);

impl Single {
    fn new(staging: &OwnedFd) -> Result<Self, WorkError> {
        let file = beneath::create(staging, CONTENT).map_err(WorkError::store("make a file", CONTENT))?;
        Ok(Self(file.into()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), WorkError> {
        self.0.write_all(bytes).map_err(|error| write_error(&error, CONTENT))
    }

    fn finish(self, staging: &OwnedFd, executable: bool, epoch: u64) -> Result<(), WorkError> {
        let mode = if executable { 0o755 } else { 0o644 };
        let times = times((i64::try_from(epoch).unwrap_or(i64::MAX), 0));
        let set = || {
            rustix::fs::fchmod(&self.0, Mode::from_raw_mode(mode))?;
            rustix::fs::futimens(&self.0, &times)?;
            rustix::fs::fchmod(staging, Mode::from_raw_mode(0o755))?;
            rustix::fs::futimens(staging, &times)
        };
        set().map_err(WorkError::store("set mode and time", CONTENT))
    }
}
