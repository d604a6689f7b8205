//! Archives that are refused, by the rule that they break.

use crate::common::*;
use ampoule_spec::wire::Content;

/// From a staged tree to what lies beside the store. Escapes are aimed at the test's own directory: these tests run as
/// root too, and on the day containment breaks they must show it without doing what the archives want.
pub(crate) const OUT: &str = "../../../../outside";

pub(crate) struct Case {
    pub(crate) what: String,
    pub(crate) refusal: &'static str,
    pub(crate) source: Vec<u8>,
    pub(crate) content: Content,
}

pub(crate) fn case(refusal: &'static str, what: &str, source: Vec<u8>) -> Case {
    let content = archive(&source);
    Case { what: what.to_owned(), refusal, source, content }
}

pub(crate) fn entries(refusal: &'static str, what: &str, entries: &[H]) -> Case {
    case(refusal, what, tar(entries))
}

#[allow(dead_code)] // the corpus has its own
pub(crate) fn layer(refusal: &'static str, what: &str, entries: &[H]) -> Case {
    let source = tar(entries);
    let content = Content::OciLayer { sha256: sha(&source) };
    Case { what: what.to_owned(), refusal, source, content }
}

pub(crate) fn image(refusal: &'static str, what: &str, entries: &[H]) -> Case {
    let source = tar(entries);
    let content = Content::ImageTar { sha256: sha(&source) };
    Case { what: what.to_owned(), refusal, source, content }
}

pub(crate) fn names() -> Vec<Case> {
    let long_pax = |name: Vec<u8>| vec![pax(record("path", name)), file("short", "x")];
    vec![
        entries("absolute_path", "absolute file", &[file("/etc/passwd", "x")]),
        entries("absolute_path", "absolute directory", &[dir("/etc/")]),
        entries("absolute_path", "only slashes", &[dir("//")]),
        entries("absolute_path", "absolute by PAX", &long_pax(b"/etc/passwd".to_vec())),
        entries("absolute_path", "absolute by GNU long name", &[long(b'L', "/etc/passwd"), file("a", "x")]),
        entries("parent_path", "leading ..", &[file("../victim", "x")]),
        entries("parent_path", "inner ..", &[dir("a/"), file("a/../../victim", "x")]),
        entries("parent_path", ".. that stays inside", &[dir("a/"), file("a/../b", "x")]),
        entries("parent_path", "only ..", &[dir("..")]),
        entries("parent_path", "trailing ..", &[dir("a/..")]),
        entries("parent_path", ".. after ./", &[file("./../victim", "x")]),
        entries("parent_path", ".. in a ustar prefix", &[file("victim", "x").put(345, "a/..")]),
        entries("parent_path", ".. by PAX", &long_pax(b"../victim".to_vec())),
        entries("parent_path", ".. by GNU long name", &[long(b'L', "../victim"), file("a", "x")]),
        entries("parent_path", ".. as a symlink's name", &[symlink("..", "x")]),
        entries("nul_in_name", "NUL in the name field", &[file("a\0b", "x")]),
        entries("nul_in_name", "NUL in PAX path", &long_pax(b"a\0b".to_vec())),
        entries("nul_in_name", "NUL in GNU long name", &[long(b'L', "a\0b"), file("a", "x")]),
        entries("nul_in_name", "NUL in the prefix", &[file("a", "x").put(345, "p\0q")]),
        entries("empty_name", "empty name", &[file("", "x")]),
        entries("empty_name", "file named .", &[file(".", "x")]),
        entries("empty_name", "symlink named ./", &[symlink("./", "x")]),
        entries("empty_name", "empty GNU long name", &[long(b'L', ""), file("a", "x")]),
        entries("name_too_long", "256 bytes in a component", &long_pax(vec![b'n'; 256])),
        entries("name_too_long", "long directory above", &long_pax([&[b'n'; 256][..], b"/a"].concat())),
        entries("path_too_long", "4097 bytes", &long_pax(b"ab/".repeat(1366))),
        entries("path_too_long", "4097 bytes by GNU", &[long(b'L', b"ab/".repeat(1366)), file("a", "x")]),
        entries("too_deep", "65 components", &long_pax([&b"d/".repeat(64)[..], b"f"].concat())),
        entries("too_deep", "2000 components", &long_pax([&b"d/".repeat(2000)[..], b"f"].concat())),
        entries("slash_on_file", "file with a slash", &[file("a/", "x")]),
        entries("slash_on_file", "file with /.", &[file("a/.", "x")]),
        entries("slash_on_file", "symlink with a slash", &[symlink("a/", "b")]),
        entries("slash_on_file", "hard link with a slash", &[file("b", "x"), hardlink("a/", "b")]),
    ]
}

