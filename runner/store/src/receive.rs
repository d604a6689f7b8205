//! Passing a source on to a worker while its digest is taken outside the worker's reach.

use crate::limits::BUFFER_BYTES;
use ampoule_spec::Sha256;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::io::{self, Read, Write};

/// What came from a source, as the process that parses nothing saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Received {
    /// SHA-256 of the bytes as they came.
    pub sha256: Sha256,
    /// How many.
    pub bytes: u64,
}

/// Why a source was not passed on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// More bytes came than an import may take.
    #[error("the source has more than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: u64,
    },
    /// The source failed.
    #[error("the source cannot be read")]
    Source(#[source] io::Error),
    /// The worker's pipe failed in another way than by being closed.
    #[error("the worker's pipe cannot be written")]
    Sink(#[source] io::Error),
}

/// Copies a source into a worker's pipe and hashes what it copies.
///
/// It runs in a trusted process that is neither the worker nor the launcher's loop, since both ends may block;
/// that process also calls [`crate::Store::commit`]. This is what makes the name of an archive checkable: a
/// worker that a hostile archive took over cannot claim to have read another one.
///
/// A worker that stopped reading (it refused the archive) does not stop the hashing: a wrong digest is then
/// reported as that, and not as whatever the wrong bytes look like.
///
/// # Errors
/// [`ReceiveError`]; the import is over then.
pub fn receive(mut source: impl Read, sink: impl Write, bytes_max: u64) -> Result<Received, ReceiveError> {
    let mut sink = Some(sink);
    let mut sha256 = sha2::Sha256::new();
    let mut bytes = 0_u64;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ReceiveError::Source(error)),
        };
        bytes = bytes.saturating_add(count as u64);
        if bytes > bytes_max {
            return Err(ReceiveError::TooLarge { bytes_max });
        }
        let part = buffer.get(..count).unwrap_or_default();
        sha256.update(part);
        if let Some(open) = &mut sink {
            match open.write_all(part) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => sink = None,
                Err(error) => return Err(ReceiveError::Sink(error)),
            }
        }
    }
    Ok(Received { sha256: Sha256::new(sha256.finalize().into()), bytes })
}
