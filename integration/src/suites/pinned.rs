//! Paths with a digest: what the store has is used by it, and nothing else passes for it.

use super::{input, output, sh};
use crate::check::{Ending, Ran, equal};
use crate::harness::Test;
use crate::lab::Lab;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub(super) const TESTS: &[Test] = &[
    Test::both("directory_with_a_digest_is_not_read_when_the_store_has_it", by_reference),
    Test::both("directory_with_a_digest_is_that_or_nothing", other_directory),
    Test::both("file_with_a_digest_is_that_or_nothing", file),
    Test::both("pin_asks_nobody_about_a_path_that_it_was_not_told_of", unasked),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

fn pin(lab: &Lab, job: &Path, args: &[&str]) -> Result<Ran> {
    lab.ampoule().arg("pin").arg(job).arg("--sources").arg(lab.sources()).args(args).end()
}

fn run(lab: &Lab, job: &Path) -> Result<Ran> {
    lab.run(job).end()?.ended(&SUCCEEDED)
}

fn imports(ran: &Ran) -> bool {
    ran.stderr.contains("importing input src")
}

fn definition(ran: &Ran) -> Result<Value> {
    Ok(ran.statement("x.intoto.jsonl")?["predicate"]["buildDefinition"].clone())
}

/// The digits behind a key in a file.
fn digits(job: &Path, key: &str) -> Result<String> {
    let text = fs::read_to_string(job)?;
    let after = text.split(&format!("\n{key} = \"")).nth(1).with_context(|| format!("no {key}: {text}"))?;
    Ok(after.split('"').next().unwrap_or_default().to_owned())
}

fn by_reference(lab: &Lab) -> Result<()> {
    lab.write("src/a", "one")?;
    lab.write("src/left.out", "out")?;
    let source = "path = 'src' # mine\nexclude = ['*.out']";
    let body = input("src", source, "/build/src", false)
        + &sh("a", "ls /build/src > /build/x; cat /build/src/a >> /build/x")
        + &output("x", "/build/x");
    let job = lab.job(&body)?;
    let plain = run(lab, &job)?;
    ensure!(imports(&plain), "the first use imports nothing");
    let before = fs::read_to_string(&job)?;
    let said = pin(lab, &job, &["--path", "src", "--json"])?.exits(0)?.json_lines()?;
    let tree = digits(&job, "tree_sha256")?;
    equal("field", &said[0]["field"], &"input[0].tree_sha256".into())?;
    equal("pin", &said[0]["pin"], &format!("sha256:{tree}").into())?;
    let line = format!("tree_sha256 = \"{tree}\"\n");
    equal("what else is in the file", &fs::read_to_string(&job)?.replace(&line, ""), &before)?;
    pin(lab, &job, &["--check"])?.exits(0)?.says(&["everything is pinned"])?;
    let pinned = run(lab, &job)?;
    ensure!(!imports(&pinned), "the second use imports what is there");
    equal("what is said of it", &definition(&pinned)?, &definition(&plain)?)?;
    equal("output", &pinned.output_text("x")?, &"a\none".to_owned())?;
    // Whoever reads it now is refused: a FIFO is no input.
    let fifo = lab.path("src/fifo");
    lab.call("mkfifo").arg(&fifo).end()?.exits(0)?;
    equal("what is said of it", &definition(&run(lab, &job)?)?, &definition(&plain)?)?;
    fs::remove_file(fifo)?;
    // An edit is not seen until it is pinned, and asking says so.
    lab.write("src/a", "two")?;
    let stale = run(lab, &job)?;
    equal("output", &stale.output_text("x")?, &"a\none".to_owned())?;
    let checked = pin(lab, &job, &["--check", "--json"])?.exits(65)?;
    let lines = checked.json_lines()?;
    equal("event", &lines[0]["event"], &"stale".into())?;
    equal("field", &lines[0]["field"], &"input[0].tree_sha256".into())?;
    equal("code", &lines[1]["code"], &"input.digest_mismatch".into())?;
    pin(lab, &job, &["--check"])?.exits(65)?.says(&[tree.as_str(), "ampoule pin --path src"])?;
    pin(lab, &job, &["--path", "src"])?.exits(0)?;
    equal("found", &lines[0]["found"], &format!("sha256:{}", digits(&job, "tree_sha256")?).into())?;
    let anew = run(lab, &job)?;
    ensure!(imports(&anew), "what has changed is not imported");
    equal("output", &anew.output_text("x")?, &"a\ntwo".to_owned())
}

fn other_directory(lab: &Lab) -> Result<()> {
    lab.write("src/a", "one")?;
    let body = input("src", "path = 'src'", "/build/src", false) + &sh("a", "true");
    let job = lab.job(&body)?;
    pin(lab, &job, &["--path", "src"])?.exits(0)?;
    let named = digits(&job, "tree_sha256")?;
    lab.write("src/a", "two")?;
    let refused = lab.run(&job).end()?.exits(65)?;
    refused.says(&["input.digest_mismatch", &named, "found sha256:", "ampoule pin --path src"])?;
    lab.write("src/a", "one")?;
    fs::set_permissions(lab.path("src/a"), PermissionsExt::from_mode(0o755))?;
    lab.run(&job).end()?.exits(65)?.says(&["input.digest_mismatch"])?;
    fs::set_permissions(lab.path("src/a"), PermissionsExt::from_mode(0o644))?;
    ensure!(imports(&run(lab, &job)?), "the store had what it refused");
    ensure!(!imports(&run(lab, &job)?), "the second use imports what is there");
    // Another time of the same files is another tree on disk, under the same digest.
    let text = fs::read_to_string(&job)?;
    fs::write(&job, text.replace("[[input]]", "source_date_epoch = 7\n[[input]]"))?;
    ensure!(imports(&run(lab, &job)?), "another time is not imported");
    fs::remove_dir_all(lab.path("src"))?;
    lab.run(&job).end()?.exits(64)?.says(&["input.missing", "src"])?;
    lab.write("src", "a file")?;
    lab.run(&job).end()?.exits(64)?.says(&["input[0].tree_sha256", "its digest is sha256"])?;
    pin(lab, &job, &["--path", "src"])?.exits(0)?;
    digits(&job, "sha256").and_then(|_| match digits(&job, "tree_sha256") {
        Err(_) => Ok(()),
        Ok(_) => anyhow::bail!("the digest of the directory is left"),
    })?;
    run(lab, &job).map(drop)
}

fn file(lab: &Lab) -> Result<()> {
    let tool = lab.write("tool", "#!/bin/sh\necho works\n")?;
    fs::set_permissions(&tool, PermissionsExt::from_mode(0o755))?;
    let body = input("src", "path = 'tool'", "/build/tool", false)
        + &sh("a", "/build/tool > /build/x")
        + &output("x", "/build/x");
    let job = lab.job(&body)?;
    let plain = run(lab, &job)?;
    pin(lab, &job, &["--path", "src"])?.exits(0)?;
    let named = digits(&job, "sha256")?;
    equal("digest", &named, &crate::check::sha256(&fs::read(&tool)?))?;
    let pinned = run(lab, &job)?;
    ensure!(!imports(&pinned), "the second use imports what is there");
    equal("what is said of it", &definition(&pinned)?, &definition(&plain)?)?;
    fs::write(&tool, "#!/bin/sh\necho other\n")?;
    pin(lab, &job, &["--check"])?.exits(65)?.says(&[named.as_str()])?;
    equal("output", &run(lab, &job)?.output_text("x")?, &"works\n".to_owned())?;
    // Where the store has it not, it is read, and is not that.
    fs::write(&job, fs::read_to_string(&job)?.replace("[[input]]", "source_date_epoch = 7\n[[input]]"))?;
    let refused = lab.run(&job).end()?.exits(65)?;
    refused.says(&["input.digest_mismatch", &named, "ampoule pin --path src"]).map(drop)
}

fn unasked(lab: &Lab) -> Result<()> {
    lab.write("src/a", "one")?;
    let job = lab.job(&(input("src", "path = 'src'", "/build/src", false) + &sh("a", "true")))?;
    let before = fs::read(&job)?;
    pin(lab, &job, &[])?.exits(0)?.says(&["0 pinned"])?;
    pin(lab, &job, &["--check"])?.exits(0)?;
    equal("the file", &fs::read(&job)?, &before)?;
    pin(lab, &job, &["--path", "sr"])?.exits(64)?.says(&["no input with a path is called \"sr\""])?;
    lab.call("mkfifo").arg(lab.path("src/fifo")).end()?.exits(0)?;
    pin(lab, &job, &["--path", "src"])?.exits(64)?.says(&["input[0].path", "fifo", "FIFO"])?;
    equal("the file", &fs::read(&job)?, &before)
}
