//! Where the bytes of an output go: into a file of ours, counted and hashed on the way.

use ampoule_spec::{Blake3, Failure, Sha256};
use sha2::{Digest, Sha256 as Hasher};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// A run of zeros of at least so many bytes becomes a hole.
const HOLE_BYTES_MIN: usize = 4096;

/// Asks whether the job has to stop, and remembers why.
pub(super) struct Stop<'a> {
    ask: &'a mut dyn FnMut() -> Option<Failure>,
    /// The reason, once there is one.
    pub(super) said: Option<Failure>,
}

impl<'a> Stop<'a> {
    pub(super) fn new(ask: &'a mut dyn FnMut() -> Option<Failure>) -> Self {
        Self { ask, said: None }
    }

    /// An error if the job has to stop.
    pub(super) fn check(&mut self) -> io::Result<()> {
        if self.said.is_none() {
            self.said = (self.ask)();
        }
        if self.said.is_some() { Err(io::Error::other("stopped")) } else { Ok(()) }
    }
}

/// A file that is written once, from its beginning to its end.
pub(super) struct Sink<'a, 's> {
    file: File,
    stop: &'a mut Stop<'s>,
    sha256: Hasher,
    blake3: blake3::Hasher,
    bytes: u64,
    bytes_max: u64,
}

/// What went into a sink.
pub(super) struct Sunk {
    pub(super) bytes: u64,
    pub(super) sha256: Sha256,
    pub(super) blake3: Blake3,
}

impl<'a, 's> Sink<'a, 's> {
    /// Takes at most `bytes_max` bytes.
    pub(super) fn new(file: File, bytes_max: u64, stop: &'a mut Stop<'s>) -> Self {
        Self { file, stop, sha256: Hasher::new(), blake3: blake3::Hasher::new(), bytes: 0, bytes_max }
    }

    /// An error if the job has to stop.
    pub(super) fn check(&mut self) -> io::Result<()> {
        self.stop.check()
    }

    /// Ends the file and makes its bytes durable.
    pub(super) fn finish(self) -> io::Result<Sunk> {
        self.file.set_len(self.bytes)?;
        self.file.sync_data()?;
        Ok(Sunk {
            bytes: self.bytes,
            sha256: Sha256::new(self.sha256.finalize().into()),
            blake3: Blake3::new(*self.blake3.finalize().as_bytes()),
        })
    }
}

impl Write for Sink<'_, '_> {
    /// Takes all of it or fails. Zeros become holes, so that a sparse file does not fill the host.
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.stop.check()?;
        let bytes = self.bytes.saturating_add(part.len() as u64);
        if bytes > self.bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.sha256.update(part);
        self.blake3.update(part);
        if part.len() >= HOLE_BYTES_MIN && part.iter().all(|byte| *byte == 0) {
            // Its length is how others see how far it is.
            self.file.set_len(bytes)?;
            self.file.seek(SeekFrom::Start(bytes))?;
        } else {
            self.file.write_all(part)?;
        }
        self.bytes = bytes;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
