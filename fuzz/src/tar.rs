//! A stranger's archive: refused, or a tree that lies inside, verifies, and is the same when it is packed again.

use crate::place::{self, Place, listing, open};
use ampoule_spec::Sha256;
use ampoule_spec::wire::Content;
use ampoule_store::{Limits, pack};
use sha2::Digest as _;
use std::os::fd::AsFd;

const EPOCH: u64 = 1_700_000_000;

/// The first byte says as what the rest is imported.
pub fn run(data: &[u8]) {
    is_read(data);
}

/// The same, and whether it was read.
pub fn is_read(data: &[u8]) -> bool {
    let Some((kind, source)) = data.split_first() else { return false };
    let sha256 = Sha256::new(sha2::Sha256::digest(source).into());
    let content = match kind % 4 {
        0 => Content::Archive { sha256, epoch: EPOCH },
        1 => Content::Directory { tree: None, epoch: EPOCH },
        2 => Content::ImageTar { sha256 },
        _ => Content::OciLayer { sha256 },
    };
    place::with(|place| import(place, content, source))
}

fn import(place: &Place, content: Content, source: &[u8]) -> bool {
    let imported = place.import(&content, source);
    let read = imported.is_ok();
    if let Ok(imported) = imported {
        let content = match content {
            // Its name is known now.
            Content::Directory { epoch, .. } => Content::Directory { tree: Some(imported.sha256), epoch },
            other => other,
        };
        assert_eq!(place.store.find(&content).unwrap(), Some(imported.clone()));
        assert!(place.store.verify(&content).unwrap(), "imported, and does not verify");
        if matches!(content, Content::Archive { .. } | Content::Directory { .. }) {
            again(place, &content, imported.bytes, imported.entries);
        }
    }
    place.check_and_empty(&[]);
    read
}

/// What was read can be packed, and what was packed is read as the same.
fn again(place: &Place, content: &Content, bytes: u64, entries: u64) {
    let tree = place.tree(content);
    let before = listing(&tree);
    let mut archive = Vec::new();
    let dir = open(&tree);
    let packed = pack::pack(dir.as_fd(), &mut archive, &|_| false, &Limits::default());
    let packed = packed.expect("what was imported can be packed");
    assert_eq!((packed.bytes, packed.entries), (bytes, entries));
    assert_eq!(before.len() as u64, entries);
    let directory = Content::Directory { tree: Some(packed.tree), epoch: EPOCH };
    let imported = place.import(&directory, &archive).expect("what was packed can be imported");
    assert_eq!(imported.sha256, packed.tree);
    assert_eq!(listing(&place.tree(&directory)), before);
}
