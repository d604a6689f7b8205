//! Another job's output is used only when its provenance says so.

use super::fixture::{
    KEY, KEY_PUB, OTHER_KEY, TestSigner, artifact, issuer, provenance_of, record, run_of, sign_json,
    statement_json,
};
use crate::{Issuer, Made, MadeByError, MadeByRequest, PublicKey, TrustedKey, made_by, seal};
use ampoule_spec::Code;
use serde_json::json;

const BUILDER: &str = "https://ampoule.example/builders/hermetic/v1";

fn trusted() -> Vec<TrustedKey> {
    vec![TrustedKey {
        builder_id: Some(BUILDER.to_owned()),
        ..TrustedKey::any(PublicKey::from_pem(KEY_PUB).unwrap())
    }]
}

fn ask<'a>(attestation: &'a str, trusted: &'a [TrustedKey]) -> MadeByRequest<'a> {
    let attestation = attestation.as_bytes();
    MadeByRequest { attestation, trusted, subject: Some("libz.a"), builder: None, allow_dev: false }
}

#[test]
fn made_by_good_provenance_names_digest_job_and_builder_in_both_forms() {
    let sealed = seal(&provenance_of(&record(), &issuer()), &TestSigner::new(KEY)).unwrap();
    let trusted = trusted();
    for form in [&sealed.envelope_json_line, &sealed.bundle_json] {
        let Made { sha256, tree, by } = made_by(&ask(form, &trusted)).unwrap();
        assert_eq!((sha256, tree), (artifact(), false));
        assert_eq!(by.builder, BUILDER);
        assert_eq!(by.job, record().spec().id);
        assert_eq!(by.subject.as_str(), "libz.a");
        assert_eq!(by.key, trusted[0].key.fingerprint());
        assert_eq!(by.statement, provenance_of(&record(), &issuer()).sha256());
    }
}

#[test]
fn made_by_refuses_what_verify_refuses() {
    let sealed = seal(&provenance_of(&record(), &issuer()), &TestSigner::new(KEY)).unwrap();
    let envelope = &sealed.envelope_json_line;
    let ours = trusted();
    let code = |request: &MadeByRequest<'_>| made_by(request).unwrap_err().code();
    let others = [TrustedKey::any(TestSigner::new(OTHER_KEY).key())];
    assert_eq!(code(&ask(envelope, &others)), Code::VerifyRefused);
    assert_eq!(code(&ask(envelope, &[])), Code::VerifyRefused);
    let elsewhere =
        MadeByRequest { builder: Some("https://else.example/builders/hermetic/v1"), ..ask(envelope, &ours) };
    assert_eq!(code(&elsewhere), Code::VerifyRefused);
    assert_eq!(code(&ask("{}", &ours)), Code::VerifyRefused);
    assert_eq!(code(&ask(&"x".repeat(17 << 20), &ours)), Code::VerifyRefused);
    // Not of a run attestation: it has no outputs as subjects.
    let run = seal(&run_of(&record(), &issuer()).unwrap(), &TestSigner::new(KEY)).unwrap();
    let record = MadeByRequest { subject: Some("report.json"), ..ask(&run.envelope_json_line, &ours) };
    assert_eq!(code(&record), Code::VerifyRefused);
    // Somebody who has the key but breaks a rule.
    let mut forged = statement_json();
    forged["subject"][0]["digest"] = json!({"sha256": "00".repeat(32), "sha512": "00"});
    assert_eq!(code(&ask(&sign_json(&forged).envelope_json_line, &ours)), Code::VerifyRefused);
}

#[test]
fn made_by_wants_one_subject_or_its_name() {
    let sealed = seal(&provenance_of(&record(), &issuer()), &TestSigner::new(KEY)).unwrap();
    let ours = trusted();
    let request = ask(&sealed.envelope_json_line, &ours);
    let error = made_by(&MadeByRequest { subject: None, ..request }).unwrap_err();
    assert!(matches!(&error, MadeByError::Several { has } if has.contains("libz.so.1.3.1")), "{error}");
    let error = made_by(&MadeByRequest { subject: Some("libx.a"), ..request }).unwrap_err();
    assert!(matches!(&error, MadeByError::NoSubject { .. }), "{error}");
    assert_eq!(error.code(), Code::JobInvalid);
}

#[test]
fn made_by_says_whether_it_is_a_directory() {
    let record = super::trees::record_of("tree", None);
    let sealed = seal(&provenance_of(&record, &issuer()), &TestSigner::new(KEY)).unwrap();
    let ours = trusted();
    let made = made_by(&MadeByRequest { subject: Some("libz.a"), ..ask(&sealed.envelope_json_line, &ours) });
    let made = made.unwrap();
    assert!(made.tree, "{made:?}");
    assert_eq!(made.sha256, artifact());
}

#[test]
fn made_by_takes_a_dev_builder_only_when_told() {
    let issuer = Issuer { development_key: true, ..issuer() };
    let sealed = seal(&provenance_of(&record(), &issuer), &TestSigner::new(KEY)).unwrap();
    let ours = [TrustedKey::any(PublicKey::from_pem(KEY_PUB).unwrap())];
    let request = ask(&sealed.envelope_json_line, &ours);
    assert_eq!(made_by(&request).unwrap_err().code(), Code::VerifyRefused);
    let Made { by, .. } = made_by(&MadeByRequest { allow_dev: true, ..request }).unwrap();
    assert_eq!(by.builder, "https://ampoule.example/builders/dev/v1");
}
