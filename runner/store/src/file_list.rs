//! The list of an object's files: where a sample is drawn from.
//!
//! It is written while a tree is read for its digests, a record for each directory and each name of a file, all of
//! one length, so that any of them can be read alone; the paths stand in a file beside it. It is no authority: what
//! does not fit it has the whole tree read, and the tree's name decides.

use crate::beneath;
use crate::limits::PATH_BYTES_MAX;
use ampoule_spec::Blake3;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::fs::File;
use std::io::{BufWriter, Write};

/// The list's file in an object's directory.
pub(crate) const FILES: &str = "files";
/// The file with the paths.
pub(crate) const PATHS: &str = "paths";
/// Bytes of a record: offset of the path (8), its length (4), kind (1), zeros (3), length of the file (8), BLAKE3 of
/// its bytes (32). Numbers are big endian.
const RECORD_BYTES: usize = 56;

/// One record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) path: Vec<u8>,
    /// Of a file; none for a directory.
    pub(crate) file: Option<(u64, Blake3)>,
}

/// A list that is being written, to files or to nothing but its digest.
pub(crate) struct FileList<W: Write> {
    files: W,
    paths: W,
    at: u64,
}

/// Hashes what is written.
#[derive(Default)]
pub(crate) struct Hashing(blake3::Hasher);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Where a sealer writes its list to.
pub(crate) enum Sink {
    Files(FileList<BufWriter<File>>),
    Digest(Box<FileList<Hashing>>),
}

impl Sink {
    /// New files in an object's directory.
    pub(crate) fn files(dir: impl AsFd) -> Result<Self, Errno> {
        let make = |name: &str| {
            let file = beneath::create(&dir, name.as_bytes())?;
            Ok::<_, Errno>(BufWriter::new(File::from(file)))
        };
        Ok(Self::Files(FileList { files: make(FILES)?, paths: make(PATHS)?, at: 0 }))
    }

    /// Only the digest of what would be written.
    pub(crate) fn digest() -> Self {
        Self::Digest(Box::new(FileList { files: Hashing::default(), paths: Hashing::default(), at: 0 }))
    }

    /// Adds a directory, or a file by its length and digest.
    pub(crate) fn add(&mut self, path: &[u8], file: Option<(u64, Blake3)>) -> std::io::Result<()> {
        match self {
            Self::Files(list) => list.add(path, file),
            Self::Digest(list) => list.add(path, file),
        }
    }

    /// Writes out what is left; the digest, if that is all that was wanted.
    pub(crate) fn finish(self) -> std::io::Result<Option<(Blake3, Blake3)>> {
        match self {
            Self::Files(mut list) => {
                list.files.flush()?;
                list.paths.flush()?;
                Ok(None)
            }
            Self::Digest(list) => Ok(Some((list.files.digest(), list.paths.digest()))),
        }
    }
}

impl Hashing {
    fn digest(&self) -> Blake3 {
        Blake3::new(*self.0.finalize().as_bytes())
    }
}

impl<W: Write> FileList<W> {
    fn add(&mut self, path: &[u8], file: Option<(u64, Blake3)>) -> std::io::Result<()> {
        let length = u32::try_from(path.len()).unwrap_or(u32::MAX);
        self.files.write_all(&self.at.to_be_bytes())?;
        self.files.write_all(&length.to_be_bytes())?;
        let (kind, (bytes, digest)) = match file {
            None => (b'd', (0, [0; 32])),
            Some((bytes, digest)) => (b'f', (bytes, *digest.as_bytes())),
        };
        self.files.write_all(&[kind, 0, 0, 0])?;
        self.files.write_all(&bytes.to_be_bytes())?;
        self.files.write_all(&digest)?;
        self.at += path.len() as u64;
        self.paths.write_all(path)
    }
}

/// A list that is read.
pub(crate) struct Reader {
    files: OwnedFd,
    paths: OwnedFd,
    count: u64,
}

