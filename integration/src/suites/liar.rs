//! A peer in the agent's place that lies about bytes and digests in every way: it gets nothing mounted, and what the
//! store has stays what its name says.

use super::pool::Launcher;
use crate::check::{equal, sha256};
use crate::harness::Test;
use crate::image::{self, Entry};
use crate::lab::Lab;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) const TESTS: &[Test] = &[
    Test::root("bytes_that_are_not_those_of_the_digest_are_not_taken_in", wrong_bytes),
    Test::root("descriptors_that_are_no_bytes_are_refused_at_once", odd_descriptors),
    Test::root("file_that_changes_while_it_is_taken_in_is_what_its_digest_says", changing),
    Test::root("image_of_parts_that_lie_is_not_taken_in", lying_image),
    Test::root("job_over_what_was_never_taken_in_is_refused", never_taken_in),
    Test::root("job_over_an_object_that_was_damaged_meanwhile_is_refused", damaged),
    Test::root("requests_that_say_more_than_they_may_are_refused", odd_requests),
];

const TREE: &str = "1111111111111111111111111111111111111111111111111111111111111111";

/// A connection to a launcher, from somebody who says what is not so.
struct Liar<'l> {
    lab: &'l Lab<'l>,
    launcher: Launcher<'l>,
    jobs: u32,
}

impl<'l> Liar<'l> {
    fn start(lab: &'l Lab<'l>) -> Result<Self> {
        Ok(Self { lab, launcher: Launcher::start(lab, 0)?, jobs: 0 })
    }