pub(crate) fn places() -> Vec<Case> {
    vec![
        entries("duplicate", "file twice", &[file("a", "1"), file("a", "2")]),
        entries("duplicate", "file twice, spelt differently", &[file("a", "1"), file("./a", "2")]),
        entries("duplicate", "file, then directory", &[file("a", "1"), dir("a/")]),
        entries("duplicate", "directory, then file", &[dir("a/"), file("a", "1")]),
        entries("duplicate", "symlink, then file", &[symlink("a", OUT), file("a", "1")]),
        entries("duplicate", "symlink, then directory", &[symlink("a", OUT), dir("a")]),
        entries("duplicate", "dangling symlink, then file", &[symlink("a", "../../victim"), file("a", "1")]),
        entries("duplicate", "file, then symlink", &[file("a", "1"), symlink("a", "b")]),
        entries("duplicate", "hard link over a file", &[file("a", "1"), file("b", "2"), hardlink("b", "a")]),
        entries("duplicate", "hard link to itself", &[file("a", "1"), hardlink("a", "a")]),
        entries("duplicate", "implied directory, then file", &[file("a/b", "1"), file("a", "2")]),
        entries("below_file", "file below a file", &[file("a", "1"), file("a/b", "2")]),
        entries("below_file", "directory below a file", &[file("a", "1"), dir("a/b/")]),
        entries("below_file", "deep below a file", &[file("a", "1"), file("a/b/c/d", "2")]),
        entries("through_symlink", "file through an absolute link", &[symlink("a", OUT), file("a/x", "2")]),
        entries("through_symlink", "through ..", &[symlink("a", "../../.."), file("a/victim", "2")]),
        entries("through_symlink", "inside the tree", &[dir("d/"), symlink("a", "d"), file("a/x", "2")]),
        entries("through_symlink", "directory through a link", &[symlink("a", OUT), dir("a/x/")]),
        entries("through_symlink", "symlink through a link", &[symlink("a", OUT), symlink("a/x", "y")]),
        entries(
            "through_symlink",
            "hard link through",
            &[file("f", "1"), symlink("a", OUT), hardlink("a/x", "f")],
        ),
        entries("through_symlink", "implied parent through a link", &[symlink("a", OUT), file("a/b/c", "2")]),
        entries(
            "through_symlink",
            "a link to a link",
            &[symlink("a", "b"), symlink("b", OUT), file("a/x", "2")],
        ),
        entries(
            "through_symlink",
            "a magic link",
            &[symlink("a", "/proc/self/root/nonexistent/ampoule"), file("a/x", "2")],
        ),
        entries("hard_link_missing", "to nothing", &[hardlink("a", "b")]),
        entries("hard_link_missing", "to a later entry", &[hardlink("a", "b"), file("b", "1")]),
        entries("hard_link_missing", "below a missing directory", &[hardlink("a", "d/b")]),
        entries("hard_link_missing", "to what lies beside", &[hardlink("a", "victim")]),
        entries("hard_link_outside", "absolute", &[hardlink("a", "/etc/passwd")]),
        entries("hard_link_outside", "..", &[hardlink("a", "../../../victim")]),
        entries("hard_link_outside", "inner ..", &[dir("d/"), hardlink("a", "d/../../x")]),
        entries(
            "hard_link_to_other",
            "to a symlink",
            &[symlink("s", format!("{OUT}/passwd")), hardlink("a", "s")],
        ),
        entries("hard_link_to_other", "through a symlink", &[symlink("s", OUT), hardlink("a", "s/passwd")]),
        entries("hard_link_to_other", "to a directory", &[dir("d/"), hardlink("a", "d")]),
        entries("hard_link_to_other", "to the root", &[hardlink("a", ".")]),
        entries("hard_link_to_other", "below a file", &[file("f", "1"), hardlink("a", "f/x")]),
        entries("link_target", "symlink to nothing", &[symlink("a", "")]),
        entries("link_target", "hard link to nothing", &[hardlink("a", "")]),
        entries("link_target", "symlink with NUL", &[symlink("a", "b\0c")]),
        entries("link_target", "NUL by PAX", &[pax(record("linkpath", "b\0c")), symlink("a", "b")]),
        entries(
            "link_too_long",
            "4096 bytes",
            &[pax(record("linkpath", vec![b't'; 4096])), symlink("a", "b")],
        ),
        entries("link_too_long", "4096 by GNU", &[long(b'K', vec![b't'; 4096]), symlink("a", "b")]),
    ]
}

