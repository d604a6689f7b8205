//! Writing an OCI layout (image-spec 1.1, `image-layout.md`): whole and under its name, or not at all.

use super::Content;
use super::documents::with;
use super::error::ExportError;
use crate::local::Place;
use crate::registry::{INDEX_TYPE, Piece, Source};
use aws_lc_rs::digest::{Context, SHA256};
use oci_spec::image::ANNOTATION_REF_NAME;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Writes a layout into a directory that is new or empty.
pub(super) fn write(dir: &Path, tag: Option<&str>, content: &Content) -> Result<(), ExportError> {
    let failed = |e: io::Error| ExportError::file(dir.display().to_string(), e);
    let name = dir.file_name().and_then(|name| name.to_str());
    let name =
        name.ok_or_else(|| failed(io::Error::other("it has no name of its own; name a new directory")))?;
    let parent = match dir.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    if dir.read_dir().is_ok_and(|mut names| names.next().is_some()) {
        return Err(ExportError::refused(format!("{} holds something; name a new directory", dir.display())));
    }
    let parent = Place::open(&parent).map_err(failed)?;
    let aside = format!(".ampoule-{}.tmp", uuid::Uuid::now_v7());
    let made = parent.make(&aside).map_err(failed)?;
    let written = fill(&made, tag, content).and_then(|()| parent.publish(&aside, &made, name));
    written.map_err(|error| {
        parent.discard(&aside, &made);
        failed(error)
    })
}

fn fill(made: &Place, tag: Option<&str>, content: &Content) -> io::Result<()> {
    let blobs = made.make("blobs")?;
    let sha256 = blobs.make("sha256")?;
    for piece in &content.pieces {
        copy(piece, &sha256)?;
    }
    for document in content.inner.iter().chain([&content.outputs, &content.attestation]) {
        sha256.write(&document.sha256.to_string(), &document.bytes)?;
    }
    made.write("index.json", index(tag, content).to_string().as_bytes())?;
    made.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    [&sha256, &blobs, made].into_iter().try_for_each(Place::sync)
}

/// The outputs under their tag, and the attestation beside them without one: readers find it by its subject.
fn index(tag: Option<&str>, content: &Content) -> Value {
    let outputs = content.outputs.descriptor();
    let outputs = match tag {
        Some(tag) => with(outputs, "annotations", json!({ANNOTATION_REF_NAME: tag})),
        None => outputs,
    };
    let manifests: [Value; 2] = [outputs, content.attestation.descriptor()];
    json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests})
}

/// Copies a blob and hashes what it writes.
fn copy(piece: &Piece, into: &Place) -> io::Result<()> {
    let name = piece.sha256.to_string();
    let (mut from, what) = match &piece.source {
        Source::Memory(bytes) => return into.write(&name, bytes),
        Source::File(path) => (File::open(path)?, path.display().to_string()),
        Source::Open(file) => (file.try_clone()?, "a temporary file".to_owned()),
    };
    from.rewind()?;
    let mut to = into.create(&name, 0o644)?;
    let (mut context, mut buffer) = (Context::new(&SHA256), vec![0; 256 << 10]);
    loop {
        let count = from.read(&mut buffer)?;
        let part = buffer.get(..count).unwrap_or_default();
        if part.is_empty() {
            break;
        }
        context.update(part);
        to.write_all(part)?;
    }
    to.sync_all()?;
    if context.finish().as_ref() == piece.sha256.as_bytes() {
        return Ok(());
    }
    Err(io::Error::other(format!("{what} changed while it was copied")))
}
