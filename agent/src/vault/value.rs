//! Values that are never printed, and are overwritten when they are dropped.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use zeroize::Zeroizing;

/// Bytes that are a secret: a field's value, a token, a secret id.
#[derive(Clone, Default)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes these bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes. Whoever copies them has them to overwrite.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text, if they are some.
    pub fn expose_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl From<Zeroizing<Vec<u8>>> for Secret {
    fn from(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::new(text.as_bytes().to_vec()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Secret, E> {
                Ok(Secret::new(text.into_bytes()))
            }
        }
        from.deserialize_str(Text)
    }
}

/// The fields of one answer. Its `Debug` shows their names.
#[derive(Clone, Default)]
pub struct Data(BTreeMap<String, Json>);

impl Data {
    /// A field's value: a text's bytes as they are, anything else as its JSON. `None`: there is no such field, or it
    /// is null.
    pub fn field(&self, name: &str) -> Option<Secret> {
        match self.0.get(name)? {
            Json::Null => None,
            Json::Text(text) => Some(text.clone()),
            other => Some(Json::render(other)),
        }
    }

    /// All fields as one JSON object.
    pub fn whole(&self) -> Secret {
        let mut out = Zeroizing::new(Vec::with_capacity(Json::size_of_map(&self.0)));
        Json::write_map(&self.0, &mut out);
        Secret(out)
    }

    /// The names of the fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A field that is a whole number.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.0.get(name)? {
            Json::Number(number) => number.as_u64(),
            _ => None,
        }
    }

    /// A field that is an object, taken out.
    pub(super) fn take_map(&mut self, name: &str) -> Option<Data> {
        match self.0.remove(name)? {
            Json::Map(map) => Some(Self(map)),
            _ => None,
        }
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|name| (name, "***"))).finish()
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match Json::deserialize(from)? {
            Json::Map(map) => Ok(Self(map)),
            _ => Err(D::Error::custom("the data is no object")),
        }
    }
}

/// JSON whose texts are overwritten. `serde_json::Value` would leave them behind.
#[derive(Clone)]
enum Json {
    Null,
    Flag(bool),
    Number(serde_json::Number),
    Text(Secret),
    List(Vec<Json>),
    Map(BTreeMap<String, Json>),
}

impl Json {
    fn render(&self) -> Secret {
        // Room for all of it from the beginning: what grows leaves copies behind.
        let mut out = Zeroizing::new(Vec::with_capacity(self.size()));
        self.write(&mut out);
        Secret(out)
    }

    /// At least as many bytes as its JSON has: an escape takes six.
    fn size(&self) -> usize {
        match self {
            Self::Null | Self::Flag(_) => 8,
            Self::Number(_) => 40,
            Self::Text(text) => text.len().saturating_mul(6).saturating_add(4),
            Self::List(list) => list.iter().map(|item| item.size().saturating_add(1)).sum::<usize>() + 2,
            Self::Map(map) => Self::size_of_map(map),
        }
    }

    fn size_of_map(map: &BTreeMap<String, Self>) -> usize {
        map.iter().map(|(name, value)| name.len() * 6 + 6 + value.size()).sum::<usize>() + 2
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Flag(flag) => out.extend_from_slice(if *flag { b"true" } else { b"false" }),
            Self::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
            Self::Text(text) => write_text(text.expose_text().unwrap_or_default(), out),
            Self::List(list) => {
                out.push(b'[');
                for (index, item) in list.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    item.write(out);
                }
                out.push(b']');
            }
            Self::Map(map) => Self::write_map(map, out),
        }
    }

    fn write_map(map: &BTreeMap<String, Self>, out: &mut Vec<u8>) {
        out.push(b'{');
        for (index, (name, value)) in map.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_text(name, out);
            out.push(b':');
            value.write(out);
        }
        out.push(b'}');
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    // It writes piece by piece and keeps nothing; a text and a vector give no error.
    let _ = serde_json::to_writer(out, text);
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Json, E> {
        Ok(Json::Flag(flag))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Json, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Number(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Json, E> {
        Ok(serde_json::Number::from_f64(number).map_or(Json::Null, Json::Number))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(Secret::new(text.as_bytes().to_vec())))
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Json, E> {
        Ok(Json::Text(Secret::new(text.into_bytes())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut items = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, Json>()? {
            if items.insert(name, value).is_some() {
                return Err(A::Error::custom("a field is there twice"));
            }
        }
        Ok(Json::Map(items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_exact_and_debug_prints_none_of_them() {
        let text = r#"{"a":"x\"y\n","n":5,"l":[1,"z",null,true,2.5],"m":{"k":"v"},"e":null}"#;
        let data: Data = serde_json::from_str(text).unwrap();
        assert_eq!(data.field("a").unwrap().expose(), b"x\"y\n");
        assert_eq!(data.field("n").unwrap().expose(), b"5");
        assert_eq!(data.number("n"), Some(5));
        assert_eq!(data.field("l").unwrap().expose(), br#"[1,"z",null,true,2.5]"#);
        assert!(data.field("e").is_none() && data.field("no").is_none());
        let again: serde_json::Value = serde_json::from_slice(data.whole().expose()).unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(text).unwrap());
        assert!(!format!("{data:?} {:?}", data.field("m")).contains('v'));
        assert!(serde_json::from_str::<Data>("[1]").is_err());
        assert!(serde_json::from_str::<Data>(r#"{"a":1,"a":2}"#).is_err());
    }

    #[test]
    fn room_for_json_is_made_once() {
        let data: Data = serde_json::from_str(r#"{"a":"\u0001\u0002","b":["x",{"c":-1.25e-300}]}"#).unwrap();
        let size = Json::size_of_map(&data.0);
        assert!(data.whole().len() <= size);
    }
}
