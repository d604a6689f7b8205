//! Where content goes that lies on this host: to the runner here, or to a daemon.

use super::LocalError;
use super::intake::open;
use super::runner::{Runner, RunnerError};
use crate::inputs::OciLayout;
use crate::jobfile::ImagePlan;
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, Sha256};
use ampoule_store::pack::{PackError, Packed};
use std::fs::File;
use std::io::Write;
use std::path::Path;

type Result<T> = std::result::Result<T, LocalError>;

/// Packs a directory, each time into the same bytes as long as it stays as it is.
pub(crate) type Pack<'a> = dyn Fn(&mut dyn Write) -> std::result::Result<Packed, PackError> + Sync + 'a;

/// What became of a directory: as it was packed, and the digest that it was taken under.
pub(crate) type TakenPacked = (std::result::Result<Packed, PackError>, Result<Sha256>);

/// Who takes content.
pub(crate) trait Taker {
    /// Whether it has this, so that its bytes are not needed.
    fn has(&self, content: &Content) -> Result<bool>;

    /// Takes a file's bytes, and says which digest they have.
    fn take_file(&self, content: Content, file: File) -> Result<Sha256>;

    /// Takes a directory as an archive.
    fn take_packed(&self, content: Content, pack: &Pack<'_>) -> Result<TakenPacked>;
}

/// Has an archive taken that lies here.
pub(crate) fn archive(
    path: &Path,
    sha256: Sha256,
    epoch: u64,
    taker: &dyn Taker,
    importing: &mut dyn FnMut(),
) -> Result<()> {
    let content = Content::Archive { sha256, epoch };
    if !taker.has(&content)? {
        importing();
        taker.take_file(content, open(path)?)?;
    }
    Ok(())
}

/// Has an image taken that lies here. The digest of the manifest of an OCI image; none for another.
pub(crate) fn image(
    image: &ImagePlan,
    taker: &dyn Taker,
    importing: &mut dyn FnMut(),
) -> Result<Option<Sha256>> {
    match image {
        ImagePlan::Host | ImagePlan::Registry { .. } => Ok(None),
        ImagePlan::Tar { file, sha256 } => {
            let content = Content::ImageTar { sha256: *sha256 };
            if !taker.has(&content)? {
                importing();
                taker.take_file(content, open(file)?)?;
            }
            Ok(None)
        }
        ImagePlan::OciLayout { dir, tag, pinned, .. } => {
            let layout = OciLayout::open(dir)?;
            let found = layout.image(pinned, tag.as_deref())?;
            let sha256 = found.manifest.sha256;
            let manifest = Content::OciManifest { sha256 };
            if taker.has(&manifest)? {
                return Ok(Some(sha256));
            }
            importing();
            for layer in &found.layers {
                let content = Content::OciLayer { sha256: layer.sha256 };
                if !taker.has(&content)? {
                    let taken = taker.take_file(content, layout.open_blob(layer)?);
                    taken.map_err(|error| within(error, dir, &layer.sha256))?;
                }
            }
            let config = Content::OciConfig { sha256: found.config.sha256 };
            taker.take_file(config, layout.open_blob(&found.config)?)?;
            taker.take_file(manifest, layout.open_blob(&found.manifest)?)?;
            Ok(Some(sha256))
        }
    }
}

/// Says which layer was refused.
fn within(error: LocalError, dir: &Path, layer: &Sha256) -> LocalError {
    let what = format!("{}, layer sha256:{layer}", dir.display());
    match error {
        LocalError::Runner(error) => error.within(&what).into(),
        LocalError::Server { code, message } => {
            LocalError::Server { code, message: format!("{what}: {message}") }
        }
        other => other,
    }
}

impl Taker for Runner {
    fn has(&self, content: &Content) -> Result<bool> {
        Ok(self.find(content.clone())?.is_some())
    }

    fn take_file(&self, content: Content, file: File) -> Result<Sha256> {
        Ok(self.import(content, file.into())?.sha256)
    }

    /// Streams it to the import worker.
    fn take_packed(&self, content: Content, pack: &Pack<'_>) -> Result<TakenPacked> {
        let pipe = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let (read, write) = pipe.map_err(|e| RunnerError::Refused {
            code: Code::Internal,
            message: format!("a pipe to the import worker: {e}"),
        })?;
        let (packed, imported) = std::thread::scope(|scope| {
            let packing = scope.spawn(move || {
                let mut out = File::from(write);
                let packed = pack(&mut out)?;
                out.flush().map_err(PackError::Write)?;
                Ok(packed)
            });
            let imported = self.import(content, read);
            (packing.join(), imported)
        });
        let packed = packed.map_err(|_| RunnerError::OutOfTurn)?;
        Ok((packed, imported.map(|imported| imported.sha256).map_err(Into::into)))
    }
}
