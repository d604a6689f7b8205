//! The digest of something that a reader holds: of a file its bytes', of a directory its tree's.

use ampoule_spec::Sha256;
use ampoule_store::Limits;
use ampoule_store::pack::{PackError, pack};
use aws_lc_rs::digest::{Context, SHA256};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

/// Bytes read at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// What names an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Artifact {
    /// SHA-256 of a file's bytes, or the tree digest of a directory (docs/formats.md).
    pub sha256: Sha256,
    /// Whether it is a directory.
    pub tree: bool,
}

/// Why an artifact has no digest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// The directory holds what no tree holds, or changed.
    #[error(transparent)]
    Tree(#[from] PackError),
}

/// Reads an artifact. Links in a directory belong to it and are not followed; the path itself is.
///
/// # Errors
/// [`ArtifactError`].
pub fn artifact(path: &Path) -> Result<Artifact, ArtifactError> {
    let mut file = File::open(path)?;
    if file.metadata()?.is_dir() {
        let limits = Limits { bytes_max: u64::MAX, ..Limits::default() };
        let packed = pack(file.as_fd(), &mut io::sink(), &|_| false, &limits)?;
        return Ok(Artifact { sha256: packed.tree, tree: true });
    }
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = file.read(&mut buffer)?;
        match buffer.get(..count) {
            None | Some([]) => break,
            Some(part) => context.update(part),
        }
    }
    let digest = context.finish();
    let digest: [u8; 32] =
        digest.as_ref().try_into().map_err(|_| io::Error::other("a digest of another length"))?;
    Ok(Artifact { sha256: Sha256::new(digest), tree: false })
}
