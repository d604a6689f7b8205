//! Git inputs from end to end: real repositories behind git's own HTTP server, a job, its provenance, and a peer that lies.

#[path = "../../../agent/tests/common/git_server.rs"]
pub(super) mod git_server;

use super::pool::Launcher;
use super::{input, output, probe, sh, with_probe};
use crate::check::{Ending, Ran, equal};
use crate::harness::Test;
use crate::image::{Entry, tar};
use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use git_server::{Answer, GitServer, commit_all, git, git_raw, git_with, init};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

pub(super) const TESTS: &[Test] = &[
    Test::both("job_builds_from_a_commit_and_provenance_names_it", builds),
    Test::both("second_use_of_a_commit_asks_nobody", second),
    Test::both("repository_here_needs_no_git_and_no_configuration", here),
    Test::both("submodules_are_there_or_empty_as_the_job_says", submodules),
    Test::both("commit_or_tag_must_be_signed_by_an_allowed_signer", signed),
    Test::both("commits_that_cannot_be_had_end_with_their_own_status", refused),
    Test::both("git_server_that_is_not_listed_is_not_asked", denied),
    Test::both("pin_writes_the_commit_of_a_branch_or_tag", pinned),
    Test::root("peer_that_lies_about_a_commit_gets_nothing_mounted", lying_peer),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
/// The committer's time of the commits of these tests.
pub(super) const COMMITTED: &str = "1600000100";

pub(super) fn source(place: &str, commit: &str, more: &str) -> String {
    format!("git = {{ {place}, commit = \"{commit}\"{more} }}")
}

pub(super) fn at(url: &str) -> String {
    format!("url = \"{url}\"")
}

/// A repository with a program to build, a link, and what git would change at a checkout.
pub(super) fn project(dir: &Path) -> Result<String> {
    init(dir);
    fs::write(dir.join(".gitattributes"), "*.c text eol=crlf ident\n")?;
    fs::write(dir.join("prog.c"), "int main(void) { return 0; } /* $Id$ */\n")?;
    fs::write(
        dir.join("build"),
        "#!/bin/sh\nset -e\ncc -o prog prog.c\n./prog\nsha256sum < prog.c > /build/sum\n",
    )?;
    fs::set_permissions(dir.join("build"), fs::Permissions::from_mode(0o755))?;
    symlink("prog.c", dir.join("link"))?;
    Ok(commit_all(dir))
}

pub(super) fn dependency(ran: &Ran, output: &str) -> Result<Value> {
    let statement = ran.statement(&format!("{output}.intoto.jsonl"))?;
    Ok(statement["predicate"]["buildDefinition"]["resolvedDependencies"][1].clone())
}

fn builds(lab: &Lab) -> Result<()> {
    let commit = project(&lab.path("repositories/r"))?;
    let server = GitServer::start(&lab.path("repositories"));
    let url = server.url("r");
    lab.list(&url)?;
    let body = "source_date_epoch = \"commit\"\n".to_owned()
        + &input("src", &source(&at(&url), &commit, ""), "/build/src", true)
        + &with_probe(lab)?
        + &probe("facts", &["facts", "/build/src/prog.c", "/build/src/build"])
        + &sh("build", "cd /build/src; ./build; readlink link; ls -A; echo $SOURCE_DATE_EPOCH")
        + &output("sum", "/build/sum");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let facts = format!(
        "/build/src/prog.c=0644 {COMMITTED} 1000:1000\n/build/src/build=0755 {COMMITTED} 1000:1000\n"
    );
    equal("facts", &ran.log_text("0-facts.stdout")?, &facts)?;
    let listed = format!("prog.c\n.gitattributes\nbuild\nlink\nprog\nprog.c\n{COMMITTED}\n");
    equal("files", &ran.log_text("1-build.stdout")?, &listed)?;
    // Neither line ends nor $Id$ were touched.
    let sum = crate::check::sha256(&fs::read(lab.path("repositories/r/prog.c"))?);
    ensure!(ran.output_text("sum")?.starts_with(&sum), "prog.c has other bytes");
    let found = dependency(&ran, "sum")?;
    let uri = format!("git+{url}@{commit}");
    equal("uri", &found["uri"], &json!(uri))?;
    equal("digest", &found["digest"], &json!({"gitCommit": commit}))?;
    ensure!(found["annotations"]["ampoule_tree_sha256"].as_str().is_some_and(|d| d.len() == 64), "{found}");
    for (expected, status) in [
        (uri.as_str(), 0),
        (&format!("git+{url}"), 0),
        (&format!("gitCommit:{commit}"), 0),
        (&format!("git+{url}x"), 2),
    ] {
        let attestation = ran.evidence("sum.intoto.jsonl");
        let file = ran.out.join("outputs/sum");
        let found =
            crate::check::verify(&ran.program, &file, &attestation, &ran.key, &["--source", expected])?;
        ensure!(found.0 == Some(status), "--source {expected}: {:?} {}", found.0, found.1);
    }
    Ok(())
}

fn second(lab: &Lab) -> Result<()> {
    let commit = project(&lab.path("repositories/r"))?;
    let server = GitServer::start(&lab.path("repositories"));
    lab.list(&server.url("r"))?;
    let body = "source_date_epoch = \"commit\"\n".to_owned()
        + &input("src", &source(&at(&server.url("r")), &commit, ""), "/build/src", false)
        + &sh("a", "cat /build/src/build");
    lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let asked = server.requests();
    equal("requests", &asked.len(), &2)?;
    ensure!(asked.first().is_some_and(|r| r.contains("service=git-upload-pack")), "{asked:?}");
    lab.run_job(&body)?.ended(&SUCCEEDED)?;
    equal("requests after the second run", &server.requests().len(), &2)?;
    // What was kept of the commit is worth nothing if it is another one.
    let kept = lab.state().join("git").join(&commit);
    fs::write(&kept, fs::read_to_string(&kept)?.replace(COMMITTED, "1500000100"))?;
    let ran = lab.run_job(&(body + &sh("b", "echo $SOURCE_DATE_EPOCH")))?.ended(&SUCCEEDED)?;
    equal("epoch", &ran.log_text("1-b.stdout")?, &format!("{COMMITTED}\n"))?;
    equal("requests after the third run", &server.requests().len(), &4)
}

fn here(lab: &Lab) -> Result<()> {
    let dir = lab.path("r");
    let commit = project(&dir)?;
    let ran_file = lab.path("ran");
    for key in ["core.fsmonitor", "core.sshCommand", "filter.x.smudge", "core.pager"] {
        git(&dir, &["config", key, &format!("touch '{}'", ran_file.display())]);
    }
    for name in ["post-checkout", "post-index-change", "reference-transaction"] {
        let hook = dir.join(".git/hooks").join(name);
        fs::write(&hook, format!("#!/bin/sh\ntouch '{}'\n", ran_file.display()))?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    }
    git(&dir, &["gc", "--quiet"]);
    let _ = fs::remove_file(&ran_file);
    // What is not committed is not there.
    fs::write(dir.join("new"), "x")?;
    fs::write(dir.join("prog.c"), "changed")?;
    let body = input("src", &source("path = \"r\"", &commit, ""), "/build/src", false)
        + &sh("a", "ls -A /build/src; wc -c < /build/src/prog.c > /build/n")
        + &output("n", "/build/n");
    let job = lab.job(&body)?;
    let ran = lab.run(&job).env("PATH", "/nonexistent").end()?.ended(&SUCCEEDED)?;
    equal("files", &ran.log_text("0-a.stdout")?, &".gitattributes\nbuild\nlink\nprog.c\n".to_owned())?;
    equal("size", &ran.output_text("n")?, &"40\n".to_owned())?;
    ensure!(!ran_file.exists(), "something of the repository was run");
    let found = dependency(&ran, "n")?;
    equal("uri", &found["uri"], &json!("urn:ampoule:input:src"))?;
    equal("digest", &found["digest"], &json!({"gitCommit": commit}))?;
    let text = fs::read_to_string(ran.evidence("run.intoto.jsonl"))?;
    ensure!(!text.contains(&*lab.path("r").display().to_string()), "a path of the host is attested");
    Ok(())
}

fn submodules(lab: &Lab) -> Result<()> {
    let (inner, outer) = (lab.path("repositories/inner"), lab.path("repositories/outer"));
    project(&inner)?;
    project(&outer)?;
    git(&outer, &["submodule", "--quiet", "add", &inner.display().to_string(), "lib/inner"]);
    git(&outer, &["config", "-f", ".gitmodules", "submodule.lib/inner.url", "../inner"]);
    let commit = commit_all(&outer);
    let server = GitServer::start(&lab.path("repositories"));
    lab.list(&server.url("outer"))?;
    let body = |submodules: bool| {
        let more = format!(", submodules = {submodules}");
        input("src", &source(&at(&server.url("outer")), &commit, &more), "/build/src", false)
            + &sh("a", "cd /build/src/lib/inner; ls -A; test ! -e .git")
    };
    let ran = lab.run_job(&body(true))?.ended(&SUCCEEDED)?;
    equal("with", &ran.log_text("0-a.stdout")?, &".gitattributes\nbuild\nlink\nprog.c\n".to_owned())?;
    let ran = lab.run_job(&body(false))?.ended(&SUCCEEDED)?;
    equal("without", &ran.log_text("0-a.stdout")?, &String::new())
}

pub(super) fn key(lab: &Lab, name: &str) -> Result<String> {
    let file = lab.path(name);
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "c", "-f"])
        .arg(&file)
        .status()?;
    ensure!(made.success(), "ssh-keygen: {made}");
    fs::read_to_string(file.with_extension("pub")).context("the public key")
}

