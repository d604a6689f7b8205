//! Forged provenance, each signed with the trusted key: what a careless or hostile signer could write.
//!
//! The cases are those of the threat list: digest confusion (P4), envelope tricks (P5), missing parameters
//! (P9), and the mistakes that have been seen in the wild.

use super::fixture::{Reader, sign_bytes, sign_json, statement_json, variant};
use serde_json::{Value, json};

type Change = fn(&mut Value);

fn definition(s: &mut Value) -> &mut Value {
    &mut s["predicate"]["buildDefinition"]
}

fn external(s: &mut Value) -> &mut Value {
    &mut s["predicate"]["buildDefinition"]["externalParameters"]
}

fn internal(s: &mut Value) -> &mut Value {
    &mut s["predicate"]["buildDefinition"]["internalParameters"]
}

fn dependency(s: &mut Value, at: usize) -> &mut Value {
    &mut s["predicate"]["buildDefinition"]["resolvedDependencies"][at]
}

fn run(s: &mut Value) -> &mut Value {
    &mut s["predicate"]["runDetails"]
}

/// Puts another teardown record into the statement, with its digest.
fn teardown(s: &mut Value, record: &str) {
    use base64::Engine as _;
    let byproduct = &mut run(s)["byproducts"][6];
    byproduct["content"] = json!(base64::engine::general_purpose::STANDARD.encode(record));
    byproduct["digest"]["sha256"] = json!(crate::statement::sha256(record.as_bytes()).to_string());
}

pub(super) fn remove(value: &mut Value, key: &str) -> Value {
    value.as_object_mut().unwrap().remove(key).unwrap()
}

pub(super) fn rename(value: &mut Value, from: &str, to: &str) {
    let old = remove(value, from);
    value[to] = old;
}

/// The digest of the artifact, spelt in a way that its subject must not be.
fn odd(s: &mut Value, change: fn(&str) -> Value) {
    let hex = s["subject"][0]["digest"]["sha256"].as_str().unwrap().to_owned();
    s["subject"][0]["digest"] = change(&hex);
}

/// Digest confusion and subjects (P4).
const SUBJECTS: &[(&str, &str, Change)] = &[
    ("no subject", "Subject(None)", |s| s["subject"] = json!([])),
    ("null subject", "Shape", |s| s["subject"] = Value::Null),
    ("missing subject", "Shape", |s| drop(remove(s, "subject"))),
    ("subject is an object", "Shape", |s| s["subject"] = s["subject"][0].clone()),
    ("empty digest map", "Subject(Digest)", |s| odd(s, |_| json!({}))),
    ("digest is a string", "Shape", |s| odd(s, |hex| json!(hex))),
    ("digest is null", "Shape", |s| odd(s, |_| json!({"sha256": null}))),
    ("upper-case digest", "Subject(Digest)", |s| odd(s, |hex| json!({"sha256": hex.to_uppercase()}))),
    ("truncated digest", "Subject(Digest)", |s| odd(s, |hex| json!({"sha256": hex[..62]}))),
    ("digest with a prefix", "Subject(Digest)", |s| odd(s, |hex| json!({"sha256": format!("sha256:{hex}")}))),
    ("digest with a space", "Subject(Digest)", |s| odd(s, |hex| json!({"sha256": format!(" {hex}")}))),
    ("digest longer than SHA-256", "Subject(Digest)", |s| {
        odd(s, |hex| json!({"sha256": format!("{hex}00")}))
    }),
    ("digest in base64", "Subject(Digest)", |s| odd(s, |_| json!({"sha256": "7".repeat(43) + "="}))),
    ("sha1 alone", "Subject(Digest)", |s| odd(s, |hex| json!({"sha1": hex[..40]}))),
    ("md5 alone", "Subject(Digest)", |s| odd(s, |hex| json!({"md5": hex[..32]}))),
    ("sha256 under another name", "Subject(Digest)", |s| odd(s, |hex| json!({"SHA256": hex}))),
    ("sha256 under gitCommit", "Subject(Digest)", |s| odd(s, |hex| json!({"gitCommit": hex}))),
    ("a second algorithm", "Subject(Digest)", |s| {
        odd(s, |hex| json!({"sha256": hex, "sha1": "0".repeat(40)}))
    }),
    ("a name twice", "Subject(Twice)", |s| s["subject"][1]["name"] = s["subject"][0]["name"].clone()),
    ("no name", "Subject(Name)", |s| drop(remove(&mut s["subject"][0], "name"))),
    ("empty name", "Subject(Name)", |s| s["subject"][0]["name"] = json!("")),
    ("name climbs", "Subject(Name)", |s| s["subject"][0]["name"] = json!("../libz.a")),
    ("absolute name", "Subject(Name)", |s| s["subject"][0]["name"] = json!("/libz.a")),
    ("name with a line feed", "Subject(Name)", |s| s["subject"][0]["name"] = json!("libz.a\nlibz.b")),
    ("name like evidence", "Subject(Name)", |s| s["subject"][0]["name"] = json!("x.intoto.jsonl")),
    ("subject with a uri", "Subject(Extra)", |s| s["subject"][0]["uri"] = json!("https://evil.example/")),
    ("subject with annotations", "Subject(Extra)", |s| s["subject"][0]["annotations"] = json!({"a": "b"})),
    ("subject with an unknown field", "Shape", |s| s["subject"][0]["size"] = json!("1")),
    ("too many subjects", "Subject(TooMany)", |s| s["subject"] = json!(vec![s["subject"][0].clone(); 1025])),
    ("another artifact", "OtherArtifact", |s| odd(s, |_| json!({"sha256": "0".repeat(64)}))),
    ("a subject that is no output", "Field(subject)", |s| s["subject"][1]["name"] = json!("planted")),
    ("a report as subject", "Field(subject)", |s| s["subject"][1]["name"] = json!("tests.xml")),
    ("digests swapped between subjects", "Subject(Twice)", |s| {
        s["subject"].as_array_mut().unwrap().reverse();
        s["subject"][0]["name"] = json!("libz.a");
    }),
];

