//! Sizes that two headers give, and sparse files: what makes programs disagree about where the next header lies.

use crate::case::{Case, accepted, case, entries};
use crate::common::*;

/// An archive within a file's bytes, as CVE-2025-62518 has it.
fn inner() -> Vec<u8> {
    headers(&[file("inner", "hidden"), symlink("inner-link", "../../../outside")])
}

fn size(bytes: impl ToString) -> Vec<u8> {
    record("size", bytes.to_string())
}

pub(crate) fn sizes() -> Vec<Case> {
    let nested = inner();
    let whole = tar(&[file("inner", "hidden")]);
    let holds = |head: H, bytes: &[u8]| {
        let mut head = head;
        head.data = bytes.to_vec();
        head
    };
    vec![
        accepted("the same size twice", &[pax(size(1)), file("a", "x")]),
        accepted("size 0 twice", &[pax(size(0)), file("a", ""), file("b", "x")]),
        accepted("size 0 by PAX on a directory", &[pax(size(0)), dir("d/")]),
        accepted("an archive as a file's bytes", &[file("a.tar", &nested), file("b", "x")]),
        accepted("a whole archive as a file's bytes", &[file("a.tar", &whole), file("b", "x")]),
        accepted(
            "an archive as a file's bytes, size twice",
            &[pax(size(nested.len())), file("a.tar", &nested)],
        ),
        accepted("blocks of zeros as a file's bytes", &[file("a", vec![0; 4096]), file("b", "x")]),
        entries(
            "size_disagrees",
            "PAX hides an archive",
            &[pax(size(nested.len())), holds(file("a", ""), &nested)],
        ),
        entries(
            "size_disagrees",
            "PAX shows an archive",
            &[pax(size(0)), file("a", &nested), file("b", "x")],
        ),
        entries("size_disagrees", "PAX ends within an archive", &[pax(size(512)), file("a", &nested)]),
        entries("size_disagrees", "PAX hides the end", &[pax(size(1536)), file("a", ""), file("b", "x")]),
        entries(
            "size_disagrees",
            "PAX hides one more entry",
            &[pax(size(1024)), file("a", "x"), file("b", "y")],
        ),
        entries(
            "size_disagrees",
            "PAX of 8 GiB over a header's 1",
            &[pax(size(1_u64 << 33)), file("a", "x")],
        ),
        entries(
            "size_disagrees",
            "PAX just below 8 GiB over 0",
            &[pax(size((1_u64 << 33) - 1)), file("a", "")],
        ),
        entries("size_disagrees", "PAX of one over 0", &[pax(size(1)), file("a", "")]),
        entries(
            "size_disagrees",
            "PAX over a binary header",
            &[
                pax(size(1024)),
                file("a", "x").put(124, [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
                file("b", "y"),
            ],
        ),
        entries("truncated", "PAX of 8 GiB over 0", &[pax(size(1_u64 << 33)), file("a", "")]),
        entries("field", "PAX over a header's -1", &[pax(size(1)), file("a", "x").put(124, [0xff; 12])]),
        entries("pax_malformed", "size -1", &[pax(size(-1)), file("a", "x")]),
        entries("pax_malformed", "size 01", &[pax(size("01")), file("a", "x")]),
        entries("pax_malformed", "size 1.0", &[pax(size("1.0")), file("a", "x")]),
        entries("pax_malformed", "size 1 and a blank", &[pax(size("1 ")), file("a", "x")]),
        entries("pax_malformed", "size 1 and NUL", &[pax(record("size", "1\0")), file("a", "x")]),
        entries("pax_malformed", "size of 2^64", &[pax(size("18446744073709551616")), file("a", "x")]),
        entries("size_disagrees", "size of 2^63", &[pax(size("9223372036854775808")), file("a", "x")]),
        entries("field", "size of 2^63 over 0", &[pax(size("9223372036854775808")), file("a", "")]),
        entries("field", "size of 2^64-1 over 0", &[pax(size("18446744073709551615")), file("a", "")]),
        entries(
            "size_on_empty",
            "a directory that hides an archive",
            &[holds(dir("d/").size(nested.len() as u64), &nested)],
        ),
        entries(
            "size_on_empty",
            "a symlink that hides an archive",
            &[holds(symlink("l", "a").size(nested.len() as u64), &nested)],
        ),
        entries(
            "size_on_empty",
            "a hard link that hides an archive",
            &[file("a", "x"), holds(hardlink("l", "a").size(nested.len() as u64), &nested)],
        ),
        entries(
            "size_on_empty",
            "a hard link with its file's size",
            &[file("a", "x"), hardlink("l", "a").size(1)],
        ),
        entries(
            "size_disagrees",
            "a hard link with its file's size by PAX",
            &[file("a", "x"), pax(size(1)), hardlink("l", "a")],
        ),
        entries("size_on_empty", "a FIFO with data", &[H::new(b'6', "p").data("x")]),
        entries("size_on_empty", "a directory by its slash with data", &[H::new(0, "d/").data(&nested)]),
        entries(
            "size_on_empty",
            "a directory by a long name's slash with data",
            &[long(b'L', "d/"), H::new(0, "d").gnu().data(&nested)],
        ),
        entries(
            "size_on_empty",
            "a directory by a PAX path's slash with data",
            &[pax(record("path", "d/")), H::new(0, "d").data(&nested)],
        ),
        case(
            "size_disagrees",
            "gzip of a hidden archive",
            gzip(&tar(&[pax(size(1024)), file("a", ""), file("b", "x")])),
        ),
        case(
            "size_disagrees",
            "zstd of a hidden archive",
            zst(&tar(&[pax(size(1024)), file("a", ""), file("b", "x")])),
        ),
    ]
}

/// A GNU header with a map of two parts: (offset, bytes) each.
fn gnu_sparse(map: &[(u64, u64)], real: u64, data: &[u8]) -> H {
    let mut header = H::new(b'S', "sparse").gnu().data(data);
    for (at, (offset, bytes)) in map.iter().enumerate() {
        let text = format!("{offset:011o}\0{bytes:011o}\0");
        header = header.put(386 + 24 * at, text);
    }
    header.put(483, format!("{real:011o}\0"))
}

pub(crate) fn sparse() -> Vec<Case> {
    let key = |name: &str, value: &str| record(&format!("GNU.sparse.{name}"), value);
    let file1 = |records: Vec<u8>| vec![pax(records), file("GNUSparseFile.0/a", "abcd")];
    let v00 = [
        key("size", "4096"),
        key("numblocks", "2"),
        key("offset", "0"),
        key("numbytes", "2"),
        key("offset", "1024"),
        key("numbytes", "2"),
    ];
    let v01 = [key("size", "4096"), key("numblocks", "2"), key("map", "0,2,1024,2"), key("name", "a")];
    let v10 = [key("major", "1"), key("minor", "0"), key("name", "a"), key("realsize", "4096")];
    let mut map = b"2\n0\n2\n1024\n2\n".to_vec();
    map.resize(512, 0);
    map.extend(b"abcd");
    let with_map = |records: Vec<u8>, map: &[u8]| vec![pax(records), file("GNUSparseFile.0/a", map)];
    let negative = [0xff_u8; 12];
    let extended = {
        // Sixteen more parts in a block of their own.
        let mut header = gnu_sparse(&[(0, 1), (512, 1), (1024, 1), (2048, 1)], 4096, b"").put(482, [1]);
        header.data = vec![0; 512];
        header.data.extend(b"abcd");
        header
    };
    vec![
        entries("header_format", "GNU, one hole", &[gnu_sparse(&[], 4096, b"")]),
        entries("header_format", "GNU, two parts", &[gnu_sparse(&[(0, 2), (1024, 2)], 4096, b"abcd")]),
        entries(
            "header_format",
            "GNU, parts that overlap",
            &[gnu_sparse(&[(0, 4), (2, 2)], 4096, b"abcdef")],
        ),
        entries("header_format", "GNU, a part beyond the end", &[gnu_sparse(&[(1 << 32, 4)], 8, b"abcd")]),
        entries("header_format", "GNU, fewer bytes than parts", &[gnu_sparse(&[(0, 1024)], 4096, b"ab")]),
        entries(
            "header_format",
            "GNU, negative offset",
            &[gnu_sparse(&[(0, 2)], 4096, b"ab").put(386, negative)],
        ),
        entries(
            "header_format",
            "GNU, negative real size",
            &[gnu_sparse(&[(0, 2)], 4096, b"ab").put(483, negative)],
        ),
        entries("header_format", "GNU, more parts in the next block", std::slice::from_ref(&extended)),
        entries("header_format", "GNU, next block is a header", &[extended, file("b", "x")]),
        entries("sparse", "GNU type in a ustar header", &[H::new(b'S', "a").data("abcd")]),
        entries("sparse", "GNU type in a v7 header", &[H::new(b'S', "a").v7().data("abcd")]),
        entries("sparse", "GNU type with a long name", &[long(b'L', "b"), H::new(b'S', "a").gnu()]),
        entries("sparse", "PAX 0.0", &file1(v00.concat())),
        entries("sparse", "PAX 0.1", &file1(v01.concat())),
        entries("sparse", "PAX 0.1, map of one number", &file1([key("size", "4"), key("map", "0")].concat())),
        entries("sparse", "PAX 0.1, map with text", &file1([key("size", "4"), key("map", "a,b")].concat())),
        entries("sparse", "PAX 1.0", &with_map(v10.concat(), &map)),
        entries("sparse", "PAX 1.0, map without numbers", &with_map(v10.concat(), b"abcd")),
        entries("sparse", "PAX 1.0, map of 2^63 parts", &with_map(v10.concat(), b"9223372036854775808\n")),
        entries("sparse", "PAX 1.0, negative parts", &with_map(v10.concat(), b"1\n-1\n-1\n")),
        entries("sparse", "PAX 1.0, no map", &file1(v10.concat())),
        entries("sparse", "PAX 2.0", &file1([key("major", "2"), key("minor", "0")].concat())),
        entries("sparse", "PAX, real name elsewhere", &file1(key("name", "../victim"))),
        entries("sparse", "PAX, real size alone", &file1(key("realsize", "4096"))),
        entries("sparse", "PAX, a key that nobody has", &file1(key("other", "1"))),
        entries("sparse", "PAX on a directory", &[pax(key("major", "1")), dir("d/")]),
        entries("sparse", "PAX with a size that disagrees", &file1([key("major", "1"), size(4096)].concat())),
        entries("sparse", "star's real size", &file1(record("SCHILY.realsize", "4096"))),
        entries("pax_key", "star's other sparse key", &file1(record("SCHILY.sparse", "1"))),
        entries("pax_key", "sparse key in small letters", &file1(record("gnu.sparse.major", "1"))),
        entries("pax_global", "sparse for all", &[H::new(b'g', "g").data(key("major", "1")), file("a", "x")]),
    ]
}
