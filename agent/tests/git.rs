//! Git inputs from real repositories: over git's own HTTP server, and from directories.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

#[path = "common/git_fetch.rs"]
mod git_fetch;
#[path = "common/git_server.rs"]
mod git_server;

use ampoule_agent::git::{GitLimits, GitPlace};
use ampoule_agent::inputs::InputError;
use ampoule_spec::{Code, GitId};
use git_fetch::*;
use git_server::{Answer, GitServer, commit_all, git, git_raw, git_with, init};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

#[test]
fn checkout_is_the_commits_blobs_and_nothing_is_run_or_filtered() {
    let temp = tempfile::tempdir().unwrap();
    let repository = temp.path().join("r");
    let commit = rich(&repository);
    let ran = temp.path().join("ran");
    for hook in ["post-checkout", "pre-receive", "post-merge", "reference-transaction", "fsmonitor"] {
        let path = repository.join(".git/hooks").join(hook);
        fs::write(&path, format!("#!/bin/sh\ntouch '{}'\n", ran.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (key, value) in
        [("filter.lfs.smudge", "touch"), ("core.fsmonitor", "touch"), ("core.autocrlf", "true")]
    {
        let value = if value == "touch" { format!("touch '{}'", ran.display()) } else { value.to_owned() };
        git(&repository, &["config", key, &value]);
    }
    let expected = ls_tree(&repository, &commit);
    assert_eq!(expected.len(), 14);
    let limits = GitLimits::default();
    let server = GitServer::start(temp.path());
    let worktree = temp.path().join("worktree");
    git(
        &repository,
        &["worktree", "add", "--quiet", "--detach", "--no-checkout", worktree.to_str().unwrap()],
    );
    let _ = fs::remove_file(&ran);
    let places = [
        url(&server, "r/.git"),
        GitPlace::Path(repository.clone()),
        GitPlace::Path(repository.join(".git")),
        GitPlace::Path(worktree),
    ];
    for place in &places {
        let snapshot = fetch(place, &commit, false, &limits).unwrap();
        assert_eq!(listed(&written(&snapshot, &limits).unwrap(), temp.path()), expected, "{place:?}");
        assert_eq!(
            snapshot.proof().object.0,
            git_raw(&repository, &["cat-file", "commit", &commit], b"").stdout
        );
    }
    assert!(!ran.exists(), "something of the repository was run");
    // What it can do, and the objects.
    assert_eq!(server.requests().len(), 2, "{:?}", server.requests());
    // The same from packs.
    git(&repository, &["gc", "--quiet"]);
    let snapshot = fetch(&GitPlace::Path(repository.clone()), &commit, false, &limits).unwrap();
    assert_eq!(listed(&written(&snapshot, &limits).unwrap(), temp.path()), expected);
}

/// A repository of files that are stored as deltas over each other.
fn deltas(dir: &Path, depth: &str, by_offset: bool) -> String {
    init(dir);
    let mut seed = 1_u64;
    let mut number = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(seed >> 40).unwrap()
    };
    let mut lines: Vec<String> = (0..2000).map(|_| format!("line {}\n", number())).collect();
    for n in 0..60 {
        for _ in 0..20 {
            let at = number() % lines.len();
            lines[at] = format!("other {}\n", number());
        }
        lines.push("one more\n".to_owned());
        // Of one name, so that git tries each with its neighbours.
        fs::create_dir(dir.join(format!("d{n}"))).unwrap();
        fs::write(dir.join(format!("d{n}/f")), lines.concat()).unwrap();
    }
    let commit = commit_all(dir);
    git(dir, &["config", "repack.useDeltaBaseOffset", if by_offset { "true" } else { "false" }]);
    git(dir, &["repack", "-a", "-d", "-f", "--quiet", &format!("--depth={depth}"), "--window=10"]);
    commit
}

#[test]
fn deltas_by_offset_and_by_name_are_rebuilt() {
    let temp = tempfile::tempdir().unwrap();
    let server = GitServer::start(temp.path());
    let limits = GitLimits::default();
    for (name, by_offset) in [("ofs", true), ("ref", false)] {
        let repository = temp.path().join(name);
        let commit = deltas(&repository, "50", by_offset);
        let verified = git(&repository, &["verify-pack", "-v", &pack_index(&repository)]);
        assert!(verified.contains("chain length = 5:"), "no deltas were made: {verified}");
        let expected = ls_tree(&repository, &commit);
        for place in [url(&server, &format!("{name}/.git")), GitPlace::Path(repository.clone())] {
            let snapshot = fetch(&place, &commit, false, &limits).unwrap();
            assert_eq!(listed(&written(&snapshot, &limits).unwrap(), temp.path()), expected, "{place:?}");
        }
    }
}

fn pack_index(repository: &Path) -> String {
    let packs = fs::read_dir(repository.join(".git/objects/pack")).unwrap();
    let index = packs.map(|e| e.unwrap().path()).find(|p| p.extension().is_some_and(|e| e == "idx"));
    index.unwrap().to_str().unwrap().to_owned()
}

#[test]
fn limits_hold_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let server = GitServer::start(temp.path());
    let repository = temp.path().join("r");
    let commit = deltas(&repository, "50", true);
    let big = temp.path().join("big");
    init(&big);
    fs::write(big.join("f"), vec![0; 3 << 20]).unwrap();
    let bomb = commit_all(&big);
    let small = GitLimits::default();
    // A repository here is not read whole, so not all of them are met there.
    let cases = [
        ("r", &commit, GitLimits { pack_bytes_max: 1000, ..small }, "1000 bytes", false),
        ("r", &commit, GitLimits { objects_max: 10, ..small }, "at most 10", false),
        ("r", &commit, GitLimits { delta_depth_max: 3, ..small }, "more than 3 deltas", true),
        ("r", &commit, GitLimits { work_bytes_max: 100_000, ..small }, "rebuild", true),
        ("r", &commit, GitLimits { entries_max: 5, ..small }, "more than 5 names", true),
        ("r", &commit, GitLimits { bytes_max: 100_000, ..small }, "more than 100000 bytes", true),
        // Three megabytes of zeros are three kilobytes of pack.
        ("big", &bomb, GitLimits { object_bytes_max: 1 << 20, ..small }, "1048576 ", true),
    ];
    for (name, commit, limits, says, here) in cases {
        let places = [url(&server, &format!("{name}/.git")), GitPlace::Path(temp.path().join(name))];
        for place in places.iter().take(if here { 2 } else { 1 }) {
            let found =
                fetch(place, commit, false, &limits).and_then(|s| written(&s, &limits)).map(|a| a.len());
            let error = found.expect_err(says);
            assert_eq!(error.code(), Code::InputRefused, "{error}");
            assert!(error.to_string().contains(says), "{place:?} {says}: {error}");
        }
    }
}

/// A tree object with these entries, as it is.
fn raw_tree(dir: &Path, entries: &[(&str, &[u8], &str)]) -> String {
    let mut bytes = Vec::new();
    for (mode, name, id) in entries {
        bytes.extend_from_slice(mode.as_bytes());
        bytes.push(b' ');
        bytes.extend_from_slice(name);
        bytes.push(0);
        bytes.extend_from_slice(GitId::parse(id).unwrap().as_bytes());
    }
    git_with(dir, &["hash-object", "-w", "--stdin", "-t", "tree", "--literally"], &bytes)
}

/// Trees that git itself does not make: a name, the tree, and what the refusal says.
fn hostile_trees(repository: &Path) -> Vec<(&'static str, String, &'static str)> {
    let blob = git_with(repository, &["hash-object", "-w", "--stdin"], b"evil\n");
    let inner = raw_tree(repository, &[("100644", b"x", &blob)]);
    let hooks = raw_tree(repository, &[("40000", b"hooks", &inner)]);
    let mut deep = inner.clone();
    for _ in 0..70 {
        deep = raw_tree(repository, &[("40000", b"d", &deep)]);
    }
    // Ten levels of ten: ten thousand million names.
    let mut many = inner.clone();
    for _ in 0..10 {
        let names: Vec<Vec<u8>> = (0..10).map(|n| format!("n{n}").into_bytes()).collect();
        let entries: Vec<(&str, &[u8], &str)> =
            names.iter().map(|n| ("40000", n.as_slice(), many.as_str())).collect();
        many = raw_tree(repository, &entries);
    }
    let long = [b'x'; 300];
    let file = "100644";
    vec![
        ("git", raw_tree(repository, &[("40000", b".git", &hooks)]), "git's own"),
        ("GIT", raw_tree(repository, &[("40000", b".GIT", &hooks)]), "git's own"),
        (
            "below",
            raw_tree(repository, &[("40000", b"d", &raw_tree(repository, &[(file, b".git", &blob)]))]),
            "git's own",
        ),
        ("parent", raw_tree(repository, &[("40000", b"..", &inner)]), "parent's"),
        ("self", raw_tree(repository, &[("40000", b".", &inner)]), "parent's"),
        ("slash", raw_tree(repository, &[(file, b"a/b", &blob)]), "'/'"),
        ("empty", raw_tree(repository, &[(file, b"", &blob)]), "empty name"),
        ("twice", raw_tree(repository, &[(file, b"a", &blob), (file, b"a", &blob)]), "twice"),
        ("both", raw_tree(repository, &[(file, b"a", &blob), ("40000", b"a", &inner)]), "twice"),
        ("through", raw_tree(repository, &[("120000", b"a", &blob), ("40000", b"a", &inner)]), "twice"),
        ("order", raw_tree(repository, &[(file, b"b", &blob), (file, b"a", &blob)]), "out of order"),
        ("mode", raw_tree(repository, &[("104755", b"a", &blob)]), "mode"),
        ("group", raw_tree(repository, &[("100664", b"a", &blob)]), "mode"),
        ("zero", raw_tree(repository, &[("040000", b"a", &inner)]), "mode"),
        ("kind", raw_tree(repository, &[(file, b"a", &inner)]), "is a tree"),
        ("other", raw_tree(repository, &[("40000", b"a", &blob)]), "is a blob"),
        ("long", raw_tree(repository, &[(file, &long, &blob)]), "255"),
        ("deep", deep, "64 components"),
        ("many", many, "1000 names"),
    ]
}

#[test]
fn hostile_trees_are_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let server = GitServer::start(temp.path());
    let repository = temp.path().join("r");
    init(&repository);
    let limits = GitLimits { entries_max: 1000, ..GitLimits::default() };
    for (name, tree, says) in hostile_trees(&repository) {
        let object = format!("tree {tree}\nauthor A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nm\n");
        let commit = git_with(
            &repository,
            &["hash-object", "-w", "--stdin", "-t", "commit", "--literally"],
            object.as_bytes(),
        );
        for place in [url(&server, "r/.git"), GitPlace::Path(repository.clone())] {
            let found =
                fetch(&place, &commit, false, &limits).and_then(|s| written(&s, &limits)).map(|a| a.len());
            let error = found.expect_err(name);
            // Some of them git itself does not send.
            if error.to_string().contains("the server says: ") && matches!(place, GitPlace::Url(_)) {
                continue;
            }
            assert_eq!(error.code(), Code::InputRefused, "{name} {place:?}: {error}");
            assert!(error.to_string().contains(says), "{name} {place:?}: {error}");
        }
    }
}

