//! Where the bytes of an output go: into a file of ours, counted and hashed on the way.

use ampoule_spec::{Failure, Sha256};
use ampoule_store::Holey;
use sha2::{Digest, Sha256 as Hasher};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Write};

/// So many bytes more are told at a time.
const TOLD_EVERY: u64 = 1 << 20;

/// Asks whether the job has to stop, and remembers why; and says how far it is. What copies and what searches ask the same.
pub(super) struct Stop<'a> {
    /// Lent while it is asked, and never by itself.
    ask: RefCell<&'a mut dyn FnMut() -> Option<Failure>>,
    /// The reason, once there is one.
    said: RefCell<Option<Failure>>,
    /// A file whose length is how many bytes have passed.
    length: Option<&'a File>,
    passed: Cell<u64>,
    told: Cell<u64>,
}

impl<'a> Stop<'a> {
    pub(super) fn new(ask: &'a mut dyn FnMut() -> Option<Failure>, length: Option<&'a File>) -> Self {
        let (ask, said) = (RefCell::new(ask), RefCell::default());
        Self { ask, said, length, passed: Cell::new(0), told: Cell::new(0) }
    }

    /// The reason to stop, once.
    pub(super) fn take(&self) -> Option<Failure> {
        self.said.take()
    }

    /// An error if the job has to stop; else so many bytes more have passed.
    pub(super) fn check(&self, bytes: u64) -> io::Result<()> {
        let said = self.said.take().or_else(|| (self.ask.borrow_mut())());
        let is_over = said.is_some();
        self.said.replace(said);
        if is_over {
            return Err(io::Error::other("stopped"));
        }
        self.passed.set(self.passed.get().saturating_add(bytes));
        if self.passed.get().saturating_sub(self.told.get()) >= TOLD_EVERY {
            self.told.set(self.passed.get());
            if let Some(length) = self.length {
                length.set_len(self.passed.get())?;
            }
        }
        Ok(())
    }
}

/// A file that is written once, from its beginning to its end.
pub(super) struct Sink<'a, 's> {
    file: Holey,
    stop: &'a Stop<'s>,
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
    pub(super) fn new(file: File, bytes_max: u64, stop: &'a Stop<'s>) -> Self {
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
