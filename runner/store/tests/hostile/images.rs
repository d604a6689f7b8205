//! Layers and image documents that are refused, and contents under wrong digests.

use crate::archives::{Case, OUT, layer};
use crate::common::*;
use ampoule_spec::wire::Content;

pub(crate) fn layers() -> Vec<Case> {
    vec![
        layer("whiteout", "of nothing", &[file(".wh.", "")]),
        layer("whiteout", "of .", &[file("a/.wh..", "")]),
        layer("whiteout", "of ..", &[file("a/.wh...", "")]),
        layer("whiteout", "of a whiteout", &[file(".wh..wh.a", "")]),
        layer("whiteout", "aufs's own", &[file(".wh..wh.plnk", "")]),
        layer("whiteout", "with data", &[file(".wh.a", "x")]),
        layer("whiteout", "as a directory", &[dir(".wh.a/")]),
        layer("whiteout", "as a symlink", &[symlink(".wh.a", "/etc")]),
        layer("whiteout", "as a hard link", &[file("f", ""), hardlink(".wh.a", "f")]),
        layer("whiteout", "as a parent", &[file(".wh.a/b", "x")]),
        layer("whiteout", "opaque root", &[file(".wh..wh..opq", "")]),
        layer("duplicate", "of what is in the layer", &[file("a", "x"), file(".wh.a", "")]),
        layer("duplicate", "twice", &[file(".wh.a", ""), file(".wh.a", "")]),
        layer("duplicate", "then a file", &[file(".wh.a", ""), file("a", "x")]),
        layer("below_file", "a file below a whiteout", &[file(".wh.a", ""), file("a/b", "x")]),
        layer("through_symlink", "through a symlink", &[symlink("a", OUT), file("a/.wh.etc", "")]),
        layer(
            "through_symlink",
            "opaque through a symlink",
            &[symlink("a", OUT), file("a/.wh..wh..opq", "")],
        ),
        layer("parent_path", "above the root", &[file("../.wh.victim", "")]),
        layer("hard_link_to_other", "hard link to a whiteout", &[file(".wh.a", ""), hardlink("b", "a")]),
        layer("special_file", "a whiteout as overlayfs has it", &[H::new(b'3', "a")]),
    ]
}

pub(crate) fn documents() -> Vec<Case> {
    let part =
        |media: &str| format!(r#"{{"mediaType":"{media}","digest":"sha256:{}","size":2}}"#, sha(b"{}"));
    let config = part("application/vnd.oci.image.config.v1+json");
    let layer = part("application/vnd.oci.image.layer.v1.tar+gzip");
    let manifest = |text: String| {
        let source = text.into_bytes();
        let content = Content::OciManifest { sha256: sha(&source) };
        (source, content)
    };
    let case = |what: &str, text: String| {
        let (source, content) = manifest(text);
        Case { what: what.to_owned(), refusal: "document", source, content }
    };
    let head = r#"{"schemaVersion":2"#;
    let hex = sha(b"{}").to_string();
    let mut cases = vec![
        case("not JSON", "hello".to_owned()),
        case("empty", String::new()),
        case("an index", format!(r#"{head},"manifests":[]}}"#)),
        case("an index too", format!(r#"{head},"manifests":[],"config":{config},"layers":[{layer}]}}"#)),
        case("schema 1", format!(r#"{{"schemaVersion":1,"config":{config},"layers":[{layer}]}}"#)),
        case("no layers", format!(r#"{head},"config":{config},"layers":[]}}"#)),
        case("layers twice", format!(r#"{head},"config":{config},"layers":[{layer}],"layers":[]}}"#)),
        case(
            "an index by media type",
            format!(
                r#"{head},"mediaType":"application/vnd.oci.image.index.v1+json","config":{config},"layers":[{layer}]}}"#
            ),
        ),
        case(
            "sha512",
            format!(r#"{head},"config":{config},"layers":[{layer}]}}"#).replace("sha256", "sha512"),
        ),
        case(
            "upper case digest",
            format!(r#"{head},"config":{config},"layers":[{layer}]}}"#).replace(&hex, &hex.to_uppercase()),
        ),
        case(
            "foreign layers",
            format!(
                r#"{head},"config":{config},"layers":[{}]}}"#,
                part("application/vnd.oci.image.layer.nondistributable.v1.tar")
            ),
        ),
        case("a config that is none", format!(r#"{head},"config":{layer},"layers":[{layer}]}}"#)),
        case(
            "257 layers",
            format!(r#"{head},"config":{config},"layers":[{}]}}"#, vec![layer.as_str(); 257].join(",")),
        ),
        case("nested 100,000 deep", format!(r#"{head},"x":{}"#, "[".repeat(100_000))),
        case(
            "negative size",
            format!(r#"{head},"config":{config},"layers":[{layer}]}}"#).replace(":2}", ":-2}"),
        ),
    ];
    for (what, text) in [
        ("no rootfs", r"{}"),
        ("rootfs of another type", r#"{"rootfs":{"type":"files","diff_ids":[]}}"#),
        ("diff id without sha256", r#"{"rootfs":{"type":"layers","diff_ids":["aa"]}}"#),
    ] {
        let source = text.as_bytes().to_vec();
        let content = Content::OciConfig { sha256: sha(&source) };
        cases.push(Case { what: what.to_owned(), refusal: "document", source, content });
    }
    let source = vec![b' '; (4 << 20) + 1];
    let content = Content::OciConfig { sha256: sha(&source) };
    cases.push(Case { what: "5 MiB".to_owned(), refusal: "too_large", source, content });
    let (source, content) = manifest(format!(r#"{head},"config":{config},"layers":[{layer}]}}"#));
    cases.push(Case { what: "nothing imported".to_owned(), refusal: "part_missing", source, content });
    cases
}

pub(crate) fn wrong_digests() -> Vec<Case> {
    let source = tar(&[file("a", "x")]);
    let other = sha(b"another archive");
    let as_content = |what: &str, refusal, source: &[u8], content| Case {
        what: what.to_owned(),
        refusal,
        source: source.to_vec(),
        content,
    };
    vec![
        as_content("archive", "digest_mismatch", &source, Content::Archive { sha256: other, epoch: EPOCH }),
        as_content("image", "digest_mismatch", &source, Content::ImageTar { sha256: other }),
        as_content("layer", "digest_mismatch", &source, Content::OciLayer { sha256: other }),
        as_content("manifest", "digest_mismatch", b"{}", Content::OciManifest { sha256: other }),
        as_content("config", "digest_mismatch", b"{}", Content::OciConfig { sha256: other }),
        // An error page in place of a download is a wrong digest before it is anything else.
        as_content(
            "web page",
            "digest_mismatch",
            b"<html>",
            Content::Archive { sha256: other, epoch: EPOCH },
        ),
        as_content(
            "file",
            "digest_mismatch",
            b"x",
            Content::File { sha256: Some(other), executable: false, epoch: EPOCH },
        ),
        as_content(
            "directory",
            "tree_mismatch",
            &source,
            Content::Directory { tree: Some(other), epoch: EPOCH },
        ),
        as_content(
            "compressed directory",
            "truncated",
            &gzip(&source),
            Content::Directory { tree: None, epoch: EPOCH },
        ),
    ]
}
