//! What a run left, and what is held against it.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) program: PathBuf,
    pub(crate) status: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) out: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) took: Duration,
}

/// How a job is expected to have ended: outcome, code, exit status.
pub(crate) struct Ending(pub(crate) &'static str, pub(crate) &'static str, pub(crate) i32);

impl Ran {
    /// Holds the exit status against what is expected; says what the program said if it differs.
    pub(crate) fn exits(self, status: i32) -> Result<Self> {
        let Self { status: found, signal, .. } = self;
        ensure!(
            found == Some(status),
            "exit status {found:?} (signal {signal:?}), expected {status}; stderr:\n{}",
            self.stderr
        );
        Ok(self)
    }

    /// Holds standard error against texts that it must hold.
    pub(crate) fn says(self, texts: &[&str]) -> Result<Self> {
        for text in texts {
            ensure!(self.stderr.contains(text), "stderr does not hold {text:?}:\n{}", self.stderr);
        }
        Ok(self)
    }

    /// Whether it told of a job that was admitted.
    pub(crate) fn was_admitted(&self) -> bool {
        self.stderr.lines().any(|line| line.starts_with("job ") && line.ends_with(" admitted"))
    }

    pub(crate) fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The JSON objects on standard output, one a line.
    pub(crate) fn json_lines(&self) -> Result<Vec<Value>> {
        let text = self.stdout_text();
        text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    pub(crate) fn evidence(&self, name: &str) -> PathBuf {
        self.out.join("evidence").join(name)
    }

    pub(crate) fn output(&self, name: &str) -> Result<Vec<u8>> {
        read(&self.out.join("outputs").join(name))
    }

    pub(crate) fn output_text(&self, name: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.output(name)?).into_owned())
    }

    /// The bytes of a log, by its file name.
    pub(crate) fn log(&self, name: &str) -> Result<Vec<u8>> {
        read(&self.out.join("evidence/logs").join(name))
    }

    pub(crate) fn log_text(&self, name: &str) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.log(name)?).into_owned())
    }

    pub(crate) fn result(&self) -> Result<Value> {
        json(&self.evidence("result.json"))
    }

    pub(crate) fn report(&self) -> Result<Value> {
        json(&self.evidence("report.json"))
    }

    /// The statement inside an envelope of the evidence.
    pub(crate) fn statement(&self, name: &str) -> Result<Value> {
        statement(&self.evidence(name))
    }

    /// Checks everything that holds for every job that was admitted, and that it ended so.
    pub(crate) fn ended(self, ending: &Ending) -> Result<Self> {
        let Ending(outcome, code, exit) = *ending;
        let ran = self.exits(exit)?;
        let result = ran.result()?;
        equal("result.json outcome", &result["outcome"], &Value::from(outcome))?;
        equal("result.json exit", &result["exit"], &Value::from(exit))?;
        let code = if code.is_empty() { Value::Null } else { Value::from(code) };
        equal("result.json code", &result["code"], &code)?;
        let retryable = Value::from(exit == 75);
        equal("result.json retryable", &result["retryable"], &retryable)?;
        equal("fault is named with the code", &result["fault"].is_null(), &code.is_null())?;
        let report = ran.report()?;
        equal("report.json outcome", &report["outcome"], &Value::from(outcome))?;
        let checks = report["teardown"]["checks"].as_array().context("no teardown in the report")?;
        let in_state = |state: &str| checks.iter().filter(|c| c["state"] == state).collect::<Vec<_>>();
        ensure!(!in_state("gone").is_empty(), "no check after destruction showed that something is gone");
        let left = in_state("left");
        ensure!(left.is_empty(), "left behind: {left:?}");
        if outcome == "succeeded" {
            equal("attestation", &result["attestation"].is_string(), &true)?;
        } else {
            equal("attestation", &result["attestation"], &Value::from("run.intoto.jsonl"))?;
            ran.has_no_provenance()?;
        }
        ran.verifies_as_run(&ran.out.join("evidence"))?;
        let run = ran.statement("run.intoto.jsonl")?;
        equal("outcome in the run attestation", &run["predicate"]["outcome"], &Value::from(outcome))?;
        Ok(ran)
    }

    /// Only the run attestation may be signed.
    pub(crate) fn has_no_provenance(&self) -> Result<()> {
        let names = crate::lab::tree(&self.out.join("evidence"))?;
        let signed = |n: &&String| n.ends_with(".intoto.jsonl") || n.ends_with(".sigstore.json");
        let signed: Vec<_> = names.iter().filter(signed).collect();
        ensure!(signed == ["run.intoto.jsonl"], "signed although the job did not succeed: {signed:?}");
        Ok(())
    }

    /// The run attestation in a directory verifies for the report and every stream beside it.
    pub(crate) fn verifies_as_run(&self, dir: &Path) -> Result<()> {
        let mut files = vec![dir.join("report.json")];
        for entry in fs::read_dir(dir.join("logs")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Of a stream whose middle is cut only the record has the digest; `.log` is both streams together.
            let is_stream = name.ends_with(".stdout") || name.ends_with(".stderr");
            if is_stream && fs::metadata(entry.path())?.len() <= 64 << 10 {
                files.push(entry.path());
            }
        }
        for file in files {
            let verified =
                verify(&self.program, &file, &dir.join("run.intoto.jsonl"), &self.key, &["--run"])?;
            ensure!(verified.0 == Some(0), "{}: {}", file.display(), verified.1);
        }
        Ok(())
    }

    /// Provenance verifies for an output in both forms.
    pub(crate) fn verifies_output(&self, name: &str) -> Result<()> {
        let file = self.out.join("outputs").join(name);
        for form in ["intoto.jsonl", "sigstore.json"] {
            let attestation = self.evidence(&format!("{name}.{form}"));
            let (status, said) = verify(&self.program, &file, &attestation, &self.key, &[])?;
            ensure!(status == Some(0), "{}: {said}", attestation.display());
        }
        Ok(())
    }

    pub(crate) fn step<'v>(&self, report: &'v Value, number: usize) -> Result<&'v Value> {
        report["steps"].get(number).with_context(|| format!("no step {number} in the report"))
    }
}

