//! The house keeps its shape: who may name whom, where each outside crate lives, what is pure.
//!
//! The floors are those of `src/lib.rs`, numbers and all. Sources are read as tokens, so that comments, strings and the
//! bodies of macros count as what they are. Every rule has a test that shows that it can fail.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::str::FromStr;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

#[path = "architecture/each_rule_can_fail.rs"]
mod each_rule_can_fail;

/// Each outside crate and where it may be named (beginnings of paths below `src/`). One that several folders share is
/// `""`. A new dependency needs a line here, and so a thought.
const PLACES: &[(&str, &[&str])] = &[
    ("age", &["backup/seal.rs"]),
    ("anyhow", &["daemon/", "bin/"]),
    (
        "async_compression",
        &["api/v1/archive.rs", "api/e2b/envd/files.rs", "bin/"],
    ),
    ("async_trait", &["runtime/"]),
    (
        "base64",
        &[
            "api/",
            "app/access.rs",
            "app/links.rs",
            "egress/",
            "identity/jwt/",
            "session/trust.rs",
            "bin/",
        ],
    ),
    ("bytes", &[""]),
    ("casemate_link", &["session/", "endpoint/", "app/", "api/"]),
    ("clap", &["bin/"]),
    ("clap_complete", &["bin/"]),
    ("clap_mangen", &["bin/"]),
    ("futures_util", &[""]),
    (
        "getrandom",
        &[
            "api/e2b/envd/watchers.rs",
            "base/id.rs",
            "daemon/start.rs",
            "identity/",
            "session/launch.rs",
            "bin/",
        ],
    ),
    (
        "http",
        &[
            "api/",
            "egress/",
            "endpoint/",
            "identity/jwt/fetch.rs",
            "runtime/",
            "bin/",
        ],
    ),
    ("http_body", &["api/", "endpoint/", "runtime/", "bin/"]),
    (
        "http_body_util",
        &[
            "api/",
            "egress/",
            "endpoint/",
            "identity/jwt/fetch.rs",
            "runtime/",
            "bin/",
        ],
    ),
    (
        "hyper",
        &[
            "api/",
            "egress/",
            "endpoint/",
            "identity/jwt/fetch.rs",
            "runtime/libpod.rs",
            "bin/",
        ],
    ),
    (
        "hyper_util",
        &[
            "api/",
            "egress/",
            "endpoint/",
            "identity/jwt/fetch.rs",
            "runtime/libpod.rs",
            "bin/",
        ],
    ),
    ("idna", &["model/host.rs"]),
    ("indicatif", &["bin/"]),
    ("jiff", &["base/clock.rs", "daemon/logging.rs", "bin/"]),
    ("landlock", &["host/realm.rs"]),
    ("matchit", &["api/"]),
    ("nix", &["host/"]),
    ("podman_api", &["runtime/podman.rs", "runtime/probe.rs"]),
    ("rcgen", &["egress/"]),
    (
        "ring",
        &[
            "api/tls/",
            "backup/archive.rs",
            "identity/",
            "vault/",
            "bin/",
        ],
    ),
    ("rusqlite", &["store/"]),
    ("rustls", &["api/tls/", "bin/casemate/http/tls.rs"]),
    ("rustls_webpki", &["api/tls/"]),
    ("rustix", &["bin/", "host/"]),
    ("schemars", &["base/", "model/", "api/", "policy/"]),
    ("sd_notify", &["host/notify.rs"]),
    ("seccompiler", &["host/syscalls.rs"]),
    ("serde", &[""]),
    ("serde_json", &[""]),
    ("serde_yaml", &["config/"]),
    ("sha2", &["model/record.rs"]),
    ("signal_hook", &["host/signals.rs"]),
    ("subtle", &["base/secret.rs", "identity/"]),
    ("tar", &["app/snapshot/", "backup/archive.rs", "bin/"]),
    ("thiserror", &[""]),
    ("tokio", &[""]),
    (
        "tokio_util",
        &[
            "admin/",
            "api/",
            "app/",
            "audit/",
            "backup/",
            "daemon/",
            "egress/",
            "endpoint/",
            "host/accept.rs",
            "identity/",
            "session/",
            "bin/",
        ],
    ),
    (
        "tokio_rustls",
        &[
            "api/tls/",
            "egress/",
            "host/certificates.rs",
            "identity/jwt/fetch.rs",
            "bin/casemate/http/tls.rs",
        ],
    ),
    (
        "tokio_tungstenite",
        &["api/socket.rs", "api/handshake.rs", "bin/"],
    ),
    ("tracing", &[""]),
    ("tracing_journald", &["daemon/logging.rs"]),
    (
        "tracing_subscriber",
        &["daemon/logging.rs", "config/level.rs"],
    ),
    ("ulid", &["base/id.rs"]),
    ("unicode_security", &["model/host.rs"]),
    (
        "zeroize",
        &[
            "backup/seal.rs",
            "base/secret.rs",
            "credential/veil.rs",
            "daemon/start.rs",
            "egress/",
            "host/credential.rs",
            "identity/",
            "session/launch.rs",
            "store/veil.rs",
            "vault/",
            "bin/",
        ],
    ),
    ("webpki", &["api/tls/"]),
    ("zstd", &["audit/archive.rs", "backup/archive.rs", "bin/"]),
];

