//! What a reader can expect, and what inspection shows.

use super::fixture::{
    KEY, KEY_PUB, OTHER_KEY, Reader, TestSigner, artifact, changed, issuer, provenance_of, record, run_of,
    sign_json, statement_json, variant,
};
use crate::{BuilderMode, Issuer, Kind, PublicKey, TrustedKey, escape, inspect, seal};
use ampoule_spec::{Outcome, Sha256, UnixNanos};
use serde_json::json;

fn sealed() -> String {
    seal(&provenance_of(&record(), &issuer()), &TestSigner::new(KEY)).unwrap().envelope_json_line
}

fn refused(reader: &Reader, attestation: &str) -> String {
    variant(&reader.verify(attestation.as_bytes()).unwrap_err())
}

#[test]
fn verify_good_attestation_tells_what_was_checked() {
    let verified = Reader::new().verify(sealed().as_bytes()).unwrap();
    assert_eq!(verified.kind, Kind::Provenance);
    assert_eq!(verified.builder, "https://ampoule.example/builders/hermetic/v1");
    assert_eq!(verified.mode, BuilderMode::Hermetic);
    assert_eq!(verified.subjects, ["libz.a"]);
    assert_eq!(verified.build_type.as_deref(), Some("https://ampoule.example/buildtypes/sandbox/v1"));
    assert_eq!(verified.outcome, Outcome::Succeeded);
    assert_eq!(verified.key_fingerprint, PublicKey::from_pem(KEY_PUB).unwrap().fingerprint());
    assert_eq!(
        verified.checks,
        [
            "envelope",
            "key",
            "signature",
            "statement type",
            "predicate type",
            "subject",
            "builder id",
            "builder pinned to key",
            "no dev builder",
            "build type",
            "no unknown parameter",
            "field rules",
        ]
    );
}

#[test]
fn verify_expectations_hold_or_refuse() {
    let mut reader = Reader::new();
    reader.builder = Some("https://ampoule.example/builders/hermetic/v1".to_owned());
    reader.params.insert("version".to_owned(), "1.3.1".to_owned());
    reader.params.insert("shared".to_owned(), "true".to_owned());
    for source in [
        "https://zlib.example/zlib-1.3.1.tar.gz?mirror=1".to_owned(),
        "HTTPS://ZLIB.example/zlib-1.3.1.tar.gz?mirror=1".to_owned(),
        "urn:ampoule:input:patches".to_owned(),
        format!("sha256:{}", record().spec().inputs[0].source.sha256().unwrap()),
    ] {
        reader.source = Some(source);
        assert!(reader.verify(sealed().as_bytes()).is_ok());
    }
    reader.source = Some("https://zlib.example/other".to_owned());
    assert_eq!(refused(&reader, &sealed()), "Source");
    reader.source = None;
    reader.params.insert("jobs".to_owned(), "5".to_owned());
    assert_eq!(refused(&reader, &sealed()), "Param");
    reader.params.clear();
    reader.params.insert("absent".to_owned(), String::new());
    assert_eq!(refused(&reader, &sealed()), "Param");
    reader.params.clear();
    reader.builder = Some("https://ampoule.example/builders/host/v1".to_owned());
    assert_eq!(refused(&reader, &sealed()), "BuilderUnexpected");
}

#[test]
fn verify_key_and_artifact_are_bound() {
    let mut reader = Reader::new();
    reader.artifact = Sha256::new([0; 32]);
    assert_eq!(refused(&reader, &sealed()), "OtherArtifact");
    reader.artifact = artifact();
    reader.trusted = vec![TrustedKey::any(TestSigner::new(OTHER_KEY).key())];
    assert_eq!(refused(&reader, &sealed()), "UntrustedKey");
    reader.trusted.clear();
    assert_eq!(refused(&reader, &sealed()), "NoTrustedKey");
    let huge = " ".repeat(crate::ATTESTATION_BYTES_MAX + 1);
    assert_eq!(refused(&Reader::new(), &huge), "TooLarge");
}

#[test]
fn verify_key_window_is_held_against_the_end_of_the_build() {
    let finished = record().report().timeline.finished.unwrap().0;
    let mut reader = Reader::new();
    for (from, to, good) in [
        (Some(finished), Some(finished), true),
        (Some(finished + 1), None, false),
        (None, Some(finished - 1), false),
        (None, Some(finished), true),
    ] {
        reader.trusted[0].valid_from = from.map(UnixNanos);
        reader.trusted[0].valid_to = to.map(UnixNanos);
        let result = reader.verify(sealed().as_bytes());
        assert_eq!(result.is_ok(), good, "{from:?} {to:?}");
        if let Err(error) = result {
            assert_eq!(variant(&error), "KeyWindow");
        }
    }
}

#[test]
fn verify_dev_builder_is_refused_unless_allowed() {
    let development = Issuer { development_key: true, ..issuer() };
    let line =
        seal(&provenance_of(&record(), &development), &TestSigner::new(KEY)).unwrap().envelope_json_line;
    let mut reader = Reader::new();
    reader.trusted[0].builder_id = None;
    assert_eq!(refused(&reader, &line), "DevBuilder");
    reader.allow_dev = true;
    assert_eq!(reader.verify(line.as_bytes()).unwrap().mode, BuilderMode::Dev);
    reader.trusted = Reader::new().trusted;
    assert_eq!(refused(&reader, &line), "BuilderPinned");
}

