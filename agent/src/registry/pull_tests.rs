use super::super::testing::{Answer, Asked, Server, access, wait};
use super::super::{Purpose, Session};
use super::*;
use ampoule_spec::Code;
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn sha256(bytes: &[u8]) -> Sha256 {
    sha256_of(digest(&SHA256, bytes).as_ref()).unwrap()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len()})
}

/// An image of one layer, in the documents of OCI or of Docker.
struct Image {
    config: Vec<u8>,
    layer: Vec<u8>,
    manifest: Vec<u8>,
    media_type: &'static str,
}

impl Image {
    fn new(types: [&'static str; 3], architecture: &str) -> Self {
        let [media_type, config_type, layer_type] = types;
        let config = json!({"os": "linux", "architecture": architecture}).to_string().into_bytes();
        let layer: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type,
            "config": descriptor(config_type, &config), "layers": [descriptor(layer_type, &layer)]});
        Self { config, layer, manifest: manifest.to_string().into_bytes(), media_type }
    }

    fn oci() -> Self {
        Self::new([MANIFEST, CONFIG, LAYER], "amd64")
    }

    fn blob(&self) -> Blob {
        Blob { sha256: sha256(&self.layer), bytes: self.layer.len() as u64, media_type: LAYER.to_owned() }
    }
}

/// Serves an image under its own digest.
fn serve(image: &Image, asked: &Asked) -> Answer {
    let at =
        |kind: &str, bytes: &[u8]| asked.path == format!("/v2/team/base/{kind}/sha256:{}", sha256(bytes));
    if at("manifests", &image.manifest) || asked.path == "/v2/team/base/manifests/v1" {
        return Answer::new(format!("200 OK\r\ncontent-type: {}", image.media_type), image.manifest.clone());
    }
    match [&image.config, &image.layer].into_iter().find(|bytes| at("blobs", bytes)) {
        Some(bytes) => Answer::new("200 OK", bytes.clone()),
        None => Answer::new("404 Not Found", "{\"errors\": [{\"code\": \"BLOB_UNKNOWN\"}]}"),
    }
}

fn pull(server: &Server, pinned: &Sha256) -> Result<(RemoteImage, Vec<u8>)> {
    let (access, reference) = (access(&[server.host()], None), server.reference("team/base:v1"));
    wait(async {
        let mut session = Session::new(&access, &reference, Purpose::Pull)?;
        let manifest = session.manifest_of(pinned).await?;
        let image = session.image_of(manifest).await?;
        let mut layer = Vec::new();
        session.blob("layer", &image.layers[0], &mut layer).await?;
        Ok((image, layer))
    })
}

fn layer_of(server: &Server, blob: &Blob) -> Result<Vec<u8>> {
    let (access, reference) = (access(&[server.host()], None), server.reference("team/base"));
    let mut out = Vec::new();
    wait(async { Session::new(&access, &reference, Purpose::Pull)?.blob("layer", blob, &mut out).await })?;
    Ok(out)
}

#[test]
fn image_of_either_kind_is_pulled_by_its_digest() {
    let docker = [
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ];
    for image in [Image::oci(), Image::new(docker, "amd64")] {
        let (manifest, layer) = (sha256(&image.manifest), image.layer.clone());
        let server = Server::start(move |asked| serve(&image, asked));
        let (found, bytes) = pull(&server, &manifest).unwrap();
        assert_eq!((found.manifest.sha256, bytes), (manifest, layer));
        let first = &server.asked()[0];
        assert!(first.header("accept").contains(INDEX) && first.header("accept").contains(docker[0]));
        assert_eq!(first.header("authorization"), "");
    }
}