    fn ask(&self, request: &Value, descriptors: &[BorrowedFd<'_>]) -> Result<Value> {
        self.launcher.say(request, descriptors)?;
        self.launcher.hear()
    }

    fn is_refused(&self, request: &Value, descriptors: &[BorrowedFd<'_>], code: &str) -> Result<()> {
        let said = self.ask(request, descriptors)?;
        equal(&request.to_string(), &(&said["say"], &said["code"]), &(&"refused".into(), &code.into()))
            .with_context(|| said.to_string())
    }

    fn file(&self, bytes: &[u8]) -> Result<File> {
        Ok(File::open(self.lab.write("bytes", bytes)?)?)
    }

    /// Bytes that come through a pipe and end there.
    fn pipe(&self, bytes: &[u8]) -> Result<OwnedFd> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        File::from(write).write_all(bytes)?;
        Ok(read)
    }

    fn takes_in(&self, request: &Value, bytes: &[u8]) -> Result<Value> {
        let said = self.ask(request, &[self.file(bytes)?.as_fd()])?;
        ensure!(said["say"] == "imported", "{request}: {said}");
        Ok(said)
    }

    /// Asks for a job over this image and input, and gives the answer.
    fn run(&mut self, image: &Value, input: Option<Value>) -> Result<Value> {
        self.jobs += 1;
        let id = format!("01890a5d-ac96-774b-bcce-{:04x}{:08x}", self.jobs, std::process::id());
        let inputs: Vec<Value> = input
            .map(|source| json!({"name": "in", "mount": "/build/in", "writable": false, "source": source}))
            .into_iter()
            .collect();
        let spec = json!({
            "ampoule": 1, "id": id, "attempt": 1, "name": "liar", "profile": "hermetic", "image": image,
            "source_date_epoch": 0, "inputs": inputs,
            "steps": [{"name": "a", "cwd": "/build", "timeout_ms": 60_000, "run": ["sh", "-c", "true"]}],
        });
        let spec = self.file(spec.to_string().as_bytes())?;
        self.ask(&json!({"ask": "run", "lifetime": false}), &[spec.as_fd()])
    }

    fn run_is_refused(&mut self, image: &Value, input: Option<Value>, code: &str) -> Result<()> {
        let shown = format!("{image} {input:?}");
        let said = self.run(image, input)?;
        equal(&shown, &(&said["say"], &said["code"]), &(&"refused".into(), &code.into()))
            .with_context(|| said.to_string())
    }

    /// What an honest client does: the job is admitted and ends well. Otherwise the refusals would prove nothing.
    fn runs(&mut self, image: &Value, input: Option<Value>) -> Result<()> {
        let said = self.run(image, input)?;
        ensure!(said["say"] == "admitted", "{said}");
        let finished = self.launcher.hear()?;
        ensure!(finished["say"] == "finished", "{finished}");
        let job = said["job"].as_str().context("no job")?;
        let report: Value =
            serde_json::from_slice(&fs::read(self.lab.state().join("jobs").join(job).join("report.json"))?)?;
        equal("outcome", &report["outcome"], &Value::from("succeeded"))?;
        equal("forgotten", &self.ask(&json!({"ask": "forget", "job": job}), &[])?["say"], &"forgotten".into())
    }

    fn contents(&self) -> Result<Vec<PathBuf>> {
        let index = fs::read_dir(self.lab.state().join("store/index"))?;
        Ok(index.flatten().map(|entry| entry.path()).collect())
    }

    /// No job was made, nothing lies half done, and everything in the store is what its name says.
    fn ends(self, contents: usize) -> Result<()> {
        equal("contents in the store", &self.contents()?.len(), &contents)?;
        for place in ["jobs", "store/staging"] {
            let left: Vec<_> = fs::read_dir(self.lab.state().join(place))?.flatten().collect();
            ensure!(left.is_empty(), "{place}: {left:?}");
        }
        let lab = self.lab;
        self.launcher.end()?;
        let verified = lab.ampoule().args(["store", "verify", "--state"]).arg(lab.state()).end()?;
        verified.exits(0).map(drop)
    }
}

fn file_named(bytes: &[u8]) -> Value {
    json!({"ask": "import", "content": "file", "sha256": sha256(bytes), "executable": false, "epoch": 0})
}

fn archive_named(bytes: &[u8]) -> Value {
    json!({"ask": "import", "content": "archive", "sha256": sha256(bytes), "epoch": 0})
}

fn host() -> Value {
    json!({"kind": "host"})
}

fn wrong_bytes(lab: &Lab) -> Result<()> {
    let mut liar = Liar::start(lab)?;
    let archive = image::tar(&[Entry::Dir("d"), Entry::File("d/f", 0o644, b"good")])?;
    let half = archive.get(..700).context("a short archive")?;
    const MISMATCH: &str = "input.digest_mismatch";
    liar.is_refused(&file_named(b"good"), &[liar.file(b"evil")?.as_fd()], MISMATCH)?;
    liar.is_refused(&file_named(b"good"), &[liar.file(b"")?.as_fd()], MISMATCH)?;
    liar.is_refused(&file_named(b"good"), &[liar.file(b"good, and more")?.as_fd()], MISMATCH)?;
    liar.is_refused(&archive_named(&archive), &[liar.pipe(half)?.as_fd()], MISMATCH)?;
    liar.is_refused(&archive_named(half), &[liar.pipe(half)?.as_fd()], "input.refused")?;
    let directory = json!({"ask": "import", "content": "directory", "tree": TREE, "epoch": 0});
    liar.is_refused(&directory, &[liar.pipe(&archive)?.as_fd()], MISMATCH)?;
    for content in ["image_tar", "oci_layer", "oci_config", "oci_manifest"] {
        let named = json!({"ask": "import", "content": content, "sha256": sha256(b"good")});
        liar.is_refused(&named, &[liar.file(&archive)?.as_fd()], MISMATCH)?;
    }
    // The same bytes under their own name, with a reader that starts in the middle of the file.
    let moved = liar.file(&archive)?;
    rustix::fs::seek(&moved, rustix::fs::SeekFrom::Start(512))?;
    liar.is_refused(&archive_named(&archive), &[moved.as_fd()], MISMATCH)?;
    equal("contents", &liar.contents()?.len(), &0)?;
    for sha256 in [sha256(b"good"), sha256(&archive)] {
        let source = json!({"kind": "tar", "sha256": sha256});
        liar.run_is_refused(&host(), Some(source), "input.missing")?;
    }
    liar.takes_in(&archive_named(&archive), &archive)?;
    liar.runs(&host(), Some(json!({"kind": "tar", "sha256": sha256(&archive)})))?;
    liar.ends(1)
}

fn odd_descriptors(lab: &Lab) -> Result<()> {
    let liar = Liar::start(lab)?;
    let named = file_named(b"good");
    liar.is_refused(&named, &[], "job.invalid")?;
    let (socket, _other) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let directory = File::open(lab.path("tmp"))?;
    let path = rustix::fs::open("/etc/passwd", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty())?;
    for odd in [directory.as_fd(), File::open("/dev/zero")?.as_fd(), socket.as_fd()] {
        liar.is_refused(&named, &[odd], "job.invalid")?;
    }
    // A file that cannot be read, and one of which only a part will ever be.
    liar.is_refused(&named, &[path.as_fd()], "input.unreachable")?;
    let write_only = fs::OpenOptions::new().write(true).open(lab.write("w", "good")?)?;
    liar.is_refused(&named, &[write_only.as_fd()], "input.unreachable")?;
    let huge = File::create_new(lab.path("huge"))?;
    huge.set_len(1 << 40)?;
    let begun = std::time::Instant::now();
    liar.is_refused(&named, &[File::open(lab.path("huge"))?.as_fd()], "input.refused")?;
    ensure!(begun.elapsed().as_secs() < 5, "a terabyte was read to see that it is too large");
    // Spec and lifetime pipe of another type.
    let run = json!({"ask": "run", "lifetime": true});
    liar.is_refused(&run, &[liar.pipe(b"{}")?.as_fd(), liar.pipe(b"")?.as_fd()], "job.invalid")?;
    liar.is_refused(&run, &[liar.file(b"{}")?.as_fd(), directory.as_fd()], "job.invalid")?;
    liar.is_refused(&run, &[liar.file(b"{}")?.as_fd()], "job.invalid")?;
    // More than one: the first counts, the rest is closed.
    let good = liar.file(b"good")?;
    let many: Vec<_> = std::iter::repeat_n(good.as_fd(), 64).collect();
    let said = liar.ask(&named, &many)?;
    equal("import with 64 descriptors", &said["say"], &Value::from("imported"))?;
    liar.ends(1)
}

fn changing(lab: &Lab) -> Result<()> {
    let mut liar = Liar::start(lab)?;
    let path = lab.write("changing", vec![b'a'; 16 << 20])?;
    let over = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        scope.spawn(|| -> Result<()> {
            let file = fs::OpenOptions::new().write(true).open(&path)?;
            let mut at = 0_u64;
            while !over.load(Ordering::SeqCst) {
                file.write_all_at(&[b'b' + (at % 7) as u8; 512], at.wrapping_mul(7919) % ((16 << 20) - 512))?;
                at += 1;
            }
            Ok(())
        });
        let asked = (0..4).try_for_each(|number| -> Result<()> {
            let unnamed =
                json!({"ask": "import", "content": "file", "sha256": null, "executable": false, "epoch": 0});
            let said = liar.ask(&unnamed, &[File::open(&path)?.as_fd()])?;
            match said["say"].as_str() {
                // Taken in under the digest of what was received, and so of what is there.
                Some("imported") => {
                    let source = json!({"kind": "file", "sha256": said["sha256"], "executable": false});
                    liar.runs(&host(), Some(source)).with_context(|| format!("import {number}"))
                }
                Some("refused") => Ok(()),
                _ => bail!("{said}"),
            }
        });
        over.store(true, Ordering::SeqCst);
        asked
    });
    result?;
    let named = file_named(&vec![b'a'; 16 << 20]);
    liar.is_refused(&named, &[File::open(&path)?.as_fd()], "input.digest_mismatch")?;
    let contents = liar.contents()?.len();
    ensure!(contents > 0, "nothing was taken in");
    liar.ends(contents)
}

