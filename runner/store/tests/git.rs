//! Checkouts in the store: taken under a commit's name only if git's own ids, computed here from the finished tree, say so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod common;

use ampoule_spec::wire::{Content, Imported};
use ampoule_spec::{Code, GitId, GitLink, GitProof, HexBytes};
use ampoule_store::worker::WorkerResult;
use ampoule_store::{StoreError, receive, worker};
use common::{EPOCH, H, World, dir, file, hardlink, symlink, tar};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

fn git(dir: &Path, args: &[&str], input: &[u8]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command.env("HOME", "/nonexistent").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A repository that makes trees from lines as `git ls-tree` prints them.
struct Repository(tempfile::TempDir);

impl Repository {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        git(temp.path(), &["init", "--quiet"], b"");
        Self(temp)
    }

    fn blob(&self, bytes: &[u8]) -> String {
        git(self.0.path(), &["hash-object", "-w", "--stdin"], bytes)
    }

    fn tree(&self, lines: &[(&str, &str, &str)]) -> String {
        let kind = |mode: &str| match mode {
            "40000" => "tree",
            "160000" => "commit",
            _ => "blob",
        };
        let line = |(mode, id, name): &(&str, &str, &str)| format!("{mode} {} {id}\t{name}\n", kind(mode));
        let text: String = lines.iter().map(line).collect();
        git(self.0.path(), &["mktree", "--missing"], text.as_bytes())
    }

    /// A commit of a tree: its id and its object.
    fn commit(&self, tree: &str) -> (GitId, Vec<u8>) {
        let object =
            format!("tree {tree}\nauthor A <a> 1 +0000\ncommitter A <a> 2 +0000\n\nm\n").into_bytes();
        let id = git(self.0.path(), &["hash-object", "-w", "--stdin", "-t", "commit"], &object);
        (GitId::parse(&id).unwrap(), object)
    }
}

fn import(
    world: &World,
    content: &Content,
    source: &[u8],
    proof: Option<GitProof>,
) -> Result<Imported, StoreError> {
    let mut staging = world.store.begin(content).unwrap();
    if let Some(proof) = proof {
        staging.prove(proof);
    }
    let dir = staging.worker_dir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let limits = *world.store.limits();
    let (result, received) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| worker::run(content, reader.into(), dir, &limits));
        let received = receive(source, writer, u64::MAX).unwrap();
        (worker.join().unwrap(), received)
    });
    let result = WorkerResult::from_json(&result.to_json()).unwrap();
    world.store.commit(staging, &result, &received)
}

fn content(commit: GitId, submodules: bool) -> Content {
    Content::Git { commit, submodules, epoch: EPOCH }
}

fn proof(object: &[u8], links: Vec<GitLink>) -> Option<GitProof> {
    Some(GitProof { object: HexBytes(object.to_vec()), links })
}

/// What a checkout of [`sample`] is in an archive.
fn entries() -> Vec<H> {
    vec![
        file("a.b", "sorts first\n"),
        dir("a/"),
        file("a/tool", "#!/bin/sh\n").mode(0o755),
        file("a0", ""),
        symlink("link", "a/tool"),
        dir("none/"),
    ]
}

/// A commit with everything that a tree can have but submodules: an odd order, and a directory that is empty.
fn sample(repository: &Repository) -> (GitId, Vec<u8>) {
    let tool = repository.blob(b"#!/bin/sh\n");
    let a = repository.tree(&[("100755", &tool, "tool")]);
    let empty = repository.tree(&[]);
    let tree = repository.tree(&[
        ("100644", &repository.blob(b"sorts first\n"), "a.b"),
        ("40000", &a, "a"),
        ("100644", &repository.blob(b""), "a0"),
        ("120000", &repository.blob(b"a/tool"), "link"),
        ("40000", &empty, "none"),
    ]);
    repository.commit(&tree)
}

