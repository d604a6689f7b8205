//! Jobs whose steps are root inside the sandbox: enough for a package manager, and nothing on the host.

use super::{exec, input, output, probe, sh, with_probe};
use crate::check::{Ending, equal, said};
use crate::harness::{Test, skip};
use crate::image::{self, Entry};
use crate::lab::Lab;
use crate::procs;
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(super) const TESTS: &[Test] = &[
    Test::root("root_of_the_sandbox_is_no_user_of_the_host", who),
    Test::root("root_has_the_capabilities_of_the_profile_over_nothing_of_the_host", capabilities),
    Test::root("root_may_change_owners_modes_and_users", ownership),
    Test::root("root_cannot_write_to_what_is_sealed_nor_reach_init", sealed),
    Test::root("every_attack_fails_for_root_too", attacks),
    Test::root("package_is_installed_by_dpkg", package),
    Test::root("image_is_the_same_for_the_next_job", untouched),
    Test::root("statements_say_that_steps_were_root", statements),
    Test::user("ordinary_user_is_refused_with_the_remedy", refused),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);
pub(super) const AS_ROOT: &str = "user = \"root\"\n";
/// Where the host's ids of jobs begin (docs/architecture.md).
const IDS_OF_JOBS: u32 = 1 << 28;

/// Host programs and what they need of it, as the entries of an image.
struct Toolbox(BTreeMap<String, Vec<u8>>);

impl Toolbox {
    fn of(programs: &[&str]) -> Result<Self> {
        let mut files = BTreeMap::new();
        for program in programs {
            let path = Command::new("sh").args(["-c", &format!("command -v {program}")]).output()?.stdout;
            let path = PathBuf::from(String::from_utf8(path)?.trim());
            if path.as_os_str().is_empty() {
                return skip(format!("{program} is not installed"));
            }
            let listed = Command::new("ldd").arg(&path).env("LC_ALL", "C").output()?.stdout;
            let listed = String::from_utf8(listed)?;
            let libraries = listed.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new);
            for file in libraries.chain([path.as_path()]) {
                let place = file.strip_prefix("/").unwrap_or(file).display().to_string();
                // Whatever the host merges, the image has everything below /usr and links to it.
                let place = if place.starts_with("usr/") { place } else { format!("usr/{place}") };
                files.entry(place).or_insert(fs::read(file).with_context(|| file.display().to_string())?);
            }
        }
        Ok(Self(files))
    }

    fn image(&self, lab: &Lab, more: &[Entry<'_>]) -> Result<String> {
        let mut entries = vec![
            Entry::Symlink("bin", "usr/bin"),
            Entry::Symlink("sbin", "usr/sbin"),
            Entry::Symlink("lib", "usr/lib"),
            Entry::Symlink("lib64", "usr/lib64"),
            Entry::Dir("usr"),
            Entry::Dir("usr/sbin"),
        ];
        entries.extend(self.0.iter().map(|(place, bytes)| Entry::File(place, 0o755, bytes)));
        entries.extend(more.iter().copied());
        let archive = image::tar(&entries)?;
        let path = lab.write("tools.tar", &archive)?;
        Ok(format!("tar:{}@sha256:{}", path.display(), crate::check::sha256(&archive)))
    }
}

/// An image of a shell and a few programs, with libraries, whose `/etc` and `/opt` are root's.
pub(super) fn tools(lab: &Lab) -> Result<String> {
    let etc = [
        Entry::Dir("opt"),
        Entry::Dir("etc"),
        Entry::File("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\n"),
    ];
    Toolbox::of(&[
        "sh", "chown", "chmod", "stat", "cp", "cat", "ls", "id", "sleep", "touch", "mkdir", "setpriv",
    ])?
    .image(lab, &etc)
}

fn job(lab: &Lab, body: &str) -> Result<PathBuf> {
    lab.job_of(&tools(lab)?, &(AS_ROOT.to_owned() + body))
}

fn who(lab: &Lab) -> Result<()> {
    let marker = lab.marker();
    let body = with_probe(lab)? + &probe("self", &["self"]) + &exec("wait", &["sleep", &marker]);
    let mut live = lab.run(&job(lab, &body)?).start()?;
    live.until_runs(&format!("sleep {marker}"))?;
    let step = procs::with_args(&format!("sleep {marker}"));
    let step = step.iter().find(|p| p.comm == "sleep").context("no step")?;
    let owner = fs::metadata(format!("/proc/{}", step.pid))?;
    live.signal(Signal::INT)?;
    let ran = live.end()?.exits(3)?;
    ensure!(owner.uid() >= IDS_OF_JOBS && owner.gid() >= IDS_OF_JOBS, "on the host it is {}", owner.uid());
    let text = ran.log_text("0-self.stdout")?;
    equal("uid", said(&text, "uid")?, "0,0")?;
    equal("gid", said(&text, "gid")?, "0,0")?;
    equal("groups", said(&text, "groups")?, "0")?;
    equal("no_new_privs", said(&text, "status.NoNewPrivs")?, "1")
}

