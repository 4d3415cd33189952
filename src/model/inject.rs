//! What a rule adds to the requests that it allows: a header out of a credential of the session's team.
//!
//! The sandbox never has the value: casemated adds it on its own connection, over TLS that it verified.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::name::Name;

/// Longest name of a header, and longest text around a credential, in bytes.
pub const MAX_HEADER_BYTES: usize = 128;
/// The header of a rule that names none.
pub const DEFAULT_HEADER: &str = "authorization";
/// Where the credential comes in a text.
const PLACE: &str = "{}";

/// Headers by which a message is read or carried: with another value it would be another message.
const FRAMING: [&str; 11] = [
    "connection",
    "content-encoding",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Methods whose answers repeat what was asked, or that ask for something that cannot be read.
const ECHOES: [&str; 2] = ["CONNECT", "TRACE"];

/// Whether requests of this method may get something added.
#[must_use]
pub fn may_have(method: &str) -> bool {
    !ECHOES.contains(&method)
}

/// What is added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Injection {
    /// The name of a credential of the session's team.
    pub credential: Name,
    /// The header, in lower case. Whatever the program sent under this name is taken away.
    #[serde(default = "default_header", skip_serializing_if = "is_default_header")]
    pub header: String,
    /// How the credential is written: `bearer`, `basic` (the credential is `user:password`), or a text with `{}` where it comes.
    #[serde(default, rename = "as", skip_serializing_if = "is_bearer")]
    pub form: InjectionForm,
    /// Whether the value is blotted out of answers, which are then asked for whole and uncompressed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scrub: bool,
}

fn default_header() -> String {
    DEFAULT_HEADER.to_owned()
}

fn is_default_header(header: &String) -> bool {
    header == DEFAULT_HEADER
}

fn is_bearer(form: &InjectionForm) -> bool {
    *form == InjectionForm::Bearer
}

/// How a credential is written into a header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum InjectionForm {
    /// `Bearer` and the credential (RFC 6750 section 2.1).
    #[default]
    Bearer,
    /// `Basic` and the credential, `user:password`, in base64 (RFC 7617).
    Basic,
    /// Between these.
    Within(String, String),
}

/// The text is no form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is bearer, basic, or a text of at most {MAX_HEADER_BYTES} printable ASCII characters with {{}} once, where the credential comes"
)]
pub struct BadForm;

impl FromStr for InjectionForm {
    type Err = BadForm;

    fn from_str(text: &str) -> Result<Self, BadForm> {
        match text {
            "bearer" => return Ok(Self::Bearer),
            "basic" => return Ok(Self::Basic),
            _ => {}
        }
        let is_plain = text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
        let (before, after) = text.split_once(PLACE).ok_or(BadForm)?;
        if !is_plain
            || text.len() > MAX_HEADER_BYTES
            || after.contains(PLACE)
            || text.trim() != text
        {
            return Err(BadForm);
        }
        Ok(Self::Within(before.to_owned(), after.to_owned()))
    }
}

impl fmt::Display for InjectionForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bearer => f.write_str("bearer"),
            Self::Basic => f.write_str("basic"),
            Self::Within(before, after) => write!(f, "{before}{PLACE}{after}"),
        }
    }
}

impl Serialize for InjectionForm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InjectionForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for InjectionForm {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "InjectionForm".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "bearer, basic, or a text with {} where the credential comes.",
        })
    }
}

impl Injection {
    /// What is wrong with it, whatever its rule says.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let header = self.header.as_str();
        let is_token =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
        if header.is_empty() || header.len() > MAX_HEADER_BYTES || !header.bytes().all(is_token) {
            return Some(format!(
                "header is the name of one, in lower case, of at most {MAX_HEADER_BYTES} bytes"
            ));
        }
        if FRAMING.contains(&header) || header.starts_with("proxy-") {
            return Some(format!(
                "header cannot be {header}, by which requests are carried"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Injection, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn it_is_written_as_it_was_read_and_short_where_it_says_little() {
        for text in [
            r#"{"credential":"token"}"#,
            r#"{"credential":"token","header":"x-api-key","as":"{}"}"#,
            r#"{"credential":"token","as":"basic","scrub":true}"#,
            r#"{"credential":"token","as":"token {} for us"}"#,
        ] {
            let injection = read(text).unwrap();
            assert_eq!(injection.problem(), None, "{text}");
            assert_eq!(serde_json::to_string(&injection).unwrap(), text);
        }
        let short = read(r#"{"credential":"token"}"#).unwrap();
        assert_eq!(
            (short.header.as_str(), short.form),
            ("authorization", InjectionForm::Bearer)
        );
    }

    #[test]
    fn what_cannot_be_one_is_told() {
        for text in [
            "{}",
            r#"{"credential":"Not A Name"}"#,
            r#"{"credential":"a","value":"x"}"#,
            r#"{"credential":"a","as":"token"}"#,
            r#"{"credential":"a","as":"{} {}"}"#,
            r#"{"credential":"a","as":" {}"}"#,
            r#"{"credential":"a","as":"{}\r\nx: y"}"#,
            r#"{"credential":"a","as":"ä{}"}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        let long = format!("{}{{}}", "x".repeat(MAX_HEADER_BYTES));
        assert_eq!(long.parse::<InjectionForm>(), Err(BadForm));
        for header in [
            "",
            "Authorization",
            "a b",
            "a:",
            "a\n",
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "proxy-authorization",
        ] {
            let injection = Injection {
                credential: "a".parse().unwrap(),
                header: header.to_owned(),
                form: InjectionForm::Bearer,
                scrub: false,
            };
            assert!(injection.problem().is_some(), "{header}");
        }
        assert!(may_have("GET") && may_have("POST") && !may_have("TRACE"));
    }
}
