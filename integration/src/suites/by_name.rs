//! Every kind of mount as older kernels make it: overlays by name (before Linux 6.15), and for an ordinary user copies of
//! writable inputs (before 6.6). The runner with faults does so on any kernel.

use super::root::{AS_ROOT, tools};
use super::{exec, images, input, output, sh};
use crate::check::{Ending, Ran, equal, read};
use crate::faulty::Faulty;
use crate::harness::Test;
use crate::image::{Entry, oci_layout, tar};
use crate::lab::Lab;
use anyhow::{Result, ensure};
use std::fs;

pub(super) const TESTS: &[Test] = &[
    Test::both("by_name_every_kind_of_input_over_the_host_image", |lab| inputs(lab, "by-name")),
    Test::user("copied_every_kind_of_input_over_the_host_image", |lab| inputs(lab, "by-name,old-tmpfs")),
    Test::both("by_name_image_of_two_layers", layers),
    Test::root("by_name_root_over_an_image", as_root),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

/// The overlays in a step's mountinfo were made by name; one that was made by descriptor has `lowerdir+=`.
fn was_by_name(ran: &Ran, log: &str) -> Result<()> {
    let text = ran.log_text(log)?;
    let overlays: Vec<&str> = text.lines().filter(|line| line.contains(" - overlay ")).collect();
    ensure!(!overlays.is_empty(), "no overlay: {text}");
    let all = overlays.iter().all(|line| line.contains("lowerdir=") && !line.contains("lowerdir+="));
    ensure!(all, "an overlay was made by descriptor: {overlays:?}");
    Ok(())
}

fn every_input(lab: &Lab) -> Result<String> {
    for (name, text) in
        [("sealed/deep/file", "sealed\n"), ("open/dir/file", "lower\n"), ("one", "one\n"), ("two", "two\n")]
    {
        lab.write(name, text)?;
    }
    let source = |name: &str| format!("path = '{}'", lab.path(name).display());
    Ok(input("sealed", &source("sealed"), "/build/sealed", false)
        + &input("open", &source("open"), "/build/open", true)
        + &input("one", &source("one"), "/srv/one", false)
        + &input("two", &source("two"), "/build/two", true))
}

const SCRIPT: &str = "
    cat /build/sealed/deep/file /srv/one
    for at in /build/sealed/new /build/sealed/deep/file /srv/one; do ! echo x 2>/dev/null > $at; done
    cd /build/open; rm -r dir; mkdir dir; echo upper > dir/new; ls dir
    echo more >> /build/two; cat /build/two";

fn inputs(lab: &Lab, how: &str) -> Result<()> {
    let faulty = Faulty::install(lab)?;
    faulty.ask(how)?;
    let body = every_input(lab)?
        + &sh("a", SCRIPT)
        + &exec("mounts", &["cat", "/proc/self/mountinfo"])
        + &output("new", "/build/open/dir/new");
    let ran = faulty.run(&lab.job(&body)?).end()?.ended(&SUCCEEDED)?;
    equal("stdout", &ran.log_text("0-a.stdout")?, &"sealed\none\nnew\ntwo\nmore\n".to_owned())?;
    was_by_name(&ran, "1-mounts.stdout")?;
    equal("output", &ran.output_text("new")?, &"upper\n".to_owned())?;
    equal("the original", &fs::read_to_string(lab.path("open/dir/file"))?, &"lower\n".to_owned())?;
    equal("the other original", &fs::read_to_string(lab.path("two"))?, &"two\n".to_owned())
}

fn layers(lab: &Lab) -> Result<()> {
    let faulty = Faulty::install(lab)?;
    faulty.ask("by-name")?;
    let upper = tar(&[
        Entry::Dir("opt/"),
        Entry::File("opt/.wh.gone", 0o644, b""),
        Entry::File("opt/changed", 0o644, b"upper\n"),
    ])?;
    let digest = oci_layout(&lab.path("layout"), &[images::root(&read(&lab.probe()?)?)?, upper])?;
    let body = every_input(lab)?
        + &exec("opt", &["probe", "list", "/opt"])
        + &exec("changed", &["probe", "cat", "/opt/changed"])
        + &exec("sealed", &["probe", "cat", "/build/sealed/deep/file"])
        + &exec("write", &["probe", "write", "/opt/changed", "x"])
        + &exec("x", &["probe", "write", "/build/x", "made"])
        + &exec("mounts", &["probe", "cat", "/proc/self/mountinfo"])
        + &output("x", "/build/x");
    let job = lab.job_of(&format!("oci:./layout@sha256:{digest}"), &body)?;
    let ran = faulty.run(&job).end()?.ended(&SUCCEEDED)?;
    let listed = ran.log_text("0-opt.stdout")?;
    ensure!(listed.contains("changed") && !listed.contains("gone"), "/opt: {listed}");
    equal("changed file", &ran.log_text("1-changed.stdout")?, &"upper\n".to_owned())?;
    equal("sealed file", &ran.log_text("2-sealed.stdout")?, &"sealed\n".to_owned())?;
    ensure!(!ran.log_text("3-write.stdout")?.contains("ALLOWED"), "a step wrote to the image");
    equal("output", &ran.output_text("x")?, &"made".to_owned())?;
    was_by_name(&ran, "5-mounts.stdout")
}

fn as_root(lab: &Lab) -> Result<()> {
    let faulty = Faulty::install(lab)?;
    faulty.ask("by-name")?;
    // Renaming a directory of the image is what `redirect_dir` is for.
    let script = "
        touch /etc/new; chown 33:34 /etc/new; stat -c %u:%g /etc/new /etc/passwd
        mkdir /opt/dir; cp /etc/passwd /opt/dir; ls /opt/dir
        cat /proc/self/mountinfo >&2";
    let body = AS_ROOT.to_owned()
        + &every_input(lab)?
        + &sh("a", script)
        + &sh("b", "cat /build/sealed/deep/file; ! touch /build/sealed/x 2>/dev/null");
    let job = lab.job_of(&tools(lab)?, &body)?;
    let ran = faulty.run(&job).end()?.ended(&SUCCEEDED)?;
    equal("stdout", &ran.log_text("0-a.stdout")?, &"33:34\n0:0\npasswd\n".to_owned())?;
    equal("stdout", &ran.log_text("1-b.stdout")?, &"sealed\n".to_owned())?;
    was_by_name(&ran, "0-a.stderr")
}
