//! Files and directories here: what they hold now, and what the job file says of them.

use crate::inputs::InputError;
use crate::inputs::exclude::Excludes;
use crate::jobfile::{InputEntry, JobFile, PathDigest, SourceEntry};
use ampoule_store::pack::tree_digest;
use ampoule_store::{Limits, digests};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// A `path` that does not hold what the job file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stale {
    /// The field, as in `input[0].tree_sha256`.
    pub field: String,
    /// The path, as it is written.
    pub what: String,
    /// The input's name.
    pub input: String,
    /// What the job file says.
    pub pinned: PathDigest,
    /// What lies there.
    pub found: PathDigest,
}

/// A `path` of a job file.
pub(super) struct Here<'a> {
    pub(super) at: usize,
    pub(super) path: &'a str,
    pub(super) digest: Option<PathDigest>,
    pub(super) input: &'a InputEntry,
}

impl Here<'_> {
    /// The field that has its digest, or would have one of this kind.
    pub(super) fn field(&self, digest: PathDigest) -> String {
        format!("input[{}].{}", self.at, digest.key())
    }

    /// What lies there now.
    pub(super) fn now(&self, base: &Path) -> Result<PathDigest, InputError> {
        look(&base.join(self.path), &self.input.exclude)
    }
}

/// The paths of a job file.
pub(super) fn all(job: &JobFile) -> impl Iterator<Item = Here<'_>> {
    job.inputs.iter().enumerate().filter_map(|(at, input)| match &input.source {
        SourceEntry::Path { path, digest } => Some(Here { at, path, digest: *digest, input }),
        _ => None,
    })
}

fn look(path: &Path, exclude: &[String]) -> Result<PathDigest, InputError> {
    let what = || path.display().to_string();
    let unread = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            InputError::Missing { what: what(), reason: "it is not there".to_owned() }
        }
        _ => InputError::File { what: what(), source },
    };
    let refused = |reason: String| InputError::Refused { what: what(), reason };
    // Looked at before it is opened: a FIFO would hang us.
    let kind = path.metadata().map_err(unread)?;
    if !kind.is_dir() && !kind.is_file() {
        return Err(refused("it is neither a file nor a directory".to_owned()));
    }
    let file = File::open(path).map_err(unread)?;
    let limits = Limits::default();
    if kind.is_dir() {
        let exclude = Excludes::new(exclude);
        let tree = tree_digest(file.as_fd(), &|path, is_dir| exclude.has(path, is_dir), &|| false, &limits);
        return Ok(PathDigest::Tree(tree.map_err(|error| refused(error.to_string()))?.tree));
    }
    if !exclude.is_empty() {
        return Err(refused("it is a file, and patterns are for directories; remove exclude".to_owned()));
    }
    let (sha256, _, bytes) = digests(file, limits.bytes_max).map_err(unread)?;
    if bytes > limits.bytes_max {
        return Err(InputError::TooLarge { url: what(), bytes_max: limits.bytes_max });
    }
    Ok(PathDigest::File(sha256))
}
