//! Values, and what is made of them: overwritten before their memory is given back.

use rustix::io::Errno;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// The values of secrets.
#[derive(Debug, Default)]
pub(crate) struct Values(Vec<Wiped>);

impl Values {
    /// Reads them from their files.
    pub(crate) fn read(secrets: &[OwnedFd]) -> Result<Self, Errno> {
        let one = |secret: &OwnedFd| {
            let bytes = usize::try_from(rustix::fs::fstat(secret)?.st_size).map_err(|_| Errno::INVAL)?;
            // What sealed files cannot be longer than was looked at when they came.
            let mut value = Wiped(vec![0; bytes.min(ampoule_spec::SECRET_BYTES_MAX)]);
            let count = rustix::io::pread(secret, value.0.as_mut_slice(), 0)?;
            value.0.truncate(count);
            Ok(value)
        };
        secrets.iter().map(one).collect::<Result<_, _>>().map(Self)
    }

    #[cfg(test)]
    pub(crate) fn new(values: Vec<Vec<u8>>) -> Self {
        Self(values.into_iter().map(Wiped).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(Wiped::bytes)
    }
}

/// Bytes that are overwritten before their memory is given back.
#[derive(Default)]
pub(super) struct Wiped(Vec<u8>);

impl Wiped {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds bytes; where they are.
    pub(super) fn extend(&mut self, bytes: &[u8]) -> Range<usize> {
        let from = self.0.len();
        if self.0.capacity() - from < bytes.len() {
            let mut larger = Vec::with_capacity((from + bytes.len()) * 5 / 4);
            larger.extend_from_slice(&self.0);
            drop(std::mem::replace(self, Self(larger)));
        }
        self.0.extend_from_slice(bytes);
        from..self.0.len()
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.fill(0);
        // So that the compiler does not leave out what nobody reads.
        std::hint::black_box(&mut self.0);
    }
}

impl std::fmt::Debug for Wiped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}
