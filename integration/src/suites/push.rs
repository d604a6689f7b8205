//! Bringing what a run has released to Debian's docker-registry and into OCI layouts, read again by skopeo and curl.

use super::images::root;
use super::{exec, input, output, sh};
use crate::check::{Ending, Ran, anything_holds, equal, read, sha256, verify};
use crate::harness::Test;
use crate::image::oci_layout;
use crate::lab::{Lab, tree};
use crate::registry::{Blobs, Registry, Wants};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;

pub(super) const TESTS: &[Test] = &[
    Test::both("outputs_are_pushed_with_their_attestation_as_a_referrer", pushed),
    Test::both("pushing_again_sends_nothing_and_keeps_other_referrers", again),
    Test::both("push_with_a_token_is_for_this_repository_alone", token),
    Test::both("outputs_are_exported_to_a_layout_that_others_read", layout),
    Test::both("only_chosen_outputs_leave", chosen),
    Test::both("output_that_is_an_image_is_pushed_as_that_image_and_runs", image),
    Test::both("tree_is_pushed_as_an_archive_that_unpacks_to_it", directory),
    Test::both("nothing_is_pushed_without_provenance_or_after_a_change", not_released),
    Test::both("refused_pushes_say_why", refused),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A job with two artifacts and a report.
fn released(lab: &Lab) -> Result<Ran> {
    let body = sh("make", "echo one > one.txt; printf '#!/bin/sh\\n' > tool; chmod +x tool; echo log > log")
        + &output("one.txt", "/build/one.txt")
        + &output("tool", "/build/tool")
        + &output("log", "/build/log")
        + "kind = \"report\"\n";
    lab.run_job(&body)?.ended(&SUCCEEDED)
}

fn start<'a>(lab: &'a Lab<'a>) -> Result<Registry<'a>> {
    Registry::start(lab, Wants::Password, Blobs::Here)
}

/// The one object that `ampoule push --json` says.
fn said(ran: &Ran) -> Result<Value> {
    ran.json_lines()?.into_iter().next().context("it said nothing")
}

fn digest(value: &Value) -> Result<String> {
    let text = value.as_str().context("no digest")?;
    Ok(text.trim_start_matches("sha256:").to_owned())
}

fn pushed(lab: &Lab) -> Result<()> {
    let ran = released(lab)?;
    let registry = start(lab)?;
    let to = format!("docker://{}/out/put:v1", registry.host());
    let pushed = registry.push(&ran.out, &to).arg("--json").end()?.exits(0)?;
    ensure!(!pushed.stderr.contains("s3cret"), "{}", pushed.stderr);
    let said = said(&pushed)?;
    equal("found by a tag", &said["byTag"], &Value::from(true))?;
    // skopeo reads the manifest under its tag and by its digest.
    let args = ["inspect", "--raw", "--creds", crate::registry::LOGIN, &to];
    let raw = registry.skopeo(&args)?.exits(0)?.stdout;
    equal("manifest", &sha256(&raw), &digest(&said["manifest"])?)?;
    let manifest: Value = serde_json::from_slice(&raw)?;
    equal("artifact type", &manifest["artifactType"], &Value::from("application/vnd.ampoule.outputs.v1"))?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    let title = |layer: &Value| layer["annotations"]["org.opencontainers.image.title"].clone();
    let titles: Vec<Value> = layers.iter().map(title).collect();
    equal("outputs", &titles, &vec![Value::from("one.txt"), Value::from("tool")])?;
    equal("executable", &layers[1]["annotations"]["ampoule.executable"], &Value::from("true"))?;
    let bytes = registry.get(&format!("out/put/blobs/sha256:{}", digest(&layers[0]["digest"])?))?;
    equal("bytes of an output", &bytes, &b"one\n".to_vec())?;
    let file = lab.write("fetched/one.txt", &bytes)?;
    let bundle = lab.write("fetched/bundle.json", referrer(&registry, "out/put", &sha256(&raw))?)?;
    let (status, text) = verify(&ran.program, &file, &bundle, &ran.key, &[])?;
    equal(&text, &status, &Some(0))
}

/// The bundle that refers to a manifest, as a reader without the referrers API finds it.
fn referrer(registry: &Registry<'_>, repository: &str, subject: &str) -> Result<Vec<u8>> {
    let json = |path: String| -> Result<Value> { Ok(serde_json::from_slice(&registry.get(&path)?)?) };
    let index = json(format!("{repository}/manifests/sha256-{subject}"))?;
    let found = index["manifests"].as_array().context("no manifests")?;
    let bundles: Vec<&Value> = found.iter().filter(|m| m["artifactType"] == BUNDLE).collect();
    let [bundle] = bundles.as_slice() else { anyhow::bail!("{index}") };
    let manifest = json(format!("{repository}/manifests/sha256:{}", digest(&bundle["digest"])?))?;
    equal("subject", &digest(&manifest["subject"]["digest"])?, &subject.to_owned())?;
    let layer = &manifest["layers"][0];
    equal("kind of the layer", &layer["mediaType"], &Value::from(BUNDLE))?;
    registry.get(&format!("{repository}/blobs/sha256:{}", digest(&layer["digest"])?))
}

fn again(lab: &Lab) -> Result<()> {
    let ran = released(lab)?;
    let registry = start(lab)?;
    let to = format!("docker://{}/out/put:v1", registry.host());
    let first = said(&registry.push(&ran.out, &to).arg("--json").end()?.exits(0)?)?;
    let uploads = |asked: &[String]| asked.iter().filter(|a| a.contains("/blobs/uploads/")).count();
    let before = uploads(&registry.asked()?);
    equal("blobs that were sent", &first["sent"], &Value::from(4))?;
    let second = said(&registry.push(&ran.out, &to).arg("--json").end()?.exits(0)?)?;
    equal("sent again", &second["sent"], &Value::from(0))?;
    equal("uploads", &uploads(&registry.asked()?), &before)?;
    equal("manifest", &second["manifest"], &first["manifest"])?;
    // The same outputs of another job: one manifest, two attestations.
    let other = released(lab)?;
    let third = said(&registry.push(&other.out, &to).arg("--json").end()?.exits(0)?)?;
    equal("manifest of the same outputs", &third["manifest"], &first["manifest"])?;
    ensure!(third["attestation"] != first["attestation"], "one attestation for two jobs");
    let index = registry.get(&format!("out/put/manifests/sha256-{}", digest(&first["manifest"])?))?;
    let index: Value = serde_json::from_slice(&index)?;
    equal("attestations", &index["manifests"].as_array().map(Vec::len), &Some(2))
}

fn token(lab: &Lab) -> Result<()> {
    let ran = released(lab)?;
    let registry = Registry::start(lab, Wants::Token, Blobs::Here)?;
    registry.list_all()?;
    registry.push(&ran.out, &format!("docker://{}/out/put:v1", registry.host())).end()?.exits(0)?;
    let asked = registry.asked_beside("tokens")?;
    let [(path, _)] = asked.as_slice() else { anyhow::bail!("{asked:?}") };
    ensure!(path.ends_with("scope=repository%3Aout%2Fput%3Apull%2Cpush"), "{path}");
    Ok(())
}

fn layout(lab: &Lab) -> Result<()> {
    let ran = released(lab)?;
    let registry = start(lab)?;
    let export = |to: &str| lab.ampoule().arg("push").arg(&ran.out).arg(to).arg("--json").end();
    let said = said(&export("oci:put:v1")?.exits(0)?)?;
    let raw = registry.skopeo(&["inspect", "--raw", "oci:put:v1"])?.exits(0)?.stdout;
    equal("manifest", &sha256(&raw), &digest(&said["manifest"])?)?;
    // What is pushed is the same to the byte.
    let to = format!("docker://{}/out/put:v1", registry.host());
    registry.push(&ran.out, &to).end()?.exits(0)?;
    equal("pushed", &registry.get("out/put/manifests/v1")?, &raw)?;
    let names = tree(&lab.path("put"))?;
    equal("files", &names.len(), &8)?;
    for name in names.iter().filter(|name| name.starts_with("blobs/")) {
        let (_, digest) = name.rsplit_once('/').unwrap_or_default();
        equal("name of a blob", &sha256(&read(&lab.path("put").join(name))?), &digest.to_owned())?;
    }
    let index: Value = crate::check::json(&lab.path("put/index.json"))?;
    equal("attestation", &index["manifests"][1]["artifactType"], &Value::from(BUNDLE))?;
    // A directory that holds something is not written to.
    export("oci:put:v1")?.exits(64)?.says(&["export.refused", "holds something; name a new directory"])?;
    equal("files afterwards", &tree(&lab.path("put"))?, &names)?;
    fs::create_dir(lab.path("empty"))?;
    export("oci:empty")?.exits(0).map(drop)
}

fn image(lab: &Lab) -> Result<()> {
    // What a build would make: here it comes in and goes out again.
    let made = oci_layout(&lab.path("made"), &[root(&read(&lab.probe()?)?)?])?;
    let body = input("made", &format!("path = '{}'", lab.path("made").display()), "/build/made", false)
        + &sh("copy", "cp -r /build/made /build/image")
        + &output("image", "/build/image");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let registry = start(lab)?;
    let to = format!("docker://{}/out/image:v1", registry.host());
    let said = said(&registry.push(&ran.out, &to).arg("--json").end()?.exits(0)?)?;
    equal("manifest", &digest(&said["manifest"])?, &made)?;
    // skopeo takes it for an image, and so do we.
    let inspect = ["inspect", "--creds", crate::registry::LOGIN, &to];
    let seen: Value = serde_json::from_slice(&registry.skopeo(&inspect)?.exits(0)?.stdout)?;
    equal("digest", &digest(&seen["Digest"])?, &made)?;
    referrer(&registry, "out/image", &made)?;
    let pinned = format!("docker://{}/out/image:v1@sha256:{made}", registry.host());
    let job = lab.job_of(&pinned, &exec("a", &["/bin/probe", "cat", "/etc/os-release"]))?;
    let text = registry.run(&job).end()?.ended(&SUCCEEDED)?.log_text("0-a.stdout")?;
    equal("file of the image", &text, &"ID=tiny\n".to_owned())
}

/// A tree beside a file: what comes down again is, unpacked by other programs, what provenance names.
fn directory(lab: &Lab) -> Result<()> {
    let body = sh(
        "make",
        "mkdir -p dist/bin dist/empty; echo x > dist/x; echo y > dist/bin/t; chmod +x dist/bin/t; ln -s x dist/l",
    ) + &output("dist", "/build/dist")
        + &output("x", "/build/dist/x");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let registry = start(lab)?;
    let to = format!("docker://{}/out/tree:v1", registry.host());
    let first = said(&registry.push(&ran.out, &to).arg("--json").end()?.exits(0)?)?;
    let args = ["inspect", "--raw", "--creds", crate::registry::LOGIN, &to];
    let raw = registry.skopeo(&args)?.exits(0)?.stdout;
    equal("manifest", &sha256(&raw), &digest(&first["manifest"])?)?;
    let manifest: Value = serde_json::from_slice(&raw)?;
    let layer = &manifest["layers"][0];
    equal("media type", &layer["mediaType"], &Value::from("application/vnd.ampoule.tree.v1.tar+zstd"))?;
    let tree = ran.report()?["outputs"][0]["sha256"].as_str().context("digest")?.to_owned();
    equal("tree", &digest(&layer["annotations"]["ampoule.tree"])?, &tree)?;
    let bytes = registry.get(&format!("out/tree/blobs/sha256:{}", digest(&layer["digest"])?))?;
    equal("blob", &sha256(&bytes), &digest(&layer["digest"])?)?;
    let archive = lab.write("dist.tar.zst", bytes)?;
    fs::create_dir_all(lab.path("unpacked"))?;
    let unpack = lab.call("sh").args(["-ec", "zstd -dc \"$1\" | tar -x -C \"$2\"", "sh"]);
    unpack.arg(&archive).arg(lab.path("unpacked")).end()?.exits(0)?;
    let bundle = lab.write("bundle.json", referrer(&registry, "out/tree", &sha256(&raw))?)?;
    let (status, text) = verify(&ran.program, &lab.path("unpacked"), &bundle, &ran.key, &[])?;
    equal(&text, &status, &Some(0))?;
    // Again the same, to the byte, and to a layout too.
    let second = said(&registry.push(&ran.out, &to).arg("--json").end()?.exits(0)?)?;
    equal("again", &(&second["manifest"], &second["sent"]), &(&first["manifest"], &Value::from(0)))?;
    let layout = lab.ampoule().arg("push").arg(&ran.out).arg("oci:tree:v1").arg("--json").end()?.exits(0)?;
    equal("layout", &said(&layout)?["manifest"], &first["manifest"])?;
    fs::write(ran.out.join("outputs/dist/x"), "z\n")?;
    registry
        .push(&ran.out, &to)
        .end()?
        .exits(64)?
        .says(&["dist is no longer what provenance names"])
        .map(drop)
}

fn not_released(lab: &Lab) -> Result<()> {
    let registry = start(lab)?;
    let to = format!("docker://{}/out/put:v1", registry.host());
    let push = |out: &Path| registry.push(out, &to).end();
    let failed = lab.run_job(&(sh("make", "echo x > x; false") + &output("x", "/build/x")))?.exits(1)?;
    push(&failed.out)?.exits(64)?.says(&["export.refused", "no provenance was released"])?;
    let report = sh("make", "echo x > x") + &output("x", "/build/x") + "kind = \"report\"\n";
    let report = lab.run_job(&report)?.ended(&SUCCEEDED)?;
    push(&report.out)?.exits(64)?.says(&["export.refused", "no provenance was released"])?;
    let ran = released(lab)?;
    fs::write(ran.out.join("outputs/one.txt"), "two\n")?;
    push(&ran.out)?.exits(64)?.says(&["export.refused", "one.txt is no longer what provenance names"])?;
    push(&lab.path("none"))?.exits(64)?.says(&["export.refused", "not the output directory of a run"])?;
    equal("what the registry was asked", &registry.asked()?, &Vec::new())
}

fn refused(lab: &Lab) -> Result<()> {
    let ran = released(lab)?;
    let registry = start(lab)?;
    let to = format!("docker://{}/out/put:v1", registry.host());
    let without =
        |to: &str| lab.ampoule().arg("push").arg(&ran.out).arg(to).arg("--sources").arg(lab.sources());
    without(&to).end()?.exits(77)?.says(&["export.denied", "401", "--registry-auth FILE", "out/put"])?;
    without("docker://out/put").end()?.exits(64)?.says(&["usage", "there is no default registry"])?;
    without("docker://localhost:1/out").end()?.exits(77)?.says(&["export.denied", "localhost:1"])?;
    equal("repositories", &registry.path("data/docker/registry/v2/repositories/out").exists(), &false)?;
    let text = fs::read_to_string(lab.sources())?;
    fs::write(lab.sources(), text.replace(&registry.host(), "localhost:1"))?;
    let gone = without("docker://localhost:1/out").end()?.exits(75)?;
    gone.says(&["export.unreachable", "cannot be reached"]).map(drop)
}

fn chosen(lab: &Lab) -> Result<()> {
    let image =
        "mkdir -p d; echo '{\"imageLayoutVersion\":\"1.0.0\"}' > d/oci-layout; echo x > a; echo y > b";
    let body =
        sh("make", image) + &output("a", "/build/a") + &output("b", "/build/b") + &output("d", "/build/d");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let push = |to: &str, names: &[&str]| {
        let names = names.iter().flat_map(|name| ["--output", name]);
        lab.ampoule().arg("push").arg(&ran.out).arg(to).arg("--json").args(names).end()
    };
    let all = said(&push("oci:all", &[])?.exits(0)?)?;
    equal("all", &all["outputs"], &serde_json::json!(["a", "b", "d"]))?;
    let two = said(&push("oci:two", &["b", "a"])?.exits(0)?)?;
    equal("two", &two["outputs"], &serde_json::json!(["a", "b"]))?;
    let one = said(&push("oci:one", &["b"])?.exits(0)?)?;
    equal("one", &one["outputs"], &serde_json::json!(["b"]))?;
    ensure!(anything_holds(&lab.path("two"), b"x\n")?.is_some(), "a is not there");
    ensure!(anything_holds(&lab.path("one"), b"x\n")?.is_none(), "a left too");
    push("oci:none", &["c"])?.exits(64)?.says(&["export.refused", "no output \"c\"; it names a, b, d"])?;
    ensure!(!lab.path("none").exists(), "something was exported");
    Ok(())
}
