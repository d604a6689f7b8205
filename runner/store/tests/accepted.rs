//! Good and odd archives that are read, what becomes of them, and that other programs read them alike.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::type_complexity
)]

mod common;

use ampoule_store::Limits;
use ampoule_store::worker::{self, WorkerResult};
use common::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

/// Archives and the tree that they give, as [`listing`] says it.
#[allow(clippy::too_many_lines)] // a table
fn good() -> Vec<(&'static str, Vec<u8>, Vec<(&'static str, &'static str)>)> {
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4], &zst(&tar(&[file("a", "x")]))[..]];
    let whole = tar(&[file("a", "x"), file("b", "y")]);
    let (one, two) = whole.split_at(700);
    let pax_all = [
        record("path", "p"),
        record("mtime", "1.25"),
        record("atime", "-7"),
        record("ctime", "3"),
        record("size", "1"),
        record("uid", "4000000"),
        record("gid", "1000"),
        record("uname", "josé"),
        record("gname", ""),
        record("comment", "any"),
        record("charset", "ISO-IR 10646 2000 UTF-8"),
        record("hdrcharset", "BINARY"),
        record("SCHILY.xattr.security.capability", b"\x01\0\0\x02=\n\xff"),
        record("SCHILY.xattr.user.overlay.opaque", "y"),
        record("LIBARCHIVE.creationtime", "1"),
        record("SCHILY.dev", "1"),
        record("SCHILY.ino", "2"),
        record("SCHILY.nlink", "3"),
        record("SCHILY.fflags", "nodump"),
    ];
    vec![
        ("empty", tar(&[]), vec![]),
        ("root alone", tar(&[dir("./")]), vec![]),
        (
            "modes",
            tar(&[
                file("r", "x").mode(0o400),
                file("x", "x").mode(0o700),
                file("suid", "x").mode(0o6755),
                file("group", "x").mode(0o676),
                file("type", "x").put(100, "0100644\0"),
                dir("d/").mode(0o1777),
                dir("closed/").mode(0),
            ]),
            vec![
                ("closed", "d 0755"),
                ("d", "d 0755"),
                ("group", "f 0644 x"),
                ("r", "f 0644 x"),
                ("suid", "f 0755 x"),
                ("type", "f 0644 x"),
                ("x", "f 0755 x"),
            ],
        ),
        ("owners are dropped", tar(&[file("a", "x").owner(1000, 100_000)]), vec![("a", "f 0644 x")]),
        (
            "directories twice",
            tar(&[dir("d/"), file("d/a", "x"), dir("d"), dir("./d/."), file("d/b", "y")]),
            vec![("d", "d 0755"), ("d/a", "f 0644 x"), ("d/b", "f 0644 y")],
        ),
        (
            "implied parents",
            tar(&[file("a/b/c", "x"), file("a/d", "y"), dir("a/")]),
            vec![("a", "d 0755"), ("a/b", "d 0755"), ("a/b/c", "f 0644 x"), ("a/d", "f 0644 y")],
        ),
        (
            "spellings",
            tar(&[dir("./"), file("./a", "x"), file("b//c", "y"), file("b/./d", "z")]),
            vec![("a", "f 0644 x"), ("b", "d 0755"), ("b/c", "f 0644 y"), ("b/d", "f 0644 z")],
        ),
        ("case", tar(&[file("A", "1"), file("a", "2")]), vec![("A", "f 0644 1"), ("a", "f 0644 2")]),
        (
            "odd names",
            tar(&[
                file("new\nline", "1"),
                file(b"\xff\xfe", "2"),
                file("...", "3"),
                file(" ", "4"),
                file("-rf", "5"),
            ]),
            vec![
                (" ", "f 0644 4"),
                ("-rf", "f 0644 5"),
                ("...", "f 0644 3"),
                ("\\xff\\xfe", "f 0644 2"),
                ("new\\nline", "f 0644 1"),
            ],
        ),
        (
            "links",
            tar(&[
                symlink("abs", "/etc/passwd"),
                symlink("up", "../../x"),
                symlink("self", "self"),
                file("f", "x"),
                hardlink("h", "./f"),
                dir("d/"),
                hardlink("d/h", "h"),
            ]),
            vec![
                ("abs", "l /etc/passwd"),
                ("d", "d 0755"),
                ("d/h", "f 0644 x"),
                ("f", "f 0644 x"),
                ("h", "f 0644 x"),
                ("self", "l self"),
                ("up", "l ../../x"),
            ],
        ),
        (
            "version 7",
            tar(&[H::new(0, "d/").v7(), H::new(0, "d/f").v7().data("x"), H::new(b'2', "l").v7().link("d")]),
            vec![("d", "d 0755"), ("d/f", "f 0644 x"), ("l", "l d")],
        ),
        (
            "old numbers",
            tar(&[file("a", "x")
                .put(100, "   644 \0")
                .put(108, "  1750 \0")
                .put(116, [0; 8])
                .put(124, "          1 ")
                .put(136, [0; 12])]),
            vec![("a", "f 0644 x")],
        ),
        (
            "binary numbers",
            tar(&[file("a", "x").put(124, [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]).put(136, [0xff; 12])]),
            vec![("a", "f 0644 x")],
        ),
        (
            "ustar prefix",
            tar(&[dir("deep/"), file("f", "x").put(345, "deep/er")]),
            vec![("deep", "d 0755"), ("deep/er", "d 0755"), ("deep/er/f", "f 0644 x")],
        ),
        (
            "GNU long",
            tar(&[
                long(b'L', "long"),
                file("short", "x").gnu(),
                long(b'K', "target"),
                long(b'L', "link"),
                symlink("a", "b").gnu(),
            ]),
            vec![("link", "l target"), ("long", "f 0644 x")],
        ),
        (
            "PAX, all of it",
            tar(&[pax(pax_all.concat()), file("a", "x"), file("b", "y")]),
            vec![("b", "f 0644 y"), ("p", "f 0644 x")],
        ),
        (
            "git archive",
            tar(&[
                H::new(b'g', "pax_global_header").data(record("comment", "ab".repeat(20))),
                dir("d/"),
                file("d/f", "x"),
            ]),
            vec![("d", "d 0755"), ("d/f", "f 0644 x")],
        ),
        ("padding", [tar(&[file("a", "x")]), vec![0; 10_240]].concat(), vec![("a", "f 0644 x")]),
        ("odd padding", [tar(&[file("a", "x")]), vec![0; 3]].concat(), vec![("a", "f 0644 x")]),
        ("gzip", gzip(&tar(&[file("a", "x")])), vec![("a", "f 0644 x")]),
        ("gzip in members", [gzip(one), gzip(two)].concat(), vec![("a", "f 0644 x"), ("b", "f 0644 y")]),
        ("zstd", zst(&tar(&[file("a", "x")])), vec![("a", "f 0644 x")]),
        ("zstd in frames", [zst(one), zst(two)].concat(), vec![("a", "f 0644 x"), ("b", "f 0644 y")]),
        ("zstd after a skippable frame", skippable.concat(), vec![("a", "f 0644 x")]),
    ]
}

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
