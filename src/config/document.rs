//! One YAML file as a tree of values, and the line on which a key stands.
//!
//! `serde_yaml` lives only here. The tree keeps what serde would give up on at the first mistake:
//! duplicate keys are collected, wrong types stay what they are, so that everything that is wrong
//! with a file can be said at once. What a file can cost is bounded before anything is kept.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, VariantAccess, Visitor};

/// Largest file: a thousand times what anybody writes by hand.
pub(super) const MAX_FILE_BYTES: usize = 1 << 20;

/// What a file may unfold to when its aliases are followed, in bytes of memory, roughly. Far more
/// than a file of the largest size needs without aliases for text; far less than a YAML bomb.
const MAX_UNFOLDED_BYTES: usize = 16 << 20;

/// What one value is charged beside its text.
const VALUE_BYTES: usize = 64;

/// A value, and the file that it comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// The number of the file, in the order of reading.
    pub(super) file: usize,
    /// What was written.
    pub(super) value: Value,
}

/// What was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Nothing, or `null`: nothing was said.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// A number with a point, infinity, or no number at all.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// Something with a YAML tag, such as `!secret`. No key takes one.
    Tagged,
    /// Keys and their values.
    Map(BTreeMap<String, Node>),
}

/// Where a key stands: the keys from the top of the file.
pub(super) type Path = Vec<String>;

/// A file that was understood as YAML.
#[derive(Debug)]
pub(super) struct Document {
    /// Its tree. [`Value::Null`] for a file without content.
    pub(super) root: Node,
    /// Keys that were given more than once, one entry for each time too many.
    pub(super) duplicates: Vec<Path>,
}

/// A file that was not understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// The line, counted from one, when it is known.
    pub(super) line: Option<usize>,
    /// What is wrong.
    pub(super) text: String,
}

/// Reads one file.
pub(super) fn parse(file: usize, bytes: &[u8]) -> Result<Document, Unreadable> {
    let unreadable = |line, text: &str| Unreadable {
        line,
        text: text.to_owned(),
    };
    if bytes.len() > MAX_FILE_BYTES {
        return Err(unreadable(
            None,
            "is longer than 1 MiB; a configuration is not a place for data",
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        unreadable(Some(line_after(before)), "is not UTF-8 text")
    })?;
    // YAML 1.2 section 5.1 forbids them; the parser would say so without the line.
    let is_forbidden = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{85}');
    if let Some(at) = text.find(is_forbidden) {
        let line = line_after(bytes.get(..at).unwrap_or_default());
        return Err(unreadable(Some(line), "holds a control character"));
    }
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let reading = Reading {
        file,
        left: Cell::new(MAX_UNFOLDED_BYTES),
        path: RefCell::default(),
        duplicates: RefCell::default(),
    };
    let root = match documents.next() {
        None => Node {
            file,
            value: Value::Null,
        },
        Some(document) => {
            de::DeserializeSeed::deserialize(&reading, document).map_err(|error| Unreadable {
                line: error.location().map(|location| location.line()),
                text: format!("is not understood as YAML: {error}"),
            })?
        }
    };
    if documents.next().is_some() {
        return Err(unreadable(
            None,
            "holds more than one YAML document; remove the lines that are only ---",
        ));
    }
    Ok(Document {
        root,
        duplicates: reading.duplicates.into_inner(),
    })
}

fn line_after(bytes: &[u8]) -> usize {
    bytes.split(|byte| *byte == b'\n').count()
}

/// What one reading has done so far.
struct Reading {
    file: usize,
    left: Cell<usize>,
    path: RefCell<Path>,
    duplicates: RefCell<Vec<Path>>,
}

impl Reading {
    fn charge<E: de::Error>(&self, text: usize) -> Result<(), E> {
        match self.left.get().checked_sub(VALUE_BYTES + text) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(E::custom(
                "its aliases unfold to more than 16 MiB; write out what they stand for",
            )),
        }
    }

    fn node<E: de::Error>(&self, value: Value) -> Result<Node, E> {
        let text = if let Value::Text(text) = &value {
            text.len()
        } else {
            0
        };
        self.charge(text)?;
        Ok(Node {
            file: self.file,
            value,
        })
    }
}

