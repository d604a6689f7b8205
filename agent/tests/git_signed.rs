//! Signatures of commits and tags, made by git and ssh-keygen and held against what those two say of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

#[path = "common/git_server.rs"]
mod git_server;

use ampoule_agent::git::{AllowedSigners, GitFetch, GitLimits, GitPlace, resolve_here, resolve_ref};
use ampoule_agent::inputs::{Guard, GuardOptions};
use ampoule_agent::sources::{Policy, SourcesFile};
use ampoule_spec::{Code, GitId, GitSigner};
use git_server::{GitServer, commit_all, git, git_raw, git_with, init};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicU64;

struct Key {
    file: PathBuf,
    public: String,
}

fn key(dir: &Path, kind: &str, bits: &str) -> Key {
    let file = dir.join(format!("{kind}-{bits}-{}", fs::read_dir(dir).unwrap().count()));
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", kind, "-b", bits, "-N", "", "-C", "c", "-f"])
        .arg(&file)
        .status()
        .unwrap();
    assert!(made.success());
    let public = fs::read_to_string(file.with_extension("pub")).unwrap();
    let public = public.split(' ').take(2).collect::<Vec<_>>().join(" ");
    Key { file, public }
}

fn sign(repository: &Path, key: &Key, what: &[&str]) {
    let signing = format!("user.signingKey={}", key.file.display());
    let args = [&["-c", "gpg.format=ssh", "-c", &signing], what].concat();
    git(repository, &args);
}

fn head(repository: &Path) -> (String, Vec<u8>) {
    let commit = git(repository, &["rev-parse", "HEAD"]);
    let object = git_raw(repository, &["cat-file", "commit", &commit], b"").stdout;
    (commit, object)
}

/// What git itself says of HEAD or a tag, with the same file.
fn git_says(repository: &Path, allowed: &str, verify: &[&str]) -> bool {
    let file = repository.join(".git/allowed");
    fs::write(&file, allowed).unwrap();
    let setting = format!("gpg.ssh.allowedSignersFile={}", file.display());
    let output = git_raw(repository, &[&["-c", "gpg.format=ssh", "-c", &setting], verify].concat(), b"");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    output.status.success() && text.contains("Good \"git\" signature for ")
}

fn ours(allowed: &str, commit: &str, object: &[u8]) -> Result<GitSigner, String> {
    let allowed = AllowedSigners::parse(allowed.as_bytes()).unwrap();
    allowed.verify_commit(GitId::parse(commit).unwrap(), object)
}

#[test]
fn signed_commits_count_where_git_says_so_and_nowhere_else() {
    let temp = tempfile::tempdir().unwrap();
    let repository = temp.path().join("r");
    init(&repository);
    let keys = temp.path().join("keys");
    fs::create_dir(&keys).unwrap();
    let all = [("ed25519", "256"), ("ecdsa", "256"), ("ecdsa", "384"), ("ecdsa", "521"), ("rsa", "2048")];
    for (kind, bits) in all {
        let (mine, other) = (key(&keys, kind, bits), key(&keys, "ed25519", "256"));
        sign(
            &repository,
            &mine,
            &["commit", "--quiet", "--allow-empty", "-S", "-m", "signed\n\nwith a body\n"],
        );
        let (commit, object) = head(&repository);
        // The committer's date of these tests is 2020-09-13T12:28:20Z.
        let cases = [
            ("plain", format!("me@x {}\n", mine.public), true),
            ("second", format!("# c\nyou@x {}\nme@x {}\n", other.public, mine.public), true),
            ("namespace", format!("me@x namespaces=\"file,git\" {}\n", mine.public), true),
            ("pattern", format!("me@x namespaces=\"g?t\" {}\n", mine.public), true),
            (
                "in time",
                format!(
                    "me@x valid-after=\"20200913122800Z\",valid-before=\"20200913122900Z\" {}\n",
                    mine.public
                ),
                true,
            ),
            ("two lines", format!("old@x valid-before=\"20200101Z\" {0}\nme@x {0}\n", mine.public), true),
            ("stranger", format!("you@x {}\n", other.public), false),
            ("nobody", String::new(), false),
            ("other namespace", format!("me@x namespaces=\"file\" {}\n", mine.public), false),
            ("negated", format!("me@x namespaces=\"*,!git\" {}\n", mine.public), false),
            ("too early", format!("me@x valid-after=\"20200913122900Z\" {}\n", mine.public), false),
            ("expired", format!("me@x valid-before=\"20200913122800Z\" {}\n", mine.public), false),
            ("authority", format!("*@x cert-authority {}\n", mine.public), false),
        ];
        for (name, allowed, good) in cases {
            let found = ours(&allowed, &commit, &object);
            assert_eq!(found.is_ok(), good, "{kind} {bits} {name}: {found:?}");
            assert_eq!(
                git_says(&repository, &allowed, &["verify-commit", "HEAD"]),
                good,
                "git: {kind} {bits} {name}"
            );
            if let Ok(signer) = found {
                assert_eq!(signer.principal, "me@x");
                let printed = Command::new("ssh-keygen").arg("-lf").arg(&mine.file).output().unwrap().stdout;
                assert!(String::from_utf8(printed).unwrap().contains(&signer.key), "{}", signer.key);
                assert_eq!(signer.tag, None);
            }
        }
        // The same signature over another text, and another commit under the same id.
        let allowed = format!("me@x {}\n", mine.public);
        let text = String::from_utf8(object.clone()).unwrap();
        for changed in [
            text.replace("with a body", "with a bodY"),
            text.replace("author A", "author B"),
            text.replace("committer C", "committer D"),
        ] {
            let id =
                git_with(&repository, &["hash-object", "-t", "commit", "-w", "--stdin"], changed.as_bytes());
            let error = ours(&allowed, &id, changed.as_bytes()).unwrap_err();
            assert!(error.contains("wrong"), "{error}");
            assert!(!git_says(&repository, &allowed, &["verify-commit", &id]));
            assert!(ours(&allowed, &commit, changed.as_bytes()).is_err());
        }
    }
}

