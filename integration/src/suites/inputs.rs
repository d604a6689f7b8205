//! Inputs: sealed by digest, mounted read-only or below a layer of the job's own.

use super::{input, output, probe, sh, with_probe};
use crate::check::{Ending, equal, sha256};
use crate::harness::Test;
use crate::image::{Entry, gzip, tar, zstandard};
use crate::lab::{Lab, tree};
use crate::procs;
use crate::serve::Server;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

pub(super) const TESTS: &[Test] = &[
    Test::both("writable_input_takes_an_in_tree_make", in_tree_make),
    Test::both("writable_input_can_be_renamed_deleted_and_replaced", copy_on_write),
    Test::both("read_only_input_refuses_every_write", read_only),
    Test::both("input_times_modes_and_owner_are_sealed", sealed),
    Test::both("file_input_is_mounted_alone", file_input),
    Test::both("tar_inputs_unpack_in_three_forms", archives),
    Test::both("http_input_comes_from_a_server_once", http),
    Test::both("file_url_is_an_input", file_url),
    Test::both("wrong_digest_ends_with_65_and_runs_nothing", wrong_digest),
    Test::both("sources_that_do_not_answer_have_their_own_status", unreachable),
    Test::both("hostile_archives_are_refused_by_name", hostile),
    Test::both("input_that_is_no_plain_tree_is_refused_by_name", odd_trees),
    Test::both("directory_is_taken_in_without_what_is_left_out", excluded),
    Test::both("input_changed_between_runs_is_another_input", changed),
    Test::both("directory_that_is_in_the_store_is_only_read", unchanged),
    Test::root("import_worker_has_limits_and_no_privilege", worker),
];

const SUCCEEDED: Ending = Ending("succeeded", "", 0);

fn from_path(path: &Path) -> String {
    format!("path = '{}'", path.display())
}

/// What reads a stranger's archive, looked at while it waits for the rest of one.
fn worker(lab: &Lab) -> Result<()> {
    lab.write("src/first", "first")?;
    // Nothing on the disk, and long enough to be met.
    fs::File::create(lab.path("src/second"))?.set_len(2 << 30)?;
    let body = input("src", &from_path(&lab.path("src")), "/build/src", false) + &sh("a", "true");
    let live = lab.run(&lab.job(&body)?).start()?;
    let own = procs::own_depth();
    let workers = || -> Vec<procs::Process> {
        let all = procs::all();
        let launchers: Vec<i32> = all.iter().filter(|p| p.parent == live.pid()).map(|p| p.pid).collect();
        let of_launcher = |p: &procs::Process| launchers.contains(&p.parent) && p.pids.len() > own;
        all.into_iter().filter(of_launcher).collect()
    };
    let confined = |pid: i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line == "NoNewPrivs:\t1")
    };
    let met = procs::eventually(std::time::Duration::from_secs(20), "an import worker", || {
        workers().iter().any(|worker| confined(worker.pid))
    });
    procs::signal(live.pid(), rustix::process::Signal::STOP)?;
    let found = workers();
    let limits = found.first().map(|worker| fs::read_to_string(format!("/proc/{}/limits", worker.pid)));
    procs::signal(live.pid(), rustix::process::Signal::CONT)?;
    procs::signal(live.pid(), rustix::process::Signal::INT)?;
    live.end()?.exits(3)?;
    met?;
    let limits = limits.context("the worker is gone")??;
    for (name, soft) in
        [("Max address space", "2147483648"), ("Max processes", "0"), ("Max open files", "256")]
    {
        let line = limits.lines().find(|line| line.starts_with(name)).context("no such limit")?;
        ensure!(line.strip_prefix(name).is_some_and(|rest| rest.trim().starts_with(soft)), "{line}");
    }
    ensure!(
        found.first().is_some_and(procs::Process::is_of_a_job),
        "it has the uid of somebody else: {found:?}"
    );
    // Cancelled: nothing of it is kept.
    let kept = tree(&lab.state().join("store"))?;
    ensure!(!kept.iter().any(|name| name.ends_with("/second")), "a part of the input is kept: {kept:?}");
    Ok(())
}

