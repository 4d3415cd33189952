//! Reads one map of the configuration key by key.
//!
//! To ask for a key is to declare it: its name, its default, its bounds, in one line. What was not
//! asked for when a [`Section`] goes out of scope is an unknown key. A problem is noted and the
//! default taken instead, so that a walk always comes to its end and finds them all.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Component, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::document::{Node, Path, Value};

/// A walk over a tree, and what it found.
pub(super) struct Walk {
    /// Whether the tree is all there is. One file alone may leave required keys to others.
    is_complete: bool,
    found: RefCell<Found>,
}

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// What is wrong.
    pub(super) problems: Vec<Located>,
    /// Every key that was asked for, in that order.
    pub(super) keys: Vec<Key>,
}

/// A problem and where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Located {
    /// The number of the file.
    pub(super) file: usize,
    /// The key, from the top.
    pub(super) path: Path,
    /// What is wrong, and what to do.
    pub(super) text: String,
}

/// A key that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// From the top, with dots.
    pub(super) path: String,
    /// What holds, as text.
    pub(super) value: String,
    /// Whether somebody wrote it.
    pub(super) is_set: bool,
}

impl Walk {
    pub(super) fn new(is_complete: bool) -> Self {
        Self {
            is_complete,
            found: RefCell::default(),
        }
    }

    /// The map at the top.
    pub(super) fn root<'a>(&'a self, node: &'a Node) -> Section<'a> {
        let map = match &node.value {
            Value::Map(map) => Some(map),
            _ => None,
        };
        let section = Section {
            walk: self,
            file: node.file,
            map,
            path: Vec::new(),
            known: RefCell::default(),
        };
        if section.map.is_none() && node.value != Value::Null {
            let found = describe(&node.value);
            section.problem_here(format!("expected keys and values, found {found}"));
        }
        section
    }

    pub(super) fn finish(self) -> Found {
        self.found.into_inner()
    }
}

/// A map of the configuration.
pub(super) struct Section<'a> {
    walk: &'a Walk,
    /// Where the map begins.
    file: usize,
    /// `None` when nobody wrote it.
    map: Option<&'a BTreeMap<String, Node>>,
    path: Path,
    known: RefCell<Vec<&'static str>>,
}

/// Keys that there were, and what to do instead.
const FORMER: [(&[&str], &str); 1] = [(
    &["templates"],
    "each template is a file of its own now: write it to templates/NAME.yaml beside this file",
)];

/// Most entries of a list.
const MAX_ENTRIES: usize = 256;

/// Longest text of a file that a problem repeats, in characters.
const MAX_QUOTED_CHARS: usize = 64;

/// What was found instead, in words. Text is repeated only by those who know that it is no secret.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Integer(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Text(text) => quote(text),
        Value::List(_) => "a list".to_owned(),
        Value::Tagged => "a value with a YAML tag".to_owned(),
        Value::Map(_) => "keys and values".to_owned(),
    }
}

/// The same without text, where that could be a secret.
fn describe_quietly(value: &Value) -> String {
    match value {
        Value::Text(_) => "text".to_owned(),
        other => describe(other),
    }
}

fn quote(text: &str) -> String {
    if text.chars().count() <= MAX_QUOTED_CHARS {
        format!("{text:?}")
    } else {
        let start: String = text.chars().take(MAX_QUOTED_CHARS).collect();
        format!("{start:?} and more")
    }
}

impl<'a> Section<'a> {
    /// Whether this walk sees all files.
    pub(super) fn is_complete(&self) -> bool {
        self.walk.is_complete
    }

    /// Notes a problem of a key in this map, where somebody wrote it, else where the map begins.
    pub(super) fn problem(&self, key: &str, text: impl Into<String>) {
        let file = self.node(key).map_or(self.file, |node| node.file);
        self.report(&[key], file, text.into());
    }

    /// Notes a problem of this map itself.
    pub(super) fn problem_here(&self, text: String) {
        self.report(&[], self.file, text);
    }

    /// Notes a problem of a key below this map.
    pub(super) fn problem_at(&self, keys: &[String], text: String) {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        self.report(&keys, self.file, text);
    }

    /// Whether somebody wrote this map.
    pub(super) fn is_written(&self) -> bool {
        self.map.is_some()
    }

