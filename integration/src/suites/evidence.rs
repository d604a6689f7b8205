//! Evidence: `ampoule verify` and `ampoule inspect` on real files, whole and changed.

use super::run::make_key;
use super::{output, sh};
use crate::check::{Ending, Ran, equal, json, read, sha256, verify};
use crate::harness::Test;
use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const TESTS: &[Test] = &[
    Test::both("changed_artifact_payload_or_signature_is_refused_with_its_reason", changed),
    Test::both("any_changed_byte_of_an_attestation_is_refused", any_byte),
    Test::both("only_the_key_that_signed_verifies", keys),
    Test::both("trust_file_pins_a_key_to_its_builder", trust_file),
    Test::both("each_attestation_is_accepted_for_its_own_kind_alone", kinds),
    Test::both("verify_holds_source_against_the_inputs", source),
    Test::both("verify_in_json_says_what_was_checked", verify_json),
    Test::both("inspect_shows_the_statement_and_checks_nothing", inspect),
    Test::both("records_name_each_other_by_digest", digests),
    Test::both("envelope_and_bundle_hold_the_same_signed_bytes", forms),
];

/// A job with one output, whose statement and files the tests hold against each other.
pub(super) fn signed_run<'l>(lab: &'l Lab<'_>) -> Result<Ran> {
    let _: &'l Lab = lab;
    lab.run_job(&(sh("build", "echo made > /build/libz.a; echo log") + &output("libz.a", "/build/libz.a")))?
        .ended(&Ending("succeeded", "", 0))
}

fn artifact(ran: &Ran) -> PathBuf {
    ran.out.join("outputs/libz.a")
}

/// Verifies with the run's own key.
fn check(ran: &Ran, file: &Path, attestation: &Path) -> Result<(Option<i32>, String)> {
    verify(&ran.program, file, attestation, &ran.key, &[])
}

fn refused(found: (Option<i32>, String), what: &str, reason: &str) -> Result<()> {
    ensure!(found.0 == Some(2), "{what}: exit status {:?}: {}", found.0, found.1);
    ensure!(
        found.1.contains(reason) && found.1.contains("verify.refused"),
        "{what} does not say {reason:?}: {}",
        found.1
    );
    Ok(())
}

/// An envelope with one field replaced.
fn with(lab: &Lab, envelope: &Value, name: &str, change: impl Fn(&mut Value)) -> Result<PathBuf> {
    let mut envelope = envelope.clone();
    change(&mut envelope);
    lab.write(name, serde_json::to_vec(&envelope)?)
}

fn flipped(base64: &Value, at: usize) -> Result<Value> {
    let mut bytes = BASE64_STANDARD.decode(base64.as_str().context("no text")?)?;
    *bytes.get_mut(at).context("too short")? ^= 1;
    Ok(Value::from(BASE64_STANDARD.encode(bytes)))
}

fn changed(lab: &Lab) -> Result<()> {
    let ran = signed_run(lab)?;
    let attestation = ran.evidence("libz.a.intoto.jsonl");
    equal("unchanged", &check(&ran, &artifact(&ran), &attestation)?.0, &Some(0))?;
    let other = lab.write("changed", b"Made\n")?;
    refused(check(&ran, &other, &attestation)?, "artifact", "subject")?;
    let envelope = json(&attestation)?;
    let payload = flipped(&envelope["payload"], 40)?;
    let file = with(lab, &envelope, "payload", |e| e["payload"] = payload.clone())?;
    refused(check(&ran, &artifact(&ran), &file)?, "payload", "signature")?;
    let signature = flipped(&envelope["signatures"][0]["sig"], 30)?;
    let file = with(lab, &envelope, "signature", |e| e["signatures"][0]["sig"] = signature.clone())?;
    refused(check(&ran, &artifact(&ran), &file)?, "signature", "signature")?;
    let file = with(lab, &envelope, "type", |e| e["payloadType"] = json!("application/json"))?;
    refused(check(&ran, &artifact(&ran), &file)?, "payload type", "")?;
    let file = with(lab, &envelope, "none", |e| e["signatures"] = json!([]))?;
    refused(check(&ran, &artifact(&ran), &file)?, "no signature", "signature")?;
    let file = with(lab, &envelope, "more", |e| e["more"] = json!(1))?;
    refused(check(&ran, &artifact(&ran), &file)?, "unknown field", "more")?;
    let bundle = json(&ran.evidence("libz.a.sigstore.json"))?;
    let signature = flipped(&bundle["dsseEnvelope"]["signatures"][0]["sig"], 30)?;
    let file =
        with(lab, &bundle, "bundle", |b| b["dsseEnvelope"]["signatures"][0]["sig"] = signature.clone())?;
    refused(check(&ran, &artifact(&ran), &file)?, "bundle's signature", "signature")
}

