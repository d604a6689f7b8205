//! Good and odd archives that are read, what becomes of them, and that other programs read them alike.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::type_complexity
)]

#[path = "common/good.rs"]
mod good;

mod common;

use ampoule_store::Limits;
use ampoule_store::worker::{self, WorkerResult};
use common::*;
use good::good;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

#[test]
fn good_archives_give_normalised_trees() {
    for (what, source, expected) in good() {
        let world = World::new();
        let imported = world.archive(&source).unwrap_or_else(|error| panic!("{what}: {error}"));
        let got = world.listing(&archive(&source));
        let got: Vec<_> = got.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(got, expected, "{what}");
        assert_eq!(imported.sha256, sha(&source));
        assert_eq!(imported.entries, expected.len() as u64, "{what}");
        let root = world.tree(&archive(&source));
        let mut paths = vec![root.clone()];
        walk(&root, &mut |path| paths.push(path.to_owned()));
        for path in paths {
            let meta = fs::symlink_metadata(&path).unwrap();
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (EPOCH as i64, 0), "{what}: {}", path.display());
            assert_eq!(meta.uid(), rustix::process::geteuid().as_raw());
        }
        assert!(world.store.verify(&archive(&source)).unwrap());
        assert_eq!(fs::read_dir(world.path("store/staging")).unwrap().count(), 0);
    }
}

#[test]
fn limits_of_names_are_reached() {
    let world = World::new();
    let deep = [&b"d/".repeat(63)[..], b"f"].concat();
    let long_name = vec![b'n'; 255];
    let path = [&[&[b'p'; 254][..], b"/"].concat().repeat(16)[..], &[b'p'; 16]].concat();
    assert_eq!(path.len(), 4096);
    let target = vec![b't'; 4095];
    let source = tar(&[
        pax(record("path", &deep)),
        file("a", "x"),
        pax(record("path", &long_name)),
        file("b", "y"),
        pax(record("path", &path)),
        file("c", "z"),
        pax([record("linkpath", &target), record("path", "l")].concat()),
        symlink("d", "e"),
    ]);
    let imported = world.archive(&source).unwrap();
    assert_eq!(imported.entries, 64 + 1 + 17 + 1);
    assert!(world.store.verify(&archive(&source)).unwrap());
}

#[test]
fn hard_links_stay_one_file() {
    let world = World::new();
    let source = tar(&[file("f", "x"), hardlink("g", "f"), hardlink("h", "g")]);
    world.archive(&source).unwrap();
    let root = world.tree(&archive(&source));
    let inodes: BTreeSet<_> =
        ["f", "g", "h"].iter().map(|name| fs::metadata(root.join(name)).unwrap().ino()).collect();
    assert_eq!(inodes.len(), 1);
}

fn program(name: &str) -> bool {
    let found = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        println!("skipped: {name} is not installed");
    }
    found
}

