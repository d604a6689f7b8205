//! Writes the golden files of `testdata/golden` anew: `cargo run -p ampoule-evidence --example golden -- DIR`.
//!
//! The key is the one of `testdata`, which signs nothing but this.
#![allow(clippy::unwrap_used, reason = "a tool for developers; a panic is its error message")]

use ampoule_evidence::{
    AgentClaims, Authority, Issuer, JobRecord, RunRequest, Sealed, Signer, SignerError, provenance,
    run_attestation, seal,
};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::path::Path;

const SPEC: &[u8] = include_bytes!("../testdata/spec.json");
const REPORT: &[u8] = include_bytes!("../testdata/report.json");
const KEY: &str = include_str!("../testdata/signing-key.pem");
const KEY_PUB: &str = include_str!("../testdata/signing-key.pub.pem");

struct FileSigner {
    pair: EcdsaKeyPair,
    spki: Vec<u8>,
}

impl Signer for FileSigner {
    fn public_key_spki_der(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, pae: &[u8]) -> Result<Vec<u8>, SignerError> {
        let refused = |_| SignerError { reason: "no randomness".to_owned() };
        self.pair.sign(&SystemRandom::new(), pae).map(|s| s.as_ref().to_vec()).map_err(refused)
    }
}

fn der(pem: &str) -> Vec<u8> {
    STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap()
}

fn write(dir: &Path, name: &str, sealed: &Sealed) {
    std::fs::write(dir.join(format!("{name}.intoto.jsonl")), &sealed.envelope_json_line).unwrap();
    std::fs::write(dir.join(format!("{name}.sigstore.json")), &sealed.bundle_json).unwrap();
}

fn main() {
    let dir = std::env::args_os().nth(1).unwrap();
    let dir = Path::new(&dir);
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der(KEY)).unwrap();
    let signer = FileSigner { pair, spki: der(KEY_PUB) };
    let issuer =
        Issuer { authority: Authority::parse("https://ampoule.example").unwrap(), development_key: false };
    let record = JobRecord::read(SPEC, REPORT).unwrap();
    let provenance = provenance(&record.clean().unwrap(), &issuer, record.report_sha256()).unwrap();
    std::fs::write(dir.join("provenance.json"), provenance.bytes()).unwrap();
    write(dir, "libz.a", &seal(&provenance, &signer).unwrap());
    let claims = AgentClaims::from([(ampoule_spec::Name::parse("caller").unwrap(), "ci.example".to_owned())]);
    let request = RunRequest {
        record: &record,
        issuer: &issuer,
        provenance_sha256: Some(provenance.sha256()),
        agent_claims: &claims,
    };
    let run = run_attestation(&request).unwrap();
    std::fs::write(dir.join("run.json"), run.bytes()).unwrap();
    write(dir, "run", &seal(&run, &signer).unwrap());
}
