//! What a daemon says of where content came from, with real servers: a URL, a registry and a repository answer for what they
//! have given to this project, and nobody else answers for them.

use super::git::git_server::{Answer, GitServer, Tamper, commit_all, git, git_raw, init};
use super::images::root;
use super::{exec, input, output, sh};
use crate::ampouled::Ampouled;
use crate::check::{Ending, Ran, equal, read, sha256};
use crate::harness::Test;
use crate::image::{Entry, oci_layout, tar};
use crate::lab::Lab;
use crate::registry::{Blobs, Registry, Wants};
use crate::serve::Server;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(super) const TESTS: &[Test] = &[
    Test::root("url_is_asked_by_each_project_and_no_upload_answers_for_it", downloads),
    Test::root("credentials_for_a_registry_are_of_the_projects_that_have_them", credentials),
    Test::root("layers_named_and_not_given_are_not_mounted", layers_of_others),
    Test::root("repository_is_asked_by_each_project_for_the_same_commit", commits),
    Test::root("run_asks_a_place_that_it_has_not_asked_before", local),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
const BYTES: &[u8] = b"from afar\n";

fn far(url: &str) -> String {
    let source = format!("http = {{ url = \"{url}\", sha256 = \"{}\" }}", sha256(BYTES));
    input("far", &source, "/build/far", false)
}

fn body() -> String {
    sh("copy", "cp far out") + &output("out", "/build/out")
}

fn submit(daemon: &Ampouled<'_>, job: &Path, project: &str, key: &str) -> Result<Ran> {
    daemon.ended(daemon.submit(job, key).args(["--project", project]).start()?)
}

/// What a run attestation claims of where something came from.
fn claimed(statement: &Value, name: &str) -> Result<Value> {
    let text = statement["predicate"]["agentClaims"]["downloads"].as_str().context("no claim")?;
    Ok(serde_json::from_str::<Value>(text)?[name].clone())
}

fn claim(ran: &Ran, name: &str) -> Result<Value> {
    claimed(&ran.statement("run.intoto.jsonl")?, name)
}

fn downloads(lab: &Lab) -> Result<()> {
    let server = Server::start("200 OK", BYTES.to_vec())?;
    let other = Server::start("200 OK", b"something else\n".to_vec())?;
    lab.list(&server.url("f"))?;
    lab.list(&other.url("f"))?;
    let mut daemon = Ampouled::start(lab)?;
    // The store has the bytes, and the project has shown them: that is no word about a URL.
    lab.write("same", BYTES)?;
    let uploaded = lab.job(&(input("far", "path = 'same'", "/build/far", false) + &body()))?;
    submit(&daemon, &uploaded, "a", "upload")?.ended(&SUCCEEDED)?;
    let url = server.url("f");
    let job = lab.job(&(far(&url) + &body()))?;
    let first = submit(&daemon, &job, "a", "first")?.ended(&SUCCEEDED)?;
    equal("requests for what was uploaded", &server.requests(), &1)?;
    let named =
        &first.statement("out.intoto.jsonl")?["predicate"]["buildDefinition"]["resolvedDependencies"][1];
    equal("uri", &named["uri"], &Value::from(url.as_str()))?;
    let fetched = claim(&first, "far")?;
    ensure!(fetched["earlier"] == false && fetched["from"] == url.as_str(), "{fetched}");
    daemon.kill_and_start(Duration::ZERO)?;
    let again = submit(&daemon, &job, "a", "again")?.ended(&SUCCEEDED)?;
    equal("requests for what this project has fetched", &server.requests(), &1)?;
    let earlier = claim(&again, "far")?;
    ensure!(earlier["earlier"] == true && earlier["at"] == fetched["at"], "{earlier} after {fetched}");
    let theirs = submit(&daemon, &job, "b", "theirs")?.ended(&SUCCEEDED)?;
    equal("requests of another project", &server.requests(), &2)?;
    ensure!(claim(&theirs, "far")?["earlier"] == false, "it was asked in this run");
    let elsewhere = lab.job(&(far(&server.url("g")) + &body()))?;
    submit(&daemon, &elsewhere, "a", "elsewhere")?.ended(&SUCCEEDED)?;
    equal("requests for another URL", &server.requests(), &3)?;
    // Who never had it does not become its origin.
    let never = lab.job(&(far(&other.url("f")) + &body()))?;
    submit(&daemon, &never, "a", "never")?.exits(65)?.says(&["input.digest_mismatch"])?;
    daemon.stop()
}

/// An image of two layers in two repositories of a registry.
fn images<'a>(lab: &'a Lab<'a>) -> Result<(Registry<'a>, String)> {
    let registry = Registry::start(lab, Wants::Password, Blobs::Here)?;
    let upper = tar(&[Entry::Dir("opt/"), Entry::File("opt/changed", 0o644, b"upper\n")])?;
    oci_layout(&lab.path("layout"), &[root(&read(&lab.probe()?)?)?, upper])?;
    let digest = registry.copy("oci:layout:base", "team/base:v1", &["--format", "oci"])?;
    let same = registry.copy("oci:layout:base", "rogue/base:v1", &["--format", "oci"])?;
    equal("digest", &same, &digest)?;
    Ok((registry, digest))
}