fn any_byte(lab: &Lab) -> Result<()> {
    let ran = signed_run(lab)?;
    for name in ["libz.a.intoto.jsonl", "libz.a.sigstore.json"] {
        let bytes = read(&ran.evidence(name))?;
        // Spread over the file, and near its ends, where the structure is.
        let step = (bytes.len() / 12).max(1);
        let places = (0..bytes.len()).step_by(step).chain([1, 7, bytes.len().saturating_sub(4)]);
        for at in places {
            let mut bytes = bytes.clone();
            let byte = bytes.get_mut(at).context("too short")?;
            *byte ^= 0x01;
            let file = lab.write("flipped", &bytes)?;
            let (status, said) = check(&ran, &artifact(&ran), &file)?;
            ensure!(status == Some(2), "{name}, byte {at}: exit status {status:?}: {said}");
        }
        let file = lab.write("cut", bytes.get(..bytes.len() / 2).unwrap_or_default())?;
        equal("cut in half", &check(&ran, &artifact(&ran), &file)?.0, &Some(2))?;
    }
    for (what, bytes) in
        [("empty", &b""[..]), ("no JSON", b"hello"), ("an array", b"[]"), ("NUL", b"\0\0\0\0")]
    {
        let file = lab.write("odd", bytes)?;
        equal(what, &check(&ran, &artifact(&ran), &file)?.0, &Some(2))?;
    }
    Ok(())
}

fn keys(lab: &Lab) -> Result<()> {
    let ran = signed_run(lab)?;
    let attestation = ran.evidence("libz.a.intoto.jsonl");
    let (private, other) = make_key(lab, "other")?;
    let by = |key: &Path| verify(&ran.program, &artifact(&ran), &attestation, key, &[]);
    refused(by(&other)?, "another key", "key")?;
    for (what, key) in [
        ("a private key", private),
        ("no key", lab.write("text", "hello")?),
        ("a missing file", lab.path("none")),
    ] {
        let (status, said) = by(&key)?;
        ensure!(status == Some(64), "{what}: exit status {status:?}: {said}");
        ensure!(!said.contains("PRIVATE"), "{what} is shown: {said}");
    }
    let missing = verify(&ran.program, &lab.path("none"), &attestation, &ran.key, &[])?;
    equal("artifact that is not there", &missing.0, &Some(64))?;
    let missing = verify(&ran.program, &artifact(&ran), &lab.path("none"), &ran.key, &[])?;
    equal("attestation that is not there", &missing.0, &Some(64))
}

fn trust_file(lab: &Lab) -> Result<()> {
    let ran = signed_run(lab)?;
    let key = fs::read_to_string(&ran.key)?;
    let builder = ran.result()?["builder"].clone();
    let cases = [
        ("its builder", json!({"publicKey": key, "builder": builder}), Some(0)),
        (
            "another builder",
            json!({"publicKey": key, "builder": "https://ampoule.example/builders/hermetic/v1"}),
            Some(2),
        ),
        (
            "a window that is over",
            json!({"publicKey": key, "builder": builder, "validTo": "2020-01-01T00:00:00Z"}),
            Some(2),
        ),
        (
            "a window that is open",
            json!({"publicKey": key, "builder": builder, "validFrom": "2020-01-01T00:00:00Z"}),
            Some(0),
        ),
    ];
    for (what, entry, expected) in cases {
        let trust = lab.write("trust.json", json!({"ampoule": 1, "keys": [entry]}).to_string())?;
        let done = lab
            .ampoule()
            .arg("verify")
            .arg(artifact(&ran))
            .arg("--attestation")
            .arg(ran.evidence("libz.a.sigstore.json"))
            .arg("--trust")
            .arg(trust)
            .arg("--allow-dev")
            .end()?;
        ensure!(done.status == expected, "{what}: exit status {:?}: {}", done.status, done.stderr);
    }
    Ok(())
}

