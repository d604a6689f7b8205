//! What another job has made, as an input: only by provenance that verifies.

use super::{input, output, sh};
use crate::check::{Ending, Ran, equal, sha256};
use crate::harness::Test;
use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

pub(super) const TESTS: &[Test] = &[
    Test::both("output_of_a_job_is_an_input_of_the_next_and_names_its_builder", chain),
    Test::both("output_without_good_provenance_is_refused_before_a_step_runs", refused),
    Test::both("output_that_was_changed_is_a_digest_mismatch", changed),
    Test::both("second_use_needs_no_artifact", again),
    Test::both("tool_that_a_job_has_made_is_executable_if_the_next_says_so", tool),
];

const DEV: &str = "https://ampoule.example/builders/dev/v1";

/// The first job.
fn first(lab: &Lab) -> Result<Ran> {
    let steps = sh(
        "build",
        "echo lib > /build/libz.a; mkdir /build/d; echo f > /build/d/f; tar -C /build/d -cf /build/d.tar .",
    );
    let body = steps + &output("libz.a", "/build/libz.a") + &output("d.tar", "/build/d.tar");
    lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))
}

fn attested(ran: &Ran, subject: &str, artifact: &Path, more: &str) -> String {
    let (file, key) = (ran.evidence(&format!("{subject}.intoto.jsonl")), &ran.key);
    format!(
        "attestation = {{ file = '{}', path = '{}', key = '{}', builder = '{DEV}', subject = '{subject}'{more} }}",
        file.display(),
        artifact.display(),
        key.display(),
    )
}

const ALLOW: &str = ", allow_dev = true";

fn use_it(source: &str) -> String {
    sh("use", "cat /build/lib > /build/out")
        + &input("lib", source, "/build/lib", false)
        + &output("out", "/build/out")
}

fn chain(lab: &Lab) -> Result<()> {
    let made = first(lab)?;
    let artifact = made.out.join("outputs/libz.a");
    let ran = lab.run_job(&use_it(&attested(&made, "libz.a", &artifact, ALLOW)))?.ended(&Ending(
        "succeeded",
        "",
        0,
    ))?;
    equal("bytes", &ran.output("out")?, &b"lib\n".to_vec())?;
    ran.verifies_output("out")?;
    let statement = ran.statement("out.intoto.jsonl")?;
    let definition = &statement["predicate"]["buildDefinition"];
    let made_by = made.statement("libz.a.intoto.jsonl")?;
    let invocation =
        made_by["predicate"]["runDetails"]["metadata"]["invocationId"].as_str().context("invocation")?;
    let dependency = &definition["resolvedDependencies"][1];
    equal("uri", &dependency["uri"], &json!(format!("{invocation}#libz.a")))?;
    equal("digest", &dependency["digest"]["sha256"], &json!(sha256(b"lib\n")))?;
    equal("builder", &dependency["annotations"]["ampoule_builder"], &json!(DEV))?;
    let parameter = &definition["externalParameters"]["inputs"][0];
    equal("kind", &parameter["kind"], &json!("attestation"))?;
    let statement = parameter["madeBy"]["statement"].as_str().context("statement")?;
    equal(
        "statement's digest",
        &dependency["annotations"]["ampoule_statement"],
        &Value::from(format!("sha256:{statement}")),
    )?;
    // An archive, by the bundle this time.
    let bundle =
        attested(&made, "d.tar", &made.out.join("outputs/d.tar"), ", allow_dev = true, unpack = true")
            .replace("d.tar.intoto.jsonl", "d.tar.sigstore.json");
    let body = sh("use", "cat /build/d/f > /build/out")
        + &input("d", &bundle, "/build/d", false)
        + &output("out", "/build/out");
    let ran = lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))?;
    equal("file of the archive", &ran.output("out")?, &b"f\n".to_vec())
}

