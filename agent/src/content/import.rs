//! From a whole upload to the store: the bytes are held against their digest here, whatever the store has already.

use super::known::Known;
use super::{ContentError, Result, Upload};
use crate::fair::Seat;
use crate::files::read_capped;
use crate::inputs::{oci_documents, sha256_of};
use ampoule_spec::Code;
use ampoule_spec::wire::{Content, Imported};
use aws_lc_rs::digest::{Context, SHA256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

/// Who brings content into the store: a connection to the launcher.
pub trait Importer: Send + Sync + 'static {
    /// Which of these the store has, in their order. Blocks.
    ///
    /// # Errors
    /// [`ImportError`].
    fn present(&self, contents: &[Content]) -> std::result::Result<Vec<bool>, ImportError>;

    /// Takes bytes in. Blocks. It need not read them if the store has the content, unless the content says no digest.
    ///
    /// # Errors
    /// [`ImportError`].
    fn import(&self, content: Content, bytes: File) -> std::result::Result<Imported, ImportError>;
}

/// Why the store was not asked, or has refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ImportError {
    /// The bounded code.
    pub code: Code,
    /// For people.
    pub message: String,
}

/// What is needed to finish an upload without anybody waiting for it.
pub(super) struct Finished<I> {
    pub(super) importer: Arc<I>,
    pub(super) known: Arc<Known>,
    /// Held until it is done.
    pub(super) seat: Seat,
}

impl<I: Importer> Finished<I> {
    pub(super) fn take(self, mut upload: Upload) -> Result<()> {
        let taken = self.import(&upload).and_then(|()| self.known.record(&upload.project, &upload.content));
        let is_dropped = match &taken {
            Ok(()) => true,
            Err(error) => error.status == Some(tonic::Code::InvalidArgument),
        };
        if is_dropped {
            upload.discard();
        }
        drop((upload, self.seat));
        taken
    }

    fn import(&self, upload: &Upload) -> Result<()> {
        let failed = |e: std::io::Error| ContentError::io("an upload", e);
        let mut bytes = upload.bytes().map_err(failed)?;
        let (content, digest) = match upload.content.clone() {
            // Without its digest, so that the store cannot answer without reading: the tree says which one it has.
            Content::Directory { tree, epoch } => (Content::Directory { tree: None, epoch }, tree),
            Content::File { sha256, .. } => (upload.content.clone(), sha256),
            Content::Archive { sha256, .. }
            | Content::ImageTar { sha256 }
            | Content::OciManifest { sha256 }
            | Content::OciConfig { sha256 }
            | Content::OciLayer { sha256 } => (upload.content.clone(), Some(sha256)),
            Content::Git { .. } => return Err(ContentError::internal("a checkout is no upload")),
        };
        let Some(digest) = digest else { return Err(ContentError::internal("an upload without a digest")) };
        let mismatch = |found: &dyn std::fmt::Display| {
            let text = format!("the bytes have the digest {found} and not {digest}; they are dropped");
            ContentError::bytes(Code::InputDigestMismatch, text)
        };
        if !matches!(content, Content::Directory { .. }) {
            let found = sha256(&mut bytes).map_err(failed)?;
            if found != digest {
                return Err(mismatch(&found));
            }
        }
        if matches!(content, Content::OciManifest { .. }) {
            self.check_manifest(upload, &mut bytes)?;
        }
        let imported = self.importer.import(content, bytes).map_err(ContentError::import)?;
        if imported.sha256 != digest { Err(mismatch(&imported.sha256)) } else { Ok(()) }
    }

    /// A manifest names its configuration and layers by digest, and the store may have those of others.
    fn check_manifest(&self, upload: &Upload, bytes: &mut File) -> Result<()> {
        let failed = |e: std::io::Error| ContentError::io("an upload", e);
        let refused = |text: String| ContentError::bytes(Code::InputRefused, text);
        let document = read_capped(&mut *bytes, oci_documents::DOCUMENT_BYTES_MAX);
        let document = document.map_err(|e| refused(format!("the manifest: {e}")))?;
        let parts = oci_documents::manifest(&document, "the manifest").map_err(|e| refused(e.to_string()))?;
        let config = Content::OciConfig { sha256: parts.config.sha256 };
        let layers = parts.layers.iter().map(|layer| Content::OciLayer { sha256: layer.sha256 });
        for part in std::iter::once(config).chain(layers) {
            if !self.known.has(&upload.project, &part) {
                let what = match part {
                    Content::OciConfig { sha256 } => format!("its configuration sha256:{sha256}"),
                    Content::OciLayer { sha256 } => format!("its layer sha256:{sha256}"),
                    _ => "a part of it".to_owned(),
                };
                let text = format!("{what} is missing; upload configuration and layers before the manifest");
                return Err(ContentError::new(Code::InputMissing, text));
            }
        }
        bytes.seek(SeekFrom::Start(0)).map(drop).map_err(failed)
    }
}

/// SHA-256 of a file from where it is; then it is at its beginning.
fn sha256(file: &mut File) -> std::io::Result<ampoule_spec::Sha256> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => context.update(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    file.seek(SeekFrom::Start(0))?;
    sha256_of(context.finish().as_ref()).map_err(std::io::Error::other)
}
