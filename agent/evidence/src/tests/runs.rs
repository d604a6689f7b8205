//! Run attestations: every outcome has one, and none that contradicts itself is taken.

use super::fixture::{
    KEY, Reader, SPEC, TestSigner, changed, issuer, record, run_json, run_of, sign_json, variant,
};
use super::schema::{RUN, broken};
use crate::{JobRecord, RunRefused, Unstarted, seal};
use ampoule_spec::{Code, Failure, Outcome, UnixNanos};
use serde_json::{Value, json};

fn ended(outcome: &str, code: &str, ends: [Value; 2], change: impl FnOnce(&mut Value)) -> JobRecord {
    changed(|_, report| {
        report["outcome"] = json!(outcome);
        report["failure"] = json!({"code": code, "message": "why \u{1b}[31m", "step": 0});
        for (step, end) in report["steps"].as_array_mut().unwrap().iter_mut().zip(ends) {
            if end["end"] == "not_run" {
                *step = json!({"name": step["name"], "end": end, "started": null, "finished": null,
                    "usage": {"cpu_micros": 0, "memory_peak_bytes": 0}, "logs": [], "survivors_killed": 0});
            } else {
                step["end"] = end;
            }
        }
        report["outputs"] = json!([]);
        change(report);
    })
}

fn every_outcome() -> Vec<JobRecord> {
    let not_run = || json!({"end": "not_run"});
    let keep = |_: &mut Value| {};
    vec![
        record(),
        ended("failed", "step.exit_nonzero", [json!({"end": "exited", "code": -1}), not_run()], keep),
        ended("failed", "step.signalled", [json!({"end": "signalled", "signal": 11}), not_run()], keep),
        ended(
            "failed",
            "step.not_started",
            [json!({"end": "not_started", "reason": "no such file"}), not_run()],
            keep,
        ),
        ended(
            "failed",
            "output.missing",
            [json!({"end": "exited", "code": 0}), json!({"end": "exited", "code": 0})],
            keep,
        ),
        ended("timed_out", "limit.timeout", [json!({"end": "timed_out"}), not_run()], keep),
        ended(
            "killed_by_limit",
            "limit.oom",
            [json!({"end": "killed_by_limit", "code": "limit.oom"}), not_run()],
            keep,
        ),
        ended(
            "killed_by_limit",
            "limit.log",
            [json!({"end": "killed_by_limit", "code": "limit.log"}), not_run()],
            keep,
        ),
        ended("cancelled", "job.cancelled", [json!({"end": "cancelled"}), not_run()], keep),
        ended("aborted", "job.aborted", [json!({"end": "aborted"}), not_run()], keep),
        ended(
            "quarantined",
            "teardown.unclean",
            [json!({"end": "exited", "code": 0}), not_run()],
            |report| {
                report["teardown"]["checks"][1] =
                    json!({"what": "mounts", "state": "left", "left": 2, "how": "mountinfo"});
                report["failure"]["teardown"] = json!("2 mounts");
            },
        ),
        // What the launcher writes of a supervisor that died before it made anything.
        ended("aborted", "sandbox.setup_failed", [not_run(), not_run()], |report| {
            for name in ["runner_sha256", "profile_sha256", "limits", "image"] {
                report[name] = Value::Null;
            }
            report["failure"].as_object_mut().unwrap().remove("step");
            report["timeline"] = json!({"admitted": 1_767_323_045_000_000_000_u64, "started": null, "finished": null,
                "destroyed": null});
            report["isolation"] = json!({});
            report["host"] = json!({"kernel": "", "machine": "", "cpu_model": ""});
            report["steps"] = json!([]);
            report["teardown"] = json!({"checked_by": "launcher", "checks": [], "micros": 0});
            report["phases"] = json!([]);
        }),
    ]
}

#[test]
fn every_outcome_is_attested_fits_the_schema_and_verifies() {
    let schema: Value = serde_json::from_str(RUN).unwrap();
    let mut outcomes = std::collections::BTreeSet::new();
    for record in every_outcome() {
        let statement = run_of(&record, &issuer()).unwrap();
        let value: Value = serde_json::from_slice(statement.bytes()).unwrap();
        assert_eq!(broken(&schema, &value), Vec::<String>::new());
        let sealed = seal(&statement, &TestSigner::new(KEY)).unwrap();
        let reader = Reader { artifact: record.report_sha256(), ..Reader::of_run() };
        let verified = reader.verify(sealed.envelope_json_line.as_bytes()).unwrap();
        assert_eq!(verified.outcome, record.report().outcome);
        assert_eq!(verified.subjects, ["report.json"]);
        outcomes.insert(verified.outcome);
        assert_eq!(record.clean().is_ok(), verified.outcome == Outcome::Succeeded);
    }
    assert_eq!(outcomes.len(), 7);
}

