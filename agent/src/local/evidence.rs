//! Who signs, and the records of jobs whose own run could not sign them.

use super::follow::Note;
use super::place::Place;
use super::release::Evidence;
use super::runner::Runner;
use super::{LocalError, Options};
use crate::signing::{FileSigner, SigningError, public_of};
use crate::vault::{TransitKey, TransitSigner};
use ampoule_evidence::{
    AgentClaims, Authority, Issuer, RunRequest, SealError, Sealed, Signer, run_attestation, seal,
};
use ampoule_spec::wire::Recovered;
use ampoule_spec::{Code, Name, Sha256};
use std::path::{Path, PathBuf};

/// The claim that says which claims are not there.
const LEFT_OUT: &str = "left-out";

/// The key to sign with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SigningKey {
    /// The development key of the state directory, made on first use. Its builder is always `dev`.
    Development,
    /// A PKCS#8 PEM file.
    File(PathBuf),
    /// The same as a credential that systemd has handed over.
    Credential(PathBuf),
    /// A key of Vault's Transit, which this file names.
    Transit(PathBuf),
}

/// What has the private key.
#[derive(Debug)]
enum Holder {
    Here(FileSigner),
    Vault(TransitSigner),
}

impl Holder {
    fn signer(&self) -> &dyn Signer {
        match self {
            Self::Here(signer) => signer,
            Self::Vault(signer) => signer,
        }
    }
}

/// An open key and what it stands for.
#[derive(Debug)]
pub(crate) struct Signing {
    holder: Holder,
    pub(crate) issuer: Issuer,
    /// PEM, SubjectPublicKeyInfo.
    pub(crate) public_key: String,
    pub(crate) public_key_file: PathBuf,
}

/// Opens the key and writes the public one into the directory of keys, never beside what it vouches for.
pub(crate) fn open(key: &SigningKey, authority: &Authority, keys: &Path) -> Result<Signing, LocalError> {
    let (holder, development_key, name) = match key {
        SigningKey::Development => {
            let signer = FileSigner::load_or_create(&keys.join("development.pem"))?;
            (Holder::Here(signer), true, "development.pub".to_owned())
        }
        SigningKey::File(path) => (Holder::Here(FileSigner::load(path)?), false, String::new()),
        SigningKey::Credential(path) => {
            (Holder::Here(FileSigner::load_credential(path)?), false, String::new())
        }
        SigningKey::Transit(path) => {
            let opened = TransitKey::load(path).and_then(|key| TransitSigner::open(&key, keys));
            (Holder::Vault(opened.map_err(SigningError::Transit)?), false, String::new())
        }
    };
    let (pem, fingerprint) = public_of(holder.signer())
        .map_err(|e| LocalError::Evidence { code: Code::ProvenanceRefused, reason: e.to_string() })?;
    let name = if name.is_empty() { format!("{}.pub", file_name(&fingerprint)) } else { name };
    let public_key_file = keys.join(&name);
    let written = Place::open(keys).and_then(|keys| keys.replace(&name, pem.as_bytes()));
    written.map_err(|e| LocalError::file("the key directory", &public_key_file, &e))?;
    let issuer = Issuer { authority: authority.clone(), development_key };
    Ok(Signing { holder, issuer, public_key: pem, public_key_file })
}

/// A fingerprint's letters and digits alone.
fn file_name(fingerprint: &str) -> String {
    fingerprint.trim_start_matches("SHA256:").chars().filter(char::is_ascii_alphanumeric).collect()
}

impl Signing {
    pub(crate) fn signer(&self) -> &dyn Signer {
        self.holder.signer()
    }

