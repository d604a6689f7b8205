//! The job file: `ampoule run job.toml` (docs/job-file.md).
//!
//! [`parse`] guarantees that everything which can be known from the file alone holds: every key is known,
//! every value has its type, everything outside is pinned by a digest, and the job would pass
//! [`JobSpec::validate`](ampoule_spec::JobSpec::validate). [`JobFile::plan`] adds the parameters and looks
//! whether what the file names is there; [`JobPlan::into_spec`] adds the digests that are known after the
//! import. It reads no content: what a path input holds is the importer's business.

mod error;
mod fields;
mod git;
mod image;
mod mirrors;
mod model;
mod params;
mod places;
mod plan;
mod quick;
pub(crate) mod read;
mod secrets;
mod sections;
pub(crate) mod suggest;
mod upstream;
pub(crate) mod values;

pub(crate) use error::shown;
pub use error::{JobFileError, Position};
pub use git::{GitEntry, GitPlan, git_url, tag_name};
pub use image::ImageRef;
pub(crate) use image::split_tag;
pub use model::{
    InputEntry, JobFile, OutputEntry, Param, ParamType, PathDigest, SecretEntry, SourceEntry, StepEntry, Text,
};
pub use plan::{ImagePlan, InputPlan, JobPlan, SourcePlan};
pub use quick::{QuickJob, quick_job};
pub use upstream::{ArtifactPlace, UpstreamEntry, UpstreamPlan};
pub(crate) use values::{duration_ms, size};

use ampoule_spec::Code;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The largest job file, in bytes.
pub const JOB_FILE_BYTES_MAX: u64 = 1 << 20;
/// `source_date_epoch` of a job that names none: 1980-01-01T00:00:00Z, the earliest time a zip file can hold.
pub const SOURCE_DATE_EPOCH_DEFAULT: u64 = 315_532_800;
/// The time limit of a step that names none, in milliseconds: 30 minutes.
pub const STEP_TIMEOUT_MS_DEFAULT: u64 = 30 * 60 * 1000;
/// The working directory of a step that names none.
pub const CWD_DEFAULT: &str = "/build";
/// The profile of a job that names none.
pub const PROFILE_DEFAULT: &str = "hermetic";

/// Reads and parses the job file at `path`, which the messages call by that path.
///
/// # Errors
/// `file.unusable` if it cannot be read, else as [`parse`].
pub fn load(path: &Path) -> Result<JobFile, JobFileError> {
    let name = path.display().to_string();
    let bytes = read_capped(path, &name)?;
    parse(&bytes, &name)
}

/// Parses a job file; the messages call it `file_name`.
///
/// # Errors
/// The first thing that is wrong, with its line and field: `job.invalid`, or `input.unpinned` for an image
/// or input without a digest.
pub fn parse(bytes: &[u8], file_name: &str) -> Result<JobFile, JobFileError> {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if length > JOB_FILE_BYTES_MAX {
        return Err(too_large(file_name, length));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| not_utf8(bytes, e.valid_up_to(), file_name))?;
    let reader = read::Reader::new(file_name, text);
    let document = toml::de::DeTable::parse(text).map_err(|e| reader.syntax(&e))?;
    let job = sections::job(&reader, &document)?;
    job.check_alone()?;
    Ok(job)
}

/// Reads the text of the job file at `path`, and the name that messages call it by.
///
/// # Errors
/// `file.unusable` if it cannot be read; `job.invalid` if it is too large or not UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<(String, String), JobFileError> {
    let name = path.display().to_string();
    let bytes = read_capped(path, &name)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok((text, name)),
        Err(e) => Err(not_utf8(e.as_bytes(), e.utf8_error().valid_up_to(), &name)),
    }
}

fn read_capped(path: &Path, name: &str) -> Result<Vec<u8>, JobFileError> {
    let unusable = |e: std::io::Error| {
        JobFileError::whole(Code::FileUnusable, name, "", format!("cannot be read: {e}"), "")
    };
    let file = File::open(path).map_err(unusable)?;
    let length = file.metadata().map_err(unusable)?.len();
    if length > JOB_FILE_BYTES_MAX {
        return Err(too_large(name, length));
    }
    let mut bytes = Vec::new();
    // A pipe has no length, and a file can grow: the cap holds for what is read as well.
    file.take(JOB_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unusable)?;
    Ok(bytes)
}

fn too_large(name: &str, length: u64) -> JobFileError {
    let reason = format!("the file has {length} bytes; a job file has at most {JOB_FILE_BYTES_MAX}");
    JobFileError::whole(Code::JobInvalid, name, "", reason, "large content belongs into an input")
}

fn not_utf8(bytes: &[u8], offset: usize, name: &str) -> JobFileError {
    let before = bytes.get(..offset).unwrap_or_default();
    let text = String::from_utf8_lossy(before);
    let mut error = JobFileError::whole(
        Code::JobInvalid,
        name,
        "",
        format!("the file is not UTF-8 at byte {offset}"),
        "save it as UTF-8",
    );
    error.position = Some(Position::of(&text, text.len()));
    error
}
