//! Who signs, and the records of jobs whose own run could not sign them.

use super::follow::Note;
use super::place::Place;
use super::release::Evidence;
use super::runner::Runner;
use super::{LocalError, Options};
use crate::signing::FileSigner;
use ampoule_evidence::{Authority, Issuer, RunRequest, Sealed, Signer, run_attestation, seal};
use ampoule_spec::Sha256;
use ampoule_spec::wire::Recovered;
use std::path::{Path, PathBuf};

/// The key to sign with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SigningKey {
    /// The development key of the state directory, made on first use. Its builder is always `dev`.
    Development,
    /// A PKCS#8 PEM file.
    File(PathBuf),
    /// The same as a credential that systemd has handed over.
    Credential(PathBuf),
}

/// An open key and what it stands for.
#[derive(Debug)]
pub(crate) struct Signing {
    signer: FileSigner,
    pub(crate) issuer: Issuer,
    /// PEM, SubjectPublicKeyInfo.
    pub(crate) public_key: String,
    pub(crate) public_key_file: PathBuf,
}

/// Opens the key and writes the public one into the directory of keys, never beside what it vouches for.
pub(crate) fn open(key: &SigningKey, authority: &Authority, keys: &Path) -> Result<Signing, LocalError> {
    let (signer, development_key, name) = match key {
        SigningKey::Development => {
            let signer = FileSigner::load_or_create(&keys.join("development.pem"))?;
            (signer, true, "development.pub".to_owned())
        }
        SigningKey::File(path) => (FileSigner::load(path)?, false, String::new()),
        SigningKey::Credential(path) => (FileSigner::load_credential(path)?, false, String::new()),
    };
    let (pem, fingerprint) = signer.public().map_err(|e| LocalError::Evidence {
        code: ampoule_spec::Code::ProvenanceRefused,
        reason: e.to_string(),
    })?;
    let name = if name.is_empty() { format!("{}.pub", file_name(&fingerprint)) } else { name };
    let public_key_file = keys.join(&name);
    let written = Place::open(keys).and_then(|keys| keys.replace(&name, pem.as_bytes()));
    written.map_err(|e| LocalError::file("the key directory", &public_key_file, &e))?;
    let issuer = Issuer { authority: authority.clone(), development_key };
    Ok(Signing { signer, issuer, public_key: pem, public_key_file })
}

/// A fingerprint's letters and digits alone.
fn file_name(fingerprint: &str) -> String {
    fingerprint.trim_start_matches("SHA256:").chars().filter(char::is_ascii_alphanumeric).collect()
}

impl Signing {
    pub(crate) fn signer(&self) -> &dyn Signer {
        &self.signer
    }

    /// Signs the run attestation of a record.
    pub(crate) fn attest_run(
        &self,
        evidence: &Evidence,
        provenance_sha256: Option<Sha256>,
    ) -> Result<Sealed, LocalError> {
        let refused = |code, reason: String| LocalError::Evidence { code, reason };
        let request = RunRequest {
            record: &evidence.record,
            issuer: &self.issuer,
            provenance_sha256,
            agent_claims: &evidence.claims,
        };
        let statement = run_attestation(&request).map_err(|e| refused(e.code(), e.to_string()))?;
        seal(&statement, self.signer()).map_err(|e| refused(e.code(), e.to_string()))
    }
}

/// Signs what an earlier run could not: every admitted job ends in one signed record. What fails here is
/// tried again by the next run.
pub(super) fn sign_recovered(
    runner: &mut Runner,
    options: &Options,
    signing: &Signing,
    recovered: &Recovered,
    say: &mut dyn FnMut(Note),
) {
    let job = &recovered.job;
    let record = options.state.join("records").join(job.as_str());
    let job_dir = options.state.join("jobs").join(job.as_str());
    let signed = Evidence::read(&job_dir).and_then(|evidence| {
        let sealed = signing.attest_run(&evidence, None)?;
        evidence.write_record(&job_dir, &record, &sealed)?;
        Ok(evidence.record.report().outcome)
    });
    let outcome = match signed {
        Ok(outcome) => {
            let _ = runner.forget(job);
            Some(outcome)
        }
        Err(_) => None,
    };
    say(Note::Recovered { job: job.clone(), removed: recovered.removed.clone(), outcome, record });
}