#[test]
fn index_gives_the_base_variant_of_this_platform() {
    let (image, arm) = (Image::oci(), Image::new([MANIFEST, CONFIG, LAYER], "arm64"));
    let listed = |image: &Image, platform: Value| {
        let mut descriptor = descriptor(MANIFEST, &image.manifest);
        descriptor["platform"] = platform;
        descriptor
    };
    let amd64 = |variant: &str| json!({"os": "linux", "architecture": "amd64", "variant": variant});
    let base = json!({"os": "linux", "architecture": "amd64"});
    let other = json!({"os": "linux", "architecture": "arm64"});
    let unknown = json!({"os": "unknown", "architecture": "unknown"});
    let (manifest, fat) =
        (sha256(&image.manifest), "application/vnd.docker.distribution.manifest.list.v2+json");
    for (media_type, manifests, expected) in [
        (INDEX, vec![listed(&arm, other.clone()), listed(&image, base.clone()), listed(&arm, unknown)], None),
        (INDEX, vec![listed(&arm, amd64("v3")), listed(&image, amd64("v1"))], None),
        (fat, vec![listed(&image, base.clone())], None),
        (INDEX, vec![listed(&arm, other)], Some((Code::InputMissing, "it lists linux/arm64"))),
        (INDEX, vec![listed(&arm, amd64("v3"))], Some((Code::InputMissing, "linux/amd64/v3"))),
        (
            INDEX,
            vec![listed(&arm, base.clone()), listed(&image, base)],
            Some((Code::InputRefused, "several")),
        ),
    ] {
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).to_string();
        let pinned = sha256(index.as_bytes());
        let image = Image::oci();
        let server = Server::start(move |asked| match asked.path.ends_with(&format!("sha256:{pinned}")) {
            true => Answer::new(format!("200 OK\r\ncontent-type: {media_type}"), index.clone()),
            false => serve(&image, asked),
        });
        match (pull(&server, &pinned), expected) {
            (Ok((found, _)), None) => assert_eq!(found.manifest.sha256, manifest),
            (Err(error), Some((code, says))) => {
                assert_eq!(error.code(), code, "{error}");
                assert!(error.to_string().contains(says), "{error}");
            }
            (other, _) => panic!("{other:?}"),
        }
    }
}

#[test]
fn tag_is_resolved_by_the_bytes_that_it_names() {
    let image = Image::oci();
    let manifest = sha256(&image.manifest);
    let server = Server::start(move |asked| serve(&image, asked));
    let access = access(&[server.host()], None);
    let resolve = |text: &str| wait(super::super::resolve_tag(&access, &server.reference(text)));
    assert_eq!(resolve("team/base:v1").unwrap(), manifest);
    let error = resolve("team/base").unwrap_err();
    assert_eq!(error.code(), Code::InputMissing);
    assert!(error.to_string().contains("team/base:latest"), "{error}");
}

#[test]
fn download_that_breaks_off_is_taken_up_where_it_was() {
    for ranges in [true, false] {
        let image = Image::oci();
        let (blob, layer) = (image.blob(), image.layer.clone());
        let server = Server::start(move |asked| {
            let from =
                asked.header("range").strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')?.parse().ok());
            let bytes = &image.layer;
            match from {
                None => Answer::new("200 OK", bytes.clone()).cut(300_000),
                Some(from) if ranges => {
                    let head = format!(
                        "206 Partial\r\ncontent-range: bytes {from}-{}/{}",
                        bytes.len() - 1,
                        bytes.len()
                    );
                    Answer::new(head, &bytes[from..]).cut(if from < 400_000 {
                        250_000
                    } else {
                        bytes.len() - from
                    })
                }
                // One that knows no ranges sends all of it.
                Some(_) => Answer::new("200 OK", bytes.clone()),
            }
        });
        assert!(layer_of(&server, &blob).unwrap() == layer);
        let ranges_asked: Vec<String> = server.asked().iter().map(|a| a.header("range").to_owned()).collect();
        let expected: &[&str] =
            if ranges { &["", "bytes=300000-", "bytes=550000-"] } else { &["", "bytes=300000-"] };
        assert_eq!(ranges_asked, expected);
    }
}