    /// Signs the run attestation of a record. Claims with which it would be larger than anybody reads are left out, and it says
    /// so: spec and report are bounded, and without claims there is always one.
    pub(crate) fn attest_run(
        &self,
        evidence: &Evidence,
        provenance_sha256: Option<Sha256>,
    ) -> Result<Sealed, LocalError> {
        let refused = |code, reason: String| LocalError::Evidence { code, reason };
        let statement = |agent_claims: &AgentClaims| {
            let (record, issuer) = (&evidence.record, &self.issuer);
            let request = RunRequest { record, issuer, provenance_sha256, agent_claims };
            run_attestation(&request).map_err(|e| refused(e.code(), e.to_string()))
        };
        let too_large = match seal(&statement(&evidence.claims)?, self.signer()) {
            Err(SealError::TooLarge { bytes }) => bytes,
            other => return other.map_err(|e| refused(e.code(), e.to_string())),
        };
        let names: Vec<_> = evidence.claims.keys().map(|name| name.as_str()).collect();
        let left_out = format!("{}: with it the statement would have {too_large} bytes", names.join(", "));
        let left_out = Name::parse(LEFT_OUT).map(|name| AgentClaims::from([(name, left_out)]));
        seal(&statement(&left_out.unwrap_or_default())?, self.signer()).map_err(|e| match e {
            SealError::TooLarge { bytes } => {
                let reason =
                    format!("the run attestation has {bytes} bytes without any claim of the agent's");
                refused(Code::Internal, reason)
            }
            other => refused(other.code(), other.to_string()),
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::record::{record, recorded};
    use ampoule_evidence::{ATTESTATION_BYTES_MAX, Unstarted};
    use ampoule_spec::{Failure, UnixNanos};

    /// A job that ended with a message of so many bytes.
    fn evidence(message: usize) -> Evidence {
        let spec = serde_json::json!({
            "ampoule": 1, "id": "01890a5d-ac96-774b-bcce-b302099a8057", "attempt": 1, "name": "j", "profile": "hermetic",
            "image": {"kind": "host"}, "source_date_epoch": 1,
            "steps": [{"name": "s", "run": ["true"], "cwd": "/build", "timeout_ms": 1000}],
        });
        let failure = Failure::new(Code::JobCancelled, "m".repeat(message));
        let end = Unstarted { acknowledged: UnixNanos(1), ended: UnixNanos(2), failure };
        Evidence::unstarted(serde_json::to_vec(&spec).unwrap(), &end).unwrap()
    }

    fn claims(bytes: usize) -> AgentClaims {
        AgentClaims::from([(Name::parse("downloads").unwrap(), "d".repeat(bytes))])
    }

    #[test]
    fn job_with_claims_of_any_size_ends_in_a_record_that_can_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::parse("https://ampoule.example").unwrap();
        std::fs::create_dir(dir.path().join("keys")).unwrap();
        let signing = open(&SigningKey::Development, &authority, &dir.path().join("keys")).unwrap();
        // As large as a report may be, with what else is in it; and claims up to and over the end.
        let full = usize::try_from(ampoule_spec::REPORT_BYTES_MAX).unwrap() - 4096;
        let room = ATTESTATION_BYTES_MAX / 4 * 3 - full;
        for (message, claimed, whole) in [
            (10, 100, true),
            (full, room - (8 << 10), true),
            (full, room, false),
            (10, ATTESTATION_BYTES_MAX, false),
        ] {
            let evidence = evidence(message).with_claims(claims(claimed));
            let id = evidence.record.spec().id.as_str();
            let record_dir = dir.path().join(format!("{message}-{claimed}")).join(id);
            std::fs::create_dir(record_dir.parent().unwrap()).unwrap();
            record(&evidence, &record_dir, &signing).unwrap();
            let found = recorded(&record_dir).unwrap().unwrap();
            assert!(found.attestation.len() <= ATTESTATION_BYTES_MAX);
            let envelope: serde_json::Value = serde_json::from_slice(&found.attestation).unwrap();
            let payload = base64::Engine::decode(
                &base64::engine::general_purpose::STANDARD,
                envelope["payload"].as_str().unwrap(),
            );
            let statement: serde_json::Value = serde_json::from_slice(&payload.unwrap()).unwrap();
            let said = &statement["predicate"]["agentClaims"];
            assert_eq!(said["downloads"].is_string(), whole, "{message} {claimed}");
            let left_out = said["left-out"].as_str().unwrap_or_default();
            assert_eq!(left_out.starts_with("downloads: with it"), !whole, "{left_out}");
        }
    }
}
