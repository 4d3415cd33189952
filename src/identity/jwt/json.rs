//! Strict JSON for tokens and keys: no name twice in an object, bounded depth and size, nothing after the value.
//!
//! Whoever takes the first of two equal names and whoever takes the last would see different tokens under one signature
//! (RFC 7519 section 4 lets a parser take the last; we refuse both).

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::model::issuer::{ClaimPath, MAX_CLAIM_DEPTH};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number within 64 bits.
    Integer(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Json>),
    /// An object.
    Object(Object),
}

/// An object; each name stood in it once.
pub(super) type Object = BTreeMap<String, Json>;

/// Most values in one text: more than any token of the longest kind needs, and little memory.
const MAX_VALUES: usize = 16 * 1024;

/// An object from its bytes, which have at most so many levels.
pub(super) fn object(bytes: &[u8]) -> Option<Object> {
    let mut left = MAX_VALUES;
    let mut text = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed {
        // One level more: that of the object itself.
        depth: MAX_CLAIM_DEPTH + 1,
        left: &mut left,
    };
    let value = de::DeserializeSeed::deserialize(seed, &mut text).ok()?;
    text.end().ok()?;
    match value {
        Json::Object(object) => Some(object),
        _ => None,
    }
}

impl Json {
    /// Its text, if it is text.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// As the settings write it: text, a whole number, `true` or `false`.
    pub(super) fn is_said_as(&self, text: &str) -> bool {
        match self {
            Self::Text(own) => own == text,
            Self::Integer(number) => number.to_string() == text,
            Self::Bool(own) => own.to_string() == text,
            Self::Null | Self::Float(_) | Self::List(_) | Self::Object(_) => false,
        }
    }
}

/// What stands at a path; `null` is nothing.
pub(super) fn at<'a>(object: &'a Object, path: &ClaimPath) -> Option<&'a Json> {
    let (last, above) = path.names().split_last()?;
    let mut object = object;
    for name in above {
        match object.get(name)? {
            Json::Object(inner) => object = inner,
            _ => return None,
        }
    }
    object.get(last).filter(|value| **value != Json::Null)
}

struct Seed<'a> {
    depth: usize,
    left: &'a mut usize,
}

impl Seed<'_> {
    /// For what is inside of this value.
    fn inner<E: de::Error>(&mut self) -> Result<Seed<'_>, E> {
        match (self.depth.checked_sub(1), self.left.checked_sub(1)) {
            (Some(depth), Some(left)) => {
                *self.left = left;
                Ok(Seed {
                    depth,
                    left: self.left,
                })
            }
            _ => Err(E::custom("too deep, or too much")),
        }
    }
}

impl<'de> de::DeserializeSeed<'de> for Seed<'_> {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "beyond 64 bits with a sign nobody looks at the last digits"
        )]
        let float = || Json::Float(value as f64);
        Ok(i64::try_from(value).map_or_else(|_| float(), Json::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut entries: A) -> Result<Json, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = entries.next_element_seed(self.inner()?)? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Json, A::Error> {
        let mut object = Object::new();
        while let Some(name) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(self.inner()?)?;
            if object.insert(name, value).is_some() {
                return Err(de::Error::custom("a name stands twice"));
            }
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_one_plain_object_is_none() {
        let deep = format!("{}1{}", "{\"a\":".repeat(9), "}".repeat(9));
        let too_deep = format!("{}1{}", "{\"a\":".repeat(10), "}".repeat(10));
        let long = format!("{{\"a\":[{}1]}}", "1,".repeat(MAX_VALUES));
        assert!(object(deep.as_bytes()).is_some());
        for bad in [
            "",
            "[]",
            "1",
            "null",
            "{\"a\":1,\"a\":1}",
            "{\"a\":1,\"\\u0061\":2}",
            "{\"a\":{\"b\":1,\"b\":2}}",
            "{\"a\":[{\"b\":1,\"b\":2}]}",
            "{}{}",
            "{} x",
            "{\"a\":1,}",
            "{'a':1}",
            "{a:1}",
            "{\"a\":NaN}",
            "{\"a\":1e999}",
            "{\"a\":01}",
            "{\"a\":\"\\ud800\"}",
            "{\"a\":\"\n\"}",
            "\u{feff}{}",
            "{\"a\":1}//",
            &too_deep,
            &long,
        ] {
            assert_eq!(object(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(object(b"{\"a\":\"\xff\"}"), None);
    }

    #[test]
    fn a_path_leads_through_objects_only() {
        let claims = object(br#"{"a":{"b":"c","n":null},"l":[{"b":1}],"a.b":"no"}"#).unwrap();
        let at = |path| at(&claims, &ClaimPath::parse(path).unwrap());
        assert_eq!(at("a.b"), Some(&Json::Text("c".to_owned())));
        for nothing in ["a.n", "a.x", "l.b", "a.b.c", "x"] {
            assert_eq!(at(nothing), None, "{nothing}");
        }
    }
}
