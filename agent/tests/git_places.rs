//! Git inputs: where repositories and their submodules may lie.

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

use ampoule_agent::git::{GitFetch, GitLimits, GitPlace};
use ampoule_agent::inputs::{Guard, GuardOptions, InputError};
use ampoule_agent::sources::SourcesFile;
use ampoule_spec::{Code, GitId};
use git_fetch::*;
use git_server::{GitServer, commit_all, git, init};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

#[test]
fn submodules_are_fetched_by_their_commits_or_left_empty() {
    let temp = tempfile::tempdir().unwrap();
    let (inner, middle, outer) =
        (temp.path().join("inner"), temp.path().join("middle"), temp.path().join("outer"));
    for (dir, text) in [(&inner, "inner\n"), (&middle, "middle\n"), (&outer, "outer\n")] {
        init(dir);
        fs::write(dir.join("file"), text).unwrap();
        commit_all(dir);
    }
    let server = GitServer::start(temp.path());
    git(&middle, &["submodule", "--quiet", "add", inner.to_str().unwrap(), "lib/inner"]);
    git(&middle, &["config", "-f", ".gitmodules", "submodule.lib/inner.url", "../inner"]);
    commit_all(&middle);
    git(&outer, &["submodule", "--quiet", "add", "--name", "m", middle.to_str().unwrap(), "vendor/middle"]);
    git(&outer, &["submodule", "--quiet", "update", "--init", "--recursive"]);
    git(&outer, &["config", "-f", ".gitmodules", "submodule.m.url", &server.url("middle")]);
    let commit = commit_all(&outer);
    let limits = GitLimits::default();
    // With the path of its file, each.
    for place in [url(&server, "outer"), GitPlace::Path(outer.clone())] {
        let snapshot = fetch(&place, &commit, true, &limits).unwrap();
        let tree = listed(&written(&snapshot, &limits).unwrap(), temp.path());
        let names: Vec<String> = tree.keys().map(|n| String::from_utf8_lossy(n).into_owned()).collect();
        assert_eq!(
            names,
            [
                ".gitmodules",
                "file",
                "vendor/middle/.gitmodules",
                "vendor/middle/file",
                "vendor/middle/lib/inner/file"
            ],
            "{place:?}"
        );
        assert_eq!(
            tree[&b"vendor/middle/lib/inner/file".to_vec()].1,
            git(&inner, &["rev-parse", "HEAD:file"])
        );
        let proof = snapshot.proof();
        let paths: Vec<_> = proof.links.iter().map(|l| (l.path.0.as_slice(), l.object.is_some())).collect();
        assert_eq!(paths, [(&b"vendor/middle"[..], true), (b"vendor/middle/lib/inner", true)]);
        let snapshot = fetch(&place, &commit, false, &limits).unwrap();
        let tree = listed(&written(&snapshot, &limits).unwrap(), temp.path());
        assert_eq!(tree.len(), 2);
        assert_eq!(snapshot.proof().links[0].object, None);
    }
}

#[test]
fn submodules_that_lead_elsewhere_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let server = GitServer::start(temp.path());
    let victim = temp.path().join("victim");
    init(&victim);
    let commit = commit_all(&victim);
    let repository = temp.path().join("r");
    init(&repository);
    git(&repository, &["update-index", "--add", "--cacheinfo", &format!("160000,{commit},sub")]);
    let path = victim.to_str().unwrap();
    for (modules, says) in [
        (String::new(), "no URL"),
        (format!("[submodule \"s\"]\npath = sub\nurl = {path}\n"), "only http and https"),
        (format!("[submodule \"s\"]\npath = sub\nurl = file://{path}\n"), "only http and https"),
        ("[submodule \"s\"]\npath = sub\nurl = ext::sh -c id\n".to_owned(), "only http and https"),
        ("[submodule \"s\"]\npath = sub\nurl = --upload-pack=id\n".to_owned(), "only http and https"),
        ("[submodule \"s\"]\npath = sub\nurl = ../../../../x\n".to_owned(), "out of the server"),
        ("[submodule \"../../victim/.git\"]\npath = sub\nurl = x\n".to_owned(), "cannot be read"),
        ("[submodule \"s\"]\npath = sub\n".to_owned(), "no URL"),
    ] {
        fs::write(repository.join(".gitmodules"), modules).unwrap();
        git(&repository, &["add", ".gitmodules"]);
        git(&repository, &["commit", "--quiet", "--allow-empty", "-m", "x"]);
        let commit = git(&repository, &["rev-parse", "HEAD"]);
        let error = fetch(&url(&server, "r/.git"), &commit, true, &GitLimits::default()).unwrap_err();
        assert_eq!(error.code(), Code::InputRefused, "{error}");
        assert!(
            error.to_string().contains(says)
                && error.to_string().contains(if says == "cannot be read" { "" } else { "sub" }),
            "{error}"
        );
        let local = fetch(&GitPlace::Path(repository.clone()), &commit, true, &GitLimits::default());
        assert_eq!(local.unwrap_err().code(), Code::InputRefused);
        fetch(&url(&server, "r/.git"), &commit, false, &GitLimits::default()).unwrap();
    }
}

