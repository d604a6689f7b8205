//! PAX and GNU extension headers.

use crate::case::{Case, OUT, accepted, accepted_image, entries, image};
use crate::common::*;

fn on(records: &[Vec<u8>]) -> Vec<H> {
    vec![pax(records.concat()), file("a", "x"), file("b", "y")]
}

fn one(key: &str, value: impl AsRef<[u8]>) -> Vec<H> {
    on(&[record(key, value)])
}

fn global(records: impl AsRef<[u8]>) -> H {
    H::new(b'g', "pax_global_header").data(records)
}

pub(crate) fn pax_headers() -> Vec<Case> {
    let linked = |records: Vec<u8>| vec![file("f", "x"), pax(records), hardlink("h", "f")];
    vec![
        accepted("PAX without records", &[pax(""), file("a", "x")]),
        accepted("PAX path over the header's", &one("path", "p/q")),
        accepted("PAX path over a prefix", &[pax(record("path", "p")), file("a", "x").put(345, "pre")]),
        accepted("PAX path over an absolute name", &[pax(record("path", "p")), file("/etc/passwd", "x")]),
        accepted("PAX path of 300 bytes", &one("path", "directory/".repeat(30) + "f")),
        accepted("PAX path with an equals sign", &one("path", "a=b=c")),
        accepted("PAX path with a newline", &one("path", "a\nb")),
        accepted("PAX path like a record", &one("path", "x\n9 path=c")),
        accepted("PAX path in UTF-8", &one("path", "日本/ö")),
        accepted("PAX path with ./", &one("path", "./p")),
        accepted("PAX path of a directory", &[pax(record("path", "p/")), dir("a/")]),
        accepted("PAX path of a directory without slash", &[pax(record("path", "p")), dir("a/")]),
        accepted("PAX linkpath of a symlink", &[pax(record("linkpath", "/any/where")), symlink("l", "x")]),
        accepted(
            "PAX linkpath of a symlink, 300 bytes",
            &[pax(record("linkpath", "../".repeat(100))), symlink("l", "x")],
        ),
        accepted("PAX linkpath of a hard link", &linked(record("linkpath", "f"))),
        accepted("PAX path where the header has none", &[pax(record("path", "p")), file("", "x")]),
        entries(
            "link_target",
            "PAX linkpath where the header has none",
            &[pax(record("linkpath", "t")), symlink("l", "")],
        ),
        entries(
            "link_target",
            "GNU target where the header has none",
            &[long(b'K', "t"), symlink("l", "").gnu()],
        ),
        entries(
            "link_target",
            "PAX linkpath of a hard link where the header has none",
            &[file("f", "x"), pax(record("linkpath", "f")), hardlink("h", "")],
        ),
        accepted("PAX times with fractions", &on(&[record("mtime", "1.123456789"), record("atime", "2.5")])),
        accepted("PAX time with twenty digits of fraction", &one("mtime", "1.12345678901234567890")),
        accepted("PAX time before 1970", &one("mtime", "-1.5")),
        accepted(
            "PAX owners",
            &on(&[record("uid", "0"), record("gid", "0"), record("uname", "r"), record("gname", "w")]),
        ),
        accepted("PAX comment with NUL and newline", &one("comment", "a\0b\nc")),
        accepted(
            "PAX hdrcharset UTF-8",
            &on(&[record("hdrcharset", "ISO-IR 10646 2000 UTF-8"), record("path", "ö")]),
        ),
        accepted(
            "PAX hdrcharset binary",
            &on(&[record("hdrcharset", "BINARY"), record("path", b"\xff\xfe")]),
        ),
        accepted(
            "PAX hdrcharset behind the path",
            &on(&[record("path", b"\xff\xfe"), record("hdrcharset", "BINARY")]),
        ),
        accepted("PAX attributes of star", &one("SCHILY.xattr.user.a", b"\0\xff=\n")),
        accepted("PAX attributes of libarchive", &one("LIBARCHIVE.xattr.user.a", "AAEC")),
        accepted("PAX attributes of libarchive, not base 64", &one("LIBARCHIVE.xattr.user.a", "%%%")),
        accepted("PAX capability", &one("SCHILY.xattr.security.capability", [1, 0, 0, 2, 0, 4, 0, 0])),
        accepted("PAX opaque mark of overlayfs", &one("SCHILY.xattr.trusted.overlay.opaque", "y")),
        accepted("PAX redirect of overlayfs", &one("SCHILY.xattr.trusted.overlay.redirect", "/../../victim")),
        accepted("PAX flags", &one("SCHILY.fflags", "nodump")),
        accepted(
            "PAX inode and device of star",
            &on(&[record("SCHILY.dev", "1"), record("SCHILY.ino", "2")]),
        ),
        accepted(
            "PAX header with a name that leads out",
            &[H::new(b'x', "../../victim").data(record("path", "p")), file("a", "x")],
        ),
        accepted(
            "PAX header with an absolute name",
            &[H::new(b'x', "/etc/passwd").data(record("path", "p")), file("a", "x")],
        ),
        accepted("PAX header in v7", &[H::new(b'x', "x").v7().data(record("path", "p")), file("a", "x")]),
        accepted("PAX header in GNU", &[pax(record("path", "p")).gnu(), file("a", "x").gnu()]),
        accepted("PAX header of a v7 file", &[pax(record("path", "p")), file("a", "x").v7()]),
        accepted("PAX header of exactly a block", &one("comment", vec![b'c'; 499])),
        accepted(
            "global comments",
            &[global(record("comment", "1")), file("a", "x"), global(record("comment", "2")), file("b", "y")],
        ),
        accepted("global header without records", &[global(""), file("a", "x")]),
        accepted(
            "global comment before PAX",
            &[global(record("comment", "1")), pax(record("path", "p")), file("a", "x")],
        ),
        accepted(
            "16 global comments",
            &[vec![global(record("comment", "1")); 16], vec![file("a", "x")]].concat(),
        ),
        entries(
            "extensions_conflict",
            "17 global comments",
            &[vec![global(record("comment", "1")); 17], vec![file("a", "x")]].concat(),
        ),
        entries(
            "extensions_conflict",
            "200 global comments",
            &[vec![global(record("comment", "1")); 200], vec![file("a", "x")]].concat(),
        ),
        accepted_image("PAX time of the year 3000", &one("mtime", "32503680000")),
        accepted_image("PAX time before 1970 in an image", &one("mtime", "-1.25")),
        accepted_image("PAX owners in an image", &on(&[record("uid", "1000"), record("gid", "65535")])),
        image("owner_too_large", "PAX uid 65536", &one("uid", "65536")),
        image("pax_malformed", "PAX gid of 2^63", &one("gid", "9223372036854775808")),
        image("pax_malformed", "PAX uid of -1", &one("uid", "-1")),
        entries("pax_malformed", "path that is no UTF-8", &one("path", b"\xff")),
        entries("pax_malformed", "path in Latin 1", &one("path", b"caf\xe9")),
        entries("pax_malformed", "path of a surrogate", &one("path", b"\xed\xa0\x80")),
        entries("pax_malformed", "owner that is no UTF-8", &one("uname", b"\xff")),
        entries(
            "pax_malformed",
            "target that is no UTF-8",
            &[pax(record("linkpath", b"\xff")), symlink("l", "x")],
        ),
        entries("pax_malformed", "time of 2^64", &one("mtime", "18446744073709551616")),
        entries("pax_malformed", "time with two points", &one("mtime", "1.2.3")),
        entries("pax_malformed", "time with a point alone", &one("mtime", "1.")),
        entries("pax_malformed", "time of nothing", &one("mtime", "")),
        entries("pax_malformed", "time with a plus", &one("mtime", "+1")),
        entries("pax_malformed", "time minus minus", &one("mtime", "--1")),
        entries("pax_malformed", "mtime twice", &on(&[record("mtime", "1"), record("mtime", "1")])),
        entries("pax_malformed", "comment twice", &on(&[record("comment", "1"), record("comment", "1")])),
        entries(
            "pax_malformed",
            "linkpath twice",
            &[pax([record("linkpath", "a"), record("linkpath", "b")].concat()), symlink("l", "c")],
        ),
        entries("pax_malformed", "length without blank", &[pax("10=path=a\n"), file("a", "x")]),
        entries("pax_malformed", "two blanks behind the length", &[pax("10  path=a\n"), file("a", "x")]),
        entries("pax_malformed", "blank before the length", &[pax(" 9 path=a\n"), file("a", "x")]),
        entries("pax_malformed", "length in hexadecimal", &[pax("0xb path=ab\n"), file("a", "x")]),
        entries("pax_malformed", "length one short", &[pax("10 path=abc\n"), file("a", "x")]),
        entries("pax_malformed", "length one long", &[pax("13 path=abc\n9 path=d\n"), file("a", "x")]),
        entries("pax_malformed", "record ends in NUL", &[pax("9 path=a\0"), file("a", "x")]),
        entries("pax_malformed", "newlines between", &[pax("9 path=a\n\n9 path=b\n"), file("a", "x")]),
        entries(
            "pax_malformed",
            "a record in the padding",
            &[pax("9 path=a\n").data("9 path=a\n9 pa"), file("a", "x")],
        ),
        entries("pax_malformed", "hdrcharset of ISO 8859", &one("hdrcharset", "ISO-IR 8859 1 1998")),
        entries("pax_malformed", "hdrcharset of nothing", &one("hdrcharset", "")),
        entries("pax_malformed", "hdrcharset in small letters", &one("hdrcharset", "binary")),
        entries("pax_key", "ACL of star", &one("SCHILY.acl.access", "user::rwx")),
        entries("pax_key", "default ACL of star", &one("SCHILY.acl.default", "user::rwx")),
        entries("pax_key", "NFS 4 ACL", &one("SCHILY.acl.ace", "owner@:rwx")),
        entries("pax_key", "kind of file of star", &one("SCHILY.filetype", "dir")),
        entries("pax_key", "SELinux label", &one("RHT.security.selinux", "system_u:object_r:etc_t:s0")),
        entries("pax_key", "Solaris attributes", &one("SUN.holesdata", "0 0 1")),
        entries("pax_key", "device of star", &one("SCHILY.devmajor", "1")),
        entries("pax_key", "path in capitals", &one("PATH", "b")),
        entries("pax_key", "path with a blank", &one("path ", "b")),
        entries("pax_key", "path with NUL", &one("path\0", "b")),
        entries("pax_key", "key in UTF-8", &one("größe", "b")),
        entries("pax_key", "GNU volume", &one("GNU.volume.offset", "512")),
        entries("pax_key", "GNU dump directory by PAX", &one("GNU.dumpdir", "Ya")),
        entries("pax_key", "an owner for all keys", &one("org.example.key", "b")),
        entries(
            "pax_global",
            "path in a comment's company",
            &[global([record("comment", "1"), record("path", "p")].concat()), file("a", "x")],
        ),
        entries("pax_global", "mtime for all", &[global(record("mtime", "1")), file("a", "x")]),
        entries("pax_global", "linkpath for all", &[global(record("linkpath", "/etc")), symlink("l", "a")]),
        entries("pax_global", "uid for all", &[global(record("uid", "0")), file("a", "x")]),
        entries(
            "pax_global",
            "hdrcharset for all",
            &[global(record("hdrcharset", "BINARY")), file("a", "x")],
        ),
        entries(
            "pax_global",
            "attribute for all",
            &[global(record("SCHILY.xattr.user.a", "1")), file("a", "x")],
        ),
        entries("pax_malformed", "global without equals", &[global("8 commen\n"), file("a", "x")]),
        entries(
            "absolute_path",
            "PAX path that is absolute, header that is not",
            &one("path", "/etc/cron.d/x"),
        ),
        entries("parent_path", "PAX path that leads out", &one("path", format!("{OUT}/new"))),
        entries("parent_path", "PAX path of dots and slashes", &one("path", "a/./..//b")),
        entries("slash_on_file", "PAX path with a slash on a file", &one("path", "p/")),
        entries("nul_in_name", "PAX path with NUL at its end", &one("path", "p\0")),
        entries(
            "hard_link_outside",
            "PAX linkpath that is absolute",
            &linked(record("linkpath", "/etc/passwd")),
        ),
        entries(
            "hard_link_outside",
            "PAX linkpath that leads out",
            &linked(record("linkpath", "../../../victim")),
        ),
        entries(
            "extension_dangles",
            "global, then PAX, then the end",
            &[global(record("comment", "1")), pax(record("path", "p"))],
        ),
        entries(
            "extensions_conflict",
            "PAX without records, then PAX",
            &[pax(""), pax(record("path", "p")), file("a", "x")],
        ),
    ]
}

