//! Images: root file systems, layers with whiteouts, manifests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use ampoule_spec::Sha256;
use ampoule_spec::wire::Content;
use common::*;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

fn image(source: &[u8]) -> Content {
    Content::ImageTar { sha256: sha(source) }
}

#[test]
fn image_keeps_modes_owners_and_times() {
    if !is_root() {
        println!("skipped: not root");
        return;
    }
    let world = World::new();
    let source = tar(&[
        dir("./").mode(0o555).mtime(11),
        dir("./tmp/").mode(0o1777).mtime(12),
        dir("./home/").mode(0o755).mtime(13),
        dir("./home/u/").mode(0o700).owner(1000, 1000).mtime(14),
        pax(record("mtime", "15.5")),
        file("./home/u/f", "x").mode(0o640).owner(1000, 42),
        file("./bin/su", "x").mode(0o4755).mtime(16),
        file("./etc/shadow", "x").mode(0).mtime(17),
        symlink("./home/u/l", "f").owner(1000, 1000).mtime(18),
        hardlink("./home/u/h", "home/u/f"),
        file("./home/late", "x").mtime(19),
        H::new(b'3', "./dev/null"),
        H::new(b'6', "./dev/initctl"),
        file("./.wh.kept", "x").mtime(20),
    ]);
    world.import(&image(&source), &source).unwrap();
    let root = world.tree(&image(&source));
    let meta = |name: &str| {
        let meta = fs::symlink_metadata(root.join(name)).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime())
    };
    assert_eq!(meta("."), (0o755, 0, 0, 11), "the owner's own bits stay on");
    assert_eq!(meta("tmp"), (0o1777, 0, 0, 12));
    assert_eq!(meta("home"), (0o755, 0, 0, 13), "although something came into it later");
    assert_eq!(meta("home/u"), (0o700, 1000, 1000, 14));
    assert_eq!(meta("home/u/f"), (0o640, 1000, 42, 15));
    assert_eq!(fs::metadata(root.join("home/u/h")).unwrap().mtime_nsec(), 500_000_000);
    assert_eq!(meta("bin"), (0o755, 0, 0, 0), "implied");
    assert_eq!(meta("bin/su"), (0o755, 0, 0, 16), "no set-id");
    assert_eq!(meta("etc/shadow"), (0o400, 0, 0, 17));
    assert_eq!(meta("home/u/l"), (0o777, 1000, 1000, 18));
    assert_eq!(meta(".wh.kept").3, 20, "not a layer: a plain name");
    assert!(!root.join("dev/null").exists());
    assert!(world.store.verify(&image(&source)).unwrap());
}

fn layer(source: &[u8]) -> Content {
    Content::OciLayer { sha256: sha(source) }
}

#[test]
fn layer_whiteouts_are_what_overlayfs_reads() {
    let world = World::new();
    let source = tar(&[
        dir("d/"),
        file("d/.wh..wh..opq", ""),
        file("d/new", "new"),
        file(".wh.gone", ""),
        file("d/.wh.hidden", ""),
        file("..wh.plain", "x"),
    ]);
    world.layer(&source).unwrap();
    let root = world.tree(&layer(&source));
    for name in ["gone", "d/hidden"] {
        let meta = fs::symlink_metadata(root.join(name)).unwrap();
        assert_eq!((meta.mode() & 0o170_000, meta.rdev()), (0o020_000, 0), "{name}");
    }
    let mut value = [0; 8];
    let attribute = if is_root() { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
    let length = rustix::fs::getxattr(root.join("d"), attribute, &mut value).unwrap();
    assert_eq!(&value[..length], b"y");
    let mut names = [0; 256];
    let length = rustix::fs::listxattr(root.join("d"), &mut names).unwrap();
    assert_eq!(length, attribute.len() + 1, "and no other attribute");
    assert_eq!(fs::symlink_metadata(root.join("d/new")).unwrap().mode() & 0o7777, 0o644);
    assert!(world.store.verify(&layer(&source)).unwrap());
    let meta = fs::read_to_string(root.parent().unwrap().join("meta.json")).unwrap();
    assert!(meta.contains("\"whiteouts\":2") && meta.contains("\"opaque_directories\":1"), "{meta}");
}

/// The kernel's own reading of the layers.
#[test]
fn layer_stack_mounted_by_overlayfs_hides_what_it_should() {
    let world = World::new();
    let lower = tar(&[
        dir("d/"),
        file("d/old", "old"),
        file("gone", "x"),
        file("kept", "k"),
        dir("e/"),
        file("e/a", "1"),
        file("e/b", "2"),
    ]);
    let upper = tar(&[
        dir("d/"),
        file("d/.wh..wh..opq", ""),
        file("d/new", "new"),
        file(".wh.gone", ""),
        dir("e/"),
        file("e/.wh.a", ""),
    ]);
    world.layer(&lower).unwrap();
    world.layer(&upper).unwrap();
    // An ordinary user's overlay reads the attributes that an ordinary user can set.
    let (namespaces, options) = if is_root() { ("-m", "") } else { ("-Urm", ",userxattr") };
    let script = format!(
        "mount -t overlay overlay -o lowerdir={}:{}{options} {mnt} && cd {mnt} && find . | sort && cat d/new",
        world.tree(&layer(&upper)).display(),
        world.tree(&layer(&lower)).display(),
        mnt = world.path("outside").display(),
    );
    let output = Command::new("unshare").args([namespaces, "sh", "-c", &script]).output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(text, ".\n./d\n./d/new\n./e\n./e/b\n./kept\nnew");
        }
        other => println!("skipped: no overlay mount here: {other:?}"),
    }
}