fn in_tree_make(lab: &Lab) -> Result<()> {
    lab.write("src/Makefile", "all: prog\nprog: prog.c\n\tcc -o prog prog.c\nclean:\n\trm -f prog prog.c\n")?;
    lab.write("src/prog.c", "int main(void) { return 0; }\n")?;
    lab.write("src/deep/below/file", "kept\n")?;
    let src = lab.path("src");
    let before = tree(&src)?;
    let body = input("src", &from_path(&src), "/build/src", true)
        + &sh(
            "build",
            "cd /build/src; make; ./prog; cp prog /build/prog; make clean; echo new > deep/below/file; ls",
        )
        + &output("prog", "/build/prog");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    equal("the original", &tree(&src)?, &before)?;
    equal("a file of it", &fs::read_to_string(src.join("deep/below/file"))?, &"kept\n".to_owned())?;
    equal(
        "what was left in the layer",
        &ran.log_text("0-build.stdout")?.ends_with("Makefile\ndeep\n"),
        &true,
    )?;
    let again = lab.run_job(
        &(input("src", &from_path(&src), "/build/src", true)
            + &sh("a", "cat /build/src/deep/below/file; ls /build/src")),
    )?;
    equal(
        "the next job",
        &again.ended(&SUCCEEDED)?.log_text("0-a.stdout")?,
        &"kept\nMakefile\ndeep\nprog.c\n".to_owned(),
    )
}

fn copy_on_write(lab: &Lab) -> Result<()> {
    lab.write("src/dir/inner/a", "a\n")?;
    lab.write("src/b", "b\n")?;
    let script = "cd /build/src; mv dir moved; cat moved/inner/a; rm b; mkdir b; touch b/c; rm -rf moved; \
                  mkdir moved; ls -A moved; ln -s b link; ln b/c hard; mkfifo fifo; chmod 700 b; mv /build/src/b /build/out; ls";
    let src = lab.path("src");
    let ran = lab
        .run_job(&(input("src", &from_path(&src), "/build/src", true) + &sh("a", script)))?
        .ended(&SUCCEEDED)?;
    equal("stdout", &ran.log_text("0-a.stdout")?, &"a\nfifo\nhard\nlink\nmoved\n".to_owned())?;
    equal("the original", &tree(&src)?, &vec!["b".to_owned(), "dir/inner/a".to_owned()])
}

fn read_only(lab: &Lab) -> Result<()> {
    lab.write("src/file", "original\n")?;
    let src = lab.path("src");
    let body = with_probe(lab)?
        + &input("src", &from_path(&src), "/build/src", false)
        + &probe("new", &["write", "/build/src/new", "x"])
        + &probe("old", &["write", "/build/src/file", "x"])
        + &sh(
            "tools",
            "cd /build/src; ! rm file; ! mv file file2; ! chmod 600 file; ! touch file; ! mkdir d; ! ln file l; cat file",
        );
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    equal("new file", &ran.log_text("0-new.stdout")?, &"/build/src/new=EROFS\n".to_owned())?;
    equal("its file", &ran.log_text("1-old.stdout")?, &"/build/src/file=EROFS\n".to_owned())?;
    equal("content", &ran.log_text("2-tools.stdout")?, &"original\n".to_owned())?;
    equal("reasons", &ran.log_text("2-tools.stderr")?.matches("Read-only file system").count(), &6)?;
    equal("the original", &fs::read_to_string(src.join("file"))?, &"original\n".to_owned())
}

fn sealed(lab: &Lab) -> Result<()> {
    lab.write("src/plain", "x")?;
    let tool = lab.write("src/dir/tool", "#!/bin/sh\n")?;
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o700))?;
    fs::set_permissions(lab.path("src/plain"), fs::Permissions::from_mode(0o600))?;
    symlink("plain", lab.path("src/link"))?;
    let body = "source_date_epoch = 1600000000\n".to_owned()
        + &with_probe(lab)?
        + &input("src", &from_path(&lab.path("src")), "/build/src", false)
        + &probe("a", &["facts", "/build/src", "/build/src/dir", "/build/src/plain", "/build/src/dir/tool"])
        + &sh("b", "readlink /build/src/link; touch -d @1 /tmp/x; date +%s > /dev/null");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let expected = "/build/src=0755 1600000000 1000:1000\n/build/src/dir=0755 1600000000 1000:1000\n\
                    /build/src/plain=0644 1600000000 1000:1000\n/build/src/dir/tool=0755 1600000000 1000:1000\n";
    equal("facts", &ran.log_text("0-a.stdout")?, &expected.to_owned())?;
    equal("link", &ran.log_text("1-b.stdout")?, &"plain\n".to_owned())
}