impl Reader {
    /// Opens an object's list; nothing if there is none, or none that can be right.
    pub(crate) fn open(dir: impl AsFd) -> Option<Self> {
        let files = beneath::open_file(&dir, FILES.as_bytes()).ok()?;
        let paths = beneath::open_file(&dir, PATHS.as_bytes()).ok()?;
        let bytes = u64::try_from(rustix::fs::fstat(&files).ok()?.st_size).ok()?;
        let whole = bytes % RECORD_BYTES as u64 == 0;
        whole.then_some(Self { files, paths, count: bytes / RECORD_BYTES as u64 })
    }

    /// What the kernel says of both files.
    pub(crate) fn stats(&self) -> Option<[rustix::fs::Stat; 2]> {
        Some([rustix::fs::fstat(&self.files).ok()?, rustix::fs::fstat(&self.paths).ok()?])
    }

    /// How many records there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// One record; nothing if it is malformed.
    pub(crate) fn get(&self, number: u64) -> Option<Listed> {
        let mut record = [0_u8; RECORD_BYTES];
        read_at(&self.files, &mut record, number.checked_mul(RECORD_BYTES as u64)?)?;
        let (at, rest) = record.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let (bytes, digest) = rest.split_first_chunk::<8>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok().filter(|n| *n <= PATH_BYTES_MAX)?;
        let mut path = vec![0; length];
        read_at(&self.paths, &mut path, u64::from_be_bytes(*at))?;
        let digest = Blake3::new(<[u8; 32]>::try_from(digest).ok()?);
        let file = match kind {
            [b'f', 0, 0, 0] => Some((u64::from_be_bytes(*bytes), digest)),
            [b'd', 0, 0, 0] => None,
            _ => return None,
        };
        Some(Listed { path, file })
    }
}

fn read_at(file: &OwnedFd, mut into: &mut [u8], mut at: u64) -> Option<()> {
    while !into.is_empty() {
        match rustix::io::pread(file, &mut *into, at) {
            Ok(0) => return None,
            Ok(count) => {
                into = into.get_mut(count..)?;
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    Some(())
}

/// The digests of an object's list as it lies there.
pub(crate) fn digests(dir: impl AsFd) -> Result<(Blake3, Blake3), Errno> {
    let one = |name: &str| {
        let mut file = File::from(beneath::open_file(&dir, name.as_bytes())?);
        let mut hashing = Hashing::default();
        std::io::copy(&mut file, &mut hashing).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        Ok(hashing.digest())
    };
    Ok((one(FILES)?, one(PATHS)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_one_by_one() {
        let temp = tempfile::tempdir().unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        let dir = rustix::fs::open(temp.path(), flags, rustix::fs::Mode::empty()).unwrap();
        let (mut files, mut digest) = (Sink::files(&dir).unwrap(), Sink::digest());
        let listed = [
            (b"".to_vec(), None),
            (b"a".to_vec(), Some((3, Blake3::new([7; 32])))),
            (vec![b'x'; PATH_BYTES_MAX], Some((u64::MAX, Blake3::new([9; 32])))),
        ];
        for (path, file) in &listed {
            files.add(path, *file).unwrap();
            digest.add(path, *file).unwrap();
        }
        assert_eq!(files.finish().unwrap(), None);
        assert_eq!(digest.finish().unwrap(), Some(digests(&dir).unwrap()));
        let reader = Reader::open(&dir).unwrap();
        assert_eq!(reader.count(), 3);
        for (number, (path, file)) in (0..).zip(listed) {
            assert_eq!(reader.get(number).unwrap(), Listed { path, file });
        }
        assert_eq!(reader.get(3), None);
        std::fs::write(temp.path().join(FILES), [0; RECORD_BYTES + 1]).unwrap();
        assert!(Reader::open(&dir).is_none());
        std::fs::write(temp.path().join(FILES), [0; RECORD_BYTES]).unwrap();
        assert_eq!(Reader::open(&dir).unwrap().get(0), None);
    }
}
