//! Every field of a header with every odd value, in every format: made by rule.

use crate::case::{Case, entries};
use crate::common::*;

/// Names, offsets and lengths of a header's fields.
const FIELDS: &[(&str, usize, usize)] = &[
    ("name", 0, 100),
    ("mode", 100, 8),
    ("uid", 108, 8),
    ("gid", 116, 8),
    ("size", 124, 12),
    ("mtime", 136, 12),
    ("type", 156, 1),
    ("link", 157, 100),
    ("magic", 257, 6),
    ("version", 263, 2),
    ("uname", 265, 32),
    ("gname", 297, 32),
    ("devmajor", 329, 8),
    ("devminor", 337, 8),
    ("prefix", 345, 155),
    ("pad", 500, 12),
];

fn values(length: usize) -> Vec<(&'static str, Vec<u8>)> {
    let filled = |byte: u8| vec![byte; length];
    let ended = |text: &str| text.as_bytes().iter().copied().chain([0]).take(length).collect::<Vec<_>>();
    let last = |byte: u8| {
        let mut bytes = vec![0; length];
        bytes[length - 1] = byte;
        bytes
    };
    let first = |byte: u8| {
        let mut bytes = vec![0; length];
        bytes[0] = byte;
        bytes
    };
    vec![
        ("NULs", filled(0)),
        ("blanks", filled(b' ')),
        ("ones", filled(0xff)),
        ("0x80 alone", first(0x80)),
        ("zeros", filled(b'0')),
        ("sevens", filled(b'7')),
        ("slashes", filled(b'/')),
        ("dots", filled(b'.')),
        ("a letter", ended("a")),
        ("one", ended("1")),
        ("blank and one", ended(" 1 ")),
        ("tab and one", ended("\t1")),
        ("minus one", ended("-1")),
        ("hexadecimal", ended("0x1")),
        ("NUL, then one", last(b'1')),
        ("path", ended("a/b")),
        ("newline", ended("\n")),
        ("UTF-8", ended("ö")),
        ("five", ended("5")),
    ]
}

/// Makes a ustar header one of another format.
type Shape = fn(H) -> H;

pub(crate) fn grid() -> Vec<Case> {
    let mut cases = Vec::new();
    let formats: [(&str, Shape); 3] = [("ustar", |h| h), ("GNU", H::gnu), ("v7", H::v7)];
    for (format, shape) in formats {
        for (field, at, length) in FIELDS {
            for (value, bytes) in values(*length) {
                let odd = shape(file("a", "x")).put(*at, bytes);
                let what = format!("{format}: {field} of {value}");
                cases.push(entries("", &what, &[odd, file("z", "y")]).either());
            }
        }
    }
    for flag in 0..=255_u8 {
        let odd = [H::new(flag, "a"), file("z", "y")];
        cases.push(entries("", &format!("type {flag}"), &odd).either());
    }
    cases
}
