//! A job that succeeds: what comes out of it, and that the same job gives the same.

use super::{input, output, sh};
use crate::check::{Ending, Ran, equal, sha256, verify};
use crate::harness::Test;
use crate::lab::{Lab, mode_of, tree};
use crate::procs::patience;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::process::Command;
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::both("job_that_succeeds_leaves_outputs_and_evidence", succeeds),
    Test::both("json_lines_tell_the_job_in_order", json_lines),
    Test::both("make_in_a_fresh_checkout_works_without_a_job_file", quick_make),
    Test::both("same_job_twice_gives_equal_bytes_and_build_definition", twice),
    Test::both("development_key_is_private_and_named", development_key),
    Test::both("own_key_signs_and_its_builder_is_the_profiles", own_key),
    Test::both("parameters_enter_typed_and_are_recorded", parameters),
    Test::both("reports_and_optional_outputs_are_no_subjects", report_outputs),
    Test::both("output_without_out_lies_below_the_state_directory", default_out),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

fn succeeds(lab: &Lab) -> Result<()> {
    let body = sh("build", "echo made > /build/lib.a; echo seen; echo warned >&2")
        + &sh("test", "test -s /build/lib.a; cp /bin/true /build/tool; chmod 755 /build/tool")
        + &output("lib.a", "/build/lib.a")
        + &output("tool", "/build/tool");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    // What the README shows, and beside it the admitted spec and each stream alone.
    let expected = [
        "evidence/lib.a.intoto.jsonl",
        "evidence/lib.a.sigstore.json",
        "evidence/logs/0-build.log",
        "evidence/logs/0-build.stderr",
        "evidence/logs/0-build.stdout",
        "evidence/logs/1-test.stderr",
        "evidence/logs/1-test.stdout",
        "evidence/report.json",
        "evidence/result.json",
        "evidence/run.intoto.jsonl",
        "evidence/spec.json",
        "evidence/tool.intoto.jsonl",
        "evidence/tool.sigstore.json",
        "outputs/lib.a",
        "outputs/tool",
    ];
    let mut found = tree(&ran.out)?;
    // A step that wrote nothing may have an empty log or none.
    found.retain(|name| name != "evidence/logs/1-test.log");
    equal("files", &found.iter().map(String::as_str).collect::<Vec<_>>(), &expected.to_vec())?;
    equal("output", &ran.output_text("lib.a")?, &"made\n".to_owned())?;
    equal("mode", &mode_of(&ran.out.join("outputs/lib.a"))?, &0o644)?;
    equal("mode of a program", &mode_of(&ran.out.join("outputs/tool"))?, &0o755)?;
    ran.verifies_output("lib.a")?;
    ran.verifies_output("tool")?;
    let result = ran.result()?;
    let job = result["job"].as_str().context("no job")?;
    equal("retryable", &result["retryable"], &Value::from(false))?;
    equal("step", &result["step"], &Value::Null)?;
    let provenance = ran.statement("lib.a.intoto.jsonl")?;
    let metadata = &provenance["predicate"]["runDetails"]["metadata"];
    equal("invocation", &metadata["invocationId"], &Value::from(format!("urn:uuid:{job}")))?;
    equal("subjects", &provenance["subject"].as_array().map(Vec::len), &Some(2))?;
    named_by_digest(&ran, "lib.a")
}

/// The digest on the terminal, in provenance and of the file are one.
fn named_by_digest(ran: &Ran, name: &str) -> Result<()> {
    let digest = sha256(&ran.output(name)?);
    ensure!(
        ran.stderr.contains(&format!("sha256:{digest}")),
        "stderr does not name {digest}:\n{}",
        ran.stderr
    );
    let statement = ran.statement(&format!("{name}.intoto.jsonl"))?;
    let subjects = statement["subject"].as_array().context("no subjects")?;
    let found = subjects.iter().any(|s| s["name"] == name && s["digest"]["sha256"] == *digest);
    ensure!(found, "{name} is no subject: {subjects:?}");
    Ok(())
}

fn json_lines(lab: &Lab) -> Result<()> {
    let job = lab.job(&(sh("build", "echo hello; echo made > /build/a") + &output("a", "/build/a")))?;
    let ran = lab.run(&job).arg("--json").end()?.ended(&SUCCEEDED)?;
    let lines = ran.json_lines()?;
    let events: Vec<&str> =
        lines.iter().filter_map(|l| l["event"].as_str()).filter(|e| *e != "phase").collect();
    let expected = ["admitted", "step_started", "log", "step_finished", "closed", "result"];
    equal("events", &events, &expected.to_vec())?;
    let last = lines.last().context("no lines")?;
    for (key, value) in [
        ("outcome", Value::from("succeeded")),
        ("exit", 0.into()),
        ("code", Value::Null),
        ("provenance", true.into()),
    ] {
        equal(key, &last[key], &value)?;
    }
    equal("output", &last["outputs"][0]["sha256"], &Value::from(sha256(b"made\n")))?;
    let log = lines.iter().find(|l| l["event"] == "log").context("no log")?;
    equal("log", &log["text"], &Value::from("hello\n"))
}