pub(crate) fn types() -> Vec<Case> {
    let mut cases = vec![
        entries("special_file", "character device", &[H::new(b'3', "tty").put(329, "0000005\0")]),
        entries("special_file", "block device", &[H::new(b'4', "sda")]),
        entries("special_file", "FIFO", &[H::new(b'6', "fifo")]),
        entries("special_file", "device below dev in an input", &[H::new(b'3', "dev/null")]),
        image("special_file", "device outside dev in an image", &[H::new(b'3', "etc/null")]),
        image("special_file", "FIFO in an image", &[H::new(b'6', "run/fifo")]),
        entries("sparse", "GNU type S", &[H::new(b'S', "a").gnu()]),
        entries("sparse", "GNU.sparse 0.0", &[pax(record("GNU.sparse.numblocks", "1")), file("a", "x")]),
        entries("sparse", "GNU.sparse 1.0", &[pax(record("GNU.sparse.major", "1")), file("a", "x")]),
        entries("sparse", "GNU.sparse.realsize", &[pax(record("GNU.sparse.realsize", "99")), file("a", "x")]),
        entries("sparse", "GNU.sparse.name", &[pax(record("GNU.sparse.name", "/etc/x")), file("a", "x")]),
        entries("sparse", "star's real size", &[pax(record("SCHILY.realsize", "99")), file("a", "x")]),
        entries("size_on_empty", "directory with data", &[dir("a/").data("x")]),
        entries("size_on_empty", "symlink with data", &[symlink("a", "b").data("x")]),
        entries("size_on_empty", "hard link with data", &[file("b", "x"), hardlink("a", "b").data("x")]),
        entries("size_on_empty", "old directory with data", &[H::new(0, "a/").v7().data("x")]),
        entries(
            "size_on_empty",
            "directory with a PAX size",
            &[pax(record("size", "512")), dir("a/").size(512)],
        ),
        entries("size_on_empty", "device with data", &[H::new(b'3', "a").data("x")]),
    ];
    for flag in *b"789ADMNVXEIz?~\x01\xff" {
        let what = format!("type {}", [flag].escape_ascii());
        cases.push(entries("unknown_type", &what, &[H::new(flag, "a").data("x")]));
    }
    cases
}

pub(crate) fn extensions() -> Vec<Case> {
    let with = |records: &[u8]| vec![pax(records), file("a", "x")];
    let mut cases = vec![
        entries("size_disagrees", "PAX larger", &[pax(record("size", "1024")), file("a", "x")]),
        entries("size_disagrees", "PAX smaller", &[pax(record("size", "0")), file("a", "x")]),
        // CVE-2025-62518: who believes the header reads the data as further headers
        entries(
            "size_disagrees",
            "header 0 hides an archive",
            &[pax(record("size", "1024")), file("a", ""), file("inner", "x"), dir("b/")],
        ),
        entries("pax_malformed", "no newline", &with(b"6 a=bc")),
        entries("pax_malformed", "length too long", &with(b"99 path=a\n")),
        entries("pax_malformed", "length too short", &with(b"5 path=a\n")),
        entries("pax_malformed", "length 0", &with(b"0 path=a\n")),
        entries("pax_malformed", "negative length", &with(b"-9 path=a\n")),
        entries("pax_malformed", "length with zeros before", &with(b"010 path=a\n")),
        entries("pax_malformed", "length beyond 64 bits", &with(b"99999999999999999999 path=a\n")),
        entries("pax_malformed", "no equals", &with(b"9 pathaa\n")),
        entries("pax_malformed", "empty key", &with(b"5 =b\n")),
        entries("pax_malformed", "key twice", &with(&[record("path", "a"), record("path", "b")].concat())),
        entries("pax_malformed", "size twice", &with(&[record("size", "1"), record("size", "9")].concat())),
        entries("pax_malformed", "NULs at the end", &with(b"9 path=a\n\0\0\0")),
        entries("pax_malformed", "empty path", &with(&record("path", ""))),
        entries("pax_malformed", "empty linkpath", &[pax(record("linkpath", "")), symlink("a", "b")]),
        entries("pax_malformed", "empty size", &with(&record("size", ""))),
        entries("pax_malformed", "size with sign", &with(&record("size", "+1"))),
        entries("pax_malformed", "size in hex", &with(&record("size", "0x1"))),
        entries("pax_malformed", "size with spaces", &with(&record("size", " 1"))),
        entries("pax_malformed", "size beyond 64 bits", &with(&record("size", "99999999999999999999"))),
        entries("pax_malformed", "odd mtime", &with(&record("mtime", "1e9"))),
        entries("pax_malformed", "odd atime", &with(&record("atime", "now"))),
        entries("pax_malformed", "odd uid", &with(&record("uid", "root"))),
        entries("pax_malformed", "unknown hdrcharset", &with(&record("hdrcharset", "UTF-16"))),
    ];
    for key in
        ["GNU.volume.filename", "SCHILY.acl.access", "SCHILY.filetype", "RHT.security.selinux", "x", "Path"]
    {
        cases.push(entries("pax_key", key, &with(&record(key, "v"))));
    }
    cases
}