#[test]
fn repositories_here_are_read_without_their_configuration() {
    let temp = tempfile::tempdir().unwrap();
    let repository = temp.path().join("r");
    let commit = rich(&repository);
    let limits = GitLimits::default();
    let clone = temp.path().join("clone");
    git(
        temp.path(),
        &["clone", "--quiet", "--shared", "--no-checkout", repository.to_str().unwrap(), "clone"],
    );
    let error = fetch(&GitPlace::Path(clone), &commit, false, &limits).unwrap_err();
    assert!(error.to_string().contains("alternates") && error.code() == Code::InputRefused, "{error}");
    let error = fetch(&GitPlace::Path(temp.path().to_owned()), &commit, false, &limits).unwrap_err();
    assert!(error.to_string().contains("no git repository"), "{error}");
    let error = fetch(&GitPlace::Path(repository.clone()), &"1".repeat(40), false, &limits).unwrap_err();
    assert_eq!(error.code(), Code::InputMissing, "{error}");
    // An object that lies about itself, and one that is a link to a secret.
    let object = repository.join(".git/objects").join(&commit[..2]).join(&commit[2..]);
    let good = fs::read(&object).unwrap();
    let blob = git(&repository, &["rev-parse", &format!("{commit}:secret")]);
    let other = repository.join(".git/objects").join(&blob[..2]).join(&blob[2..]);
    fs::remove_file(&object).unwrap();
    fs::copy(&other, &object).unwrap();
    let error = fetch(&GitPlace::Path(repository.clone()), &commit, false, &limits).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    fs::remove_file(&object).unwrap();
    symlink("/etc/passwd", &object).unwrap();
    let error = fetch(&GitPlace::Path(repository.clone()), &commit, false, &limits).unwrap_err();
    assert!(error.to_string().contains("damaged") && !error.to_string().contains("root:"), "{error}");
    fs::remove_file(&object).unwrap();
    fs::write(&object, good).unwrap();
    fs::write(repository.join(".git/config"), "this is no configuration [[[\n").unwrap();
    fetch(&GitPlace::Path(repository), &commit, false, &limits).unwrap();
}

/// A repository with submodules `a` and `b` that are listed with these URLs.
fn with_two(root: &Path, url: &dyn Fn(&str) -> String) -> (PathBuf, String) {
    let outer = root.join("outer");
    init(&outer);
    let mut modules = String::new();
    for name in ["a", "b"] {
        let dir = root.join(name);
        init(&dir);
        // What does not compress: a pack is as long as this.
        let mut word = u64::from(name.as_bytes()[0]);
        let mut next = || {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (word >> 33) as u8
        };
        let bytes: Vec<u8> = (0..64 << 10).map(|_| next()).collect();
        fs::write(dir.join("file"), bytes).unwrap();
        let commit = commit_all(&dir);
        git(&outer, &["update-index", "--add", "--cacheinfo", &format!("160000,{commit},{name}")]);
        modules += &format!("[submodule \"{name}\"]\npath = {name}\nurl = {}\n", url(name));
    }
    fs::write(outer.join(".gitmodules"), modules).unwrap();
    git(&outer, &["add", ".gitmodules"]);
    git(&outer, &["commit", "--quiet", "-m", "x"]);
    let commit = git(&outer, &["rev-parse", "HEAD"]);
    (outer, commit)
}

