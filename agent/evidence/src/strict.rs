//! JSON without the freedoms that let two readers see two documents.
//!
//! Refused beyond RFC 8259's grammar: a name twice in one object (CVE-2017-12635's cause), nesting deeper
//! than [`DEPTH_MAX`], numbers that are not integers of 64 bits, bytes that are not UTF-8, a byte order mark.

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// The deepest nesting of arrays and objects.
pub(crate) const DEPTH_MAX: u32 = 64;

/// Why bytes are not strict JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StrictError {
    /// The bytes are not UTF-8.
    #[error("it is not UTF-8 at byte {at}")]
    NotUtf8 {
        /// The first byte that is not.
        at: usize,
    },
    /// The text is not JSON, or breaks one of the rules of this module.
    #[error("{reason}")]
    Refused {
        /// What, with line and column.
        reason: String,
    },
}

/// Parses one JSON document under the rules of this module.
///
/// # Errors
/// [`StrictError`] for anything else than exactly one such document.
pub fn parse_strict(bytes: &[u8]) -> Result<Value, StrictError> {
    let text = std::str::from_utf8(bytes).map_err(|e| StrictError::NotUtf8 { at: e.valid_up_to() })?;
    let refused = |e: serde_json::Error| StrictError::Refused { reason: e.to_string() };
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Strict { depth: DEPTH_MAX }.deserialize(&mut reader).map_err(refused)?;
    reader.end().map_err(refused)?;
    Ok(value)
}

/// Whether a null is anywhere in a value. No format of Ampoule's has one.
pub(crate) fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(entries) => entries.values().any(has_null),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

struct Strict {
    depth: u32,
}

impl Strict {
    fn deeper<E: de::Error>(&self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1);
        depth.map(|depth| Self { depth }).ok_or_else(|| E::custom(format!("nested deeper than {DEPTH_MAX}")))
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON whose numbers are integers")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(self.deeper()?)? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if out.contains_key(&name) {
                return Err(de::Error::custom(format!("{name:?} is there twice")));
            }
            let value = entries.next_value_seed(self.deeper()?)?;
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_good_documents_are_read() {
        let value = parse_strict(br#" {"a":[1,-2,true,null,"\u00e9"],"b":{}} "#).unwrap();
        assert_eq!(value, serde_json::json!({"a": [1, -2, true, null, "é"], "b": {}}));
    }

    #[test]
    fn parse_duplicate_names_are_refused_at_any_depth() {
        for text in [r#"{"a":1,"a":1}"#, r#"[{"b":{"a":1,"\u0061":2}}]"#] {
            let error = parse_strict(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("twice"), "{error}");
        }
    }

    #[test]
    fn parse_depth_is_bounded() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse_strict(nested(64).as_bytes()).is_ok());
        assert!(parse_strict(nested(66).as_bytes()).is_err());
        assert!(parse_strict("[".repeat(1_000_000).as_bytes()).is_err());
    }

    #[test]
    fn parse_other_texts_are_refused() {
        let cases: [&[u8]; 12] = [
            b"",
            b"{}{}",
            b"\xef\xbb\xbf{}",
            b"{\"a\":\"\xff\"}",
            b"1.0",
            b"1e2",
            b"18446744073709551616",
            b"{'a':1}",
            b"[1,]",
            b"nul",
            b"\"\\ud800\"",
            b"{\"a\":1}\0",
        ];
        for bytes in cases {
            assert!(parse_strict(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
