//! Compression, ends, and files that are other formats too.

use crate::case::{Case, accepted, case};
use crate::common::*;

/// A gzip member with the flags and the fields that they announce.
fn gzip_with(flags: u8, fields: &[u8], bytes: &[u8]) -> Vec<u8> {
    let plain = gzip(bytes);
    let mut out = plain[..10].to_vec();
    out[3] = flags;
    out.extend(fields);
    out.extend(&plain[10..]);
    out
}

pub(crate) fn compressed() -> Vec<Case> {
    let good = tar(&[file("a", "x"), file("b", vec![b'y'; 3000])]);
    let (one, two) = good.split_at(700);
    let (gz, zs) = (gzip(&good), zst(&good));
    let changed = |bytes: &[u8], at: usize, to: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = to;
        bytes
    };
    let skippable =
        |bytes: u32| [&[0x53, 0x2a, 0x4d, 0x18][..], &bytes.to_le_bytes(), &vec![7; bytes as usize]].concat();
    let crc = {
        // The header's own checksum: the lower half of the CRC of what comes before it.
        let mut crc = flate2::Crc::new();
        crc.update(&changed(&gz[..10], 3, 2));
        crc.sum().to_le_bytes()[..2].to_vec()
    };
    let stored = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        std::io::Write::write_all(&mut encoder, &good).unwrap();
        encoder.finish().unwrap()
    };
    let end = gz.len();
    vec![
        case("", "gzip", gz.clone()),
        case("", "gzip without compression", stored),
        case("", "gzip with a name", gzip_with(8, b"a.tar\0", &good)),
        case("", "gzip with a name that leads out", gzip_with(8, b"../../victim\0", &good)),
        case("", "gzip with a comment", gzip_with(16, b"any\0", &good)),
        case("", "gzip with extra fields", gzip_with(4, b"\x06\0AB\x02\0xy", &good)),
        case("", "gzip with a checked header", gzip_with(2, &crc, &good)),
        case("", "gzip that calls itself text", gzip_with(1, b"", &good)),
        case("", "gzip in two members", [gzip(one), gzip(two)].concat()),
        case("", "gzip in a member for each block", good.chunks(512).flat_map(gzip).collect()),
        case("", "gzip with an empty member before", [gzip(b""), gz.clone()].concat()),
        case("", "gzip with an empty member behind", [gz.clone(), gzip(b"")].concat()),
        case("", "gzip with padding in a member behind", [gz.clone(), gzip(&[0; 5120])].concat()),
        case(
            "trailing_data",
            "gzip with an archive in a member behind",
            [gz.clone(), gzip(&tar(&[file("c", "x")]))].concat(),
        ),
        case("trailing_data", "gzip with text in a member behind", [gz.clone(), gzip(b"text")].concat()),
        case("compression", "gzip with NULs behind", [gz.clone(), vec![0; 1024]].concat()),
        case("truncated", "gzip with one byte behind", [gz.clone(), vec![b'x']].concat()),
        case("truncated", "gzip with a magic behind", [gz.clone(), vec![0x1f, 0x8b]].concat()),
        case("compression", "gzip with an archive behind", [gz.clone(), good.clone()].concat()),
        case("compression", "gzip with zstd behind", [gz.clone(), zs.clone()].concat()),
        case("compression", "gzip with another length", changed(&gz, end - 1, 1)),
        case("compression", "gzip with another checksum", changed(&gz, end - 5, 1)),
        case("compression", "gzip of method 7", changed(&gz, 2, 7)),
        case("compression", "gzip with reserved flags", changed(&gz, 3, 0x80)),
        case("compression", "gzip with a wrong checked header", gzip_with(2, b"\0\0", &good)),
        case("truncated", "gzip of its header alone", gz[..10].to_vec()),
        case("truncated", "gzip of its magic alone", gz[..2].to_vec()),
        case("truncated", "gzip without its end", gz[..end - 8].to_vec()),
        case("truncated", "gzip cut in half", gz[..end / 2].to_vec()),
        case("truncated", "gzip with a name without end", gzip_with(8, b"", b"")[..12].to_vec()),
        case("no_end", "gzip of nothing", gzip(b"")),
        case("", "zstd", zs.clone()),
        case("", "zstd in two frames", [zst(one), zst(two)].concat()),
        case("", "zstd with a skippable frame between", [zst(one), skippable(9), zst(two)].concat()),
        case("", "zstd with a skippable frame behind", [zs.clone(), skippable(0)].concat()),
        case("", "zstd with an empty frame behind", [zs.clone(), zst(b"")].concat()),
        case("", "zstd with a skippable frame before", [skippable(4), zs.clone()].concat()),
        case(
            "trailing_data",
            "zstd with an archive in a frame behind",
            [zs.clone(), zst(&tar(&[file("c", "x")]))].concat(),
        ),
        case("compression", "zstd with NULs behind", [zs.clone(), vec![0; 512]].concat()),
        case("compression", "zstd with gzip behind", [zs.clone(), gz.clone()].concat()),
        case("compression", "zstd with reserved bits", changed(&zs, 4, zs[4] | 8)),
        case("truncated", "zstd of its magic alone", zs[..4].to_vec()),
        case("truncated", "zstd cut in half", zs[..zs.len() / 2].to_vec()),
        case("truncated", "zstd with a skippable frame cut", [&zs[..], &skippable(100)[..50]].concat()),
        case("no_end", "zstd of skippable frames alone", skippable(4)),
        case("no_end", "zstd of nothing", zst(b"")),
        case("checksum", "zstd in gzip", gzip(&zst(&tar(&[file("a", noise(4096))])))),
        case("checksum", "gzip in zstd", zst(&gzip(&tar(&[file("a", noise(4096))])))),
        case("checksum", "zlib", [&[0x78, 0x9c][..], &noise(2000)].concat()),
        case("checksum", "an old zstd's magic", [&[0x27, 0xb5, 0x2f, 0xfd][..], &noise(2000)].concat()),
    ]
}