#[test]
fn packs_of_submodules_share_one_limit() {
    let temp = tempfile::tempdir().unwrap();
    let server = GitServer::start(temp.path());
    let (_, commit) = with_two(temp.path(), &|name| server.url(name));
    let place = url(&server, "outer");
    let limits = |pack_bytes_max| GitLimits { pack_bytes_max, ..GitLimits::default() };
    fetch(&place, &commit, true, &limits(160 << 10)).unwrap();
    // Each fits, and not both.
    let error = fetch(&place, &commit, true, &limits(100 << 10)).unwrap_err();
    assert_eq!(error.code(), Code::InputRefused, "{error}");
    fetch(&place, &commit, false, &limits(100 << 10)).unwrap();
}

#[test]
fn module_behind_a_link_or_a_pointer_is_not_followed() {
    let temp = tempfile::tempdir().unwrap();
    let (outer, commit) = with_two(temp.path(), &|name| format!("../{name}"));
    let modules = outer.join(".git/modules");
    fs::create_dir(&modules).unwrap();
    for name in ["a", "b"] {
        let from = temp.path().join(name).join(".git");
        git(
            temp.path(),
            &["clone", "--quiet", "--bare", from.to_str().unwrap(), modules.join(name).to_str().unwrap()],
        );
    }
    let place = GitPlace::Path(outer);
    let limits = GitLimits::default();
    fetch(&place, &commit, true, &limits).unwrap();
    let aside = temp.path().join("aside");
    fs::rename(modules.join("a"), &aside).unwrap();
    symlink(&aside, modules.join("a")).unwrap();
    let refused = |what: &str| {
        let error = fetch(&place, &commit, true, &limits).expect_err(what);
        assert!(error.to_string().contains("not in this repository"), "{what}: {error}");
    };
    refused("a link");
    fs::remove_file(modules.join("a")).unwrap();
    fs::create_dir(modules.join("a")).unwrap();
    fs::write(modules.join("a/.git"), format!("gitdir: {}\n", aside.display())).unwrap();
    refused("a pointer");
    fs::create_dir(modules.join("a/objects")).unwrap();
    let error = fetch(&place, &commit, true, &limits).expect_err("a pointer beside objects");
    assert_eq!(error.code(), Code::InputMissing, "{error}");
}

#[test]
fn submodule_elsewhere_does_not_spend_the_operators_credentials() {
    let temp = tempfile::tempdir().unwrap();
    let server = GitServer::start(temp.path());
    // Nobody listens there.
    let (_, commit) = with_two(temp.path(), &|name| format!("https://127.0.0.1:9/{name}"));
    let secret = temp.path().join("secret");
    fs::write(&secret, "a-token\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let place = url(&server, "outer");
    let GitPlace::Url(outer) = &place else { panic!() };
    let host = outer.split('/').nth(2).unwrap();
    let fetch_with = |auth: &str| -> InputError {
        let text = format!(
            "sources = 1\n[project.default]\nallow = [\"here\", \"there\"]\n[origin.here]\ngit = \"http://{host}/\"\n\
             [origin.there]\ngit = \"https://127.0.0.1:9/\"\n{auth}"
        );
        let file = SourcesFile::parse(&text, "sources.toml", temp.path()).unwrap();
        let guard = Guard::new(file.policy(None).unwrap(), GuardOptions::default());
        let commit = GitId::parse(&commit).unwrap();
        let fetch = GitFetch { place: &place, commit, tag: None, submodules: true };
        fetch.run(&guard, &GitLimits::default(), &|| false, &AtomicU64::new(0)).map(drop).unwrap_err()
    };
    let error = fetch_with("auth = { bearer = \"secret\" }\n");
    assert_eq!(error.code(), Code::InputRefused, "{error}");
    assert!(error.to_string().contains("credentials") && !error.to_string().contains("a-token"), "{error}");
    // Without any it is asked.
    assert_eq!(fetch_with("").code(), Code::InputUnreachable);
}
