//! Fetching in tests, and what came of it as git would list it.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use crate::git_server::{GitServer, commit_all, git_raw, git_with, init};
use ampoule_agent::git::{GitFetch, GitLimits, GitPlace, Snapshot};
use ampoule_agent::inputs::{Guard, GuardOptions, InputError};
use ampoule_agent::sources::{Policy, SourcesFile};
use ampoule_spec::GitId;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::AtomicU64;

pub type Tree = BTreeMap<Vec<u8>, (String, String)>;

pub fn fetch(
    place: &GitPlace,
    commit: &str,
    submodules: bool,
    limits: &GitLimits,
) -> Result<Snapshot, InputError> {
    let commit = GitId::parse(commit).unwrap();
    GitFetch { place, commit, tag: None, submodules }.run(
        &guard(place),
        limits,
        &|| false,
        &AtomicU64::new(0),
    )
}

/// Lists the loopback server of a URL, as an operator would.
pub fn guard(place: &GitPlace) -> Guard {
    let policy = match place {
        GitPlace::Path(_) => Policy::built_in(),
        GitPlace::Url(url) => {
            let host = url.split('/').nth(2).unwrap();
            let text = format!(
                "sources = 1\n[project.default]\nallow = [\"git\"]\n[origin.git]\ngit = \"http://{host}/\"\n"
            );
            SourcesFile::parse(&text, "sources.toml", Path::new("")).unwrap().policy(None).unwrap()
        }
    };
    Guard::new(policy, GuardOptions::default())
}

pub fn written(snapshot: &Snapshot, limits: &GitLimits) -> Result<Vec<u8>, InputError> {
    let mut archive = Vec::new();
    snapshot.write(&mut archive, limits, &|| false)?;
    Ok(archive)
}

/// An archive as `path → (mode, id of the blob)`, as git would have it.
pub fn listed(archive: &[u8], scratch: &Path) -> Tree {
    let mut tree = Tree::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let kind = entry.header().entry_type();
        let path = entry.path_bytes().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let mode = match kind {
            tar::EntryType::Directory => continue,
            tar::EntryType::Symlink => {
                bytes = entry.link_name_bytes().unwrap().into_owned();
                "120000"
            }
            tar::EntryType::Regular if entry.header().mode().unwrap() == 0o755 => "100755",
            _ => "100644",
        };
        let id = git_with(scratch, &["hash-object", "--stdin", "--no-filters"], &bytes);
        assert!(tree.insert(path, (mode.to_owned(), id)).is_none());
    }
    tree
}

/// A commit's files as git lists them.
pub fn ls_tree(repository: &Path, commit: &str) -> Tree {
    let output = git_raw(repository, &["ls-tree", "-r", "-z", commit], b"");
    assert!(output.status.success());
    let lines = output.stdout.split(|byte| *byte == 0).filter(|line| !line.is_empty());
    let line = |line: &[u8]| {
        let tab = line.iter().position(|byte| *byte == b'\t').unwrap();
        let head = String::from_utf8(line[..tab].to_vec()).unwrap();
        let words: Vec<&str> = head.split(' ').collect();
        (line[tab + 1..].to_vec(), (words[0].to_owned(), words[2].to_owned()))
    };
    lines.map(line).filter(|(_, (mode, _))| mode != "160000").collect()
}

/// A repository with everything that a checkout by git would change, run or follow.
pub fn rich(dir: &Path) -> String {
    init(dir);
    fs::create_dir_all(dir.join("deep/er")).unwrap();
    fs::write(
        dir.join(".gitattributes"),
        "*.txt text eol=crlf ident\n*.bin filter=lfs\nsecret export-ignore\n*.c export-subst\n",
    )
    .unwrap();
    fs::write(dir.join("lines.txt"), "a\n$Id$\n").unwrap();
    fs::write(dir.join("secret"), "export-ignore has no effect\n").unwrap();
    fs::write(dir.join("v.c"), "$Format:%H$\n").unwrap();
    fs::write(dir.join("big.bin"), "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
        .unwrap();
    fs::write(dir.join("deep/er/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(dir.join("deep/er/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("../lines.txt", dir.join("deep/link")).unwrap();
    symlink("/etc//passwd/./", dir.join("odd link")).unwrap();
    symlink("x/".repeat(200), dir.join("long link")).unwrap();
    fs::write(dir.join(OsStr::from_bytes(b"n\xffame")), "not UTF-8\n").unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(dir.join("a.b"), "sorts between a and a/\n").unwrap();
    fs::create_dir(dir.join("a")).unwrap();
    fs::write(dir.join("a/b"), "x\n").unwrap();
    let long = "d".repeat(120);
    fs::create_dir(dir.join(&long)).unwrap();
    fs::write(dir.join(&long).join("f".repeat(120)), "long names\n").unwrap();
    commit_all(dir)
}

pub fn url(server: &GitServer, name: &str) -> GitPlace {
    GitPlace::Url(server.url(name))
}
