//! The corpus: hostile and odd archives, each with a name and an expectation, read by us, by GNU tar and by bsdtar.
//!
//! For each: the same list and the same bytes as both, or refused by name. And nothing outside is touched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::too_many_lines)] // tables

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/good.rs"]
mod good;
#[path = "../hostile/archives.rs"]
mod hostile;

mod case;
mod extensions;
mod formats;
mod grid;
mod names;
mod peers;
mod sizes;
mod streams;

use ampoule_spec::wire::Content;
use ampoule_store::Limits;
use case::{Case, Expected};
use common::*;
use peers::{Entry, PEERS, Reading, normal};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// How many archives are made by chance.
const MUTATIONS: usize = 400;

/// What was counted.
#[derive(Debug, Default)]
struct Counts {
    accepted: u64,
    refused: u64,
    /// Refused ones, by what GNU tar and bsdtar do: list the same, list differently, one refuses, both refuse.
    others: [u64; 4],
}

/// Those with a hand-written expectation.
fn named() -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, source, _) in good::good() {
        cases.push(case::case("", &format!("good: {what}"), source));
    }
    for (group, old) in [
        ("name", hostile::names()),
        ("place", hostile::places()),
        ("type", hostile::types()),
        ("extension", hostile::extensions()),
        ("combination", hostile::combinations()),
        ("field", hostile::fields()),
        ("end", hostile::ends()),
    ] {
        cases.extend(old.into_iter().map(|old| Case {
            what: format!("{group}: {}: {}", old.refusal, old.what),
            expected: Expected::Refused(old.refusal),
            source: old.source,
            content: old.content,
        }));
    }
    for group in [
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
        streams::cuts,
        streams::ends,
    ] {
        cases.extend(group());
    }
    cases
}

/// What lies in a stored tree, named as an archive would.
fn ours(root: &Path, content: &Content) -> Reading {
    let mut reading = Reading::default();
    walk(root, &mut |path| {
        let mut name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let meta = fs::symlink_metadata(path).unwrap();
        let kind = meta.file_type();
        let file = |bytes, executable| Entry { kind: 'f', bytes, target: Vec::new(), executable };
        let entry = if kind.is_dir() {
            let marks = ["trusted.overlay.opaque", "user.overlay.opaque"];
            let mut value = [0; 2];
            if marks.iter().any(|mark| rustix::fs::getxattr(path, *mark, &mut value).is_ok()) {
                reading.entries.insert([&name[..], b"/.wh..wh..opq"].concat(), file(0, false));
            }
            Entry::directory()
        } else if kind.is_symlink() {
            let target = fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec();
            Entry { kind: 'l', bytes: 0, target, executable: false }
        } else if kind.is_char_device() {
            assert!(matches!(content, Content::OciLayer { .. }), "a device");
            let at = name.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
            name.splice(at..at, *b".wh.");
            file(0, false)
        } else {
            assert!(kind.is_file(), "{}", path.display());
            file(meta.len(), meta.permissions().mode() & 0o100 != 0)
        };
        reading.entries.insert(name, entry);
    });
    reading
}

/// Why another's list is not ours. Directories that are only implied may be missing there, devices below an image's `dev`
/// here, and the root in both.
fn differs(ours: &Reading, theirs: &Reading, image: bool) -> Option<String> {
    let below = |dir: &[u8]| [dir, b"/"].concat();
    for (name, entry) in &theirs.entries {
        let device = image && matches!(entry.kind, 'c' | 'b' | 'p') && name.starts_with(b"dev/");
        let same = ours.entries.get(name).is_some_and(|own| {
            // A whiteout has no bits.
            own == entry || (own.bytes == 0 && Entry { executable: false, ..entry.clone() } == *own)
        });
        if !same && !device && !name.is_empty() {
            let own = ours.entries.get(name);
            return Some(format!("{}: {entry:?} there, {own:?} here", name.escape_ascii()));
        }
    }
    for (name, entry) in &ours.entries {
        let implied = entry.kind == 'd' && theirs.entries.keys().any(|other| other.starts_with(&below(name)));
        if !implied && !theirs.entries.contains_key(name) {
            return Some(format!("{}: only here", name.escape_ascii()));
        }
    }
    None
}

struct Corpus {
    world: World,
    archives: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
    counts: Counts,
    wrong: Vec<String>,
}

impl Corpus {
    fn new() -> Self {
        for peer in &PEERS {
            peer.demand();
        }
        let world = World::fast(Limits::default());
        let before = world.snapshot();
        Self {
            world,
            archives: tempfile::tempdir().unwrap(),
            before,
            counts: Counts::default(),
            wrong: Vec::new(),
        }
    }

