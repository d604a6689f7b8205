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
    Test::both("what_the_store_has_is_an_input_without_a_file", stored),
    Test::both("tree_that_was_an_output_is_mounted_by_reference", tree),
    Test::both("tree_of_another_host_is_held_against_its_provenance", elsewhere),
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
    // As on another host: here the store has it.
    fs::remove_dir_all(lab.state().join("store"))?;
    denied(lab, &attested(&made, "libz.a", &other, ALLOW), 65, &["input.digest_mismatch"])
}

fn again(lab: &Lab) -> Result<()> {
    let made = first(lab)?;
    fs::remove_dir_all(lab.state().join("store"))?;
    let artifact = lab.write("libz.a", made.output("libz.a")?)?;
    let body = use_it(&attested(&made, "libz.a", &artifact, ALLOW));
    lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))?;
    // The store has it under the digest that the provenance names; other bytes in its place change nothing.
    fs::write(&artifact, b"other\n")?;
    let ran = lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))?;
    equal("bytes", &ran.output("out")?, &b"lib\n".to_vec())
}

/// The same without a place for the artifact.
fn by_provenance(made: &Ran, subject: &str, more: &str) -> String {
    let (file, key) = (made.evidence(&format!("{subject}.intoto.jsonl")), &made.key);
    format!(
        "attestation = {{ file = '{}', key = '{}', builder = '{DEV}', subject = '{subject}', allow_dev = true{more} }}",
        file.display(),
        key.display(),
    )
}

/// How many objects the store has.
fn objects(lab: &Lab) -> Result<usize> {
    Ok(fs::read_dir(lab.state().join("store/trees"))?.count())
}

/// A job with a directory in both forms.
fn directory(lab: &Lab) -> Result<Ran> {
    let body = sh(
        "make",
        "mkdir -p d/bin d/empty; echo f > d/f; echo 'echo ran' > d/bin/t; chmod +x d/bin/t; ln -s f d/l",
    ) + &output("d", "/build/d")
        + "[[output]]\nname = \"d.tar.zst\"\npath = \"/build/d\"\nform = \"tar.zst\"\n";
    lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))
}

fn stored(lab: &Lab) -> Result<()> {
    let made = first(lab)?;
    let before = objects(lab)?;
    let uses = sh("use", "cat /build/lib; stat -c %Y /build/lib");
    let body = uses.clone() + &input("lib", &by_provenance(&made, "libz.a", ""), "/build/lib", false);
    let ran = lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))?;
    equal("bytes", &ran.log_text("0-use.stdout")?, &"lib\n315532800\n".to_owned())?;
    equal("objects", &objects(lab)?, &before)?;
    // With the times of another job: from the store itself.
    let ran =
        lab.run_job(&("source_date_epoch = 5\n".to_owned() + &body))?.ended(&Ending("succeeded", "", 0))?;
    equal("times", &ran.log_text("0-use.stdout")?, &"lib\n5\n".to_owned())?;
    // An archive that is unpacked.
    let made = directory(lab)?;
    let source = by_provenance(&made, "d.tar.zst", ", unpack = true");
    let body = sh("use", "cat /build/d/l") + &input("d", &source, "/build/d", false);
    let ran = lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))?;
    equal("file of the archive", &ran.log_text("0-use.stdout")?, &"f\n".to_owned())?;
    // Elsewhere it is not there.
    fs::remove_dir_all(lab.state().join("store"))?;
    let ran = lab.run_job(&body)?.says(&["input.missing", "not in the store of this host"])?;
    ensure!(!ran.was_admitted(), "a job was admitted without its input");
    Ok(())
}

fn tree(lab: &Lab) -> Result<()> {
    let made = directory(lab)?;
    let before = objects(lab)?;
    let uses = sh("use", "cat /build/d/l; sh /build/d/bin/t; stat -c %Y /build/d/f; ! touch /build/d/x");
    let body =
        uses + &input("d", &by_provenance(&made, "d", ""), "/build/d", false) + &output("l", "/build/d/f");
    let ran = lab.run_job(&body)?.ended(&Ending("succeeded", "", 0))?;
    equal("log", &ran.log_text("0-use.stdout")?, &"f\nran\n315532800\n".to_owned())?;
    // Its own output, and nothing else.
    equal("objects", &objects(lab)?, &(before + 1))?;
    let digest = made.report()?["outputs"][0]["sha256"].clone();
    equal("read back", &ran.report()?["reread"][1]["sha256"], &digest)?;
    let statement = ran.statement("l.intoto.jsonl")?;
    let definition = &statement["predicate"]["buildDefinition"];
    equal("tree", &definition["externalParameters"]["inputs"][0]["tree"], &json!(true))?;
    let dependency = &definition["resolvedDependencies"][1];
    equal("media type", &dependency["mediaType"], &json!("application/vnd.ampoule.tree.v1"))?;
    equal("digest", &dependency["digest"]["sha256"], &digest)?;
    ran.verifies_output("l")?;
    let ran =
        lab.run_job(&("source_date_epoch = 5\n".to_owned() + &body))?.ended(&Ending("succeeded", "", 0))?;
    equal("times", &ran.log_text("0-use.stdout")?, &"f\nran\n5\n".to_owned())?;
    // What is for files is not for it.
    for more in [", unpack = true", ", executable = true"] {
        let body = sh("use", "true") + &input("d", &by_provenance(&made, "d", more), "/build/d", false);
        lab.run_job(&body)?.exits(64)?.says(&["job.invalid", "d is a directory"])?;
    }
    Ok(())
}

fn elsewhere(lab: &Lab) -> Result<()> {
    let made = directory(lab)?;
    let uses = |path: &Path| {
        let body = sh("use", "cat /build/d/l");
        lab.run_job(&(body + &input("d", &attested(&made, "d", path, ALLOW), "/build/d", false)))
    };
    let released = made.out.join("outputs/d");
    let forget = || fs::remove_dir_all(lab.state().join("store"));
    forget()?;
    uses(&released)?.ended(&Ending("succeeded", "", 0))?;
    forget()?;
    let file = lab.write("file", "f\n")?;
    uses(&file)?.says(&["input.refused", "d is a directory"])?;
    fs::write(released.join("f"), "g\n")?;
    let ran = uses(&released)?.exits(65)?.says(&["input.digest_mismatch"])?;
    ensure!(!ran.was_admitted(), "a job was admitted with another tree");
    Ok(())
}