/// Changes the answer that has the pack; where that begins is the second argument.
fn within(path: &str, body: Vec<u8>, change: fn(Vec<u8>, usize) -> Answer) -> Answer {
    match body.windows(9).position(|w| w == b"packfile\n").filter(|_| path.ends_with("git-upload-pack")) {
        Some(at) => change(body, at + 14),
        None => Answer::Bytes(body),
    }
}

/// Changes the answer that says what the server can do.
fn first(path: &str, body: Vec<u8>, instead: &[u8]) -> Answer {
    Answer::Bytes(if path.ends_with("refs") { instead.to_vec() } else { body })
}

type Lie = fn(&str, Vec<u8>) -> Answer;

const LIES: &[(&str, Lie, Code, &str)] = &[
    (
        "cut",
        |p, b| within(p, b, |b, at| Answer::Cut(b[..at + 300].to_vec())),
        Code::InputUnreachable,
        "not complete",
    ),
    (
        "short",
        |p, b| within(p, b, |b, at| Answer::Bytes(b[..at + 300].to_vec())),
        Code::InputUnreachable,
        "not complete",
    ),
    (
        "flipped",
        |p, b| {
            within(p, b, |mut b, at| {
                b[at + 200] ^= 1;
                Answer::Bytes(b)
            })
        },
        Code::InputUnreachable,
        "hash",
    ),
    (
        "no end",
        |p, b| within(p, b, |b, at| Answer::Endless(b[..at - 5].to_vec(), band(1, &[0; 60_000]))),
        Code::InputRefused,
        "bytes that are accepted",
    ),
    (
        "chatter",
        |p, b| within(p, b, |b, at| Answer::Endless(b[..at - 5].to_vec(), band(2, &[b'.'; 60_000]))),
        Code::InputRefused,
        "than are accepted",
    ),
    (
        "error",
        |p, b| {
            within(p, b, |b, at| Answer::Bytes([&b[..at - 5], &band(3, b"out of \x1b[2Jmemory")].concat()))
        },
        Code::InputUnreachable,
        "out of \\x1b[2Jmemory",
    ),
    (
        "band",
        |p, b| within(p, b, |b, at| Answer::Bytes([&b[..at - 5], &band(9, b"x")].concat())),
        Code::InputRefused,
        "band",
    ),
    (
        "length",
        |p, b| within(p, b, |b, at| Answer::Bytes([&b[..at - 5], b"zzzz"].concat())),
        Code::InputRefused,
        "packet",
    ),
    ("gone", |_, _| Answer::Status("404 Not Found".into()), Code::InputMissing, "404"),
    ("login", |_, _| Answer::Status("401 Unauthorized".into()), Code::InputMissing, "who asks"),
    ("busy", |_, _| Answer::Status("503 Busy".into()), Code::InputUnreachable, "503"),
    (
        "page",
        |_, _| Answer::Status("200 OK\r\nContent-Type: text/html".into()),
        Code::InputRefused,
        "smart HTTP",
    ),
    (
        "away",
        |_, _| Answer::Status("302 Found\r\nLocation: http://192.0.2.1/r/info/refs".into()),
        Code::InputSourceDenied,
        "192.0.2.1",
    ),
    (
        "old",
        |p, b| first(p, b, b"001e# service=git-upload-pack\n0000000eversion 1\n0000"),
        Code::InputRefused,
        "version 2",
    ),
    (
        "sha256",
        |p, b| {
            first(
                p,
                b,
                b"001e# service=git-upload-pack\n0000000eversion 2\n0012fetch=shallow\n0019object-format=sha256\n0000",
            )
        },
        Code::InputRefused,
        "SHA-256",
    ),
];