fn image_job(
    lab: &Lab,
    registry: &Registry<'_>,
    repository: &str,
    digest: &str,
) -> Result<std::path::PathBuf> {
    let body = exec("changed", &["/bin/probe", "cat", "/opt/changed"])
        + &exec("x", &["/bin/probe", "write", "/build/x", "made"])
        + &output("x", "/build/x");
    lab.job_of(&format!("docker://{}/{repository}@sha256:{digest}", registry.host()), &body)
}

/// The configuration of projects that may use the registry's credentials.
fn may_log_in(projects: &[&str]) -> String {
    let table = |project: &&str| format!("[project.{project}]\nregistry_auth = \"registry/auth.json\"\n");
    projects.iter().map(table).collect()
}

fn blobs(registry: &Registry<'_>) -> Result<usize> {
    Ok(registry.asked()?.iter().filter(|a| a.contains("/blobs/") && a.ends_with("200")).count())
}

fn credentials(lab: &Lab) -> Result<()> {
    let (registry, digest) = images(lab)?;
    let daemon = Ampouled::start_with(lab, &may_log_in(&["a"]))?;
    let job = image_job(lab, &registry, "team/base:v1", &digest)?;
    let denied = |project: &str, key: &str| -> Result<()> {
        let ran = submit(&daemon, &job, project, key)?.exits(77)?.says(&["input.source_denied", "401"])?;
        let text = ran.stderr.replace(&format!("docker://{}", registry.host()), "");
        ensure!(!text.contains(&lab.path("registry").display().to_string()), "a path of the host: {text}");
        Ok(())
    };
    denied("b", "one")?;
    let ran = submit(&daemon, &job, "a", "two")?.ended(&SUCCEEDED)?;
    equal("file of the upper layer", &ran.log_text("0-changed.stdout")?, &"upper\n".to_owned())?;
    ensure!(claim(&ran, "image:oci")?["earlier"] == false, "it was asked in this run");
    equal("blobs", &blobs(&registry)?, &3)?;
    // The store has the image now, and that is nothing to a project that cannot log in.
    denied("b", "three")?;
    denied("default", "four")?;
    let asked = registry.asked()?.len();
    let again = submit(&daemon, &job, "a", "five")?.ended(&SUCCEEDED)?;
    equal("what was asked for what this project has fetched", &registry.asked()?.len(), &asked)?;
    ensure!(claim(&again, "image:oci")?["earlier"] == true, "nobody was asked in this run");
    daemon.stop()
}

fn layers_of_others(lab: &Lab) -> Result<()> {
    let (registry, digest) = images(lab)?;
    let manifest: Value = serde_json::from_slice(&registry.get("rogue/base/manifests/v1")?)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    // The registry names the layers and does not have them.
    for layer in layers {
        let digest = layer["digest"].as_str().context("no digest")?.replace(':', "/");
        let links = "data/docker/registry/v2/repositories/rogue/base/_layers";
        fs::remove_dir_all(registry.path(links).join(digest))?;
    }
    let daemon = Ampouled::start_with(lab, &may_log_in(&["a", "b"]))?;
    let (theirs, rogue) = (
        image_job(lab, &registry, "team/base:v1", &digest)?,
        image_job(lab, &registry, "rogue/base:v1", &digest)?,
    );
    // What is heard before anybody has the layers is what is heard afterwards.
    let refused = |project: &str, key: &str| -> Result<String> {
        let ran = submit(&daemon, &rogue, project, key)?.exits(64)?.says(&["input.missing", "404"])?;
        Ok(ran.result()?["message"].to_string())
    };
    let before = refused("b", "before")?;
    submit(&daemon, &theirs, "a", "theirs")?.ended(&SUCCEEDED)?;
    equal("what another project hears", &refused("b", "after")?, &before)?;
    equal("what hears who has them from elsewhere", &refused("a", "own")?, &before)?;
    // Each project fetches for itself, every byte.
    let fetched = blobs(&registry)?;
    submit(&daemon, &theirs, "b", "fetched")?.ended(&SUCCEEDED)?;
    equal("blobs for another project", &(blobs(&registry)? - fetched), &3)?;
    daemon.stop()
}

