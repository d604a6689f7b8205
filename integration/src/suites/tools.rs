//! Other people's tools on our evidence: openssl and coreutils as the documents show, and PyPI packages.

use super::evidence::signed_run;
use super::{exec, output, sh};
use crate::check::{Ending, equal, read};
use crate::harness::{Test, skip};
use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const PYTHON: &str = "a Python with xtask/requirements.txt that this user may run";

pub(super) const TESTS: &[Test] = &[
    Test::both("openssl_and_coreutils_verify_as_the_documents_show", documented),
    Test::both("securesystemslib_verifies_the_envelope", securesystemslib).may_lack(PYTHON),
    Test::both("in_toto_attestation_reads_the_statements", in_toto).may_lack(PYTHON),
    Test::both("run_attestations_of_every_outcome_fit_their_schema", run_schema).may_lack(PYTHON),
    Test::both("job_files_that_run_fit_their_schema", job_schema).may_lack(PYTHON),
];

/// The shell block of docs/provenance.md under "Verify", in a directory as it supposes.
fn documented(lab: &Lab) -> Result<()> {
    let document = fs::read_to_string(lab.repository("docs/provenance.md"))?;
    let (_, after) = document.split_once("```sh\n").context("docs/provenance.md has no shell block")?;
    let (block, _) = after.split_once("```").context("the block does not end")?;
    ensure!(block.contains("openssl"), "another block comes first: {block}");
    let ran = signed_run(lab)?;
    let dir = lab.path("documented");
    fs::create_dir(&dir)?;
    fs::copy(ran.out.join("outputs/libz.a"), dir.join("libz.a"))?;
    fs::copy(ran.evidence("libz.a.intoto.jsonl"), dir.join("libz.a.intoto.jsonl"))?;
    fs::copy(&ran.key, dir.join("key.pub"))?;
    let run = || lab.call("sh").args(["-eu", "-c", block]).within(&dir).end();
    equal("it says", &run()?.exits(0)?.stdout_text(), &"Verified OK\n1\n".to_owned())?;
    fs::write(dir.join("libz.a"), "changed\n")?;
    equal("of a changed artifact", &run()?.stdout_text(), &"Verified OK\n0\n".to_owned())?;
    let envelope = fs::read_to_string(dir.join("libz.a.intoto.jsonl"))?;
    let (head, tail) = envelope.split_once("\"payload\":\"").context("no payload")?;
    fs::write(
        dir.join("libz.a.intoto.jsonl"),
        format!("{head}\"payload\":\"AAAA{}", tail.get(4..).unwrap_or_default()),
    )?;
    let forged = run()?;
    ensure!(
        forged.status != Some(0) && !forged.stdout_text().contains("Verified OK"),
        "{}",
        forged.stdout_text()
    );
    Ok(())
}

/// Packages, and where the interpreter that has them is unless the environment names another.
pub(super) struct Packages {
    variable: &'static str,
    place: &'static str,
    check: &'static str,
}

/// What verifies evidence: `xtask/requirements.txt`.
const VERIFIERS: Packages = Packages {
    variable: "AMPOULE_PYTHON",
    place: "target/venv/bin/python",
    check: "import securesystemslib, in_toto_attestation, jsonschema",
};

/// Clients and CI systems: `integration/requirements.txt`.
pub(super) const CLIENTS: Packages = Packages {
    variable: "AMPOULE_CLIENTS_PYTHON",
    place: "target/venv-clients/bin/python",
    check: "import grpc_tools.protoc, grpc_reflection, grpc_status, cryptography, buildbot, buildbot_worker",
};

/// OpenTelemetry's messages, of the same list.
pub(super) const COLLECTOR: Packages = Packages {
    variable: CLIENTS.variable,
    place: CLIENTS.place,
    check: "import grpc, opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc",
};