#[test]
fn codes_of_the_schema_are_those_of_the_table() {
    let schema: Value = serde_json::from_str(RUN).unwrap();
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(schema["$defs"]["code"]["enum"], json!(codes));
}

#[test]
fn schema_refuses_what_it_should() {
    let schema: Value = serde_json::from_str(RUN).unwrap();
    let cases: &[fn(&mut Value)] = &[
        |s| s["more"] = json!(1),
        |s| s["predicate"]["more"] = json!(1),
        |s| s["predicate"]["steps"][0]["more"] = json!(1),
        |s| s["predicate"]["outcome"] = json!("SUCCEEDED"),
        |s| s["predicate"]["attempt"] = json!(1),
        |s| s["predicate"]["timeline"]["admitted"] = json!("today"),
        |s| s["subject"][0]["digest"]["sha256"] = json!("AB"),
        |s| s["subject"] = json!([]),
        |s| s["predicate"]["builder"]["id"] = json!("x"),
        |s| s["predicate"]["teardown"]["checks"][0]["state"] = json!("lost"),
        |s| s["predicate"]["teardown"]["checks"][0]["gone"] = json!(true),
        |s| drop(s["predicate"]["teardown"]["checks"][0].as_object_mut().unwrap().remove("state")),
    ];
    for (at, change) in cases.iter().enumerate() {
        let mut value = run_json();
        change(&mut value);
        assert!(!broken(&schema, &value).is_empty(), "{at}");
    }
}

#[test]
fn teardown_record_is_the_one_that_provenance_digests() {
    let statement = super::fixture::statement_json();
    let byproducts = statement["predicate"]["runDetails"]["byproducts"].as_array().unwrap();
    let digest = byproducts.iter().find(|b| b["name"] == "teardown").unwrap()["digest"]["sha256"].clone();
    let record = crate::canonical_json(&run_json()["predicate"]["teardown"]).unwrap();
    assert_eq!(digest, crate::statement::sha256(&record).to_string());
}

#[test]
fn unknown_profile_is_attested_by_the_builder_that_claims_nothing() {
    let record = changed(|spec, _| spec["profile"] = json!("fetch"));
    let value: Value = serde_json::from_slice(run_of(&record, &issuer()).unwrap().bytes()).unwrap();
    assert_eq!(value["predicate"]["builder"]["id"], "https://ampoule.example/builders/dev/v1");
}

#[test]
fn record_that_contradicts_itself_is_refused() {
    let other = changed(|_, report| report["job"] = json!("01890a5d-ac96-774b-bcce-b302099a8058"));
    assert!(matches!(run_of(&other, &issuer()), Err(RunRefused::Binding(_))));
    let changes: [fn(&mut Value); 4] = [
        |checks| *checks = json!([]),
        |checks| checks.as_array_mut().unwrap().retain(|check| check["state"] == "unconfirmed"),
        |checks| checks[0]["state"] = json!("left"),
        |checks| checks[3]["left"] = json!(1),
    ];
    for (at, change) in changes.iter().enumerate() {
        let odd = changed(|_, report| change(&mut report["teardown"]["checks"]));
        assert!(matches!(run_of(&odd, &issuer()), Err(RunRefused::Rule(_))), "{at}");
    }
    let silent = changed(|_, report| report["outcome"] = json!("failed"));
    assert!(matches!(run_of(&silent, &issuer()), Err(RunRefused::Rule(_))));
}

