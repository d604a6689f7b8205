//! A git input in the statements of a job.

use super::fixture::{KEY, Reader, TestSigner, changed, issuer, provenance_of, sign_json, variant};
use super::schema::{RUN, broken};
use crate::{AgentClaims, ExternalParameters, JobRecord, RunRequest, Unstarted, run_attestation, seal};
use ampoule_spec::{Code, Failure, UnixNanos};
use serde_json::{Value, json};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn record() -> JobRecord {
    changed(|spec, report| {
        spec["inputs"][0]["source"] = json!({"kind": "git", "url": "https://Git.Example/Org/r.git", "commit": COMMIT,
            "submodules": true, "tree": "ab".repeat(32), "signer": {"principal": "me@x", "key": "SHA256:k",
            "allowed_signers": "cd".repeat(32), "tag": "v1"}});
        // By the digest of its tree the runner names it, and has read it back.
        let reread = report["reread"].as_array_mut().unwrap();
        let own = reread.iter_mut().find(|one| one["what"] == "input src").unwrap();
        own["sha256"] = json!("ab".repeat(32));
    })
}

fn statement() -> Value {
    serde_json::from_slice(provenance_of(&record(), &issuer()).bytes()).unwrap()
}

#[test]
fn git_dependency_names_repository_commit_tree_and_signer() {
    let statement = statement();
    let definition = &statement["predicate"]["buildDefinition"];
    let uri = format!("git+https://git.example/Org/r.git@{COMMIT}");
    let expected = json!({
        "name": "src",
        "uri": uri,
        "digest": {"gitCommit": COMMIT},
        "annotations": {
            "ampoule_role": "input",
            "ampoule_kind": "git",
            "ampoule_mount": "/build/src",
            "ampoule_tree_sha256": "ab".repeat(32),
            "ampoule_submodules": "true",
            "ampoule_signed_by": "me@x",
            "ampoule_signing_key": "SHA256:k",
            "ampoule_allowed_signers_sha256": "cd".repeat(32),
            "ampoule_signed_tag": "v1",
        },
    });
    assert_eq!(definition["resolvedDependencies"][1], expected);
    let input = &definition["externalParameters"]["inputs"][0];
    assert_eq!((&input["uri"], &input["digest"]), (&json!(uri), &json!({"gitCommit": COMMIT})));
    let schema = super::schema::block(0);
    assert_eq!(broken(&schema, &definition["externalParameters"]), Vec::<String>::new());
    let external: ExternalParameters =
        serde_json::from_value(definition["externalParameters"].clone()).unwrap();
    let again = external.to_spec("urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
    assert_eq!(ExternalParameters::of(&again).unwrap(), external);
}

#[test]
fn source_of_a_git_input_is_its_repository_commit_or_tree() {
    let sealed = seal(&provenance_of(&record(), &issuer()), &TestSigner::new(KEY)).unwrap();
    let ask = |source: &str| {
        Reader { source: Some(source.to_owned()), ..Reader::new() }
            .verify(sealed.envelope_json_line.as_bytes())
    };
    for good in [
        format!("git+https://git.example/Org/r.git@{COMMIT}"),
        "git+https://git.example/Org/r.git".to_owned(),
        "git+HTTPS://Git.Example/Org/r.git".to_owned(),
        format!("gitCommit:{COMMIT}"),
        format!("sha256:{}", "ab".repeat(32)),
    ] {
        ask(&good).unwrap_or_else(|e| panic!("{good}: {e}"));
    }
    for bad in [
        format!("git+https://git.example/Org/other.git@{COMMIT}"),
        "git+https://git.example/Org/r".to_owned(),
        "https://git.example/Org/r.git".to_owned(),
        format!("gitCommit:{}", "0".repeat(40)),
        format!("sha256:{}", "cd".repeat(32)),
        "git+https://git.example".to_owned(),
        String::new(),
    ] {
        assert_eq!(variant(&ask(&bad).unwrap_err()), "Source", "{bad}");
    }
}

type Forgery = (&'static str, fn(&mut Value));

#[test]
fn forged_git_inputs_are_refused() {
    let forgeries: &[Forgery] = &[
        ("another commit in the dependency", |s| {
            dependency(s)["digest"]["gitCommit"] = json!("0".repeat(40))
        }),
        ("a sha256 in its place", |s| dependency(s)["digest"] = json!({"sha256": "ab".repeat(32)})),
        ("another tree", |s| dependency(s)["annotations"]["ampoule_tree_sha256"] = json!("cd".repeat(32))),
        ("no signer", |s| {
            drop(dependency(s)["annotations"].as_object_mut().unwrap().remove("ampoule_signed_by"))
        }),
        ("another signer", |s| dependency(s)["annotations"]["ampoule_signed_by"] = json!("you@x")),
        ("a commit that is not in the uri", |s| input(s)["digest"]["gitCommit"] = json!("0".repeat(40))),
        ("two digests", |s| input(s)["digest"]["sha256"] = json!("ab".repeat(32))),
        ("no git", |s| drop(input(s).as_object_mut().unwrap().remove("git"))),
        ("another kind", |s| input(s)["kind"] = json!("directory")),
        ("unpacked", |s| input(s)["unpack"] = json!(true)),
        ("user info", |s| input(s)["uri"] = json!(format!("git+https://u:p@git.example/Org/r.git@{COMMIT}"))),
        ("a query", |s| input(s)["uri"] = json!(format!("git+https://git.example/r?x@{COMMIT}"))),
    ];
    for (name, forge) in forgeries {
        let mut forged = statement();
        forge(&mut forged);
        let error = Reader::new().verify(sign_json(&forged).envelope_json_line.as_bytes()).expect_err(name);
        assert!(variant(&error).starts_with("Field("), "{name}: {error}");
    }
    Reader::new().verify(sign_json(&statement()).envelope_json_line.as_bytes()).unwrap();
}

fn dependency(statement: &mut Value) -> &mut Value {
    &mut statement["predicate"]["buildDefinition"]["resolvedDependencies"][1]
}

fn input(statement: &mut Value) -> &mut Value {
    &mut statement["predicate"]["buildDefinition"]["externalParameters"]["inputs"][0]
}

#[test]
fn job_that_ran_with_something_left_to_be_found_has_no_provenance() {
    let open = changed(|spec, _| {
        spec["inputs"][0]["source"] =
            json!({"kind": "git", "url": "https://git.example/r", "commit": COMMIT});
    });
    let refused = format!("{:?}", open.clean().unwrap_err());
    assert!(refused.starts_with("Spec("), "{refused}");
}

#[test]
fn commit_that_nobody_fetched_stands_in_a_record_without_a_sandbox_alone() {
    let end = Unstarted {
        acknowledged: UnixNanos(1),
        ended: UnixNanos(2),
        failure: Failure::new(Code::InputMissing, "m"),
    };
    let mut spec = serde_json::to_value(record().spec()).unwrap();
    spec["inputs"][0]["source"] = json!({"kind": "git", "url": "https://git.example/r", "commit": COMMIT});
    let (never, _) = JobRecord::unstarted(&serde_json::to_vec(&spec).unwrap(), &end).unwrap();
    let (claims, issuer) = (AgentClaims::new(), issuer());
    let run = |record: &JobRecord| {
        run_attestation(&RunRequest {
            record,
            issuer: &issuer,
            provenance_sha256: None,
            agent_claims: &claims,
        })
    };
    let statement: Value = serde_json::from_slice(run(&never).unwrap().bytes()).unwrap();
    assert_eq!(statement["predicate"]["inputs"][0]["digest"], json!({"gitCommit": COMMIT}));
    assert_eq!(broken(&serde_json::from_str(RUN).unwrap(), &statement), Vec::<String>::new());
    let ran = changed(|spec, report| {
        spec["inputs"][0]["source"] =
            json!({"kind": "git", "url": "https://git.example/r", "commit": COMMIT});
        report["outcome"] = json!("failed");
        report["failure"] = json!({"code": "input.missing", "message": "m"});
    });
    let refused = run(&ran).unwrap_err();
    assert!(format!("{refused:?}").contains("inputs[0].digest"), "{refused:?}");
}
