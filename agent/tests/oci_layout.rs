//! OCI layouts, good and hostile.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use ampoule_agent::inputs::{InputError, OciLayout};
use ampoule_spec::{Code, Sha256};
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use std::fs;
use std::io::Read;
use std::path::PathBuf;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256::new(digest(&SHA256, bytes).as_ref().try_into().unwrap())
}

struct Layout {
    dir: tempfile::TempDir,
}

impl Layout {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self { dir }
    }

    fn path(&self, sha256: &Sha256) -> PathBuf {
        self.dir.path().join(format!("blobs/sha256/{sha256}"))
    }

    /// Writes a blob and gives its descriptor.
    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let sha256 = sha256(bytes);
        fs::write(self.path(&sha256), bytes).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{sha256}"), "size": bytes.len()})
    }

    fn json(&self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    fn manifest_value(&self) -> Value {
        let config = self.blob(CONFIG, b"{\"architecture\":\"amd64\"}");
        let layers = [self.blob(LAYER, b"base"), self.blob(LAYER, b"top")];
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers})
    }

    fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        fs::write(self.dir.path().join("index.json"), index.to_string()).unwrap();
    }

    fn open(&self) -> Result<OciLayout, InputError> {
        OciLayout::open(self.dir.path())
    }

    /// The code and message with which the only image of the layout is refused.
    fn refused(&self, manifest: &Value) -> (Code, String) {
        let manifest = self.json(MANIFEST, manifest);
        self.index(std::slice::from_ref(&manifest));
        let error = self.open().unwrap().image(&of(&manifest), None).unwrap_err();
        (error.code(), error.to_string())
    }
}

/// The digest of a descriptor.
fn of(descriptor: &Value) -> Sha256 {
    Sha256::parse(descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap()).unwrap()
}

fn with(descriptor: &Value, key: &str, value: Value) -> Value {
    let mut descriptor = descriptor.clone();
    descriptor[key] = value;
    descriptor
}

#[test]
fn image_by_manifest_digest_lists_its_blobs() {
    let layout = Layout::new();
    let manifest = layout.json(MANIFEST, &layout.manifest_value());
    layout.index(&[with(&manifest, "annotations", json!({"org.opencontainers.image.ref.name": "v1"}))]);
    let open = layout.open().unwrap();
    let image = open.image(&of(&manifest), Some("v1")).unwrap();
    assert_eq!(image.manifest.sha256, of(&manifest));
    assert_eq!(image.config.media_type, CONFIG);
    let layers: Vec<_> = image.layers.iter().map(|l| (l.sha256, l.bytes)).collect();
    assert_eq!(layers, [(sha256(b"base"), 4), (sha256(b"top"), 3)]);
    assert_eq!(image.layers[0].path(), format!("blobs/sha256/{}", sha256(b"base")));
    let mut bytes = String::new();
    open.open_blob(&image.layers[1]).unwrap().read_to_string(&mut bytes).unwrap();
    assert_eq!(bytes, "top");
}