fn kinds(lab: &Lab) -> Result<()> {
    let ran = signed_run(lab)?;
    let (provenance, run) = (ran.evidence("libz.a.intoto.jsonl"), ran.evidence("run.intoto.jsonl"));
    refused(check(&ran, &artifact(&ran), &run)?, "a run attestation as provenance", "")?;
    refused(check(&ran, &ran.evidence("report.json"), &run)?, "a run attestation of a report", "")?;
    let as_run = verify(&ran.program, &ran.evidence("report.json"), &provenance, &ran.key, &["--run"])?;
    refused(as_run, "provenance as a run attestation", "")?;
    let artifact = verify(&ran.program, &artifact(&ran), &run, &ran.key, &["--run"])?;
    refused(artifact, "an artifact by a run attestation", "")?;
    let log = ran.out.join("evidence/logs/0-build.stdout");
    equal(
        "a log by its run attestation",
        &verify(&ran.program, &log, &run, &ran.key, &["--run"])?.0,
        &Some(0),
    )
}

fn source(lab: &Lab) -> Result<()> {
    let file = lab.write("input.txt", "content\n")?;
    let body = super::input("src", &format!("path = '{}'", file.display()), "/build/in", false)
        + &sh("a", "cp /build/in /build/x")
        + &output("x", "/build/x");
    let ran = lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))?;
    let digest = sha256(b"content\n");
    let (output, attestation) = (ran.out.join("outputs/x"), ran.evidence("x.intoto.jsonl"));
    for (source, expected) in [
        (format!("sha256:{digest}"), Some(0)),
        ("urn:ampoule:input:src".to_owned(), Some(0)),
        (format!("sha256:{}", sha256(b"other")), Some(2)),
        ("urn:ampoule:input:other".to_owned(), Some(2)),
        ("https://example.org/x".to_owned(), Some(2)),
    ] {
        let found = verify(&ran.program, &output, &attestation, &ran.key, &["--source", &source])?;
        ensure!(found.0 == expected, "--source {source}: {found:?}");
    }
    Ok(())
}

fn verify_json(lab: &Lab) -> Result<()> {
    let ran = signed_run(lab)?;
    let call = |file: &Path| {
        let call = lab
            .ampoule()
            .arg("verify")
            .arg(file)
            .arg("--attestation")
            .arg(ran.evidence("libz.a.intoto.jsonl"));
        call.arg("--key").arg(&ran.key).args(["--allow-dev", "--json"]).end()
    };
    let good = call(&artifact(&ran))?.exits(0)?;
    let lines = good.json_lines()?;
    let [line] = lines.as_slice() else { anyhow::bail!("{lines:?}") };
    equal("verified", &line["verified"], &Value::from(true))?;
    equal("sha256", &line["sha256"], &Value::from(sha256(b"made\n")))?;
    equal("builder", &line["builder"], &ran.result()?["builder"])?;
    equal("subjects", &line["subjects"], &json!(["libz.a"]))?;
    let bad = call(&lab.write("bad", "x")?)?.exits(2)?;
    let lines = bad.json_lines()?;
    equal("verified", &lines.first().map(|l| l["verified"].clone()), &Some(Value::from(false)))
}

