//! The audit log under `kill -9`: what was told is under a checkpoint, in its place, and the log can be verified and goes on.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

use ampoule_agent::audit::{AuditLog, verify_log};
use ampoule_evidence::tlog::{NoteKey, Tile, TileKind, decode_entries};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

fn entries(dir: &Path, size: u64) -> Vec<String> {
    let mut all = Vec::new();
    for tile in Tile::all(size).filter(|tile| tile.kind == TileKind::Entries) {
        let bytes = std::fs::read(dir.join(tile.path())).unwrap();
        let entries = decode_entries(&bytes, tile.width).unwrap();
        all.extend(entries.into_iter().map(|entry| String::from_utf8(entry.to_vec()).unwrap()));
    }
    all
}

#[test]
fn killed_at_random_times_every_index_that_was_told_holds_its_event() {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(Path::parent).unwrap().join("examples/audit_child");
    assert!(program.exists(), "build it first: cargo build -p ampoule-agent --example audit_child");
    let dir = tempfile::tempdir().unwrap();
    let mut told = BTreeMap::new();
    let mut kept: Option<Vec<u8>> = None;
    for round in 0..200_u64 {
        if round >= 15 && told.len() >= 60 {
            break;
        }
        let mut child = Command::new(&program).arg(dir.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0; 5]).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(5 + round * 53 % 140));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut said = String::new();
        out.read_to_string(&mut said).unwrap();
        for line in said.lines() {
            let (index, actor) = line.split_once(' ').unwrap();
            assert_eq!(
                told.insert(index.parse::<usize>().unwrap(), actor.to_owned()),
                None,
                "{line}: told twice"
            );
        }
        let key = std::fs::read_to_string(dir.path().join("key.pub")).unwrap();
        let key = NoteKey::parse(key.trim()).unwrap();
        let verified = verify_log(dir.path(), &key, kept.as_deref()).unwrap();
        if let Some((last, _)) = told.last_key_value() {
            assert!(
                verified.checkpoint.size > *last as u64,
                "index {last} was told, and no checkpoint has it"
            );
        }
        // What was pending comes into the tiles, and nothing else becomes of it.
        drop(AuditLog::open(dir.path(), "audit.host.example").unwrap());
        assert_eq!(verify_log(dir.path(), &key, kept.as_deref()).unwrap().checkpoint, verified.checkpoint);
        let entries = entries(dir.path(), verified.checkpoint.size);
        for (index, actor) in &told {
            let entry = entries.get(*index).unwrap_or_else(|| panic!("index {index} was told and is lost"));
            assert!(entry.contains(&format!("\"actor\":\"{actor}\"")), "index {index}: {entry}");
        }
        kept = Some(std::fs::read(dir.path().join("checkpoint")).unwrap());
    }
    assert!(told.len() >= 60, "only {} events", told.len());
}
