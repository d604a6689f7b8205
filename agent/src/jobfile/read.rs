//! A TOML document as typed fields that know their path and place.

use super::error::{JobFileError, Position, shown};
use super::fields::Fields;
use super::params;
use super::suggest;
use ampoule_spec::Code;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

type Result<T> = std::result::Result<T, JobFileError>;

/// One file while it is read.
pub(crate) struct Reader<'t> {
    file: &'t str,
    text: &'t str,
    /// The byte offset at which each line begins.
    lines: Vec<usize>,
    places: RefCell<BTreeMap<String, Position>>,
}

impl<'t> Reader<'t> {
    /// A reader of `text`.
    pub(crate) fn new(file: &'t str, text: &'t str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(breaks).collect();
        Self { file, text, lines, places: RefCell::default() }
    }

    /// The fields that were read.
    pub(crate) fn fields(&self) -> Fields {
        Fields { file: self.file.to_owned(), places: self.places.take() }
    }

    /// The syntax error that the TOML parser found.
    pub(crate) fn syntax(&self, error: &toml::de::Error) -> JobFileError {
        let at = error.span().map_or(0, |span| span.start);
        let reason: String = error.message().replace('\n', ", ").chars().take(200).collect();
        self.error(at, "", format!("not valid TOML: {}", reason.escape_default()), "")
    }

    fn position(&self, offset: usize) -> Position {
        let line = self.lines.partition_point(|start| *start <= offset).saturating_sub(1);
        let start = self.lines.get(line).copied().unwrap_or(0);
        let rest = self.text.get(start..).unwrap_or_default();
        let within = Position::of(rest, offset.saturating_sub(start));
        Position { line: u32::try_from(line).unwrap_or(u32::MAX).saturating_add(1), column: within.column }
    }

    fn error(
        &self,
        at: usize,
        field: &str,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> JobFileError {
        JobFileError {
            position: Some(self.position(at)),
            ..JobFileError::whole(Code::JobInvalid, self.file, field, reason, remedy)
        }
    }
}

/// A table of the file.
pub(crate) struct Table<'r> {
    reader: &'r Reader<'r>,
    path: String,
    at: usize,
    entries: &'r DeTable<'r>,
}

impl<'r> Table<'r> {
    /// The document itself.
    pub(crate) fn root(reader: &'r Reader<'r>, document: &'r Spanned<DeTable<'r>>) -> Self {
        Self { reader, path: String::new(), at: 0, entries: document.get_ref() }
    }

    fn field(&self, key: &str) -> String {
        let bare = !key.is_empty()
            && key.len() <= 128
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        let key = if bare { key.to_owned() } else { shown(key) };
        if self.path.is_empty() { key } else { format!("{}.{key}", self.path) }
    }

    /// Refuses keys that are not known, the first in the file first.
    pub(crate) fn only(&self, known: &[&str]) -> Result<()> {
        let unknown = self.entries.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        match unknown.min_by_key(|key| key.span().start) {
            None => Ok(()),
            Some(key) => {
                let remedy = suggest::remedy(key.get_ref(), known);
                Err(self.reader.error(key.span().start, &self.field(key.get_ref()), "unknown key", remedy))
            }
        }
    }

    fn value(&self, key: &'r Spanned<toml::de::DeString<'r>>, value: &'r Spanned<DeValue<'r>>) -> Value<'r> {
        let field = self.field(key.get_ref());
        let at = key.span().start;
        self.reader.places.borrow_mut().insert(field.clone(), self.reader.position(at));
        Value { reader: self.reader, field, at, value: value.get_ref() }
    }

    /// The value of a key, if it is there.
    pub(crate) fn get(&self, key: &str) -> Option<Value<'r>> {
        self.entries.get_key_value(key).map(|(key, value)| self.value(key, value))
    }

    /// The value of a key that must be there.
    pub(crate) fn need(&self, key: &str, example: &str) -> Result<Value<'r>> {
        self.get(key).ok_or_else(|| self.missing(key, example))
    }

    /// The error for a key that is not there.
    pub(crate) fn missing(&self, key: &str, example: &str) -> JobFileError {
        self.reader.error(self.at, &self.field(key), "missing", format!("add {key} = {example}"))
    }

    /// An error of the table as a whole.
    pub(crate) fn wrong(&self, reason: impl Into<String>, remedy: impl Into<String>) -> JobFileError {
        self.reader.error(self.at, &self.path, reason, remedy)
    }

    /// Every key with its value, in the order of the file.
    pub(crate) fn entries(&self) -> Vec<(&'r str, Value<'r>)> {
        let mut entries: Vec<_> = self
            .entries
            .iter()
            .map(|(key, value)| (key.get_ref().as_ref(), self.value(key, value)))
            .collect();
        entries.sort_by_key(|(_, value)| value.at);
        entries
    }
}

/// A value of the file.
pub(crate) struct Value<'r> {
    reader: &'r Reader<'r>,
    field: String,
    at: usize,
    value: &'r DeValue<'r>,
}

impl<'r> Value<'r> {
    /// An error of this field.
    pub(crate) fn wrong(&self, reason: impl Into<String>, remedy: impl Into<String>) -> JobFileError {
        self.reader.error(self.at, &self.field, reason, remedy)
    }

    /// The error of a field without a digest.
    pub(crate) fn unpinned(&self, reason: &str, remedy: impl Into<String>) -> JobFileError {
        JobFileError { code: Code::InputUnpinned, ..self.wrong(reason, remedy) }
    }

