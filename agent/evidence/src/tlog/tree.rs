//! Hashes of a Merkle tree, and proofs from them (RFC 6962 §2.1).

use aws_lc_rs::digest::{Context, SHA256};

/// SHA-256 of a leaf or node.
pub type Hash = [u8; 32];

fn hash(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let digest = context.finish();
    // SHA-256 has 32 bytes.
    digest.as_ref().first_chunk().copied().unwrap_or_default()
}

/// The hash of an entry.
pub fn leaf_hash(entry: &[u8]) -> Hash {
    hash(&[&[0], entry])
}

/// The hash of a node.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    hash(&[&[1], left, right])
}

/// The root of the tree without entries.
pub fn empty_root() -> Hash {
    hash(&[])
}

/// Hashes of subtrees that are complete.
pub trait Nodes {
    /// The hash over the 2^`height` entries from `index` · 2^`height` on; none if they are not all there.
    fn node(&self, height: u32, index: u64) -> Option<Hash>;
}

/// The largest power of two that is smaller than `n`, for `n` of at least 2.
fn split(n: u64) -> u64 {
    n.saturating_sub(1).checked_ilog2().map_or(0, |bits| 1 << bits)
}

/// The hash over the entries `from` to `to`, which a tree's recursion has come to: at most 64 deep.
fn range(from: u64, to: u64, nodes: &impl Nodes) -> Option<Hash> {
    let n = to.checked_sub(from)?;
    if n.is_power_of_two() && from.is_multiple_of(n) {
        return nodes.node(n.ilog2(), from / n);
    }
    let middle = from.checked_add(split(n)).filter(|middle| *middle > from)?;
    Some(node_hash(&range(from, middle, nodes)?, &range(middle, to, nodes)?))
}

/// The root of the first `size` entries; none if a node is missing.
pub fn tree_root(size: u64, nodes: &impl Nodes) -> Option<Hash> {
    if size == 0 { Some(empty_root()) } else { range(0, size, nodes) }
}

/// The proof that entry `index` is in the tree of the first `size` entries; none if it is not, or a node is missing.
pub fn inclusion_proof(index: u64, size: u64, nodes: &impl Nodes) -> Option<Vec<Hash>> {
    let mut proof = Vec::new();
    let (mut from, mut to) = (0_u64, size);
    if index >= size {
        return None;
    }
    while to.checked_sub(from)? > 1 {
        let middle = from.checked_add(split(to.checked_sub(from)?))?;
        if index < middle {
            proof.push(range(middle, to, nodes)?);
            to = middle;
        } else {
            proof.push(range(from, middle, nodes)?);
            from = middle;
        }
    }
    proof.reverse();
    Some(proof)
}

/// The proof that the tree of the first `new` entries begins with that of the first `old`; none if it does not, or a node is missing.
pub fn consistency_proof(old: u64, new: u64, nodes: &impl Nodes) -> Option<Vec<Hash>> {
    let mut proof = Vec::new();
    if old > new {
        return None;
    }
    if old == 0 || old == new {
        return Some(proof);
    }
    let (mut from, mut to) = (0_u64, new);
    while old != to {
        let middle = from.checked_add(split(to.checked_sub(from)?))?;
        if old <= middle {
            proof.push(range(middle, to, nodes)?);
            to = middle;
        } else {
            proof.push(range(from, middle, nodes)?);
            from = middle;
        }
    }
    // The old tree itself is known to whoever checks; a part of it is not.
    if from != 0 {
        proof.push(range(from, to, nodes)?);
    }
    proof.reverse();
    Some(proof)
}