fn lying_image(lab: &Lab) -> Result<()> {
    let mut liar = Liar::start(lab)?;
    let layer =
        image::tar(&[Entry::Dir("etc"), Entry::File("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\n")])?;
    let manifest = |config: &[u8], layer: &str, size: usize| {
        json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{}", sha256(config)), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": format!("sha256:{layer}"), "size": size,
            }],
        })
        .to_string()
        .into_bytes()
    };
    let config = |diff_id: &str| {
        json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
        })
        .to_string()
        .into_bytes()
    };
    let named =
        |content: &str, bytes: &[u8]| json!({"ask": "import", "content": content, "sha256": sha256(bytes)});
    let (honest, lying) = (config(&sha256(&layer)), config(&sha256(b"another layer")));
    let whole = manifest(&honest, &sha256(&layer), layer.len());
    let asks = |liar: &Liar<'_>, document: &[u8], code: &str| {
        liar.is_refused(&named("oci_manifest", document), &[liar.file(document)?.as_fd()], code)
    };
    // Neither part is there; then one of them; then a configuration of another layer, and another size.
    asks(&liar, &whole, "input.missing")?;
    liar.takes_in(&named("oci_config", &honest), &honest)?;
    asks(&liar, &whole, "input.missing")?;
    liar.takes_in(&named("oci_layer", &layer), &layer)?;
    liar.takes_in(&named("oci_config", &lying), &lying)?;
    asks(&liar, &manifest(&lying, &sha256(&layer), layer.len()), "input.digest_mismatch")?;
    asks(&liar, &manifest(&honest, &sha256(&layer), layer.len() + 1), "input.refused")?;
    asks(&liar, b"{}", "input.refused")?;
    let image =
        |document: &[u8]| json!({"kind": "oci", "manifest": sha256(document), "reference": "docker://x/y"});
    liar.run_is_refused(&image(&whole), None, "input.missing")?;
    // A layer is no image, and neither is a configuration.
    liar.run_is_refused(&image(&layer), None, "input.missing")?;
    liar.run_is_refused(&json!({"kind": "tar", "sha256": sha256(&layer)}), None, "input.missing")?;
    liar.ends(3)
}

