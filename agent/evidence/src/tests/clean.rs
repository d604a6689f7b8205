//! Which runs may have provenance.

use super::fixture::{changed, issuer, provenance_of, record};
use crate::{CleanRun, ProvenanceRefused, Unclean, provenance};
use serde_json::{Value, json};

fn refused(change: impl FnOnce(&mut Value, &mut Value)) -> String {
    let record = changed(change);
    let error = record.clean().unwrap_err();
    format!("{error:?}").split([' ', '(']).next().unwrap_or_default().to_owned()
}

#[test]
fn check_each_broken_rule_has_its_error() {
    type Change = fn(&mut Value, &mut Value);
    let cases: &[(&str, Change)] = &[
        ("Format", |s, _| s["ampoule"] = json!(2)),
        ("Format", |_, r| r["ampoule"] = json!(2)),
        ("Spec", |s, _| s["attempt"] = json!(0)),
        ("Spec", |s, _| s["inputs"][0]["mount"] = json!("/usr")),
        ("OtherJob", |_, r| r["job"] = json!("01890a5d-ac96-774b-bcce-b302099a8058")),
        ("Outcome", |_, r| r["outcome"] = json!("failed")),
        ("Outcome", |_, r| r["outcome"] = json!("quarantined")),
        ("Outcome", |_, r| r["outcome"] = json!("aborted")),
        ("Failure", |_, r| r["failure"] = json!({"code": "teardown.unclean", "message": "m"})),
        ("NothingConfirmed", |_, r| r["teardown"]["checks"] = json!([])),
        ("NothingConfirmed", |_, r| {
            for check in r["teardown"]["checks"].as_array_mut().unwrap() {
                check["state"] = json!("unconfirmed");
            }
        }),
        ("LeftBehind", |_, r| r["teardown"]["checks"][1]["state"] = json!("left")),
        ("LeftBehind", |_, r| r["teardown"]["checks"][1]["left"] = json!(1)),
        ("LeftBehind", |_, r| r["teardown"]["checks"][3]["left"] = json!(1)),
        ("Steps", |_, r| drop(r["steps"].as_array_mut().unwrap().pop())),
        ("Steps", |_, r| r["steps"] = json!([])),
        ("Steps", |_, r| r["steps"].as_array_mut().unwrap().reverse()),
        ("Steps", |s, _| drop(s["steps"].as_array_mut().unwrap().pop())),
        ("StepFailed", |_, r| r["steps"][1]["end"]["code"] = json!(1)),
        ("StepFailed", |_, r| r["steps"][0]["end"] = json!({"end": "signalled", "signal": 9})),
        ("StepFailed", |_, r| r["steps"][0]["end"] = json!({"end": "not_run"})),
        ("LogTwice", |_, r| r["steps"][0]["logs"][1]["stream"] = json!("stdout")),
        ("OutputMissing", |_, r| drop(r["outputs"].as_array_mut().unwrap().remove(0))),
        ("OutputUndeclared", |_, r| r["outputs"][0]["name"] = json!("libz.b")),
        ("OutputUndeclared", |_, r| r["outputs"][0]["path"] = json!("/build/src/libz.b")),
        ("OutputUndeclared", |_, r| r["outputs"][2]["kind"] = json!("artifact")),
        ("OutputTwice", |_, r| r["outputs"][1] = r["outputs"][0].clone()),
        ("Image", |_, r| r["image"] = Value::Null),
        ("Image", |_, r| r["image"]["kind"] = json!("tar")),
        ("Image", |_, r| r["image"]["sha256"] = json!("0".repeat(64))),
        ("Image", |s, _| s["image"] = json!({"kind": "host"})),
        ("Changed", |_, r| r["reread"][0]["unchanged"] = json!(false)),
        ("Changed", |_, r| r["reread"][2]["unchanged"] = json!(false)),
        ("NotReread", |_, r| r["reread"] = json!([])),
        ("NotReread", |_, r| drop(r["reread"].as_array_mut().unwrap().remove(0))),
        ("NotReread", |_, r| drop(r["reread"].as_array_mut().unwrap().remove(1))),
        ("NotReread", |_, r| drop(r["reread"].as_array_mut().unwrap().remove(2))),
        ("NotReread", |_, r| r["reread"][0]["sha256"] = json!("0".repeat(64))),
        ("NotReread", |_, r| r["reread"][2]["sha256"] = json!("0".repeat(64))),
        ("NotReread", |_, r| r["reread"][2]["what"] = json!("input other")),
        ("Lacks", |_, r| r["profile_sha256"] = Value::Null),
        ("Lacks", |_, r| r["limits"] = Value::Null),
        ("Lacks", |_, r| r["isolation"] = json!({})),
        ("Lacks", |_, r| r["host"]["kernel"] = json!("")),
        ("Lacks", |_, r| r["timeline"]["started"] = Value::Null),
        ("Lacks", |_, r| r["timeline"]["destroyed"] = Value::Null),
        ("Clock", |_, r| r["timeline"]["finished"] = json!(1)),
        ("Clock", |_, r| r["timeline"]["admitted"] = json!(u64::MAX)),
        ("Clock", |_, r| r["timeline"]["destroyed"] = json!(5)),
    ];
    for (expected, change) in cases {
        assert_eq!(refused(*change), *expected);
    }
}

