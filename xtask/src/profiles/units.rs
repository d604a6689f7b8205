//! Sizes and times as people write them.

use anyhow::{Context, Result, bail};

/// Reads `512KiB`, `2GiB`, `100B`: a whole number and a binary unit.
pub(crate) fn bytes(text: &str) -> Result<u64> {
    let (count, unit) = split(text)?;
    let scale: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => bail!("{text:?}: write the unit as B, KiB, MiB, GiB or TiB"),
    };
    count.checked_mul(scale).with_context(|| format!("{text:?} is too large"))
}

/// Reads `500ms`, `90s`, `30m`, `24h` into milliseconds.
pub(crate) fn milliseconds(text: &str) -> Result<u64> {
    let (count, unit) = split(text)?;
    let scale: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => bail!("{text:?}: write the unit as ms, s, m or h"),
    };
    count.checked_mul(scale).with_context(|| format!("{text:?} is too large"))
}

fn split(text: &str) -> Result<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let count = digits.parse().with_context(|| format!("{text:?} does not begin with a whole number"))?;
    Ok((count, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_need_units() {
        assert_eq!(bytes("2GiB").unwrap(), 2 << 30);
        assert_eq!(milliseconds("30m").unwrap(), 1_800_000);
        for bad in ["2", "GiB", "2GB", "99999999999TiB", "-1B"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert!(milliseconds("5").is_err());
    }
}
