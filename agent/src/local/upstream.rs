//! What another job has made, as an input: its provenance is verified before a byte of it is taken in.

use super::LocalError;
use super::download::Downloads;
use super::intake::{open, unusable};
use super::runner::Runner;
use crate::jobfile::{ArtifactPlace, Believed, UpstreamPlan};
use ampoule_evidence::{ATTESTATION_BYTES_MAX, MadeByRequest, PublicKey, TrustFile, TrustedKey, made_by};
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, InputSource};
use std::io::Read;
use std::path::Path;

/// The most bytes of a key or trust file.
const TRUST_BYTES_MAX: u64 = 1 << 20;

type Result<T> = std::result::Result<T, LocalError>;

/// Verifies the provenance, and imports what it is about unless the store has it.
pub(super) fn take(
    plan: &UpstreamPlan,
    epoch: u64,
    runner: &Runner,
    downloads: &Downloads,
    importing: &mut dyn FnMut(),
) -> Result<InputSource> {
    let trusted = trusted(&plan.believed)?;
    let attestation = read(&plan.file, ATTESTATION_BYTES_MAX as u64)?;
    let request = MadeByRequest {
        attestation: &attestation,
        trusted: &trusted,
        subject: plan.subject.as_ref().map(|name| name.as_str()),
        builder: plan.builder.as_deref(),
        allow_dev: plan.allow_dev,
    };
    let (sha256, made_by) = made_by(&request).map_err(|error| LocalError::Upstream {
        code: error.code(),
        file: plan.file.clone(),
        reason: chain(&error),
    })?;
    let content = match plan.unpack {
        true => Content::Archive { sha256, epoch },
        false => Content::File { sha256: Some(sha256), executable: false, epoch },
    };
    if runner.find(content.clone())?.is_none() {
        importing();
        // The import holds the bytes against the digest that was verified.
        let bytes = match &plan.artifact {
            ArtifactPlace::Path(path) => open(path)?,
            ArtifactPlace::Url(url) => downloads.fetch(url, &[], &sha256)?,
        };
        runner.import(content, bytes.into())?;
    }
    Ok(InputSource::Attestation { sha256, unpack: plan.unpack, made_by })
}

fn trusted(believed: &Believed<std::path::PathBuf>) -> Result<Vec<TrustedKey>> {
    let (Believed::Key(path) | Believed::Trust(path)) = believed;
    let bad = |reason: String| LocalError::Upstream { code: Code::FileUnusable, file: path.clone(), reason };
    let bytes = read(path, TRUST_BYTES_MAX)?;
    match believed {
        Believed::Trust(_) => Ok(TrustFile::parse(&bytes).map_err(|e| bad(chain(&e)))?.keys),
        Believed::Key(_) => {
            let text = String::from_utf8(bytes).map_err(|_| bad("it is not a PEM file".to_owned()))?;
            Ok(vec![TrustedKey::any(PublicKey::from_pem(&text).map_err(|e| bad(e.to_string()))?)])
        }
    }
}

/// Reads a small file, bounded.
fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|e| unusable(path, e))?;
    if bytes.len() as u64 > bytes_max {
        return Err(unusable(path, std::io::Error::other(format!("more than {bytes_max} bytes"))));
    }
    Ok(bytes)
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