#[test]
fn checkout_is_kept_under_its_commit_and_found_again() {
    let (world, repository) = (World::new(), Repository::new());
    let (commit, object) = sample(&repository);
    let imported = import(&world, &content(commit, false), &tar(&entries()), proof(&object, vec![])).unwrap();
    assert_eq!(world.store.find(&content(commit, false)).unwrap(), Some(imported.clone()));
    let listing = world.listing(&content(commit, false));
    assert_eq!(listing["a/tool"], "f 0755 #!/bin/sh\\n");
    assert_eq!(listing["link"], "l a/tool");
    // The tree has the same name as the directory, by which it may be an input too.
    let directory = Content::Directory { tree: Some(imported.sha256), epoch: EPOCH };
    assert_eq!(import(&world, &directory, &tar(&entries()), None).unwrap(), imported);
    assert!(world.store.verify(&content(commit, false)).unwrap());
    for other in [content(commit, true), Content::Git { commit, submodules: false, epoch: 1 }] {
        assert_eq!(world.store.find(&other).unwrap(), None);
    }
}

#[test]
fn tree_that_is_not_the_commits_is_not_taken() {
    let (world, repository) = (World::new(), Repository::new());
    let (commit, object) = sample(&repository);
    let (other, other_object) = repository.commit(&repository.tree(&[]));
    let without = |name: &str| {
        let keep = |h: &H| h.block[..name.len()] != *name.as_bytes();
        entries().into_iter().filter(keep).collect::<Vec<_>>()
    };
    let with = |more: H| [entries(), vec![more]].concat();
    let replaced = |name: &str, by: H| [without(name), vec![by]].concat();
    let good = proof(&object, vec![]);
    let lies: Vec<(&str, Vec<H>, Option<GitProof>)> = vec![
        ("another byte", replaced("a.b", file("a.b", "Sorts first\n")), good.clone()),
        ("a byte less", replaced("a.b", file("a.b", "sorts first")), good.clone()),
        ("not executable", replaced("a/tool", file("a/tool", "#!/bin/sh\n")), good.clone()),
        ("executable", replaced("a0", file("a0", "").mode(0o755)), good.clone()),
        ("one more file", with(file("zz", "")), good.clone()),
        ("one more directory", with(dir("zz/")), good.clone()),
        ("a directory less", without("none/"), good.clone()),
        ("a file less", without("a0"), good.clone()),
        ("another target", replaced("link", symlink("link", "a/tooL")), good.clone()),
        ("a file for a link", replaced("link", file("link", "a/tool")), good.clone()),
        ("another name", replaced("a0", file("a1", "")), good.clone()),
        ("a hard link", replaced("a0", hardlink("a0", "a.b")), good.clone()),
        ("git's own", with(file(".git", "")), good.clone()),
        ("git's own below", with(file("a/.GIT", "")), good.clone()),
        ("another commit", entries(), proof(&other_object, vec![])),
        ("no commit", entries(), proof(b"", vec![])),
        ("no tree", entries(), proof(&object[1..], vec![])),
        ("no proof", entries(), None),
        (
            "a submodule for a directory",
            entries(),
            proof(&object, vec![GitLink { path: HexBytes(b"none".to_vec()), commit: other, object: None }]),
        ),
        (
            "a submodule that is not there",
            entries(),
            proof(&object, vec![GitLink { path: HexBytes(b"gone".to_vec()), commit: other, object: None }]),
        ),
    ];
    for (name, entries, proof) in lies {
        let error = import(&world, &content(commit, false), &tar(&entries), proof).expect_err(name);
        assert_eq!(
            (error.name(), error.code()),
            ("not_the_commit", Code::InputDigestMismatch),
            "{name}: {error}"
        );
        assert_eq!(world.store.find(&content(commit, false)).unwrap(), None, "{name}");
    }
    let many = vec![GitLink { path: HexBytes(vec![]), commit: other, object: None }; 257];
    assert!(import(&world, &content(commit, false), &tar(&entries()), proof(&object, many)).is_err());
    import(&world, &content(commit, false), &tar(&entries()), good).unwrap();
}

