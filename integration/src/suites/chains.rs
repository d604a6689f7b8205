//! What another job has made, as an input of a job that is submitted: the daemon verifies whose it is, with keys of its operator's.

use super::{input, output, sh};
use crate::ampouled::Ampouled;
use crate::check::{Ending, Ran, equal, sha256};
use crate::harness::Test;
use crate::lab::Lab;
use crate::procs;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("submitted_job_takes_what_another_has_made_and_names_it", chain),
    Test::root("what_provenance_does_not_prove_is_not_taken", refused),
    Test::root("agent_killed_after_it_has_believed_goes_on", killed),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
const BUILDER: &str = "https://builds.test.example/builders/host/v1";
const TRUST: &str = "[project.default]\ntrust = \"operators/trust.json\"\n";

/// Has the operator of the daemon, and who submits here, believe this key.
fn believe(lab: &Lab, key: &Path, to: &str) -> Result<()> {
    let key = json!({"publicKey": fs::read_to_string(key)?, "builder": BUILDER});
    lab.write(to, json!({"ampoule": 1, "keys": [key]}).to_string()).map(drop)
}

/// A job with a file, a directory and an archive.
fn first(lab: &Lab, daemon: &Ampouled<'_>) -> Result<Ran> {
    let steps = sh("build", "echo lib > libz.a; mkdir d; echo f > d/f; tar -C d -cf d.tar .");
    let outputs = ["libz.a", "d", "d.tar"].map(|name| output(name, &format!("/build/{name}")));
    let job = lab.job(&(steps + &outputs.concat()))?;
    let made = daemon.ended(daemon.submit(&job, "first").start()?)?.ended(&SUCCEEDED)?;
    believe(lab, &daemon.key(), "operators/trust.json")?;
    believe(lab, &daemon.key(), "trust.json")?;
    Ok(made)
}

fn attested(made: &Ran, subject: &str, more: &str) -> String {
    let (file, path) =
        (made.evidence(&format!("{subject}.intoto.jsonl")), made.out.join("outputs").join(subject));
    format!(
        "attestation = {{ file = '{}', path = '{}', trust = 'trust.json', subject = '{subject}'{more} }}",
        file.display(),
        path.display(),
    )
}

fn use_it(source: &str) -> String {
    sh("use", "cat /build/lib > /build/out")
        + &input("lib", source, "/build/lib", false)
        + &output("out", "/build/out")
}

fn chain(lab: &Lab) -> Result<()> {
    let daemon = Ampouled::start_signing_with(lab, TRUST)?;
    let made = first(lab, &daemon)?;
    let runs =
        |body: &str, key: &str| daemon.ended(daemon.submit(&lab.job(body)?, key).start()?)?.ended(&SUCCEEDED);
    let ran = runs(&use_it(&attested(&made, "libz.a", "")), "file")?;
    equal("bytes", &ran.output("out")?, &b"lib\n".to_vec())?;
    ran.verifies_output("out")?;
    let definition = ran.statement("out.intoto.jsonl")?["predicate"]["buildDefinition"].clone();
    let by = made.statement("libz.a.intoto.jsonl")?;
    let invocation =
        by["predicate"]["runDetails"]["metadata"]["invocationId"].as_str().context("invocation")?;
    let dependency = &definition["resolvedDependencies"][1];
    equal("uri", &dependency["uri"], &json!(format!("{invocation}#libz.a")))?;
    equal("digest", &dependency["digest"]["sha256"], &json!(sha256(b"lib\n")))?;
    equal("builder", &dependency["annotations"]["ampoule_builder"], &json!(BUILDER))?;
    // A directory, and an archive by its bundle; what the project has is not uploaded again.
    let source = attested(&made, "d", "");
    let body = sh("use", "cat /build/d/f > /build/out") + &output("out", "/build/out");
    let directory = body.clone() + &input("d", &source, "/build/d", false);
    equal("file of the directory", &runs(&directory, "directory")?.output("out")?, &b"f\n".to_vec())?;
    let nowhere = directory.replace(&format!("path = '{}', ", made.out.join("outputs/d").display()), "");
    ensure!(nowhere != directory, "the path is still there");
    equal("the same without a path", &runs(&nowhere, "nowhere")?.output("out")?, &b"f\n".to_vec())?;
    let bundle =
        attested(&made, "d.tar", ", unpack = true").replace("d.tar.intoto.jsonl", "d.tar.sigstore.json");
    let archive = body + &input("d", &bundle, "/build/d", false);
    equal("file of the archive", &runs(&archive, "archive")?.output("out")?, &b"f\n".to_vec())?;
    daemon.stop()
}

