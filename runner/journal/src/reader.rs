//! Reading frames one after another, also from a file that still grows.

use crate::frame::{HEADER_BYTES, Header, MAGIC};
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Where the frame begins in the file.
    pub offset: u64,
    /// Where the next one begins: a place for [`Reader::from_offset`].
    pub end: u64,
    /// What the payload is; the journal's user says.
    pub kind: u8,
    /// The bytes that were appended.
    pub payload: Vec<u8>,
}

/// What comes next in a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// A record.
    Frame(Frame),
    /// Nothing: the file ends after a whole frame. Ask again to follow a file that grows.
    End {
        /// The length of the journal.
        offset: u64,
    },
    /// An incomplete frame, or nothing but zeros, up to the end of the file: a write that was cut short, or is
    /// under way. Ask again to follow.
    TornTail {
        /// Where the incomplete frame begins; the journal is whole up to here.
        offset: u64,
    },
}

impl Next {
    /// The frame, if there is one.
    pub fn frame(self) -> Option<Frame> {
        match self {
            Self::Frame(frame) => Some(frame),
            Self::End { .. } | Self::TornTail { .. } => None,
        }
    }
}

/// Why a journal cannot be read on.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// The bytes at this offset are no frame; what follows cannot be trusted to be where frames begin.
    Damaged {
        /// Where the damaged frame begins.
        offset: u64,
    },
    /// The file cannot be read.
    Io(io::Error),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { offset } => write!(f, "the journal is damaged at byte {offset}"),
            Self::Io(_) => f.write_str("the journal cannot be read"),
        }
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Damaged { .. } => None,
            Self::Io(error) => Some(error),
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A reader of frames.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    offset: u64,
    /// The bytes of the frame at `offset` that are there so far; at most one header and one payload.
    pending: Vec<u8>,
    /// All bytes since `offset` were zeros, this many, and they are not in `pending`.
    zeros: u64,
}

impl<R: Read> Reader<R> {
    /// Reads a journal from its beginning.
    pub fn new(from: R) -> Self {
        Self { from, offset: 0, pending: Vec::new(), zeros: 0 }
    }

    /// The next frame, or which end was reached.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] from then on, once a frame is damaged; [`ReadError::Io`].
    pub fn next_frame(&mut self) -> Result<Next, ReadError> {
        if self.zeros > 0 {
            return self.skip_zeros();
        }
        if !self.fill(HEADER_BYTES)? {
            return self.incomplete();
        }
        let header = match self.pending.first_chunk::<HEADER_BYTES>() {
            Some(bytes) if bytes.iter().all(|byte| *byte == 0) => {
                // A file system may have grown the file without having written the frame (XFS after power loss).
                self.zeros = self.pending.len().try_into().unwrap_or(u64::MAX);
                self.pending.clear();
                return self.skip_zeros();
            }
            Some(bytes) => Header::decode(bytes).ok_or(ReadError::Damaged { offset: self.offset })?,
            None => return self.incomplete(),
        };
        let whole = HEADER_BYTES + header.payload_bytes();
        if !self.fill(whole)? {
            return Ok(Next::TornTail { offset: self.offset });
        }
        let payload = self.pending.split_off(HEADER_BYTES);
        if !header.matches(&payload) {
            self.pending.extend_from_slice(&payload); // so that the same answer is given again
            return Err(ReadError::Damaged { offset: self.offset });
        }
        self.pending.clear();
        let offset = self.offset;
        self.offset = offset.saturating_add(whole.try_into().unwrap_or(u64::MAX));
        Ok(Next::Frame(Frame { offset, end: self.offset, kind: header.kind, payload }))
    }

    /// Reads until `pending` has `bytes` bytes; false if the file ends before.
    fn fill(&mut self, bytes: usize) -> io::Result<bool> {
        let missing = bytes.saturating_sub(self.pending.len());
        let limit = missing.try_into().unwrap_or(u64::MAX);
        self.from.by_ref().take(limit).read_to_end(&mut self.pending)?;
        Ok(self.pending.len() >= bytes)
    }

    /// Less than a header is there: a tail only if it can become one.
    fn incomplete(&self) -> Result<Next, ReadError> {
        let offset = self.offset;
        if self.pending.is_empty() {
            return Ok(Next::End { offset });
        }
        let header = self.pending.iter().zip(MAGIC).all(|(byte, magic)| *byte == magic);
        if header || self.pending.iter().all(|byte| *byte == 0) {
            return Ok(Next::TornTail { offset });
        }
        Err(ReadError::Damaged { offset })
    }

    fn skip_zeros(&mut self) -> Result<Next, ReadError> {
        let mut block = [0_u8; 4096];
        loop {
            let count = match self.from.read(&mut block) {
                Ok(0) => return Ok(Next::TornTail { offset: self.offset }),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if block.iter().take(count).any(|byte| *byte != 0) {
                self.zeros = 0;
                self.pending = vec![1; HEADER_BYTES]; // no magic: damaged from now on
                return Err(ReadError::Damaged { offset: self.offset });
            }
        }
    }
}

impl<R: Read + Seek> Reader<R> {
    /// Reads on from an `offset` that a [`Frame`] gave.
    ///
    /// No other offset will do: in the middle of a payload, a payload's author decides what looks like a frame.
    ///
    /// # Errors
    /// When the file cannot seek.
    pub fn from_offset(mut from: R, offset: u64) -> io::Result<Self> {
        from.seek(SeekFrom::Start(offset))?;
        Ok(Self { from, offset, pending: Vec::new(), zeros: 0 })
    }
}
