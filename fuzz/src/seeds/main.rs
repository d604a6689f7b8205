//! `fuzz-seeds DIR`: writes what the targets begin with, `DIR/TARGET/…`: the archives of the corpus, the examples of the
//! documents, the job files of the tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    dead_code,
    reason = "it shares the tables of tests, which are its input"
)]

#[path = "../../../runner/store/tests/corpus/case.rs"]
mod case;
#[path = "../../../runner/store/tests/common/mod.rs"]
mod common;
#[path = "../../../runner/store/tests/corpus/extensions.rs"]
mod extensions;
#[path = "../../../runner/store/tests/corpus/formats.rs"]
mod formats;
#[path = "../../../runner/store/tests/corpus/names.rs"]
mod names;
#[path = "../../../runner/store/tests/corpus/sizes.rs"]
mod sizes;
#[path = "../../../runner/store/tests/corpus/streams.rs"]
mod streams;

use ampoule_spec::wire::Content;
use std::fs;
use std::path::{Path, PathBuf};

/// Larger seeds make a fuzzer slow and find nothing.
const SEED_BYTES_MAX: usize = 16 << 10;

fn main() {
    let dir = PathBuf::from(std::env::args_os().nth(1).expect("usage: fuzz-seeds DIR"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (target, seeds) in [
        ("tar", archives()),
        ("tree", trees()),
        ("oci", ampoule_fuzz::oci::seeds()),
        ("jobfile", job_files(&root)),
        ("wire", messages(&root)),
        ("journal", journals()),
    ] {
        let dir = dir.join(target);
        fs::create_dir_all(&dir).unwrap();
        let mut count = 0;
        for seed in seeds.iter().filter(|seed| seed.len() <= SEED_BYTES_MAX) {
            fs::write(dir.join(common::sha(seed).to_string()), seed).unwrap();
            count += 1;
        }
        println!("{target}: {count} seeds");
        assert!(count > 0, "no seeds for {target}");
    }
}

fn archives() -> Vec<Vec<u8>> {
    let groups = [
        formats::formats,
        formats::numbers,
        formats::checksums,
        sizes::sizes,
        sizes::sparse,
        extensions::pax_headers,
        extensions::gnu_headers,
        names::spellings,
        names::links,
        names::layers,
        streams::compressed,
        streams::ends,
    ];
    let cases = groups.iter().flat_map(|group| group());
    let seeds = cases.map(|case| {
        let kind = match case.content {
            Content::ImageTar { .. } => 2,
            Content::OciLayer { .. } => 3,
            _ => 0,
        };
        [&[kind], case.source.as_slice()].concat()
    });
    seeds.collect()
}

fn trees() -> Vec<Vec<u8>> {
    vec![
        b"\0\x03bin\x02\x03run\x0a#!/bin/sh\n\x80\x05empty\x81\x09hello.txt\x06hello\n\x03\x04link\x09hello.txt".to_vec(),
        b"\x01\x01a\x01x\x01\x01b\x01y".to_vec(),
        b"\x00\x01d".repeat(60),
        [b"\x01\xff".to_vec(), vec![b'n'; 255], b"\x03abc".to_vec()].concat(),
        b"\x01\x02\xff\xfe\x01x\x03\x02\xc3\xb6\x02\xff\xff".to_vec(),
    ]
}

/// Everything in Markdown between fences of this language.
fn fenced(root: &Path, file: &str, language: &str) -> Vec<Vec<u8>> {
    let text = fs::read_to_string(root.join(file)).unwrap();
    let fence = format!("```{language}\n");
    let parts = text.split(&fence).skip(1).filter_map(|part| part.split_once("```"));
    parts.map(|(part, _)| part.as_bytes().to_vec()).collect()
}

fn files(dir: &Path, extension: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let wanted = entries.filter(|path| path.extension().is_some_and(|e| e == extension));
    wanted.map(|path| fs::read(path).unwrap()).collect()
}

fn job_files(root: &Path) -> Vec<Vec<u8>> {
    let head = b"ampoule = 1\nname = \"a\"\nimage = \"host\"\n";
    let mut seeds = fenced(root, "docs/job-file.md", "toml");
    // Parts of a file become whole ones.
    seeds.extend(seeds.clone().into_iter().map(|part| [head, part.as_slice()].concat()));
    for dir in ["agent/tests/jobfiles/good", "agent/tests/jobfiles/bad", "examples"] {
        seeds.extend(files(&root.join(dir), "toml"));
    }
    seeds
}

fn messages(root: &Path) -> Vec<Vec<u8>> {
    let mut seeds = files(&root.join("agent/tests/jobfiles/good"), "json");
    let sha256 = common::sha(b"");
    let contents = [
        Content::Directory { tree: None, epoch: 0 },
        Content::File { sha256: Some(sha256), executable: true, epoch: 1 },
        Content::Archive { sha256, epoch: u64::MAX },
        Content::OciLayer { sha256 },
    ];
    for content in contents {
        let request = ampoule_spec::wire::Request::Import(content);
        seeds.push(serde_json::to_vec(&request).unwrap());
    }
    for text in [
        r#"{"ask":"run","lifetime":true}"#,
        r#"{"ask":"doctor","profile":"hermetic"}"#,
        r#"{"say":"refused","code":"job.invalid","message":"x"}"#,
        r#"{"say":"found","imported":null}"#,
        r#"{"say":"hello","version":"1","privileged":true,"recovered":[]}"#,
        r#"{"result":"refused","code":"input.refused","name":"duplicate","message":"a"}"#,
        r#"{"event":"phase","at":1,"phase":"steps"}"#,
        r#"{"event":"failed","at":1,"code":"step.exit_nonzero","message":"x"}"#,
        r#"{"event":"closed","at":1,"outcome":"succeeded"}"#,
    ] {
        seeds.push(text.as_bytes().to_vec());
    }
    seeds
}

fn journals() -> Vec<Vec<u8>> {
    let path = std::env::temp_dir().join(format!("ampoule-fuzz-seed-{}", std::process::id()));
    let mut seeds = vec![Vec::new(), vec![0; 64]];
    for payloads in [&[&b"hi"[..]][..], &[b"", b"two", &[0; 100]], &[b"AMPJ"]] {
        let file = fs::OpenOptions::new().create(true).truncate(false).append(true).open(&path).unwrap();
        let mut writer = ampoule_journal::Writer::create(file).unwrap();
        for (kind, payload) in payloads.iter().enumerate() {
            writer.append(kind as u8, payload).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        seeds.extend([whole[..whole.len() - 1].to_vec(), [whole.as_slice(), &[0; 32]].concat(), whole]);
        fs::remove_file(&path).unwrap();
    }
    seeds
}