#[test]
fn download_that_keeps_breaking_off_ends_and_a_lie_is_not_asked_for_again() {
    let image = Image::oci();
    let blob = image.blob();
    let server = Server::start(move |_| Answer::new("200 OK", image.layer.clone()).cut(1000));
    let error = layer_of(&server, &blob).unwrap_err();
    assert_eq!(error.code(), Code::InputUnreachable);
    assert!(error.to_string().contains("after 1000 of 800000 bytes"), "{error}");
    assert_eq!(server.asked().len(), 1 + RESUMES_MAX as usize);

    let image = Image::oci();
    let server = Server::start(move |_| Answer::new("200 OK", vec![0; image.layer.len()]));
    let error = layer_of(&server, &blob).unwrap_err();
    assert_eq!(error.code(), Code::InputDigestMismatch);
    assert_eq!(server.asked().len(), 1);
}

type Script = fn(&Image, &Asked) -> Option<Answer>;
/// What happens, what the registry does, the code, and what is said besides registry and repository.
type Case = (&'static str, Script, Code, &'static str);

const TOO_LARGE: usize = (4 << 20) + 1;

fn to_manifest(asked: &Asked, head: &str, body: impl Into<Vec<u8>>) -> Option<Answer> {
    asked.path.contains("/manifests/").then(|| Answer::new(head, body))
}

fn to_layer(image: &Image, asked: &Asked, head: &str, body: impl Into<Vec<u8>>) -> Option<Answer> {
    asked.path.ends_with(&sha256(&image.layer).to_string()).then(|| Answer::new(head, body))
}

/// Blanks whose number is not said before.
fn chunked(length: usize) -> String {
    format!("{length:x}\r\n{}\r\n0\r\n\r\n", " ".repeat(length))
}