    /// Whether somebody wrote a key.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.node(key).is_some()
    }

    fn report(&self, keys: &[&str], file: usize, text: String) {
        let path = self
            .path
            .iter()
            .map(String::as_str)
            .chain(keys.iter().copied())
            .map(str::to_owned)
            .collect();
        let located = Located { file, path, text };
        self.walk.found.borrow_mut().problems.push(located);
    }

    fn node(&self, key: &str) -> Option<&'a Node> {
        self.map?.get(key).filter(|node| node.value != Value::Null)
    }

    fn declare(&self, key: &'static str) -> Option<&'a Node> {
        self.known.borrow_mut().push(key);
        self.node(key)
    }

    fn record(&self, key: &str, value: String) {
        let mut path = self.path.join(".");
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
        let key = Key {
            path,
            value,
            is_set: self.is_set(key),
        };
        self.walk.found.borrow_mut().keys.push(key);
    }

    /// Reads a key with `read`, which says what is wrong as text. `show` is for the list of keys.
    fn value<T>(
        &self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> T {
        let value = match self.declare(key).map(|node| read(&node.value)) {
            None => default,
            Some(Ok(value)) => value,
            Some(Err(text)) => {
                self.problem(key, text);
                default
            }
        };
        self.record(key, show(&value));
        value
    }

    /// A whole number that passes `check`, which says what it must be.
    pub(super) fn whole<T>(
        &self,
        key: &'static str,
        default: T,
        check: impl FnOnce(T) -> Result<(), String>,
    ) -> T
    where
        T: TryFrom<i128> + Copy + Display,
    {
        let read = |value: &Value| {
            let Value::Integer(number) = value else {
                return Err(format!(
                    "expected a whole number, found {}",
                    describe(value)
                ));
            };
            let fitting = T::try_from(*number).map_err(|_| {
                let what = if *number < 0 { "negative" } else { "too large" };
                format!("{number} is {what}")
            })?;
            check(fitting)
                .map(|()| fitting)
                .map_err(|why| format!("{why}, not {number}"))
        };
        self.value(key, default, read, ToString::to_string)
    }

    /// A whole number within bounds, both included.
    pub(super) fn integer<T>(&self, key: &'static str, default: T, bounds: RangeInclusive<T>) -> T
    where
        T: TryFrom<i128> + PartialOrd + Copy + Display,
    {
        self.whole(key, default, |number| {
            if bounds.contains(&number) {
                Ok(())
            } else {
                let (low, high) = (bounds.start(), bounds.end());
                Err(format!("must be {low} to {high}"))
            }
        })
    }

    /// Yes or no.
    pub(super) fn flag(&self, key: &'static str, default: bool) -> bool {
        let read = |value: &Value| match value {
            Value::Bool(value) => Ok(*value),
            other => Err(format!("expected true or false, found {}", describe(other))),
        };
        self.value(key, default, read, ToString::to_string)
    }

    /// Whole seconds within bounds, both included. The key ends in `_s`.
    pub(super) fn seconds(
        &self,
        key: &'static str,
        default: Duration,
        bounds: RangeInclusive<u64>,
    ) -> Duration {
        Duration::from_secs(self.integer(key, default.as_secs(), bounds))
    }

    /// A finite number.
    pub(super) fn number(
        &self,
        key: &'static str,
        default: f64,
        check: impl FnOnce(f64) -> Result<(), String>,
    ) -> f64 {
        let read = |value: &Value| {
            let number = match value {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "beyond 2^53 every number is out of any bounds"
                )]
                Value::Integer(number) => *number as f64,
                Value::Float(number) if number.is_finite() => *number,
                other => return Err(format!("expected a number, found {}", describe(other))),
            };
            check(number)
                .map(|()| number)
                .map_err(|why| format!("{why}, not {number}"))
        };
        self.value(key, default, read, ToString::to_string)
    }

    /// Text that passes `parse`, which says what it must be.
    pub(super) fn text<T>(
        &self,
        key: &'static str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
        show: impl FnOnce(&T) -> String,
    ) -> T {
        let read = |value: &Value| match value {
            Value::Text(text) => parse(text).map_err(|why| format!("{} {why}", quote(text))),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => Err(format!(
                "expected text, found {}; put it in quotes if it is meant as text",
                describe(value)
            )),
            other => Err(format!("expected text, found {}", describe(other))),
        };
        self.value(key, default, read, show)
    }

    /// Text that must be written, as there is no default: `None` when it was not, or not well.
    pub(super) fn required<T: Display>(
        &self,
        key: &'static str,
        missing: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let parse = |text: &str| parse(text).map(Some);
        let show = |value: &Option<T>| value.as_ref().map(ToString::to_string).unwrap_or_default();
        let value = self.text(key, None, parse, show);
        if self.is_complete() && !self.is_set(key) {
            self.problem(key, missing);
        }
        value
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &'static str,
        default: T,
        words: &[T],
        word_of: fn(T) -> &'static str,
    ) -> T {
        let parse = |text: &str| {
            words
                .iter()
                .copied()
                .find(|word| word_of(*word) == text)
                .ok_or_else(|| {
                    let words: Vec<_> = words.iter().map(|word| word_of(*word)).collect();
                    format!("is not one of: {}", words.join(", "))
                })
        };
        self.text(key, default, parse, |value| word_of(*value).to_owned())
    }

    /// An address and port.
    pub(super) fn address(&self, key: &'static str, default: SocketAddr) -> SocketAddr {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| "is not an address and port, for example 127.0.0.1:7272".to_owned())
        };
        self.text(key, default, parse, ToString::to_string)
    }

    /// An absolute path in its plain spelling, at most `max_bytes` long.
    pub(super) fn path(&self, key: &'static str, default: &str, max_bytes: usize) -> PathBuf {
        let parse = |text: &str| plain_path(text, max_bytes);
        let show = |path: &PathBuf| path.display().to_string();
        self.text(key, PathBuf::from(default), parse, show)
    }

    /// A map that has keys of its own.
    pub(super) fn section(&self, key: &'static str) -> Section<'a> {
        let node = self.declare(key);
        self.sub_section(key, node)
    }

    fn sub_section(&self, key: &str, node: Option<&'a Node>) -> Section<'a> {
        let mut path = self.path.clone();
        path.push(key.to_owned());
        let map = match node.map(|node| &node.value) {
            None | Some(Value::Null) => None,
            Some(Value::Map(map)) => Some(map),
            Some(other) => {
                let found = describe_quietly(other);
                self.problem(key, format!("expected keys and values, found {found}"));
                None
            }
        };
        Section {
            walk: self.walk,
            file: node.map_or(self.file, |node| node.file),
            map,
            path,
            known: RefCell::default(),
        }
    }

    /// A map of names that are not known before to maps that have keys of their own.
    pub(super) fn sections(&self, key: &'static str) -> Vec<(String, Section<'a>)> {
        self.section(key).each()
    }

    /// What is here, as maps of names that are not known before.
    pub(super) fn each(self) -> Vec<(String, Section<'a>)> {
        let entries = self.map.into_iter().flatten();
        let sections = entries
            .map(|(name, node)| (name.clone(), self.sub_section(name, Some(node))))
            .collect();
        self.take_all();
        sections
    }

    /// A map of names that are not known before to values that pass `parse`, which says what they must be.
    pub(super) fn pairs<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> BTreeMap<String, T> {
        let named = self.section(key);
        let mut entries = BTreeMap::new();
        for (name, node) in named.map.into_iter().flatten() {
            match parse(&node.value) {
                Ok(value) => {
                    entries.insert(name.clone(), value);
                }
                Err(why) => named.problem(name, why),
            }
        }
        named.take_all();
        self.record(key, format!("{} entries", entries.len()));
        entries
    }

    /// Text that may be absent. It may be a secret: no list repeats it.
    pub(super) fn optional(&self, key: &'static str) -> Option<String> {
        let show = |text: &Option<String>| text.as_ref().map_or("", |_| "set").to_owned();
        self.text(key, None, |text| Ok(Some(text.to_owned())), show)
    }

    /// A value that may be absent, read by `parse`, which says what it must be.
    pub(super) fn single<T: Display>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        let show = |value: &Option<T>| value.as_ref().map(ToString::to_string).unwrap_or_default();
        self.value(key, None, |value| parse(value).map(Some), show)
    }

    /// A list that may be absent, each entry of which passes `parse`, which says what it must be. One problem is enough.
    pub(super) fn list<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let read = |value: &Value| match value {
            Value::List(nodes) => {
                let entries = nodes.iter().map(|node| parse(&node.value));
                entries.collect::<Result<Vec<_>, _>>().map(Some)
            }
            other => Err(format!(
                "expected a list, found {}",
                describe_quietly(other)
            )),
        };
        let show = |list: &Option<Vec<T>>| {
            let count = list.as_ref().map(|list| format!("{} entries", list.len()));
            count.unwrap_or_default()
        };
        self.value(key, None, read, show)
    }

    /// A list of words that are no secrets, none unless some are written.
    pub(super) fn words<T>(&self, key: &'static str) -> Vec<T>
    where
        T: FromStr + Display,
        T::Err: Display,
    {
        self.entries(key, |value| match value {
            Value::Text(text) => text.parse().map_err(|why| format!("{} {why}", quote(text))),
            other => Err(format!("expected text, found {}", describe(other))),
        })
    }

    /// A list of what is no secret, none unless some are written. `parse` says what each must be.
    pub(super) fn entries<T: Display>(
        &self,
        key: &'static str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Vec<T> {
        let read = |value: &Value| match value {
            Value::List(nodes) if nodes.len() <= MAX_ENTRIES => {
                nodes.iter().map(|node| parse(&node.value)).collect()
            }
            Value::List(_) => Err(format!("has more than {MAX_ENTRIES} entries")),
            other => Err(format!("expected a list, found {}", describe(other))),
        };
        let show = |entries: &Vec<T>| {
            let entries: Vec<_> = entries.iter().map(ToString::to_string).collect();
            entries.join(", ")
        };
        self.value(key, Vec::new(), read, show)
    }

    /// A map of text to text, as environments are. Its values may be secrets: no problem and no
    /// list repeats them.
    pub(super) fn texts(&self, key: &'static str) -> BTreeMap<String, String> {
        let entries = self.section(key);
        let mut texts = BTreeMap::new();
        for (name, node) in entries.map.into_iter().flatten() {
            let checked = match &node.value {
                Value::Text(text) => Ok(text.clone()),
                Value::Null => {
                    Err("expected text, found nothing; write \"\" for no text".to_owned())
                }
                _ => Err("expected text; put the value in quotes".to_owned()),
            };
            match checked {
                Ok(text) => {
                    texts.insert(name.clone(), text);
                }
                Err(why) => entries.problem(name, why),
            }
        }
        entries.take_all();
        self.record(key, format!("{} entries", texts.len()));
        texts
    }

    /// Any key is known here.
    fn take_all(mut self) {
        self.map = None;
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let known = self.known.take();
        for (key, node) in self.map.into_iter().flatten() {
            if known.contains(&key.as_str()) {
                continue;
            }
            let former = FORMER
                .iter()
                .find(|(path, _)| *path == [&self.path[..], std::slice::from_ref(key)].concat());
            if let Some((_, mend)) = former {
                self.report(&[key], node.file, (*mend).to_owned());
                continue;
            }
            let mend = nearest(key, &known).map_or_else(
                || format!("the keys here are: {}", known.join(", ")),
                |near| format!("did you mean {near}?"),
            );
            self.report(&[key], node.file, format!("there is no such key; {mend}"));
        }
    }
}

