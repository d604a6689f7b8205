//! The places of a job file where a digest is missing, and how it is written there.

use crate::jobfile::{ImageRef, PathDigest};
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
    /// `http` of an input: its place in the list, the URL, and its mirrors.
    Http(usize, String, Vec<String>),
    /// `tar` of an input: its place in the list, and the path.
    Tar(usize, String),
    /// `git` of an input.
    Git {
        /// Its place in the list.
        at: usize,
        /// The repository.
        place: Repository,
        /// The key that names what can change.
        key: &'static str,
        /// What it names.
        name: String,
    },
}

/// Where a repository lies, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Repository {
    /// `url`.
    Url(String),
    /// `path`.
    Path(String),
}

impl Repository {
    fn shown(&self) -> &str {
        let (Self::Url(text) | Self::Path(text)) = self;
        text
    }
}

/// Keys of `git` that name what can change. A tag stays beside the commit, because its signature is looked at; the others
/// give way to it.
const MOVING: [&str; 4] = ["branch", "ref", "rev", TAG];
const TAG: &str = "tag";

impl Unpinned {
    /// The field, as in `input[0].http`.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// What it names: an image, a URL without its query, a repository and a name in it, or a path.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Digits that stand for the right ones before anybody is asked.
    pub(super) fn draft(&self) -> String {
        "0".repeat(if matches!(self.kind, Kind::Git { .. }) { 40 } else { 64 })
    }

    /// What it is pinned to, for people.
    pub(super) fn spelt(&self, digits: &str) -> String {
        if matches!(self.kind, Kind::Git { .. }) { digits.to_owned() } else { format!("sha256:{digits}") }
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
                let kind = Kind::Http(at, url, mirrors(input));
                found.push(Unpinned { field: field("http"), what, kind });
            }
            if let Some((place, key, name)) = moving(input) {
                let what = format!("{} {name}", place.shown());
                found.push(Unpinned { field: field("git"), what, kind: Kind::Git { at, place, key, name } });
            }
            if let Some(path) = missing("tar", "path") {
                found.push(Unpinned { field: field("tar"), what: path.clone(), kind: Kind::Tar(at, path) });
            }
        }
        found
    }

    /// Writes a digest into its place.
    pub(super) fn pin(&mut self, unpinned: &Unpinned, digits: &str) {
        match &unpinned.kind {
            Kind::Image => {
                if let Some(value) = self.0.get_mut("image").and_then(Item::as_value_mut) {
                    let decor = value.decor().clone();
                    let text = format!("{}@sha256:{digits}", value.as_str().unwrap_or_default());
                    *value = Value::from(text);
                    *value.decor_mut() = decor;
                }
            }
            Kind::Http(at, ..) => self.add(*at, "http", "sha256", digits),
            Kind::Tar(at, _) => self.add(*at, "tar", "sha256", digits),
            Kind::Git { at, key, .. } => {
                self.add(*at, "git", "commit", digits);
                if *key != TAG {
                    self.remove(*at, "git", key);
                }
            }
        }
    }

    /// Writes the digest of an input's path beside it, in the place of the one that is there.
    pub(super) fn pin_path(&mut self, at: usize, digest: PathDigest) {
        let Some(inputs) = self.0.get_mut("input") else { return };
        let other = if digest.key() == "sha256" { "tree_sha256" } else { "sha256" };
        let mut value = Value::from(digest.sha256().to_string());
        if inputs.is_array_of_tables() {
            let Some(input) = inputs.as_array_of_tables_mut().and_then(|tables| tables.get_mut(at)) else {
                return;
            };
            input.remove(other);
            match input.get_mut(digest.key()).and_then(Item::as_value_mut) {
                Some(old) => {
                    *value.decor_mut() = old.decor().clone();
                    *old = value;
                }
                None => drop(input.insert(digest.key(), Item::Value(value))),
            }
            return;
        }
        let input = inputs.as_array_mut().and_then(|array| array.get_mut(at)?.as_inline_table_mut());
        let Some(input) = input else { return };
        input.remove(other);
        match input.get_mut(digest.key()) {
            Some(old) => {
                *value.decor_mut() = old.decor().clone();
                *old = value;
            }
            None => append(input, digest.key(), value),
        }
    }

    fn input(&self, at: usize) -> Option<&dyn TableLike> {
        let inputs = self.0.get("input")?;
        match inputs.as_array_of_tables() {
            Some(tables) => tables.get(at).map(|table| table as &dyn TableLike),
            None => inputs.as_array()?.get(at)?.as_inline_table().map(|table| table as &dyn TableLike),
        }
    }

    fn remove(&mut self, at: usize, kind: &str, key: &str) {
        let Some(inputs) = self.0.get_mut("input") else { return };
        if inputs.is_array_of_tables() {
            let tables = inputs.as_array_of_tables_mut();
            if let Some(source) = tables.and_then(|t| t.get_mut(at)?.get_mut(kind)?.as_table_like_mut()) {
                source.remove(key);
            }
            return;
        }
        let input = inputs.as_array_mut().and_then(|array| array.get_mut(at)?.as_inline_table_mut());
        if let Some(source) = input.and_then(|input| input.get_mut(kind)?.as_inline_table_mut()) {
            source.remove(key);
        }
    }

    fn add(&mut self, at: usize, kind: &str, key: &str, digits: &str) {
        let Some(inputs) = self.0.get_mut("input") else { return };
        let value = Value::from(digits);
        let source = if inputs.is_array_of_tables() {
            inputs.as_array_of_tables_mut().and_then(|tables| tables.get_mut(at)?.get_mut(kind))
        } else {
            let input = inputs.as_array_mut().and_then(|array| array.get_mut(at)?.as_inline_table_mut());
            if let Some(source) = input.and_then(|input| input.get_mut(kind)?.as_inline_table_mut()) {
                append(source, key, value);
            }
            return;
        };
        match source {
            Some(Item::Value(Value::InlineTable(source))) => append(source, key, value),
            Some(Item::Table(source)) => {
                source.insert(key, Item::Value(value));
            }
            _ => {}
        }
    }
}

/// The other URLs of a download.
fn mirrors(input: &dyn TableLike) -> Vec<String> {
    let source = input.get("http").and_then(Item::as_table_like);
    let mirrors = source.and_then(|source| source.get("mirrors")?.as_array());
    mirrors.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What a git input names that can change: repository, key and name.
fn moving(input: &dyn TableLike) -> Option<(Repository, &'static str, String)> {
    let source = input.get("git")?.as_table_like()?;
    if source.contains_key("commit") {
        return None;
    }
    let text = |key: &str| source.get(key).and_then(Item::as_str).map(str::to_owned);
    let place = text("url").map(Repository::Url).or_else(|| text("path").map(Repository::Path))?;
    let mut named = MOVING.iter().filter_map(|key| Some((*key, source.get(key)?.as_str()?)));
    let (key, name) = named.next()?;
    // Two of them may differ: which one is meant is for people.
    named.next().is_none().then(|| (place, key, name.to_owned()))
}

/// Adds the digest behind the last key. What stood between that and the brace stands there still.
fn append(source: &mut toml_edit::InlineTable, key: &str, mut value: Value) {
    if source.is_dotted() {
        source.insert(key, value);
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
    source.insert(key, value);
}
