//! Messages held against the schema before they are decoded.
//!
//! prost drops fields that it does not know and lets the last of two win. Whoever reads the same bytes with a newer schema,
//! or takes the first, would see another job. So a message in which two readers could differ is refused: unknown fields, a
//! field or key twice, two of a oneof, another wire type (docs/design/0019).

use super::convert::FieldError;
use super::error::ApiError;
use super::schema::{Field, Kind, MessageType, Schema};
use ampoule_spec::Code;
use std::collections::BTreeSet;

/// How deep messages may lie in each other. Ours need six.
const DEPTH_MAX: usize = 16;

type Result<T> = std::result::Result<T, FieldError>;

/// Checks the bytes of a message.
///
/// # Errors
/// The path of the field and what is wrong with it. No byte of the message is in the text.
pub(super) fn check(schema: &Schema, message: usize, bytes: &[u8]) -> Result<()> {
    walk(schema, message, bytes, "", 0)
}

/// As a caller hears it.
pub(super) fn refused(error: FieldError) -> ApiError {
    ApiError { field: Some(error.field.clone()), ..ApiError::new(Code::CallInvalid, error.to_string()) }
}

fn wrong(field: &str, reason: &str) -> FieldError {
    let field = if field.is_empty() { "(message)" } else { field };
    FieldError { field: field.to_owned(), reason: reason.to_owned() }
}

/// What was seen of one message.
#[derive(Default)]
struct Seen<'a> {
    singular: BTreeSet<u32>,
    oneofs: BTreeSet<i32>,
    counts: std::collections::BTreeMap<u32, usize>,
    keys: BTreeSet<(u32, &'a [u8])>,
}

fn walk(schema: &Schema, message: usize, mut bytes: &[u8], path: &str, depth: usize) -> Result<()> {
    if depth > DEPTH_MAX {
        return Err(wrong(path, "messages lie too deep in each other"));
    }
    let Some(of) = schema.messages.get(message) else {
        return Err(wrong(path, "a message that this build does not know"));
    };
    let mut seen = Seen::default();
    while !bytes.is_empty() {
        let (number, wire) = tag(&mut bytes).ok_or_else(|| wrong(path, "not a message of this format"))?;
        let Some(field) = of.fields.get(&number) else {
            let reason =
                format!("field {number} is not known to this version; nothing that is not understood is run");
            return Err(wrong(path, &reason));
        };
        let at = place(path, field, number, &mut seen, of);
        once(of, field, number, &mut seen, &at)?;
        let value = value(wire, &mut bytes).ok_or_else(|| wrong(&at, "cut short"))?;
        fits(schema, field, wire, value, &at, depth)?;
        if let (Kind::Message(inner), true) = (field.kind, field.repeated)
            && schema.messages.get(inner).is_some_and(|inner| inner.is_entry)
            && !seen.keys.insert((number, key(value).ok_or_else(|| wrong(&at, "cut short"))?))
        {
            return Err(wrong(&at, "a key that is there twice"));
        }
    }
    Ok(())
}

/// The field's path, as in `job.steps[2].env`.
fn place(path: &str, field: &Field, number: u32, seen: &mut Seen<'_>, of: &MessageType) -> String {
    if of.is_entry {
        return path.to_owned();
    }
    let dot = if path.is_empty() { "" } else { "." };
    let mut at = format!("{path}{dot}{}", field.name);
    if field.repeated && matches!(field.kind, Kind::Message(_)) {
        let count = seen.counts.entry(number).or_default();
        at.push_str(&format!("[{count}]"));
        *count += 1;
    }
    at
}

/// A field that may be there once is there once, and one of a oneof alone.
fn once(of: &MessageType, field: &Field, number: u32, seen: &mut Seen<'_>, at: &str) -> Result<()> {
    if !field.repeated && !seen.singular.insert(number) {
        return Err(wrong(at, if of.is_entry { "an entry with two keys or values" } else { "there twice" }));
    }
    if let Some(oneof) = field.oneof
        && !seen.oneofs.insert(oneof)
    {
        return Err(wrong(at, "only one kind of it may be there"));
    }
    Ok(())
}

/// The value has the wire type of its field, and is what it has to be.
fn fits(schema: &Schema, field: &Field, wire: u8, value: &[u8], at: &str, depth: usize) -> Result<()> {
    match (field.kind, wire) {
        (Kind::Varint, 0) | (Kind::Fixed64, 1) | (Kind::Fixed32, 5) | (Kind::Bytes, 2) => Ok(()),
        (Kind::Text, 2) => std::str::from_utf8(value).map(drop).map_err(|_| wrong(at, "not UTF-8")),
        (Kind::Message(inner), 2) => walk(schema, inner, value, at, depth + 1),
        (Kind::Varint, 2) if field.repeated => packed(value).ok_or_else(|| wrong(at, "cut short")),
        (Kind::Fixed64, 2) if field.repeated && value.len().is_multiple_of(8) => Ok(()),
        (Kind::Fixed32, 2) if field.repeated && value.len().is_multiple_of(4) => Ok(()),
        _ => Err(wrong(at, "of another type than the schema says")),
    }
}

/// Whether bytes are varints.
fn packed(mut bytes: &[u8]) -> Option<()> {
    while !bytes.is_empty() {
        varint(&mut bytes)?;
    }
    Some(())
}

/// The key of a map's entry; without one it is the type's default, for which no bytes stand.
fn key(mut entry: &[u8]) -> Option<&[u8]> {
    let mut key: &[u8] = &[];
    while !entry.is_empty() {
        let (number, wire) = tag(&mut entry)?;
        let value = value(wire, &mut entry)?;
        if number == 1 {
            key = value;
        }
    }
    Some(key)
}

/// The number and wire type of the field that begins here.
fn tag(bytes: &mut &[u8]) -> Option<(u32, u8)> {
    let tag = u32::try_from(varint(bytes)?).ok()?;
    let number = tag >> 3;
    (number > 0).then_some((number, u8::try_from(tag & 7).ok()?))
}

/// The bytes of the value that stands here.
fn value<'a>(wire: u8, bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = match wire {
        0 => {
            let all = *bytes;
            varint(bytes)?;
            return all.get(..all.len() - bytes.len());
        }
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let (value, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(value)
}

/// A number of at most ten bytes.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for at in 0..10 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        if at == 9 && *byte > 1 {
            return None;
        }
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
#[path = "strict_tests.rs"]
mod tests;