/// The path, if it is absolute and in its plain spelling.
pub(super) fn plain_path(text: &str, max_bytes: usize) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err("is not an absolute path; begin it with /".to_owned());
    }
    if text.len() > max_bytes {
        return Err(format!("is longer than {max_bytes} bytes"));
    }
    if text.contains('\0') {
        return Err("holds a NUL, which no path can".to_owned());
    }
    let is_plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    // Components swallow `.`, doubled and trailing slashes.
    if !is_plain || path.components().collect::<PathBuf>().as_os_str() != text {
        return Err(
            "is not in its plain spelling, without . and .. and doubled slashes".to_owned(),
        );
    }
    if path.parent().is_none() {
        return Err("is the root directory".to_owned());
    }
    Ok(path)
}

/// The known key that was probably meant.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    // Longer than any key of ours: nothing is near, and comparing costs time.
    if key.len() > 64 {
        return None;
    }
    known
        .iter()
        .map(|known| (distance(key, known), *known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 5)
        .min()
        .map(|(_, known)| known)
}

/// How many letters must be inserted, removed or replaced to make one of the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(&to) {
            let best = (diagonal + usize::from(a != *b))
                .min(left + 1)
                .min(*cell + 1);
            diagonal = *cell;
            *cell = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_those_of_levenshtein() {
        for (a, b, expected) in [
            ("", "", 0),
            ("abc", "abc", 0),
            ("abc", "", 3),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("lisen", "listen", 1),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn only_near_keys_are_suggested() {
        let known = ["listen", "max_body_bytes", "max"];
        assert_eq!(nearest("lisen", &known), Some("listen"));
        assert_eq!(nearest("max_body_byte", &known), Some("max_body_bytes"));
        assert_eq!(nearest("zebra", &known), None);
        assert_eq!(nearest(&"x".repeat(100_000), &known), None);
    }

    #[test]
    fn paths_have_one_spelling() {
        assert!(plain_path("/var/lib/casemate", 100).is_ok());
        for bad in [
            "",
            "a/b",
            "/",
            "/a/../b",
            "/a/./b",
            "//a",
            "/a/",
            "/a\0",
            "/..."[..3].as_ref(),
        ] {
            assert!(plain_path(bad, 100).is_err(), "{bad}");
        }
        assert!(plain_path("/aaaa", 4).is_err());
    }
}