pub(crate) fn combinations() -> Vec<Case> {
    vec![
        entries(
            "pax_global",
            "path for all",
            &[H::new(b'g', "g").data(record("path", "/etc/x")), file("a", "x")],
        ),
        entries("pax_global", "size for all", &[H::new(b'g', "g").data(record("size", "0")), file("a", "x")]),
        entries(
            "extension_too_large",
            "PAX of 2 MiB",
            &[pax(record("comment", vec![b'c'; 2 << 20])), file("a", "x")],
        ),
        entries("extension_too_large", "PAX that says 4 GiB", &[pax("").size(4 << 30)]),
        entries("extension_too_large", "long name that says 1 GiB", &[H::new(b'L', "l").gnu().size(1 << 30)]),
        entries(
            "extensions_conflict",
            "two PAX headers",
            &[pax(record("path", "b")), pax(record("path", "c")), file("a", "x")],
        ),
        entries("extensions_conflict", "two long names", &[long(b'L', "b"), long(b'L', "c"), file("a", "x")]),
        entries(
            "extensions_conflict",
            "two long links",
            &[long(b'K', "b"), long(b'K', "c"), symlink("a", "x")],
        ),
        entries(
            "extensions_conflict",
            "PAX, then long name",
            &[pax(record("path", "b")), long(b'L', "c"), file("a", "x")],
        ),
        entries(
            "extensions_conflict",
            "long name, then PAX",
            &[long(b'L', "c"), pax(record("path", "b")), file("a", "x")],
        ),
        entries(
            "extensions_conflict",
            "global between",
            &[pax(record("path", "b")), H::new(b'g', "g").data(record("comment", "c")), file("a", "x")],
        ),
        entries("extensions_conflict", "link target on a file", &[long(b'K', "c"), file("a", "x")]),
        entries("extensions_conflict", "linkpath on a file", &[pax(record("linkpath", "c")), file("a", "x")]),
        entries("extension_dangles", "PAX at the end", &[file("a", "x"), pax(record("path", "b"))]),
        entries("extension_dangles", "long name at the end", &[file("a", "x"), long(b'L', "b")]),
    ]
}

