//! A job's record as it lies on disk: `spec.json` and `report.json`, read strictly, with their digests.

use crate::clean::{CleanRun, Unclean};
use crate::statement::sha256;
use crate::strict::{StrictError, parse_strict};
use ampoule_spec::{JobSpec, REPORT_BYTES_MAX, RunReport, SPEC_BYTES_MAX, Sha256};
use serde::de::DeserializeOwned;

/// Why bytes are not a job's record.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A file is larger than either side accepts.
    #[error("{file} has {bytes} bytes, at most {max} are read")]
    TooLarge {
        /// The file.
        file: &'static str,
        /// Its length.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// A file is not strict JSON.
    #[error("{file} is not strict JSON")]
    Json {
        /// The file.
        file: &'static str,
        /// Why.
        #[source]
        cause: StrictError,
    },
    /// A file does not hold what it should.
    #[error("{file} does not hold what it should")]
    Shape {
        /// The file.
        file: &'static str,
        /// Why.
        #[source]
        cause: serde_json::Error,
    },
}

/// A job's spec and report with the digests of their bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    spec: JobSpec,
    spec_sha256: Sha256,
    report: RunReport,
    report_sha256: Sha256,
}

impl JobRecord {
    /// Reads a record from the bytes of its two files.
    ///
    /// # Errors
    /// [`RecordError`] if a file is too large, not strict JSON or of another shape.
    pub fn read(spec: &[u8], report: &[u8]) -> Result<Self, RecordError> {
        Ok(Self {
            spec: parse("spec.json", spec, SPEC_BYTES_MAX)?,
            spec_sha256: sha256(spec),
            report: parse("report.json", report, REPORT_BYTES_MAX)?,
            report_sha256: sha256(report),
        })
    }

    /// The job.
    pub fn spec(&self) -> &JobSpec {
        &self.spec
    }

    /// SHA-256 of the bytes of `spec.json`.
    pub fn spec_sha256(&self) -> Sha256 {
        self.spec_sha256
    }

    /// What was measured.
    pub fn report(&self) -> &RunReport {
        &self.report
    }

    /// SHA-256 of the bytes of `report.json`.
    pub fn report_sha256(&self) -> Sha256 {
        self.report_sha256
    }

    /// The run, if it may have provenance.
    ///
    /// # Errors
    /// [`Unclean`] with the first rule that the run breaks.
    pub fn clean(&self) -> Result<CleanRun<'_>, Unclean> {
        CleanRun::check(&self.spec, self.spec_sha256, &self.report)
    }
}

fn parse<T: DeserializeOwned>(file: &'static str, bytes: &[u8], max: u64) -> Result<T, RecordError> {
    let length = bytes.len() as u64;
    if length > max {
        return Err(RecordError::TooLarge { file, bytes: length, max });
    }
    let value = parse_strict(bytes).map_err(|cause| RecordError::Json { file, cause })?;
    serde_json::from_value(value).map_err(|cause| RecordError::Shape { file, cause })
}