/// Answers that are no success.
const STATUSES: [Case; 9] = [
    ("401", |_, a| to_manifest(a, "401 No", "{}"), Code::InputSourceDenied, "--registry-auth FILE"),
    (
        "401 basic",
        |_, a| to_manifest(a, "401 No\r\nwww-authenticate: Basic realm=\"x\"", "{}"),
        Code::InputSourceDenied,
        "--registry-auth FILE",
    ),
    (
        "403",
        |_, a| to_manifest(a, "403 No", r#"{"errors":[{"code":"DENIED"}]}"#),
        Code::InputSourceDenied,
        "403, DENIED",
    ),
    (
        "404",
        |_, a| to_manifest(a, "404 No", r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#),
        Code::InputMissing,
        "404, NAME_UNKNOWN; correct the repository",
    ),
    ("404 blob", |i, a| to_layer(i, a, "404 No", ""), Code::InputMissing, "layer sha256:"),
    (
        "429",
        |_, a| to_manifest(a, "429 No\r\nretry-after: 17", ""),
        Code::InputUnreachable,
        "try again in 17 s",
    ),
    ("503", |_, a| to_manifest(a, "503 No", ""), Code::InputUnreachable, "try again later"),
    ("500 blob", |i, a| to_layer(i, a, "500 No", ""), Code::InputUnreachable, "answered 500"),
    ("418", |_, a| to_manifest(a, "418 No", "secret text"), Code::InputRefused, "answered 418"),
];

/// Successes that are lies.
const LIES: [Case; 8] = [
    (
        "another manifest",
        |_, a| to_manifest(a, "200 OK", "{}"),
        Code::InputDigestMismatch,
        "expected sha256:",
    ),
    (
        "manifest too large",
        |_, a| to_manifest(a, "200 OK", vec![b' '; TOO_LARGE]),
        Code::InputRefused,
        "4194304",
    ),
    (
        "endless manifest",
        |_, a| to_manifest(a, "200 OK\r\ntransfer-encoding: chunked", chunked(TOO_LARGE)),
        Code::InputRefused,
        "4194304",
    ),
    (
        "type of another kind",
        |i, a| to_manifest(a, &format!("200 OK\r\ncontent-type: {INDEX}"), i.manifest.clone()),
        Code::InputRefused,
        "calls itself something else",
    ),
    (
        "length of another blob",
        |i, a| to_layer(i, a, "200 OK", "short"),
        Code::InputRefused,
        "offers 5 bytes",
    ),
    (
        "endless blob",
        |i, a| to_layer(i, a, "200 OK\r\ntransfer-encoding: chunked", chunked(i.layer.len() + 1)),
        Code::InputRefused,
        "more bytes come than",
    ),
    (
        "another blob",
        |i, a| to_layer(i, a, "200 OK", vec![0; i.layer.len()]),
        Code::InputDigestMismatch,
        "layer sha256:",
    ),
    (
        "a range nobody asked for",
        |i, a| to_layer(i, a, "206 Partial\r\ncontent-range: bytes 0-9/10", "0123456789"),
        Code::InputRefused,
        "answered 206",
    ),
];

#[test]
fn failures_name_registry_repository_reference_and_remedy() {
    for (name, script, code, says) in STATUSES.into_iter().chain(LIES) {
        let image = Image::oci();
        let pinned = sha256(&image.manifest);
        let server =
            Server::start(move |asked| script(&image, asked).unwrap_or_else(|| serve(&image, asked)));
        let error = pull(&server, &pinned).map(drop).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.code(), code, "{name}: {text}");
        assert!(text.contains(says), "{name}: {text}");
        let repository = format!("docker://{}/team/base", server.host());
        assert!(text.contains(&repository) && text.contains("sha256:"), "{name}: {text}");
        assert!(!text.contains("secret text"), "{name}: {text}");
    }
}

#[test]
fn documents_that_are_not_for_us_are_refused_by_name() {
    let schema_one =
        json!({"schemaVersion": 1, "name": "x", "tag": "v1", "fsLayers": [], "history": []}).to_string();
    let (arm, pretty) = (
        Image::new([MANIFEST, CONFIG, LAYER], "arm64"),
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    );
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let foreign = Image::new([MANIFEST, CONFIG, foreign], "amd64");
    for (bytes, media_type, says) in [
        (schema_one.clone().into_bytes(), pretty, "schema 1"),
        (schema_one.into_bytes(), MANIFEST, "schema 1"),
        (arm.manifest.clone(), MANIFEST, "for linux/arm64"),
        (foreign.manifest.clone(), MANIFEST, "foreign"),
        (b"{\"schemaVersion\": 2}".to_vec(), "text/html", "text/html"),
        (b"{\"schemaVersion\": 2}".to_vec(), "application/json", "neither"),
        (b"<html>".to_vec(), "text/html", "not valid"),
    ] {
        let pinned = sha256(&bytes);
        let config = arm.config.clone();
        let server = Server::start(move |asked| match asked.path.contains("/manifests/") {
            true => Answer::new(format!("200 OK\r\ncontent-type: {media_type}"), bytes.clone()),
            false => Answer::new("200 OK", config.clone()),
        });
        let error = pull(&server, &pinned).map(drop).unwrap_err();
        assert_eq!(error.code(), Code::InputRefused, "{error}");
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
}

#[test]
fn nobody_there_is_unreachable_and_an_unknown_host_is_said_to_be_one() {
    let closed = Server::start(|_| Answer::new("200 OK", "")).host().to_owned();
    for (host, says) in
        [(closed.as_str(), "cannot be reached"), ("no-such-host.invalid", "host is not known")]
    {
        let reference = super::super::Reference::parse(&format!("docker://{host}/a")).unwrap().0;
        let access = access(&[&closed], None);
        let error = wait(super::super::resolve_tag(&access, &reference)).unwrap_err();
        assert_eq!(error.code(), Code::InputUnreachable);
        assert!(error.to_string().contains(says) && error.to_string().contains(host), "{error}");
    }
}