fn file_input(lab: &Lab) -> Result<()> {
    let tool = lab.write("tool.sh", "#!/bin/sh\necho it runs\n")?;
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755))?;
    lab.write("secret-beside", "not declared")?;
    let body = input("tool", &from_path(&tool), "/build/bin/tool", false)
        + &sh("a", "ls -A /build/bin; /build/bin/tool; ! echo x > /build/bin/tool");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    equal("stdout", &ran.log_text("0-a.stdout")?, &"tool\nit runs\n".to_owned())
}

/// A small archive with a directory, a program, a symbolic and a hard link.
fn archive() -> Result<Vec<u8>> {
    tar(&[
        Entry::Dir("pkg/"),
        Entry::File("pkg/run", 0o4755, b"#!/bin/sh\necho unpacked\n"),
        Entry::File("pkg/data", 0o600, b"data\n"),
        Entry::Symlink("pkg/link", "data"),
        Entry::Hardlink("pkg/hard", "pkg/data"),
    ])
}

fn archives(lab: &Lab) -> Result<()> {
    let plain = archive()?;
    let forms = [("plain", plain.clone()), ("gzip", gzip(&plain)?), ("zstd", zstandard(&plain)?)];
    let mut body = with_probe(lab)?;
    for (name, bytes) in &forms {
        let file = lab.write(&format!("{name}.archive"), bytes)?;
        let source = format!("tar = {{ path = '{}', sha256 = \"{}\" }}", file.display(), sha256(bytes));
        body += &input(name, &source, &format!("/build/{name}"), false);
    }
    body += &sh(
        "a",
        "for d in plain gzip zstd; do /build/$d/pkg/run; cat /build/$d/pkg/link /build/$d/pkg/hard; done",
    );
    body += &probe("b", &["facts", "/build/gzip/pkg/run", "/build/gzip/pkg/data"]);
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    equal("stdout", &ran.log_text("0-a.stdout")?, &"unpacked\ndata\ndata\n".repeat(3))?;
    // The set-user-id bit of the archive is gone, the time is the job's.
    let expected =
        "/build/gzip/pkg/run=0755 315532800 1000:1000\n/build/gzip/pkg/data=0644 315532800 1000:1000\n";
    equal("facts", &ran.log_text("1-b.stdout")?, &expected.to_owned())
}

fn http(lab: &Lab) -> Result<()> {
    let bytes = gzip(&archive()?)?;
    let server = Server::start("200 OK", bytes.clone())?;
    lab.list(&server.url(""))?;
    let source = |unpack: bool, digest: &str| {
        format!(
            "http = {{ url = \"{}\", sha256 = \"{digest}\", unpack = {unpack} }}",
            server.url("a.tar.gz?x=1")
        )
    };
    let digest = sha256(&bytes);
    let body = input("src", &source(true, &digest), "/build/src", true)
        + &sh("a", "/build/src/pkg/run; rm /build/src/pkg/data; echo x > /build/x")
        + &output("x", "/build/x");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    equal("stdout", &ran.log_text("0-a.stdout")?, &"unpacked\n".to_owned())?;
    let statement = ran.statement("x.intoto.jsonl")?;
    let dependency = &statement["predicate"]["buildDefinition"]["resolvedDependencies"][1];
    equal("dependency", &dependency["uri"], &serde_json::Value::from(server.url("a.tar.gz?x=1")))?;
    equal("its digest", &dependency["digest"]["sha256"], &serde_json::Value::from(digest.as_str()))?;
    equal("requests", &server.requests(), &1)?;
    lab.run_job(&body)?.ended(&SUCCEEDED)?;
    equal("requests after the second run", &server.requests(), &1)?;
    let whole = input("src", &source(false, &digest), "/build/a.tar.gz", false)
        + &sh("a", "sha256sum < /build/a.tar.gz");
    let ran = lab.run_job(&whole)?.ended(&SUCCEEDED)?;
    equal("not unpacked", &ran.log_text("0-a.stdout")?.starts_with(&digest), &true)
}

fn file_url(lab: &Lab) -> Result<()> {
    let file = lab.write("data file", "by url\n")?;
    let url = format!("file://{}", file.display().to_string().replace(' ', "%20"));
    let source = format!("http = {{ url = \"{url}\", sha256 = \"{}\" }}", sha256(b"by url\n"));
    let ran = lab
        .run_job(&(input("f", &source, "/build/f", false) + &sh("a", "cat /build/f")))?
        .ended(&SUCCEEDED)?;
    equal("stdout", &ran.log_text("0-a.stdout")?, &"by url\n".to_owned())
}

