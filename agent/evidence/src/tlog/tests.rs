//! The log's arithmetic against public vectors, an independent implementation, and the definition.
//!
//! `testdata/tlog/{inclusion,consistency}.json`: all cases of `testdata/` of transparency-dev/merkle; `log.json`: the log in `testdata/` of
//! transparency-dev/tessera (both Apache-2.0).

use super::*;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;

fn vectors(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap()
}

/// A hash; none if it has another length, which our type does not allow.
fn hash(value: &Value) -> Option<Hash> {
    STANDARD.decode(value.as_str()?).ok()?.try_into().ok()
}

/// A root of a case that is about sizes alone may be any text: another hash then, which is the same for the same text.
fn root(value: &Value) -> Option<Hash> {
    let bytes = STANDARD.decode(value.as_str()?).ok()?;
    Some(bytes.as_slice().try_into().unwrap_or_else(|_| leaf_hash(&bytes)))
}

fn proof(value: &Value) -> Option<Vec<Hash>> {
    value.as_array().map_or(Some(Vec::new()), |hashes| hashes.iter().map(hash).collect())
}

#[test]
fn public_vectors_of_inclusion_are_judged_as_they_say() {
    let cases = vectors(include_str!("../../testdata/tlog/inclusion.json"));
    let mut good = 0;
    for case in &cases {
        let verdict = (|| {
            let (index, size) = (case["leafIdx"].as_u64()?, case["treeSize"].as_u64()?);
            let (leaf, root) = (hash(&case["leafHash"])?, hash(&case["root"])?);
            verify_inclusion(index, size, &leaf, &proof(&case["proof"])?, &root).ok()
        })();
        assert_eq!(verdict.is_none(), case["wantErr"].as_bool().unwrap(), "{case}");
        good += usize::from(verdict.is_some());
    }
    assert_eq!((cases.len(), good), (98, 6));
}

#[test]
fn public_vectors_of_consistency_are_judged_as_they_say() {
    let cases = vectors(include_str!("../../testdata/tlog/consistency.json"));
    let mut good = 0;
    for case in &cases {
        let verdict = (|| {
            let (old, new) = (case["size1"].as_u64()?, case["size2"].as_u64()?);
            let (old_root, new_root) = (root(&case["root1"])?, root(&case["root2"])?);
            verify_consistency(old, new, &proof(&case["proof"])?, &old_root, &new_root).ok()
        })();
        assert_eq!(verdict.is_none(), case["wantErr"].as_bool().unwrap(), "{case}");
        good += usize::from(verdict.is_some());
    }
    assert_eq!((cases.len(), good), (98, 6));
}

/// The tree as RFC 6962 §2.1 defines it.
fn defined(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let k = leaves.len().next_power_of_two() / 2;
            node_hash(&defined(&leaves[..k]), &defined(&leaves[k..]))
        }
    }
}

fn leaf(number: u64) -> Hash {
    leaf_hash(&number.to_le_bytes())
}

/// A log of `size` entries: its edge and its tiles as they would be on a disk.
fn log(size: u64) -> (Edge, BTreeMap<String, Vec<Hash>>) {
    let (mut edge, mut tiles) = (Edge::default(), BTreeMap::new());
    for number in 0..size {
        for (tile, hashes) in edge.push(leaf(number)) {
            assert!(tiles.insert(tile.path(), hashes).is_none());
        }
    }
    tiles.extend(edge.partial().map(|(tile, hashes)| (tile.path(), hashes.to_vec())));
    (edge, tiles)
}