fn signed(lab: &Lab) -> Result<()> {
    let dir = lab.path("repositories/r");
    let unsigned = project(&dir)?;
    let (mine, other) = (key(lab, "mine")?, key(lab, "other")?);
    let signing = format!("user.signingKey={}", lab.path("mine").display());
    git(&dir, &["-c", "gpg.format=ssh", "-c", &signing, "commit", "-q", "--allow-empty", "-S", "-m", "x"]);
    let commit = git(&dir, &["rev-parse", "HEAD"]);
    git(&dir, &["-c", "gpg.format=ssh", "-c", &signing, "tag", "-s", "-m", "x", "v1", &unsigned]);
    let server = GitServer::start(&lab.path("repositories"));
    lab.list(&server.url("r"))?;
    let allowed = format!("me@example.org namespaces=\"git\" {mine}");
    let run = |commit: &str, allowed: &str, more: &str| -> Result<Ran> {
        lab.write("allowed", allowed)?;
        let more = format!(", allowed_signers = \"allowed\"{more}");
        let body = input("src", &source(&at(&server.url("r")), commit, &more), "/build/src", false)
            + &sh("a", "echo it ran > /build/x")
            + &output("x", "/build/x");
        lab.run_job(&body)
    };
    let ran = run(&commit, &allowed, "")?.ended(&SUCCEEDED)?;
    let notes = dependency(&ran, "x")?["annotations"].clone();
    equal("principal", &notes["ampoule_signed_by"], &json!("me@example.org"))?;
    equal(
        "file",
        &notes["ampoule_allowed_signers_sha256"],
        &json!(crate::check::sha256(allowed.as_bytes())),
    )?;
    ensure!(notes["ampoule_signing_key"].as_str().is_some_and(|k| k.starts_with("SHA256:")), "{notes}");
    let ran = run(&unsigned, &allowed, ", tag = \"v1\"")?.ended(&SUCCEEDED)?;
    equal("tag", &dependency(&ran, "x")?["annotations"]["ampoule_signed_tag"], &json!("v1"))?;
    // In the store by now, and refused all the same.
    for (commit, allowed, more, says) in [
        (&unsigned, allowed.clone(), "", "not signed"),
        (&commit, format!("you@example.org {other}"), "", "no line of the allowed signers"),
        (&commit, format!("me@example.org valid-before=\"20200101Z\" {mine}"), "", "not valid any more"),
        (&commit, format!("me@example.org namespaces=\"file\" {mine}"), "", "namespace"),
        (&commit, allowed.clone(), ", tag = \"v1\"", &*format!("the tag v1 is of the commit {unsigned}")),
        (&unsigned, format!("you@example.org {other}"), ", tag = \"v1\"", "no line of the allowed signers"),
    ] {
        let ran = run(commit, &allowed, more)?.exits(2)?.says(&["input.unsigned", says])?;
        ensure!(!ran.was_admitted(), "a job was admitted");
    }
    run(&unsigned, &allowed, ", tag = \"v2\"")?.exits(64)?.says(&["input.missing", "v2"])?;
    run(&commit, "nonsense", "")?.exits(64)?.says(&["input.refused", "line 1"])?;
    Ok(())
}

