//! Times as the attestations spell them: RFC 3339 in UTC with a literal `Z`.

use ampoule_spec::UnixNanos;

/// Spells a time, with only as many digits of the fraction as it needs, at most nine.
pub fn format(at: UnixNanos) -> String {
    // Every u64 of nanoseconds lies before the year 2555, inside jiff's range.
    jiff::Timestamp::from_nanosecond(i128::from(at.0)).unwrap_or_default().to_string()
}

/// Reads a time back; `None` for every other spelling than RFC 3339 with `Z` and at most nine digits.
pub(crate) fn parse(text: &str) -> Option<UnixNanos> {
    let (seconds, rest) = text.split_at_checked(19)?;
    let shape = seconds.bytes().enumerate().all(|(at, byte)| match at {
        4 | 7 => byte == b'-',
        10 => byte == b'T',
        13 | 16 => byte == b':',
        _ => byte.is_ascii_digit(),
    });
    let fraction = rest.strip_suffix('Z')?;
    let digits = match fraction.strip_prefix('.') {
        Some(digits) => !digits.is_empty() && digits.len() <= 9 && digits.bytes().all(|b| b.is_ascii_digit()),
        None => fraction.is_empty(),
    };
    // A second of 60 would be read as 59: no clock of ours shows one.
    if !shape || !digits || seconds.ends_with(":60") {
        return None;
    }
    let at = text.parse::<jiff::Timestamp>().ok()?;
    u64::try_from(at.as_nanosecond()).ok().map(UnixNanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_and_parse_round_trip() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_767_323_095_250_000_000, "2026-01-02T03:04:55.25Z"),
            (1_767_323_095_000_000_001, "2026-01-02T03:04:55.000000001Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ] {
            assert_eq!(format(UnixNanos(nanos)), text);
            assert_eq!(parse(text), Some(UnixNanos(nanos)));
        }
    }

    #[test]
    fn parse_other_spellings_are_none() {
        for text in [
            "",
            "2026-01-02T03:04:05",
            "2026-01-02T03:04:05+00:00",
            "2026-01-02T03:04:05z",
            "2026-01-02t03:04:05Z",
            "2026-01-02 03:04:05Z",
            "2026-01-02T03:04:05.Z",
            "2026-01-02T03:04:05.1234567891Z",
            "2026-13-02T03:04:05Z",
            "2026-02-30T03:04:05Z",
            "2026-01-02T03:04:60Z",
            "2026-01-02T03:04Z",
            "1969-12-31T23:59:59Z",
            "2026-01-02T03:04:05ZZ",
            "+02026-01-02T03:04:05Z",
            "2026-01-02T24:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
