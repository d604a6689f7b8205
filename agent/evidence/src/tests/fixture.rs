//! One job's record, keys, and a way to sign what this crate itself would never sign.

use crate::seal::seal_bytes;
use crate::*;
use ampoule_spec::Sha256;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::collections::BTreeMap;

pub(crate) const SPEC: &[u8] = include_bytes!("../../testdata/spec.json");
pub(crate) const REPORT: &[u8] = include_bytes!("../../testdata/report.json");
pub(crate) const KEY: &str = include_str!("../../testdata/signing-key.pem");
pub(crate) const KEY_PUB: &str = include_str!("../../testdata/signing-key.pub.pem");
pub(crate) const OTHER_KEY: &str = include_str!("../../testdata/other-key.pem");

/// A key for tests, read from PKCS#8 in PEM.
pub(crate) struct TestSigner {
    pair: EcdsaKeyPair,
    spki: Vec<u8>,
}

impl TestSigner {
    pub(crate) fn new(pem: &str) -> Self {
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let der = STANDARD.decode(body).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der).unwrap();
        let point = aws_lc_rs::signature::KeyPair::public_key(&pair).as_ref().to_vec();
        let head = STANDARD.decode("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgA=").unwrap();
        Self { pair, spki: [head, point].concat() }
    }

    pub(crate) fn key(&self) -> PublicKey {
        PublicKey::from_spki_der(&self.spki).unwrap()
    }
}

impl Signer for TestSigner {
    fn public_key_spki_der(&self) -> &[u8] {
        &self.spki
    }

    fn sign(&self, pae: &[u8]) -> Result<Vec<u8>, SignerError> {
        let refused = |_| SignerError { reason: "no randomness".to_owned() };
        self.pair.sign(&SystemRandom::new(), pae).map(|s| s.as_ref().to_vec()).map_err(refused)
    }
}

pub(crate) fn record() -> JobRecord {
    JobRecord::read(SPEC, REPORT).unwrap()
}

/// A record after changes to the JSON of its spec and report; the report names the new spec.
pub(crate) fn changed(change: impl FnOnce(&mut Value, &mut Value)) -> JobRecord {
    let mut spec: Value = serde_json::from_slice(SPEC).unwrap();
    let mut report: Value = serde_json::from_slice(REPORT).unwrap();
    change(&mut spec, &mut report);
    let spec = serde_json::to_vec(&spec).unwrap();
    report["spec"] = crate::statement::sha256(&spec).to_string().into();
    JobRecord::read(&spec, &serde_json::to_vec(&report).unwrap()).unwrap()
}

pub(crate) fn issuer() -> Issuer {
    Issuer { authority: Authority::parse("https://ampoule.example").unwrap(), development_key: false }
}

pub(crate) fn provenance_of(record: &JobRecord, issuer: &Issuer) -> UnsignedStatement {
    provenance(&record.clean().unwrap(), issuer, record.report_sha256()).unwrap()
}

pub(crate) fn run_of(record: &JobRecord, issuer: &Issuer) -> Result<UnsignedStatement, RunRefused> {
    run_attestation(&RunRequest {
        record,
        issuer,
        provenance_sha256: None,
        agent_claims: &AgentClaims::new(),
    })
}

pub(crate) fn statement_json() -> Value {
    serde_json::from_slice(provenance_of(&record(), &issuer()).bytes()).unwrap()
}

pub(crate) fn run_json() -> Value {
    serde_json::from_slice(run_of(&record(), &issuer()).unwrap().bytes()).unwrap()
}

/// Signs any JSON: what an attacker with the key could write.
pub(crate) fn sign_json(value: &Value) -> Sealed {
    sign_bytes(&serde_json::to_vec(value).unwrap())
}

pub(crate) fn sign_bytes(bytes: &[u8]) -> Sealed {
    seal_bytes(bytes, &TestSigner::new(KEY)).unwrap()
}

/// SHA-256 of the output `libz.a`.
pub(crate) fn artifact() -> Sha256 {
    record().report().outputs[0].sha256
}

/// What a reader asks by default.
pub(crate) struct Reader {
    pub(crate) trusted: Vec<TrustedKey>,
    pub(crate) artifact: Sha256,
    pub(crate) tree: bool,
    pub(crate) kind: Kind,
    pub(crate) builder: Option<String>,
    pub(crate) source: Option<String>,
    pub(crate) params: BTreeMap<String, String>,
    pub(crate) allow_dev: bool,
}

impl Reader {
    pub(crate) fn new() -> Self {
        Self {
            trusted: vec![TrustedKey {
                builder_id: Some("https://ampoule.example/builders/hermetic/v1".to_owned()),
                ..TrustedKey::any(PublicKey::from_pem(KEY_PUB).unwrap())
            }],
            artifact: artifact(),
            tree: false,
            kind: Kind::Provenance,
            builder: None,
            source: None,
            params: BTreeMap::new(),
            allow_dev: false,
        }
    }

    pub(crate) fn of_run() -> Self {
        Self { kind: Kind::Run, artifact: record().report_sha256(), ..Self::new() }
    }

    pub(crate) fn verify(&self, attestation: &[u8]) -> Result<Verified, VerifyError> {
        verify(&VerifyRequest {
            attestation,
            trusted: &self.trusted,
            artifact: self.artifact,
            tree: self.tree,
            kind: self.kind,
            builder: self.builder.as_deref(),
            source: self.source.as_deref(),
            params: &self.params,
            allow_dev: self.allow_dev,
        })
    }
}

/// The variant of an error, as in `Field(buildDefinition.…)` or `Subject(Twice)`.
pub(crate) fn variant(error: &VerifyError) -> String {
    let debug = match error {
        VerifyError::Field(field) => return format!("Field({})", field.field),
        VerifyError::Envelope(inner) => format!("Envelope({inner:?}"),
        VerifyError::Subject(inner) => format!("Subject({inner:?}"),
        other => format!("{other:?}"),
    };
    let end = debug.find([' ', '{']).unwrap_or(debug.len());
    let head = debug[..end].split("(Json").next().unwrap_or_default();
    match head.find('(') {
        Some(_) if !debug.starts_with("Envelope") && !debug.starts_with("Subject") => {
            head.split('(').next().unwrap_or_default().to_owned()
        }
        Some(at) => {
            format!("{}({})", &head[..at], head[at + 1..].split('(').next().unwrap().trim_end_matches(')'))
        }
        None if debug.starts_with("Envelope(Json") => "Envelope(Json)".to_owned(),
        None => head.to_owned(),
    }
}