fn commits(lab: &Lab) -> Result<()> {
    let repositories = lab.path("repositories");
    init(&repositories.join("r"));
    fs::write(repositories.join("r/far"), BYTES)?;
    // More than a pipe holds: who has had it all along does not read it.
    fs::write(repositories.join("r/large"), vec![b'l'; 4 << 20])?;
    let commit = commit_all(&repositories.join("r"));
    let halved = Arc::new(AtomicBool::new(false));
    let server = GitServer::tampering(&repositories, halves(&repositories.join("r"), &commit, &halved));
    lab.list(&server.url("r"))?;
    let source = format!("git = {{ url = \"{}\", commit = \"{commit}\" }}", server.url("r"));
    let body = input("src", &source, "/build/src", false)
        + &sh("copy", "cp src/far out")
        + &output("out", "/build/out");
    // The store has it from a run that was nobody's project of the daemon.
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    ensure!(claim(&ran, "src")?["earlier"] == false, "it was asked in this run");
    let spec = ran.evidence("spec.json");
    let daemon = Ampouled::start(lab)?;
    for (project, key, more) in [("a", "1", 2), ("a", "2", 0), ("b", "3", 2), ("b", "4", 0)] {
        let before = server.requests().len();
        let (status, statement) = daemon.runs_spec(&spec, project, key)?;
        equal(&format!("status of {key}"), &status, &Some(0))?;
        equal(&format!("requests of {key}"), &(server.requests().len() - before), &more)?;
        let claimed = claimed(&statement, "src")?;
        ensure!(claimed["earlier"] == (more == 0) && claimed["from"] == server.url("r"), "{claimed}");
    }
    // Who gives the commit and its names and not the files gets nothing mounted, although the store has all of it.
    halved.store(true, Ordering::SeqCst);
    let (status, statement) = daemon.runs_spec(&spec, "c", "5")?;
    ensure!(status != Some(0), "half a commit was taken: {statement}");
    equal("sandbox", &statement["predicate"]["sandbox"], &Value::from("none"))?;
    halved.store(false, Ordering::SeqCst);
    let before = server.requests().len();
    equal("status of a whole one", &daemon.runs_spec(&spec, "c", "6")?.0, &Some(0))?;
    equal("requests after half of it", &(server.requests().len() - before), &2)?;
    daemon.stop()
}

/// Has the server leave the files out of a commit while it is told to.
fn halves(repository: &Path, commit: &str, halved: &Arc<AtomicBool>) -> Arc<Tamper> {
    let tree = git(repository, &["rev-parse", "HEAD^{tree}"]);
    let objects = format!("{commit}\n{tree}\n");
    let pack = git_raw(repository, &["pack-objects", "--stdout", "--quiet"], objects.as_bytes()).stdout;
    let halved = Arc::clone(halved);
    Arc::new(move |path, body| {
        const SECTION: &[u8] = b"packfile\n";
        let at = body.windows(SECTION.len()).position(|w| w == SECTION);
        match at.filter(|_| halved.load(Ordering::SeqCst) && path.ends_with("git-upload-pack")) {
            None => Answer::Bytes(body),
            Some(at) => {
                let head = body.get(..at + SECTION.len()).unwrap_or_default();
                let band = format!("{:04x}\u{1}", pack.len() + 5);
                Answer::Bytes([head, band.as_bytes(), &pack, b"0000"].concat())
            }
        }
    })
}

fn local(lab: &Lab) -> Result<()> {
    let server = Server::start("200 OK", BYTES.to_vec())?;
    let other = Server::start("200 OK", b"something else\n".to_vec())?;
    lab.list(&server.url("f"))?;
    lab.list(&other.url("f"))?;
    lab.write("same", BYTES)?;
    lab.run_job(&(input("far", "path = 'same'", "/build/far", false) + &body()))?.ended(&SUCCEEDED)?;
    let job = far(&server.url("f")) + &body();
    let first = lab.run_job(&job)?.ended(&SUCCEEDED)?;
    equal("requests for what lay here", &server.requests(), &1)?;
    let again = lab.run_job(&job)?.ended(&SUCCEEDED)?;
    equal("requests for what was fetched", &server.requests(), &1)?;
    let (fetched, earlier) = (claim(&first, "far")?, claim(&again, "far")?);
    ensure!(fetched["earlier"] == false && earlier["earlier"] == true, "{fetched} {earlier}");
    equal("when", &earlier["at"], &fetched["at"])?;
    lab.run_job(&(far(&server.url("g")) + &body()))?.ended(&SUCCEEDED)?;
    equal("requests for another URL", &server.requests(), &2)?;
    lab.run_job(&(far(&other.url("f")) + &body()))?.exits(65)?.says(&["input.digest_mismatch"])?;
    // A record that is lost has the place asked again.
    fs::remove_dir_all(lab.state().join("visits"))?;
    lab.run_job(&job)?.ended(&SUCCEEDED)?;
    equal("requests without a record", &server.requests(), &3)
}
