//! Exporting what a run has released: to a registry, or to a directory as an OCI layout.
//!
//! What is guaranteed: only what a released provenance names, with the bytes that it names, and the attestation beside
//! it. What is not: no signature is checked here, which is for whoever takes it (`ampoule verify`).

mod documents;
mod error;
mod image;
mod layout;
mod released;
mod tree;

pub use error::ExportError;

use crate::block::with_runtime;
use crate::jobfile::split_tag;
use crate::registry::{Access, Called, INDEX_TYPE, Piece, Purpose, Reference, SCHEME, Session, Source};
use ampoule_spec::Sha256;
pub(crate) use documents::sha256_of;
use documents::{Document, EMPTY, referrers_tag, with_referrer};
use released::Released;
use std::path::{Path, PathBuf};

/// How often the index of referrers is written again because somebody else wrote it meanwhile.
const REFERRERS_TRIES: u32 = 5;

type Result<T> = std::result::Result<T, ExportError>;

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A repository on a registry. Without a tag what is pushed has its digest alone.
    Registry(Reference),
    /// A new directory.
    Layout {
        /// The directory.
        dir: PathBuf,
        /// What the outputs are called in it.
        tag: Option<String>,
    },
}

impl Destination {
    /// Reads `docker://HOST/REPO[:TAG]` or `oci:DIR[:TAG]`.
    ///
    /// # Errors
    /// What is wrong and what to write instead.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        if text.starts_with(SCHEME) {
            return match Reference::parse(text) {
                Ok((reference, None)) => Ok(Self::Registry(reference)),
                Ok((_, Some(_))) => Err("the digest is what comes of it; name a tag or nothing".to_owned()),
                Err(error) => Err(error.to_string()),
            };
        }
        let Some(rest) = text.strip_prefix("oci:") else {
            return Err("write docker://HOST/REPO[:TAG] or oci:DIR[:TAG]".to_owned());
        };
        let (dir, tag) = split_tag(rest);
        if dir.is_empty() {
            return Err("the directory is missing; write oci:DIR[:TAG]".to_owned());
        }
        Ok(Self::Layout { dir: PathBuf::from(dir), tag: tag.map(str::to_owned) })
    }
}

/// What is at the destination now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// The manifest that names the outputs.
    pub manifest: Sha256,
    /// The manifest of the attestation, which refers to it.
    pub attestation: Sha256,
    /// How many blobs were written or sent.
    pub sent: usize,
    /// How many were there before.
    pub there: usize,
    /// Whether the registry has no referrers API, so that the attestation is found by a tag.
    pub by_tag: bool,
    /// The outputs, by name.
    pub outputs: Vec<String>,
}

/// All that is exported, in the order in which it must arrive.
struct Content {
    pieces: Vec<Piece>,
    /// Of an image, what its own document names.
    inner: Vec<Document>,
    /// The manifest that names the outputs, or the image's own document.
    outputs: Document,
    attestation: Document,
}

/// Exports what a run has released in its output directory: the outputs of these names, or all if there is none.
///
/// # Errors
/// [`ExportError`]. What had arrived before stays there, unnamed, and is not sent again.
pub fn export(out: &Path, only: &[String], to: &Destination, access: &Access) -> Result<Exported> {
    let released = Released::read(out, only)?;
    let content = content(&released)?;
    let mut exported = Exported {
        manifest: content.outputs.sha256,
        attestation: content.attestation.sha256,
        sent: 0,
        there: 0,
        by_tag: false,
        outputs: released.artifacts.iter().map(|artifact| artifact.named.name.clone()).collect(),
    };
    match to {
        Destination::Layout { dir, tag } => {
            layout::write(dir, tag.as_deref(), &content)?;
            exported.sent = content.pieces.len();
        }
        Destination::Registry(reference) => {
            let failed = |e: std::io::Error| ExportError::file("the asynchronous runtime", e);
            let pushing = push(&content, reference, access, &mut exported);
            with_runtime(|runtime| runtime.block_on(pushing)).map_err(failed)??;
        }
    }
    Ok(exported)
}