fn refused(lab: &Lab) -> Result<()> {
    let dir = lab.path("repositories/r");
    let commit = project(&dir)?;
    let other = lab.path("repositories/other");
    init(&other);
    fs::write(other.join("f"), "another repository\n")?;
    let theirs = commit_all(&other);
    let blob = git_with(&dir, &["hash-object", "-w", "--stdin"], b"evil\n");
    let raw: Vec<u8> =
        (0..20).filter_map(|at| u8::from_str_radix(blob.get(2 * at..2 * at + 2)?, 16).ok()).collect();
    let tree = git_with(
        &dir,
        &["hash-object", "-w", "--stdin", "-t", "tree", "--literally"],
        &[b"100644 .git\0", raw.as_slice()].concat(),
    );
    let object = format!("tree {tree}\nauthor A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nm\n");
    let hostile = git_with(&dir, &["hash-object", "-w", "--stdin", "-t", "commit"], object.as_bytes());
    let server = GitServer::start(&lab.path("repositories"));
    lab.list(&server.url("r"))?;
    let run = |url: &str, commit: &str| {
        lab.run_job(&(input("src", &source(&at(url), commit, ""), "/build/src", false) + &sh("a", "true")))
    };
    let (url, absent) = (server.url("r"), "0123456789".repeat(4));
    for (commit, status, code) in [
        (absent.as_str(), 64, "input.missing"),
        (&hostile, 64, "input.refused"),
        (&tree, 64, "input.refused"),
        ("main", 64, "input.unpinned"),
    ] {
        let ran = run(&url, commit)?.exits(status)?.says(&[code])?;
        ensure!(!ran.was_admitted(), "a job was admitted");
    }
    run(&server.url("none"), &commit)?.exits(64)?.says(&["input.missing"])?;
    // A server that gives the objects of another commit: what was asked for is not among them.
    let objects = server.pack_of("other", &theirs);
    let swap = Arc::new(move |path: &str, body: Vec<u8>| {
        if path.ends_with("git-upload-pack") { Answer::Bytes(objects.clone()) } else { Answer::Bytes(body) }
    });
    let liar = GitServer::tampering(&lab.path("repositories"), swap);
    lab.list(&liar.url("r"))?;
    run(&liar.url("r"), &commit)?.exits(65)?.says(&["input.digest_mismatch"])?;
    Ok(())
}