/// What GNU tar makes of each format is what we read.
#[test]
fn gnu_tar_archives_in_every_format_are_read() {
    if !program("tar") {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let src = temp.path().join("src");
    fs::create_dir_all(src.join("d/empty")).unwrap();
    fs::write(src.join("d/f"), vec![b'z'; 3000]).unwrap();
    fs::hard_link(src.join("d/f"), src.join("hard")).unwrap();
    std::os::unix::fs::symlink("d/f", src.join("soft")).unwrap();
    let mut reference = None;
    for format in ["v7", "ustar", "oldgnu", "gnu", "pax"] {
        if format != "v7" {
            fs::write(src.join("n".repeat(99)), "long").unwrap();
        }
        if matches!(format, "oldgnu" | "gnu" | "pax") {
            fs::write(src.join("m".repeat(200)), "longer").unwrap();
        }
        for (flag, name) in [("", "plain"), ("-z", "gzip"), ("--zstd", "zstd")] {
            let mut command = Command::new("tar");
            command.arg(format!("--format={format}")).args(["--sort=name", "-cf", "-", "-C"]).arg(&src);
            if !flag.is_empty() {
                command.arg(flag);
            }
            let output = command.arg(".").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let world = World::new();
            let imported = world.archive(&output.stdout).unwrap_or_else(|e| panic!("{format} {name}: {e}"));
            assert_eq!(
                listing(&src).keys().collect::<Vec<_>>(),
                world.listing(&archive(&output.stdout)).keys().collect::<Vec<_>>()
            );
            if matches!(format, "oldgnu" | "gnu" | "pax") {
                assert_eq!(*reference.get_or_insert(imported.entries), imported.entries);
            }
        }
    }
}

/// An entry as any reader says it: name without slashes at its ends, kind, size or target.
type Seen = BTreeMap<Vec<u8>, (char, u64, Vec<u8>)>;

/// Our own reading, as a worker leaves it; nothing if it refuses.
fn ours(source: &[u8]) -> Option<Seen> {
    use std::os::unix::ffi::OsStrExt;
    let limits = Limits { bytes_max: 1 << 20, entries_max: 1000, ..Limits::default() };
    let temp = memory_dir();
    let root = temp.path();
    match worker::run(&archive(source), memory(source), open_dir(root), &limits) {
        WorkerResult::Done(_) => {}
        WorkerResult::Refused { .. } => return None,
    }
    let mut seen = Seen::new();
    walk(root, &mut |path| {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let meta = fs::symlink_metadata(path).unwrap();
        let entry = if meta.is_dir() {
            ('d', 0, Vec::new())
        } else if meta.is_symlink() {
            ('l', 0, fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec())
        } else {
            ('f', meta.len(), Vec::new())
        };
        seen.insert(name, entry);
    });
    Some(seen)
}

fn normal(name: &[u8]) -> Vec<u8> {
    let parts = name.split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b"."));
    parts.collect::<Vec<_>>().join(&b'/')
}

/// The `tar` crate's reading. Hard links get the size of what they link to.
fn by_crate(source: &[u8]) -> Result<Seen, String> {
    let mut seen = Seen::new();
    let mut archive = tar::Archive::new(source);
    for entry in archive.entries().map_err(|e| e.to_string())? {
        let entry = entry.map_err(|e| e.to_string())?;
        let name = normal(&entry.path_bytes());
        let link = entry.link_name_bytes().map(|l| l.to_vec()).unwrap_or_default();
        let value = match entry.header().entry_type() {
            _ if entry.path_bytes().ends_with(b"/") => ('d', 0, Vec::new()),
            tar::EntryType::Directory => ('d', 0, Vec::new()),
            tar::EntryType::Symlink => ('l', 0, link),
            tar::EntryType::Link => seen.get(&normal(&link)).cloned().ok_or("no target")?,
            tar::EntryType::Regular => ('f', entry.size(), Vec::new()),
            tar::EntryType::XGlobalHeader => continue,
            other => return Err(format!("{other:?}")),
        };
        seen.insert(name, value);
    }
    Ok(seen)
}

const PYTHON: &str = r#"
import sys, tarfile, os
for path in sys.argv[1:]:
    out = []
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as t:
            for m in t:
                name = os.fsencode(m.name); link = os.fsencode(m.linkname)
                kind = "d" if m.isdir() else "l" if m.issym() else "h" if m.islnk() else "f" if m.isreg() else "?"
                out.append("%s %d %s %s" % (kind, m.size, name.hex() or "-", link.hex() or "-"))
        print("ok", len(out)); print("\n".join(out), end="\n" if out else "")
    except Exception as e:
        print("error", repr(e).replace("\n", " "))
"#;