pub(crate) fn fields() -> Vec<Case> {
    let spoilt = |at: usize, bytes: &[u8]| [file("a", "x").put(at, bytes)];
    vec![
        case("checksum", "a text", b"<!DOCTYPE html>\n".repeat(100)),
        case(
            "checksum",
            "random",
            (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect(),
        ),
        entries("checksum", "no checksum", &[file("a", "x").no_sum()]),
        entries("checksum", "one off", &[file("a", "x").put(148, "0000001\0").no_sum()]),
        entries("field", "size in decimal", &spoilt(124, b"00000000009\0")),
        entries("field", "size with a sign", &spoilt(124, b"-0000000001\0")),
        entries("field", "size with a tail", &spoilt(124, b"0000001 1\0\0\0")),
        entries("field", "size missing", &spoilt(124, &[0; 12])),
        entries(
            "field",
            "size of 2^95",
            &spoilt(124, &[0x80, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]),
        ),
        entries("field", "negative size", &spoilt(124, &[0xff; 12])),
        entries("field", "size of 2^63", &spoilt(124, &[0x80, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0])),
        entries("field", "mode in letters", &spoilt(100, b"rwxr-xr\0")),
        entries("field", "uid in letters", &spoilt(108, b"nobody\0\0")),
        entries("field", "gid negative", &spoilt(116, &[0xff; 8])),
        entries("field", "mtime in letters", &spoilt(136, b"yesterday\0\0\0")),
        entries("header_format", "unknown magic", &spoilt(257, b"tarus\x0000")),
        entries("header_format", "ustar of another version", &spoilt(257, b"ustar\x0099")),
        entries("header_format", "bytes behind the prefix", &spoilt(500, b"x")),
        entries("header_format", "star's own suffix", &spoilt(508, b"tar\0")),
        entries("header_format", "version 7 with an owner's name", &[file("a", "x").v7().put(265, "root")]),
        // Python reads a prefix here, GNU tar two times.
        entries("header_format", "GNU with a prefix", &[file("a", "x").gnu().put(345, "etc")]),
        entries("header_format", "GNU with a sparse map", &[file("a", "x").gnu().put(386, "00000000001\0")]),
        image("owner_too_large", "uid 65536", &[file("a", "x").owner(65_536, 0)]),
        image("owner_too_large", "gid 70000", &[dir("a/").owner(0, 70_000)]),
        image("pax_malformed", "uid of 2^40 by PAX", &[pax(record("uid", "1099511627776")), file("a", "x")]),
    ]
}

pub(crate) fn ends() -> Vec<Case> {
    let good = tar(&[file("a", vec![7; 2000])]);
    let body = headers(&[file("a", vec![7; 2000])]);
    let gz = gzip(&good);
    let zs = zst(&good);
    let with = |tail: &[u8]| [&good[..], tail].concat();
    let mut block = vec![0; 512];
    block.extend(file("late", "x").bytes());
    let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    wide.long_distance_matching(true).unwrap();
    wide.window_log(28).unwrap();
    std::io::Write::write_all(&mut wide, &good).unwrap();
    let wide = wide.finish().unwrap();
    let mut damaged = gz.clone();
    let crc = damaged.len() - 6;
    damaged[crc] ^= 1;
    let mut summed = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    summed.include_checksum(true).unwrap();
    std::io::Write::write_all(&mut summed, &good).unwrap();
    let mut damaged_zst = summed.finish().unwrap();
    *damaged_zst.last_mut().unwrap() ^= 1;
    let noise: Vec<_> = (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    vec![
        case("no_end", "nothing at all", Vec::new()),
        case("no_end", "no end", body.clone()),
        case("no_end", "one block of zeros", [&body[..], &[0; 512]].concat()),
        case("trailing_data", "a byte behind the end", with(b"x")),
        case("trailing_data", "an archive behind the end", with(&tar(&[file("b", "x")]))),
        case("trailing_data", "a byte after much padding", with(&[vec![0; 20_000], vec![1]].concat())),
        case("trailing_data", "one block of zeros between", [&body[..], &block, &[0; 1024]].concat()),
        case("truncated", "within a header", body[..300].to_vec()),
        case("truncated", "within a file", body[..1500].to_vec()),
        case("truncated", "within the padding", body[..body.len() - 5].to_vec()),
        case("truncated", "within a PAX header", headers(&[pax(record("path", "b"))])[..520].to_vec()),
        case("truncated", "within the end", good[..good.len() - 100].to_vec()),
        case("truncated", "a file that says 8 GiB", tar(&[file("a", "").size((8 << 30) - 1)])),
        case("truncated", "gzip cut", gz[..gz.len() - 9].to_vec()),
        case("truncated", "zstd cut", zs[..zs.len() - 3].to_vec()),
        case("truncated", "gzip header cut", gz[..5].to_vec()),
        case("compression", "gzip with a wrong CRC", damaged),
        case("compression", "gzip with garbage behind", [&gz[..], b"garbage garbage"].concat()),
        case("compression", "gzip with zeros behind", [&gz[..], &[0; 512]].concat()),
        case("compression", "zstd with garbage behind", [&zs[..], b"garbage garbage"].concat()),
        case("compression", "zstd damaged", damaged_zst),
        case("window", "zstd window of 256 MiB", wide),
        case("compression_unknown", "xz", b"\xfd7zXZ\0\0\0".repeat(100)),
        case("compression_unknown", "bzip2", b"BZh91AY&SY".repeat(100)),
        case("compression_unknown", "zip", b"PK\x03\x04".repeat(200)),
        case("checksum", "gzip in gzip", gzip(&gzip(&tar(&[file("a", noise)])))),
        case("trailing_data", "gzip members whose archives follow each other", [&gz[..], &gz[..]].concat()),
    ]
}
