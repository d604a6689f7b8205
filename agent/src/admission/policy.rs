//! One policy: Rego files and data, evaluated by `regorus` within a time.

use super::question::Question;
use crate::export::sha256_of;
use crate::files::read_operators;
use ampoule_spec::Sha256;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The one rule that decides.
const ENTRY: &str = "data.ampoule.authz.allow";
/// How long one question may take.
const TIME_MAX: Duration = Duration::from_millis(500);
/// How many steps of work pass between looks at the clock.
const CHECK_EVERY: NonZeroU32 = NonZeroU32::new(64).unwrap();
/// The most files of a policy.
const FILES_MAX: usize = 64;
/// The largest input. A request may have 32 labels of 256 bytes, a token 16 KiB of claims; JSON escapes may make each byte six.
const INPUT_BYTES_MAX: usize = 256 << 10;

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct PolicyError {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong, and what to do.
    pub reason: String,
}

impl PolicyError {
    pub(super) fn new(path: &Path, reason: impl ToString) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// What a policy has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Yes.
    Allowed,
    /// No, or nothing.
    Denied,
    /// It failed, for this reason; that is a no.
    Failed(String),
}

/// A policy that was read and answers.
#[derive(Clone)]
pub struct Policy {
    engine: Engine,
    sha256: Sha256,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Policy")
    }
}

impl Policy {
    /// Reads `DIR/*.rego` and `DIR/data.json`.
    ///
    /// # Errors
    /// [`PolicyError`]: a file that cannot be read or is no policy; a policy without `data.ampoule.authz.allow`, or one that
    /// allows a question without a caller.
    pub fn load(dir: &Path) -> Result<Self, PolicyError> {
        let mut all = Vec::new();
        let mut engine = Engine::new();
        engine.set_strict_builtin_errors(true);
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: TIME_MAX,
            check_interval: CHECK_EVERY,
        });
        let files = rego_files(dir)?;
        if files.is_empty() {
            return Err(PolicyError::new(dir, "there is no policy: write a file *.rego"));
        }
        for path in &files {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let text = text(path)?;
            note(&mut all, &name, &text);
            engine.add_policy(name, text).map_err(|e| PolicyError::new(path, first_lines(&e)))?;
        }
        let data = dir.join("data.json");
        if data.exists() {
            let text = text(&data)?;
            note(&mut all, "data.json", &text);
            engine.add_data_json(&text).map_err(|e| PolicyError::new(&data, first_lines(&e)))?;
        }
        let mut policy = Self { engine, sha256: sha256_of(&all) };
        match policy.engine.eval_rule(ENTRY.to_owned()) {
            Ok(Value::Bool(true)) => {
                let reason = format!("{ENTRY} allows a question without a caller, and so everything");
                Err(PolicyError::new(dir, reason))
            }
            Ok(_) => Ok(policy),
            Err(e) => Err(PolicyError::new(dir, format!("{ENTRY} cannot be asked: {}", first_lines(&e)))),
        }
    }

    /// SHA-256 of its files in their order, each as its name, a zero byte, its length as eight bytes, the first the lowest, and its text.
    pub fn sha256(&self) -> Sha256 {
        self.sha256
    }

    /// Asks the policy.
    pub fn decide(&self, question: &Question<'_>) -> Decision {
        self.decide_json(&question.input())
    }

    /// Asks the policy about an input as it would be computed.
    pub fn decide_json(&self, input: &serde_json::Value) -> Decision {
        let text = input.to_string();
        if text.len() > INPUT_BYTES_MAX {
            return Decision::Failed(format!("the question has more than {INPUT_BYTES_MAX} bytes"));
        }
        let mut engine = self.engine.clone();
        let asked = engine.set_input_json(&text).and_then(|()| engine.eval_rule(ENTRY.to_owned()));
        match asked {
            Ok(Value::Bool(true)) => Decision::Allowed,
            Ok(Value::Bool(false) | Value::Undefined) => Decision::Denied,
            Ok(_) => Decision::Failed(format!("{ENTRY} is neither true nor false")),
            Err(e) => Decision::Failed(first_lines(&e)),
        }
    }
}

/// Adds a file to what the policy's digest is of.
fn note(all: &mut Vec<u8>, name: &str, text: &str) {
    all.extend_from_slice(name.as_bytes());
    all.push(0);
    all.extend_from_slice(&(text.len() as u64).to_le_bytes());
    all.extend_from_slice(text.as_bytes());
}

/// The policy's files in the order of their names.
fn rego_files(dir: &Path) -> Result<Vec<PathBuf>, PolicyError> {
    let cannot = |e: std::io::Error| PolicyError::new(dir, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if path.extension().is_some_and(|end| end == "rego") {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            return Err(PolicyError::new(dir, format!("more than {FILES_MAX} files")));
        }
    }
    files.sort();
    Ok(files)
}

/// A file of a policy.
fn text(path: &Path) -> Result<String, PolicyError> {
    read_operators(path).map_err(|e| PolicyError::new(path, e.reason))
}

/// The engine's errors show the place with several lines; the first ones say it.
fn first_lines(error: &impl ToString) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).take(6).collect();
    lines.join(" ").chars().take(500).collect()
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