fn inspect(lab: &Lab) -> Result<()> {
    let ran = signed_run(lab)?;
    let (one, bundle) = (ran.evidence("libz.a.intoto.jsonl"), ran.evidence("libz.a.sigstore.json"));
    let shown = lab.ampoule().arg("inspect").arg(&one).end()?.exits(0)?;
    let text = shown.stdout_text();
    ensure!(text.lines().next().is_some_and(|l| l.contains("not checked")), "{text}");
    for part in
        ["libz.a", &sha256(b"made\n"), "builders/dev/v1", "https://slsa.dev/provenance/v1", "/build/libz.a"]
    {
        ensure!(text.contains(part), "inspect does not show {part}:\n{text}");
    }
    lab.ampoule().arg("inspect").arg(ran.evidence("run.intoto.jsonl")).end()?.exits(0)?;
    let envelope = json(&one)?;
    let payload = BASE64_STANDARD.decode(envelope["payload"].as_str().context("no payload")?)?;
    let mut pae = format!("DSSEv1 28 application/vnd.in-toto+json {} ", payload.len()).into_bytes();
    pae.extend(&payload);
    for file in [&one, &bundle] {
        let shown = lab.ampoule().args(["inspect", "--pae"]).arg(file).end()?.exits(0)?;
        ensure!(shown.stdout == pae, "--pae of {} differs", file.display());
        let shown = lab.ampoule().args(["inspect", "--signature"]).arg(file).end()?.exits(0)?;
        let signature =
            BASE64_STANDARD.decode(envelope["signatures"][0]["sig"].as_str().context("no signature")?)?;
        ensure!(shown.stdout == signature, "--signature of {} differs", file.display());
    }
    lab.ampoule().arg("inspect").arg(ran.out.join("outputs/libz.a")).end()?.exits(2)?;
    lab.ampoule().arg("inspect").arg(lab.path("none")).end()?.exits(64).map(drop)
}

fn digests(lab: &Lab) -> Result<()> {
    let ran = signed_run(lab)?;
    let digest = |name: &str| -> Result<Value> { Ok(Value::from(sha256(&read(&ran.evidence(name))?))) };
    let run = ran.statement("run.intoto.jsonl")?;
    equal("report.json", &run["subject"][0]["digest"]["sha256"], &digest("report.json")?)?;
    equal("spec.json", &run["predicate"]["request"]["digest"]["sha256"], &digest("spec.json")?)?;
    equal("spec.json in the report", &ran.report()?["spec"], &digest("spec.json")?)?;
    let envelope = json(&ran.evidence("libz.a.intoto.jsonl"))?;
    let payload = BASE64_STANDARD.decode(envelope["payload"].as_str().context("no payload")?)?;
    equal("provenance", &run["predicate"]["provenance"]["digest"]["sha256"], &Value::from(sha256(&payload)))?;
    let runner = lab.program("ampoule-runner");
    equal("runner", &ran.report()?["runner_sha256"], &Value::from(sha256(&read(&runner)?)))?;
    let logs = run["subject"].as_array().context("no subjects")?;
    let log = logs.iter().find(|s| s["name"] == "0-build.stdout").context("no log")?;
    equal("log", &log["digest"]["sha256"], &Value::from(sha256(b"log\n")))
}

fn forms(lab: &Lab) -> Result<()> {
    let ran = signed_run(lab)?;
    let (envelope, bundle) =
        (json(&ran.evidence("libz.a.intoto.jsonl"))?, json(&ran.evidence("libz.a.sigstore.json"))?);
    equal("media type", &bundle["mediaType"], &Value::from("application/vnd.dev.sigstore.bundle.v0.3+json"))?;
    equal("payload", &bundle["dsseEnvelope"]["payload"], &envelope["payload"])?;
    equal("signature", &bundle["dsseEnvelope"]["signatures"][0]["sig"], &envelope["signatures"][0]["sig"])?;
    let pem = fs::read_to_string(&ran.key)?;
    let der = BASE64_STANDARD.decode(pem.lines().filter(|l| !l.starts_with('-')).collect::<String>())?;
    let hint = BASE64_STANDARD.encode(hex::decode(sha256(&der))?);
    equal("hint", &bundle["verificationMaterial"]["publicKey"]["hint"], &Value::from(hint))?;
    let text = fs::read_to_string(ran.evidence("libz.a.intoto.jsonl"))?;
    equal("lines of the envelope", &text.lines().count(), &1)?;
    ensure!(
        envelope["signatures"][0]["keyid"].as_str().is_some_and(|id| id.starts_with("SHA256:")),
        "{envelope}"
    );
    Ok(())
}
