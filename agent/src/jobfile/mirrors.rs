//! `mirrors` of a download: where else the same bytes are.

use super::error::JobFileError;
use super::read::Value;
use crate::inputs::parse_url;
use ampoule_spec::MIRRORS_MAX;

/// Reads the list of a download from `url`.
pub(super) fn read(value: &Value<'_>, url: &str) -> Result<Vec<String>, JobFileError> {
    let example = "[\"https://mirror.example/src.tar.gz\"]";
    let items = value.items("a list of URLs", example)?;
    if items.len() > MIRRORS_MAX {
        return Err(value.wrong(format!("{} mirrors", items.len()), format!("give at most {MIRRORS_MAX}")));
    }
    let mut mirrors: Vec<String> = Vec::new();
    for item in &items {
        let text = item.text("a URL", "\"https://mirror.example/src.tar.gz\"")?;
        let mirror = parse_url(text).map_err(|reason| item.wrong(reason, ""))?;
        let of = parse_url(url).map_err(|reason| value.wrong(reason, ""))?;
        if mirror.scheme() == "file" || of.scheme() == "file" {
            return Err(item.wrong("a file URL has no mirrors and is none", "write http:// or https:// URLs"));
        }
        if text == url || mirrors.iter().any(|other| other == text) {
            return Err(item.wrong("the URL is given twice", "remove one"));
        }
        mirrors.push(text.to_owned());
    }
    Ok(mirrors)
}
