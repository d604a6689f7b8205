//! Cases of a policy: inputs and what is expected, as files.

use super::policy::{Decision, Policy, PolicyError};
use crate::files::read_file;
use serde::Deserialize;
use std::path::Path;

/// The most bytes of one file of cases.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    input: serde_json::Value,
    allow: bool,
}

/// What became of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseResult {
    /// The file and the case's name.
    pub name: String,
    /// What was expected.
    pub expected: bool,
    /// What the policy said.
    pub decision: Decision,
}

impl CaseResult {
    /// Whether the policy said what was expected. One that failed has not said no.
    pub fn holds(&self) -> bool {
        match self.decision {
            Decision::Allowed => self.expected,
            Decision::Denied => !self.expected,
            Decision::Failed(_) => false,
        }
    }
}

/// Asks the policy in `dir` all cases of `DIR/cases/*.json`, in the order of the files' names.
///
/// # Errors
/// [`PolicyError`]: a policy that cannot be used, a file that is none of cases, or no case at all.
pub fn run_cases(dir: &Path) -> Result<Vec<CaseResult>, PolicyError> {
    let policy = Policy::load(dir)?;
    let cases = dir.join("cases");
    let cannot = |e: std::io::Error| PolicyError::new(&cases, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&cases).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.extension().is_some_and(|end| end == "json") {
            files.push(path);
        }
    }
    files.sort();
    let mut results = Vec::new();
    for path in &files {
        let bytes = read_file(path, FILE_BYTES_MAX).map_err(|e| PolicyError::new(path, e))?;
        let list: Vec<Case> = serde_json::from_slice(&bytes).map_err(|e| PolicyError::new(path, e))?;
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        results.extend(list.into_iter().map(|case| CaseResult {
            name: format!("{file}: {}", case.name),
            expected: case.allow,
            decision: policy.decide_json(&case.input),
        }));
    }
    if results.is_empty() {
        return Err(PolicyError::new(&cases, "there are no cases: write a file *.json"));
    }
    Ok(results)
}
