//! `ContentRef` of the wire and what the store calls it.

use crate::api::convert::FieldError;
use ampoule_proto::v1 as proto;
use ampoule_spec::Sha256;
use ampoule_spec::wire::Content;

/// The latest time of an entry, as a job's `source_date_epoch`: the end of the year 9999.
const EPOCH_MAX: u64 = 253_402_300_799;

fn wrong(field: String, reason: impl std::fmt::Display) -> FieldError {
    FieldError { field, reason: reason.to_string() }
}

/// Checks a reference; `field` is its path in the message.
///
/// # Errors
/// The first field that is wrong.
pub fn content(field: &str, reference: &proto::ContentRef) -> Result<Content, FieldError> {
    let at = |name: &str| format!("{field}.{name}");
    let sha256 = Sha256::parse(&reference.sha256).map_err(|e| wrong(at("sha256"), e))?;
    let proto::ContentRef { epoch, executable, .. } = *reference;
    let kind = proto::ContentKind::try_from(reference.kind)
        .map_err(|_| wrong(at("kind"), format!("{} is not known", reference.kind)))?;
    if executable && kind != proto::ContentKind::File {
        return Err(wrong(at("executable"), "only a file may be executable"));
    }
    let content = match kind {
        proto::ContentKind::Unspecified => return Err(wrong(at("kind"), "missing")),
        proto::ContentKind::Directory => Content::Directory { tree: Some(sha256), epoch },
        proto::ContentKind::File => Content::File { sha256: Some(sha256), executable, epoch },
        proto::ContentKind::Archive => Content::Archive { sha256, epoch },
        proto::ContentKind::ImageTar => Content::ImageTar { sha256 },
        proto::ContentKind::OciManifest => Content::OciManifest { sha256 },
        proto::ContentKind::OciConfig => Content::OciConfig { sha256 },
        proto::ContentKind::OciLayer => Content::OciLayer { sha256 },
    };
    let is_image = !matches!(
        kind,
        proto::ContentKind::Directory | proto::ContentKind::File | proto::ContentKind::Archive
    );
    match epoch {
        0 => Ok(content),
        _ if is_image => Err(wrong(at("epoch"), "an image has none; leave it out")),
        _ if epoch > EPOCH_MAX => Err(wrong(at("epoch"), "it lies after the year 9999")),
        _ => Ok(content),
    }
}

/// What the wire calls a content; none for one that cannot be uploaded, or whose digest is not known.
pub fn content_ref(content: &Content) -> Option<proto::ContentRef> {
    use proto::ContentKind as Kind;
    let (kind, sha256, epoch, executable) = match *content {
        Content::Directory { tree, epoch } => (Kind::Directory, tree?, epoch, false),
        Content::File { sha256, executable, epoch } => (Kind::File, sha256?, epoch, executable),
        Content::Archive { sha256, epoch } => (Kind::Archive, sha256, epoch, false),
        Content::ImageTar { sha256 } => (Kind::ImageTar, sha256, 0, false),
        Content::OciManifest { sha256 } => (Kind::OciManifest, sha256, 0, false),
        Content::OciConfig { sha256 } => (Kind::OciConfig, sha256, 0, false),
        Content::OciLayer { sha256 } => (Kind::OciLayer, sha256, 0, false),
        Content::Git { .. } => return None,
    };
    Some(proto::ContentRef { kind: kind.into(), sha256: sha256.to_string(), epoch, executable })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(kind: proto::ContentKind) -> proto::ContentRef {
        proto::ContentRef { kind: kind.into(), sha256: "ab".repeat(32), epoch: 0, executable: false }
    }

    #[test]
    fn every_kind_crosses_the_wire_and_back() {
        use proto::ContentKind as Kind;
        for kind in (1..).map_while(|number| Kind::try_from(number).ok()) {
            let mut there = reference(kind);
            if matches!(kind, Kind::Directory | Kind::File | Kind::Archive) {
                there.epoch = 7;
            }
            there.executable = kind == Kind::File;
            let content = content("content", &there).unwrap();
            assert_eq!(content_ref(&content), Some(there));
        }
    }

    #[test]
    fn field_that_is_wrong_is_named() {
        use proto::ContentKind as Kind;
        let image = reference(Kind::OciLayer);
        let file = reference(Kind::File);
        for (bad, field) in [
            (reference(Kind::Unspecified), "c.kind"),
            (proto::ContentRef { kind: 99, ..file.clone() }, "c.kind"),
            (proto::ContentRef { sha256: "../../etc/passwd".into(), ..file.clone() }, "c.sha256"),
            (proto::ContentRef { sha256: "AB".repeat(32), ..file.clone() }, "c.sha256"),
            (proto::ContentRef { epoch: 1, ..image.clone() }, "c.epoch"),
            (proto::ContentRef { executable: true, ..image }, "c.executable"),
            (proto::ContentRef { epoch: u64::MAX, ..file }, "c.epoch"),
        ] {
            assert_eq!(content("c", &bad).unwrap_err().field, field);
        }
    }
}