fn denied(lab: &Lab) -> Result<()> {
    let commit = project(&lab.path("repositories/r"))?;
    let server = GitServer::start(&lab.path("repositories"));
    let body =
        input("src", &source(&at(&server.url("r")), &commit, ""), "/build/src", false) + &sh("a", "true");
    lab.run_job(&body)?.exits(77)?.says(&["input.source_denied"])?;
    equal("requests", &server.requests().len(), &0)
}

fn pinned(lab: &Lab) -> Result<()> {
    let commit = project(&lab.path("repositories/r"))?;
    git(&lab.path("repositories/r"), &["tag", "-a", "-m", "first", "v1"]);
    let server = GitServer::start(&lab.path("repositories"));
    let url = server.url("r");
    let pin = |job: &Path| lab.ampoule().arg("pin").arg(job).arg("--sources").arg(lab.sources()).end();
    let job = |named: &str| {
        let source = format!("git = {{ url = \"{url}\", {named} }}");
        lab.job(&(input("src", &source, "/build/src", false) + &sh("a", "test -f /build/src/build")))
    };
    let denied = job("ref = \"v1\"")?;
    // The lab's rules let no private address in, and nothing is pinned over plain http from who is not listed.
    pin(&denied)?.exits(77)?.says(&["input[0].git", "input.source_denied"])?;
    equal("requests", &server.requests().len(), &0)?;
    lab.list(&url)?;
    for named in ["ref = \"v1\"", "rev = \"HEAD\"", "ref = \"refs/tags/v1\""] {
        let job = job(named)?;
        lab.run(&job).end()?.exits(64)?.says(&["input.unpinned", "ampoule pin"])?;
        pin(&job)?.exits(0)?.says(&[&commit])?;
        let text = fs::read_to_string(&job)?;
        ensure!(text.contains(&format!("git = {{ url = \"{url}\", commit = \"{commit}\" }}")), "{text}");
        lab.run(&job).end()?.ended(&SUCCEEDED)?;
    }
    pin(&job("branch = \"none\"")?)?.exits(64)?.says(&["input.missing", "none"]).map(drop)
}