impl<'de> de::DeserializeSeed<'de> for &Reading {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Reading {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        self.node(Value::Null)
    }

    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        self.node(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Node, E> {
        self.node(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Node, E> {
        self.node(Value::Integer(value.into()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Node, E> {
        self.node(Value::Integer(value.into()))
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Node, E> {
        self.node(Value::Integer(value))
    }

    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Node, E> {
        self.node(Value::Integer(i128::try_from(value).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        self.node(Value::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Node, E> {
        self.node(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element_seed(self)? {
            nodes.push(node);
        }
        self.node(Value::List(nodes))
    }

    fn visit_enum<A: de::EnumAccess<'de>>(self, tagged: A) -> Result<Node, A::Error> {
        let (_, content) = tagged.variant::<String>()?;
        content.newtype_variant::<IgnoredAny>()?;
        self.node(Value::Tagged)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = BTreeMap::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.charge(key.len())?;
            self.path.borrow_mut().push(key.clone());
            let value = entries.next_value_seed(self)?;
            if map.insert(key, value).is_some() {
                let path = self.path.borrow().clone();
                self.duplicates.borrow_mut().push(path);
            }
            self.path.borrow_mut().pop();
        }
        self.node(Value::Map(map))
    }
}

/// The line, counted from one, on which a key of a file stands; `nth` counts its repetitions, from
/// zero.
///
/// The parser tells lines only with errors, so this reads the file again and makes one at the key.
pub(super) fn line_of(bytes: &[u8], path: &[String], nth: usize) -> Option<usize> {
    let text = std::str::from_utf8(bytes).ok()?;
    let search = Search {
        skip: Cell::new(nth),
        found: Cell::new(false),
    };
    let document = serde_yaml::Deserializer::from_str(text).next()?;
    let seek = Seek {
        search: &search,
        path,
    };
    let error = de::DeserializeSeed::deserialize(seek, document).err()?;
    search.found.get().then(|| error.location())??.line().into()
}

struct Search {
    skip: Cell<usize>,
    found: Cell<bool>,
}

/// Goes down a path.
struct Seek<'a> {
    search: &'a Search,
    path: &'a [String],
}

/// Looks at one key on the way.
struct SeekKey<'a> {
    search: &'a Search,
    wanted: &'a str,
    is_last: bool,
}

impl<'de> de::DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let Some((wanted, rest)) = self.path.split_first() else {
            return Ok(());
        };
        loop {
            let is_it = entries.next_key_seed(SeekKey {
                search: self.search,
                wanted,
                is_last: rest.is_empty(),
            })?;
            match is_it {
                None => return Ok(()),
                Some(false) => {
                    entries.next_value::<IgnoredAny>()?;
                }
                Some(true) => entries.next_value_seed(Seek {
                    search: self.search,
                    path: rest,
                })?,
            }
        }
    }
}

impl<'de> de::DeserializeSeed<'de> for SeekKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for SeekKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        if key != self.wanted {
            return Ok(false);
        }
        if !self.is_last {
            return Ok(true);
        }
        if let Some(left) = self.search.skip.get().checked_sub(1) {
            self.search.skip.set(left);
            return Ok(false);
        }
        self.search.found.set(true);
        Err(E::custom("found"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(dotted: &str) -> Path {
        dotted.split('.').map(str::to_owned).collect()
    }

    fn text_of(result: Result<Document, Unreadable>) -> String {
        result.unwrap_err().text
    }

    #[test]
    fn keys_are_found_on_their_lines() {
        let text = b"# comment\na:\n  b: 1\n  c:\n    d: x\n\"e\": {f: 1,\n g: 2}\na: again\n";
        assert_eq!(line_of(text, &path("a"), 0), Some(2));
        assert_eq!(line_of(text, &path("a"), 1), Some(8));
        assert_eq!(line_of(text, &path("a.b"), 0), Some(3));
        assert_eq!(line_of(text, &path("a.c.d"), 0), Some(5));
        assert_eq!(line_of(text, &path("e.g"), 0), Some(7));
        assert_eq!(line_of(text, &path("a.x"), 0), None);
        assert_eq!(line_of(b"- list", &path("a"), 0), None);
    }

    #[test]
    fn duplicates_are_collected_with_the_last_value() {
        let document = parse(0, b"a: 1\nb: {c: 1, c: 2, c: 3}\na: 2\n").unwrap();
        assert_eq!(document.duplicates, [path("b.c"), path("b.c"), path("a")]);
    }

    #[test]
    fn a_file_without_content_says_nothing() {
        for empty in ["", "\n\n", "# only a comment\n", "---\n"] {
            assert_eq!(parse(0, empty.as_bytes()).unwrap().root.value, Value::Null);
        }
    }

    #[test]
    fn what_is_too_much_is_refused() {
        let long = vec![b'#'; MAX_FILE_BYTES + 1];
        assert!(text_of(parse(0, &long)).contains("1 MiB"));

        let mut bomb = String::from("a0: &a0 [x, x]\n");
        for n in 1..40 {
            use std::fmt::Write;
            writeln!(bomb, "a{n}: &a{n} {{l: *a{0}, r: *a{0}}}", n - 1).unwrap();
        }
        assert!(parse(0, bomb.as_bytes()).is_err());

        let wide = format!("a: &a {}\nb:\n{}", "x".repeat(500_000), {
            (0..1000).fold(String::new(), |text, n| text + &format!("  k{n}: *a\n"))
        });
        assert!(text_of(parse(0, wide.as_bytes())).contains("16 MiB"));

        let deep = "a: ".to_owned() + &"[".repeat(10_000);
        assert!(parse(0, deep.as_bytes()).is_err());
    }

    #[test]
    fn what_is_no_yaml_text_is_refused_with_its_line() {
        let error = parse(0, b"a: 1\nb: \xff\n").unwrap_err();
        assert_eq!(error.line, Some(2));
        assert!(parse(0, b"a: \0").is_err());
        assert!(text_of(parse(0, b"a: 1\n---\nb: 1\n")).contains("more than one"));
        assert!(parse(0, b"a: 1\nb: [\n").unwrap_err().line.is_some());
    }
}