#[test]
fn verify_host_image_has_its_own_builder_and_never_claims_completeness() {
    let record = changed(|spec, report| {
        spec["image"] = json!({"kind": "host"});
        report["image"] = json!({"kind": "host", "sha256": "1".repeat(64), "named_by": "dpkg"});
        report["reread"][0]["what"] = json!("host");
    });
    let statement = provenance_of(&record, &issuer());
    let value: serde_json::Value = serde_json::from_slice(statement.bytes()).unwrap();
    let image = &value["predicate"]["buildDefinition"]["resolvedDependencies"][0];
    assert_eq!(image["uri"], "urn:ampoule:image:host");
    assert_eq!(image["annotations"]["ampoule_content"], "package-list");
    assert_eq!(image["annotations"]["ampoule_complete"], "false");
    let line = seal(&statement, &TestSigner::new(KEY)).unwrap().envelope_json_line;
    assert_eq!(refused(&Reader::new(), &line), "BuilderPinned");
    let mut reader = Reader::new();
    reader.trusted[0].builder_id = Some("https://ampoule.example/builders/host/v1".to_owned());
    assert_eq!(reader.verify(line.as_bytes()).unwrap().mode, BuilderMode::Host);
    for (pointer, text) in
        [("ampoule_complete", "true"), ("ampoule_content", "tree"), ("ampoule_named_by", "")]
    {
        let mut forged = value.clone();
        forged["predicate"]["buildDefinition"]["resolvedDependencies"][0]["annotations"][pointer] =
            json!(text);
        let line = sign_json(&forged).envelope_json_line;
        assert_eq!(refused(&reader, &line), "Field(buildDefinition.resolvedDependencies[0])", "{pointer}");
    }
}

#[test]
fn verify_an_envelope_without_key_id_tries_each_key() {
    let mut envelope: serde_json::Value = serde_json::from_str(&sealed()).unwrap();
    envelope["signatures"][0].as_object_mut().unwrap().remove("keyid");
    let mut reader = Reader::new();
    reader.trusted.insert(0, TrustedKey::any(TestSigner::new(OTHER_KEY).key()));
    assert!(reader.verify(envelope.to_string().as_bytes()).is_ok());
}

#[test]
fn verify_one_kind_never_passes_for_the_other() {
    let record = record();
    let run = seal(&run_of(&record, &issuer()).unwrap(), &TestSigner::new(KEY)).unwrap();
    let reader = Reader { artifact: record.report_sha256(), ..Reader::new() };
    assert_eq!(refused(&reader, &run.envelope_json_line), "PredicateType");
    assert_eq!(refused(&Reader::of_run(), &sealed()), "PredicateType");
    assert!(Reader::of_run().verify(run.bundle_json.as_bytes()).is_ok());
    let mut reader = Reader::of_run();
    reader.source = Some("x".to_owned());
    assert_eq!(refused(&reader, &run.bundle_json), "NotInRun");
}

const PROVENANCE_SHOWN: &[&str] = &["user: build", "logOverflow: cut"];
const RUN_SHOWN: &[&str] = &["state: gone", "state: unconfirmed", "clean: true"];

#[test]
fn inspect_shows_both_kinds_in_both_forms_and_checks_nothing() {
    let record = record();
    for statement in [provenance_of(&record, &issuer()), run_of(&record, &issuer()).unwrap()] {
        let sealed = seal(&statement, &TestSigner::new(KEY)).unwrap();
        for form in [&sealed.envelope_json_line, &sealed.bundle_json] {
            let shown = inspect(form.as_bytes()).unwrap();
            assert!(shown.lines[0].starts_with("signature not checked"));
            assert!(
                shown.lines.iter().any(|line| line.contains("urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057"))
            );
            let said = if statement.kind() == Kind::Run { RUN_SHOWN } else { PROVENANCE_SHOWN };
            for text in said {
                assert!(shown.lines.iter().any(|line| line.trim() == *text), "{text}");
            }
            assert_eq!(shown.pae, crate::pae(statement.bytes()));
            assert_eq!(PublicKey::from_pem(KEY_PUB).unwrap().verify(&shown.pae, &shown.signature), Ok(()));
        }
    }
}

#[test]
fn inspect_lets_nothing_through_that_drives_a_terminal() {
    let hostile =
        "\u{1b}]0;x\u{7}\r\n\u{9b}31m\u{202e}\u{2066}\u{2028}\u{200b}\u{feff}\u{7f}\u{e0041}\0\\u{41}";
    let mut statement = statement_json();
    statement["predicate"]["buildDefinition"]["externalParameters"]["env"][hostile] = json!(hostile);
    statement[hostile] = json!({ hostile: [hostile] });
    let lines = inspect(sign_json(&statement).envelope_json_line.as_bytes()).unwrap().lines;
    for c in lines.iter().flat_map(|line| line.chars()) {
        assert!(c == ' ' || c.is_ascii_graphic() || c == 'é', "{c:?}");
    }
    assert_eq!(escape("\u{1b}\\é\u{202e}"), "\\u{1b}\\\\é\\u{202e}");
    statement["x"] = json!("y".repeat(100_000));
    let lines = inspect(sign_json(&statement).envelope_json_line.as_bytes()).unwrap().lines;
    assert!(lines.iter().all(|line| line.len() < 3000));
}