fn capabilities(lab: &Lab) -> Result<()> {
    let ran =
        lab.run(&job(lab, &(with_probe(lab)? + &probe("self", &["self"])))?).end()?.ended(&SUCCEEDED)?;
    let text = ran.log_text("0-self.stdout")?;
    // chown, dac_override, dac_read_search, fowner, fsetid, kill, setgid, setuid, setfcap.
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        equal(set, said(&text, &format!("status.{set}"))?, "00000000800000ff")?;
    }
    equal("CapAmb", said(&text, "status.CapAmb")?, "0000000000000000")
}

fn ownership(lab: &Lab) -> Result<()> {
    let script = "
        test \"$(stat -c %u:%g /etc/passwd /usr/bin/sh /etc)\" = \"$(printf '0:0\\n0:0\\n0:0')\"
        touch /etc/new; test \"$(stat -c %u:%g /etc/new)\" = 0:0
        chown 33:34 /etc/new; test \"$(stat -c %u:%g /etc/new)\" = 33:34
        chown 65534:65533 /etc/new
        mkdir /var/lib /opt/x -p; chown 7:8 /opt/x; chmod 2755 /opt/x; test \"$(stat -c %a /opt/x)\" = 2755
        cp /usr/bin/id /opt/id; chmod 4755 /opt/id; test \"$(stat -c %a /opt/id)\" = 4755
        setpriv --reuid=33 --regid=34 --clear-groups sh -euc '
            test \"$(id -u)\" = 33
            ! touch /etc/other 2>/dev/null
            # The bit is there for whoever unpacks the result; in here it gives nothing.
            test \"$(/opt/id -u)\" = 33'
        ! chown 70000:70000 /etc/new 2>/dev/null
        cp /etc/passwd /build/out; chown 33:34 /build/out";
    let ran =
        lab.run(&job(lab, &(sh("a", script) + &output("out", "/build/out")))?).end()?.ended(&SUCCEEDED)?;
    let out = fs::metadata(ran.out.join("outputs/out"))?;
    equal("owner of the output on the host", &(out.uid(), out.gid()), &(0, 0))
}

fn sealed(lab: &Lab) -> Result<()> {
    lab.write("in/file", "sealed")?;
    let source = format!("path = '{}'", lab.path("in").display());
    let body = with_probe(lab)?
        + &input("in", &source, "/build/in", false)
        + &probe("write", &["write", "/build/in/file", "mine"])
        + &probe("new", &["write", "/build/in/new", "mine"])
        + &probe("root", &["write", "/new", "mine"])
        + &probe("proc", &["write", "/proc/sys/kernel/core_pattern", "mine"])
        + &probe("hosts", &["write", "/proc/self/uid_map", "0 0 1"])
        + &sh(
            "init",
            "kill -9 1 2>&1 || true; kill -9 -1 || true; ls -ld /build/in/file; cat /build/in/file",
        );
    let ran = lab.run(&job(lab, &body)?).end()?.ended(&SUCCEEDED)?;
    for log in ["0-write", "1-new", "2-root", "3-proc", "4-hosts"] {
        let text = ran.log_text(&format!("{log}.stdout"))?;
        ensure!(!text.contains("ALLOWED"), "{log}: {text}");
    }
    let text = ran.log_text("5-init.stdout")?;
    ensure!(text.ends_with("sealed"), "{text}");
    equal("the host's file", &fs::read_to_string(lab.path("in/file"))?, &"sealed".to_owned())
}

/// What root may do to its own files is no attack; all else is refused as it is for everybody.
fn attacks(lab: &Lab) -> Result<()> {
    let own = [
        "S24.capability",
        "S24.chmod_setuid",
        "S24.fchmodat2_setuid",
        "S24.open_setuid",
        "S24.chown_away",
        "S24.setgid_kept",
    ];
    let body = AS_ROOT.to_owned() + &super::attacks::attacking_job(lab)?;
    let ran = lab.run(&lab.job_of(&super::attacks::open_image(lab)?, &body)?).end()?.ended(&SUCCEEDED)?;
    let text = ran.log_text("0-a.stdout")?;
    let red = super::attacks::expectations(&text, "4096")?;
    let red: Vec<&String> =
        red.iter().filter(|line| !own.iter().any(|name| line.starts_with(&format!("{name}=")))).collect();
    ensure!(red.is_empty(), "{red:?}\n{text}");
    Ok(())
}

