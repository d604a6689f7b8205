//! PAX extended headers (POSIX.1-2017, pax, "pax Interchange Format").

use crate::refusal::{Refusal, shown};
use std::collections::BTreeSet;

/// What an extended header says about the next entry.
#[derive(Debug, Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
}

/// Keys that are known and change nothing here.
const IGNORED: &[&[u8]] = &[
    b"uname",
    b"gname",
    b"comment",
    b"charset",
    b"SCHILY.dev",
    b"SCHILY.ino",
    b"SCHILY.nlink",
    b"SCHILY.fflags",
];

/// Keys whose values are UTF-8, unless `hdrcharset` says that they are any bytes.
const TEXTS: &[&[u8]] = &[b"path", b"linkpath", b"uname", b"gname"];

/// Beginnings of keys that are known and change nothing here.
const IGNORED_FAMILIES: &[&[u8]] = &[b"SCHILY.xattr.", b"LIBARCHIVE."];

/// One record: the key, the value, and what follows.
struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
    rest: &'a [u8],
}

/// Splits `<length> <key>=<value>\n`; the length counts itself and the newline.
fn record(bytes: &[u8]) -> Result<Record<'_>, &'static str> {
    let space = bytes.iter().take(8).position(|byte| *byte == b' ').ok_or("no length")?;
    let (digits, _) = bytes.split_at_checked(space).ok_or("no length")?;
    let length = decimal(digits).ok_or("the length is not a number")?;
    let length = usize::try_from(length).map_err(|_| "the length is not a number")?;
    let (whole, rest) = bytes.split_at_checked(length).ok_or("the length reaches beyond the header")?;
    let body = whole.get(space + 1..).ok_or("the length is too small")?;
    let body = body.strip_suffix(b"\n").ok_or("no newline where the length ends")?;
    let equals = body.iter().position(|byte| *byte == b'=').ok_or("no '='")?;
    let (key, value) = body.split_at_checked(equals).ok_or("no '='")?;
    if key.is_empty() {
        return Err("an empty key");
    }
    Ok(Record { key, value: value.get(1..).unwrap_or_default(), rest })
}

/// Decimal digits without sign or leading zeros.
fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || (bytes.len() > 1 && bytes.starts_with(b"0")) {
        return None;
    }
    let mut value = 0_u64;
    for byte in bytes {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value = value.checked_mul(10)?.checked_add(digit)?;
    }
    Some(value)
}

/// Seconds with a sign and a fraction, rounded down to nanoseconds.
fn time(bytes: &[u8]) -> Option<(i64, u32)> {
    let (negative, bytes) = bytes.strip_prefix(b"-").map_or((false, bytes), |rest| (true, rest));
    let point = bytes.iter().position(|byte| *byte == b'.').unwrap_or(bytes.len());
    let (whole, fraction) = bytes.split_at_checked(point)?;
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let fraction = match fraction {
        [] => &[],
        [b'.', digits @ ..] if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => digits,
        _ => return None,
    };
    let mut nanos = 0_u32;
    for at in 0..9 {
        nanos = nanos * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'));
    }
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((seconds.checked_neg()?, 0)),
        (true, _) => Some((seconds.checked_neg()?.checked_sub(1)?, 1_000_000_000 - nanos)),
    }
}

impl Pax {
    /// Reads the extended header of one entry; `entry` names it in errors.
    pub(crate) fn parse(bytes: &[u8], entry: &[u8]) -> Result<Self, Refusal> {
        let malformed = |reason| Refusal::PaxMalformed { entry: shown(entry), reason };
        let mut pax = Self::default();
        let mut seen = BTreeSet::new();
        let (mut text, mut binary) = (true, false);
        let mut rest = bytes;
        while !rest.is_empty() {
            let record = record(rest).map_err(malformed)?;
            rest = record.rest;
            if !seen.insert(record.key) {
                return Err(malformed("a key occurs twice"));
            }
            text &= !TEXTS.contains(&record.key) || std::str::from_utf8(record.value).is_ok();
            binary |= record.key == b"hdrcharset" && record.value == b"BINARY";
            pax.take(record.key, record.value, entry)?;
        }
        if !text && !binary {
            return Err(malformed("a name that is not UTF-8, and no hdrcharset=BINARY"));
        }
        Ok(pax)
    }

    /// Checks a global header: comments alone.
    pub(crate) fn check_global(bytes: &[u8]) -> Result<(), Refusal> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let record = record(rest)
                .map_err(|reason| Refusal::PaxMalformed { entry: "global header".to_owned(), reason })?;
            rest = record.rest;
            if record.key != b"comment" {
                return Err(Refusal::PaxGlobal { key: shown(record.key) });
            }
        }
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8], entry: &[u8]) -> Result<(), Refusal> {
        let malformed = |reason| move || Refusal::PaxMalformed { entry: shown(entry), reason };
        let number = || decimal(value).ok_or_else(malformed("a size or id is not a number"));
        let id = || match number()? {
            id if id > u64::from(u32::MAX) => Err(malformed("an id of more than 32 bits")()),
            id => Ok(id),
        };
        match key {
            b"path" | b"linkpath" if value.is_empty() => return Err(malformed("an empty name")()),
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(id()?),
            b"gid" => self.gid = Some(id()?),
            b"mtime" => self.mtime = Some(time(value).ok_or_else(malformed("a time is not a number"))?),
            b"atime" | b"ctime" => {
                time(value).ok_or_else(malformed("a time is not a number"))?;
            }
            b"hdrcharset" if matches!(value, b"BINARY" | b"ISO-IR 10646 2000 UTF-8") => {}
            b"hdrcharset" => return Err(malformed("an unknown hdrcharset")()),
            _ if key.starts_with(b"GNU.sparse.") || key == b"SCHILY.realsize" => {
                return Err(Refusal::Sparse { entry: shown(entry) });
            }
            _ if IGNORED.contains(&key) || IGNORED_FAMILIES.iter().any(|f| key.starts_with(f)) => {}
            _ => return Err(Refusal::PaxKey { entry: shown(entry), key: shown(key) }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_forms_are_read() {
        assert_eq!(time(b"1700000000"), Some((1_700_000_000, 0)));
        assert_eq!(time(b"1.5"), Some((1, 500_000_000)));
        assert_eq!(time(b"1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-7"), Some((-7, 0)));
        for bad in [&b""[..], b"1.", b".5", b"1e3", b"+1", b"--1", b"99999999999999999999"] {
            assert_eq!(time(bad), None);
        }
    }

    #[test]
    fn record_lengths_must_fit_exactly() {
        for good in [&b"6 a=b\n"[..], b"5 a=\n", b"14 path=a\nb=c\n"] {
            assert!(record(good).is_ok(), "{}", shown(good));
        }
        for bad in [
            &b""[..],
            b"6",
            b"6 a=b",
            b"7 a=b\n",
            b"06 a=b\n",
            b"6 ab\n\n",
            b"+6 a=b\n",
            b" 6 a=b\n",
            b"0 a=b\n",
            b"1 a=b\n",
            b"2 a=b\n",
            b"4 =b\n",
            b"5 =b\n\n",
            b"99999999999 a=b\n",
        ] {
            assert!(record(bad).is_err(), "{}", shown(bad));
        }
    }
}
