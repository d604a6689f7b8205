//! What root of a sandbox can do to what others use after it: nothing.

use super::root::AS_ROOT;
use super::store::verifies;
use super::{exec, input, probe, sh, with_probe};
use crate::check::{Ending, equal};
use crate::harness::Test;
use crate::lab::{Lab, tree};
use anyhow::{Result, ensure};
use std::fs;

pub(super) const TESTS: &[Test] =
    &[Test::root("nothing_that_root_of_a_sandbox_tries_changes_the_store", poisoning)];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

/// Every file of the store with its bytes, mode, owner and change time.
fn everything(lab: &Lab) -> Result<Vec<String>> {
    use std::os::unix::fs::MetadataExt;
    let trees = lab.state().join("store/trees");
    let mut all = Vec::new();
    for path in tree(&trees)? {
        let path = trees.join(path);
        let meta = fs::symlink_metadata(&path)?;
        let digest = if meta.is_file() { crate::check::sha256(&fs::read(&path)?) } else { String::new() };
        let place = path.strip_prefix(&trees)?.display().to_string();
        let (mode, ids, time) = (meta.mode(), (meta.uid(), meta.gid()), (meta.ctime(), meta.ctime_nsec()));
        all.push(format!("{place} {mode:o} {ids:?} {time:?} {} {digest}", meta.nlink()));
    }
    Ok(all)
}

fn poisoning(lab: &Lab) -> Result<()> {
    lab.write("sealed/file", "sealed\n")?;
    lab.write("writable/file", "writable\n")?;
    let from = |name: &str| format!("path = '{}'", lab.path(name).display());
    let inputs = input("sealed", &from("sealed"), "/build/sealed", false)
        + &input("writable", &from("writable"), "/build/writable", true);
    let look =
        "cat /build/sealed/file /build/writable/file /etc/passwd; ls -A /build/sealed /build/writable /etc";
    let image = super::root::tools(lab)?;
    let clean = AS_ROOT.to_owned() + &inputs + &sh("look", look);
    let first = lab.run(&lab.job_of(&image, &clean)?).end()?.ended(&SUCCEEDED)?.log_text("0-look.stdout")?;
    // The probe too is in the store before the store is looked at.
    let attack = AS_ROOT.to_owned()
        + &with_probe(lab)?
        + &inputs
        + &probe("sealed", &["poison", "/build/sealed", "file"])
        + &probe("writable", &["poison", "/build/writable", "file"])
        + &probe("image", &["poison", "/etc", "passwd"])
        + &exec("tool", &["/build/probe", "poison", "/usr/bin", "cat"]);
    let job = lab.job_of(&image, &attack)?;
    lab.run(&job).end()?.ended(&SUCCEEDED)?;
    let before = everything(lab)?;
    let ran = lab.run(&job).end()?.ended(&SUCCEEDED)?;
    let sealed = ran.log_text("0-sealed.stdout")?;
    ensure!(sealed.lines().count() > 45, "not everything was tried:\n{sealed}");
    let allowed: Vec<_> = sealed.lines().filter(|line| line.ends_with("=ALLOWED")).collect();
    ensure!(allowed.is_empty(), "of a sealed input root may do {allowed:?}");
    // Over a copy root may do much; the tools for mounts it has nowhere.
    for log in ["1-writable", "2-image", "3-tool"] {
        let text = ran.log_text(&format!("{log}.stdout"))?;
        ensure!(text.contains("open=ALLOWED"), "{log}: root could not even write to its own copy:\n{text}");
        let mounts = [
            "remount",
            "bind",
            "mount",
            "open_tree",
            "fs",
            "overlay",
            "umount",
            "unshare",
            "handle",
            "opaque_trusted",
        ];
        let allowed: Vec<_> = text
            .lines()
            .filter(|l| l.ends_with("=ALLOWED") && mounts.iter().any(|name| l.starts_with(name)))
            .collect();
        ensure!(allowed.is_empty(), "{log}: {allowed:?}");
    }
    let after = everything(lab)?;
    let differs = before.iter().zip(&after).find(|(a, b)| a != b);
    ensure!(before == after, "the store is not as it was: {differs:?}");
    verifies(lab)?;
    let again = lab.run(&lab.job_of(&image, &clean)?).end()?.ended(&SUCCEEDED)?.log_text("0-look.stdout")?;
    equal("what the next job sees", &again, &first)
}