#[test]
fn submodules_are_their_commits_or_empty() {
    let (world, repository) = (World::new(), Repository::new());
    let (inner, inner_object) =
        repository.commit(&repository.tree(&[("100644", &repository.blob(b"i\n"), "i")]));
    let middle_tree = repository
        .tree(&[("160000", &inner.to_string(), "inner"), ("100644", &repository.blob(b"m\n"), "m")]);
    let (middle, middle_object) = repository.commit(&middle_tree);
    let lib = repository.tree(&[("160000", &middle.to_string(), "middle")]);
    let tree = repository.tree(&[("100644", &repository.blob(b"f\n"), "f"), ("40000", &lib, "lib")]);
    let (commit, object) = repository.commit(&tree);
    let link = |path: &[u8], commit, object: Option<&[u8]>| GitLink {
        path: HexBytes(path.to_vec()),
        commit,
        object: object.map(|object| HexBytes(object.to_vec())),
    };
    let empty = vec![file("f", "f\n"), dir("lib/"), dir("lib/middle/")];
    let full = [
        empty.clone(),
        vec![file("lib/middle/m", "m\n"), dir("lib/middle/inner/"), file("lib/middle/inner/i", "i\n")],
    ]
    .concat();
    let bare = vec![link(b"lib/middle", middle, None)];
    let whole = vec![
        link(b"lib/middle", middle, Some(&middle_object)),
        link(b"lib/middle/inner", inner, Some(&inner_object)),
    ];
    import(&world, &content(commit, false), &tar(&empty), proof(&object, bare.clone())).unwrap();
    import(&world, &content(commit, true), &tar(&full), proof(&object, whole.clone())).unwrap();
    let changed = [
        empty.clone(),
        vec![file("lib/middle/m", "m\n"), dir("lib/middle/inner/"), file("lib/middle/inner/i", "j\n")],
    ]
    .concat();
    let mut swapped = whole.clone();
    swapped[1] = link(b"lib/middle/inner", inner, Some(&middle_object));
    let mut renamed = whole.clone();
    renamed[1] = link(b"lib/middle/inner", middle, Some(&inner_object));
    let partly = vec![whole[0].clone(), link(b"lib/middle/inner", inner, None)];
    // Under an epoch of their own, so that nothing is there before.
    for (name, submodules, entries, links) in [
        ("filled", false, &full, whole.clone()),
        ("filled without saying", false, &full, bare.clone()),
        ("empty", true, &empty, bare),
        ("partly", true, &full, partly),
        ("changed", true, &changed, whole.clone()),
        ("another object", true, &full, swapped),
        ("another commit", true, &full, renamed),
        ("missing", true, &empty, whole),
        ("not named", false, &empty, vec![]),
    ] {
        let content = Content::Git { commit, submodules, epoch: 7 };
        let entries: Vec<H> = entries.iter().map(|h| h.clone().mtime(7)).collect();
        let error = import(&world, &content, &tar(&entries), proof(&object, links)).expect_err(name);
        assert_eq!(error.name(), "not_the_commit", "{name}: {error}");
    }
}

/// Git sorts a submodule as it sorts a file: `lib` before `lib.txt`, where the directory `lib` comes behind it.
#[test]
fn submodule_beside_a_longer_name_is_in_gits_order() {
    let (world, repository) = (World::new(), Repository::new());
    let (inner, _) = repository.commit(&repository.tree(&[("100644", &repository.blob(b"i\n"), "i")]));
    let text = repository.blob(b"t\n");
    let dir_tree = repository.tree(&[("100644", &text, "f")]);
    let tree = repository.tree(&[
        ("160000", &inner.to_string(), "lib"),
        ("100644", &text, "lib.txt"),
        ("40000", &dir_tree, "sub"),
        ("100644", &text, "sub.txt"),
    ]);
    let (commit, object) = repository.commit(&tree);
    let entries =
        vec![dir("lib/"), file("lib.txt", "t\n"), dir("sub/"), file("sub/f", "t\n"), file("sub.txt", "t\n")];
    let links = vec![GitLink { path: HexBytes(b"lib".to_vec()), commit: inner, object: None }];
    import(&world, &content(commit, false), &tar(&entries), proof(&object, links)).unwrap();
}
