//! Good archives of every kind, and the trees that they give.

use crate::common::*;

/// Archives and the tree that they give, as [`listing`] says it.
#[allow(clippy::too_many_lines, clippy::type_complexity)] // a table
pub(crate) fn good() -> Vec<(&'static str, Vec<u8>, Vec<(&'static str, &'static str)>)> {
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4], &zst(&tar(&[file("a", "x")]))[..]];
    let whole = tar(&[file("a", "x"), file("b", "y")]);
    let (one, two) = whole.split_at(700);
    let pax_all = [
        record("path", "p"),
        record("mtime", "1.25"),
        record("atime", "-7"),
        record("ctime", "3"),
        record("size", "1"),
        record("uid", "4000000"),
        record("gid", "1000"),
        record("uname", "josé"),
        record("gname", ""),
        record("comment", "any"),
        record("charset", "ISO-IR 10646 2000 UTF-8"),
        record("hdrcharset", "BINARY"),
        record("SCHILY.xattr.security.capability", b"\x01\0\0\x02=\n\xff"),
        record("SCHILY.xattr.user.overlay.opaque", "y"),
        record("LIBARCHIVE.creationtime", "1"),
        record("SCHILY.dev", "1"),
        record("SCHILY.ino", "2"),
        record("SCHILY.nlink", "3"),
        record("SCHILY.fflags", "nodump"),
    ];
    vec![
        ("empty", tar(&[]), vec![]),
        ("root alone", tar(&[dir("./")]), vec![]),
        (
            "modes",
            tar(&[
                file("r", "x").mode(0o400),
                file("x", "x").mode(0o700),
                file("suid", "x").mode(0o6755),
                file("group", "x").mode(0o676),
                file("type", "x").put(100, "0100644\0"),
                dir("d/").mode(0o1777),
                dir("closed/").mode(0),
            ]),
            vec![
                ("closed", "d 0755"),
                ("d", "d 0755"),
                ("group", "f 0644 x"),
                ("r", "f 0644 x"),
                ("suid", "f 0755 x"),
                ("type", "f 0644 x"),
                ("x", "f 0755 x"),
            ],
        ),
        ("owners are dropped", tar(&[file("a", "x").owner(1000, 100_000)]), vec![("a", "f 0644 x")]),
        (
            "directories twice",
            tar(&[dir("d/"), file("d/a", "x"), dir("d"), dir("./d/."), file("d/b", "y")]),
            vec![("d", "d 0755"), ("d/a", "f 0644 x"), ("d/b", "f 0644 y")],
        ),
        (
            "implied parents",
            tar(&[file("a/b/c", "x"), file("a/d", "y"), dir("a/")]),
            vec![("a", "d 0755"), ("a/b", "d 0755"), ("a/b/c", "f 0644 x"), ("a/d", "f 0644 y")],
        ),
        (
            "spellings",
            tar(&[dir("./"), file("./a", "x"), file("b//c", "y"), file("b/./d", "z")]),
            vec![("a", "f 0644 x"), ("b", "d 0755"), ("b/c", "f 0644 y"), ("b/d", "f 0644 z")],
        ),
        ("case", tar(&[file("A", "1"), file("a", "2")]), vec![("A", "f 0644 1"), ("a", "f 0644 2")]),
        (
            "odd names",
            tar(&[
                file("new\nline", "1"),
                file(b"\xff\xfe", "2"),
                file("...", "3"),
                file(" ", "4"),
                file("-rf", "5"),
            ]),
            vec![
                (" ", "f 0644 4"),
                ("-rf", "f 0644 5"),
                ("...", "f 0644 3"),
                ("\\xff\\xfe", "f 0644 2"),
                ("new\\nline", "f 0644 1"),
            ],
        ),
        (
            "links",
            tar(&[
                symlink("abs", "/etc/passwd"),
                symlink("up", "../../x"),
                symlink("self", "self"),
                file("f", "x"),
                hardlink("h", "./f"),
                dir("d/"),
                hardlink("d/h", "h"),
            ]),
            vec![
                ("abs", "l /etc/passwd"),
                ("d", "d 0755"),
                ("d/h", "f 0644 x"),
                ("f", "f 0644 x"),
                ("h", "f 0644 x"),
                ("self", "l self"),
                ("up", "l ../../x"),
            ],
        ),
        (
            "version 7",
            tar(&[H::new(0, "d/").v7(), H::new(0, "d/f").v7().data("x"), H::new(b'2', "l").v7().link("d")]),
            vec![("d", "d 0755"), ("d/f", "f 0644 x"), ("l", "l d")],
        ),
        (
            "old numbers",
            tar(&[file("a", "x")
                .put(100, "   644 \0")
                .put(108, "  1750 \0")
                .put(116, [0; 8])
                .put(124, "          1 ")
                .put(136, [0; 12])]),
            vec![("a", "f 0644 x")],
        ),
        (
            "binary numbers",
            tar(&[file("a", "x").put(124, [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]).put(136, [0xff; 12])]),
            vec![("a", "f 0644 x")],
        ),
        (
            "ustar prefix",
            tar(&[dir("deep/"), file("f", "x").put(345, "deep/er")]),
            vec![("deep", "d 0755"), ("deep/er", "d 0755"), ("deep/er/f", "f 0644 x")],
        ),
        (
            "GNU long",
            tar(&[
                long(b'L', "long"),
                file("short", "x").gnu(),
                long(b'K', "target"),
                long(b'L', "link"),
                symlink("a", "b").gnu(),
            ]),
            vec![("link", "l target"), ("long", "f 0644 x")],
        ),
        (
            "PAX, all of it",
            tar(&[pax(pax_all.concat()), file("a", "x"), file("b", "y")]),
            vec![("b", "f 0644 y"), ("p", "f 0644 x")],
        ),
        (
            "git archive",
            tar(&[
                H::new(b'g', "pax_global_header").data(record("comment", "ab".repeat(20))),
                dir("d/"),
                file("d/f", "x"),
            ]),
            vec![("d", "d 0755"), ("d/f", "f 0644 x")],
        ),
        ("padding", [tar(&[file("a", "x")]), vec![0; 10_240]].concat(), vec![("a", "f 0644 x")]),
        ("odd padding", [tar(&[file("a", "x")]), vec![0; 3]].concat(), vec![("a", "f 0644 x")]),
        ("gzip", gzip(&tar(&[file("a", "x")])), vec![("a", "f 0644 x")]),
        ("gzip in members", [gzip(one), gzip(two)].concat(), vec![("a", "f 0644 x"), ("b", "f 0644 y")]),
        ("zstd", zst(&tar(&[file("a", "x")])), vec![("a", "f 0644 x")]),
        ("zstd in frames", [zst(one), zst(two)].concat(), vec![("a", "f 0644 x"), ("b", "f 0644 y")]),
        ("zstd after a skippable frame", skippable.concat(), vec![("a", "f 0644 x")]),
    ]
}
