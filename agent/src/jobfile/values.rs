//! Sizes, durations and processor counts: whole numbers with a unit, and nothing that can be misread.

/// The units of a size with the number of bytes in each.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// The units of a duration from the longest down, with the number of milliseconds in each.
const TIME_UNITS: &[(&str, u64)] = &[("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// The rule for sizes, for messages.
pub(crate) const SIZE_RULE: &str =
    "write a whole number with one of B, kB, MB, GB, KiB, MiB, GiB and TiB, as in \"2GiB\"";
/// The rule for durations, for messages.
pub(crate) const DURATION_RULE: &str =
    "write whole numbers with h, m, s or ms, the longest unit first, as in \"1h30m\" or \"500ms\"";
/// The rule for processor counts, for messages.
pub(crate) const CPUS_RULE: &str = "write a number of processors in steps of 0.001, as in 2 or 0.5";

/// The most processors that a job file can ask for; the profile's ceiling comes on top.
const CPUS_MAX: f64 = 100_000.0;

/// Splits off the digits and then the letters at the beginning.
fn number_and_unit(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at_checked(digits)?;
    let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at_checked(letters)?;
    Some((number.parse().ok()?, unit, rest))
}

/// The bytes of a size such as `2GiB`.
pub(crate) fn size(text: &str) -> Option<u64> {
    let (number, unit, rest) = number_and_unit(text)?;
    let (_, bytes) = SIZE_UNITS.iter().find(|(name, _)| *name == unit)?;
    if !rest.is_empty() {
        return None;
    }
    // The wire and JSON carry what fits an i64.
    number.checked_mul(*bytes).filter(|n| *n > 0 && *n <= i64::MAX.unsigned_abs())
}

/// The milliseconds of a duration such as `1h30m`.
pub(crate) fn duration_ms(text: &str) -> Option<u64> {
    let mut total = 0_u64;
    let mut units = TIME_UNITS.iter();
    let mut rest = text;
    while !rest.is_empty() {
        let (number, unit, after) = number_and_unit(rest)?;
        // Each unit once and from the longest down: the iterator never turns back.
        let (_, each) = units.find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.checked_mul(*each)?)?;
        rest = after;
    }
    (total > 0 && total <= i64::MAX.unsigned_abs()).then_some(total)
}

/// A size as [`size`] reads it, in the largest unit that is exact.
pub(crate) fn show_size(bytes: u64) -> String {
    let binary = SIZE_UNITS.iter().rev().filter(|(name, _)| name.len() != 2);
    let (unit, each) = binary.copied().find(|(_, each)| bytes.is_multiple_of(*each)).unwrap_or(("B", 1));
    format!("{}{unit}", bytes / each)
}

/// A duration as [`duration_ms`] reads it, in the longest unit that is exact.
pub(crate) fn show_duration(ms: u64) -> String {
    let exact = TIME_UNITS.iter().copied().find(|(_, each)| ms.is_multiple_of(*each));
    let (unit, each) = exact.unwrap_or(("ms", 1));
    format!("{}{unit}", ms / each)
}

/// The thousandths of a processor count such as `0.5`.
pub(crate) fn cpu_millis(cpus: f64) -> Option<u64> {
    let millis = cpus * 1000.0;
    let whole = millis.round();
    let ok = cpus.is_finite() && cpus <= CPUS_MAX && whole >= 1.0 && (millis - whole).abs() < 1e-6;
    // In range and whole: the conversion is exact.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    ok.then_some(whole as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_units_are_exact_and_anything_else_is_refused() {
        assert_eq!(size("1B"), Some(1));
        assert_eq!(size("2kB"), Some(2000));
        assert_eq!(size("2KiB"), Some(2048));
        assert_eq!(size("3GiB"), Some(3 << 30));
        for bad in [
            "",
            "0B",
            "2",
            "GiB",
            "-1B",
            "+1B",
            "1.5GiB",
            "2 GiB",
            "2GB ",
            "2gib",
            "2K",
            "2GiBx",
            "2GiB1",
            "99999999999999999999B",
            "99999999TiB",
            "٣B",
            "1é",
        ] {
            assert_eq!(size(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn duration_combinations_add_up_and_anything_else_is_refused() {
        assert_eq!(duration_ms("500ms"), Some(500));
        assert_eq!(duration_ms("10m"), Some(600_000));
        assert_eq!(duration_ms("1h30m"), Some(5_400_000));
        assert_eq!(duration_ms("1h2m3s4ms"), Some(3_723_004));
        for bad in [
            "",
            "0s",
            "10",
            "m",
            "1m1h",
            "1m2m",
            "1.5h",
            "1 h",
            "-1s",
            "1d",
            "1H",
            "1min",
            "99999999999999999h",
            "18446744073709551615ms",
        ] {
            assert_eq!(duration_ms(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for bytes in [1, 1000, 1024, 1500, 2 << 20, 3 << 30, 5 << 40, (1 << 30) + 1] {
            assert_eq!(size(&show_size(bytes)), Some(bytes));
        }
        assert_eq!(show_size(48 << 30), "48GiB");
        for ms in [1, 999, 1000, 61_000, 60_000, 3_600_000, 5_400_000] {
            assert_eq!(duration_ms(&show_duration(ms)), Some(ms));
        }
        assert_eq!(show_duration(5_400_000), "90m");
    }

    #[test]
    fn cpu_millis_takes_thousandths_only() {
        assert_eq!(cpu_millis(2.0), Some(2000));
        assert_eq!(cpu_millis(0.5), Some(500));
        assert_eq!(cpu_millis(0.001), Some(1));
        assert_eq!(cpu_millis(0.1 + 0.2), Some(300));
        for bad in [0.0, -1.0, 0.0001, 1.00005, f64::NAN, f64::INFINITY, 1e9] {
            assert_eq!(cpu_millis(bad), None, "{bad}");
        }
    }
}
