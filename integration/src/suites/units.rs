//! What is given to systemd, read by systemd's own tools.

use crate::check::equal;
use crate::harness::Test;
use crate::lab::{Lab, mode_of};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::PathBuf;

pub(super) const TESTS: &[Test] = &[
    Test::both("files_are_what_systemd_knows", verified),
    Test::both("exposure_is_bounded", exposure),
    Test::both("nothing_of_a_service_is_swapped", unswapped),
    Test::root("users_and_directories_are_made", made),
];

/// Ours that systemd before 254 does not know, and passes over.
const NEW: &str = "Unknown key 'DelegateSubgroup' in section [Service]";
/// The most that `systemd-analyze security` may find, 0 to 10. The launcher makes sandboxes: it is root, and a filter on it
/// would be inherited by jobs.
const EXPOSURE: [(&str, f64); 2] = [("ampouled.service", 1.5), ("ampoule-runner.service", 8.4)];

/// The units in a directory, changed, with programs that are there.
fn units(lab: &Lab, name: &str, change: impl Fn(&str, String) -> String) -> Result<Vec<PathBuf>> {
    let dir = lab.path(name);
    fs::create_dir(&dir)?;
    let mut files = Vec::new();
    for entry in fs::read_dir(lab.repository("systemd"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".service") || name.ends_with(".socket") {
            let text = fs::read_to_string(entry.path())?;
            let text = text.replace("/usr/bin/ampouled ", "/bin/true ");
            fs::write(dir.join(&name), change(&name, text))?;
            files.push(dir.join(name));
        }
    }
    equal("services and sockets", &files.len(), &4)?;
    files.sort();
    Ok(files)
}

fn complaints(lab: &Lab, files: &[PathBuf]) -> Result<Vec<String>> {
    let ran = lab.call("systemd-analyze").args(["verify", "--man=no"]).args(files).end()?;
    let said = ran.stderr;
    Ok(said.lines().filter(|line| !line.contains(NEW)).map(str::to_owned).collect())
}

fn verified(lab: &Lab) -> Result<()> {
    equal("complaints", &complaints(lab, &units(lab, "as-they-are", |_, text| text)?)?, &Vec::new())?;
    let wrong = |_: &str, text: String| text.replace("[Service]\n", "[Service]\nWatchdgSec=1\n");
    let found = complaints(lab, &units(lab, "with-an-error", wrong)?)?;
    ensure!(found.iter().any(|line| line.contains("WatchdgSec")), "an error is not found: {found:?}");
    Ok(())
}

/// The overall exposure of a unit.
fn exposed(lab: &Lab, files: &[PathBuf], name: &str) -> Result<f64> {
    let file = files.iter().find(|file| file.ends_with(name)).context("no such unit")?;
    let call = lab.call("systemd-analyze").args(["security", "--offline=yes", "--no-pager"]).arg(file);
    let said = call.end()?.stdout_text();
    let line = said.lines().find(|line| line.contains("Overall exposure level")).context(said.clone())?;
    let number = line.rsplit(": ").next().and_then(|rest| rest.split(' ').next()).context("no number")?;
    Ok(number.parse()?)
}

fn exposure(lab: &Lab) -> Result<()> {
    let files = units(lab, "as-they-are", |_, text| text)?;
    for (name, most) in EXPOSURE {
        let found = exposed(lab, &files, name)?;
        ensure!(found <= most, "{name}: exposure {found}, at most {most}");
    }
    let whole = exposed(lab, &files, "ampouled.service")?;
    // A line that goes is noticed.
    for line in [
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "SystemCallFilter=@system-service",
        "ProtectSystem=strict",
    ] {
        let without = |_: &str, text: String| text.replace(&format!("\n{line}\n"), "\n");
        let files = units(lab, line.split('=').next().unwrap_or(line), without)?;
        let found = exposed(lab, &files, "ampouled.service")?;
        ensure!(found > whole, "without {line} the exposure is {found}");
    }
    Ok(())
}

/// Values of secrets are in the memory of both. (What the kernel makes of it, the virtual machine shows.)
fn unswapped(lab: &Lab) -> Result<()> {
    let files = units(lab, "as-they-are", |_, text| text)?;
    let is_service = |file: &&PathBuf| file.extension().is_some_and(|suffix| suffix == "service");
    let services: Vec<_> = files.iter().filter(is_service).collect();
    equal("services", &services.len(), &2)?;
    for file in services {
        let text = fs::read_to_string(file)?;
        ensure!(text.lines().any(|line| line == "MemorySwapMax=0"), "{} may be swapped", file.display());
    }
    Ok(())
}

fn made(lab: &Lab) -> Result<()> {
    let root = lab.path("root");
    fs::create_dir_all(root.join("etc"))?;
    let at_root = format!("--root={}", root.display());
    let [users, files] =
        ["sysusers.conf", "tmpfiles.conf"].map(|name| lab.repository(&format!("systemd/{name}")));
    lab.call("systemd-sysusers").arg(&at_root).arg(users).end()?.exits(0)?;
    let passwd = fs::read_to_string(root.join("etc/passwd"))?;
    let line = passwd.lines().find(|line| line.starts_with("ampouled:")).context(passwd.clone())?;
    ensure!(line.ends_with(":/var/lib/ampouled:/usr/sbin/nologin"), "{line}");
    let groups = fs::read_to_string(root.join("etc/group"))?;
    ensure!(groups.lines().any(|line| line.starts_with("ampoule:")), "{groups}");
    lab.call("systemd-tmpfiles").arg(&at_root).arg("--create").arg(files).end()?.exits(0)?;
    for dir in ["run/ampoule", "etc/ampoule/policy"] {
        equal(dir, &mode_of(&root.join(dir))?, &0o755)?;
    }
    Ok(())
}