    fn check(&mut self, case: &Case) {
        let result = self.world.import(&case.content, &case.source);
        let path = self.archives.path().join("case.tar");
        fs::write(&path, &case.source).unwrap();
        let read = result.is_ok();
        let theirs: Vec<_> = PEERS.iter().map(|peer| peer.list(&path)).collect();
        match (result, &case.expected) {
            (Ok(_), Expected::Accepted | Expected::Either) => {
                self.counts.accepted += 1;
                self.compare(case, &path, &theirs);
            }
            (Err(error), expected) => {
                self.counts.refused += 1;
                let wanted = match expected {
                    Expected::Refused(name) => *name == error.name(),
                    Expected::Accepted => false,
                    // A failing system call would mean that something reached the kernel unchecked.
                    Expected::Either => error.name() != "io",
                };
                if !wanted {
                    self.wrong.push(format!(
                        "{}: {error} ({}), which was not expected",
                        case.what,
                        error.name()
                    ));
                }
                self.counts.others[match &theirs[..] {
                    [Ok(one), Ok(two)] if one == two => 0,
                    [Ok(_), Ok(_)] => 1,
                    [Err(_), Err(_)] => 3,
                    _ => 2,
                }] += 1;
                assert!(self.world.store.find(&case.content).unwrap().is_none(), "{}", case.what);
            }
            (Ok(_), Expected::Refused(name)) => {
                self.wrong.push(format!("{}: read, not refused as {name}", case.what));
                self.compare(case, &path, &theirs);
            }
        }
        self.untouched(&case.what, read);
    }

    /// Nothing is new or changed, but for the store's own entries of an archive that was read.
    fn untouched(&mut self, what: &str, read: bool) {
        let parts = ["store/index", "store/trees"].map(|part| self.world.path(part));
        let mut now = self.world.snapshot();
        if read {
            let own = |path: &PathBuf| parts.iter().any(|part| path.starts_with(part));
            now.retain(|path, _| !own(path));
            self.before.retain(|path, _| !own(path));
        }
        if now != self.before {
            self.wrong.push(format!("{what}: something outside changed"));
        }
        if read {
            // Or every case would look at all that came before it.
            for entry in parts.iter().flat_map(|part| fs::read_dir(part).unwrap()) {
                let path = entry.unwrap().path();
                if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
            }
            now = self.world.snapshot();
        }
        self.before = now;
    }

    fn compare(&mut self, case: &Case, path: &Path, theirs: &[Result<Reading, String>]) {
        let root = self.world.tree(&case.content);
        let own = ours(&root, &case.content);
        let image = !matches!(case.content, Content::Archive { .. });
        for (peer, theirs) in PEERS.iter().zip(theirs) {
            let theirs = match theirs {
                Ok(theirs) => theirs,
                Err(error) => {
                    self.wrong.push(format!("{}: read here, refused by {}: {error}", case.what, peer.name));
                    continue;
                }
            };
            if let Some(difference) = differs(&own, theirs, image) {
                self.wrong.push(format!("{}: {} lists it differently: {difference}", case.what, peer.name));
                continue;
            }
            let own: Vec<u8> = theirs.files.iter().flat_map(|name| content(&root, name)).collect();
            match peer.bytes(path) {
                Ok(bytes) if bytes == own => {}
                other => self.wrong.push(format!("{}: {} has other bytes: {other:?}", case.what, peer.name)),
            }
        }
        if !self.world.store.verify(&case.content).unwrap() {
            self.wrong.push(format!("{}: it is not in the store", case.what));
        }
    }
}

/// A file's bytes; nothing of a whiteout.
fn content(root: &Path, name: &[u8]) -> Vec<u8> {
    let path = root.join(std::ffi::OsStr::from_bytes(&normal(name)));
    fs::read(path).unwrap_or_default()
}

fn run(cases: &[Case]) -> Counts {
    let mut corpus = Corpus::new();
    let mut names = BTreeSet::new();
    for case in cases {
        assert!(names.insert(&case.what), "two cases are named {}", case.what);
        corpus.check(case);
    }
    let wrong = corpus.wrong;
    assert!(wrong.is_empty(), "{} wrong: {:#?}", wrong.len(), &wrong[..wrong.len().min(60)]);
    corpus.counts
}

fn print(what: &str, cases: usize, counts: &Counts) {
    let Counts { accepted, refused, others: [same, differ, one, none] } = counts;
    println!(
        "{what}: {cases} archives, {accepted} read as GNU tar and bsdtar read them, {refused} refused by name"
    );
    println!(
        "{what}: of those refused, the two list {same} alike and {differ} differently; {one} are refused by one of them, \
         {none} by both"
    );
}

#[test]
fn corpus_is_read_as_others_read_it_or_refused_by_name() {
    let cases = named();
    let counts = run(&cases);
    print("corpus", cases.len(), &counts);
    assert!(cases.len() >= 300 && counts.accepted >= 100 && counts.refused >= 200, "{counts:?}");
}

#[test]
fn grid_of_fields_and_values_is_read_as_others_read_it_or_refused_by_name() {
    let cases: Vec<_> = grid::grid().into_iter().chain(streams::other_formats()).collect();
    let counts = run(&cases);
    print("grid", cases.len(), &counts);
    assert!(counts.accepted >= 100 && counts.refused >= 200, "{counts:?}");
}

/// Headers and extensions changed at random, with checksums that fit.
#[test]
fn mutations_are_read_as_others_read_them_or_refused_by_name() {
    let mut random = Random(0x5eed_0003);
    let mut seeds: Vec<_> =
        named().into_iter().filter(|case| matches!(case.expected, Expected::Accepted)).collect();
    seeds.retain(|case| case.source.len() <= 8192 && case.source.get(257..262) == Some(b"ustar"));
    let seeds: Vec<_> = seeds.into_iter().map(|case| case.source).collect();
    let mutate = |at| case::case("", &format!("mutation {at}"), random.header_mutation(&seeds)).either();
    let cases: Vec<_> = (0..MUTATIONS).map(mutate).collect();
    let counts = run(&cases);
    print("mutations", cases.len(), &counts);
    assert!(counts.accepted >= 50, "{counts:?}");
}
