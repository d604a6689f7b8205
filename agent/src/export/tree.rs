//! A directory that left as a tree is pushed as one archive, which is made for that: equal trees give equal bytes with one
//! version of this program. Provenance names the tree, which whoever unpacks the archive can compute.

use super::documents::Named;
use super::error::ExportError;
use super::released::Artifact;
use crate::inputs::scratch_file;
use crate::registry::{Piece, Source};
use ampoule_spec::Sha256;
use ampoule_store::Limits;
use ampoule_store::compress::compress;
use ampoule_store::pack::{PackError, pack_output};
use aws_lc_rs::digest::{Context, SHA256};
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

/// Counts and hashes what is written.
struct Hashing {
    file: File,
    context: Context,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        let count = self.file.write(part)?;
        self.context.update(part.get(..count).unwrap_or_default());
        self.bytes = self.bytes.saturating_add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Packs a directory into a file without a name, and holds what was packed against its tree digest.
pub(super) fn piece(artifact: &Artifact, tree: Sha256) -> Result<(Named, Piece), ExportError> {
    let what = artifact.path.display().to_string();
    let unusable = |error: io::Error| ExportError::file(what.clone(), error);
    let dir = File::open(&artifact.path).map_err(unusable)?;
    let file = scratch_file(&std::env::temp_dir())
        .map_err(|e| ExportError::file(std::env::temp_dir().display().to_string(), e))?;
    let mut to = Hashing { file, context: Context::new(&SHA256), bytes: 0 };
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| unusable(e.into()))?;
    let limits = Limits { bytes_max: u64::MAX, ..Limits::default() };
    let (packed, compressed) = std::thread::scope(|scope| {
        let packing = scope.spawn(|| {
            let mut out = BufWriter::with_capacity(256 << 10, File::from(write));
            // Without times: they are no part of a tree.
            pack_output(dir.as_fd(), &mut out, 0, &limits)
        });
        let compressed = compress(&mut File::from(read), &mut to);
        (packing.join(), compressed)
    });
    let changed = |reason: String| ExportError::Changed { reason: format!("{what}: {reason}") };
    match (packed, compressed) {
        (Ok(Ok(packed)), Ok(())) if packed.tree == tree => {}
        (Ok(Ok(_) | Err(PackError::Write(_))), Err(error)) => return Err(unusable(error)),
        (Ok(Ok(packed)), Ok(())) => {
            return Err(changed(format!("expected sha256:{tree}, found sha256:{}", packed.tree)));
        }
        (Ok(Err(error)), _) => return Err(changed(error.to_string())),
        (Err(_), _) => return Err(changed("it cannot be packed".to_owned())),
    }
    let mut sha256 = [0; 32];
    for (to, from) in sha256.iter_mut().zip(to.context.finish().as_ref()) {
        *to = *from;
    }
    let (sha256, bytes) = (Sha256::new(sha256), to.bytes);
    let named = Named { sha256, bytes, ..artifact.named.clone() };
    Ok((named, Piece { sha256, bytes, source: Source::Open(Arc::new(to.file)) }))
}
