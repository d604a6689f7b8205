//! Golden bytes: what one fixed record gives. A change here is a change of a published format.

use super::fixture::{Reader, issuer, provenance_of, record};
use crate::{AgentClaims, RunRequest, UnsignedStatement, run_attestation};

fn run() -> UnsignedStatement {
    let record = record();
    let claims = AgentClaims::from([(ampoule_spec::Name::parse("caller").unwrap(), "ci.example".to_owned())]);
    let provenance_sha256 = Some(provenance_of(&record, &issuer()).sha256());
    let request = RunRequest { record: &record, issuer: &issuer(), provenance_sha256, agent_claims: &claims };
    run_attestation(&request).unwrap()
}

#[test]
fn statements_equal_the_golden_files() {
    let provenance = provenance_of(&record(), &issuer());
    let golden = include_bytes!("../../testdata/golden/provenance.json");
    assert_eq!(String::from_utf8_lossy(provenance.bytes()), String::from_utf8_lossy(golden));
    let golden = include_bytes!("../../testdata/golden/run.json");
    assert_eq!(String::from_utf8_lossy(run().bytes()), String::from_utf8_lossy(golden));
}

#[test]
fn statements_are_canonical_by_an_independent_writer() {
    for statement in [provenance_of(&record(), &issuer()), run()] {
        let value: serde_json::Value = serde_json::from_slice(statement.bytes()).unwrap();
        assert_eq!(serde_json_canonicalizer::to_vec(&value).unwrap(), statement.bytes());
    }
}

#[test]
fn golden_envelopes_still_verify() {
    let provenance = [
        include_bytes!("../../testdata/golden/libz.a.intoto.jsonl").as_slice(),
        include_bytes!("../../testdata/golden/libz.a.sigstore.json").as_slice(),
    ];
    for bytes in provenance {
        let verified = Reader::new().verify(bytes).unwrap();
        assert_eq!(verified.subjects, ["libz.a"]);
        assert_eq!(verified.invocation, "urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057");
    }
    let verified = Reader::of_run().verify(include_bytes!("../../testdata/golden/run.intoto.jsonl")).unwrap();
    assert_eq!(verified.subjects, ["report.json"]);
}
