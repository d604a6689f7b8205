//! A stranger's image documents. The agent chooses what to send by its own reading, and the runner takes in what it reads
//! itself: they must not read two images out of one manifest.

use crate::place::{self, Place};
use ampoule_agent::inputs::{LayoutImage, OciLayout};
use ampoule_spec::Sha256;
use ampoule_spec::wire::Content;
use sha2::Digest as _;
use std::fs;
use std::path::Path;

/// The layers that are there: gzip of an empty archive, and three that differ.
const LAYERS: usize = 4;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn sha(bytes: &[u8]) -> Sha256 {
    Sha256::new(sha2::Sha256::digest(bytes).into())
}

/// Layer `number`: an archive of so many blocks of zeros, so that each has a length of its own.
fn layer(number: usize) -> Vec<u8> {
    vec![0; 1024 + 512 * number]
}

/// A configuration of these layers.
fn config(layers: &[usize]) -> Vec<u8> {
    let ids: Vec<_> = layers.iter().map(|n| format!("\"sha256:{}\"", sha(&layer(*n)))).collect();
    let ids = ids.join(",");
    format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#)
        .into()
}

/// The configurations that are there: of one layer, of three, and of one twice.
fn configs() -> [Vec<u8>; 3] {
    [config(&[1]), config(&[1, 2, 3]), config(&[0, 0])]
}

/// Good documents, each with the byte before it that [`run`] takes.
pub fn seeds() -> Vec<Vec<u8>> {
    let part = |media: &str, bytes: &[u8]| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{media}","digest":"sha256:{}","size":{}}}"#,
            sha(bytes),
            bytes.len()
        )
    };
    let mut seeds = Vec::new();
    for (config, layers) in configs().iter().zip([&[1][..], &[1, 2, 3], &[0, 0]]) {
        let layers: Vec<_> = layers.iter().map(|n| part("layer.v1.tar", &layer(*n))).collect();
        let config = part("config.v1+json", config);
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{config},"layers":[{}]}}"#,
            layers.join(",")
        );
        let index = format!(
            r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{MANIFEST}","digest":"sha256:{}","size":{},"platform":{{"architecture":"amd64","os":"linux"}},"annotations":{{"org.opencontainers.image.ref.name":"latest"}}}}]}}"#,
            sha(manifest.as_bytes()),
            manifest.len()
        );
        seeds.push([b"\0", manifest.as_bytes()].concat());
        seeds.push([b"\x02", index.as_bytes()].concat());
        seeds.push([b"\x03", index.as_bytes()].concat());
    }
    seeds.extend(configs().iter().map(|config| [b"\x01", config.as_slice()].concat()));
    seeds
}

/// The first byte says what the rest is: a manifest, a configuration, a layout's index, or an index below it.
pub fn run(data: &[u8]) {
    both_read(data);
}

/// The same, and whether it is a manifest that both sides read.
pub fn both_read(data: &[u8]) -> bool {
    let Some((kind, document)) = data.split_first() else { return false };
    place::with(|place| {
        let layout = place.path("layout");
        if !layout.exists() {
            make_layout(&layout);
        }
        // What an image consists of lies in the store all the time: most documents are refused before it matters.
        if place.entries("trees") == 0 {
            fill(place);
        }
        let mut both = false;
        match kind % 4 {
            0 => both = manifest(place, &layout, document),
            1 => drop(place.import(&Content::OciConfig { sha256: sha(document) }, document)),
            2 => index(&layout, document, None),
            _ => {
                put_blob(&layout, document);
                let outer = descriptor_index(INDEX, document);
                index(&layout, outer.as_bytes(), Some(sha(document)));
                remove_blob(&layout, document);
            }
        }
        if place.entries("trees") > LAYERS + 3 {
            place.check_and_empty(&["layout"]);
        }
        both
    })
}

fn fill(place: &Place) {
    for number in 0..LAYERS {
        let source = layer(number);
        place.import(&Content::OciLayer { sha256: sha(&source) }, &source).expect("a good layer");
    }
    for source in configs() {
        place.import(&Content::OciConfig { sha256: sha(&source) }, &source).expect("a good configuration");
    }
}

fn make_layout(layout: &Path) {
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    (0..LAYERS).for_each(|number| put_blob(layout, &layer(number)));
    configs().iter().for_each(|config| put_blob(layout, config));
    let manifests = seeds().into_iter().filter(|seed| seed[0] == 0);
    manifests.for_each(|manifest| put_blob(layout, &manifest[1..]));
}

fn blob(layout: &Path, bytes: &[u8]) -> std::path::PathBuf {
    layout.join(format!("blobs/sha256/{}", sha(bytes)))
}

fn put_blob(layout: &Path, bytes: &[u8]) {
    fs::write(blob(layout, bytes), bytes).unwrap();
}

/// What belongs to the layout stays.
fn remove_blob(layout: &Path, bytes: &[u8]) {
    let own = (0..LAYERS).map(layer).chain(configs());
    let manifests = seeds().into_iter().map(|seed| seed[1..].to_vec());
    if !own.chain(manifests).any(|other| other == bytes) {
        fs::remove_file(blob(layout, bytes)).unwrap();
    }
}

fn descriptor_index(media: &str, bytes: &[u8]) -> String {
    format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{media}","digest":"sha256:{}","size":{}}}]}}"#,
        sha(bytes),
        bytes.len()
    )
}

/// Any index of a layout: opened or refused; every image that it gives is whole.
fn index(layout: &Path, document: &[u8], pinned: Option<Sha256>) {
    fs::write(layout.join("index.json"), document).unwrap();
    let Ok(opened) = OciLayout::open(layout) else { return };
    let known = seeds().into_iter().filter(|seed| seed[0] == 0).map(|seed| sha(&seed[1..]));
    for digest in known.chain(pinned) {
        for tag in [None, Some("latest")] {
            if let Ok(image) = opened.image(&digest, tag) {
                whole(&opened, &image);
            }
        }
    }
}

fn whole(layout: &OciLayout, image: &LayoutImage) {
    for blob in image.layers.iter().chain([&image.config, &image.manifest]) {
        let file = layout.open_blob(blob).expect("a part of an image that was found");
        assert_eq!(file.metadata().unwrap().len(), blob.bytes);
    }
}

/// Any manifest: what the agent finds in it, the runner finds in it, in the same order.
fn manifest(place: &Place, layout: &Path, document: &[u8]) -> bool {
    put_blob(layout, document);
    fs::write(layout.join("index.json"), descriptor_index(MANIFEST, document)).unwrap();
    let digest = sha(document);
    let by_agent = OciLayout::open(layout).expect("a good index").image(&digest, None);
    let by_runner = place.import(&Content::OciManifest { sha256: digest }, document);
    let both = by_agent.is_ok() && by_runner.is_ok();
    match (by_agent, by_runner) {
        (Ok(image), Ok(_)) => {
            let layers = place.store.image_layers(digest).expect("an image that was imported");
            let lengths: Vec<_> = layers.iter().map(|layer| layer.source_bytes).collect();
            let wanted: Vec<_> = image.layers.iter().map(|layer| layer.bytes).collect();
            assert_eq!(lengths, wanted, "the runner mounts other layers than the agent chose");
        }
        // The runner holds layers against the configuration as well, so it may refuse where the agent does not; and
        // it reads Docker's media types, which a layout does not have.
        (Ok(_), Err(error)) => {
            let reasons = ["document", "diff_id", "part_missing"];
            assert!(reasons.contains(&error.name()), "{error}");
        }
        (Err(_), _) => {}
    }
    remove_blob(layout, document);
    both
}