fn theirs(hashes: &[Hash]) -> Vec<tlog_tiles::Hash> {
    hashes.iter().map(|hash| tlog_tiles::Hash(*hash)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn roots_and_proofs_from_tiles_are_those_of_the_definition(
        size in prop_oneof![0..20_u64, 250..260_u64, 500..1100_u64, Just(65_536), Just(66_100)],
        index in any::<u64>(), old in any::<u64>(),
    ) {
        let leaves: Vec<_> = (0..size).map(leaf).collect();
        let (edge, tiles) = log(size);
        let root = defined(&leaves);
        prop_assert_eq!(edge.root(), root);
        // Exactly the tiles that a log of this size has.
        let mut names: Vec<_> = Tile::all(size).filter(|t| t.kind != TileKind::Entries).map(|t| t.path()).collect();
        names.sort();
        prop_assert_eq!(&names, &tiles.keys().cloned().collect::<Vec<_>>());
        let nodes = nodes_from_tiles(size, |tile| tiles.get(&tile.path()).cloned());
        prop_assert_eq!(tree_root(size, &nodes), Some(root));
        prop_assert_eq!(Edge::from_tiles(size, |tile| tiles.get(&tile.path()).cloned()), Some(edge));
        let old = old % (size + 1);
        let old_root = defined(&leaves[..usize::try_from(old).unwrap()]);
        let proof = consistency_proof(old, size, &nodes).unwrap();
        let verdict = verify_consistency(old, size, &proof, &old_root, &root);
        prop_assert_eq!(verdict.is_ok(), old > 0);
        prop_assert_eq!(consistency_proof(size + 1, size, &nodes), None);
        if old > 0 {
            let (new, before) = (tlog_tiles::Hash(root), tlog_tiles::Hash(old_root));
            prop_assert!(tlog_tiles::check_tree(&theirs(&proof), size, new, old, before).is_ok());
        }
        prop_assert_eq!(inclusion_proof(size, size, &nodes), None);
        if size > 0 {
            let index = index % size;
            let proof = inclusion_proof(index, size, &nodes).unwrap();
            prop_assert_eq!(verify_inclusion(index, size, &leaf(index), &proof, &root), Ok(()));
            let (root, leaf) = (tlog_tiles::Hash(root), tlog_tiles::Hash(leaf(index)));
            prop_assert!(tlog_tiles::check_record(&theirs(&proof), size, root, index, leaf).is_ok());
        }
    }

    #[test]
    fn proofs_that_are_changed_in_any_bit_prove_nothing(
        size in 2..300_u64, index in any::<u64>(), old in any::<u64>(), at in any::<usize>(), bit in 0..256_usize,
    ) {
        let (edge, tiles) = log(size);
        let nodes = nodes_from_tiles(size, |tile| tiles.get(&tile.path()).cloned());
        let (index, old) = (index % size, 1 + old % (size - 1));
        let change = |mut proof: Vec<Hash>| {
            let at = at % proof.len();
            proof[at][bit / 8] ^= 1 << (bit % 8);
            proof
        };
        let proof = change(inclusion_proof(index, size, &nodes).unwrap());
        prop_assert!(verify_inclusion(index, size, &leaf(index), &proof, &edge.root()).is_err());
        let old_root = defined(&(0..old).map(leaf).collect::<Vec<_>>());
        let proof = change(consistency_proof(old, size, &nodes).unwrap());
        prop_assert!(verify_consistency(old, size, &proof, &old_root, &edge.root()).is_err());
    }

    #[test]
    fn entries_come_back_from_their_tile_and_no_other_bytes_do(
        entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20), cut in 1..400_usize,
    ) {
        let mut tile = Vec::new();
        prop_assert!(entries.iter().all(|entry| encode_entry(entry, &mut tile)));
        prop_assert_eq!(decode_entries(&tile, entries.len()).unwrap(), entries.clone());
        prop_assert!(decode_entries(&tile, entries.len() + 1).is_err());
        if !entries.is_empty() {
            prop_assert!(decode_entries(&tile, entries.len() - 1).is_err());
            prop_assert!(decode_entries(&tile[..tile.len().saturating_sub(cut)], entries.len()).is_err());
        }
    }
}

#[test]
fn log_of_another_implementation_is_read() {
    let log: Value = serde_json::from_str(include_str!("../../testdata/tlog/log.json")).unwrap();
    let key = NoteKey::parse(log["key"].as_str().unwrap()).unwrap();
    assert_eq!(key.to_string(), log["key"].as_str().unwrap());
    let hashes = STANDARD.decode(log["hashes"].as_str().unwrap()).unwrap();
    let tile = STANDARD.decode(log["entries"].as_str().unwrap()).unwrap();
    let entries = decode_entries(&tile, 15).unwrap();
    assert_eq!((entries[0], entries[14]), (&b"one"[..], &b"fivten"[..]));
    let mut edge = Edge::default();
    for (size, note) in log["checkpoints"].as_array().unwrap().iter().enumerate() {
        let checkpoint = Checkpoint::open(note.as_str().unwrap().as_bytes(), &key).unwrap();
        assert_eq!((checkpoint.size, checkpoint.root), (size as u64, edge.root()));
        if let Some(entry) = entries.get(size) {
            assert_eq!(leaf_hash(entry), hashes[size * 32..][..32]);
            assert_eq!(edge.push(leaf_hash(entry)), []);
        }
    }
}