fn quick_make(lab: &Lab) -> Result<()> {
    let project = lab.path("My Project");
    let files = [
        ("Makefile", "hello: main.o words.o\n\t$(CC) -o $@ $^\n%.o: %.c words.h\n\t$(CC) -O2 -c $<\n"),
        ("main.c", "#include \"words.h\"\n#include <stdio.h>\nint main(void) { puts(words()); return 0; }\n"),
        ("words.h", "const char *words(void);\n"),
        ("words.c", "#include \"words.h\"\nconst char *words(void) { return \"hello\"; }\n"),
    ];
    for (name, text) in files {
        lab.write(&format!("My Project/{name}"), text)?;
    }
    let before = tree(&project)?;
    let ran = lab
        .ampoule()
        .within(&project)
        .args(["run", "--output", "hello", "--state"])
        .arg(lab.state())
        .arg("--out")
        .arg(lab.path("out"))
        .args(["--", "make"])
        .end()?
        .ended(&SUCCEEDED)?;
    equal("the project's files", &tree(&project)?, &before)?;
    let made = Command::new(ran.out.join("outputs/hello")).output()?;
    equal("what it says", &String::from_utf8_lossy(&made.stdout).into_owned(), &"hello\n".to_owned())?;
    ran.verifies_output("hello")?;
    ensure!(ran.took < patience(Duration::from_secs(60)), "it took {:?}", ran.took);
    Ok(())
}

fn twice(lab: &Lab) -> Result<()> {
    let source = lab.write("src/main.c", "int main(void) { return 0; }\n")?;
    let source = source.parent().context("no parent")?;
    let body = input("src", &format!("path = '{}'", source.display()), "/build/src", true)
        + &sh(
            "build",
            "cd /build/src; cc -g -o prog main.c; date > now; find /build | sort; ls -l --time-style=+%s main.c",
        )
        + &output("prog", "/build/src/prog");
    let job = lab.job(&body)?;
    let first = lab.run(&job).end()?.ended(&SUCCEEDED)?;
    let second = lab.run(&job).end()?.ended(&SUCCEEDED)?;
    ensure!(first.output("prog")? == second.output("prog")?, "the outputs differ");
    equal("log", &first.log_text("0-build.stdout")?, &second.log_text("0-build.stdout")?)?;
    let (one, two) = (first.statement("prog.intoto.jsonl")?, second.statement("prog.intoto.jsonl")?);
    let definition = |s: &Value| s["predicate"]["buildDefinition"].clone();
    equal("buildDefinition", &definition(&one), &definition(&two))?;
    ensure!(one != two, "two runs have one invocation");
    let text = definition(&one).to_string();
    for run_alone in
        [lab.path("").display().to_string().as_str(), first.result()?["job"].as_str().unwrap_or("?")]
    {
        ensure!(!text.contains(run_alone), "buildDefinition names {run_alone}");
    }
    Ok(())
}

fn development_key(lab: &Lab) -> Result<()> {
    let ran =
        lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?.says(&["builders/dev/v1", "no provenance"])?;
    let keys = lab.state().join("keys");
    equal("keys", &tree(&keys)?, &vec!["development.pem".to_owned(), "development.pub".to_owned()])?;
    equal("private key", &mode_of(&keys.join("development.pem"))?, &0o600)?;
    equal("state directory", &mode_of(&lab.state())?, &0o700)?;
    ensure!(
        ran.stderr.contains(&lab.key().display().to_string()),
        "the public key is not named:\n{}",
        ran.stderr
    );
    let beside = tree(&ran.out)?.into_iter().any(|name| name.ends_with(".pub") || name.ends_with(".pem"));
    ensure!(!beside, "a key lies beside what it vouches for");
    let report = ran.evidence("report.json");
    let run = ran.evidence("run.intoto.jsonl");
    let refused = lab
        .ampoule()
        .arg("verify")
        .arg(&report)
        .arg("--attestation")
        .arg(&run)
        .arg("--key")
        .arg(lab.key())
        .arg("--run")
        .end()?;
    refused.exits(2)?.says(&["dev"])?;
    let first = fs::read(lab.key())?;
    lab.run_job(&sh("a", "true"))?.ended(&SUCCEEDED)?;
    ensure!(fs::read(lab.key())? == first, "the key was made anew");
    Ok(())
}

/// A key pair made by openssl, as a user would: private and public PEM.
pub(super) fn make_key(lab: &Lab, name: &str) -> Result<(std::path::PathBuf, std::path::PathBuf)> {
    let (key, public) = (lab.path(&format!("{name}.key")), lab.path(&format!("{name}.pub")));
    let made = |args: &[&str]| -> Result<()> { lab.call("openssl").args(args).end()?.exits(0).map(drop) };
    let (key_text, public_text) = (key.display().to_string(), public.display().to_string());
    made(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &key_text])?;
    made(&["pkey", "-pubout", "-in", &key_text, "-out", &public_text])?;
    Ok((key, public))
}