pub(crate) fn gnu_headers() -> Vec<Case> {
    let raw = |flag: u8, bytes: &[u8]| H::new(flag, "././@LongLink").gnu().data(bytes);
    let named = |bytes: &[u8]| vec![raw(b'L', bytes), file("short", "x").gnu()];
    let linked = |bytes: &[u8]| vec![raw(b'K', bytes), symlink("l", "short").gnu()];
    let long_name = |length: usize| {
        let mut name = b"d".repeat(200);
        while name.len() < length {
            name.push(if name.len() % 201 == 200 { b'/' } else { b'n' });
        }
        name
    };
    vec![
        accepted("GNU name without NUL", &named(b"long")),
        accepted("GNU name with one NUL", &named(b"long\0")),
        accepted("GNU name with many NULs", &named(b"long\0\0\0\0\0\0")),
        accepted("GNU name of 511 bytes and NUL", &named(&[&long_name(511)[..], b"\0"].concat())),
        accepted("GNU name of 512 bytes and NUL", &named(&[&long_name(512)[..], b"\0"].concat())),
        accepted("GNU name of 512 bytes without NUL", &named(&long_name(512))),
        accepted("GNU name of 513 bytes", &named(&[&long_name(513)[..], b"\0"].concat())),
        accepted("GNU name with a newline", &named(b"a\nb\0")),
        accepted("GNU name with ./", &named(b"./long\0")),
        accepted("GNU name shorter than the header's", &named(b"s\0")),
        accepted("GNU name of a directory", &[long(b'L', "long/"), dir("short/").gnu()]),
        accepted("GNU name of a directory without slash", &[long(b'L', "long"), dir("short/").gnu()]),
        accepted("GNU name of a file by type NUL", &[long(b'L', "long"), H::new(0, "short").gnu().data("x")]),
        accepted("GNU name of a directory by its slash", &[long(b'L', "long/"), H::new(0, "short/").gnu()]),
        accepted("GNU name in a ustar header", &[H::new(b'L', "x").data("long\0"), file("short", "x")]),
        accepted(
            "GNU name in a v7 header",
            &[H::new(b'L', "x").v7().data("long\0"), file("short", "x").v7()],
        ),
        accepted("GNU name over a ustar prefix", &[long(b'L', "long"), file("short", "x").put(345, "pre")]),
        accepted(
            "GNU name in a header with another name",
            &[H::new(b'L', "../victim").gnu().data("long\0"), file("s", "x").gnu()],
        ),
        accepted("GNU target without NUL", &linked(b"target")),
        accepted("GNU target of 600 bytes", &linked(&[&long_name(600)[..], b"\0"].concat())),
        accepted(
            "GNU target of a hard link",
            &[file("f", "x").gnu(), raw(b'K', b"f\0"), hardlink("h", "nowhere").gnu()],
        ),
        accepted(
            "GNU target, then name",
            &[long(b'K', "target"), long(b'L', "name"), symlink("a", "b").gnu()],
        ),
        accepted(
            "GNU name, then target",
            &[long(b'L', "name"), long(b'K', "target"), symlink("a", "b").gnu()],
        ),
        accepted(
            "global comment before a GNU name",
            &[global(record("comment", "1")), long(b'L', "long"), file("a", "x").gnu()],
        ),
        entries("empty_name", "GNU name of nothing", &named(b"")),
        entries("empty_name", "GNU name of one NUL", &named(b"\0")),
        entries("empty_name", "GNU name of many NULs", &named(&[0; 600])),
        entries("link_target", "GNU target of nothing", &linked(b"")),
        entries("link_target", "GNU target of one NUL", &linked(b"\0")),
        entries("nul_in_name", "GNU name with NUL inside", &named(b"lo\0ng\0")),
        entries("nul_in_name", "GNU name with NUL first", &named(b"\0long\0")),
        entries("nul_in_name", "GNU target with NUL inside", &linked(b"tar\0get\0")),
        entries("path_too_long", "GNU name of 8191 bytes", &named(&[&long_name(8191)[..], b"\0"].concat())),
        entries(
            "extension_too_large",
            "GNU name of 8193 bytes",
            &named(&[&long_name(8192)[..], b"\0"].concat()),
        ),
        entries(
            "extension_too_large",
            "GNU name of 2^40",
            &[H::new(b'L', "l").gnu().put(124, [0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0])],
        ),
        entries("field", "GNU name of -1", &[H::new(b'L', "l").gnu().put(124, [0xff; 12])]),
        entries("truncated", "GNU name that ends with the archive", &[raw(b'L', b"long").size(4096)]),
        entries("extensions_conflict", "GNU target on a directory", &[long(b'K', "t"), dir("d/").gnu()]),
        entries(
            "extensions_conflict",
            "GNU name, then global",
            &[long(b'L', "n"), global(record("comment", "1")), file("a", "x").gnu()],
        ),
        entries(
            "extensions_conflict",
            "GNU target, then PAX",
            &[long(b'K', "n"), pax(record("path", "p")), symlink("l", "t")],
        ),
        entries(
            "extensions_conflict",
            "PAX, then GNU target",
            &[pax(record("path", "p")), long(b'K', "n"), symlink("l", "t")],
        ),
        entries("extension_dangles", "GNU target at the end", &[file("a", "x"), long(b'K', "n")]),
        entries("slash_on_file", "GNU name with a slash on a file", &named(b"long/\0")),
        entries("absolute_path", "GNU name that is absolute", &named(b"//etc/passwd\0")),
        entries("parent_path", "GNU name that leads out", &named(b"a/../../victim\0")),
        entries("too_deep", "GNU name of 300 components", &named(&b"d/".repeat(300))),
    ]
}