#[test]
fn unsigned_openpgp_and_foreign_signatures_are_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let repository = temp.path().join("r");
    init(&repository);
    let mine = key(temp.path(), "ed25519", "256");
    let allowed = format!("me@x {}\n", mine.public);
    commit_all(&repository);
    let (commit, object) = head(&repository);
    assert!(ours(&allowed, &commit, &object).unwrap_err().contains("not signed"));
    let text = String::from_utf8(object).unwrap();
    let (head, body) = text.split_once("\n\n").unwrap();
    let signed = |signature: &str| {
        let lines: Vec<&str> = signature.trim_end().lines().collect();
        format!("{head}\ngpgsig {}\n\n{body}", lines.join("\n "))
    };
    // A good signature of the very text, but as ssh-keygen signs files.
    let payload = temp.path().join("payload");
    fs::write(&payload, &text).unwrap();
    let made = Command::new("ssh-keygen")
        .args(["-q", "-Y", "sign", "-n", "file", "-f"])
        .arg(&mine.file)
        .arg(&payload)
        .status();
    assert!(made.unwrap().success());
    let file = fs::read_to_string(temp.path().join("payload.sig")).unwrap();
    for (signature, says) in [
        ("-----BEGIN PGP SIGNATURE-----\n\niQ==\n-----END PGP SIGNATURE-----\n", "OpenPGP"),
        ("-----BEGIN SIGNED MESSAGE-----\nMII=\n-----END SIGNED MESSAGE-----\n", "X.509"),
        ("-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n", "cannot be read"),
        ("nonsense", "cannot be read"),
        (&file, "namespace"),
    ] {
        let object = signed(signature);
        let id = git_with(&repository, &["hash-object", "-t", "commit", "-w", "--stdin"], object.as_bytes());
        let error = ours(&allowed, &id, object.as_bytes()).unwrap_err();
        assert!(error.contains(says), "{says}: {error}");
        assert!(!git_says(&repository, &allowed, &["verify-commit", &id]));
    }
}

/// Lists the loopback server of a URL, as an operator would.
fn guard(url: &str) -> Guard {
    let host = url.split('/').nth(2).unwrap();
    let text = format!(
        "sources = 1\n[project.default]\nallow = [\"git\"]\n[origin.git]\ngit = \"http://{host}/\"\n"
    );
    let policy = SourcesFile::parse(&text, "sources.toml", Path::new("")).unwrap().policy(None).unwrap();
    Guard::new(policy, GuardOptions::default())
}