fn package(lab: &Lab) -> Result<()> {
    let toolbox = Toolbox::of(&[
        "sh",
        "dpkg",
        "dpkg-deb",
        "dpkg-split",
        "dpkg-query",
        "tar",
        "rm",
        "chown",
        "chmod",
        "stat",
        "cat",
        "ldconfig",
        "start-stop-daemon",
        "diff",
        "cp",
        "mkdir",
    ])?;
    let more = [
        Entry::Dir("etc"),
        Entry::File("etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/sh\n"),
        Entry::File("etc/group", 0o644, b"root:x:0:\ndaemon:x:1:\n"),
        Entry::Dir("var"),
        Entry::Dir("var/lib"),
        Entry::Dir("var/lib/dpkg"),
        Entry::Dir("var/lib/dpkg/info"),
        Entry::Dir("var/lib/dpkg/updates"),
        Entry::Dir("var/lib/dpkg/triggers"),
        Entry::File("var/lib/dpkg/status", 0o644, b""),
        Entry::File("var/lib/dpkg/available", 0o644, b""),
    ];
    let control = "Package: hello-ampoule\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <n@example.com>\nDescription: x\n";
    lab.write("deb/DEBIAN/control", control)?;
    lab.write("deb/etc/hello/config", "hello\n")?;
    lab.write("deb/usr/bin/hello", "#!/bin/sh\necho hello\n")?;
    let script = "#!/bin/sh\nset -e\nchown daemon:daemon /etc/hello/config\nchmod 2750 /etc/hello\n";
    lab.write("deb/DEBIAN/postinst", script)?;
    let build =
        "chmod 755 deb/DEBIAN/postinst deb/usr/bin/hello && dpkg-deb --root-owner-group -b deb hello.deb";
    lab.call("sh").args(["-euc", build]).end()?.exits(0)?;
    let body = AS_ROOT.to_owned()
        + &input("deb", &format!("path = '{}'", lab.path("hello.deb").display()), "/build/hello.deb", false)
        + &sh(
            "install",
            "dpkg -i /build/hello.deb; dpkg -s hello-ampoule; hello; stat -c '%U:%G %a' /etc/hello/config /etc/hello",
        );
    let ran = lab.run(&lab.job_of(&toolbox.image(lab, &more)?, &body)?).end()?.ended(&SUCCEEDED)?;
    let text = ran.log_text("0-install.stdout")?;
    for line in ["Status: install ok installed", "hello", "daemon:daemon 644", "root:root 2750"] {
        ensure!(text.lines().any(|l| l == line), "no line {line:?}: {text}");
    }
    Ok(())
}

fn untouched(lab: &Lab) -> Result<()> {
    let first = "echo changed > /etc/passwd; touch /usr/bin/planted; chmod 777 /etc; chown 7:7 /usr/bin/sh";
    lab.run(&job(lab, &sh("a", first))?).end()?.ended(&SUCCEEDED)?;
    let then = "cat /etc/passwd; ! test -e /usr/bin/planted; stat -c '%a %u' /etc /usr/bin/sh";
    let ran = lab.run(&job(lab, &sh("a", then))?).end()?.ended(&SUCCEEDED)?;
    let expected = "root:x:0:0::/root:/bin/sh\n755 0\n755 0\n".to_owned();
    equal("the image", &ran.log_text("0-a.stdout")?, &expected)
}

fn statements(lab: &Lab) -> Result<()> {
    let body = sh("a", "echo x > /build/x") + &output("x", "/build/x");
    let said = |job: PathBuf| -> Result<(Value, Value)> {
        let ran = lab.run(&job).end()?.ended(&SUCCEEDED)?;
        ran.verifies_output("x")?;
        let provenance = ran.statement("x.intoto.jsonl")?;
        let parameters = &provenance["predicate"]["buildDefinition"]["externalParameters"];
        let run = ran.statement("run.intoto.jsonl")?;
        Ok((parameters["user"].clone(), run["predicate"]["isolation"]["identity"]["detail"].clone()))
    };
    equal("root", &said(job(lab, &body)?)?, &("root".into(), "uid 0, gid 0".into()))?;
    equal("build", &said(lab.job_of(&tools(lab)?, &body)?)?, &("build".into(), "uid 1000, gid 1000".into()))
}

fn refused(lab: &Lab) -> Result<()> {
    let ran = lab.run(&lab.job(&(AS_ROOT.to_owned() + &sh("a", "true")))?).end()?.exits(69)?;
    ran.says(&["sandbox.unsupported", "user: root inside the sandbox", "run as root"]).map(drop)
}