struct Image {
    layers: Vec<Vec<u8>>,
    diff_ids: Vec<Sha256>,
}

impl Image {
    fn new() -> Self {
        let plain = [tar(&[file("a", "0")]), tar(&[file("b", "1")]), tar(&[file("c", "2")]), tar(&[])];
        let layers = vec![plain[0].clone(), gzip(&plain[1]), zst(&plain[2]), gzip(&plain[3])];
        Self { layers, diff_ids: plain.iter().map(|tar| sha(tar)).collect() }
    }

    fn config(&self) -> Vec<u8> {
        let ids: Vec<_> = self.diff_ids.iter().map(|id| format!("\"sha256:{id}\"")).collect();
        let ids = ids.join(",");
        format!(r#"{{"architecture":"amd64","os":"linux","config":{{"Env":["A=b"]}},"rootfs":{{"type":"layers","diff_ids":[{ids}]}},"history":[]}}"#).into_bytes()
    }

    fn manifest(&self, docker: bool) -> Vec<u8> {
        let config = self.config();
        let (kind, config_kind, layer_kind) = if docker {
            (
                "docker.distribution.manifest.v2+json",
                "docker.container.image.v1+json",
                "docker.image.rootfs.diff.tar.gzip",
            )
        } else {
            ("oci.image.manifest.v1+json", "oci.image.config.v1+json", "oci.image.layer.v1.tar+gzip")
        };
        let part = |kind: &str, bytes: &[u8]| {
            format!(
                r#"{{"mediaType":"application/vnd.{kind}","digest":"sha256:{}","size":{},"annotations":{{"x":"y"}}}}"#,
                sha(bytes),
                bytes.len()
            )
        };
        let layers: Vec<_> = self.layers.iter().map(|layer| part(layer_kind, layer)).collect();
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.{kind}","config":{},"layers":[{}]}}"#,
            part(config_kind, &config),
            layers.join(",")
        )
        .into_bytes()
    }

    fn import(&self, world: &World, manifest: &[u8]) -> Result<Sha256, String> {
        for source in &self.layers {
            world.layer(source).map_err(|e| e.to_string())?;
        }
        let config = self.config();
        world.import(&Content::OciConfig { sha256: sha(&config) }, &config).map_err(|e| e.to_string())?;
        let content = Content::OciManifest { sha256: sha(manifest) };
        world.import(&content, manifest).map(|i| i.sha256).map_err(|e| format!("{}: {e}", e.name()))
    }
}

#[test]
fn image_is_imported_and_gives_its_layers_lowest_first() {
    for docker in [false, true] {
        let world = World::new();
        let image = Image::new();
        let manifest = image.manifest(docker);
        let digest = image.import(&world, &manifest).unwrap();
        assert_eq!(digest, sha(&manifest));
        let layers = world.store.image_layers(digest).unwrap();
        let digests: Vec<_> = layers.iter().map(|layer| layer.imported.sha256).collect();
        assert_eq!(digests, image.layers.iter().map(|l| sha(l)).collect::<Vec<_>>());
        assert_eq!(layers[1].source_bytes, image.layers[1].len() as u64);
        for (layer, name) in layers.iter().zip(["a", "b", "c"]) {
            rustix::fs::statat(&layer.fd, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        let config = image.config();
        for content in [Content::OciManifest { sha256: digest }, Content::OciConfig { sha256: sha(&config) }]
        {
            assert!(world.store.verify(&content).unwrap());
        }
        assert_eq!(
            fs::read(world.tree(&Content::OciManifest { sha256: digest }).join("content")).unwrap(),
            manifest
        );
    }
}

#[test]
fn image_that_is_not_whole_is_refused() {
    let good = Image::new();
    let manifest = good.manifest(false);
    let text = String::from_utf8(manifest.clone()).unwrap();

    let mut swapped = Image::new();
    swapped.diff_ids.swap(1, 2);
    let error = swapped.import(&World::new(), &swapped.manifest(false)).unwrap_err();
    assert!(error.starts_with("diff_id: layer 1 "), "{error}");

    let mut fewer = Image::new();
    fewer.diff_ids.pop();
    let error = fewer.import(&World::new(), &fewer.manifest(false)).unwrap_err();
    assert!(error.starts_with("document:"), "{error}");

    let size = format!("\"size\":{}", good.layers[2].len());
    let wrong = text.replace(&size, "\"size\":1");
    let error = good.import(&World::new(), wrong.as_bytes()).unwrap_err();
    assert!(error.starts_with("document:"), "{error}");

    let missing = text.replace(&sha(&good.layers[0]).to_string(), &sha(b"elsewhere").to_string());
    let error = good.import(&World::new(), missing.as_bytes()).unwrap_err();
    assert!(error.starts_with("part_missing: the image's layer"), "{error}");

    let missing = text.replace(&sha(&good.config()).to_string(), &sha(b"elsewhere").to_string());
    let error = good.import(&World::new(), missing.as_bytes()).unwrap_err();
    assert!(error.starts_with("part_missing: the image's configuration"), "{error}");

    let world = World::new();
    assert_eq!(world.store.image_layers(sha(b"none")).unwrap_err().name(), "part_missing");
}

#[test]
fn stored_manifest_that_was_edited_is_not_believed() {
    let world = World::new();
    let image = Image::new();
    let digest = image.import(&world, &image.manifest(false)).unwrap();
    let path = world.tree(&Content::OciManifest { sha256: digest }).join("content");
    let mut bytes = fs::read(&path).unwrap();
    bytes.push(b' ');
    fs::write(&path, bytes).unwrap();
    assert_eq!(world.store.image_layers(digest).unwrap_err().name(), "damaged");
}