fn unhex(text: &str) -> Vec<u8> {
    if text == "-" {
        return Vec::new();
    }
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// Python's reading of all of them.
fn by_python(paths: &[std::path::PathBuf]) -> Vec<Result<Seen, String>> {
    let output = Command::new("python3").arg("-c").arg(PYTHON).args(paths).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    let mut all = Vec::new();
    while let Some(line) = lines.next() {
        let Some(count) = line.strip_prefix("ok ") else {
            all.push(Err(line.to_owned()));
            continue;
        };
        let mut seen = Seen::new();
        let mut result = Ok(());
        for line in lines.by_ref().take(count.parse().unwrap()) {
            let [kind, size, name, link] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let (name, link) = (normal(&unhex(name)), unhex(link));
            let value = match kind {
                "d" => ('d', 0, Vec::new()),
                "l" => ('l', 0, link),
                "f" => ('f', size.parse().unwrap(), Vec::new()),
                "h" => match seen.get(&normal(&link)) {
                    Some(value) => value.clone(),
                    None => {
                        result = Err("no target".to_owned());
                        break;
                    }
                },
                _ => {
                    result = Err(line.to_owned());
                    break;
                }
            };
            seen.insert(name, value);
        }
        all.push(result.map(|()| seen));
    }
    assert_eq!(all.len(), paths.len());
    all
}

/// The names that GNU tar lists.
fn by_gnu(path: &std::path::Path) -> Result<BTreeSet<Vec<u8>>, String> {
    let output =
        Command::new("tar").args(["--quoting-style=literal", "--null", "-tf"]).arg(path).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(output.stdout.split(|b| matches!(b, 0 | b'\n')).map(normal).collect())
}

/// Without what is only implied, and without the root.
fn same(ours: &Seen, theirs: &Seen) -> Result<(), String> {
    let mut theirs = theirs.clone();
    theirs.remove(&b""[..]);
    for (name, value) in &theirs {
        if ours.get(name) != Some(value) {
            return Err(format!("{}: {:?} here, {value:?} there", name.escape_ascii(), ours.get(name)));
        }
    }
    for (name, value) in ours {
        let below = |other: &Vec<u8>| other.starts_with(&[name, &b"/"[..]].concat());
        let implied = value.0 == 'd' && theirs.keys().any(below);
        if !implied && !theirs.contains_key(name) {
            return Err(format!("{}: {value:?} only here", name.escape_ascii()));
        }
    }
    Ok(())
}

/// Headers changed at random and given a right checksum again: whatever we still accept, others read alike.
#[test]
fn accepted_archives_are_listed_alike_by_other_programs() {
    let mut random = Random(0x5eed_0001);
    let mut kept = Vec::new();
    let mut seeds: Vec<_> = good().into_iter().map(|(_, source, _)| source).collect();
    seeds.retain(|source| !matches!(source[..], [0x1f, 0x8b, ..] | [0x28 | 0x50, ..]));
    kept.extend(seeds.iter().map(|source| (source.clone(), ours(source).unwrap())));
    let mut tried = 0;
    while kept.len() < 600 && tried < 4000 {
        tried += 1;
        let source = random.header_mutation(&seeds);
        if let Some(mine) = ours(&source)
            && !kept.iter().any(|(other, _)| *other == source)
        {
            kept.push((source, mine));
        }
    }
    let temp = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..kept.len()).map(|i| temp.path().join(format!("{i}.tar"))).collect();
    for (path, (source, _)) in paths.iter().zip(&kept) {
        fs::write(path, source).unwrap();
    }
    let python = program("python3").then(|| by_python(&paths));
    let gnu = program("tar");
    let (mut compared, mut differences) = ([0; 3], Vec::new());
    for (at, (source, mine)) in kept.iter().enumerate() {
        let mut readings = vec![("tar crate", by_crate(source))];
        readings.extend(python.as_ref().map(|all| ("python", all[at].clone())));
        for (index, (who, theirs)) in readings.into_iter().enumerate() {
            match theirs.and_then(|theirs| same(mine, &theirs)) {
                Ok(()) => compared[index] += 1,
                Err(error) => differences.push(format!("{at}: {who}: {error}")),
            }
        }
        // One process each: a part will do.
        if gnu && at % 3 == 0 {
            match by_gnu(&paths[at]) {
                Ok(names) if mine.keys().any(|name| name.contains(&b'\n')) || names_agree(mine, &names) => {
                    compared[2] += 1;
                }
                other => differences.push(format!("{at}: GNU tar: {other:?} against {:?}", mine.keys())),
            }
        }
    }
    println!(
        "{} archives accepted of {tried} mutated; alike by tar crate, python, GNU tar: {compared:?}",
        kept.len()
    );
    assert!(
        differences.is_empty(),
        "{} differences: {:#?}",
        differences.len(),
        &differences[..differences.len().min(20)]
    );
    assert!(kept.len() > 300);
}

fn names_agree(mine: &Seen, names: &BTreeSet<Vec<u8>>) -> bool {
    let below = |dir: &Vec<u8>| names.iter().any(|other| other.starts_with(&[dir, &b"/"[..]].concat()));
    names.iter().all(|name| name.is_empty() || mine.contains_key(name))
        && mine.keys().all(|name| names.contains(name) || below(name))
}