#[test]
fn check_one_thing_gone_and_the_rest_unconfirmed_is_clean() {
    let record = changed(|_, report| {
        for check in report["teardown"]["checks"].as_array_mut().unwrap().iter_mut().skip(1) {
            check["state"] = json!("unconfirmed");
        }
    });
    assert!(record.clean().is_ok());
}

#[test]
fn check_another_spec_digest_is_refused() {
    let record = record();
    let other = ampoule_spec::Sha256::new([0; 32]);
    let error = CleanRun::check(record.spec(), other, record.report()).unwrap_err();
    assert!(matches!(error, Unclean::OtherSpec { .. }));
}

#[test]
fn provenance_without_artifact_has_its_own_error() {
    let record = changed(|spec, report| {
        for list in [&mut spec["outputs"], &mut report["outputs"]] {
            list.as_array_mut().unwrap().retain(|output| output["kind"] == "report");
        }
    });
    let error = provenance(&record.clean().unwrap(), &issuer(), record.report_sha256()).unwrap_err();
    assert!(matches!(error, ProvenanceRefused::NoSubject));
}

#[test]
fn provenance_of_a_profile_without_builder_is_refused_unless_development() {
    let record = changed(|spec, _| spec["profile"] = json!("fetch"));
    let refused = provenance(&record.clean().unwrap(), &issuer(), record.report_sha256());
    assert!(matches!(refused, Err(ProvenanceRefused::Profile(_))));
    let development = crate::Issuer { development_key: true, ..issuer() };
    let bytes = provenance_of(&record, &development);
    assert!(String::from_utf8_lossy(bytes.bytes()).contains("https://ampoule.example/builders/dev/v1"));
}

#[test]
fn provenance_without_optional_artifact_still_has_the_other() {
    let record = changed(|_, report| drop(report["outputs"].as_array_mut().unwrap().remove(1)));
    let statement: Value = serde_json::from_slice(provenance_of(&record, &issuer()).bytes()).unwrap();
    assert_eq!(statement["subject"].as_array().unwrap().len(), 1);
}

#[test]
fn provenance_with_a_url_that_cannot_stand_in_it_is_refused() {
    for url in ["https://me:secret@zlib.example/x", "ftp://zlib.example/x", "https://zlib.example/a b"] {
        let record = changed(|spec, _| spec["inputs"][0]["source"]["url"] = json!(url));
        assert!(crate::check_uris(record.spec()).is_err());
        let error = provenance(&record.clean().unwrap(), &issuer(), record.report_sha256()).unwrap_err();
        assert!(matches!(error, ProvenanceRefused::Uri(_)), "{url}");
        assert!(!error.to_string().contains("secret"));
    }
}

#[test]
fn record_with_duplicate_or_unknown_names_is_refused() {
    use super::fixture::{REPORT, SPEC};
    let twice = String::from_utf8_lossy(SPEC).replacen("\"attempt\"", "\"attempt\": 1, \"attempt\"", 1);
    assert!(crate::JobRecord::read(twice.as_bytes(), REPORT).is_err());
    let unknown = String::from_utf8_lossy(REPORT).replacen("\"job\"", "\"jobs\": 1, \"job\"", 1);
    assert!(crate::JobRecord::read(SPEC, unknown.as_bytes()).is_err());
    assert!(crate::JobRecord::read(&vec![b' '; (1 << 20) + 1], REPORT).is_err());
}