pub(crate) fn noise(length: u32) -> Vec<u8> {
    (0..length).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// An archive cut at each block, and what stands there.
pub(crate) fn cuts() -> Vec<Case> {
    let parts = [
        file("a", vec![b'a'; 700]),
        dir("d/"),
        pax(record("path", "d/p")),
        file("x", "abc"),
        long(b'L', "d/long"),
        file("y", "def").gnu(),
        symlink("s", "a"),
        hardlink("h", "a"),
        H::new(b'g', "g").data(record("comment", vec![b'c'; 600])),
        file("z", ""),
    ];
    let whole = tar(&parts);
    // Where something begins, so that what is missing is all of it.
    let mut starts = vec![0];
    for part in &parts {
        starts.push(starts.last().unwrap() + part.bytes().len());
    }
    let mut cases = Vec::new();
    for at in (0..whole.len()).step_by(512) {
        let refusal = if starts.contains(&at) || at + 512 == whole.len() { "no_end" } else { "truncated" };
        // Behind an extension's header and before its bytes is behind a header too.
        cases.push(case(refusal, &format!("cut at byte {at}"), whole[..at].to_vec()));
        cases.push(case("truncated", &format!("cut at byte {}", at + 511), whole[..at + 511].to_vec()));
    }
    cases
}

pub(crate) fn ends() -> Vec<Case> {
    let body = headers(&[file("a", "x")]);
    let more = headers(&[file("b", "y")]);
    let zeros = |count: usize| vec![0_u8; count];
    let joined = |parts: &[&[u8]]| parts.concat();
    vec![
        accepted("nothing but the end", &[]),
        case("", "one record of zeros", zeros(10_240)),
        case("", "zeros to a record", joined(&[&body, &zeros(10_240 - body.len())])),
        case("", "zeros to a mebibyte", joined(&[&body, &zeros((1 << 20) - body.len())])),
        case("", "zeros and a part of a block", joined(&[&body, &zeros(1024 + 100)])),
        case("no_end", "one block of zeros alone", zeros(512)),
        case("no_end", "one block of zeros behind an entry", joined(&[&body, &zeros(512)])),
        case("truncated", "one and a half", joined(&[&body, &zeros(768)])),
        case("truncated", "1023 zeros", joined(&[&body, &zeros(1023)])),
        case("truncated", "some zeros alone", zeros(100)),
        case(
            "trailing_data",
            "a block of zeros between entries",
            joined(&[&body, &zeros(512), &more, &zeros(1024)]),
        ),
        case("trailing_data", "two archives", joined(&[&body, &zeros(1024), &more, &zeros(1024)])),
        case(
            "trailing_data",
            "two archives with records",
            joined(&[&body, &zeros(9216), &more, &zeros(1024)]),
        ),
        case("trailing_data", "an entry behind the end", joined(&[&body, &zeros(1024), &more])),
        case("trailing_data", "text behind the end", joined(&[&body, &zeros(1024), b"text"])),
        case("trailing_data", "a newline behind the end", joined(&[&body, &zeros(1024), b"\n"])),
        case("trailing_data", "ones behind the end", joined(&[&body, &zeros(1024), &[255; 512]])),
        case(
            "trailing_data",
            "a zip's end behind the end",
            joined(&[&body, &zeros(1024), b"PK\x05\x06", &zeros(18)]),
        ),
        case("trailing_data", "one zero, then a header", joined(&[&zeros(512), &body, &zeros(1024)])),
        case("trailing_data", "nothing, then an archive", joined(&[&zeros(1024), &body, &zeros(1024)])),
        case("checksum", "one byte before", joined(&[b"\n", &body, &zeros(1024)])),
        case("checksum", "a byte order mark before", joined(&[b"\xef\xbb\xbf", &body, &zeros(1024)])),
        case("checksum", "half a block before", joined(&[&[b'x'; 256], &body, &zeros(1024)])),
        case(
            "checksum",
            "damaged second header",
            joined(&[
                &body,
                &{
                    let mut more = more.clone();
                    more[0] ^= 1;
                    more
                },
                &zeros(1024),
            ]),
        ),
        case(
            "checksum",
            "a block of text between entries",
            joined(&[&body, &[b'x'; 512], &more, &zeros(1024)]),
        ),
    ]
}

/// What begins as another format does: programs that look at the first bytes take it for that.
pub(crate) fn other_formats() -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, magic) in [
        ("compress", &b"\x1f\x9d\x90"[..]),
        ("pack", b"\x1f\x1e"),
        ("LZ4", b"\x04\"M\x18"),
        ("LZ4 of old", b"\x02!L\x18"),
        ("LZ4 skippable", b"\x5a*M\x18\x01"),
        ("LZIP", b"LZIP\x01\x0c"),
        ("lzop", b"\x89LZO\0\r\n\x1a\n"),
        ("lrzip", b"LRZI\0\x06"),
        ("LZMA", b"]\0\0\x80\0"),
        ("bzip2", b"BZh91AY&SY"),
        ("bzip2 of nothing", b"BZh9\x17rE8P\x90"),
        ("xz", b"\xfd7zXZ\0"),
        ("gzip", b"\x1f\x8b\x08"),
        ("zstd", b"\x28\xb5\x2f\xfd"),
        ("RPM", b"\xed\xab\xee\xdb\x03\0\0\0"),
        ("text and uuencode", b"a\nbegin 644 a\n#0V%T\n`\nend\n"),
        ("uuencode", b"begin 644 a\n#0V%T\n`\nend\n"),
        ("base 64", b"begin-base64 644 a\nYQ==\n====\n"),
        ("cpio", b"070707000000000000000000000000000000000000000000000000000000000000000000000000"),
        ("cpio, new", b"070701000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"),
        ("cpio, binary", b"\xc7\x71"),
        ("ar", b"!<arch>\n"),
        ("zip", b"PK\x03\x04"),
        ("empty zip", b"PK\x05\x06"),
        ("7-Zip", b"7z\xbc\xaf\x27\x1c"),
        ("RAR", b"Rar!\x1a\x07\0"),
        ("RAR 5", b"Rar!\x1a\x07\x01\0"),
        ("cabinet", b"MSCF\0\0\0\0"),
        ("LHA", b"!!-lh5-"),
        ("xar", b"xar!\0\x1c\0\x01"),
        ("mtree", b"#mtree\n./a type=file\n"),
        ("WARC", b"WARC/1.0\r\n"),
        ("shell archive", b"#!/bin/sh\n"),
        ("a program", b"\x7fELF\x02\x01\x01"),
    ] {
        // As the name of a tar archive's first entry, with a right checksum.
        let name = [magic, b"a"].concat();
        let name = if name.contains(&0) { magic.split(|b| *b == 0).next().unwrap().to_vec() } else { name };
        let either = case("", &format!("name that begins like {what}"), tar(&[file(name, "x"), file("z", "y")]));
        cases.push(either.either());
        // As what it is.
        let other = case("checksum", &format!("bytes of {what}"), [magic, &noise(2000)].concat());
        cases.push(other.either());
    }
    cases
}
