//! Images: a root from one archive or from the layers of an OCI layout.

use super::{exec, input, output, sh};
use crate::check::{Ending, equal, read, said, sha256};
use crate::harness::Test;
use crate::image::{Entry, oci_layout, tar};
use crate::lab::Lab;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::fs;

pub(super) const TESTS: &[Test] = &[
    Test::both("tar_image_is_the_root", tar_image),
    Test::both("oci_layout_of_two_layers_with_whiteouts_is_the_root", oci_image),
    Test::both("image_cannot_be_changed_by_a_step", sealed_image),
    Test::both("image_that_is_not_there_or_not_pinned_is_refused", refused),
    Test::both("oci_blob_that_was_changed_is_refused", changed_blob),
    Test::both("host_image_shows_usr_and_no_more", host_image),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

/// A root file system of one static program and little else.
pub(super) fn root(probe: &[u8]) -> Result<Vec<u8>> {
    tar(&[
        Entry::Dir("bin/"),
        Entry::File("bin/probe", 0o755, probe),
        Entry::Dir("etc/"),
        Entry::File("etc/os-release", 0o644, b"ID=tiny\n"),
        Entry::File("etc/secret", 0o600, b"roots own\n"),
        Entry::Dir("opt/"),
        Entry::Dir("opt/gone/"),
        Entry::File("opt/gone/file", 0o644, b"lower\n"),
        Entry::File("opt/changed", 0o644, b"lower\n"),
        Entry::Dir("opt/opaque/"),
        Entry::File("opt/opaque/lower", 0o644, b"lower\n"),
        Entry::File("bin/su", 0o4755, b"set-user-id\n"),
    ])
}

fn tar_image(lab: &Lab) -> Result<()> {
    let bytes = root(&read(&lab.probe()?)?)?;
    let file = lab.write("root.tar", &bytes)?;
    let image = format!("tar:{}@sha256:{}", file.display(), sha256(&bytes));
    let body = exec("self", &["/bin/probe", "self"])
        + &exec("root", &["/bin/probe", "list", "/"])
        + &exec("cat", &["probe", "cat", "/etc/os-release"])
        + &exec("secret", &["probe", "write", "/build/x", "made"])
        + &output("x", "/build/x");
    let job = lab.job_of(&image, &body)?;
    let ran = lab.run(&job).end()?.ended(&SUCCEEDED)?;
    let text = ran.log_text("0-self.stdout")?;
    equal("uid", said(&text, "uid")?, "1000,1000")?;
    equal("fds", said(&text, "fds")?, "0,1,2")?;
    equal("a file of the image", &ran.log_text("2-cat.stdout")?, &"ID=tiny\n".to_owned())?;
    let listed = ran.log_text("1-root.stdout")?;
    ensure!(!listed.contains(" usr ") || !listed.contains("lib64"), "the host shows: {listed}");
    let statement = ran.statement("x.intoto.jsonl")?;
    let image = &statement["predicate"]["buildDefinition"]["resolvedDependencies"][0];
    equal("image", &image["digest"]["sha256"], &Value::from(sha256(&bytes)))?;
    equal("image in the report", &ran.report()?["image"]["kind"], &Value::from("tar"))?;
    lab.run(&job).end()?.ended(&SUCCEEDED).map(drop)
}

fn oci_image(lab: &Lab) -> Result<()> {
    let upper = tar(&[
        Entry::Dir("opt/"),
        Entry::File("opt/.wh.gone", 0o644, b""),
        Entry::File("opt/changed", 0o644, b"upper\n"),
        Entry::Dir("opt/opaque/"),
        Entry::File("opt/opaque/.wh..wh..opq", 0o644, b""),
        Entry::File("opt/opaque/upper", 0o644, b"upper\n"),
    ])?;
    let dir = lab.path("layout");
    let digest = oci_layout(&dir, &[root(&read(&lab.probe()?)?)?, upper])?;
    let body = exec("opt", &["probe", "list", "/opt"])
        + &exec("opaque", &["probe", "list", "/opt/opaque"])
        + &exec("changed", &["probe", "cat", "/opt/changed"])
        + &exec("x", &["probe", "write", "/build/x", "made"])
        + &output("x", "/build/x");
    for image in [format!("oci:./layout@sha256:{digest}"), format!("oci:./layout:base@sha256:{digest}")] {
        let ran = lab.run(&lab.job_of(&image, &body)?).end()?.ended(&SUCCEEDED)?;
        let text = ran.log_text("0-opt.stdout")?;
        ensure!(text.contains("changed") && !text.contains("gone") && !text.contains(".wh."), "/opt: {text}");
        equal("opaque directory", &ran.log_text("1-opaque.stdout")?, &"/opt/opaque=upper \n".to_owned())?;
        equal("changed file", &ran.log_text("2-changed.stdout")?, &"upper\n".to_owned())?;
        let statement = ran.statement("x.intoto.jsonl")?;
        let named = &statement["predicate"]["buildDefinition"]["resolvedDependencies"][0];
        equal("image", &named["digest"]["sha256"], &Value::from(digest.as_str()))?;
        let text = statement.to_string();
        ensure!(!text.contains(&lab.path("").display().to_string()), "a host path is in the statement");
    }
    Ok(())
}

fn sealed_image(lab: &Lab) -> Result<()> {
    let bytes = root(&read(&lab.probe()?)?)?;
    let file = lab.write("root.tar", &bytes)?;
    let image = format!("tar:{}@sha256:{}", file.display(), sha256(&bytes));
    let body = exec("a", &["probe", "write", "/opt/changed", "x"])
        + &exec("b", &["probe", "write", "/new", "x"])
        + &exec("c", &["probe", "write", "/etc/os-release", "x"])
        + &exec("d", &["probe", "facts", "/bin/su"]);
    let ran = lab.run(&lab.job_of(&image, &body)?).end()?.ended(&SUCCEEDED)?;
    for log in ["0-a.stdout", "1-b.stdout", "2-c.stdout"] {
        let text = ran.log_text(log)?;
        ensure!(
            ["=EACCES", "=EROFS", "=EPERM"].iter().any(|e| text.trim_end().ends_with(e)),
            "{log}: {text}"
        );
    }
    // What is kept of the bit does not matter: nosuid and no_new_privs hold.
    let report = ran.report()?;
    equal("no_new_privs", &report["isolation"]["no_new_privs"]["in_force"], &Value::from(true))
}

fn refused(lab: &Lab) -> Result<()> {
    let digest = sha256(b"x");
    let step = exec("a", &["true"]);
    for (image, code) in [
        ("oci:./none".to_owned(), "input.unpinned"),
        ("tar:./none.tar".to_owned(), "input.unpinned"),
        (format!("tar:./none.tar@sha256:{digest}"), "input.missing"),
        (format!("oci:./none@sha256:{digest}"), "input.missing"),
        (format!("docker://debian@sha256:{digest}"), "job.invalid"),
        ("/".to_owned(), "job.invalid"),
    ] {
        let ran = lab.run(&lab.job_of(&image, &step)?).end()?.exits(64)?.says(&[code, "image"])?;
        ensure!(!ran.out.exists(), "{image}: there is an output directory");
    }
    let (file, link) = (lab.write("not.tar", "this is no archive")?, lab.path("layout"));
    let image = format!("tar:{}@sha256:{}", file.display(), sha256(b"this is no archive"));
    lab.run(&lab.job_of(&image, &step)?).end()?.exits(64)?.says(&["input.refused"])?;
    fs::create_dir(link)?;
    let image = format!("oci:./layout@sha256:{digest}");
    lab.run(&lab.job_of(&image, &step)?).end()?.exits(64)?;
    Ok(())
}

fn changed_blob(lab: &Lab) -> Result<()> {
    let dir = lab.path("layout");
    let digest = oci_layout(&dir, &[root(b"not a program")?])?;
    let manifest: Value = crate::check::json(&dir.join("blobs/sha256").join(&digest))?;
    let layer =
        manifest["layers"][0]["digest"].as_str().unwrap_or_default().trim_start_matches("sha256:").to_owned();
    let blob = dir.join("blobs/sha256").join(&layer);
    let mut bytes = read(&blob)?;
    if let Some(byte) = bytes.last_mut() {
        *byte ^= 1;
    }
    fs::write(&blob, bytes)?;
    let image = format!("oci:./layout@sha256:{digest}");
    let ran = lab
        .run(&lab.job_of(&image, &exec("a", &["true"]))?)
        .end()?
        .exits(65)?
        .says(&["input.digest_mismatch"])?;
    ensure!(!ran.out.exists(), "there is an output directory");
    Ok(())
}

fn host_image(lab: &Lab) -> Result<()> {
    let src = lab.write("src/a", "x")?;
    let body = input("src", &format!("path = '{}'", src.display()), "/srv/a", false)
        + &sh("a", "ls -A /; ls /usr/bin/env; cat /etc/passwd /etc/hosts; ls -A /etc");
    let text = lab.run_job(&body)?.ended(&SUCCEEDED)?.log_text("0-a.stdout")?;
    for line in text.lines().take_while(|l| !l.starts_with("/usr")) {
        let known = [
            "bin", "build", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin",
            "srv", "tmp", "usr", "var",
        ];
        ensure!(known.contains(&line), "{line} is in the root:\n{text}");
    }
    let host_users = fs::read_to_string("/etc/passwd")?;
    let shown = text.lines().filter(|l| l.contains(":x:")).count();
    ensure!(shown < host_users.lines().count(), "the host's users show:\n{text}");
    ensure!(!text.contains("shadow") && !text.contains("machine-id") && !text.contains("ssh"), "{text}");
    Ok(())
}