/// `ampoule verify`, with development builders allowed: its exit status and what it said.
pub(crate) fn verify(
    program: &Path,
    file: &Path,
    attestation: &Path,
    key: &Path,
    more: &[&str],
) -> Result<(Option<i32>, String)> {
    let done = Command::new(program)
        .arg("verify")
        .arg(file)
        .arg("--attestation")
        .arg(attestation)
        .arg("--key")
        .arg(key)
        .arg("--allow-dev")
        .args(more)
        .output()?;
    Ok((done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned()))
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

pub(crate) fn json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&read(path)?).with_context(|| path.display().to_string())
}

/// The statement inside an envelope.
pub(crate) fn statement(path: &Path) -> Result<Value> {
    use base64::Engine as _;
    let envelope = json(path)?;
    let payload = envelope["payload"].as_str().context("no payload")?;
    Ok(serde_json::from_slice(&base64::prelude::BASE64_STANDARD.decode(payload)?)?)
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Equality that says what it compared.
pub(crate) fn equal<T: PartialEq + std::fmt::Debug + ?Sized>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<()> {
    ensure!(found == expected, "{what}:\n   found {found:?}\nexpected {expected:?}");
    Ok(())
}

/// That one of a directory's files, or a name in it, holds a text.
pub(crate) fn anything_holds(dir: &Path, text: &[u8]) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        let kind = entry.file_type()?;
        let found = if kind.is_dir() {
            anything_holds(&path, text)?
        } else if kind.is_file() {
            let bytes = read(&path)?;
            bytes.windows(text.len()).any(|w| w == text).then_some(path)
        } else {
            None
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// `name=value` lines as the probe prints them.
pub(crate) fn said<'t>(text: &'t str, name: &str) -> Result<&'t str> {
    let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    match found {
        Some(value) => Ok(value),
        None => bail!("the probe did not say {name}:\n{text}"),
    }
}