    /// The error of a feature that the format knows and this version does not.
    pub(crate) fn unsupported(&self, what: &str, remedy: &str) -> JobFileError {
        self.wrong(format!("{what} are not supported by this version"), remedy)
    }

    /// The error of a value of another type.
    pub(crate) fn not_a(&self, expected: &str, remedy: impl Into<String>) -> JobFileError {
        self.wrong(format!("expected {expected}, found {}", type_name(self.value)), remedy)
    }

    /// Any text, as it is.
    pub(crate) fn raw_text(&self, expected: &str, example: &str) -> Result<&'r str> {
        match self.value {
            DeValue::String(text) => Ok(text),
            _ => Err(self.not_a(expected, example_of(example))),
        }
    }

    /// A text in which parameters are not used.
    pub(crate) fn text(&self, expected: &str, example: &str) -> Result<&'r str> {
        let text = self.raw_text(expected, example)?;
        if params::mentioned(text) {
            Err(self.wrong("parameters are not used here", params::RULE))
        } else {
            Ok(text)
        }
    }

    /// A text that is checked by `parse`.
    pub(crate) fn parsed<T, E: Display>(
        &self,
        expected: &str,
        example: &str,
        parse: impl FnOnce(&str) -> std::result::Result<T, E>,
    ) -> Result<T> {
        let text = self.text(expected, example)?;
        parse(text).map_err(|e| self.wrong(e.to_string(), ""))
    }

    /// One of a few words.
    pub(crate) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Result<T> {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        let expected = format!("one of {}", names.join(", "));
        let text = self.text(&expected, names.first().copied().unwrap_or_default())?;
        match words.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(*value),
            None => {
                let reason = format!("{} is not known", shown(text));
                Err(self.wrong(reason, suggest::remedy(text, &names)))
            }
        }
    }

    /// A text in units, as read by `parse`; a bare number is answered with the rule.
    pub(crate) fn in_units(
        &self,
        what: &str,
        rule: &str,
        parse: impl FnOnce(&str) -> Option<u64>,
    ) -> Result<u64> {
        let DeValue::String(text) = self.value else {
            return Err(self.not_a(&format!("a {what} with its unit, in quotes"), rule));
        };
        parse(text).ok_or_else(|| self.wrong(format!("{} is no {what}", shown(text)), rule))
    }

    /// A whole number.
    pub(crate) fn integer(&self, expected: &str, example: &str) -> Result<i64> {
        let DeValue::Integer(number) = self.value else {
            return Err(self.not_a(expected, format!("write {example}")));
        };
        i64::from_str_radix(number.as_str(), number.radix())
            .map_err(|_| self.wrong("the number does not fit 64 bits", ""))
    }

    /// A number from 1 up.
    pub(crate) fn count(&self, example: &str) -> Result<u64> {
        let number = self.integer("a whole number", example)?;
        match u64::try_from(number) {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(self.wrong(format!("{number} is not allowed"), "give at least 1")),
        }
    }

    /// A number, whole or not.
    pub(crate) fn number(&self, rule: &str) -> Result<f64> {
        let text = match self.value {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
            DeValue::Float(number) => number.as_str(),
            _ => return Err(self.not_a("a number", rule)),
        };
        text.parse().map_err(|_| self.wrong(format!("{} is no number", shown(text)), rule))
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self) -> Result<bool> {
        self.value.as_bool().ok_or_else(|| self.not_a("true or false", "write it without quotes"))
    }

    /// The type of the value, if it is a text, whole number or truth value.
    pub(crate) fn scalar(&self) -> &'r DeValue<'r> {
        self.value
    }

    /// A table.
    pub(crate) fn table(&self, example: &str) -> Result<Table<'r>> {
        match self.value {
            DeValue::Table(entries) => {
                Ok(Table { reader: self.reader, path: self.field.clone(), at: self.at, entries })
            }
            _ => Err(self.not_a("a table", example_of(example))),
        }
    }

    fn array(&self, expected: &str, example: &str) -> Result<&'r DeArray<'r>> {
        match self.value {
            DeValue::Array(array) => Ok(array),
            _ => Err(self.not_a(expected, example_of(example))),
        }
    }

    /// A list of tables, `[[field]]` each.
    pub(crate) fn tables(&self) -> Result<Vec<Table<'r>>> {
        let header = format!("[[{}]]", self.field);
        let array = self.array(&format!("a list of tables, {header} each"), &header)?;
        let tables = array.iter().enumerate().map(|(index, value)| {
            let path = format!("{}[{index}]", self.field);
            let at = value.span().start;
            self.reader.places.borrow_mut().insert(path.clone(), self.reader.position(at));
            match value.get_ref() {
                DeValue::Table(entries) => Ok(Table { reader: self.reader, path, at, entries }),
                other => {
                    let item = Value { reader: self.reader, field: path, at, value: other };
                    Err(item.not_a("a table", format!("write {header}")))
                }
            }
        });
        tables.collect()
    }

    /// A list of values.
    pub(crate) fn items(&self, expected: &str, example: &str) -> Result<Vec<Value<'r>>> {
        let array = self.array(expected, example)?;
        let item = |(index, value): (usize, &'r Spanned<DeValue<'r>>)| Value {
            reader: self.reader,
            field: format!("{}[{index}]", self.field),
            at: value.span().start,
            value: value.get_ref(),
        };
        Ok(array.iter().enumerate().map(item).collect())
    }
}

fn example_of(example: &str) -> String {
    format!("as in {example}")
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
