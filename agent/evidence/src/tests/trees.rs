//! Directories as subjects: named by their tree digest, and never taken for a file.

use super::fixture::*;
use super::schema;
use crate::*;
use serde_json::{Value, json};

const TREE: &str = "application/vnd.ampoule.tree.v1";

/// A record whose first output is a directory of this form, asked for so or not at all.
pub(super) fn record_of(form: &str, asked: Option<&str>) -> JobRecord {
    changed(|spec, report| {
        if let Some(asked) = asked {
            spec["outputs"][0]["form"] = json!(asked);
        }
        report["outputs"][0]["form"] = json!(form);
        report["outputs"][0]["entries"] = json!(3);
        // The report among the outputs is a tree as well.
        report["outputs"][2]["form"] = json!("tree");
        report["outputs"][2]["entries"] = json!(1);
    })
}

fn statement_of(record: &JobRecord) -> Value {
    serde_json::from_slice(provenance_of(record, &issuer()).bytes()).unwrap()
}

#[test]
fn tree_is_a_subject_with_its_media_type_and_verifies_as_a_directory_alone() {
    for asked in [None, Some("tree")] {
        let record = record_of("tree", asked);
        let statement = statement_of(&record);
        let subject = &statement["subject"][0];
        assert_eq!(subject["mediaType"], TREE);
        assert!(statement["subject"][1].get("mediaType").is_none());
        let byproducts = statement["predicate"]["runDetails"]["byproducts"].as_array().unwrap();
        let report = byproducts.iter().find(|b| b["name"] == "output:tests.xml").unwrap();
        assert_eq!(report["mediaType"], TREE);
        let sealed = seal(&provenance_of(&record, &issuer()), &TestSigner::new(KEY)).unwrap();
        let attestation = sealed.envelope_json_line.as_bytes();
        let directory = Reader { tree: true, ..Reader::new() };
        assert_eq!(directory.verify(attestation).unwrap().subjects, ["libz.a"]);
        // A file with the bytes that the digest is made of has that digest too.
        assert_eq!(variant(&Reader::new().verify(attestation).unwrap_err()), "OtherArtifact");
    }
    // And the other way round.
    let sealed = seal(&provenance_of(&record(), &issuer()), &TestSigner::new(KEY)).unwrap();
    let directory = Reader { tree: true, ..Reader::new() };
    assert_eq!(
        variant(&directory.verify(sealed.envelope_json_line.as_bytes()).unwrap_err()),
        "OtherArtifact"
    );
}

#[test]
fn archive_of_a_directory_is_a_file_to_every_reader() {
    let record = record_of("tar.zst", Some("tar.zst"));
    let statement = statement_of(&record);
    assert!(statement["subject"][0].get("mediaType").is_none());
    let sealed = seal(&provenance_of(&record, &issuer()), &TestSigner::new(KEY)).unwrap();
    assert!(Reader::new().verify(sealed.envelope_json_line.as_bytes()).is_ok());
}

#[test]
fn form_that_the_job_did_not_ask_for_has_no_provenance() {
    let is_refused = |record: &JobRecord| matches!(record.clean(), Err(Unclean::OutputUndeclared { .. }));
    assert!(is_refused(&record_of("tree", Some("tar.zst"))));
    assert!(is_refused(&record_of("tar.zst", Some("tree"))));
    assert!(is_refused(&record_of("tree", Some("file"))));
    assert!(!is_refused(&record_of("tree", None)));
    // A count of entries belongs to directories, and to each.
    assert!(is_refused(&changed(|_, report| report["outputs"][0]["entries"] = json!(3))));
    assert!(is_refused(&changed(|_, report| report["outputs"][0]["form"] = json!("tree"))));
    // Nor can a statement say otherwise, whoever signs it.
    let mut statement = statement_of(&record_of("tree", Some("tree")));
    statement["subject"][0].as_object_mut().unwrap().remove("mediaType");
    let error = Reader::new().verify(sign_json(&statement).envelope_json_line.as_bytes()).unwrap_err();
    assert_eq!(variant(&error), "Field(subject)");
    statement["subject"][0]["mediaType"] = json!("text/plain");
    let error = Reader::new().verify(sign_json(&statement).envelope_json_line.as_bytes()).unwrap_err();
    assert_eq!(variant(&error), "Subject(Extra)");
}

#[test]
fn run_attestation_says_form_and_entries_of_directories_alone() {
    let record = record_of("tree", None);
    let run: Value = serde_json::from_slice(run_of(&record, &issuer()).unwrap().bytes()).unwrap();
    let schema: Value = serde_json::from_str(schema::RUN).unwrap();
    assert_eq!(schema::broken(&schema, &run), Vec::<String>::new());
    let outputs = &run["predicate"]["outputs"];
    assert_eq!((&outputs[0]["form"], &outputs[0]["entries"]), (&json!("tree"), &json!("3")));
    assert!(outputs[1].get("form").is_none() && outputs[1].get("entries").is_none());
    let refused = |change: fn(&mut Value)| {
        let mut other = run.clone();
        change(&mut other);
        let attestation = sign_json(&other);
        let reader = Reader { artifact: record.report_sha256(), ..Reader::of_run() };
        variant(&reader.verify(attestation.envelope_json_line.as_bytes()).unwrap_err())
    };
    assert_eq!(
        refused(|run| run["predicate"]["outputs"][0]["entries"] = json!("x")),
        "Field(outputs[0].entries)"
    );
    assert_eq!(
        refused(|run| run["predicate"]["outputs"][1]["entries"] = json!("1")),
        "Field(outputs[1].entries)"
    );
    assert_eq!(refused(|run| run["subject"][0]["mediaType"] = json!(TREE)), "OtherArtifact");
    assert_eq!(refused(|run| run["subject"][1]["mediaType"] = json!(TREE)), "Field(subject[1])");
    let shown = inspect(sign_json(&run).envelope_json_line.as_bytes()).unwrap().lines.join("\n");
    assert!(shown.contains("form: tree") && shown.contains("entries: 3"), "{shown}");
}
