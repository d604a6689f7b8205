//! Where the bytes of an output go: into a file of ours, counted and hashed on the way.

use ampoule_spec::{Failure, Sha256};
use ampoule_store::Holey;
use sha2::{Digest, Sha256 as Hasher};
use std::fs::File;
use std::io::{self, Write};

/// So many bytes more are told at a time.
const TOLD_EVERY: u64 = 1 << 20;

/// Asks whether the job has to stop, and remembers why; and says how far it is.
pub(super) struct Stop<'a> {
    ask: &'a mut dyn FnMut() -> Option<Failure>,
    /// The reason, once there is one.
    pub(super) said: Option<Failure>,
    /// A file whose length is how many bytes have passed.
    length: Option<&'a File>,
    passed: u64,
    told: u64,
}

impl<'a> Stop<'a> {
    pub(super) fn new(ask: &'a mut dyn FnMut() -> Option<Failure>, length: Option<&'a File>) -> Self {
        Self { ask, said: None, length, passed: 0, told: 0 }
    }

    /// An error if the job has to stop; else so many bytes more have passed.
    pub(super) fn check(&mut self, bytes: u64) -> io::Result<()> {
        if self.said.is_none() {
            self.said = (self.ask)();
        }
        if self.said.is_some() {
            return Err(io::Error::other("stopped"));
        }
        self.passed = self.passed.saturating_add(bytes);
        if self.passed.saturating_sub(self.told) >= TOLD_EVERY {
            self.told = self.passed;
            if let Some(length) = self.length {
                length.set_len(self.passed)?;
            }
        }
        Ok(())
    }
}

/// A file that is written once, from its beginning to its end.
pub(super) struct Sink<'a, 's> {
    file: Holey,
    stop: &'a mut Stop<'s>,
    sha256: Hasher,
    bytes_max: u64,
}

/// What went into a sink.
pub(super) struct Sunk {
    pub(super) bytes: u64,
    pub(super) sha256: Sha256,
}

impl<'a, 's> Sink<'a, 's> {
    /// Takes at most `bytes_max` bytes.
    pub(super) fn new(file: File, bytes_max: u64, stop: &'a mut Stop<'s>) -> Self {
        Self { file: Holey::new(file), stop, sha256: Hasher::new(), bytes_max }
    }

    /// An error if the job has to stop.
    pub(super) fn check(&mut self) -> io::Result<()> {
        self.stop.check(0)
    }

    /// Ends the file. It is made durable when it has been read back.
    pub(super) fn finish(self) -> io::Result<Sunk> {
        let bytes = self.file.bytes();
        self.file.finish()?;
        Ok(Sunk { bytes, sha256: Sha256::new(self.sha256.finalize().into()) })
    }
}

impl Write for Sink<'_, '_> {
    /// Takes all of it or fails.
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.stop.check(part.len() as u64)?;
        if self.file.bytes().saturating_add(part.len() as u64) > self.bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.sha256.update(part);
        self.file.add(part)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
