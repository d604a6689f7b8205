//! Which content a project has: an empty record for each.

use super::{ContentError, Result, name};
use crate::shelf::{NotPut, Shelf};
use ampoule_spec::wire::Content;
use ampoule_spec::{Code, Name};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The records of all projects.
#[derive(Debug)]
pub(super) struct Known(Shelf);

impl Known {
    pub(super) fn open(dir: &OwnedFd, max: u64) -> std::io::Result<Self> {
        Ok(Self(Shelf::below(dir, "known", max)?))
    }

    /// Whether the project has it. Counts as a use.
    pub(super) fn has(&self, project: &Name, content: &Content) -> bool {
        self.0.has(project, &name::of_content(content))
    }

    /// Records it. Durable when it returns.
    pub(super) fn record(&self, project: &Name, content: &Content) -> Result<()> {
        if self.has(project, content) {
            return Ok(());
        }
        self.0.put(project, &name::of_content(content), b"").map_err(not_put)
    }

    /// Removes what was not used for so long.
    pub(super) fn sweep(&self, age: Duration) {
        self.0.sweep(age);
    }
}

/// Why a record of a project is not put.
pub(super) fn not_put(error: NotPut) -> ContentError {
    match error {
        NotPut::TooMany(_) => ContentError::new(Code::AdmissionBusy, error.to_string()),
        NotPut::Io(error) => ContentError::io("the record of a content", error),
    }
}