fn never_taken_in(lab: &Lab) -> Result<()> {
    let mut liar = Liar::start(lab)?;
    liar.takes_in(&file_named(b"good"), b"good")?;
    let good = sha256(b"good");
    let found = liar.ask(&json!({"ask": "find", "content": "archive", "sha256": good, "epoch": 0}), &[])?;
    equal("found", &found, &json!({"say": "found", "imported": null}))?;
    for image in [
        json!({"kind": "tar", "sha256": TREE}),
        json!({"kind": "tar", "sha256": good}),
        json!({"kind": "oci", "manifest": TREE, "reference": "docker://x/y"}),
        json!({"kind": "oci", "manifest": good, "reference": "docker://x/y"}),
    ] {
        liar.run_is_refused(&image, None, "input.missing")?;
    }
    for source in [
        json!({"kind": "directory", "tree": TREE}),
        json!({"kind": "directory", "tree": good}),
        json!({"kind": "file", "sha256": TREE, "executable": false}),
        // The same bytes as something that may be executed are another content.
        json!({"kind": "file", "sha256": good, "executable": true}),
        json!({"kind": "tar", "sha256": good}),
        json!({"kind": "http", "url": "https://x.example/y", "sha256": good, "unpack": true}),
    ] {
        liar.run_is_refused(&host(), Some(source), "input.missing")?;
    }
    // An index entry that somebody forged, for a tree that is there and for one that is not.
    let index = lab.state().join("store/index");
    let entry = fs::read_dir(&index)?.flatten().next().context("no entry")?.path();
    let text = fs::read_to_string(&entry)?;
    fs::write(index.join(format!("directory-{TREE}-0")), &text)?;
    liar.run_is_refused(&host(), Some(json!({"kind": "directory", "tree": TREE})), "input.damaged")?;
    let forged = text.replace(&good, TREE);
    let tree = serde_json::from_str::<Value>(&text)?["tree"].as_str().context("no tree")?.to_owned();
    fs::write(index.join(format!("file-{TREE}-0")), forged.replace(&tree, TREE))?;
    liar.run_is_refused(
        &host(),
        Some(json!({"kind": "file", "sha256": TREE, "executable": false})),
        "input.missing",
    )?;
    fs::remove_file(index.join(format!("file-{TREE}-0")))?;
    liar.runs(&host(), Some(json!({"kind": "file", "sha256": good, "executable": false})))?;
    liar.ends(1)
}