/// What decides without doing: no I/O, no async, no clock.
const PURE: &[&str] = &[
    "model/",
    "policy/",
    "session/state.rs",
    "runtime/spec.rs",
    "config/merge.rs",
];

/// Where a path leads out of the pure.
const EFFECTS: &[&str] = &[
    "tokio",
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
];

/// What the programs may name of the library: the daemon's is the assembly, the client knows only what is said at the doors.
const PROGRAMS: &[(&str, &[&str])] = &[
    (
        "bin/casemated.rs",
        &["casemate::base", "casemate::config", "casemate::daemon"],
    ),
    (
        "bin/casemate",
        &[
            "casemate::admin::protocol",
            "casemate::base",
            "casemate::model",
        ],
    ),
];

/// The two ends of the link, which know only what lies between them.
const ENDS: &[(&str, &str)] = &[
    ("link/src/daemon/", "crate::guest"),
    ("link/src/guest", "crate::daemon"),
];

/// Lines with code, outside tests.
const MAX_LINES: usize = 800;

type Floors = BTreeMap<String, u32>;

#[test]
fn the_house_keeps_its_shape() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let floors = floors(&fs::read_to_string(sources.join("lib.rs")).unwrap());
    let mut problems = Vec::new();
    let mut files = 0;
    walk(&sources, &mut |path| {
        let name = path.strip_prefix(&sources).unwrap().to_str().unwrap();
        files += 1;
        problems.extend(check(&floors, name, &fs::read_to_string(path).unwrap()));
    });
    assert!(files > 60, "only {files} sources were found");
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn every_floor_exists_and_every_dependency_has_a_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for floor in floors(&fs::read_to_string(root.join("src/lib.rs")).unwrap()).keys() {
        let folder = root.join("src").join(floor);
        assert!(
            folder.is_dir() || folder.with_extension("rs").is_file(),
            "{floor} has no folder: no empty rooms"
        );
    }
    let places: BTreeSet<_> = PLACES.iter().map(|(name, _)| *name).collect();
    for name in dependencies(&fs::read_to_string(root.join("Cargo.toml")).unwrap()) {
        assert!(
            places.contains(name.as_str()),
            "{name} has no place in this test's list"
        );
    }
}

/// Files in a fixed order, those of all three packages.
fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            walk(&path, visit);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(&path);
        }
    }
}