/// An interpreter that has the packages.
pub(super) fn interpreter(lab: &Lab, packages: &Packages) -> Result<PathBuf> {
    let path = match std::env::var_os(packages.variable) {
        Some(path) => PathBuf::from(path),
        None => lab.repository(packages.place),
    };
    let mut command = Command::new(&path);
    command.args(["-c", packages.check]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status() {
        Ok(status) if status.success() => Ok(path),
        Ok(_) => skip(format!("{} lacks the packages", path.display())),
        Err(error) => skip(format!("{}: {error}", path.display())),
    }
}

fn python(lab: &Lab) -> Result<PathBuf> {
    interpreter(lab, &VERIFIERS)
}

/// Runs one of `integration/python/`.
fn script(lab: &Lab, name: &str, args: &[PathBuf]) -> Result<crate::check::Ran> {
    let python = python(lab)?;
    lab.call(python).arg(lab.repository("integration/python").join(name)).args(args).end()
}

fn securesystemslib(lab: &Lab) -> Result<()> {
    python(lab)?;
    let ran = signed_run(lab)?;
    for name in ["libz.a.intoto.jsonl", "run.intoto.jsonl"] {
        script(lab, "verify_envelope.py", &[ran.evidence(name), ran.key.clone()])?.exits(0)?;
    }
    let mut envelope = crate::check::json(&ran.evidence("libz.a.intoto.jsonl"))?;
    envelope["payload"] = envelope["payload"].as_str().context("no payload")?.replacen('e', "f", 1).into();
    let forged = lab.write("forged.jsonl", envelope.to_string())?;
    let refused = script(lab, "verify_envelope.py", &[forged, ran.key.clone()])?;
    ensure!(refused.status != Some(0), "a changed payload verifies");
    Ok(())
}

fn in_toto(lab: &Lab) -> Result<()> {
    python(lab)?;
    let ran = signed_run(lab)?;
    let read = script(lab, "read_statement.py", &[ran.evidence("libz.a.intoto.jsonl")])?.exits(0)?;
    let text = read.stdout_text();
    let digest = crate::check::sha256(b"made\n");
    ensure!(text.contains(&format!("subject libz.a {digest}")), "{text}");
    ensure!(text.contains("predicate https://slsa.dev/provenance/v1"), "{text}");
    ensure!(text.contains("builder https://ampoule.example/builders/dev/v1"), "{text}");
    script(lab, "read_statement.py", &[ran.evidence("run.intoto.jsonl")])?.exits(0)?;
    // A directory is a subject with a media type.
    let ran = lab.run_job(&directories())?.ended(&Ending("succeeded", "", 0))?;
    let read = script(lab, "read_statement.py", &[ran.evidence("tree.intoto.jsonl")])?.exits(0)?;
    for output in ran.report()?["outputs"].as_array().context("no outputs")? {
        let line = format!("subject {} {}", text_of(&output["name"])?, text_of(&output["sha256"])?);
        ensure!(read.stdout_text().contains(&line), "{line} is not in {}", read.stdout_text());
    }
    Ok(())
}

/// A job whose output is a directory in both forms.
fn directories() -> String {
    sh("a", "mkdir /build/d; echo x > /build/d/x")
        + &output("tree", "/build/d")
        + &output("archive", "/build/d")
        + "form = \"tar.zst\"\n"
}

fn text_of(value: &Value) -> Result<&str> {
    value.as_str().context("no text")
}

fn run_schema(lab: &Lab) -> Result<()> {
    python(lab)?;
    let schema = lab.repository("docs/schema/run-attestation.schema.json");
    let slow = sh("a", "sleep 600") + "timeout = \"300ms\"\n";
    let disk = sh("a", "dd if=/dev/zero of=/build/x bs=1M") + "[limits]\ndisk = \"8MiB\"\n";
    for (body, outcome, code, exit) in [
        (directories(), "succeeded", "", 0),
        (sh("a", "exit 1") + &sh("b", "true"), "failed", "step.exit_nonzero", 1),
        (exec("a", &["/none"]), "failed", "step.not_started", 1),
        (sh("a", "kill -9 $$"), "failed", "step.signalled", 1),
        (slow, "timed_out", "limit.timeout", 1),
        (disk, "killed_by_limit", "limit.disk", 1),
    ] {
        let ran = lab.run_job(&body)?.ended(&Ending(outcome, code, exit))?;
        script(lab, "check_schema.py", &[schema.clone(), ran.evidence("run.intoto.jsonl")])?
            .exits(0)
            .with_context(|| format!("{outcome} {code}"))?;
    }
    Ok(())
}

fn job_schema(lab: &Lab) -> Result<()> {
    python(lab)?;
    let schema = lab.repository("docs/schema/job.schema.json");
    let source = lab.write("src/a", "x")?;
    let body = "env = { A = \"b\" }\n".to_owned()
        + &super::input("src", &format!("path = '{}'", source.display()), "/build/a", false)
        + &sh("a", "cp /build/a /build/x")
        + &super::output("x", "/build/x")
        + "[limits]\nmemory = \"1GiB\"\ncpus = 1.5\n";
    let job = lab.job(&body)?;
    lab.run(&job).end()?.ended(&Ending("succeeded", "", 0))?;
    script(lab, "check_schema.py", &[schema.clone(), job])?.exits(0)?;
    let wrong = lab.job(&(sh("a", "true") + "timout = \"1s\"\n"))?;
    let refused = script(lab, "check_schema.py", &[schema, wrong])?;
    ensure!(refused.status != Some(0), "the schema takes an unknown key");
    let example = lab.repository("examples/zstd/job.toml");
    read(&example)?;
    script(lab, "check_schema.py", &[lab.repository("docs/schema/job.schema.json"), example])?
        .exits(0)
        .map(drop)
}