/// A tool that another job has made.
fn tool(lab: &Lab) -> Result<()> {
    let steps = sh("build", "printf '#!/bin/sh\\necho ran\\n' > /build/tool; chmod +x /build/tool");
    let made = lab.run_job(&(steps + &output("tool", "/build/tool")))?.ended(&Ending("succeeded", "", 0))?;
    let artifact = made.out.join("outputs/tool");
    let uses = |more: &str| {
        let source = attested(&made, "tool", &artifact, more);
        sh("use", "/build/tool > /build/out")
            + &input("tool", &source, "/build/tool", false)
            + &output("out", "/build/out")
    };
    let ran = lab.run_job(&uses(", allow_dev = true, executable = true"))?;
    equal("output", &ran.ended(&Ending("succeeded", "", 0))?.output("out")?, &b"ran\n".to_vec())?;
    lab.run_job(&uses(ALLOW))?.ended(&Ending("failed", "step.exit_nonzero", 1)).map(drop)
}

/// The job ends before there is one.
fn denied(lab: &Lab, source: &str, status: i32, texts: &[&str]) -> Result<()> {
    let ran = lab.run_job(&use_it(source))?.exits(status)?.says(texts)?;
    ensure!(!ran.was_admitted(), "a job was admitted with {source}");
    Ok(())
}

fn refused(lab: &Lab) -> Result<()> {
    let made = first(lab)?;
    let artifact = made.out.join("outputs/libz.a");
    denied(
        lab,
        &attested(&made, "libz.a", &artifact, ""),
        2,
        &["verify.refused", "development builder", "input lib"],
    )?;
    let good = attested(&made, "libz.a", &artifact, ALLOW);
    let elsewhere = good.replace("ampoule.example", "else.example");
    denied(lab, &elsewhere, 2, &["verify.refused", "is expected"])?;
    let run = good
        .replace("libz.a.intoto.jsonl", "run.intoto.jsonl")
        .replace("subject = 'libz.a'", "subject = 'report.json'");
    denied(lab, &run, 2, &["verify.refused", "predicateType"])?;
    denied(
        lab,
        &good.replace("subject = 'libz.a'", "subject = 'libx.a'"),
        64,
        &["job.invalid", "no subject"],
    )?;
    let several = good.replace(", subject = 'libz.a'", "");
    denied(lab, &several, 64, &["several subjects"])?;
    // One bit of the signature.
    let file = made.evidence("libz.a.intoto.jsonl");
    let mut envelope: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let signature =
        envelope["signatures"][0]["sig"].as_str().context("sig")?.replacen(['A', 'B', 'C'], "D", 1);
    envelope["signatures"][0]["sig"] = json!(signature);
    let forged = lab.write("forged.jsonl", serde_json::to_vec(&envelope)?)?;
    denied(
        lab,
        &good.replace(&file.display().to_string(), &forged.display().to_string()),
        2,
        &["verify.refused", "signature"],
    )?;
    // Somebody else's key.
    let (_, public) = super::run::make_key(lab, "other")?;
    let theirs = good.replace(&made.key.display().to_string(), &public.display().to_string());
    denied(lab, &theirs, 2, &["verify.refused", "not trusted"])
}

fn changed(lab: &Lab) -> Result<()> {
    let made = first(lab)?;
    let other = lab.write("libz.a", b"bil\n")?;
    denied(lab, &attested(&made, "libz.a", &other, ALLOW), 65, &["input.digest_mismatch"])
}

fn again(lab: &Lab) -> Result<()> {
    let made = first(lab)?;
    let artifact = lab.write("libz.a", made.output("libz.a")?)?;
    let body = use_it(&attested(&made, "libz.a", &artifact, ALLOW));
    lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))?;
    // The store has it under the digest that the provenance names; other bytes in its place change nothing.
    fs::write(&artifact, b"other\n")?;
    let ran = lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))?;
    equal("bytes", &ran.output("out")?, &b"lib\n".to_vec())
}
