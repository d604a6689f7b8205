//! Any tree: it is packed, imported and listed as what it was, and its digest is the documented one (docs/formats.md,
//! "Tree digest"), computed here a second time from the description alone.

use crate::place::{self, Place, listing, open};
use ampoule_spec::Sha256;
use ampoule_spec::wire::Content;
use ampoule_store::{Limits, pack};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

const EPOCH: u64 = 1_700_000_000;
const ENTRIES_MAX: usize = 100;

enum Node {
    Directory(Names),
    File { executable: bool, bytes: Vec<u8> },
    Link(Vec<u8>),
}

type Names = BTreeMap<Vec<u8>, Node>;

/// A directory that is being filled, by its name.
type Open = (Vec<u8>, Names);

/// Takes pieces off the front of the input; when it is used up, they are empty.
struct Pieces<'a>(&'a [u8]);

impl<'a> Pieces<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()).min(self.0.len());
        let (piece, rest) = self.0.split_at(length);
        self.0 = rest;
        piece
    }

    /// Something that a directory can have as a name.
    fn name(&mut self) -> Option<Vec<u8>> {
        let name: Vec<u8> = self.bytes().iter().copied().filter(|b| !matches!(b, 0 | b'/')).collect();
        (!name.is_empty() && !matches!(name.as_slice(), b"." | b"..")).then_some(name)
    }
}

/// Reads a tree: each entry goes into the last directory, or one level up first.
fn read(data: &[u8]) -> Names {
    let mut pieces = Pieces(data);
    let mut open: Vec<Open> = vec![(Vec::new(), BTreeMap::new())];
    let up = |open: &mut Vec<Open>| {
        if open.len() > 1 {
            let (name, names) = open.pop().unwrap();
            open.last_mut().unwrap().1.entry(name).or_insert(Node::Directory(names));
        }
    };
    let mut entries = 0;
    while !pieces.0.is_empty() && entries < ENTRIES_MAX {
        let kind = pieces.byte();
        if kind & 0x80 != 0 {
            up(&mut open);
        }
        let Some(name) = pieces.name() else { continue };
        if open.last().unwrap().1.contains_key(&name) {
            continue;
        }
        entries += 1;
        let node = match kind % 4 {
            0 if open.len() < 60 => {
                open.push((name, BTreeMap::new()));
                continue;
            }
            0 | 1 => Node::File { executable: false, bytes: pieces.bytes().to_vec() },
            2 => Node::File { executable: true, bytes: pieces.bytes().repeat(usize::from(kind >> 2)) },
            _ => match pieces.bytes().iter().copied().filter(|b| *b != 0).collect::<Vec<_>>() {
                empty if empty.is_empty() => continue,
                target => Node::Link(target),
            },
        };
        open.last_mut().unwrap().1.insert(name, node);
    }
    while open.len() > 1 {
        up(&mut open);
    }
    open.pop().unwrap().1
}

fn write(dir: &Path, names: &Names) {
    for (name, node) in names {
        let path = dir.join(OsStr::from_bytes(name));
        match node {
            Node::Directory(names) => {
                fs::create_dir(&path).unwrap();
                write(&path, names);
            }
            Node::File { executable, bytes } => {
                let mode = if *executable { 0o755 } else { 0o644 };
                let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
                std::io::Write::write_all(&mut file.unwrap(), bytes).unwrap();
            }
            Node::Link(target) => symlink(OsStr::from_bytes(target), &path).unwrap(),
        }
    }
}

/// The digest by the document, and the tree as a listing.
fn digest(names: &Names, at: &[u8], list: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> [u8; 32] {
    let mut hash = sha2::Sha256::new_with_prefix(b"ampoule tree v1\0");
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap().to_be_bytes();
    for (name, node) in names {
        let path = if at.is_empty() { name.clone() } else { [at, b"/", name].concat() };
        let (kind, value) = match node {
            Node::Directory(names) => {
                list.insert(path.clone(), b"d".to_vec());
                (b'd', digest(names, &path, list).to_vec())
            }
            Node::File { executable, bytes } => {
                let kind = if *executable { b'x' } else { b'f' };
                list.insert(path, [&[kind], bytes.as_slice()].concat());
                (kind, sha2::Sha256::digest(bytes).to_vec())
            }
            Node::Link(target) => {
                list.insert(path, [b"l", target.as_slice()].concat());
                (b'l', [&length(target)[..], target].concat())
            }
        };
        hash.update([kind]);
        hash.update(length(name));
        hash.update(name);
        hash.update(value);
    }
    hash.finalize().into()
}

/// Reads a tree from the bytes and takes it around.
pub fn run(data: &[u8]) {
    let tree = read(data);
    place::with(|place| around(place, &tree));
}

fn around(place: &Place, tree: &Names) {
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    write(&source, tree);
    let mut list = BTreeMap::new();
    let wanted = Sha256::new(digest(tree, b"", &mut list));
    let mut archive = Vec::new();
    let dir = open(&source);
    let packed = pack::pack(dir.as_fd(), &mut archive, &|_| false, &Limits::default());
    let deep = list.keys().any(|path| path.len() > ampoule_store::PATH_BYTES_MAX);
    match packed {
        Err(error) => assert!(deep, "{error}"),
        Ok(packed) => {
            assert_eq!((packed.tree, packed.entries), (wanted, list.len() as u64));
            let content = Content::Directory { tree: Some(wanted), epoch: EPOCH };
            let imported = place.import(&content, &archive).expect("what was packed can be imported");
            assert_eq!((imported.sha256, imported.entries), (wanted, list.len() as u64));
            assert_eq!(listing(&place.tree(&content)), list);
            assert!(place.store.verify(&content).unwrap());
        }
    }
    fs::remove_dir_all(&source).unwrap();
    place.check_and_empty(&[]);
}
