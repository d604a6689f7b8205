//! The manifests of an export (image-spec 1.1, "Guidelines for Artifact Usage"): pure, and the same for the same
//! outputs, so that exporting again gives the same digests.

use ampoule_evidence::{BUNDLE_MEDIA_TYPE, PROVENANCE_PREDICATE_TYPE};
use ampoule_spec::Sha256;
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

/// The media type of a manifest.
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// What the outputs of a run are together.
pub(crate) const OUTPUTS_TYPE: &str = "application/vnd.ampoule.outputs.v1";
/// A directory that left as a tree, as one archive (docs/formats.md, "Output archives").
pub(crate) const TREE_LAYER_TYPE: &str = "application/vnd.ampoule.tree.v1.tar+zstd";
/// The configuration of an artifact that has none (image-spec 1.1).
pub(crate) const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// Its bytes.
pub(crate) const EMPTY: &[u8] = b"{}";

/// A document with its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) sha256: Sha256,
    pub(crate) media_type: String,
    pub(crate) artifact_type: Option<&'static str>,
    pub(crate) bytes: Vec<u8>,
}

impl Document {
    fn of(value: &Value, artifact_type: &'static str) -> Self {
        // A map of serde_json is sorted, and has no blanks when it is written so.
        let bytes = value.to_string().into_bytes();
        Self {
            sha256: sha256_of(&bytes),
            media_type: MANIFEST_TYPE.to_owned(),
            artifact_type: Some(artifact_type),
            bytes,
        }
    }

    /// How others name it.
    pub(crate) fn descriptor(&self) -> Value {
        let value = descriptor(&self.media_type, &self.sha256, self.bytes.len() as u64);
        match self.artifact_type {
            Some(artifact_type) => with(value, "artifactType", json!(artifact_type)),
            None => value,
        }
    }
}

/// An output as a manifest names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    /// Of the blob, as its length is.
    pub(crate) sha256: Sha256,
    pub(crate) bytes: u64,
    pub(crate) executable: bool,
    /// The tree digest of a directory, which is what provenance names.
    pub(crate) tree: Option<Sha256>,
}

/// The manifest of outputs: one blob each, a file as it is and a directory as an archive.
pub(crate) fn outputs(outputs: &[Named]) -> Document {
    let layers = outputs.iter().map(|output| {
        let title = json!({"org.opencontainers.image.title": output.name});
        let annotations =
            if output.executable { with(title, "ampoule.executable", json!("true")) } else { title };
        let (media_type, annotations) = match output.tree {
            Some(tree) => {
                (TREE_LAYER_TYPE, with(annotations, "ampoule.tree", json!(format!("sha256:{tree}"))))
            }
            None => ("application/octet-stream", annotations),
        };
        with(descriptor(media_type, &output.sha256, output.bytes), "annotations", annotations)
    });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": OUTPUTS_TYPE,
        "config": empty(), "layers": layers.collect::<Vec<_>>(),
    });
    Document::of(&manifest, OUTPUTS_TYPE)
}

/// The manifest of an attestation: it refers to what it is about (image-spec 1.1, `subject`), with the annotations
/// by which others find a bundle.
pub(crate) fn attestation(subject: &Document, bundle: &[u8]) -> Document {
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": BUNDLE_MEDIA_TYPE,
        "config": empty(),
        "layers": [descriptor(BUNDLE_MEDIA_TYPE, &sha256_of(bundle), bundle.len() as u64)],
        "subject": descriptor(&subject.media_type, &subject.sha256, subject.bytes.len() as u64),
        "annotations": bundle_annotations(),
    });
    Document::of(&manifest, BUNDLE_MEDIA_TYPE)
}

fn bundle_annotations() -> Value {
    json!({
        "dev.sigstore.bundle.content": "dsse-envelope",
        "dev.sigstore.bundle.predicateType": PROVENANCE_PREDICATE_TYPE,
    })
}

/// The index of those who refer to something, with one more in it: the tag schema for registries without the
/// referrers API (distribution-spec 1.1, "Referrers Tag Schema"). None: it is in it already.
///
/// # Errors
/// That what is under the tag is no index.
pub(crate) fn with_referrer(
    before: Option<&[u8]>,
    index_type: &str,
    referrer: &Document,
) -> Result<Option<Vec<u8>>, String> {
    let fresh = json!({"schemaVersion": 2, "mediaType": index_type, "manifests": []});
    let mut index = match before {
        None => fresh,
        Some(bytes) => serde_json::from_slice(bytes).map_err(|e| format!("not valid: {e}"))?,
    };
    if index.get("mediaType").is_some_and(|own| own != index_type) {
        return Err("it is no index".to_owned());
    }
    let manifests = index.get_mut("manifests").and_then(Value::as_array_mut).ok_or("it has no manifests")?;
    let digest = format!("sha256:{}", referrer.sha256);
    if manifests.iter().any(|one| one.get("digest").is_some_and(|own| *own == digest)) {
        return Ok(None);
    }
    manifests.push(with(referrer.descriptor(), "annotations", bundle_annotations()));
    Ok(Some(index.to_string().into_bytes()))
}

