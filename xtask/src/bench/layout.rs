//! A Debian root file system as an image in an OCI layout, as a registry would give it.

use super::volume::quiet;
use crate::shell;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Which Debian, and what is in it beyond what every Debian has.
const SUITE: &str = "bookworm";
const PACKAGES: &str = "ca-certificates,python3";

/// An image: its layout directory and the names of its parts.
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Blob,
    pub(crate) config: Blob,
    pub(crate) layer: Blob,
    /// Bytes of the layer as it is unpacked.
    pub(crate) unpacked: u64,
}

/// The tag in every layout.
pub(crate) const TAG: &str = "bench";

/// A file of a layout.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) sha256: [u8; 32],
    pub(crate) file: PathBuf,
    pub(crate) bytes: u64,
}

impl Blob {
    fn digest(&self) -> String {
        format!("sha256:{}", hex::encode(self.sha256))
    }
}

/// The image of a Debian; made if it is not there.
pub(crate) fn debian(folder: &Path) -> Result<Layout> {
    let tar = folder.join("debian.tar");
    let recipe = format!("{SUITE} {PACKAGES}\n");
    let made = folder.join("debian.recipe");
    if fs::read_to_string(&made).ok() != Some(recipe.clone()) {
        let mut make = Command::new("mmdebstrap");
        make.args(["--quiet", "--variant=important", &format!("--include={PACKAGES}"), SUITE]);
        make.arg(&tar).arg(crate::vm::mirror()?);
        shell::run(&mut make)?;
        fs::write(&made, recipe)?;
    }
    of_tar(&tar, &folder.join("debian"), "-6")
}

/// An image of one layer, which holds a tar archive; `level` is gzip's.
pub(crate) fn of_tar(tar: &Path, dir: &Path, level: &str) -> Result<Layout> {
    let _ = fs::remove_dir_all(dir);
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let part = dir.join("layer.part");
    let mut gzip = Command::new("gzip");
    gzip.args(["-n", "-c", level]).arg(tar).stdin(Stdio::null()).stdout(File::create(&part)?);
    shell::run(&mut gzip)?;
    let (diff_id, unpacked) = digest(tar)?;
    let layer = keep(&blobs, &part)?;
    let document = |value: Value| -> Result<Blob> {
        let part = dir.join("document.part");
        fs::write(&part, serde_json::to_vec(&value)?)?;
        keep(&blobs, &part)
    };
    let diff_id = format!("sha256:{}", hex::encode(diff_id));
    let config = document(json!({
        "architecture": "amd64", "os": "linux", "config": {}, "history": [{ "created_by": TAG }],
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    }))?;
    let part = |kind: &str, blob: &Blob| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": media_type, "digest": blob.digest(), "size": blob.bytes })
    };
    let manifest = document(json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": part("config.v1+json", &config), "layers": [part("layer.v1.tar+gzip", &layer)],
    }))?;
    let mut entry = part("manifest.v1+json", &manifest);
    if let Some(entry) = entry.as_object_mut() {
        entry.insert("annotations".into(), json!({ "org.opencontainers.image.ref.name": TAG }));
    }
    fs::write(
        dir.join("index.json"),
        serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [entry] }))?,
    )?;
    fs::write(dir.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
    Ok(Layout { dir: dir.to_owned(), manifest, config, layer, unpacked })
}

/// Gives a file the name of its digest.
fn keep(blobs: &Path, part: &Path) -> Result<Blob> {
    let (sha256, bytes) = digest(part)?;
    let file = blobs.join(hex::encode(sha256));
    fs::rename(part, &file)?;
    Ok(Blob { sha256, file, bytes })
}

/// SHA-256 and length of a file.
pub(crate) fn digest(file: &Path) -> Result<([u8; 32], u64)> {
    let mut hash = Sha256::new();
    let mut from = File::open(file).with_context(|| file.display().to_string())?;
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let count = io::Read::read(&mut from, &mut buffer)?;
        let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else { break };
        hash.update(part);
        bytes += count as u64;
    }
    Ok((hash.finalize().into(), bytes))
}

/// A tar archive of a folder with names in order and root as the owner.
pub(crate) fn tar(folder: &Path, file: &Path) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-cf"]);
    quiet(tar.arg(file).arg("-C").arg(folder).arg(".")).map(drop)
}
