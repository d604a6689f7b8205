//! The `ampoule` program on files that are in the repository: job files, golden attestations, help.
//!
//! `AMPOULE_BIN_DIR` names a directory with the program; else cargo builds it, which is quick when it is built.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests: a panic is a failed test"
)]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(dir) = std::env::var_os("AMPOULE_BIN_DIR") {
            return Path::new(&dir).join("ampoule");
        }
        let built = Command::new(env!("CARGO"))
            .args(["build", "--locked", "--quiet", "-p", "ampoule", "-p", "ampoule-runner"])
            .current_dir(repository(""))
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        // This test lies in `<target>/debug/deps`.
        let own = std::env::current_exe().unwrap();
        own.ancestors().nth(2).unwrap().join("ampoule")
    })
}

fn ampoule<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    Command::new(program()).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The `# key: value` lines at the head of a job file of the corpus.
fn header(file: &[u8], key: &str) -> Vec<String> {
    let prefix = format!("# {key}: ");
    let file = text(file);
    file.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect()
}

fn corpus(kind: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(repository("agent/tests/jobfiles").join(kind))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 6, "the corpus has moved");
    files
}

fn check(file: &Path) -> Output {
    let mut args = vec!["job".into(), "check".into(), file.as_os_str().to_owned()];
    for param in header(&fs::read(file).unwrap(), "param") {
        args.extend(["--param".into(), param.into()]);
    }
    ampoule(args)
}

#[test]
fn job_check_good_files_are_valid() {
    for file in corpus("good") {
        let done = check(&file);
        assert_eq!(done.status.code(), Some(0), "{}: {}", file.display(), text(&done.stderr));
        assert!(text(&done.stderr).contains("valid"), "{}", file.display());
    }
}

#[test]
fn job_check_bad_files_end_with_64_and_name_file_code_and_reason() {
    for file in corpus("bad") {
        let bytes = fs::read(&file).unwrap();
        let (expect, says) = (header(&bytes, "expect"), header(&bytes, "says"));
        let code = expect[0].split(' ').next().unwrap().to_owned();
        let done = check(&file);
        let said = text(&done.stderr);
        assert_eq!(done.status.code(), Some(64), "{}: {said}", file.display());
        assert!(said.contains(&format!("[{code}]")), "{}: no {code}: {said}", file.display());
        assert!(said.contains(&says[0]), "{}: no {:?}: {said}", file.display(), says[0]);
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(said.contains(name), "{name} is not named: {said}");
        assert!(!said.contains("panic") && done.stdout.is_empty(), "{name}: {said}");
        assert!(
            !said.trim_end_matches('\n').contains(|c: char| c.is_control() && c != '\n'),
            "{name}: {said:?}"
        );
    }
}

#[test]
fn job_check_mutated_files_are_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("job.toml");
    let original = fs::read(repository("examples/zstd/job.toml")).unwrap();
    // The parser's own tests do this ten thousand times; here it is the whole program.
    for round in 0..100_usize {
        let mut bytes = original.clone();
        let at = round * 7919 % bytes.len();
        match round % 4 {
            0 => bytes[at] ^= 1 << (round % 8),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..(at + round).min(original.len()))),
            _ => bytes.insert(at, b"\0\"'[]{}=\n\xff"[round % 10]),
        }
        fs::write(&file, &bytes).unwrap();
        let done = check(&file);
        assert!(matches!(done.status.code(), Some(0 | 64)), "round {round}: {}", text(&done.stderr));
    }
}

fn golden(name: &str) -> PathBuf {
    repository("agent/evidence/testdata/golden").join(name)
}

fn verify_golden(file: &Path, attestation: &str, key: &str, more: &[&str]) -> Output {
    let key = repository("agent/evidence/testdata").join(key);
    let mut args: Vec<std::ffi::OsString> = vec!["verify".into(), file.into(), "--attestation".into()];
    args.extend([golden(attestation).into(), "--key".into(), key.into()]);
    args.extend(more.iter().map(Into::into));
    ampoule(args)
}

#[test]
fn verify_golden_run_attestation_is_accepted_for_its_report_alone() {
    let report = repository("agent/evidence/testdata/report.json");
    let good = verify_golden(&report, "run.intoto.jsonl", "signing-key.pub.pem", &["--run", "--json"]);
    assert_eq!(good.status.code(), Some(0), "{}", text(&good.stderr));
    assert!(text(&good.stdout).contains("\"verified\":true"));
    for (file, key, more, status, code) in [
        (golden("run.json"), "signing-key.pub.pem", &["--run"][..], 2, "verify.refused"),
        (report.clone(), "signing-key.pub.pem", &[], 2, "verify.refused"),
        (report.clone(), "ed25519.pub.pem", &["--run"], 64, "usage"),
        (report.clone(), "rsa.pub.pem", &["--run"], 64, "usage"),
        (report, "no-such-key.pem", &["--run"], 64, "file.unusable"),
    ] {
        let bad = verify_golden(&file, "run.intoto.jsonl", key, more);
        let said = text(&bad.stderr);
        assert_eq!(bad.status.code(), Some(status), "{key} {more:?}: {said}");
        assert!(said.contains(code), "{key} {more:?}: {said}");
    }
}

#[test]
fn inspect_golden_files_show_the_signed_statement() {
    let statement = fs::read(golden("provenance.json")).unwrap();
    for name in ["libz.a.intoto.jsonl", "libz.a.sigstore.json"] {
        let shown = ampoule([OsStr::new("inspect"), golden(name).as_os_str()]);
        assert_eq!(shown.status.code(), Some(0));
        assert!(text(&shown.stdout).contains("signature not checked"));
        let pae = ampoule([OsStr::new("inspect"), OsStr::new("--pae"), golden(name).as_os_str()]);
        let mut expected =
            format!("DSSEv1 28 application/vnd.in-toto+json {} ", statement.len()).into_bytes();
        expected.extend(&statement);
        assert!(pae.stdout == expected, "{name}");
    }
}

#[test]
fn help_names_every_command_and_exit_status() {
    let help = ampoule(["--help"]);
    let said = text(&help.stdout);
    assert_eq!(help.status.code(), Some(0));
    for word in ["run", "job", "verify", "inspect", "doctor", "64", "65", "69", "70", "75", "77"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert_eq!(ampoule(["--version"]).status.code(), Some(0));
    for args in [&[][..], &["nothing"], &["run", "--nothing"]] {
        let wrong = ampoule(args);
        assert_eq!(wrong.status.code(), Some(64), "{args:?}");
        assert!(wrong.stdout.is_empty() && !wrong.stderr.is_empty(), "{args:?}");
    }
}