#[test]
fn forged_run_attestations_are_refused() {
    type Change = fn(&mut Value);
    let cases: &[(&str, Change)] = &[
        ("BuilderId", |s| s["predicate"]["builder"]["id"] = json!("x")),
        ("BuilderPinned", |s| {
            s["predicate"]["builder"]["id"] = json!("https://ampoule.example/builders/host/v1")
        }),
        ("PredicateType", |s| s["predicateType"] = json!("https://ampoule.example/attestation/run/v2")),
        ("Field(predicateType)", |s| s["predicateType"] = json!("https://evil.example/attestation/run/v1")),
        ("Shape", |s| s["predicate"]["more"] = json!(1)),
        ("Shape", |s| s["predicate"]["outcome"] = json!("SUCCEEDED")),
        ("Shape", |s| s["predicate"]["failure"] = Value::Null),
        ("Field(failure)", |s| s["predicate"]["outcome"] = json!("failed")),
        ("Field(invocationId)", |s| s["predicate"]["invocationId"] = json!("x")),
        ("Field(attempt)", |s| s["predicate"]["attempt"] = json!("-1")),
        ("Field(request.digest)", |s| s["predicate"]["request"]["digest"] = json!({})),
        ("Field(timeline.admitted)", |s| s["predicate"]["timeline"]["admitted"] = json!("x")),
        ("Field(timeline.destroyed)", |s| s["predicate"]["timeline"]["destroyed"] = json!("x")),
        ("Field(limits)", |s| drop(s["predicate"]["limits"].as_object_mut().unwrap().remove("pids"))),
        ("Field(limits.pids)", |s| s["predicate"]["limits"]["pids"] = json!("many")),
        ("Field(phases[0].micros)", |s| s["predicate"]["phases"][0]["micros"] = json!("1.5")),
        ("Field(profileDigest)", |s| s["predicate"]["profileDigest"]["sha256"] = json!("00")),
        ("Field(image.kind)", |s| s["predicate"]["image"]["kind"] = json!("vm")),
        ("Field(inputs[0].digest)", |s| s["predicate"]["inputs"][0]["digest"] = json!({"sha1": "00"})),
        ("Field(outputs[0].digest)", |s| s["predicate"]["outputs"][0]["digest"]["sha512"] = json!("00")),
        ("Field(outputs[0].bytes)", |s| s["predicate"]["outputs"][0]["bytes"] = json!("+1")),
        ("Field(steps[0].end)", |s| s["predicate"]["steps"][0]["end"] = json!("cancelled")),
        ("Field(steps[0].end)", |s| s["predicate"]["steps"][0]["signal"] = json!("9")),
        ("Field(steps[0].exitCode)", |s| s["predicate"]["steps"][0]["exitCode"] = json!("00")),
        ("Field(steps[0].started)", |s| s["predicate"]["steps"][0]["started"] = json!("x")),
        ("Field(steps[0].logs)", |s| s["predicate"]["steps"][0]["logs"][0]["name"] = json!("1-build.stdout")),
        ("Field(subject)", |s| {
            s["predicate"]["steps"][0]["logs"][0]["digest"]["sha256"] = json!("0".repeat(64))
        }),
        ("Field(subject)", |s| drop(s["subject"].as_array_mut().unwrap().pop())),
        ("Field(teardown.clean)", |s| s["predicate"]["teardown"]["clean"] = json!(false)),
        ("Field(teardown.clean)", |s| s["predicate"]["teardown"]["checks"][0]["state"] = json!("left")),
        ("Field(teardown)", |s| {
            s["predicate"]["teardown"]["checks"][0]["state"] = json!("left");
            s["predicate"]["teardown"]["clean"] = json!(false);
        }),
        ("Field(teardown)", |s| s["predicate"]["teardown"]["checks"] = json!([])),
        ("Field(teardown)", |s| {
            for check in s["predicate"]["teardown"]["checks"].as_array_mut().unwrap() {
                check["state"] = json!("unconfirmed");
            }
        }),
        ("Shape", |s| s["predicate"]["teardown"]["checks"][0]["state"] = json!("lost")),
        ("Shape", |s| s["predicate"]["teardown"]["checks"][0]["state"] = json!("GONE")),
        ("Shape", |s| s["predicate"]["teardown"]["checks"][0]["state"] = json!(true)),
        ("Shape", |s| s["predicate"]["teardown"]["checks"][0]["gone"] = json!(true)),
        ("Shape", |s| drop(s["predicate"]["teardown"]["checks"][0].as_object_mut().unwrap().remove("state"))),
        ("Field(teardown.checks[0].left)", |s| {
            s["predicate"]["teardown"]["checks"][0]["left"] = json!("none")
        }),
        ("Field(teardown.checks[0].left)", |s| s["predicate"]["teardown"]["checks"][0]["left"] = json!("2")),
        ("Field(teardown.checks[3].left)", |s| s["predicate"]["teardown"]["checks"][3]["left"] = json!("1")),
        ("Field(teardown.micros)", |s| s["predicate"]["teardown"]["micros"] = json!("1.5")),
        ("Field(subject[0])", |s| s["subject"].as_array_mut().unwrap().swap(0, 1)),
        ("Subject(Name)", |s| s["subject"][1]["name"] = json!("libz.a")),
    ];
    for (expected, change) in cases {
        let mut statement = run_json();
        change(&mut statement);
        let error = Reader::of_run().verify(sign_json(&statement).envelope_json_line.as_bytes()).unwrap_err();
        assert_eq!(variant(&error), *expected, "{}", variant(&error));
    }
    println!("{} forged run attestations", cases.len());
}

#[test]
fn quarantined_record_turned_clean_is_refused() {
    let quarantined =
        every_outcome().into_iter().find(|r| r.report().outcome == Outcome::Quarantined).unwrap();
    let good: Value = serde_json::from_slice(run_of(&quarantined, &issuer()).unwrap().bytes()).unwrap();
    let reader = Reader { artifact: quarantined.report_sha256(), ..Reader::of_run() };
    assert!(reader.verify(sign_json(&good).envelope_json_line.as_bytes()).is_ok());
    for (state, field) in
        [("gone", "Field(teardown.checks[1].left)"), ("unconfirmed", "Field(teardown.checks[1].left)")]
    {
        let mut forged = good.clone();
        forged["predicate"]["teardown"]["checks"][1]["state"] = json!(state);
        let error = reader.verify(sign_json(&forged).envelope_json_line.as_bytes()).unwrap_err();
        assert_eq!(variant(&error), field);
        forged["predicate"]["teardown"]["checks"][1]["left"] = json!("0");
        let error = reader.verify(sign_json(&forged).envelope_json_line.as_bytes()).unwrap_err();
        assert_eq!(variant(&error), "Field(teardown.clean)");
    }
}

