//! Applying a delta (gitformat-pack(5), "Deltified representation").

/// Rebuilds an object from its base, with at most `bytes_max` bytes.
pub(super) fn apply(base: &[u8], delta: &[u8], bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut rest = delta;
    let base_size = size(&mut rest)?;
    let result_size = size(&mut rest)?;
    if base_size != base.len() as u64 {
        return Err("a delta of another base".to_owned());
    }
    if result_size > bytes_max {
        return Err(format!("an object of {result_size} bytes, at most {bytes_max} are accepted"));
    }
    let cut = || "a delta that is cut off".to_owned();
    let mut result: Vec<u8> = Vec::new();
    while let Some((op, after)) = rest.split_first() {
        rest = after;
        let part = if op & 0x80 != 0 {
            let offset = number(&mut rest, *op, 4).ok_or_else(cut)?;
            let length = match number(&mut rest, op >> 4, 3).ok_or_else(cut)? {
                0 => 0x1_0000,
                length => length,
            };
            let end = offset.checked_add(length);
            end.and_then(|end| base.get(offset..end)).ok_or("a delta that copies from beyond its base")?
        } else if *op != 0 {
            let (part, after) = rest.split_at_checked(usize::from(*op)).ok_or_else(cut)?;
            rest = after;
            part
        } else {
            return Err("a delta with the reserved instruction 0".to_owned());
        };
        if (result.len() + part.len()) as u64 > result_size {
            return Err("a delta that gives more than it says".to_owned());
        }
        result.extend_from_slice(part);
    }
    if result.len() as u64 != result_size {
        return Err("a delta that gives less than it says".to_owned());
    }
    Ok(result)
}

/// Seven bits a byte, the lowest first.
fn size(rest: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0_u64;
    for shift in (0..63).step_by(7) {
        let (byte, after) = rest.split_first().ok_or("a delta that is cut off")?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a delta with a size of more than 63 bits".to_owned())
}

/// The bytes of a number that `flags` says are there, the lowest first.
fn number(rest: &mut &[u8], flags: u8, bytes: u32) -> Option<usize> {
    let mut value = 0_usize;
    for at in (0..bytes).filter(|at| flags & (1 << at) != 0) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= usize::from(*byte) << (8 * at);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delta_copies_and_inserts_within_its_sizes() {
        let base = b"0123456789";
        // 10 → 7 bytes: copy 3 from 2, insert "ab", copy 2 from 0.
        let delta = [10, 7, 0x91, 2, 3, 2, b'a', b'b', 0x90, 2];
        assert_eq!(apply(base, &delta, 7).unwrap(), b"234ab01");
        assert!(apply(base, &delta, 6).unwrap_err().contains("at most 6"));
        assert!(apply(b"012345678", &delta, 7).is_err());
        for bad in [
            &[10, 7, 0x91, 2, 3][..],
            &[10, 2, 0x91, 9, 2],
            &[10, 1, 0x91, 2, 3],
            &[10, 1, 0],
            &[10, 3, 3, b'a'],
            &[10],
            &[],
            &[10, 5, 0x9f, 1],
            &[10, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1],
        ] {
            assert!(apply(base, bad, 1 << 20).is_err(), "{bad:?}");
        }
    }
}
