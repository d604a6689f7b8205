//! Whether what a plan names is there, before anything is taken in.

use super::error::{JobFileError, shown};
use super::model::PathDigest;
use super::plan::{ImagePlan, JobPlan, SourcePlan};
use crate::git::GitPlace;
use ampoule_spec::Code;
use std::path::Path;

type Result<T> = std::result::Result<T, JobFileError>;

impl JobPlan {
    /// Looks whether the paths that the plan names are there and are of the right kind.
    pub(super) fn check_places(&self) -> Result<()> {
        match &self.image {
            ImagePlan::Host | ImagePlan::Registry { .. } => {}
            ImagePlan::OciLayout { dir, .. } => self.check_place("image", dir, Kind::Directory)?,
            ImagePlan::Tar { file, .. } => self.check_place("image", file, Kind::File)?,
        }
        for (at, input) in self.inputs.iter().enumerate() {
            match &input.source {
                SourcePlan::Path { path, digest } => {
                    self.check_place(&format!("input[{at}].path"), path, Kind::Either)?;
                    let (fits, reason) = match digest {
                        None => (true, ""),
                        Some(PathDigest::Tree(_)) => {
                            (path.is_dir(), "the path is a file; its digest is sha256")
                        }
                        Some(PathDigest::File(_)) => {
                            (path.is_file(), "the path is a directory; its digest is tree_sha256")
                        }
                    };
                    if let Some(digest) = digest.filter(|_| !fits) {
                        let field = format!("input[{at}].{}", digest.key());
                        let remedy = "run `ampoule pin --path NAME` on the job file";
                        return Err(self.fields.error(Code::JobInvalid, &field, reason, remedy));
                    }
                    if !input.exclude.is_empty() && path.is_file() {
                        let (field, reason) =
                            (format!("input[{at}].exclude"), "patterns are for directories");
                        return Err(self.fields.error(Code::JobInvalid, &field, reason, "remove the key"));
                    }
                }
                SourcePlan::Tar { path, .. } => {
                    self.check_place(&format!("input[{at}].tar.path"), path, Kind::File)?;
                }
                SourcePlan::Git(plan) => {
                    if let GitPlace::Path(path) = &plan.place {
                        self.check_place(&format!("input[{at}].git.path"), path, Kind::Directory)?;
                    }
                    if let Some(file) = &plan.allowed_signers {
                        self.check_place(&format!("input[{at}].git.allowed_signers"), file, Kind::File)?;
                    }
                }
                SourcePlan::Http { .. } => {}
                SourcePlan::Attestation(plan) => {
                    for (key, path) in plan.files() {
                        // The provenance says which of both it has to be.
                        let kind = if key == "path" { Kind::Either } else { Kind::File };
                        self.check_place(&format!("input[{at}].attestation.{key}"), path, kind)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn check_place(&self, field: &str, path: &Path, kind: Kind) -> Result<()> {
        let name = shown(&path.display().to_string());
        let metadata = path.metadata().map_err(|e| {
            use std::io::ErrorKind::{InvalidFilename, NotADirectory, NotFound};
            // A name that is too long is nothing's name.
            if matches!(e.kind(), NotFound | NotADirectory | InvalidFilename) {
                let remedy = "relative paths are taken from the job file's directory";
                self.fields.error(Code::InputMissing, field, format!("{name} is not there"), remedy)
            } else {
                self.fields.error(Code::FileUnusable, field, format!("{name} cannot be read: {e}"), "")
            }
        })?;
        let (ok, expected) = match kind {
            Kind::File => (metadata.is_file(), "a file"),
            Kind::Directory => (metadata.is_dir(), "a directory"),
            Kind::Either => (metadata.is_file() || metadata.is_dir(), "a file or a directory"),
        };
        if ok {
            return Ok(());
        }
        Err(self.fields.error(Code::InputRefused, field, format!("{name} is not {expected}"), ""))
    }
}

/// What a path must lead to.
#[derive(Clone, Copy)]
enum Kind {
    File,
    Directory,
    Either,
}