/// Statement and predicate types (P5).
const TYPES: &[(&str, &str, Change)] = &[
    ("statement v0.1", "StatementType", |s| s["_type"] = json!("https://in-toto.io/Statement/v0.1")),
    ("no _type", "StatementType", |s| drop(remove(s, "_type"))),
    ("type instead of _type", "StatementType", |s| rename(s, "_type", "type")),
    ("a list", "StatementType", |s| *s = json!([s])),
    ("a string", "StatementType", |s| *s = json!(s.to_string())),
    ("predicate type v1.0", "PredicateType", |s| {
        s["predicateType"] = json!("https://slsa.dev/provenance/v1.0")
    }),
    ("predicate type v0.2", "PredicateType", |s| {
        s["predicateType"] = json!("https://slsa.dev/provenance/v0.2")
    }),
    ("predicate type with a slash", "PredicateType", |s| {
        s["predicateType"] = json!("https://slsa.dev/provenance/v1/")
    }),
    ("predicate type snake_case", "PredicateType", |s| rename(s, "predicateType", "predicate_type")),
    ("a run attestation's type", "PredicateType", |s| {
        s["predicateType"] = json!("https://ampoule.example/attestation/run/v1");
    }),
    ("custom predicate type", "PredicateType", |s| {
        s["predicateType"] = json!("https://cosign.sigstore.dev/attestation/v1")
    }),
    ("v0.2 body under the v1 type", "Shape", |s| {
        s["predicate"] =
            json!({"builder": {"id": "https://ampoule.example/builders/hermetic/v1"}, "buildType": "x"});
    }),
    ("statement wrapped as a predicate", "Shape", |s| {
        let inner = s.clone();
        s["predicate"] = inner;
    }),
    ("unknown field at the top", "Shape", |s| s["issuer"] = json!("x")),
    ("unknown field in the predicate", "Shape", |s| s["predicate"]["materials"] = json!([])),
    ("null predicate", "Shape", |s| s["predicate"] = Value::Null),
];