/// The floors as `src/lib.rs` draws them: `// 4: words` above the modules of floor 4.
fn floors(lib: &str) -> Floors {
    let mut floors = Floors::new();
    let mut floor = None;
    for line in lib.lines() {
        if let Some((number, _)) = line
            .strip_prefix("// ")
            .and_then(|rest| rest.split_once(':'))
        {
            floor = number.parse().ok();
        } else if let Some(module) = line.strip_prefix("pub mod ") {
            let number =
                floor.unwrap_or_else(|| panic!("{module} stands below no floor's comment"));
            floors.insert(module.trim_end_matches(';').to_owned(), number);
        }
    }
    floors
}

/// The names in `[dependencies]`, as code spells them.
fn dependencies(manifest: &str) -> Vec<String> {
    let (_, section) = manifest.split_once("\n[dependencies]\n").unwrap();
    section
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['=', '.', ' ']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// Everything that is wrong with one source; `name` is its path below `src/`.
/// The floor of the front doors.
const DOORS: u32 = 9;

/// What front doors use only through `app`.
const BEHIND_THE_APP: [&str; 4] = ["audit", "identity", "runtime", "store"];

fn check(floors: &Floors, name: &str, text: &str) -> Vec<String> {
    let tokens = match TokenStream::from_str(text) {
        Ok(tokens) => tokens,
        Err(error) => return vec![format!("{name}: {error}")],
    };
    let mut reader = Reader::new(name);
    reader.read(tokens, false);
    let mut problems = Vec::new();
    if !text.starts_with("//!") {
        problems.push(format!(
            "{name}:1: opens without //!: say what it is, what it is not, what it keeps"
        ));
    }
    if reader.lines.len() > MAX_LINES {
        problems.push(format!(
            "{name}: {} lines of code, more than {MAX_LINES}: split it",
            reader.lines.len()
        ));
    }
    let pure = PURE.iter().any(|place| name.starts_with(place));
    for effect in reader.effects.iter().filter(|_| pure) {
        problems.push(format!(
            "{name}:{}: {} in a file that is to be pure",
            effect.line, effect.path
        ));
    }
    let own = Place::of(floors, name);
    if own == Place::None {
        problems.push(format!(
            "{name}: on no floor: give its folder a line in lib.rs"
        ));
    }
    for named in &reader.names {
        let mut say = |what: &str| {
            problems.push(format!(
                "{name}:{}: names {}: {what}",
                named.line, named.path
            ));
        };
        let place = PLACES
            .iter()
            .find(|(outside, _)| named.begins_with(outside));
        if let (Some((_, places)), Place::Floor(..) | Place::Program, false) =
            (place, &own, named.in_test)
            && !places.iter().any(|place| name.starts_with(place))
        {
            say(&format!("it lives in {}", places.join(" and ")));
        }
        if pure && !named.in_test && EFFECTS.iter().any(|effect| named.begins_with(effect)) {
            say("an effect in a file that is to be pure");
        }
        match &own {
            Place::Floor(folder, floor) => {
                let Some(rest) = named.path.strip_prefix("crate::") else {
                    if named.path == "crate" {
                        say("the whole house at once");
                    }
                    continue;
                };
                let target = rest.split("::").next().unwrap_or_default();
                match floors.get(target) {
                    _ if target == folder => {}
                    Some(other) if other < floor => {
                        if *floor == DOORS && BEHIND_THE_APP.contains(&target) && !named.in_test {
                            say("behind the app, where no front door reaches");
                        }
                    }
                    Some(other) if other == floor => say("a sibling on its own floor"),
                    Some(_) => say("a floor above its own"),
                    None => say("nothing that lib.rs knows"),
                }
            }
            Place::Program => {
                let allowed = PROGRAMS
                    .iter()
                    .find(|(program, _)| name.starts_with(program))
                    .map(|(_, allowed)| *allowed);
                if named.begins_with("casemate")
                    && !allowed.is_some_and(|some| some.iter().any(|part| named.begins_with(part)))
                {
                    say("not for a program");
                }
            }
            Place::Link => {
                if ENDS
                    .iter()
                    .any(|(end, other)| name.starts_with(end) && named.begins_with(other))
                    && !named.in_test
                {
                    say("the other end of the link");
                }
            }
            Place::Lib | Place::Guest | Place::None => {}
        }
    }
    problems
}

/// Where a source stands.
#[derive(PartialEq)]
enum Place {
    Floor(String, u32),
    Lib,
    Program,
    Link,
    Guest,
    None,
}

impl Place {
    fn of(floors: &Floors, name: &str) -> Self {
        let folder = name
            .split('/')
            .next()
            .unwrap_or_default()
            .trim_end_matches(".rs");
        match folder {
            "lib" => Self::Lib,
            "bin" => Self::Program,
            "link" => Self::Link,
            "guest" => Self::Guest,
            _ => floors
                .get(folder)
                .map_or(Self::None, |floor| Self::Floor(folder.to_owned(), *floor)),
        }
    }
}

/// A path that a source names: `crate::…` when it is one of its own package, however it was written.
struct Named {
    path: String,
    line: usize,
    in_test: bool,
}

impl Named {
    fn begins_with(&self, other: &str) -> bool {
        self.path
            .strip_prefix(other)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    }
}

/// Walks a source's tokens.
struct Reader {
    module: Vec<String>,
    names: Vec<Named>,
    effects: Vec<Named>,
    lines: BTreeSet<usize>,
    test_file: bool,
}

impl Reader {
    fn new(name: &str) -> Self {
        let module = name.trim_end_matches(".rs").split('/').map(str::to_owned);
        let module = module
            .filter(|part| part != "mod" && part != "lib")
            .collect();
        let test_file = name.ends_with("/tests.rs") || name.contains("/tests/");
        Self {
            module,
            names: Vec::new(),
            effects: Vec::new(),
            lines: BTreeSet::new(),
            test_file,
        }
    }

    fn read(&mut self, tokens: TokenStream, in_test: bool) {
        let in_test = in_test || self.test_file;
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut at = 0;
        let mut importing = false;
        let mut item_in_test = in_test;
        let mut inline = None;
        while let Some(token) = tokens.get(at) {
            if !item_in_test {
                let span = token.span();
                match token {
                    TokenTree::Group(group) if group.stream().to_string().starts_with("doc =") => {}
                    TokenTree::Group(_) => self.lines.extend([span.start().line, span.end().line]),
                    _ if is_doc(&tokens, at) => {}
                    _ => self.lines.extend(span.start().line..=span.end().line),
                }
            }
            match token {
                TokenTree::Group(group) if importing && group.delimiter() == Delimiter::Brace => {
                    at = self.path(&tokens, at, &[], true, item_in_test);
                }
                TokenTree::Group(group) => {
                    let text = group.stream().to_string().replace(' ', "");
                    let attribute = group.delimiter() == Delimiter::Bracket
                        && (is_punct(&tokens, at.wrapping_sub(1), '#')
                            || is_punct(&tokens, at.wrapping_sub(1), '!'));
                    if attribute && text == "cfg(test)" {
                        item_in_test = true;
                    }
                    if !attribute || !text.starts_with("doc=") {
                        let depth = self.module.len();
                        self.module.extend(inline.take());
                        self.read(group.stream(), item_in_test);
                        self.module.truncate(depth);
                    }
                    if group.delimiter() == Delimiter::Brace {
                        item_in_test = in_test;
                    }
                    at += 1;
                }
                TokenTree::Ident(ident) if *ident == "use" => {
                    importing = true;
                    at += 1;
                }
                TokenTree::Ident(ident) if *ident == "extern" => {
                    // `extern crate x;`, but not `extern "C" fn`.
                    importing = tokens
                        .get(at + 1)
                        .is_some_and(|next| next.to_string() == "crate");
                    at += if importing { 2 } else { 1 };
                }
                TokenTree::Ident(ident) if *ident == "mod" => {
                    inline = tokens.get(at + 1).map(ToString::to_string);
                    at += 2;
                }
                TokenTree::Ident(ident) => {
                    let line = ident.span().start().line;
                    if *ident == "async" {
                        self.effect("async", line, item_in_test);
                    }
                    at = self.path(&tokens, at, &[], importing, item_in_test);
                }
                TokenTree::Punct(punct) => {
                    if punct.as_char() == ';' {
                        (importing, item_in_test, inline) = (false, in_test, None);
                    }
                    at += 1;
                }
                TokenTree::Literal(_) => at += 1,
            }
        }
    }

    /// Reads one path, or the tree of an import, that begins at `at`; returns where it ends.
    fn path(
        &mut self,
        tokens: &[TokenTree],
        mut at: usize,
        before: &[String],
        importing: bool,
        in_test: bool,
    ) -> usize {
        let mut path = before.to_vec();
        let line = tokens.get(at).map_or(0, |token| token.span().start().line);
        loop {
            match tokens.get(at) {
                Some(TokenTree::Ident(ident)) => path.push(ident.to_string()),
                Some(TokenTree::Group(group))
                    if group.delimiter() == Delimiter::Brace && importing =>
                {
                    let inner: Vec<_> = group.stream().into_iter().collect();
                    let mut start = 0;
                    while start < inner.len() {
                        let end = (start..inner.len())
                            .find(|at| is_punct(&inner, *at, ','))
                            .unwrap_or(inner.len());
                        if end > start {
                            self.path(&inner[..end], start, &path, true, in_test);
                        }
                        start = end + 1;
                    }
                    return at + 1;
                }
                _ => break,
            }
            at += 1;
            let colons = matches!(tokens.get(at), Some(TokenTree::Punct(colon)) if colon.as_char() == ':' && colon.spacing() == Spacing::Joint);
            if !colons || !is_punct(tokens, at + 1, ':') {
                break;
            }
            at += 2;
        }
        let called = tokens.get(at).is_some_and(|next| next.to_string() == "()");
        if called && path.last().is_some_and(|part| part == "now") {
            self.effect("now()", line, in_test);
        }
        // A single word is a local name, unless it is imported.
        if path.len() > 1 || importing {
            let path = self.resolve(path);
            self.names.push(Named {
                path,
                line,
                in_test,
            });
        }
        at
    }

    /// `self::` and `super::` as the `crate::` path that they mean.
    fn resolve(&self, path: Vec<String>) -> String {
        let mut module = self.module.clone();
        let mut relative = false;
        let mut rest = path.as_slice();
        while let Some((first, after)) = rest.split_first() {
            match first.as_str() {
                "self" => {}
                "super" => drop(module.pop()),
                _ => break,
            }
            relative = true;
            rest = after;
        }
        let parts: Vec<_> = if relative {
            let house = ["crate".to_owned()].into_iter();
            house.chain(module).chain(rest.iter().cloned()).collect()
        } else {
            // `use crate::{self as house}` is as much as `use crate`.
            path.into_iter().filter(|part| part != "self").collect()
        };
        parts.join("::")
    }

    fn effect(&mut self, what: &str, line: usize, in_test: bool) {
        if !in_test {
            self.effects.push(Named {
                path: what.to_owned(),
                line,
                in_test,
            });
        }
    }
}

fn is_punct(tokens: &[TokenTree], at: usize, wanted: char) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

/// Whether the token at `at` is the sign before what a doc comment became: `#`, or the `!` after it.
fn is_doc(tokens: &[TokenTree], at: usize) -> bool {
    let bracket = |at: usize| matches!(tokens.get(at), Some(TokenTree::Group(group)) if group.stream().to_string().starts_with("doc ="));
    let sign = is_punct(tokens, at, '#') || is_punct(tokens, at, '!');
    sign && (bracket(at + 1) || (is_punct(tokens, at + 1, '!') && bracket(at + 2)))
}