fn content(released: &Released) -> Result<Content> {
    let in_memory = |bytes: &[u8]| Piece {
        sha256: sha256_of(bytes),
        bytes: bytes.len() as u64,
        source: Source::Memory(bytes.to_vec()),
    };
    let mut pieces = vec![in_memory(EMPTY), in_memory(&released.bundle)];
    let (inner, outputs) = match &released.image {
        Some(dir) => {
            let image::Image { pieces: parts, mut documents } = image::read(dir)?;
            pieces.extend(parts);
            let own = documents.pop();
            let own = own.ok_or_else(|| ExportError::refused(format!("{} has no image", dir.display())))?;
            (documents, own)
        }
        None => {
            let mut named = Vec::new();
            for artifact in &released.artifacts {
                let (one, piece) = match artifact.named.tree {
                    Some(tree) => tree::piece(artifact, tree)?,
                    None => (
                        artifact.named.clone(),
                        Piece {
                            sha256: artifact.named.sha256,
                            bytes: artifact.named.bytes,
                            source: Source::File(artifact.path.clone()),
                        },
                    ),
                };
                named.push(one);
                pieces.push(piece);
            }
            (Vec::new(), documents::outputs(&named))
        }
    };
    // Two outputs may be the same bytes.
    let mut known = std::collections::BTreeSet::new();
    pieces.retain(|piece| known.insert(piece.sha256));
    let attestation = documents::attestation(&outputs, &released.bundle);
    Ok(Content { pieces, inner, outputs, attestation })
}

async fn push(
    content: &Content,
    reference: &Reference,
    access: &Access,
    exported: &mut Exported,
) -> Result<()> {
    let mut session = Session::new(access, reference, Purpose::Push)?;
    for piece in &content.pieces {
        match session.push_blob(piece).await? {
            true => exported.sent += 1,
            false => exported.there += 1,
        }
    }
    for document in &content.inner {
        let called = Called::Digest(&document.sha256);
        session.push_manifest(called, &document.sha256, &document.media_type, &document.bytes).await?;
    }
    let outputs = &content.outputs;
    // The attestation first: nobody finds outputs under their tag that have none yet.
    let by_digest = Called::Digest(&outputs.sha256);
    session.push_manifest(by_digest, &outputs.sha256, &outputs.media_type, &outputs.bytes).await?;
    let about = &content.attestation;
    let by_digest = Called::Digest(&about.sha256);
    let known = session.push_manifest(by_digest, &about.sha256, &about.media_type, &about.bytes).await?;
    if !known {
        exported.by_tag = true;
        add_referrer(&mut session, &outputs.sha256, about).await?;
    }
    if let Some(tag) = &reference.tag {
        let called = Called::Tag(tag);
        session.push_manifest(called, &outputs.sha256, &outputs.media_type, &outputs.bytes).await?;
    }
    Ok(())
}

/// Adds an attestation to the index by which it is found where the registry has no referrers API. Registries
/// replace a tag without comparing: what was written is read again, in case somebody else wrote at the same time.
async fn add_referrer(session: &mut Session<'_>, subject: &Sha256, referrer: &Document) -> Result<()> {
    let tag = referrers_tag(subject);
    for _ in 0..REFERRERS_TRIES {
        let before = session.index_of(&tag).await?;
        let refused =
            |reason: String| ExportError::refused(format!("{}:{tag}: {reason}", session.reference()));
        let Some(index) = with_referrer(before.as_deref(), INDEX_TYPE, referrer).map_err(refused)? else {
            return Ok(());
        };
        session.push_manifest(Called::Tag(&tag), &sha256_of(&index), INDEX_TYPE, &index).await?;
    }
    Err(ExportError::refused(format!(
        "{}:{tag}: others write it all the time; try again",
        session.reference()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read() {
        assert!(
            matches!(Destination::parse("docker://h.x/a:v1"), Ok(Destination::Registry(r)) if r.tag.is_some())
        );
        let layout = |dir: &str, tag: Option<&str>| {
            Ok(Destination::Layout { dir: dir.into(), tag: tag.map(str::to_owned) })
        };
        assert_eq!(Destination::parse("oci:./out"), layout("./out", None));
        assert_eq!(Destination::parse("oci:/a:b/out:v1"), layout("/a:b/out", Some("v1")));
        let pinned = format!("docker://h.x/a@sha256:{}", sha256_of(b""));
        for wrong in ["", "out", "oci:", "oci::v1", "docker://a", &pinned, "dir:x"] {
            assert!(Destination::parse(wrong).is_err(), "{wrong}");
        }
    }
}