fn wrong_digest(lab: &Lab) -> Result<()> {
    let wrong = sha256(b"something else");
    let bytes = archive()?;
    let file = lab.write("a.tar", &bytes)?;
    let server = Server::start("200 OK", bytes.clone())?;
    lab.list(&server.url(""))?;
    let sources = [
        format!("tar = {{ path = '{}', sha256 = \"{wrong}\" }}", file.display()),
        format!("http = {{ url = \"{}\", sha256 = \"{wrong}\", unpack = true }}", server.url("a")),
        format!("http = {{ url = \"file://{}\", sha256 = \"{wrong}\" }}", file.display()),
    ];
    for source in sources {
        let body = input("a", &source, "/build/a", false) + &sh("a", "echo it ran");
        let ran = lab.run_job(&body)?.exits(65)?.says(&["input.digest_mismatch", &sha256(&bytes)])?;
        ensure!(!ran.was_admitted() && !ran.out.exists(), "a job was admitted:\n{}", ran.stderr);
    }
    let body = sh("a", "true");
    let image = format!("tar:{}@sha256:{wrong}", file.display());
    lab.run(&lab.job_of(&image, &body)?).end()?.exits(65)?.says(&["input.digest_mismatch"])?;
    Ok(())
}

fn unreachable(lab: &Lab) -> Result<()> {
    let digest = sha256(b"x");
    let body = |url: &str| {
        input("a", &format!("http = {{ url = \"{url}\", sha256 = \"{digest}\" }}"), "/build/a", false)
            + &sh("a", "true")
    };
    for (status, exit, code) in [
        ("404 Not Found", 64, "input.missing"),
        ("503 Service Unavailable", 75, "input.unreachable"),
        ("429 Too Many Requests", 75, "input.unreachable"),
    ] {
        let server = Server::start(status, b"x".to_vec())?;
        lab.list(&server.url(""))?;
        let ran = lab.run_job(&body(&server.url("a")))?.exits(exit)?.says(&[code])?;
        ensure!(!ran.out.exists(), "there is an output directory");
    }
    let closed = Server::start("200 OK", Vec::new())?.url("a");
    lab.list(&closed)?;
    lab.run_job(&body(&closed))?.exits(75)?.says(&["input.unreachable"])?;
    lab.run_job(&body(&format!("file://{}", lab.path("none").display())))?
        .exits(64)?
        .says(&["input.missing"])?;
    Ok(())
}

