//! A worker as it really runs: another process, in a user namespace of its own, with a pipe and a directory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use ampoule_spec::wire::{Content, Imported};
use ampoule_store::worker::{self, WorkerResult};
use ampoule_store::{Limits, Owner, Store, StoreError, receive};
use common::*;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

const CONTENT: &str = "AMPOULE_TEST_CONTENT";
/// The host ids that a worker has when the tests run as root; nobody else's, it is hoped.
const BASE: u32 = 1_345_650_688;

#[test]
#[ignore = "the worker's side of the tests in this file"]
fn worker_process() {
    let Ok(content) = std::env::var(CONTENT) else { return };
    let content = serde_json::from_str(&content).unwrap();
    let source = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let result = worker::run(&content, source, open_dir(".".as_ref()), &Limits::default());
    println!("\nRESULT:{}", String::from_utf8(result.to_json()).unwrap());
}

struct Launcher {
    world: World,
    store: Store,
}

impl Launcher {
    fn new() -> Self {
        let world = World::new();
        let owner = if is_root() { Owner::Mapped { base: BASE } } else { Owner::Own };
        let store = Store::open(&open_dir(&world.path("store")), owner, Limits::default()).unwrap();
        fs::set_permissions(world.temp.path(), fs::Permissions::from_mode(0o711)).unwrap();
        fs::copy(std::env::current_exe().unwrap(), world.path("worker")).unwrap();
        Self { world, store }
    }

    /// Nothing if user namespaces are not to be had here.
    fn import(&self, content: &Content, source: &[u8]) -> Option<Result<Imported, StoreError>> {
        let staging = self.store.begin(content).unwrap();
        let dir = fs::read_dir(self.world.path("store/staging")).unwrap().next().unwrap().unwrap();
        let mut command = Command::new("unshare");
        if is_root() {
            // Waits until the ids are mapped from outside, then takes the first of them.
            let script = "until grep -q 65536 /proc/self/uid_map; do sleep 0.01; done
                exec setpriv --reuid 0 --regid 0 --clear-groups \"$@\"";
            command.args(["-U", "--keep-caps", "sh", "-c", script, "sh"]);
        } else {
            command.arg("-Ur");
        }
        let mut child = command
            .arg(self.world.path("worker"))
            .args(["worker_process", "--exact", "--ignored", "--nocapture"])
            .env(CONTENT, serde_json::to_string(content).unwrap())
            .current_dir(dir.path().join("tree"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        if is_root() {
            map_ids(child.id());
        }
        let received = receive(source, child.stdin.take().unwrap(), u64::MAX).unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        child.wait().unwrap();
        let Some(json) = text.lines().find_map(|line| line.strip_prefix("RESULT:")) else {
            println!("skipped: no user namespace here: {text}");
            return None;
        };
        let result = WorkerResult::from_json(json.as_bytes()).unwrap();
        println!("{json}");
        Some(self.store.commit(staging, &result, &received))
    }
}

/// Maps 65,536 ids into the user namespace of a process, as soon as it has one.
fn map_ids(pid: u32) {
    let own = fs::read_link("/proc/self/ns/user").unwrap();
    for _ in 0..500 {
        if fs::read_link(format!("/proc/{pid}/ns/user")).is_ok_and(|other| other != own) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    for map in ["gid_map", "uid_map"] {
        fs::write(format!("/proc/{pid}/{map}"), format!("0 {BASE} 65536")).unwrap();
    }
}

#[test]
fn worker_in_a_user_namespace_makes_a_tree_that_the_launcher_takes() {
    let launcher = Launcher::new();
    let source = gzip(&tar(&[
        dir("d/"),
        file("d/.wh..wh..opq", ""),
        file("d/f", "x").owner(1000, 100).mode(0o600),
        hardlink("d/h", "d/f"),
        symlink("d/l", "f").owner(65_535, 65_535),
        file(".wh.gone", ""),
        dir("closed/").mode(0).owner(5, 5),
        file("closed/secret", "x").mode(0).owner(5, 5),
    ]));
    let content = Content::OciLayer { sha256: sha(&source) };
    let Some(result) = launcher.import(&content, &source) else { return };
    assert_eq!(result.unwrap().entries, 8 - 1);
    let blake3 = launcher.store.tree(&content).unwrap().unwrap().blake3;
    let root = launcher.world.path(&format!("store/trees/{blake3}/tree"));
    let owner = |name: &str| {
        let meta = fs::symlink_metadata(root.join(name)).unwrap();
        (meta.uid(), meta.gid())
    };
    let record =
        fs::read_to_string(launcher.world.path(&format!("store/index/oci-layer-{}", sha(&source)))).unwrap();
    let attribute = if is_root() {
        assert_eq!((owner("."), owner("d"), owner("d/f")), ((0, 0), (0, 0), (1000, 100)));
        assert_eq!(
            (owner("d/h"), owner("d/l"), owner("closed/secret")),
            ((1000, 100), (65_535, 65_535), (5, 5))
        );
        assert!(record.contains("\"owners_left\":0"), "{record}");
        "trusted.overlay.opaque"
    } else {
        assert!(record.contains("\"owners_left\":4"), "{record}");
        "user.overlay.opaque"
    };
    let mut value = [0; 4];
    let length = rustix::fs::getxattr(root.join("d"), attribute, &mut value).unwrap();
    assert_eq!(&value[..length], b"y");
    assert!(launcher.store.verify(&content).unwrap());
    assert_eq!(launcher.store.sweep_staging().unwrap(), Default::default());
}

#[test]
fn worker_in_a_user_namespace_refuses_as_elsewhere() {
    let launcher = Launcher::new();
    for (name, entries) in [
        ("through_symlink", vec![symlink("a", "../../../.."), file("a/victim2", "x")]),
        ("special_file", vec![H::new(b'3', "tty")]),
        ("hard_link_missing", vec![hardlink("a", "worker")]),
    ] {
        let source = tar(&entries);
        let Some(result) = launcher.import(&archive(&source), &source) else { return };
        assert_eq!(result.unwrap_err().name(), name);
    }
    let source = tar(&[dir("d/"), file("d/f", "x").owner(7, 7)]);
    let Some(result) = launcher.import(&archive(&source), &source) else { return };
    result.unwrap();
    assert!(launcher.store.verify(&archive(&source)).unwrap());
}