/// The builder, its metadata and its byproducts.
const RUN: &[(&str, &str, Change)] = &[
    ("builder id is no URI", "BuilderId", |s| run(s)["builder"]["id"] = json!("hermetic")),
    ("empty builder id", "BuilderId", |s| run(s)["builder"]["id"] = json!("")),
    ("builder id is the run's URL", "BuilderId", |s| {
        run(s)["builder"]["id"] = json!("https://ci.example/runs/1")
    }),
    ("builder id with a slash", "BuilderId", |s| {
        run(s)["builder"]["id"] = json!("https://ampoule.example/builders/hermetic/v1/");
    }),
    ("builder of another host", "BuilderPinned", |s| {
        run(s)["builder"]["id"] = json!("https://evil.example/builders/hermetic/v1");
    }),
    ("builder in another mode", "BuilderPinned", |s| {
        run(s)["builder"]["id"] = json!("https://ampoule.example/builders/host/v1");
    }),
    ("development builder", "BuilderPinned", |s| {
        run(s)["builder"]["id"] = json!("https://ampoule.example/builders/dev/v1");
    }),
    ("builder without version", "Shape", |s| drop(remove(&mut run(s)["builder"], "version"))),
    ("builder without the runner's version", "Field(runDetails.builder.version)", |s| {
        rename(&mut run(s)["builder"]["version"], "ampoule-runner", "runner");
    }),
    ("builder with an empty kernel", "Field(runDetails.builder.version)", |s| {
        run(s)["builder"]["version"]["kernel"] = json!("");
    }),
    ("runner with an odd digest", "Field(runDetails.builder.builderDependencies[0].digest)", |s| {
        run(s)["builder"]["builderDependencies"][0]["digest"] = json!({"sha256": "00"});
    }),
    ("runner from elsewhere", "Field(runDetails.builder.builderDependencies[0].uri)", |s| {
        run(s)["builder"]["builderDependencies"][0]["uri"] = json!("https://evil.example/runner/0.1.0");
    }),
    ("invocationID", "Shape", |s| rename(&mut run(s)["metadata"], "invocationId", "invocationID")),
    ("buildStartedOn", "Shape", |s| rename(&mut run(s)["metadata"], "startedOn", "buildStartedOn")),
    ("buildFinishedOn", "Shape", |s| rename(&mut run(s)["metadata"], "finishedOn", "buildFinishedOn")),
    ("invocation is a URL", "Field(runDetails.metadata.invocationId)", |s| {
        run(s)["metadata"]["invocationId"] = json!("https://ci.example/runs/1");
    }),
    ("invocation of version 4", "Field(runDetails.metadata.invocationId)", |s| {
        run(s)["metadata"]["invocationId"] = json!("urn:uuid:01890a5d-ac96-474b-bcce-b302099a8057");
    }),
    ("time with an offset", "Field(runDetails.metadata.startedOn)", |s| {
        run(s)["metadata"]["startedOn"] = json!("2026-01-02T03:04:05+00:00");
    }),
    ("time as an object", "Shape", |s| run(s)["metadata"]["startedOn"] = json!({"seconds": 1, "nanos": 0})),
    ("time with ten digits", "Field(runDetails.metadata.finishedOn)", |s| {
        run(s)["metadata"]["finishedOn"] = json!("2026-01-02T03:04:55.0123456789Z");
    }),
    ("times out of order", "Field(runDetails.metadata.finishedOn)", |s| {
        run(s)["metadata"]["finishedOn"] = json!("2020-01-01T00:00:00Z");
    }),
    ("no teardown record", "Field(runDetails.byproducts)", |s| {
        run(s)["byproducts"].as_array_mut().unwrap().retain(|b| b["name"] != "teardown");
    }),
    ("no report", "Field(runDetails.byproducts)", |s| {
        run(s)["byproducts"].as_array_mut().unwrap().retain(|b| b["name"] != "report.json");
    }),
    ("a byproduct twice", "Field(runDetails.byproducts[1].name)", |s| {
        run(s)["byproducts"][1] = run(s)["byproducts"][0].clone();
    }),
    ("a log of no step", "Field(runDetails.byproducts[0].name)", |s| {
        run(s)["byproducts"][0]["name"] = json!("7-build.stdout");
    }),
    ("a log without digest", "Shape", |s| drop(remove(&mut run(s)["byproducts"][0], "digest"))),
    ("a log with content", "Field(runDetails.byproducts[0])", |s| {
        run(s)["byproducts"][0]["content"] = json!("AA==")
    }),
    ("teardown content changed", "Field(runDetails.byproducts[6].content)", |s| {
        run(s)["byproducts"][6]["content"] = json!("e30=");
    }),
    ("teardown content unclean", "Field(runDetails.byproducts[6].content)", |s| {
        teardown(
            s,
            r#"{"checkedBy":"s","checks":[{"how":"h","left":"1","state":"left","what":"w"}],"clean":false,"micros":"1"}"#,
        );
    }),
    ("teardown content left behind and called clean", "Field(runDetails.byproducts[6].content.clean)", |s| {
        teardown(
            s,
            r#"{"checkedBy":"s","checks":[{"how":"h","left":"1","state":"left","what":"w"}],"clean":true,"micros":"1"}"#,
        );
    }),
    ("teardown content gone with a count", "Field(runDetails.byproducts[6].content.checks[0].left)", |s| {
        teardown(
            s,
            r#"{"checkedBy":"s","checks":[{"how":"h","left":"1","state":"gone","what":"w"}],"clean":true,"micros":"1"}"#,
        );
    }),
    ("teardown content with nothing confirmed", "Field(runDetails.byproducts[6].content)", |s| {
        teardown(
            s,
            r#"{"checkedBy":"s","checks":[{"how":"h","left":"0","state":"unconfirmed","what":"w"}],"clean":true,"micros":"1"}"#,
        );
    }),
    ("teardown content without a check", "Field(runDetails.byproducts[6].content)", |s| {
        teardown(s, r#"{"checkedBy":"s","checks":[],"clean":true,"micros":"1"}"#);
    }),
    ("teardown content with an unknown state", "Field(runDetails.byproducts[6].content)", |s| {
        teardown(
            s,
            r#"{"checkedBy":"s","checks":[{"how":"h","left":"0","state":"lost","what":"w"}],"clean":true,"micros":"1"}"#,
        );
    }),
    ("teardown content of the old form", "Field(runDetails.byproducts[6].content)", |s| {
        teardown(
            s,
            r#"{"checkedBy":"s","checks":[{"gone":true,"how":"h","left":"0","what":"w"}],"clean":true,"micros":"1"}"#,
        );
    }),
    ("teardown content not canonical", "Field(runDetails.byproducts[6].content)", |s| {
        teardown(
            s,
            r#"{"checkedBy": "s","checks":[{"how":"h","left":"0","state":"gone","what":"w"}],"clean":true,"micros":"1"}"#,
        );
    }),
];

/// Parameters and dependencies (P8, P9).
const DEFINITION: &[(&str, &str, Change)] = &[
    ("unknown build type", "BuildType", |s| {
        definition(s)["buildType"] = json!("https://ampoule.example/buildtypes/sandbox/v2")
    }),
    ("build type of another host", "BuildType", |s| {
        definition(s)["buildType"] = json!("https://evil.example/buildtypes/sandbox/v1");
    }),
    ("unknown external parameter", "UnknownParameter", |s| external(s)["privileged"] = json!("true")),
    ("external parameter in another case", "UnknownParameter", |s| rename(external(s), "steps", "Steps")),
    ("empty external parameters", "Field(buildDefinition.externalParameters)", |s| *external(s) = json!({})),
    ("external parameters left out", "Shape", |s| drop(remove(definition(s), "externalParameters"))),
    ("env left out", "Field(buildDefinition.externalParameters)", |s| drop(remove(external(s), "env"))),
    ("unknown field in a step", "Field(buildDefinition.externalParameters)", |s| {
        external(s)["steps"][0]["user"] = json!("0")
    }),
    ("number as a number", "Field(buildDefinition.externalParameters)", |s| {
        external(s)["sourceDateEpoch"] = json!(1)
    }),
    ("number with a leading zero", "Field(buildDefinition.externalParameters)", |s| {
        external(s)["sourceDateEpoch"] = json!("01700000000");
    }),
    ("unknown limit", "Field(buildDefinition.externalParameters)", |s| {
        external(s)["limits"]["gpus"] = json!("1")
    }),
    ("user left out", "Field(buildDefinition.externalParameters)", |s| drop(remove(external(s), "user"))),
    ("user unknown", "Field(buildDefinition.externalParameters)", |s| external(s)["user"] = json!("admin")),
    ("user as a number", "Field(buildDefinition.externalParameters)", |s| external(s)["user"] = json!(0)),
    ("log overflow left out", "Field(buildDefinition.externalParameters)", |s| {
        drop(remove(external(s), "logOverflow"))
    }),
    ("log overflow unknown", "Field(buildDefinition.externalParameters)", |s| {
        external(s)["logOverflow"] = json!("drop")
    }),
    ("log overflow in snake_case", "UnknownParameter", |s| {
        rename(external(s), "logOverflow", "log_overflow")
    }),
    ("image kind unknown", "Field(buildDefinition.externalParameters)", |s| {
        external(s)["image"]["kind"] = json!("vm")
    }),
    ("image kind host", "Field(buildDefinition.externalParameters)", |s| {
        external(s)["image"]["kind"] = json!("host")
    }),
    ("input url with a password", "Field(buildDefinition.externalParameters.input[0].http.url)", |s| {
        external(s)["inputs"][0]["uri"] = json!("https://u:p@zlib.example/x");
    }),
    ("input url in upper case", "Field(buildDefinition.externalParameters)", |s| {
        external(s)["inputs"][0]["uri"] = json!("HTTPS://zlib.example/zlib-1.3.1.tar.gz?mirror=1");
    }),
    ("local input with a foreign uri", "Field(buildDefinition.externalParameters)", |s| {
        external(s)["inputs"][1]["uri"] = json!("https://good.example/patches");
    }),
    ("input with sha1", "Field(buildDefinition.externalParameters)", |s| {
        external(s)["inputs"][0]["digest"] = json!({"sha1": "0".repeat(40)});
    }),
    ("two inputs at one place", "Field(buildDefinition.externalParameters.input[1].mount)", |s| {
        external(s)["inputs"][1]["mount"] = json!("/build/src");
    }),
    ("parameter with an unknown type", "Field(buildDefinition.externalParameters)", |s| {
        external(s)["params"]["jobs"]["type"] = json!("float");
    }),
    ("parameter with a value of another type", "Field(buildDefinition.externalParameters)", |s| {
        external(s)["params"]["shared"]["value"] = json!("yes");
    }),
    ("no step", "Field(buildDefinition.externalParameters.step)", |s| external(s)["steps"] = json!([])),
    ("profile dev under the hermetic builder", "Field(runDetails.builder.id)", |s| {
        external(s)["profile"] = json!("dev")
    }),
    ("profile fetch under the hermetic builder", "Field(runDetails.builder.id)", |s| {
        external(s)["profile"] = json!("fetch");
    }),
    ("host image under the hermetic builder", "Field(runDetails.builder.id)", |s| {
        external(s)["image"] = json!({"kind": "host", "uri": "urn:ampoule:image:host"});
    }),
    ("unknown internal parameter", "Field(buildDefinition.internalParameters)", |s| {
        internal(s)["hermetic"] = json!("true")
    }),
    ("no profile digest", "Field(buildDefinition.internalParameters)", |s| {
        drop(remove(internal(s), "profileDigest"))
    }),
    ("a limit left out", "Field(buildDefinition.internalParameters.effectiveLimits)", |s| {
        drop(remove(&mut internal(s)["effectiveLimits"], "pids"));
    }),
    ("another limit than asked for", "Field(buildDefinition.internalParameters.effectiveLimits.pids)", |s| {
        internal(s)["effectiveLimits"]["pids"] = json!("513");
    }),
    ("no isolation", "Field(buildDefinition.internalParameters.isolation)", |s| {
        internal(s)["isolation"] = json!({})
    }),
    ("a layer in force and absent", "Field(buildDefinition.internalParameters.isolation)", |s| {
        internal(s)["isolationAbsent"]["network"] = json!("none");
    }),
    ("no dependencies", "Field(buildDefinition.resolvedDependencies)", |s| {
        definition(s)["resolvedDependencies"] = json!([]);
    }),
    ("image left out", "Field(buildDefinition.resolvedDependencies[0])", |s| {
        drop(definition(s)["resolvedDependencies"].as_array_mut().unwrap().remove(0));
    }),
    ("an input left out", "Field(buildDefinition.resolvedDependencies[4])", |s| {
        drop(definition(s)["resolvedDependencies"].as_array_mut().unwrap().pop());
    }),
    ("a dependency added", "Field(buildDefinition.resolvedDependencies[5])", |s| {
        let more = dependency(s, 4).clone();
        definition(s)["resolvedDependencies"].as_array_mut().unwrap().push(more);
    }),
    ("dependencies in another order", "Field(buildDefinition.resolvedDependencies[1])", |s| {
        definition(s)["resolvedDependencies"].as_array_mut().unwrap().swap(1, 2);
    }),
    ("another input digest", "Field(buildDefinition.resolvedDependencies[1])", |s| {
        dependency(s, 1)["digest"]["sha256"] = json!("0".repeat(64));
    }),
    ("another image digest", "Field(buildDefinition.resolvedDependencies[0])", |s| {
        dependency(s, 0)["digest"]["sha256"] = json!("0".repeat(64));
    }),
    ("another input uri", "Field(buildDefinition.resolvedDependencies[1])", |s| {
        dependency(s, 1)["uri"] = json!("https://good.example/zlib.tar.gz");
    }),
    ("a tree digest passed off as a file's", "Field(buildDefinition.resolvedDependencies[2])", |s| {
        drop(remove(dependency(s, 2), "mediaType"));
    }),
    ("an input passed off as the image", "Field(buildDefinition.resolvedDependencies[1])", |s| {
        dependency(s, 1)["annotations"]["ampoule_role"] = json!("image");
    }),
    ("a dependency with a download location", "Field(buildDefinition.resolvedDependencies[1])", |s| {
        dependency(s, 1)["downloadLocation"] = json!("https://evil.example/");
    }),
    ("an annotation that is no text", "Shape", |s| {
        dependency(s, 1)["annotations"]["ampoule_role"] = json!(1)
    }),
];

fn all() -> impl Iterator<Item = &'static (&'static str, &'static str, Change)> {
    [SUBJECTS, TYPES, RUN, DEFINITION].into_iter().flatten()
}