fn unstarted(code: Code) -> JobRecord {
    let failure = Failure { code, message: "why".to_owned(), step: Some(1), teardown: Some("x".to_owned()) };
    let (acknowledged, ended) = (UnixNanos(1_767_323_045_000_000_000), UnixNanos(1_767_323_046_000_000_000));
    JobRecord::unstarted(SPEC, &Unstarted { acknowledged, ended, failure }).unwrap().0
}

#[test]
fn job_without_a_sandbox_is_attested_for_every_code_and_never_clean() {
    let schema: Value = serde_json::from_str(RUN).unwrap();
    for code in Code::ALL {
        let record = unstarted(*code);
        let statement = run_of(&record, &issuer()).unwrap();
        let value: Value = serde_json::from_slice(statement.bytes()).unwrap();
        assert_eq!(broken(&schema, &value), Vec::<String>::new());
        assert_eq!(value["predicate"]["sandbox"], "none");
        assert_eq!(value["predicate"]["timeline"]["finished"], "2026-01-02T03:04:06Z");
        let sealed = seal(&statement, &TestSigner::new(KEY)).unwrap();
        let reader = Reader { artifact: record.report_sha256(), ..Reader::of_run() };
        let verified = reader.verify(sealed.envelope_json_line.as_bytes()).unwrap();
        assert_eq!(verified.outcome, record.report().outcome);
        assert!(record.clean().is_err() && !record.had_sandbox());
    }
    // Its bytes say the same to whoever reads them, and again the same when they are made once more.
    let failure = Failure::new(Code::InputMissing, "m");
    let end = Unstarted { acknowledged: UnixNanos(7), ended: UnixNanos(5), failure };
    let (record, bytes) = JobRecord::unstarted(SPEC, &end).unwrap();
    assert_eq!(JobRecord::read(SPEC, &bytes).unwrap().report(), record.report());
    assert_eq!(JobRecord::unstarted(SPEC, &end).unwrap().1, bytes);
    assert_eq!(record.report().timeline.finished, Some(UnixNanos(7)));
}

#[test]
fn record_of_the_agents_does_not_pass_for_one_of_the_runners_nor_the_other_way_round() {
    let good: Value =
        serde_json::from_slice(run_of(&unstarted(Code::JobCancelled), &issuer()).unwrap().bytes()).unwrap();
    let reader = Reader { artifact: unstarted(Code::JobCancelled).report_sha256(), ..Reader::of_run() };
    type Change = fn(&mut Value);
    let cases: &[(&str, Change)] = &[
        ("Field(sandbox)", |s| drop(s["predicate"].as_object_mut().unwrap().remove("sandbox"))),
        ("Shape", |s| s["predicate"]["sandbox"] = json!("some")),
        ("Field(teardown.checkedBy)", |s| s["predicate"]["teardown"]["checkedBy"] = json!("supervisor")),
        ("Field(outcome)", |s| s["predicate"]["outcome"] = json!("quarantined")),
        ("Field(phases)", |s| s["predicate"]["phases"] = json!([{"phase": "steps", "micros": "1"}])),
        ("Field(isolation)", |s| {
            s["predicate"]["isolation"]["seccomp"] = json!({"inForce": true, "detail": "x"})
        }),
        ("Field(timeline.started)", |s| {
            s["predicate"]["timeline"]["started"] = json!("2026-01-02T03:04:05Z")
        }),
        ("Field(steps)", |s| s["predicate"]["steps"][0]["end"] = json!("aborted")),
        ("Field(teardown.checks)", |s| {
            s["predicate"]["teardown"]["checks"] =
                json!([{"what": "processes", "state": "gone", "left": "0", "how": "x"}])
        }),
    ];
    assert!(reader.verify(sign_json(&good).envelope_json_line.as_bytes()).is_ok());
    for (expected, change) in cases {
        let mut statement = good.clone();
        change(&mut statement);
        let error = reader.verify(sign_json(&statement).envelope_json_line.as_bytes()).unwrap_err();
        assert_eq!(variant(&error), *expected);
    }
    let mut ours = run_json();
    ours["predicate"]["sandbox"] = json!("none");
    assert!(Reader::of_run().verify(sign_json(&ours).envelope_json_line.as_bytes()).is_err());
}
