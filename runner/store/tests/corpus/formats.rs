//! Headers of every format that there is, and numbers in every way in which they are written.

use crate::case::{Case, accepted, accepted_image, case, entries};
use crate::common::*;

/// One name after another that fills a field to its last byte.
fn full(length: usize) -> Vec<u8> {
    (0..length).map(|at| if at % 20 == 19 { b'/' } else { b'a' + (at % 20) as u8 }).collect()
}

pub(crate) fn formats() -> Vec<Case> {
    let name100 = full(99).into_iter().chain([b'z']).collect::<Vec<_>>();
    let prefix155 = full(154).into_iter().chain([b'z']).collect::<Vec<_>>();
    vec![
        accepted("v7 file", &[H::new(0, "a").v7().data("x")]),
        accepted("v7 directory by its slash", &[H::new(0, "d/").v7(), H::new(0, "d/a").v7().data("x")]),
        accepted("v7 hard link", &[H::new(0, "a").v7().data("x"), hardlink("b", "a").v7()]),
        accepted("v7 symlink", &[symlink("b", "a").v7()]),
        accepted("v7 with 100 bytes of name", &[H::new(0, &name100).v7().data("x")]),
        accepted("v7 with 100 bytes of target", &[symlink("l", &name100).v7()]),
        accepted("v7 with type 0", &[file("a", "x").v7()]),
        accepted("v7 with type 5", &[dir("d").v7()]),
        accepted("ustar with type NUL", &[H::new(0, "a").data("x")]),
        accepted("ustar directory by its slash", &[H::new(0, "d/")]),
        accepted("ustar with 100 bytes of name", &[file(&name100, "x")]),
        accepted("ustar with a full prefix", &[file("n", "x").put(345, &prefix155)]),
        accepted("ustar with prefix and name full", &[file(&name100, "x").put(345, &prefix155)]),
        accepted("ustar with owners' names", &[file("a", "x").put(265, "alice").put(297, "staff")]),
        accepted("ustar with 32 bytes of owner", &[file("a", "x").put(265, [b'u'; 32])]),
        accepted("ustar with device numbers on a file", &[file("a", "x").put(329, "0000010\x000000020\0")]),
        accepted("ustar prefix with a dot", &[file("n", "x").put(345, "./p")]),
        accepted("ustar prefix with a slash at its end", &[file("n", "x").put(345, "p/")]),
        accepted("GNU file", &[file("a", "x").gnu()]),
        accepted("GNU directory", &[dir("d/").gnu(), file("d/a", "x").gnu()]),
        accepted("GNU with owners' names", &[file("a", "x").gnu().put(265, "alice").put(297, "staff")]),
        accepted("all formats in one", &[file("a", "1"), file("b", "2").gnu(), file("c", "3").v7()]),
        entries("header_format", "ustar with version blank", &[file("a", "x").put(257, "ustar\0  ")]),
        entries("header_format", "ustar with version NUL", &[file("a", "x").put(257, "ustar\0\0\0")]),
        entries("header_format", "ustar without NUL", &[file("a", "x").put(257, "ustar 00")]),
        entries("header_format", "ustar in capitals", &[file("a", "x").put(257, "USTAR\x0000")]),
        entries("header_format", "GNU magic with version 00", &[file("a", "x").put(257, "ustar  0")]),
        entries("header_format", "GNU times of access", &[file("a", "x").gnu().put(345, "14524655000\0")]),
        entries("header_format", "GNU times of change", &[file("a", "x").gnu().put(357, "14524655000\0")]),
        entries("header_format", "GNU offset of a volume", &[file("a", "x").gnu().put(369, "00000000010\0")]),
        entries("header_format", "GNU long names' pad", &[file("a", "x").gnu().put(381, "long")]),
        entries("header_format", "GNU real size", &[file("a", "x").gnu().put(483, "00000000100\0")]),
        entries("header_format", "GNU is extended", &[file("a", "x").gnu().put(482, [1])]),
        entries("header_format", "bytes behind all fields of GNU", &[file("a", "x").gnu().put(495, "x")]),
        entries(
            "header_format",
            "star with its times",
            &[file("a", "x").put(476, "14524655000\0").put(508, "tar\0")],
        ),
        entries("header_format", "star of 1985", &[file("a", "x").v7().put(508, "tar\0")]),
        entries(
            "header_format",
            "star with a prefix byte",
            &[file("a", "x").put(345, "p").put(508, "tar\0")],
        ),
        entries(
            "header_format",
            "v7 with bytes where others have a prefix",
            &[file("a", "x").v7().put(345, "p")],
        ),
        entries("header_format", "v7 with something at its end", &[file("a", "x").v7().put(511, "x")]),
        entries(
            "unknown_type",
            "Solaris extended header",
            &[H::new(b'X', "x").data(record("path", "b")), file("a", "x")],
        ),
        entries(
            "unknown_type",
            "Solaris ACL",
            &[H::new(b'A', "x").data("01000007\0user::rwx\0"), file("a", "x")],
        ),
        entries("unknown_type", "Solaris attribute", &[H::new(b'E', "x").data("x"), file("a", "x")]),
        entries("unknown_type", "GNU dump directory", &[H::new(b'D', "d/").gnu().data("Ya\0\0")]),
        entries("unknown_type", "GNU old long name", &[H::new(b'N', "n").gnu().data("Rename a to b\n")]),
        entries("unknown_type", "GNU volume label", &[H::new(b'V', "label").gnu(), file("a", "x").gnu()]),
        entries("unknown_type", "volume label with data", &[H::new(b'V', "label").gnu().data("x")]),
        entries("unknown_type", "rest of another volume", &[H::new(b'M', "a").gnu().data("rest")]),
        entries("unknown_type", "contiguous file", &[H::new(b'7', "a").data("x")]),
        entries("unknown_type", "vendor's own", &[H::new(b'Z', "a").data("x")]),
        entries("unknown_type", "inode alone", &[H::new(b'I', "a")]),
        entries("unknown_type", "type blank", &[H::new(b' ', "a")]),
        entries("unknown_type", "type beyond ASCII", &[H::new(0x80, "a").data("x")]),
    ]
}