#[test]
fn forged_statements_are_each_refused_for_their_reason() {
    let mut wrong = Vec::new();
    for (name, expected, change) in all() {
        let mut statement = statement_json();
        change(&mut statement);
        let sealed = sign_json(&statement);
        for form in [&sealed.envelope_json_line, &sealed.bundle_json] {
            match Reader::new().verify(form.as_bytes()) {
                Ok(_) => wrong.push(format!("{name}: ACCEPTED")),
                Err(error) if variant(&error) != *expected => {
                    wrong.push(format!("{name}: {} instead of {expected}", variant(&error)));
                }
                Err(_) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(all().count() >= 60, "{}", all().count());
    println!("{} forged statements, each in both forms", all().count());
}

#[test]
fn forged_payload_bytes_are_refused() {
    let good = serde_json::to_string(&statement_json()).unwrap();
    let twice = good.replacen("{\"_type\"", "{\"_type\":\"https://in-toto.io/Statement/v1\",\"_type\"", 1);
    let deep_twice = good.replacen("\"sha256\":\"", "\"sha256\":\"x\",\"sha256\":\"", 1);
    let float = good.replacen("\"2000\"", "2000.0", 1);
    let cases: [(&str, Vec<u8>); 9] = [
        ("duplicate name at the top", twice.into_bytes()),
        ("duplicate name in a digest", deep_twice.into_bytes()),
        ("a float", float.into_bytes()),
        ("a byte order mark", [b"\xef\xbb\xbf", good.as_bytes()].concat()),
        ("two documents", format!("{good}{good}").into_bytes()),
        (
            "not UTF-8",
            good.replacen("libz.a", "libz.\u{1}", 1)
                .into_bytes()
                .iter()
                .map(|b| if *b == 1 { 0xff } else { *b })
                .collect(),
        ),
        ("cut short", good.as_bytes()[..good.len() - 1].to_vec()),
        ("empty", Vec::new()),
        ("base64 twice", {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.encode(&good).into_bytes()
        }),
    ];
    for (name, bytes) in cases {
        let sealed = sign_bytes(&bytes);
        let error = Reader::new().verify(sealed.envelope_json_line.as_bytes()).unwrap_err();
        assert_eq!(variant(&error), "Payload", "{name}");
    }
}
