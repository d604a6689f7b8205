//! External parameters are complete, and the build definition names no run.

use super::fixture::{SPEC, changed, issuer, provenance_of, record};
use crate::{ExternalParameters, canonical_json};
use ampoule_spec::JobSpec;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The fields of a job that change nothing: the format's version, and what names the run.
const NO_EFFECT: [&str; 3] = ["/ampoule", "/id", "/attempt"];

fn specs() -> Vec<Value> {
    let first: Value = serde_json::from_slice(SPEC).unwrap();
    let mut host = first.clone();
    host["image"] = json!({"kind": "host"});
    let mut tar = first.clone();
    tar["image"] = json!({"kind": "tar", "sha256": "ab".repeat(32)});
    for limit in ["disk_inodes", "log_bytes", "timeout_ms", "open_files"] {
        tar["limits"][limit] = json!(7);
    }
    // Both stand in a spec only where they are not the default.
    tar["user"] = json!("root");
    tar["log_overflow"] = json!("fail");
    tar["secrets"] = json!([
        {"name": "key", "file": "/run/secrets/key", "on_rotate": "SIGHUP"},
        {"name": "token", "env": "TOKEN"},
        {"name": "7", "fd": "OTHER_FD"},
    ]);
    tar["steps"][0]["secrets"] = json!(["token"]);
    let mut git = tar.clone();
    let commit = "0123456789".repeat(4);
    git["inputs"][0]["source"] = json!({"kind": "git", "url": "https://git.example/r", "commit": commit, "submodules": true, "tree": "ab".repeat(32)});
    git["inputs"][1]["source"] = json!({"kind": "git", "commit": commit, "submodules": false, "tree": "ab".repeat(32),
        "signer": {"principal": "me@x", "key": "SHA256:k", "allowed_signers": "cd".repeat(32), "tag": "v1"}});
    tar["outputs"][0]["form"] = json!("file");
    tar["inputs"][1]["exclude"] = json!(["*.orig", "!keep.orig"]);
    vec![first, host, tar, git]
}

/// The paths of all leaves.
fn leaves(value: &Value, path: &str, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(name, v)| leaves(v, &format!("{path}/{name}"), out)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, v)| leaves(v, &format!("{path}/{at}"), out))
        }
        _ => out.push(path.to_owned()),
    }
}

fn external(spec: &Value) -> Option<Vec<u8>> {
    let spec: JobSpec = serde_json::from_value(spec.clone()).ok()?;
    spec.validate().ok()?;
    Some(canonical_json(&ExternalParameters::of(&spec).ok()?).unwrap())
}

/// Other values that might stand where this one does.
fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(b) => vec![json!(!b)],
        Value::Number(n) => {
            let n = n.as_u64().unwrap();
            vec![json!(n + 1), json!(n - 1), json!(n.to_string()), json!(true)]
        }
        Value::String(text) => {
            let mut hex = text.clone();
            hex.replace_range(0..1, if text.starts_with('0') { "1" } else { "0" });
            vec![
                json!(format!("{text}x")),
                json!(format!("{text}/x")),
                json!(hex),
                json!("7"),
                json!(""),
                json!("success"),
                json!("always"),
                json!("artifact"),
                json!("report"),
                json!("build"),
                json!("cut"),
                json!("sh"),
                json!("tar.zst"),
                json!("SIGUSR1"),
            ]
        }
        _ => Vec::new(),
    }
}

#[test]
fn each_field_of_a_job_changes_external_parameters_or_is_listed() {
    let (mut changed_fields, mut tried) = (BTreeSet::new(), 0);
    for spec in specs() {
        let before = external(&spec).unwrap();
        let mut paths = Vec::new();
        leaves(&spec, "", &mut paths);
        for path in paths {
            for other in others(spec.pointer(&path).unwrap()) {
                if other == *spec.pointer(&path).unwrap() {
                    continue;
                }
                let mut flipped = spec.clone();
                *flipped.pointer_mut(&path).unwrap() = other.clone();
                let Some(after) = external(&flipped) else { continue };
                assert_eq!(before == after, NO_EFFECT.contains(&path.as_str()), "{path} = {other}");
                changed_fields.insert(path.clone());
                tried += 1;
            }
            let kind = path.ends_with("/kind") && !path.starts_with("/outputs");
            // A secret that a step names is renamed in both places or in none.
            let single = kind || path == "/secrets/1/name" || path == "/ampoule" || path == "/id";
            assert!(changed_fields.contains(&path) || single, "{path} was never changed");
        }
    }
    println!("{tried} changes of {} fields", changed_fields.len());
}