fn hostile(lab: &Lab) -> Result<()> {
    let outside = lab.path("outside");
    fs::create_dir(&outside)?;
    let target = outside.display().to_string();
    let cases: [(&str, Vec<Entry<'_>>, &str); 9] = [
        ("parent", vec![Entry::File("../evil", 0o644, b"x")], "'..'"),
        ("absolute", vec![Entry::File("/tmp/evil", 0o644, b"x")], "absolute"),
        ("through", vec![Entry::Symlink("d", &target), Entry::File("d/evil", 0o644, b"x")], "symbolic link"),
        ("hard-out", vec![Entry::Hardlink("h", "/etc/passwd")], "h"),
        ("hard-up", vec![Entry::Hardlink("h", "../../../../etc/passwd")], "h"),
        ("device", vec![Entry::Device("null")], "device"),
        ("fifo", vec![Entry::Fifo("pipe")], "not accepted"),
        ("twice", vec![Entry::File("a", 0o644, b"1"), Entry::File("a", 0o644, b"2")], "twice"),
        ("below", vec![Entry::File("a", 0o644, b"1"), Entry::File("a/b", 0o644, b"2")], "not a directory"),
    ];
    for (name, entries, says) in cases {
        let bytes = tar(&entries)?;
        let file = lab.write(&format!("{name}.tar"), &bytes)?;
        let source = format!("tar = {{ path = '{}', sha256 = \"{}\" }}", file.display(), sha256(&bytes));
        let ran = lab.run_job(&(input("a", &source, "/build/a", false) + &sh("a", "true")))?;
        ran.exits(64).with_context(|| name)?.says(&["input.refused", says]).with_context(|| name)?;
    }
    equal("written outside", &tree(&outside)?, &Vec::new())
}

fn odd_trees(lab: &Lab) -> Result<()> {
    let missing = input("a", &from_path(&lab.path("none")), "/build/a", false) + &sh("a", "true");
    lab.run_job(&missing)?.exits(64)?.says(&["input.missing", "input[0].path"])?;
    fs::create_dir(lab.path("fifo"))?;
    lab.call("mkfifo").arg(lab.path("fifo/pipe")).end()?.exits(0)?;
    let fifo = input("a", &from_path(&lab.path("fifo")), "/build/a", false) + &sh("a", "true");
    lab.run_job(&fifo)?.exits(64)?.says(&["input.refused", "pipe"])?;
    let alone = input("a", &from_path(&lab.path("fifo/pipe")), "/build/a", false) + &sh("a", "true");
    lab.run_job(&alone)?.exits(64)?.says(&["input.refused"])?;
    Ok(())
}

fn excluded(lab: &Lab) -> Result<()> {
    for name in ["a.o", "keep.o", "main.c", "target/deep/x", "d/target", "d/b.o", "empty/x"] {
        lab.write(&format!("src/{name}"), name)?;
    }
    // What is left out is not looked at: nobody could take this in.
    lab.call("mkfifo").arg(lab.path("src/target/pipe")).end()?.exits(0)?;
    fs::set_permissions(lab.path("src/target/deep"), fs::Permissions::from_mode(0o000))?;
    let source = from_path(&lab.path("src")) + "\nexclude = ['target/', '*.o', '!keep.o', 'empty/*']";
    let body = input("src", &source, "/build/src", false)
        + &sh("a", "cd /build/src; find . | LC_ALL=C sort | tee /build/x")
        + &output("x", "/build/x");
    let ran = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    let expected = ".\n./d\n./d/target\n./empty\n./keep.o\n./main.c\n";
    equal("taken in", &ran.output_text("x")?, &expected.to_owned())?;
    let statement = ran.statement("x.intoto.jsonl")?;
    let definition = &statement["predicate"]["buildDefinition"];
    let recorded = &definition["externalParameters"]["inputs"][0]["exclude"];
    equal("recorded", recorded, &serde_json::json!(["target/", "*.o", "!keep.o", "empty/*"]))?;
    // The digest is that of a directory that never had it.
    fs::set_permissions(lab.path("src/target/deep"), fs::Permissions::from_mode(0o755))?;
    for name in ["src/target", "src/a.o", "src/d/b.o", "src/empty/x"] {
        let path = lab.path(name);
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    let plain = input("src", &from_path(&lab.path("src")), "/build/src", false)
        + &sh("a", "echo x > /build/x")
        + &output("x", "/build/x");
    let again = lab.run_job(&plain)?.ended(&SUCCEEDED)?;
    let other = &again.statement("x.intoto.jsonl")?["predicate"]["buildDefinition"];
    equal("digest", &definition["resolvedDependencies"][1], &other["resolvedDependencies"][1])?;
    ensure!(other["externalParameters"]["inputs"][0].get("exclude").is_none(), "patterns out of nowhere");
    let file = input("f", &(from_path(&lab.path("src/main.c")) + "\nexclude = ['a']"), "/build/f", false);
    lab.run_job(&(file + &sh("a", "true")))?.exits(64)?.says(&["input[0].exclude", "directories"]).map(drop)
}

fn changed(lab: &Lab) -> Result<()> {
    let file = lab.write("src/a", "one")?;
    let body = input("src", &from_path(&lab.path("src")), "/build/src", false)
        + &sh("a", "cat /build/src/a > /build/x")
        + &output("x", "/build/x");
    let first = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    fs::write(file, "two")?;
    let second = lab.run_job(&body)?.ended(&SUCCEEDED)?;
    equal(
        "outputs",
        &(first.output_text("x")?, second.output_text("x")?),
        &("one".to_owned(), "two".to_owned()),
    )?;
    let digest = |ran: &crate::check::Ran| -> Result<serde_json::Value> {
        Ok(ran.statement("x.intoto.jsonl")?["predicate"]["buildDefinition"]["resolvedDependencies"][1]["digest"].clone())
    };
    ensure!(digest(&first)? != digest(&second)?, "two trees have one digest");
    Ok(())
}

fn unchanged(lab: &Lab) -> Result<()> {
    lab.write("src/a", "one")?;
    let body = input("src", &from_path(&lab.path("src")), "/build/src", false) + &sh("a", "true");
    let imports = |body: &str| -> Result<bool> {
        Ok(lab.run_job(body)?.ended(&SUCCEEDED)?.stderr.contains("importing input src"))
    };
    ensure!(imports(&body)?, "the first use imports nothing");
    ensure!(!imports(&body)?, "the second use imports what is there");
    lab.write("src/a", "two")?;
    ensure!(imports(&body)?, "what has changed is not imported");
    // Another time of the same files is another tree on disk.
    ensure!(imports(&("source_date_epoch = 7\n".to_owned() + &body))?, "another time is not imported");
    Ok(())
}
