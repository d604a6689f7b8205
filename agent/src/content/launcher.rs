//! The importer of a host: a launcher that listens. A connection for each piece of work, so that a long one holds nobody up.

use super::import::{ImportError, Importer};
use crate::local::{Runner, RunnerError};
use ampoule_spec::wire::{Content, Imported};
use std::fs::File;
use std::path::PathBuf;

/// Where a launcher listens.
#[derive(Debug, Clone)]
pub struct Launcher(pub PathBuf);

impl From<RunnerError> for ImportError {
    fn from(error: RunnerError) -> Self {
        Self { code: error.code(), message: crate::chain::chain(&error) }
    }
}

impl Importer for Launcher {
    fn present(&self, contents: &[Content]) -> Result<Vec<bool>, ImportError> {
        let runner = Runner::connect(&self.0)?;
        contents.iter().map(|content| Ok(runner.find(content.clone())?.is_some())).collect()
    }

    fn import(&self, content: Content, bytes: File) -> Result<Imported, ImportError> {
        Ok(Runner::connect(&self.0)?.import(content, bytes.into())?)
    }
}