/// What the launcher is told, by somebody in the agent's place, of a commit and the tree that is said to be its.
fn lying_peer(lab: &Lab) -> Result<()> {
    let commit = project(&lab.path("r"))?;
    let object = git_raw(&lab.path("r"), &["cat-file", "commit", &commit], b"").stdout;
    let text = |name: &str| fs::read(lab.path("r").join(name));
    let (attributes, script, code) = (text(".gitattributes")?, text("build")?, text("prog.c")?);
    let whole = |code: &[u8], mode: u32| {
        tar(&[
            Entry::File(".gitattributes", 0o644, &attributes),
            Entry::File("build", mode, &script),
            Entry::Symlink("link", "prog.c"),
            Entry::File("prog.c", 0o644, code),
        ])
    };
    let content = json!({"content": "git", "commit": commit, "submodules": false, "epoch": 0});
    let launcher = Launcher::start(lab, 0)?;
    let import = |archive: &[u8], object: Option<&[u8]>| -> Result<Value> {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let archive = File::open(lab.write("archive", archive)?)?;
        let mut ask = content.clone();
        ask["ask"] = json!("import");
        match object {
            None => launcher.say(&ask, &[archive.as_fd()])?,
            Some(object) => {
                let proof = json!({"object": hex(object), "links": []}).to_string();
                let proof = File::open(lab.write("proof", proof)?)?;
                launcher.say(&ask, &[archive.as_fd(), proof.as_fd()])?;
            }
        }
        launcher.hear()
    };
    let other = String::from_utf8_lossy(&object).replace("a message", "A message").into_bytes();
    let lies = [
        ("another file", import(&whole(b"int main(void) { return 1; }\n", 0o755)?, Some(&object))?),
        ("another mode", import(&whole(&code, 0o644)?, Some(&object))?),
        ("another commit", import(&whole(&code, 0o755)?, Some(&other))?),
        ("no commit", import(&whole(&code, 0o755)?, None)?),
    ];
    for (what, reply) in lies {
        equal(what, &(&reply["say"], &reply["code"]), &(&json!("refused"), &json!("input.digest_mismatch")))?;
    }
    // None of it is there to be mounted.
    let spec = |tree: &str| {
        json!({
            "ampoule": 1, "id": "01890a5d-ac96-774b-bcce-0000000000aa", "attempt": 1, "name": "x", "profile": "hermetic",
            "image": {"kind": "host"}, "source_date_epoch": 0,
            "inputs": [{"name": "src", "mount": "/build/src", "source":
                {"kind": "git", "commit": commit, "submodules": false, "tree": tree}}],
            "steps": [{"name": "a", "cwd": "/build", "timeout_ms": 60_000, "run": ["true"]}],
        })
        .to_string()
    };
    let run = |tree: &str| -> Result<Value> {
        let file = File::open(lab.write("spec", spec(tree))?)?;
        launcher.say(&json!({"ask": "run", "lifetime": false}), &[file.as_fd()])?;
        launcher.hear()
    };
    let reply = run(&"ab".repeat(32))?;
    equal("nothing", &(&reply["say"], &reply["code"]), &(&json!("refused"), &json!("input.missing")))?;
    let good = import(&whole(&code, 0o755)?, Some(&object))?;
    equal("the truth", &good["say"], &json!("imported"))?;
    // The checkout is there now; a spec that says another tree of it would attest that.
    let reply = run(&"ab".repeat(32))?;
    equal(
        "another tree",
        &(&reply["say"], &reply["code"]),
        &(&json!("refused"), &json!("input.digest_mismatch")),
    )?;
    launcher.end()
}
