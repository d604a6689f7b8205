//! A tenant names no path of the host: every call and field with path-like values, watched by strace(1).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

#[path = "common/content_server.rs"]
mod content_server;

use ampoule_agent::content::ContentLimits;
use ampoule_proto::v1 as proto;
use content_server::*;
use std::process::Command;

/// Set in the process that is watched: where its state is.
const WATCHED: &str = "AMPOULE_TEST_WATCHED";
/// In every value that is like a path.
const MARK: &str = "tenant-named-this";

fn path_like() -> Vec<String> {
    let mut values: Vec<String> =
        ["../../../../etc/", "/etc/", "./", "a/../../", "//", "~/", "C:\\\\", "file:///etc/"]
            .iter()
            .map(|prefix| format!("{prefix}{MARK}"))
            .collect();
    values.push(format!("{MARK}\0/etc/passwd"));
    values.push(format!("{MARK}\n"));
    values.push(format!("{}{MARK}", "../".repeat(2000)));
    values.push(MARK.to_owned());
    values
}

#[tokio::test]
async fn every_call_and_field_is_tried() {
    let own = tempfile::tempdir().unwrap();
    let dir = std::env::var_os(WATCHED).map_or_else(|| own.path().to_owned(), std::path::PathBuf::from);
    let served = serve(&dir, &Memory::default(), ContentLimits::default()).await;
    let mut contents = served.client.contents();
    let good = file_ref(b"bytes");
    served.upload("a", &good, b"bytes", 0).await.unwrap();
    for value in path_like() {
        let digest = proto::ContentRef { sha256: value.clone(), ..good.clone() };
        // A project may be called so; nothing of that name is made.
        let is_name = ampoule_spec::Name::parse(&value).is_ok();
        for (project, content, passes) in [(value.as_str(), &good, is_name), ("a", &digest, false)] {
            let project = project.to_owned();
            let find =
                proto::FindMissingRequest { project: project.clone(), contents: vec![content.clone()] };
            assert_eq!(contents.find_missing(find).await.is_ok(), passes, "{value:?}");
            let get = proto::GetUploadRequest { project: project.clone(), content: Some(content.clone()) };
            assert_eq!(contents.get_upload(get).await.is_ok(), passes, "{value:?}");
            assert_eq!(served.upload(&project, content, b"bytes", 0).await.is_ok(), passes, "{value:?}");
        }
        // The bytes themselves may say anything.
        served.upload("a", &file_ref(value.as_bytes()), value.as_bytes(), 0).await.unwrap();
    }
}

#[test]
fn no_path_that_a_tenant_names_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace");
    // All that a call may name a file by; `%file` are the calls with a path, whatever they do to it.
    let status = Command::new("strace")
        .args(["-f", "-qq", "-s", "10000", "-e", "trace=%file", "-e", "signal=none", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "every_call_and_field_is_tried", "--nocapture"])
        .env(WATCHED, dir.path())
        .status()
        .expect("strace(1) is needed");
    assert!(status.success(), "{status}");
    let trace = std::fs::read_to_string(trace).unwrap();
    let of_spool = trace.lines().filter(|line| line.contains("openat(") && line.contains("O_CREAT")).count();
    assert!(of_spool > path_like().len(), "the watched process did nothing: {of_spool} files\n{trace}");
    let named: Vec<_> = trace.lines().filter(|line| line.contains(MARK)).collect();
    assert!(named.is_empty(), "{named:#?}");
    // What was made below the state directory has names of ours alone.
    let mut dirs = vec![dir.path().join("content")];
    let mut seen = 0;
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            let is_digits = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(is_digits || ["known", "spool", "visits"].contains(&name.as_str()), "{name}");
            seen += 1;
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    assert!(seen > path_like().len());
}
