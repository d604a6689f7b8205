//! The places of a job file where a digest is missing, and how it is written there.

use crate::jobfile::ImageRef;
use ampoule_spec::Sha256;
use toml_edit::{DocumentMut, Item, TableLike, Value};

/// A place where a digest is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpinned {
    field: String,
    what: String,
    pub(super) kind: Kind,
}

/// What is missing its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// The image.
    Image,
    /// `http` of an input: its place in the list, and the URL.
    Http(usize, String),
    /// `tar` of an input: its place in the list, and the path.
    Tar(usize, String),
}

impl Unpinned {
    /// The field, as in `input[0].http`.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// What it names: an image, a URL without its query, or a path.
    pub fn what(&self) -> &str {
        &self.what
    }
}

/// The file, to be edited.
#[derive(Debug, Clone)]
pub(super) struct Document(DocumentMut);

impl Document {
    /// Reads the text.
    ///
    /// # Errors
    /// What is no TOML about it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|e: toml_edit::TomlError| e.message().to_owned())
    }

    /// The text, as it was but for what was pinned.
    pub(super) fn text(&self) -> String {
        self.0.to_string()
    }

    /// Where digests are missing. What is wrong otherwise is left to the reader of job files.
    pub(super) fn unpinned(&self) -> Vec<Unpinned> {
        let mut found = Vec::new();
        let image = self.0.get("image").and_then(Item::as_str);
        if let Some(image) = image.filter(|image| ImageRef::parse(image).is_err_and(|e| e.unpinned)) {
            found.push(Unpinned { field: "image".to_owned(), what: image.to_owned(), kind: Kind::Image });
        }
        for at in 0.. {
            let Some(input) = self.input(at) else { break };
            let missing = |kind: &str, key: &str| -> Option<String> {
                let source = input.get(kind)?.as_table_like()?;
                let named = source.get(key)?.as_str()?;
                (!source.contains_key("sha256")).then(|| named.to_owned())
            };
            let field = |kind: &str| format!("input[{at}].{kind}");
            if let Some(url) = missing("http", "url") {
                let what = url.split(['?', '#']).next().unwrap_or_default().to_owned();
                found.push(Unpinned { field: field("http"), what, kind: Kind::Http(at, url) });
            }
            if let Some(path) = missing("tar", "path") {
                found.push(Unpinned { field: field("tar"), what: path.clone(), kind: Kind::Tar(at, path) });
            }
        }
        found
    }

    /// Writes a digest into its place.
    pub(super) fn pin(&mut self, unpinned: &Unpinned, sha256: &Sha256) {
        match &unpinned.kind {
            Kind::Image => {
                if let Some(value) = self.0.get_mut("image").and_then(Item::as_value_mut) {
                    let decor = value.decor().clone();
                    let text = format!("{}@sha256:{sha256}", value.as_str().unwrap_or_default());
                    *value = Value::from(text);
                    *value.decor_mut() = decor;
                }
            }
            Kind::Http(at, _) => self.add(*at, "http", sha256),
            Kind::Tar(at, _) => self.add(*at, "tar", sha256),
        }
    }

    fn input(&self, at: usize) -> Option<&dyn TableLike> {
        let inputs = self.0.get("input")?;
        match inputs.as_array_of_tables() {
            Some(tables) => tables.get(at).map(|table| table as &dyn TableLike),
            None => inputs.as_array()?.get(at)?.as_inline_table().map(|table| table as &dyn TableLike),
        }
    }

    fn add(&mut self, at: usize, kind: &str, sha256: &Sha256) {
        let Some(inputs) = self.0.get_mut("input") else { return };
        let value = Value::from(sha256.to_string());
        let source = if inputs.is_array_of_tables() {
            inputs.as_array_of_tables_mut().and_then(|tables| tables.get_mut(at)?.get_mut(kind))
        } else {
            let input = inputs.as_array_mut().and_then(|array| array.get_mut(at)?.as_inline_table_mut());
            if let Some(source) = input.and_then(|input| input.get_mut(kind)?.as_inline_table_mut()) {
                append(source, value);
            }
            return;
        };
        match source {
            Some(Item::Value(Value::InlineTable(source))) => append(source, value),
            Some(Item::Table(source)) => {
                source.insert("sha256", Item::Value(value));
            }
            _ => {}
        }
    }
}

/// Adds the digest behind the last key. What stood between that and the brace stands there still.
fn append(source: &mut toml_edit::InlineTable, mut value: Value) {
    if source.is_dotted() {
        source.insert("sha256", value);
        return;
    }
    let last = source.iter_mut().last().map(|(_, value)| value.decor_mut());
    if let Some(last) = last
        && let Some(suffix) = last.suffix().cloned()
    {
        value.decor_mut().set_prefix(" ");
        value.decor_mut().set_suffix(suffix);
        last.set_suffix("");
    }
    source.insert("sha256", value);
}
