//! Checking proofs (RFC 9162 §2.1.3.2 and §2.1.4.2).

use super::tree::{Hash, node_hash};

/// Why a proof proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The entry is not in a tree of this size, or the old tree is larger than the new one.
    #[error("the numbers do not fit: {0}")]
    Numbers(&'static str),
    /// It has another number of hashes than such a proof has.
    #[error("the proof has {got} hashes, which is not its length")]
    Length {
        /// Its number of hashes.
        got: usize,
    },
    /// It leads to another root.
    #[error("the proof leads to another root")]
    Root,
}

/// Checks that an entry with this hash is number `index` in the tree of `size` entries with this root.
///
/// # Errors
/// [`ProofError`] if that is not proven.
pub fn verify_inclusion(
    index: u64,
    size: u64,
    leaf: &Hash,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Numbers("the entry is beyond the tree"));
    }
    let length = ProofError::Length { got: proof.len() };
    let (mut at, mut last, mut hash) = (index, size.saturating_sub(1), *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(length);
        }
        if at & 1 == 1 || at == last {
            hash = node_hash(sibling, &hash);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    match (last, hash == *root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::Root),
        _ => Err(length),
    }
}

/// Checks that the tree of `new` entries with `new_root` begins with that of `old` entries with `old_root`.
///
/// # Errors
/// [`ProofError`] if that is not proven.
pub fn verify_consistency(
    old: u64,
    new: u64,
    proof: &[Hash],
    old_root: &Hash,
    new_root: &Hash,
) -> Result<(), ProofError> {
    let length = ProofError::Length { got: proof.len() };
    if old > new {
        return Err(ProofError::Numbers("the old tree is larger than the new one"));
    }
    if old == 0 {
        // RFC 9162 §2.1.4.2: every tree begins with nothing, so a proof of it would prove nothing.
        return Err(ProofError::Numbers("the old tree is empty"));
    }
    if old == new {
        return match proof {
            [] if old_root == new_root => Ok(()),
            [] => Err(ProofError::Root),
            _ => Err(length),
        };
    }
    // A complete old tree is the first hash itself.
    let (first, rest) =
        if old.is_power_of_two() { (old_root, proof) } else { proof.split_first().ok_or(length)? };
    let (mut at, mut last) = (old.saturating_sub(1), new.saturating_sub(1));
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    let (mut from_old, mut from_new) = (*first, *first);
    if rest.is_empty() {
        return Err(length);
    }
    for sibling in rest {
        if last == 0 {
            return Err(length);
        }
        if at & 1 == 1 || at == last {
            from_old = node_hash(sibling, &from_old);
            from_new = node_hash(sibling, &from_new);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            from_new = node_hash(&from_new, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    match (last, from_old == *old_root && from_new == *new_root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::Root),
        _ => Err(length),
    }
}