#[test]
fn image_in_dockers_documents_is_read() {
    let layout = Layout::new();
    let config = layout.blob("application/vnd.docker.container.image.v1+json", b"{\"os\":\"linux\"}");
    let layers = [layout.blob("application/vnd.docker.image.rootfs.diff.tar.gzip", b"base")];
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": docker, "config": config, "layers": layers});
    let mut manifest = layout.json(docker, &manifest);
    manifest["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let index = layout.json(list, &json!({"schemaVersion": 2, "mediaType": list, "manifests": [manifest]}));
    layout.index(std::slice::from_ref(&index));
    let image = layout.open().unwrap().image(&of(&index), None).unwrap();
    assert_eq!((image.manifest.sha256, image.layers.len()), (of(&manifest), 1));
}

#[test]
fn configuration_for_another_platform_is_refused() {
    let layout = Layout::new();
    let mut manifest = layout.manifest_value();
    manifest["config"] = layout.blob(CONFIG, b"{\"os\":\"linux\",\"architecture\":\"arm64\"}");
    let (code, text) = layout.refused(&manifest);
    assert!(code == Code::InputRefused && text.contains("for linux/arm64"), "{code} {text}");
}

#[test]
fn tag_must_be_there_and_name_the_same_digest() {
    let layout = Layout::new();
    let tag = |m: &Value, t: &str| with(m, "annotations", json!({"org.opencontainers.image.ref.name": t}));
    let manifest = layout.json(MANIFEST, &layout.manifest_value());
    let other = layout.json(MANIFEST, &with(&layout.manifest_value(), "annotations", json!({"x": "y"})));
    layout.index(&[tag(&manifest, "v1"), tag(&other, "v2")]);
    let open = layout.open().unwrap();
    assert!(open.image(&of(&manifest), Some("v1")).is_ok());
    assert_eq!(open.image(&of(&manifest), Some("v3")).unwrap_err().code(), Code::InputMissing);
    assert_eq!(open.image(&of(&manifest), Some("v2")).unwrap_err().code(), Code::InputDigestMismatch);
    assert_eq!(open.image(&sha256(b"?"), None).unwrap_err().code(), Code::InputMissing);
}

#[test]
fn index_digest_gives_the_one_image_for_this_platform() {
    let layout = Layout::new();
    let platform = |m: &Value, arch: &str| with(m, "platform", json!({"os": "linux", "architecture": arch}));
    let manifest = layout.json(MANIFEST, &layout.manifest_value());
    let other = layout.json(MANIFEST, &with(&layout.manifest_value(), "annotations", json!({"x": "y"})));
    let list = |manifests: &[Value]| {
        let index = layout.json(INDEX, &json!({"schemaVersion": 2, "manifests": manifests}));
        layout.index(std::slice::from_ref(&index));
        index
    };

    let index = list(&[platform(&other, "arm64"), platform(&manifest, "amd64")]);
    let open = layout.open().unwrap();
    assert_eq!(open.image(&of(&index), None).unwrap().manifest.sha256, of(&manifest));
    // A manifest that only a nested index lists can be pinned itself.
    assert_eq!(open.image(&of(&manifest), None).unwrap().manifest.sha256, of(&manifest));
    let wrong = open.image(&of(&other), None).unwrap_err();
    assert!(wrong.to_string().contains("linux/arm64"), "{wrong}");

    let index = list(&[platform(&other, "arm64")]);
    assert_eq!(layout.open().unwrap().image(&of(&index), None).unwrap_err().code(), Code::InputMissing);
    let index = list(&[platform(&other, "amd64"), platform(&manifest, "amd64")]);
    assert_eq!(layout.open().unwrap().image(&of(&index), None).unwrap_err().code(), Code::InputRefused);
}

#[test]
fn layout_that_is_none_is_refused() {
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(OciLayout::open(empty.path()).unwrap_err().code(), Code::InputMissing);
    assert_eq!(OciLayout::open(&empty.path().join("none")).unwrap_err().code(), Code::InputMissing);
    let layout = Layout::new();
    let index = layout.dir.path().join("index.json");
    let code = || layout.open().unwrap_err().code();
    assert_eq!(code(), Code::InputMissing);
    for text in ["", "{}", "[]", "{\"schemaVersion\":1,\"manifests\":[]}", "{\"schemaVersion\":2}"] {
        fs::write(&index, text).unwrap();
        assert_eq!(code(), Code::InputRefused, "{text}");
    }
    fs::File::create(&index).unwrap().set_len((4 << 20) + 1).unwrap();
    assert_eq!(code(), Code::InputRefused);
    fs::remove_file(&index).unwrap();
    // A link of our own to a file of our own: what is written through it by mistake harms nobody.
    let target = layout.dir.path().join("elsewhere.json");
    fs::write(&target, r#"{"schemaVersion":2,"manifests":[]}"#).unwrap();
    std::os::unix::fs::symlink(&target, &index).unwrap();
    assert_eq!(code(), Code::InputRefused);
    fs::remove_file(&index).unwrap();
    layout.index(&[]);
    fs::write(layout.dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap_or(());
    assert_eq!(code(), Code::InputRefused);
}

#[test]
fn manifest_with_anything_unknown_is_refused_by_name() {
    let layout = Layout::new();
    let good = layout.manifest_value();
    let layer = |key: &str, value: Value| {
        let mut manifest = good.clone();
        manifest["layers"][0][key] = value;
        manifest
    };
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar";
    let dockers = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let many = vec![good["layers"][0].clone(); 129];
    for (manifest, says) in [
        (layer("urls", json!(["https://example.org/x"])), "foreign URLs"),
        (layer("mediaType", json!(foreign)), "nondistributable"),
        (layer("mediaType", json!(dockers)), "nondistributable"),
        (layer("mediaType", json!("application/x-evil")), "skopeo copy --format oci"),
        (layer("digest", json!(format!("sha512:{}", "0".repeat(128)))), "only sha256"),
        (layer("digest", json!("md5:00")), "only sha256"),
        (layer("digest", json!("sha256:../../../../etc/passwd")), "not valid"),
        (layer("digest", json!("sha256:00")), "not valid"),
        (layer("size", json!(5)), "its descriptor says 5"),
        (with(&good, "layers", json!(many)), "at most 128"),
        (with(&good, "schemaVersion", json!(1)), "schemaVersion 1"),
        (with(&good, "mediaType", json!(INDEX)), "something else than its descriptor"),
        (with(&good, "manifests", json!([])), "could be taken for something else"),
        (with(&good, "config", with(&good["config"], "mediaType", json!("application/x"))), "application/x"),
    ] {
        let (code, text) = layout.refused(&manifest);
        assert!(code == Code::InputRefused && text.contains(says), "{says}: {code} {text}");
    }
}

#[test]
fn blobs_that_lie_are_refused() {
    let layout = Layout::new();
    let value = layout.manifest_value();
    let manifest = layout.json(MANIFEST, &value);
    layout.index(std::slice::from_ref(&manifest));
    let image = || layout.open().unwrap().image(&of(&manifest), None).map(drop);
    assert!(image().is_ok());

    let base = layout.path(&sha256(b"base"));
    fs::remove_file(&base).unwrap();
    assert_eq!(image().unwrap_err().code(), Code::InputMissing);
    std::os::unix::fs::symlink(layout.dir.path().join("index.json"), &base).unwrap();
    assert_eq!(image().unwrap_err().code(), Code::InputRefused);
    fs::remove_file(&base).unwrap();
    fs::create_dir(&base).unwrap();
    assert_eq!(image().unwrap_err().code(), Code::InputRefused);
    fs::remove_dir(&base).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(layout.dir.path().join("s")).unwrap();
    fs::rename(layout.dir.path().join("s"), &base).unwrap();
    assert_eq!(image().unwrap_err().code(), Code::InputRefused);
    drop(socket);
    fs::remove_file(&base).unwrap();
    fs::write(&base, b"base").unwrap();

    // Same length, other bytes.
    let text = value.to_string().replace("\"size\":3", "\"size\":4");
    fs::write(layout.path(&of(&manifest)), text).unwrap();
    assert_eq!(image().unwrap_err().code(), Code::InputDigestMismatch);
}