fn own_key(lab: &Lab) -> Result<()> {
    let (key, public) = make_key(lab, "own")?;
    let job = lab.job(&(sh("a", "echo x > /build/x") + &output("x", "/build/x")))?;
    let mut ran = lab.run(&job).arg("--key").arg(&key).args(["--authority", "https://builds.test"]).end()?;
    ran.key = public.clone();
    let ran = ran.ended(&SUCCEEDED)?;
    ran.verifies_output("x")?;
    // The image is the host's, so the builder never claims more than `host`; an ordinary user's is `dev`.
    let mode = if lab.is_root() { "host" } else { "dev" };
    let builder = format!("https://builds.test/builders/{mode}/v1");
    equal("builder", &ran.result()?["builder"], &Value::from(builder.as_str()))?;
    let statement = ran.statement("x.intoto.jsonl")?;
    equal("builder", &statement["predicate"]["runDetails"]["builder"]["id"], &Value::from(builder.as_str()))?;
    let complete = &statement["predicate"]["buildDefinition"]["resolvedDependencies"][0]["annotations"];
    equal("host image", &complete["ampoule_complete"], &Value::from("false"))?;
    let file = ran.out.join("outputs/x");
    let attestation = ran.evidence("x.intoto.jsonl");
    let bound = verify(&ran.program, &file, &attestation, &public, &["--builder", &builder])?;
    equal("--builder", &bound.0, &Some(0))?;
    let other = verify(&ran.program, &file, &attestation, &public, &["--builder", "https://other.test/x"])?;
    equal("another --builder", &other.0, &Some(2))
}

fn parameters(lab: &Lab) -> Result<()> {
    let body = "[params.version]\ntype = \"string\"\n[params.jobs]\ntype = \"integer\"\ndefault = 2\n\
                [params.debug]\ntype = \"bool\"\n[[step]]\nname = \"a\"\n\
                run = [\"sh\", \"-c\", 'printf \"%s|%s|%s\" \"$1\" \"$2\" \"$DEBUG\" > /build/x', \"sh\", \
                \"${params.version}\", \"${params.jobs}\"]\nenv = { DEBUG = \"${params.debug}\" }\n"
        .to_owned()
        + &output("x", "/build/x");
    let job = lab.job(&body)?;
    let given = ["--param", "version=1.3.1; rm -rf /", "--param", "debug=true"];
    let ran = lab.run(&job).args(given).end()?.ended(&SUCCEEDED)?;
    equal("values", &ran.output_text("x")?, &"1.3.1; rm -rf /|2|true".to_owned())?;
    let statement = ran.statement("x.intoto.jsonl")?;
    let params = &statement["predicate"]["buildDefinition"]["externalParameters"]["params"];
    equal("version", &params["version"]["value"], &Value::from("1.3.1; rm -rf /"))?;
    equal("jobs", &params["jobs"], &serde_json::json!({"type": "integer", "value": "2"}))?;
    let (file, attestation) = (ran.out.join("outputs/x"), ran.evidence("x.intoto.jsonl"));
    let with =
        |pair: &str| verify(&ran.program, &file, &attestation, &ran.key, &["--param", pair]).map(|v| v.0);
    equal("verify --param", &with("jobs=2")?, &Some(0))?;
    equal("verify --param with another value", &with("jobs=3")?, &Some(2))?;
    for bad in [&["--param", "debug=yes"][..], &["--param", "debug=true"], &["--param", "other=1"]] {
        lab.run(&job).args(bad).end()?.exits(64)?.says(&["job.invalid"])?;
    }
    Ok(())
}

fn report_outputs(lab: &Lab) -> Result<()> {
    let body = sh("a", "echo r > /build/r.xml; echo x > /build/x")
        + &output("x", "/build/x")
        + &(output("r.xml", "/build/r.xml") + "kind = \"report\"\n")
        + &(output("none", "/build/none") + "optional = true\n");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let outputs = tree(&ran.out.join("outputs"))?;
    equal("outputs", &outputs, &vec!["r.xml".to_owned(), "x".to_owned()])?;
    let statement = ran.statement("x.intoto.jsonl")?;
    let subjects = statement["subject"].as_array().context("no subjects")?;
    equal("subjects", &subjects.len(), &1)?;
    let byproducts = statement["predicate"]["runDetails"]["byproducts"].to_string();
    ensure!(byproducts.contains("output:r.xml"), "the report is no byproduct: {byproducts}");
    ensure!(!ran.evidence("r.xml.intoto.jsonl").exists(), "a report has provenance");
    Ok(())
}

fn default_out(lab: &Lab) -> Result<()> {
    let job = lab.job(&(sh("a", "echo x > /build/x") + &output("x", "/build/x")))?;
    let ran = lab.ampoule().arg("run").arg(job).arg("--state").arg(lab.state()).end()?.exits(0)?;
    let runs = lab.state().join("runs");
    let names = tree(&runs)?;
    ensure!(names.iter().any(|n| n.ends_with("/outputs/x")), "no output below {}: {names:?}", runs.display());
    ran.says(&[&runs.display().to_string()]).map(drop)
}