#[test]
fn signed_tags_are_fetched_and_count_for_their_commit_and_name() {
    let temp = tempfile::tempdir().unwrap();
    let repository = temp.path().join("r");
    init(&repository);
    let mine = key(temp.path(), "ed25519", "256");
    let commit = commit_all(&repository);
    sign(&repository, &mine, &["tag", "-s", "-m", "a message", "v1.2"]);
    git(&repository, &["tag", "light"]);
    git(&repository, &["tag", "-a", "-m", "nobody", "unsigned"]);
    let allowed_text = format!("me@x {}\n", mine.public);
    assert!(git_says(&repository, &allowed_text, &["verify-tag", "v1.2"]));
    assert!(!git_says(&repository, &allowed_text, &["verify-tag", "unsigned"]));
    let allowed = AllowedSigners::parse(allowed_text.as_bytes()).unwrap();
    let server = GitServer::start(temp.path());
    let id = GitId::parse(&commit).unwrap();
    for place in [GitPlace::Url(server.url("r")), GitPlace::Path(repository.clone())] {
        let fetch = |tag: &str| {
            let fetch = GitFetch { place: &place, commit: id, tag: Some(tag), submodules: false };
            fetch.run(&guard(&server.url("r")), &GitLimits::default(), &|| false, &AtomicU64::new(0))
        };
        let tag = fetch("v1.2").unwrap().tag().unwrap().to_vec();
        let signer = allowed.verify_tag(id, "v1.2", &tag).unwrap();
        assert_eq!((signer.principal.as_str(), signer.tag.as_deref()), ("me@x", Some("v1.2")));
        assert!(allowed.verify_tag(id, "v1.3", &tag).unwrap_err().contains("v1.2"));
        assert!(allowed.verify_tag(GitId::new([1; 20]), "v1.2", &tag).unwrap_err().contains(&commit));
        let mut changed = tag.clone();
        let at = changed.windows(9).position(|w| w == b"a message").unwrap();
        changed[at] = b'b';
        assert!(allowed.verify_tag(id, "v1.2", &changed).unwrap_err().contains("wrong"));
        let unsigned = fetch("unsigned").unwrap().tag().unwrap().to_vec();
        assert!(allowed.verify_tag(id, "unsigned", &unsigned).unwrap_err().contains("not signed"));
        assert!(matches!(fetch("light").unwrap_err().code(), Code::InputUnsigned | Code::InputRefused));
        assert_eq!(fetch("none").unwrap_err().code(), Code::InputMissing);
    }
    // From packed references too.
    git(&repository, &["pack-refs", "--all"]);
    let place = GitPlace::Path(repository.clone());
    let fetch = GitFetch { place: &place, commit: id, tag: Some("v1.2"), submodules: false };
    let guard = Guard::new(Policy::built_in(), GuardOptions::default());
    assert!(fetch.run(&guard, &GitLimits::default(), &|| false, &AtomicU64::new(0)).unwrap().tag().is_some());
}

#[test]
fn references_resolve_to_commits() {
    let temp = tempfile::tempdir().unwrap();
    let repository = temp.path().join("r");
    init(&repository);
    let first = commit_all(&repository);
    git(&repository, &["tag", "-a", "-m", "x", "v1"]);
    git(&repository, &["tag", "light"]);
    git(&repository, &["branch", "both"]);
    let second = commit_all(&repository);
    git(&repository, &["tag", "both"]);
    git(&repository, &["tag", "v10"]);
    let server = GitServer::start(temp.path());
    let url = server.url("r");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let resolve = |name: &str| {
        let found = runtime.block_on(resolve_ref(&guard(&url), &url, name));
        found.map(|id| id.to_string()).map_err(|e| e.code())
    };
    let here = |name: &str| resolve_here(&repository, name).map(|id| id.to_string()).map_err(|e| e.code());
    assert_ne!(first, second);
    for packed in [false, true] {
        if packed {
            git(&repository, &["pack-refs", "--all"]);
        }
        for (name, expected) in [
            ("main", Ok(&second)),
            ("HEAD", Ok(&second)),
            ("v1", Ok(&first)),
            ("light", Ok(&first)),
            ("refs/heads/both", Ok(&first)),
            ("refs/tags/both", Ok(&second)),
            ("both", Err(Code::InputRefused)),
            ("mai", Err(Code::InputMissing)),
            ("", Err(Code::InputMissing)),
        ] {
            assert_eq!(resolve(name), expected.cloned(), "{name}");
            assert_eq!(here(name), expected.cloned(), "{name} here");
        }
    }
    // No name leads out of the references, and a worktree has a HEAD of its own.
    std::fs::write(repository.join(".git/stray"), &first).unwrap();
    assert_eq!(here("refs/../stray"), Err(Code::InputMissing));
    assert_eq!(here("../../stray"), Err(Code::InputMissing));
    let worktree = temp.path().join("w");
    git(&repository, &["worktree", "add", "--detach", worktree.to_str().unwrap(), &first]);
    assert_eq!(resolve_here(&worktree, "HEAD").unwrap().to_string(), first);
    assert_eq!(resolve_here(&worktree, "main").unwrap().to_string(), second);
    assert_eq!(resolve_here(temp.path(), "main").unwrap_err().code(), Code::InputRefused);
}

#[test]
fn servers_that_are_not_listed_are_not_asked() {
    let temp = tempfile::tempdir().unwrap();
    init(&temp.path().join("r"));
    let commit = commit_all(&temp.path().join("r"));
    let server = GitServer::start(temp.path());
    let place = GitPlace::Url(server.url("r"));
    let commit = GitId::parse(&commit).unwrap();
    let fetch = GitFetch { place: &place, commit, tag: None, submodules: false };
    let guard = Guard::new(Policy::built_in(), GuardOptions::default());
    let error = fetch.run(&guard, &GitLimits::default(), &|| false, &AtomicU64::new(0)).unwrap_err();
    assert_eq!(error.code(), Code::InputSourceDenied, "{error}");
    assert!(server.requests().is_empty());
}
