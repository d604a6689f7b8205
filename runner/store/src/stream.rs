//! The bytes of a source, decompressed, counted and capped while they flow.

use crate::limits::{BUFFER_BYTES, Limits};
use crate::magic;
use crate::refusal::Refusal;
use crate::worker::WorkError;
use ampoule_spec::Sha256;
use flate2::bufread::MultiGzDecoder;
use sha2::Digest as _;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;

/// The largest zstd window, as a power of two: 128 MiB, what `zstd --ultra` writes without `--long=28`.
const WINDOW_LOG_MAX: u32 = 27;

/// A buffered source that counts what was taken out of it, so that a ratio is never off by a buffer.
pub(crate) struct Source {
    file: File,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
    taken: u64,
}

impl Source {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { file: File::from(fd), buffer: vec![0; BUFFER_BYTES], at: 0, end: 0, taken: 0 }
    }

    /// The first bytes, more than `wanted` or fewer if the source is shorter; a pipe may bring them one by one.
    fn peek(&mut self, wanted: usize) -> io::Result<&[u8]> {
        while self.end < wanted {
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.file.read(room) {
                Ok(0) => break,
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.buffer.get(..self.end).unwrap_or_default())
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.end {
            (self.at, self.end) = (0, 0);
            self.peek(1)?;
        }
        Ok(self.buffer.get(self.at..self.end).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        let count = count.min(self.end.saturating_sub(self.at));
        self.at += count;
        self.taken = self.taken.saturating_add(count as u64);
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

enum Decoder {
    Plain(Source),
    Gzip(Box<MultiGzDecoder<Source>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, Source>>),
}

impl Decoder {
    fn name(&self) -> &'static str {
        match self {
            Self::Plain(_) => "plain",
            Self::Gzip(_) => "gzip",
            Self::Zstd(_) => "zstd",
        }
    }

    fn taken(&self) -> u64 {
        match self {
            Self::Plain(source) => source.taken,
            Self::Gzip(decoder) => decoder.get_ref().taken,
            Self::Zstd(decoder) => decoder.get_ref().taken,
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// A decompressed stream within its limits.
pub(crate) struct Stream {
    decoder: Decoder,
    limits: Limits,
    bytes: u64,
    sha256: Option<sha2::Sha256>,
}

impl Stream {
    /// A stream of what the source holds as it is.
    pub(crate) fn plain(source: OwnedFd, limits: Limits) -> Self {
        Self { decoder: Decoder::Plain(Source::new(source)), limits, bytes: 0, sha256: None }
    }

    /// A stream of what the source holds, decompressed if its first bytes say so.
    pub(crate) fn detect(source: OwnedFd, limits: Limits) -> Result<Self, WorkError> {
        let mut source = Source::new(source);
        let decoder = match source.peek(magic::LOOKED_AT).map_err(WorkError::source)? {
            [0x1f, 0x8b, ..] => Decoder::Gzip(Box::new(MultiGzDecoder::new(source))),
            // A frame, or a skippable one before it (RFC 8878 §3.1.2).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(source).map_err(WorkError::source)?;
                decoder.window_log_max(WINDOW_LOG_MAX).map_err(WorkError::source)?;
                Decoder::Zstd(Box::new(decoder))
            }
            other => match magic::unread(other) {
                Some(format) => return Err(Refusal::CompressionUnknown { format }.into()),
                None => Decoder::Plain(source),
            },
        };
        Ok(Self { decoder, limits, bytes: 0, sha256: None })
    }

    /// The same stream, with its decompressed bytes hashed.
    pub(crate) fn hashed(self) -> Self {
        Self { sha256: Some(sha2::Sha256::new()), ..self }
    }

    /// The decompressed bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// SHA-256 of the decompressed bytes, if they were hashed.
    pub(crate) fn finish(self) -> Option<Sha256> {
        self.sha256.map(|hash| Sha256::new(hash.finalize().into()))
    }

    /// Reads decompressed bytes; 0 at the end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, WorkError> {
        let count = loop {
            match self.decoder.read(buffer) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(&error)),
            }
        };
        self.bytes = self.bytes.saturating_add(count as u64);
        let bytes_max = self.limits.stream_bytes_max();
        if self.bytes > bytes_max {
            return Err(Refusal::TooLarge { bytes_max }.into());
        }
        let ratio = self.limits.ratio_max;
        if self.bytes > self.limits.ratio_free_bytes
            && self.bytes > self.decoder.taken().saturating_mul(ratio)
        {
            return Err(Refusal::Ratio { ratio }.into());
        }
        if let (Some(hash), Some(read)) = (&mut self.sha256, buffer.get(..count)) {
            hash.update(read);
        }
        Ok(count)
    }

    fn failed(&self, error: &io::Error) -> WorkError {
        if let Some(errno) = rustix::io::Errno::from_io_error(error) {
            return WorkError::Source(errno);
        }
        let format = self.decoder.name();
        let detail = error.to_string();
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Refusal::Truncated { what: "its compressed data" }.into()
        } else if format == "zstd" && detail.contains("too much memory") {
            Refusal::Window {}.into()
        } else {
            Refusal::Compression { format, detail }.into()
        }
    }
}