#[test]
fn order_presence_and_kind_change_external_parameters() {
    let spec = specs().remove(0);
    let before = external(&spec).unwrap();
    let changes: &[fn(&mut Value)] = &[
        |s| s["steps"].as_array_mut().unwrap().reverse(),
        |s| s["inputs"].as_array_mut().unwrap().reverse(),
        |s| s["outputs"].as_array_mut().unwrap().reverse(),
        |s| drop(s["steps"].as_array_mut().unwrap().pop()),
        |s| drop(s["inputs"].as_array_mut().unwrap().pop()),
        |s| drop(s["outputs"].as_array_mut().unwrap().pop()),
        |s| s["steps"][0]["run"].as_array_mut().unwrap().push(json!("")),
        |s| s["steps"][0]["env"]["NEW"] = json!(""),
        |s| s["env"]["NEW"] = json!(""),
        |s| s["env"] = json!({}),
        |s| s["params"]["new"] = json!("1"),
        |s| s["params"]["jobs"] = json!("4"),
        |s| s["params"]["shared"] = json!("true"),
        |s| s["limits"] = json!({}),
        |s| s["limits"]["open_files"] = json!(4096),
        |s| s["user"] = json!("root"),
        |s| s["secrets"] = json!([{"name": "key", "env": "KEY"}]),
        |s| {
            s["secrets"] = json!([{"name": "key", "env": "KEY"}]);
            s["steps"][1]["secrets"] = json!(["key"]);
        },
        |s| s["log_overflow"] = json!("fail"),
        |s| s["outputs"][0]["form"] = json!("file"),
        |s| s["outputs"][0]["form"] = json!("tree"),
        |s| s["inputs"][1]["exclude"] = json!(["*.o"]),
        |s| s["inputs"][1]["exclude"] = json!(["!*.o", "*.o"]),
        |s| s["image"] = json!({"kind": "host"}),
        |s| s["image"] = json!({"kind": "tar", "sha256": s["image"]["manifest"]}),
        |s| s["inputs"][3]["source"] = json!({"kind": "file", "sha256": s["inputs"][3]["source"]["sha256"]}),
        |s| {
            s["inputs"][3]["source"] =
                json!({"kind": "directory", "tree": s["inputs"][3]["source"]["sha256"]})
        },
    ];
    for (at, change) in changes.iter().enumerate() {
        let mut flipped = spec.clone();
        change(&mut flipped);
        assert_ne!(external(&flipped).expect("a good job"), before, "change {at}");
    }
}

#[test]
fn user_and_log_overflow_are_written_out_where_the_job_is_silent() {
    let silent = specs().remove(0);
    let mut said = silent.clone();
    said["user"] = json!("build");
    said["log_overflow"] = json!("cut");
    assert_eq!(external(&silent), external(&said));
    let value: Value = serde_json::from_slice(&external(&silent).unwrap()).unwrap();
    assert_eq!((&value["user"], &value["logOverflow"]), (&json!("build"), &json!("cut")));
    let other: Value = serde_json::from_slice(&external(&specs()[2]).unwrap()).unwrap();
    assert_eq!((&other["user"], &other["logOverflow"]), (&json!("root"), &json!("fail")));
}

#[test]
fn id_and_attempt_change_no_build_definition() {
    let definition = |record: &crate::JobRecord| {
        let statement: Value = serde_json::from_slice(provenance_of(record, &issuer()).bytes()).unwrap();
        statement["predicate"]["buildDefinition"].clone()
    };
    let before = definition(&record());
    let id = "01890a5d-ac96-774b-bcce-b302099a8059";
    let after = changed(|spec, report| {
        spec["id"] = json!(id);
        report["job"] = json!(id);
        spec["attempt"] = json!(77);
        let times = &mut report["timeline"];
        times["started"] = json!(times["started"].as_u64().unwrap() + 5);
    });
    assert_eq!(before, definition(&after));
    let text = before.to_string();
    assert!(!text.contains("01890a5d") && !text.contains("2026-"));
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[ -~]{0,40}"].prop_map(|text| text.replace('\0', ""))
}

fn git_source(digest: ampoule_spec::Sha256, flag: bool, remote: bool) -> Value {
    let commit = "0123456789".repeat(4);
    let mut source = json!({"kind": "git", "commit": commit, "submodules": flag, "tree": digest});
    match remote {
        true => source["url"] = json!("https://a.example/x"),
        false => source["signer"] = json!({"principal": "p", "key": "SHA256:k", "allowed_signers": digest}),
    }
    source
}

