//! Small images and archives.

use crate::check::sha256;
use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use std::fs;
use std::io::Write;
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// An entry of an archive.
#[derive(Clone, Copy)]
pub(crate) enum Entry<'a> {
    Dir(&'a str),
    /// A directory that everybody may write to.
    Open(&'a str),
    File(&'a str, u32, &'a [u8]),
    Symlink(&'a str, &'a str),
    Hardlink(&'a str, &'a str),
    Device(&'a str),
    Fifo(&'a str),
}

/// A tar archive with exactly these entries, names as they are.
pub(crate) fn tar(entries: &[Entry<'_>]) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        let (name, kind, mode, body, target) = match *entry {
            Entry::Dir(name) => (name, EntryType::Directory, 0o755, &b""[..], ""),
            Entry::Open(name) => (name, EntryType::Directory, 0o777, &b""[..], ""),
            Entry::File(name, mode, body) => (name, EntryType::Regular, mode, body, ""),
            Entry::Symlink(name, target) => (name, EntryType::Symlink, 0o777, &b""[..], target),
            Entry::Hardlink(name, target) => (name, EntryType::Link, 0o644, &b""[..], target),
            Entry::Device(name) => (name, EntryType::Char, 0o666, &b""[..], ""),
            Entry::Fifo(name) => (name, EntryType::Fifo, 0o644, &b""[..], ""),
        };
        let mut header = Header::new_ustar();
        // Not `set_path`, which refuses the hostile names that are wanted here.
        for (place, byte) in header.as_old_mut().name.iter_mut().zip(name.bytes()) {
            *place = byte;
        }
        for (place, byte) in header.as_old_mut().linkname.iter_mut().zip(target.bytes()) {
            *place = byte;
        }
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(body.len() as u64);
        header.set_mtime(1_234_567_890);
        header.set_uid(0);
        header.set_gid(0);
        if kind == EntryType::Char {
            header.set_device_major(1)?;
            header.set_device_minor(3)?;
        }
        header.set_cksum();
        builder.append(&header, body)?;
    }
    Ok(builder.into_inner()?)
}

pub(crate) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

pub(crate) fn zstandard(bytes: &[u8]) -> Result<Vec<u8>> {
    Ok(zstd::encode_all(bytes, 1)?)
}

/// Writes an OCI layout with one image of these layers, the lowest first; gives the manifest's digest.
pub(crate) fn oci_layout(dir: &Path, layers: &[Vec<u8>]) -> Result<String> {
    write_layout(dir, layers, "application/vnd.oci.image.layer.v1.tar+gzip", gzip)
}

/// The same with layers that are not compressed.
pub(crate) fn plain_layout(dir: &Path, layers: &[Vec<u8>]) -> Result<String> {
    write_layout(dir, layers, "application/vnd.oci.image.layer.v1.tar", |layer| Ok(layer.to_vec()))
}

fn write_layout(
    dir: &Path,
    layers: &[Vec<u8>],
    layer_type: &str,
    pack: fn(&[u8]) -> Result<Vec<u8>>,
) -> Result<String> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let put = |bytes: &[u8]| -> Result<String> {
        let digest = sha256(bytes);
        fs::write(blobs.join(&digest), bytes)?;
        Ok(digest)
    };
    let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in layers {
        let packed = pack(layer)?;
        diff_ids.push(format!("sha256:{}", sha256(layer)));
        descriptors.push(json!({
            "mediaType": layer_type,
            "digest": format!("sha256:{}", put(&packed)?), "size": packed.len(),
        }));
    }
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{}", put(&config)?), "size": config.len(),
        },
        "layers": descriptors,
    }))?;
    let digest = put(&manifest)?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": format!("sha256:{digest}"), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": "base"},
        }],
    });
    fs::write(dir.join("index.json"), serde_json::to_vec(&index)?)?;
    Ok(digest)
}