fn refused(lab: &Lab) -> Result<()> {
    let daemon = Ampouled::start_signing_with(lab, TRUST)?;
    let made = first(lab, &daemon)?;
    let body = use_it(&attested(&made, "libz.a", ""));
    let denied = |body: &str, args: &[&str], status: i32, says: &[&str]| -> Result<()> {
        let key = format!("k{}", sha256(format!("{body}{args:?}{says:?}").as_bytes()));
        let ran = daemon.submit(&lab.job(body)?, &key).args(args).end()?.exits(status)?.says(says)?;
        ensure!(!ran.stderr.contains("operators"), "a path of the host: {}", ran.stderr);
        Ok(())
    };
    denied(&body, &["--project", "other"], 64, &["job.invalid", "believes nobody's provenance"])?;
    // The client believes somebody whom the operator does not.
    let (_, other) = super::run::make_key(lab, "other")?;
    believe(lab, &other, "operators/trust.json")?;
    denied(&body, &[], 2, &["verify.refused", "not trusted"])?;
    lab.write("operators/trust.json", "{}")?;
    denied(&body, &[], 70, &["internal"])?;
    believe(lab, &daemon.key(), "operators/trust.json")?;
    // Whoever sends a request of his own may say what he likes, and has to prove it.
    let ran = daemon.ended(daemon.submit(&lab.job(&body)?, "good").start()?)?.ended(&SUCCEEDED)?;
    let spec: Value = serde_json::from_slice(&fs::read(ran.evidence("spec.json"))?)?;
    let says =
        |key: &str, change: &dyn Fn(&mut Value), proof: &Path, status: i32, text: &str| -> Result<()> {
            let mut spec = spec.clone();
            change(&mut spec["inputs"][0]["source"]);
            let file = lab.write(&format!("{key}.json"), spec.to_string())?;
            let submit =
                lab.call(lab.program("examples/submit_spec")).arg(daemon.socket()).args(["default", key]);
            submit.arg(file).arg(proof).end()?.exits(status)?.says(&[text]).map(drop).context(key.to_owned())
        };
    let good = made.evidence("libz.a.intoto.jsonl");
    let nothing = lab.write("nothing", "")?;
    says("as-it-is", &|_| {}, &good, 0, "")?;
    says("no-proof", &|_| {}, &nothing, 64, "attestation.provenance: missing")?;
    // What else the project has.
    lab.write("f", "f")?;
    let uploads = sh("a", "true") + &input("f", "path = 'f'", "/build/f", false);
    daemon.ended(daemon.submit(&lab.job(&uploads)?, "f").start()?)?.ended(&SUCCEEDED)?;
    let else_where = made.evidence("d.tar.intoto.jsonl");
    says("digest", &|s| s["sha256"] = json!(sha256(b"f")), &good, 64, "proves something else")?;
    says(
        "job",
        &|s| s["made_by"]["job"] = json!("01890a5d-ac96-774b-bcce-b302099a8057"),
        &good,
        64,
        "something else",
    )?;
    says("key", &|s| s["made_by"]["key"] = json!("SHA256:x"), &good, 64, "something else")?;
    says("builder", &|s| s["made_by"]["builder"] = json!("https://e.example/b"), &good, 2, "is expected")?;
    says("subject", &|s| s["made_by"]["subject"] = json!("none"), &else_where, 64, "no subject")?;
    let run = made.evidence("run.intoto.jsonl");
    says("run", &|s| s["made_by"]["subject"] = json!("report.json"), &run, 2, "predicateType")?;
    let mut envelope: Value = serde_json::from_slice(&fs::read(&good)?)?;
    let signature =
        envelope["signatures"][0]["sig"].as_str().context("sig")?.replacen(['A', 'B', 'C'], "D", 1);
    envelope["signatures"][0]["sig"] = json!(signature);
    let forged = lab.write("forged.jsonl", envelope.to_string())?;
    says("forged", &|_| {}, &forged, 2, "signature")?;
    let large = lab.write("large", vec![b' '; (1 << 20) + 1])?;
    says("large", &|_| {}, &large, 64, "at most 1048576 bytes")?;
    daemon.stop()
}

fn killed(lab: &Lab) -> Result<()> {
    let mut daemon = Ampouled::start_signing_with(lab, &format!("{TRUST}[limits]\nrunning = 1\n"))?;
    let made = first(lab, &daemon)?;
    // Behind another one, so that it has taken nothing in when the agent dies.
    let slow = daemon.submit(&lab.job(&sh("a", "sleep 4"))?, "slow").start()?;
    let jobs = |wanted: usize| {
        let listed =
            || daemon.ampoule("list").end().is_ok_and(|ran| ran.stdout_text().lines().count() == wanted);
        procs::eventually(Duration::from_secs(30), "the jobs are there", listed)
    };
    jobs(2)?;
    let live = daemon.submit(&lab.job(&use_it(&attested(&made, "libz.a", "")))?, "k").start()?;
    jobs(3)?;
    // What was believed when the job was taken is not asked again; nobody could answer.
    fs::remove_file(lab.path("operators/trust.json"))?;
    daemon.kill_and_start(Duration::ZERO)?;
    equal("bytes", &daemon.ended(live)?.ended(&SUCCEEDED)?.output("out")?, &b"lib\n".to_vec())?;
    daemon.ended(slow)?.ended(&SUCCEEDED)?;
    daemon.stop()
}