fn any_spec() -> impl Strategy<Value = JobSpec> {
    let maps = (
        prop::collection::btree_map("[A-Z_][A-Z0-9_]{0,8}", text(), 0..4),
        prop::collection::btree_map(
            "[a-z0-9][a-z0-9-]{0,8}",
            prop_oneof![
                any::<bool>().prop_map(Value::from),
                any::<i64>().prop_map(Value::from),
                text().prop_map(Value::from)
            ],
            0..4,
        ),
    );
    let step = (prop::collection::vec(text(), 0..4), 1_u64..86_400_000);
    let image = prop_oneof![
        Just(json!({"kind": "host"})),
        any::<[u8; 32]>().prop_map(|d| json!({"kind": "tar",
        "sha256": ampoule_spec::Sha256::new(d)}))
    ];
    let source = (any::<[u8; 32]>(), any::<bool>(), 0..7).prop_map(|(digest, flag, kind)| {
        let digest = ampoule_spec::Sha256::new(digest);
        match kind {
            0 => json!({"kind": "directory", "tree": digest}),
            1 => json!({"kind": "file", "sha256": digest, "executable": flag}),
            2 => json!({"kind": "http", "url": "https://a.example/x", "sha256": digest, "unpack": flag,
                "mirrors": if flag { vec!["https://b.example/x", "http://c.example/y?z"] } else { vec![] }}),
            3 => json!({"kind": "tar", "sha256": digest}),
            4 => git_source(digest, flag, true),
            5 => git_source(digest, flag, false),
            _ => json!({"kind": "attestation", "sha256": digest, "executable": !flag, "unpack": flag, "made_by": {
                "builder": "https://a.example/builders/hermetic/v1", "key": "SHA256:k", "statement": digest,
                "job": "01890a5d-ac96-774b-bcce-b302099a8057", "subject": "lib+z-1.so"}}),
        }
    });
    let limits = prop::collection::btree_map(
        prop::sample::select(crate::parameters::LIMITS.to_vec()),
        any::<u64>(),
        0..8,
    );
    let form = prop::sample::select(vec![None, Some("file"), Some("tree"), Some("tar.zst")]);
    let choices = (prop::sample::select(vec!["build", "root"]), prop::sample::select(vec!["cut", "fail"]));
    (maps, prop::collection::vec(step, 1..4), image, prop::collection::vec(source, 0..4), limits, 0_u64..253_402_300_799,
        prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), form), 0..3), choices).prop_map(
        |((env, params), steps, image, inputs, limits, epoch, outputs, (user, overflow))| {
            let mut spec: Value = serde_json::from_slice(SPEC).unwrap();
            spec["env"] = json!(env);
            spec["params"] = json!(params);
            spec["image"] = image;
            spec["limits"] = json!(limits);
            spec["user"] = json!(user);
            spec["log_overflow"] = json!(overflow);
            spec["source_date_epoch"] = json!(epoch);
            spec["attempt"] = json!(1);
            let steps = steps.into_iter().enumerate().map(|(at, (mut run, timeout))| {
                run.insert(0, "sh".to_owned());
                json!({"name": format!("s{at}"), "run": run, "cwd": "/b", "env": env, "timeout_ms": timeout})
            });
            spec["steps"] = steps.collect();
            let inputs = inputs.into_iter().enumerate().map(|(at, source)| {
                let exclude = if source["kind"] == "directory" { vec!["*.o"; at] } else { Vec::new() };
                json!({"name": format!("i{at}"), "mount": format!("/m{at}"), "writable": at % 2 == 0, "source": source,
                    "exclude": exclude})
            });
            spec["inputs"] = inputs.collect();
            let outputs = outputs.into_iter().enumerate().map(|(at, (always, report, optional, form))| json!({
                "name": format!("o{at}"), "path": format!("/o{at}"), "when": if always { "always" } else { "success" },
                "kind": if report { "report" } else { "artifact" }, "optional": optional, "form": form}));
            spec["outputs"] = outputs.collect();
            serde_json::from_value(spec).unwrap()
        },
    )
}

proptest! {
    /// A job that can be read back from its parameters has lost nothing in them.
    #[test]
    fn any_job_can_be_read_back_from_its_external_parameters(spec in any_spec()) {
        prop_assert_eq!(spec.validate(), Ok(()));
        let external = ExternalParameters::of(&spec).unwrap();
        let bytes = canonical_json(&external).unwrap();
        let again: ExternalParameters = serde_json::from_slice(&bytes).unwrap();
        prop_assert_eq!(again.to_spec(&format!("urn:uuid:{}", spec.id)), Some(spec));
    }

    #[test]
    fn any_two_jobs_that_differ_have_other_parameters(a in any_spec(), b in any_spec()) {
        prop_assert_eq!(a == b, ExternalParameters::of(&a) == ExternalParameters::of(&b));
    }
}

#[test]
fn golden_job_can_be_read_back() {
    let record = record();
    let mut spec = record.spec().clone();
    let external = ExternalParameters::of(&spec).unwrap();
    spec.attempt = 1;
    assert_eq!(external.to_spec(&format!("urn:uuid:{}", spec.id)), Some(spec));
}
