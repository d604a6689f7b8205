//! The spellings of an image: `host`, `oci:DIR[:TAG]@sha256:…`, `docker://HOST/REPO[:TAG]@sha256:…` and
//! `tar:FILE@sha256:…`.

use crate::registry::is_tag;
use crate::registry::{Reference, SCHEME};
use ampoule_spec::Sha256;
use std::fmt;

/// What the sandbox's root is made of, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageRef {
    /// The host's own `/usr`.
    Host,
    /// An image in an OCI layout directory.
    OciLayout {
        /// The directory, as written.
        dir: String,
        /// The tag that must name the same digest.
        tag: Option<String>,
        /// SHA-256 of the manifest, or of the image index that lists it.
        sha256: Sha256,
    },
    /// An image in a registry.
    Registry {
        /// The repository. A tag is for people: the digest alone says which image it is.
        reference: Reference,
        /// SHA-256 of the manifest, or of an image index.
        sha256: Sha256,
    },
    /// A root file system in one tar archive.
    Tar {
        /// The archive, as written.
        file: String,
        /// SHA-256 of its bytes.
        sha256: Sha256,
    },
}

/// Why a text is no image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageError {
    /// Whether all that is missing is a digest.
    pub(crate) unpinned: bool,
    /// What is wrong.
    pub(crate) reason: String,
    /// What to write instead.
    pub(crate) remedy: String,
}

/// The spellings, for messages.
pub(crate) const FORMS: &str = "write \"host\", \"oci:DIR[:TAG]@sha256:DIGEST\", \
     \"docker://HOST/REPO[:TAG]@sha256:DIGEST\" or \"tar:FILE@sha256:DIGEST\"";

fn wrong(reason: impl Into<String>, remedy: impl Into<String>) -> ImageError {
    ImageError { unpinned: false, reason: reason.into(), remedy: remedy.into() }
}

impl ImageRef {
    /// Reads an image's spelling.
    pub(crate) fn parse(text: &str) -> Result<Self, ImageError> {
        if text == "host" {
            return Ok(Self::Host);
        }
        if text.chars().any(char::is_control) {
            return Err(wrong("the text holds a control character", FORMS));
        }
        if text.starts_with(SCHEME) {
            let (reference, sha256) = Reference::parse(text).map_err(|e| wrong(e.reason, e.remedy))?;
            let sha256 = sha256.ok_or_else(|| ImageError {
                unpinned: true,
                reason: "the image is not pinned by a digest, and a tag can be moved".to_owned(),
                remedy:
                    "`ampoule pin JOB.toml` writes the digest that the tag has now; or add @sha256:DIGEST"
                        .to_owned(),
            })?;
            return Ok(Self::Registry { reference, sha256 });
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let how = "the digest of its manifest stands in DIR/index.json; add it as @sha256:DIGEST";
            let (place, sha256) = pinned(rest, how)?;
            let (dir, tag) = split_tag(place);
            return match dir {
                "" => Err(wrong("the directory is missing", FORMS)),
                _ => Ok(Self::OciLayout { dir: dir.to_owned(), tag: tag.map(str::to_owned), sha256 }),
            };
        }
        if let Some(rest) = text.strip_prefix("tar:") {
            let (file, sha256) =
                pinned(rest, "run `ampoule pin`, or run `sha256sum FILE` and add @sha256:DIGEST")?;
            return match file {
                "" => Err(wrong("the file is missing", FORMS)),
                _ => Ok(Self::Tar { file: file.to_owned(), sha256 }),
            };
        }
        Err(wrong("the kind of image is not known", FORMS))
    }
}

/// Splits `PLACE@sha256:DIGEST`.
fn pinned<'t>(text: &'t str, remedy: &str) -> Result<(&'t str, Sha256), ImageError> {
    let unpinned = || ImageError {
        unpinned: true,
        reason: "the image is not pinned by a digest".to_owned(),
        remedy: remedy.to_owned(),
    };
    let (place, digest) = text.rsplit_once('@').ok_or_else(unpinned)?;
    let (algorithm, hex) = digest.split_once(':').ok_or_else(unpinned)?;
    if algorithm != "sha256" {
        return Err(wrong("only sha256 digests are read", "write @sha256: and 64 hexadecimal digits"));
    }
    let sha256 = Sha256::parse(hex).map_err(|e| wrong(e.to_string(), remedy))?;
    Ok((place, sha256))
}

/// Splits `DIR[:TAG]`; what holds a slash is no tag.
pub(crate) fn split_tag(place: &str) -> (&str, Option<&str>) {
    match place.rsplit_once(':') {
        Some((dir, tag)) if is_tag(tag) => (dir, Some(tag)),
        _ => (place, None),
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::OciLayout { dir, tag: Some(tag), sha256 } => write!(f, "oci:{dir}:{tag}@sha256:{sha256}"),
            Self::OciLayout { dir, tag: None, sha256 } => write!(f, "oci:{dir}@sha256:{sha256}"),
            Self::Registry { reference, sha256 } => write!(f, "{reference}@sha256:{sha256}"),
            Self::Tar { file, sha256 } => write!(f, "tar:{file}@sha256:{sha256}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    #[test]
    fn parse_good_spellings_round_trip() {
        for text in [
            "host".to_owned(),
            format!("oci:./base@{D}"),
            format!("oci:./base:v1.2@{D}"),
            format!("oci:/a:b/c@d@{D}"),
            format!("tar:root fs.tar.zst@{D}"),
            format!("docker://registry.example:5000/team/base@{D}"),
            format!("docker://registry.example/base:v1.2@{D}"),
        ] {
            assert_eq!(ImageRef::parse(&text).unwrap().to_string(), text);
        }
        let with_tag = ImageRef::parse(&format!("oci:./base:v1@{D}")).unwrap();
        assert!(matches!(with_tag, ImageRef::OciLayout { tag: Some(tag), .. } if tag == "v1"));
        let slash = ImageRef::parse(&format!("oci:/a:b/c@{D}")).unwrap();
        assert!(matches!(slash, ImageRef::OciLayout { tag: None, .. }));
    }

    #[test]
    fn parse_without_digest_is_unpinned_and_all_else_is_wrong() {
        for text in
            ["oci:./base", "oci:./base:v1", "tar:x.tar", "oci:a@b", "docker://h.x/a", "docker://h.x/a:v1"]
        {
            assert!(ImageRef::parse(text).unwrap_err().unpinned, "{text}");
        }
        let short = format!("docker://debian@{D}");
        for text in
            ["", "Host", "x", "oci:a@sha512:00", "oci:a@sha256:00", "docker://x", "tar:a\n@sha256:0", &short]
        {
            assert!(!ImageRef::parse(text).unwrap_err().unpinned, "{text}");
        }
        assert!(ImageRef::parse(&format!("oci:@{D}")).is_err());
        assert!(ImageRef::parse(&format!("oci::v1@{D}")).is_err());
        assert!(ImageRef::parse(&format!("tar:@{D}")).is_err());
    }
}