#[test]
fn tiles_have_the_names_of_the_specification() {
    // c2sp.org/tlog-tiles: index 1234067 is x001/x234/067.
    let name = |kind, index, width| Tile { kind, index, width }.path();
    assert_eq!(name(TileKind::Hashes(0), 1_234_067, 256), "tile/0/x001/x234/067");
    assert_eq!(name(TileKind::Hashes(1), 273, 5), "tile/1/273.p/5");
    assert_eq!(name(TileKind::Entries, 0, 1), "tile/entries/000.p/1");
    assert_eq!(name(TileKind::Entries, 1_000, 256), "tile/entries/x001/000");
    // The example there: 70,000 entries are 273 full tiles and one of 112; one full and one of 17; one of 1.
    let names: Vec<_> = Tile::all(70_000).map(|tile| tile.path()).collect();
    for name in ["tile/0/272", "tile/0/273.p/112", "tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"] {
        assert!(names.iter().any(|other| other == name), "{name}");
    }
    assert_eq!(names.len(), 2 * 274 + 2 + 1);
    assert!(!encode_entry(&[0; ENTRY_BYTES_MAX + 1], &mut Vec::new()));
}

struct Key(Ed25519KeyPair, &'static str);

impl NoteSigner for Key {
    fn name(&self) -> &str {
        self.1
    }
    fn public_key(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().unwrap()
    }
    fn sign(&self, text: &[u8]) -> [u8; 64] {
        self.0.sign(text).as_ref().try_into().unwrap()
    }
}

fn key(seed: u8, name: &'static str) -> Key {
    Key(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap(), name)
}

#[test]
fn checkpoints_are_read_by_another_implementation_and_by_us() {
    let signer = key(7, "audit.host.example");
    let checkpoint = Checkpoint { origin: signer.1.to_owned(), size: 3, root: leaf(3) };
    let note = checkpoint.sign(&signer).unwrap();
    let key = NoteKey::new(signer.1, signer.public_key()).unwrap();
    assert_eq!(Checkpoint::open(note.as_bytes(), &key), Ok(checkpoint.clone()));
    let verifier = signed_note::StandardVerifier::new(&key.to_string()).unwrap();
    let list = signed_note::VerifierList::new(vec![Box::new(verifier)]);
    let theirs = signed_note::Note::from_bytes(note.as_bytes()).unwrap();
    assert_eq!(theirs.verify(&list).unwrap().0.len(), 1);
    let theirs = tlog_tiles::Checkpoint::from_bytes(theirs.text()).unwrap();
    assert_eq!((theirs.origin(), theirs.size(), theirs.hash().0), (signer.1, 3, leaf(3)));
}

#[test]
fn checkpoint_that_is_changed_or_anothers_is_refused() {
    let signer = key(7, "log");
    let checkpoint = Checkpoint { origin: "log".to_owned(), size: 3, root: leaf(3) };
    let note = checkpoint.sign(&signer).unwrap();
    let ours = NoteKey::new("log", signer.public_key()).unwrap();
    for at in 0..note.len() {
        let mut changed = note.clone().into_bytes();
        changed[at] ^= 1;
        assert!(Checkpoint::open(&changed, &ours).is_err(), "byte {at}");
    }
    for at in 0..note.len() {
        assert!(Checkpoint::open(&note.as_bytes()[..at], &ours).is_err(), "{at} bytes");
    }
    let other = NoteKey::new("log", key(8, "log").public_key()).unwrap();
    assert!(matches!(
        Checkpoint::open(note.as_bytes(), &other),
        Err(CheckpointError::Note(NoteError::Unsigned(_)))
    ));
    // The same key under another name, and another log's checkpoint by this key.
    let renamed = NoteKey::new("logs", signer.public_key()).unwrap();
    assert!(Checkpoint::open(note.as_bytes(), &renamed).is_err());
    let foreign = Checkpoint { origin: "gol".to_owned(), ..checkpoint }.sign(&signer).unwrap();
    assert_eq!(Checkpoint::open(foreign.as_bytes(), &ours), Err(CheckpointError::Origin("gol".to_owned())));
    // A cosignature of somebody else does no harm.
    let line = note.lines().last().unwrap();
    let cosigned = note.replace(line, &format!("\u{2014} witness AAAAAAAA\n{line}"));
    assert!(Checkpoint::open(cosigned.as_bytes(), &ours).is_ok());
    for text in ["a\n1\n", "a\n01\nAA==\n", "a\n1\nAA==\n", "\n1\nAA==\n", "a\n-1\nAA==\n"] {
        assert!(Checkpoint::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn key_of_another_form_is_refused() {
    let good = NoteKey::new("a", [1; 32]).unwrap().to_string();
    assert_eq!(NoteKey::parse(&good).unwrap().to_string(), good);
    for text in ["", "a", "a+b", "a+00000000+AQ==", &good.replace("a+", "b+"), &good.replace('+', "-")] {
        assert!(NoteKey::parse(text).is_err(), "{text:?}");
    }
    assert!(NoteKey::new("a b", [1; 32]).is_err() && NoteKey::new("", [1; 32]).is_err());
}
