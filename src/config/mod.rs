//! Floor 10: files to values. `serde_yaml` lives only here.
//!
//! The main file, then the drop-ins `<main file>.d/*.yaml` in the order of their names; what comes
//! later wins key by key. Each file is checked by itself, then all of them as one, and **every
//! problem is reported at once, with its file, line and key**. Values of environments are never
//! repeated: they may be secrets. Beside the main file stand the templates, `templates/NAME.yaml`,
//! each whole in its own file.
//!
//! [`validate`] is the list of keys, [`templates`] that of a template's.

pub mod level;
pub mod reload;

mod document;
mod door;
mod egress;
mod issuers;
mod merge;
mod rules;
mod section;
mod templates;
mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use document::{MAX_FILE_BYTES, Node, Value};
use section::{Found, Located, Walk};

use crate::model::issuer::Issuer;
use crate::model::name::Name;
use crate::model::settings::{
    AdminConfig, AuditConfig, BackupConfig, EndpointsConfig, HttpConfig, LogConfig, Mode,
    SessionsConfig, StoreConfig, VolumesConfig,
};
use crate::model::template::TemplateSpec;
use crate::policy::{NamedRule, Origin};
use crate::runtime::RuntimeConfig;

/// Where the configuration is when nobody says.
pub const DEFAULT_PATH: &str = "/etc/casemate/casemate.yaml";

/// Most files of templates, and of rules, that are read.
const MAX_FILES_BESIDE: usize = crate::policy::MAX_RULES;
/// Most drop-ins that are read.
const MAX_DROP_INS: usize = 64;
/// Most problems that are told; the rest is counted.
const MAX_PROBLEMS: usize = 100;

/// Everything that the operator decides, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How strict to be with the machine.
    pub mode: Mode,
    /// Where the database, the lock and the backups are.
    pub state_dir: PathBuf,
    /// Where the admin socket and the links are.
    pub runtime_dir: PathBuf,
    /// The HTTP door.
    pub http: HttpConfig,
    /// How ports in sessions are reached by it.
    pub endpoints: EndpointsConfig,
    /// Whose JSON web tokens are taken at that door.
    pub jwt: Vec<Issuer>,
    /// The admin socket.
    pub admin: AdminConfig,
    /// podman and gVisor.
    pub runtime: RuntimeConfig,
    /// The group that sandboxes run as and that reaches the links.
    pub sandbox_group: String,
    /// Bounds and defaults of sessions.
    pub sessions: SessionsConfig,
    /// What sessions are made of, by name, as their files say.
    pub templates: BTreeMap<Name, TemplateSpec>,
    /// What the operator allows and denies, as the files say.
    pub policy: Vec<NamedRule>,
    /// Volumes.
    pub volumes: VolumesConfig,
    /// The record.
    pub audit: AuditConfig,
    /// The database.
    pub store: StoreConfig,
    /// Backups.
    pub backup: BackupConfig,
    /// The log.
    pub log: LogConfig,
    /// Every key of the main file with the value that holds, as text.
    values: BTreeMap<String, String>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as seen from the main file's directory.
    pub file: String,
    /// The line, counted from one, where it is known.
    pub line: Option<usize>,
    /// The key from the top, with dots; empty when it is about the file.
    pub key: String,
    /// What is wrong, and what to do.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// All that is wrong with a configuration, in the order of files and lines. Never empty; displayed
