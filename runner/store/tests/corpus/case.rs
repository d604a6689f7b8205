//! One archive of the corpus, and what is expected of it.

use crate::common::*;
use ampoule_spec::wire::Content;

/// From a staged tree to what lies beside the store; see `hostile/archives.rs`.
pub(crate) const OUT: &str = "../../../../outside";

/// What we do with an archive. Whatever it is, other programs must not list another one that we took.
pub(crate) enum Expected {
    /// It is read.
    Accepted,
    /// It is refused by this name.
    Refused(&'static str),
    /// It is one of many that are made by rule: refused by any name, or read as others read it.
    Either,
}

pub(crate) struct Case {
    pub(crate) what: String,
    pub(crate) expected: Expected,
    pub(crate) source: Vec<u8>,
    pub(crate) content: Content,
}

impl Case {
    pub(crate) fn either(mut self) -> Self {
        self.expected = Expected::Either;
        self
    }
}

/// An archive as an input. The refusal's name; empty if it is read.
pub(crate) fn case(refusal: &'static str, what: &str, source: Vec<u8>) -> Case {
    let expected = if refusal.is_empty() { Expected::Accepted } else { Expected::Refused(refusal) };
    let content = archive(&source);
    Case { what: what.to_owned(), expected, source, content }
}

pub(crate) fn entries(refusal: &'static str, what: &str, entries: &[H]) -> Case {
    case(refusal, what, tar(entries))
}

pub(crate) fn accepted(what: &str, of: &[H]) -> Case {
    entries("", what, of)
}

pub(crate) fn layer(refusal: &'static str, what: &str, of: &[H]) -> Case {
    let case = entries(refusal, &format!("layer: {what}"), of);
    Case { content: Content::OciLayer { sha256: sha(&case.source) }, ..case }
}

pub(crate) fn image(refusal: &'static str, what: &str, of: &[H]) -> Case {
    let case = entries(refusal, &format!("image: {what}"), of);
    Case { content: Content::ImageTar { sha256: sha(&case.source) }, ..case }
}

pub(crate) fn accepted_layer(what: &str, of: &[H]) -> Case {
    layer("", what, of)
}

pub(crate) fn accepted_image(what: &str, of: &[H]) -> Case {
    image("", what, of)
}