fn damaged(lab: &Lab) -> Result<()> {
    let mut liar = Liar::start(lab)?;
    let source = || json!({"kind": "file", "sha256": sha256(b"good"), "executable": false});
    liar.takes_in(&file_named(b"good"), b"good")?;
    liar.runs(&host(), Some(source()))?;
    let tree = fs::read_dir(lab.state().join("store/trees"))?.flatten().next().context("no tree")?.path();
    fs::write(tree.join("tree/content"), "evil")?;
    // Nobody asked whether it is there: the job is the first to look.
    liar.run_is_refused(&host(), Some(source()), "input.damaged")?;
    liar.run_is_refused(&host(), Some(source()), "input.missing")?;
    ensure!(!tree.exists(), "it is still where jobs look");
    liar.takes_in(&file_named(b"good"), b"good")?;
    liar.runs(&host(), Some(source()))?;
    liar.ends(1)
}

fn odd_requests(lab: &Lab) -> Result<()> {
    let liar = Liar::start(lab)?;
    let good = liar.file(b"good")?;
    for request in [
        json!({"ask": "import", "content": "file", "sha256": "../../../../etc/passwd", "executable": false, "epoch": 0}),
        json!({"ask": "import", "content": "file", "sha256": sha256(b"good").to_uppercase(), "executable": false, "epoch": 0}),
        json!({"ask": "import", "content": "file", "sha256": null, "executable": false, "epoch": 0, "path": "/etc/passwd"}),
        json!({"ask": "import", "content": "file", "sha256": null, "executable": false, "epoch": -1}),
        json!({"ask": "import", "content": "device"}),
        json!({"ask": "mount", "path": "/"}),
        json!({"ask": "run", "lifetime": false, "profile": "none"}),
        json!({"ask": "forget", "job": "../store"}),
        json!({"ask": "forget", "job": "01890a5d-ac96-774b-bcce-b302099a8057"}),
        json!({"ask": "store_list", "after": null, "named": "../trees"}),
        json!({"ask": "store_verify", "object": "../../x", "quarantine": true}),
        json!({"ask": "store_collect", "max_bytes": 0, "max_age_seconds": null, "dry_run": false, "force": true}),
        json!([]),
        json!("find"),
    ] {
        liar.is_refused(&request, &[good.as_fd()], "job.invalid")?;
    }
    // What a peer may ask of the store, it may: it learns names, and removes nothing that is used.
    let verified = liar.ask(&json!({"ask": "store_verify", "object": TREE, "quarantine": true}), &[])?;
    equal("of nothing", &verified["damage"], &Value::Null)?;
    liar.takes_in(&file_named(b"good"), b"good")?;
    let all = json!({"ask": "store_collect", "max_bytes": 0, "max_age_seconds": null, "dry_run": false});
    let said = liar.ask(&all, &[])?;
    equal("removed", &(&said["removed"], &said["in_use"]), &(&0.into(), &1.into()))?;
    liar.ends(1)
}