/// one to a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblems {
    /// At most a hundred.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub more: usize,
}

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        if self.more > 0 {
            write!(f, "\nand {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigProblems {}

impl ConfigProblems {
    fn about_file(file: &Path, text: String) -> Self {
        let problem = Problem {
            file: printable(&file.display().to_string()),
            line: None,
            key: String::new(),
            text,
        };
        Self {
            problems: vec![problem],
            more: 0,
        }
    }
}

impl Config {
    /// Reads the main file, its drop-ins, and the templates and rules beside it. Blocks on the disk.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn load(path: &Path) -> Result<Self, ConfigProblems> {
        let mut beside = beside(path, templates::DIRECTORY)?;
        beside.extend(self::beside(path, rules::DIRECTORY)?);
        Self::from_sources(&sources(path)?, &beside)
    }

    /// Understands files that were read: name and content, the main file first, later ones win; and the files of templates
    /// and rules, whose names begin with those of their directories.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn from_sources(
        sources: &[(String, Vec<u8>)],
        beside: &[(String, Vec<u8>)],
    ) -> Result<Self, ConfigProblems> {
        let all = [sources, beside].concat();
        let mut problems = Problems::new(&all);
        let mut whole = Node {
            file: 0,
            value: Value::Null,
        };
        let mut is_readable = true;
        for (file, (_, bytes)) in sources.iter().enumerate() {
            match document::parse(file, bytes) {
                Err(unreadable) => {
                    is_readable = false;
                    problems.unreadable(file, unreadable);
                }
                Ok(document) => {
                    problems.duplicates(file, &document.duplicates);
                    let (_, found) = walk(&document.root, false);
                    // Of another version everything else may be otherwise too.
                    let version = found
                        .problems
                        .iter()
                        .find(|problem| problem.path == ["version"]);
                    if let Some(version) = version {
                        is_readable = false;
                        problems.located(version);
                    } else {
                        found.problems.iter().for_each(|p| problems.located(p));
                    }
                    whole = merge::merge(whole, document.root);
                }
            }
        }
        let (mut config, found) = walk(&whole, true);
        // With a file missing from the whole, the rest would be blamed for what that file says.
        if is_readable {
            found.problems.iter().for_each(|p| problems.located(p));
        }
        config.values = found
            .keys
            .into_iter()
            .map(|key| (key.path, key.value))
            .collect();
        for (file, (name, bytes)) in all.iter().enumerate().skip(sources.len()) {
            if name.starts_with(rules::DIRECTORY) {
                let rule = problems.file_beside(file, name, bytes, rules::rule);
                config.policy.extend(rule.map(|(name, rule)| NamedRule {
                    name,
                    origin: Origin::File,
                    rule,
                }));
            } else {
                let template = problems.file_beside(file, name, bytes, templates::template);
                config.templates.extend(template);
            }
        }
        problems.finish(config)
    }

    /// Where the templates' files are that belong to a main file.
    #[must_use]
    pub fn templates_beside(path: &Path) -> PathBuf {
        path.with_file_name(templates::DIRECTORY)
    }

    /// Every key of the main file and the value that holds, for people.
    pub fn values(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

fn walk(node: &Node, is_complete: bool) -> (Config, Found) {
    let walk = Walk::new(is_complete);
    let config = validate::config(&walk.root(node));
    (config, walk.finish())
}

/// Problems of files that are at hand.
struct Problems<'a> {
    sources: &'a [(String, Vec<u8>)],
    seen: BTreeSet<Located>,
    found: Vec<(usize, Problem)>,
}

impl<'a> Problems<'a> {
    const fn new(sources: &'a [(String, Vec<u8>)]) -> Self {
        Self {
            sources,
            seen: BTreeSet::new(),
            found: Vec::new(),
        }
    }

    fn add(&mut self, file: usize, line: Option<usize>, path: &[String], text: String) {
        let name = self.sources.get(file).map(|(name, _)| printable(name));
        let problem = Problem {
            file: name.unwrap_or_default(),
            line,
            key: printable(&path.join(".")),
            text,
        };
        self.found.push((file, problem));
    }

    /// The line of the key, or of the nearest map above it that is written.
    fn line(&self, file: usize, path: &[String], nth: usize) -> Option<usize> {
        // Finding a line means reading the file again.
        if self.found.len() >= MAX_PROBLEMS {
            return None;
        }
        let (_, bytes) = self.sources.get(file)?;
        (1..=path.len()).rev().find_map(|length| {
            document::line_of(
                bytes,
                path.get(..length)?,
                if length == path.len() { nth } else { 0 },
            )
        })
    }

    fn unreadable(&mut self, file: usize, unreadable: document::Unreadable) {
        self.add(file, unreadable.line, &[], unreadable.text);
    }

    /// Understands a file that says one thing, which is called as the file is; `None` when a problem was noted.
    fn file_beside<T>(
        &mut self,
        file: usize,
        name: &str,
        bytes: &[u8],
        understand: fn(&section::Section<'_>) -> Option<T>,
    ) -> Option<(Name, T)> {
        let name = name_of(name).map_err(|text| self.add(file, None, &[], text));
        let document = match document::parse(file, bytes) {
            Ok(document) => document,
            Err(unreadable) => {
                self.unreadable(file, unreadable);
                return None;
            }
        };
        self.duplicates(file, &document.duplicates);
        let walk = Walk::new(true);
        let understood = understand(&walk.root(&document.root));
        walk.finish().problems.iter().for_each(|p| self.located(p));
        Some((name.ok()?, understood?))
    }

    fn duplicates(&mut self, file: usize, duplicates: &[document::Path]) {
        for (n, path) in duplicates.iter().enumerate() {
            let earlier = duplicates.iter().take(n).filter(|other| *other == path);
            let nth = earlier.count() + 1;
            let line = self.line(file, path, nth);
            let text = "is given more than once; keep one of them".to_owned();
            self.add(file, line, path, text);
        }
    }

    /// Notes a problem unless it is known: what is wrong in one file is found again in the whole.
    fn located(&mut self, problem: &Located) {
        if !self.seen.insert(problem.clone()) {
            return;
        }
        let line = self.line(problem.file, &problem.path, 0);
        self.add(problem.file, line, &problem.path, problem.text.clone());
    }

    /// The value, if nothing is wrong.
    fn finish<T>(mut self, value: T) -> Result<T, ConfigProblems> {
        if self.found.is_empty() {
            return Ok(value);
        }
        self.found
            .sort_by(|(a_file, a), (b_file, b)| (a_file, a.line).cmp(&(b_file, b.line)));
        let more = self.found.len().saturating_sub(MAX_PROBLEMS);
        let problems = self
            .found
            .into_iter()
            .take(MAX_PROBLEMS)
            .map(|(_, problem)| problem)
            .collect();
        Err(ConfigProblems { problems, more })
    }
}

/// Longest key or file name that a problem repeats, in characters.
const MAX_PRINTED_CHARS: usize = 256;

/// The text without what could forge a line or move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars()
        .take(MAX_PRINTED_CHARS)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// The main file and its drop-ins, in the order in which they are merged.
fn sources(path: &Path) -> Result<Vec<(String, Vec<u8>)>, ConfigProblems> {
    let main = read(path).map_err(|error| {
        let text = if error.kind() == io::ErrorKind::NotFound {
            "there is no such file; install the package anew, or name another with --config".into()
        } else {
            format!("cannot be read: {error}")
        };
        ConfigProblems::about_file(path, text)
    })?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut sources = vec![(name.clone().into_owned(), main)];
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let files = files_in(&directory, MAX_DROP_INS).map_err(|error| {
        ConfigProblems::about_file(&directory, format!("cannot be read: {error}"))
    })?;
    for file in files {
        let bytes = read(&file).map_err(|error| {
            ConfigProblems::about_file(&file, format!("cannot be read: {error}"))
        })?;
        let file = file.file_name().unwrap_or_default().to_string_lossy();
        sources.push((format!("{name}.d/{file}"), bytes));
    }
    Ok(sources)
}

/// The files of a directory beside a main file, by name.
fn beside(main: &Path, directory: &str) -> Result<Vec<(String, Vec<u8>)>, ConfigProblems> {
    let path = main.with_file_name(directory);
    let failed =
        |path: &Path, error| ConfigProblems::about_file(path, format!("cannot be read: {error}"));
    let files = files_in(&path, MAX_FILES_BESIDE).map_err(|error| failed(&path, error))?;
    let mut sources = Vec::with_capacity(files.len());
    for file in files {
        let bytes = read(&file).map_err(|error| failed(&file, error))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        sources.push((format!("{directory}/{name}"), bytes));
    }
    Ok(sources)
}

/// What a file beside the main file says something of: it is called as the file is.
fn name_of(file: &str) -> Result<Name, String> {
    let stem = Path::new(file).file_stem().unwrap_or_default();
    let name = stem.to_string_lossy().parse::<Name>();
    let about = file.strip_prefix(rules::DIRECTORY);
    let what = about.map_or("a template", |_| "a rule");
    name.map_err(|why| format!("its name does not name {what}: {why}"))
}

/// The `*.yaml` in a directory, by name; none when there is no directory.
fn files_in(directory: &Path, max: usize) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let text = name.as_encoded_bytes();
        if text.ends_with(b".yaml") && !text.starts_with(b".") {
            files.push(directory.join(name));
        }
        if files.len() > max {
            return Err(io::Error::other(format!("it holds more than {max} files")));
        }
    }
    files.sort();
    Ok(files)
}

/// A regular file that not everybody can write; one byte more than allowed when it is too long.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Before opening: to open a named pipe is to wait for its other end.
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if found.permissions().mode() & 0o002 != 0 {
        return Err(io::Error::other(
            "everybody can write to it; look at what it says, then chmod o-w",
        ));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