/// A file of one byte whose field holds other bytes.
fn with(at: usize, bytes: impl AsRef<[u8]>) -> Vec<H> {
    vec![file("a", "x").put(at, bytes)]
}

pub(crate) fn numbers() -> Vec<Case> {
    let binary = |low: u8| [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, low];
    vec![
        accepted("size of twelve digits", &with(124, "000000000001")),
        accepted("size ended by a blank", &with(124, "00000000001 ")),
        accepted("size after blanks", &with(124, "          1\0")),
        accepted("size of one digit", &with(124, "1\0\0\0\0\0\0\0\0\0\0\0")),
        accepted("size in binary", &with(124, binary(1))),
        accepted("size of a directory missing", &[dir("d/").put(124, [0; 12])]),
        entries("field", "size of a link in blanks", &[symlink("l", "a").put(124, "            ")]),
        accepted("mode with the file's type", &with(100, "0100644\0")),
        accepted("mode of eight digits", &with(100, "00000644")),
        accepted("mode missing", &with(100, [0; 8])),
        accepted("owners missing", &[file("a", "x").put(108, [0; 16])]),
        entries("field", "owners in blanks", &[file("a", "x").put(108, "                ")]),
        accepted("owner in binary", &with(108, [0x80, 0, 0, 0, 0, 0, 0x27, 0x10])),
        entries("field", "owner of 2^32 in an input", &with(108, [0x80, 0, 0, 1, 0, 0, 0, 0])),
        accepted(
            "time of 1901 in binary",
            &with(136, [255, 255, 255, 255, 255, 255, 255, 255, 0x80, 0, 0, 0]),
        ),
        accepted("time of 2242, eleven sevens", &with(136, "77777777777\0")),
        accepted("time of twelve sevens", &with(136, "777777777777")),
        accepted("time in binary", &with(136, [0x80, 0, 0, 0, 0, 0, 0, 0, 0x65, 0x53, 0xf1, 0])),
        accepted_image("time of 1970", &with(136, "00000000000\0")),
        accepted_image("owner 65535", &[file("a", "x").owner(65_535, 65_535)]),
        entries("field", "size in hexadecimal", &with(124, "0000000000a\0")),
        entries("field", "size with 8", &with(124, "00000000008\0")),
        entries("field", "size with a plus", &with(124, "+0000000001\0")),
        entries("field", "size after a tab", &with(124, "\t0000000001\0")),
        entries("field", "size in blanks", &with(124, "            ")),
        entries("field", "size of base 64", &with(124, "+AAAAAAAAAB\0")),
        entries("field", "size with digits behind its NUL", &with(124, "0000000001\x007")),
        entries("field", "size with digits in two groups", &with(124, "0000 000001\0")),
        entries("field", "size NUL first", &with(124, "\x00000000001\0")),
        entries("field", "size of -1 in binary", &with(124, [0xff; 12])),
        entries(
            "field",
            "size of -512 in binary",
            &with(124, [255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 254, 0]),
        ),
        entries("field", "size of 2^64 in binary", &with(124, [0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])),
        entries("field", "size of 2^63 in binary", &with(124, [0x80, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0])),
        entries("field", "size in binary behind 0x81", &with(124, [0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])),
        entries("field", "size in binary behind 0xc0", &with(124, [0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])),
        accepted(
            "mode of a hard link with the file's type",
            &[file("a", "x"), hardlink("b", "a").put(100, "0100644\0")],
        ),
        entries(
            "field",
            "mode of a hard link with a FIFO's type",
            &[file("a", "x"), hardlink("b", "a").put(100, "0010644\0")],
        ),
        entries("field", "mode of a file with a directory's type", &with(100, "0040755\0")),
        entries("field", "mode of a directory with a file's type", &[dir("d/").put(100, "0100755\0")]),
        entries("field", "mode of more than a type", &with(100, "7100644\0")),
        entries("field", "mode of -1", &with(100, [0xff; 8])),
        entries("field", "mode with text behind", &with(100, "644\0text")),
        entries("field", "uid with a minus", &with(108, "-000001\0")),
        entries("field", "gid with text behind", &with(116, "0\0wheel\0")),
        entries("field", "mtime of 2^64", &with(136, [0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])),
        entries("field", "mtime of -2^64", &with(136, [0xff, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        entries("too_large", "size of 2^40 in binary", &with(124, [0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])),
        entries("truncated", "size of eleven sevens", &with(124, "77777777777\0")),
    ]
}

/// A checksum of the given text, which `%` stands for.
fn summed(text: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    let mut bytes = tar(&[file("a", "x")]);
    bytes[148..156].copy_from_slice(b"        ");
    let sum: u32 = bytes[..512].iter().map(|b| u32::from(*b)).sum();
    let text = text(sum);
    bytes[148..148 + text.len()].copy_from_slice(&text);
    bytes
}

pub(crate) fn checksums() -> Vec<Case> {
    let octal = |format: fn(u32) -> String| summed(move |sum| format(sum).into_bytes());
    let high = |sum: u32| -> Vec<u8> {
        // What programs computed whose `char` has a sign: each byte from 0x80 counts 256 less.
        let mut bytes = tar(&[file(b"\xff\xfe", "x")]);
        let signed = u32::from_str_radix(std::str::from_utf8(&bytes[148..154]).unwrap(), 8).unwrap() - sum;
        bytes[148..156].copy_from_slice(format!("{signed:06o}\0 ").as_bytes());
        bytes
    };
    vec![
        case("", "checksum of six digits, NUL, blank", octal(|s| format!("{s:06o}\0 "))),
        case("", "checksum of six digits, two NULs", octal(|s| format!("{s:06o}\0\0"))),
        case("", "checksum of seven digits, NUL", octal(|s| format!("{s:07o}\0"))),
        case("", "checksum of seven digits, blank", octal(|s| format!("{s:07o} "))),
        case("", "checksum of eight digits", octal(|s| format!("{s:08o}"))),
        case("", "checksum after blanks", octal(|s| format!("{s:6o}\0 "))),
        case("", "checksum between blanks", octal(|s| format!("{s:7o} "))),
        case("", "bytes from 0x80 on without sign", tar(&[file(b"\xff\xfe", "x")])),
        case("checksum", "bytes from 0x80 on with sign", high(512)),
        case("checksum", "in binary", summed(|s| [&[0x80, 0, 0, 0][..], &s.to_be_bytes()].concat())),
        case("checksum", "in decimal", octal(|s| format!("{s:06}\0 "))),
        case("checksum", "one more", octal(|s| format!("{:06o}\0 ", s + 1))),
        case("checksum", "one less", octal(|s| format!("{:06o}\0 ", s - 1))),
        case("checksum", "with its own bytes as NULs", octal(|s| format!("{:06o}\0 ", s - 256))),
        case("checksum", "zero", octal(|_| "000000\0 ".to_owned())),
        case("checksum", "empty", octal(|_| "\0\0\0\0\0\0\0\0".to_owned())),
        case("checksum", "in blanks", octal(|_| "        ".to_owned())),
        case("checksum", "with a minus", octal(|s| format!("-{s:05o}\0 "))),
        case("checksum", "with text behind", octal(|s| format!("{s:05o}\0xx"))),
    ]
}
