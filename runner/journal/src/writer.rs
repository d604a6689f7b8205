//! Appending frames.

use crate::frame::{HEADER_BYTES, Header, PAYLOAD_BYTES_MAX};
use crate::reader::{Next, ReadError, Reader};
use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// What a journal is written to. A file; a test may stand in for one.
pub trait Medium {
    /// One write at the end, which may be short.
    ///
    /// # Errors
    /// When nothing was written.
    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// When that cannot be said.
    fn sync(&mut self) -> io::Result<()>;

    /// Cuts the file to `bytes`.
    ///
    /// # Errors
    /// When it could not be cut.
    fn cut(&mut self, bytes: u64) -> io::Result<()>;
}

impl Medium for File {
    fn write_once(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

/// Why a frame was not appended or not made durable.
#[derive(Debug)]
#[non_exhaustive]
pub enum WriteError {
    /// The payload is larger than [`PAYLOAD_BYTES_MAX`]; nothing was written.
    Oversize {
        /// Its length.
        bytes: usize,
    },
    /// The file is not empty; resume it instead.
    NotEmpty,
    /// The frame could not be written whole, as on a full disk; the journal is as it was before.
    Full(io::Error),
    /// Writing or syncing failed such that the state of the file is unknown; the writer refuses from now on.
    Broken(io::Error),
    /// An earlier call failed with [`WriteError::Broken`].
    Unusable,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Oversize { bytes } => {
                write!(f, "a journal record has at most {PAYLOAD_BYTES_MAX} bytes, this has {bytes}")
            }
            Self::NotEmpty => f.write_str("the journal is not empty"),
            Self::Full(_) => f.write_str("the journal record could not be written; the journal is unchanged"),
            Self::Broken(_) => f.write_str("the journal could not be written; its state is unknown"),
            Self::Unusable => f.write_str("the journal is closed to writing after an earlier failure"),
        }
    }
}

impl std::error::Error for WriteError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Full(error) | Self::Broken(error) => Some(error),
            Self::Oversize { .. } | Self::NotEmpty | Self::Unusable => None,
        }
    }
}

/// A journal that was opened again, and what had to be done for it.
#[derive(Debug)]
pub struct Resumed {
    /// A writer at its end.
    pub writer: Writer,
    /// The whole frames that it holds.
    pub frames: u64,
    /// Bytes of an incomplete frame that were cut off its end.
    pub cut_bytes: u64,
}

/// The one writer of a journal.
#[derive(Debug)]
pub struct Writer<M = File> {
    to: M,
    offset: u64,
    usable: bool,
    /// Header and payload of a frame, so that one call writes both.
    buffer: Vec<u8>,
}

impl Writer {
    /// Begins a journal in an empty file that was opened for appending (`O_APPEND`).
    ///
    /// # Errors
    /// [`WriteError::NotEmpty`], or [`WriteError::Broken`] when the file cannot be examined.
    pub fn create(file: File) -> Result<Self, WriteError> {
        let bytes = file.metadata().map_err(WriteError::Broken)?.len();
        if bytes > 0 { Err(WriteError::NotEmpty) } else { Ok(Self::on(file)) }
    }

    /// Goes on with a journal in a file that was opened for reading and appending.
    ///
    /// An incomplete frame at the end is cut off and counted; the cut is durable on return.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] when anything else is wrong: nothing is changed then.
    pub fn resume(file: File) -> Result<Resumed, ReadError> {
        Self::go_on(file, false)
    }

    /// The same, and cuts off a damaged frame, too, with everything after it: no reader believes that.
    ///
    /// # Errors
    /// [`ReadError::Io`].
    pub fn salvage(file: File) -> Result<Resumed, ReadError> {
        Self::go_on(file, true)
    }

    fn go_on(mut file: File, cuts_damage: bool) -> Result<Resumed, ReadError> {
        file.seek(SeekFrom::Start(0))?;
        let mut reader = Reader::new(io::BufReader::with_capacity(64 << 10, &mut file));
        let mut frames = 0_u64;
        let (offset, torn) = loop {
            match reader.next_frame() {
                Ok(Next::Frame(_)) => frames = frames.saturating_add(1),
                Ok(Next::End { offset }) => break (offset, false),
                Ok(Next::TornTail { offset }) => break (offset, true),
                Err(ReadError::Damaged { offset }) if cuts_damage => break (offset, true),
                Err(error) => return Err(error),
            }
        };
        drop(reader);
        let mut cut_bytes = 0;
        if torn {
            cut_bytes = file.metadata()?.len().saturating_sub(offset);
            file.cut(offset)?;
            file.sync_all()?;
        }
        let writer = Self { offset, ..Self::on(file) };
        Ok(Resumed { writer, frames, cut_bytes })
    }
}

impl<M: Medium> Writer<M> {
    /// Begins a journal on something that is empty.
    pub fn on(to: M) -> Self {
        Self { to, offset: 0, usable: true, buffer: Vec::new() }
    }

    /// Where the next frame will begin.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends one record with one `write` and returns where it begins. It is durable after [`Writer::sync`].
    ///
    /// # Errors
    /// [`WriteError`]; after [`WriteError::Full`] and [`WriteError::Oversize`] the writer can go on.
    pub fn append(&mut self, kind: u8, payload: &[u8]) -> Result<u64, WriteError> {
        if !self.usable {
            return Err(WriteError::Unusable);
        }
        let header = Header::new(kind, payload).ok_or(WriteError::Oversize { bytes: payload.len() })?;
        self.buffer.clear();
        self.buffer.reserve(HEADER_BYTES + payload.len());
        header.encode(&mut self.buffer);
        self.buffer.extend_from_slice(payload);
        let written = loop {
            match self.to.write_once(&self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(WriteError::Full(error)),
                Ok(written) => break written,
            }
        };
        let start = self.offset;
        if written != self.buffer.len() {
            // What follows must not be appended to half a frame: that would be damage, no torn tail.
            return Err(match self.to.cut(start) {
                Ok(()) => WriteError::Full(io::ErrorKind::WriteZero.into()),
                Err(error) => self.broken(error),
            });
        }
        self.offset = start.saturating_add(written.try_into().unwrap_or(u64::MAX));
        Ok(start)
    }

    /// Makes every appended record durable (`fdatasync`).
    ///
    /// # Errors
    /// [`WriteError::Broken`]: nothing since the last success may be relied on, and nothing more is written.
    pub fn sync(&mut self) -> Result<(), WriteError> {
        if !self.usable {
            return Err(WriteError::Unusable);
        }
        self.to.sync().map_err(|error| self.broken(error))
    }

    fn broken(&mut self, error: io::Error) -> WriteError {
        self.usable = false;
        WriteError::Broken(error)
    }
}