/// The tag under which that index lies.
pub(crate) fn referrers_tag(subject: &Sha256) -> String {
    format!("sha256-{subject}")
}

fn empty() -> Value {
    descriptor(EMPTY_TYPE, &sha256_of(EMPTY), EMPTY.len() as u64)
}

pub(crate) fn descriptor(media_type: &str, sha256: &Sha256, bytes: u64) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{sha256}"), "size": bytes})
}

/// An object with one entry more.
pub(crate) fn with(mut object: Value, key: &str, value: Value) -> Value {
    if let Some(entries) = object.as_object_mut() {
        entries.insert(key.to_owned(), value);
    }
    object
}

/// SHA-256 of bytes in memory.
pub(crate) fn sha256_of(bytes: &[u8]) -> Sha256 {
    let mut out = [0; 32];
    // A SHA-256 is 32 bytes long.
    for (to, from) in out.iter_mut().zip(digest(&SHA256, bytes).as_ref()) {
        *to = *from;
    }
    Sha256::new(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::{ImageIndex, ImageManifest};

    fn named(name: &str, executable: bool) -> Named {
        Named { name: name.to_owned(), sha256: sha256_of(name.as_bytes()), bytes: 1, executable, tree: None }
    }

    #[test]
    fn manifests_are_what_the_specification_says_and_always_the_same() {
        let made = outputs(&[named("a", false), named("b", true)]);
        assert_eq!(made, outputs(&[named("a", false), named("b", true)]));
        let manifest: ImageManifest = serde_json::from_slice(&made.bytes).unwrap();
        assert_eq!(manifest.artifact_type().as_ref().unwrap().as_ref(), OUTPUTS_TYPE);
        assert_eq!(
            manifest.config().digest().as_ref(),
            "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
        let title = |at: usize| manifest.layers()[at].annotations().clone().unwrap();
        assert_eq!(title(0)["org.opencontainers.image.title"], "a");
        assert_eq!(title(1)["ampoule.executable"], "true");

        let tree = Named { tree: Some(sha256_of(b"tree")), ..named("d", false) };
        let manifest: ImageManifest = serde_json::from_slice(&outputs(&[tree]).bytes).unwrap();
        let layer = &manifest.layers()[0];
        assert_eq!(layer.media_type().as_ref(), TREE_LAYER_TYPE);
        let annotations = layer.annotations().clone().unwrap();
        assert_eq!(annotations["ampoule.tree"], format!("sha256:{}", sha256_of(b"tree")));
        assert_eq!(layer.digest().as_ref(), format!("sha256:{}", sha256_of(b"d")));

        let about = attestation(&made, b"bundle");
        let manifest: ImageManifest = serde_json::from_slice(&about.bytes).unwrap();
        let subject = manifest.subject().as_ref().unwrap();
        assert_eq!(subject.digest().as_ref(), format!("sha256:{}", made.sha256));
        assert_eq!(subject.size(), made.bytes.len() as u64);
        assert_eq!(manifest.artifact_type().as_ref().unwrap().as_ref(), BUNDLE_MEDIA_TYPE);
    }

    #[test]
    fn referrer_is_added_once_beside_others() {
        let index_type = crate::registry::INDEX_TYPE;
        let made = outputs(&[named("a", false)]);
        let (first, second) = (attestation(&made, b"1"), attestation(&made, b"2"));
        let one = with_referrer(None, index_type, &first).unwrap().unwrap();
        assert_eq!(with_referrer(Some(&one), index_type, &first), Ok(None));
        let two = with_referrer(Some(&one), index_type, &second).unwrap().unwrap();
        let index: ImageIndex = serde_json::from_slice(&two).unwrap();
        assert_eq!(index.manifests().len(), 2);
        assert_eq!(index.manifests()[0].artifact_type().as_ref().unwrap().as_ref(), BUNDLE_MEDIA_TYPE);
        for wrong in [&b"{}"[..], b"[]", b"x", made.bytes.as_slice()] {
            assert!(with_referrer(Some(wrong), index_type, &first).is_err());
        }
    }
}