#[test]
fn servers_that_lie_or_break_off_are_found_out() {
    let temp = tempfile::tempdir().unwrap();
    let repository = temp.path().join("r");
    let commit = rich(&repository);
    let limits = GitLimits { pack_bytes_max: 4 << 20, ..GitLimits::default() };
    for (name, lie, code, says) in LIES {
        let server = GitServer::tampering(temp.path(), Arc::new(lie));
        let started = std::time::Instant::now();
        let error = fetch(&url(&server, "r/.git"), &commit, false, &limits).expect_err(name);
        let text = chain(&error);
        assert_eq!(error.code(), *code, "{name}: {text}");
        assert!(text.contains(says), "{name}: {text}");
        assert!(started.elapsed().as_secs() < 30, "{name}");
    }
    let closed = GitServer::start(temp.path()).url("r/.git");
    let error = fetch(&GitPlace::Url(closed), &commit, false, &limits).unwrap_err();
    assert_eq!(error.code(), Code::InputUnreachable);
    // A commit that is not there, and the objects of another one instead of those that were asked for.
    let server = GitServer::start(temp.path());
    let error = fetch(&url(&server, "r/.git"), &"0123456789".repeat(4), false, &limits).unwrap_err();
    assert_eq!(error.code(), Code::InputMissing);
    assert!(error.to_string().contains("not in the repository"), "{error}");
    let other = deltas(&temp.path().join("other"), "10", true);
    let theirs = server.pack_of("other", &other);
    let lie = move |path: &str, body: Vec<u8>| {
        Answer::Bytes(if path.ends_with("git-upload-pack") { theirs.clone() } else { body })
    };
    let liar = GitServer::tampering(temp.path(), Arc::new(lie));
    let error = fetch(&url(&liar, "r/.git"), &commit, false, &limits).unwrap_err();
    assert_eq!(error.code(), Code::InputDigestMismatch);
    assert!(error.to_string().contains("does not have the object"), "{error}");
}

fn chain(error: &InputError) -> String {
    let cause = std::error::Error::source(error).map(|e| format!(": {e}")).unwrap_or_default();
    format!("{error}{cause}")
}

/// A packet of a band.
fn band(number: u8, bytes: &[u8]) -> Vec<u8> {
    [format!("{:04x}", bytes.len() + 5).as_bytes(), &[number], bytes].concat()
}
