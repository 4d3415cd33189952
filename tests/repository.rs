//! The documents keep their word: what they name exists, decisions are numbered and found, the change log is open.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic is how a test fails, in its helpers too"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What marks something unfinished, or something of one person's machine. Each in two halves, so that this list does not
/// find itself.
const WORDS: &[(&str, &str)] = &[
    ("TO", "DO"),
    ("FIX", "ME"),
    ("XX", "X:"),
    ("/wo", "rk/"),
    ("/root", "/x"),
    ("lorem", " ipsum"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every file of the tree below `folder` that is text and ours.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_symlink() || name.starts_with(".git") || (folder == root() && name == "target") {
            continue;
        }
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(root(), &mut found);
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found
}

/// What stands between backquotes on one line.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The tests of a specification as file and function.
fn tests_named(text: &str) -> impl Iterator<Item = (&str, &str)> {
    quoted(text).filter_map(|quote| quote.split_once(".rs::"))
}

fn problems_of_a_decision(name: &str, text: &str, index: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let number = name
        .split('-')
        .next()
        .and_then(|digits| digits.parse::<u32>().ok());
    match number {
        Some(number) if name.find('-') == Some(4) => {
            if !text.starts_with(&format!("# {number}. ")) {
                problems.push(format!("{name}: does not open with '# {number}. '"));
            }
            if number > 1 && !index.contains(&format!("({name})")) {
                problems.push(format!("{name}: is not in the list of the first decision"));
            }
        }
        _ => problems.push(format!("{name}: is not named NNNN-what-it-says.md")),
    }
    let mut from = 0;
    for heading in [
        "\n## Context\n",
        "\n## Decision\n",
        "\n## Consequences\n",
        "\n## Alternatives\n",
    ] {
        match text[from..].find(heading) {
            Some(at) => from += at,
            None => problems.push(format!("{name}: has no '{}' in its place", heading.trim())),
        }
    }
    problems
}

fn problems_of_a_specification(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for (number, promise) in (1..=10).zip(text.split("\n## ").skip(1)) {
        if !promise.starts_with(&format!("{number}. ")) {
            problems.push(format!("promise {number} is not in its place"));
        }
        if tests_named(promise).next().is_none() && !promise.contains("**not yet**") {
            problems.push(format!(
                "promise {number} has neither a test nor the words not yet"
            ));
        }
    }
    if text.matches("\n## ").count() != 10 {
        problems.push("there are ten promises".to_owned());
    }
    for (file, function) in tests_named(text) {
        let source = fs::read_to_string(root().join(format!("{file}.rs"))).unwrap_or_default();
        if !source.contains(&format!("fn {function}(")) {
            problems.push(format!("there is no test {function} in {file}.rs"));
        }
    }
    problems
}

/// Scripts that a text mentions and that do not exist.
fn scripts_that_are_not_there(text: &str) -> Vec<String> {
    let name = |rest: &str| {
        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    let mentioned: BTreeSet<_> = text
        .split("scripts/")
        .skip(1)
        .map(name)
        .filter(|name| !name.is_empty())
        .collect();
    mentioned
        .into_iter()
        .filter(|name| !root().join("scripts").join(name).is_file())
        .collect()
}

/// Links of a document to files that do not exist.
fn dead_links(document: &Path, text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '#']).next())
        .filter(|link| !link.is_empty() && !link.contains("://"))
        .filter(|link| !document.parent().unwrap().join(link).exists())
        .map(|link| format!("{}: there is no {link}", document.display()))
        .collect()
}

fn words_that_do_not_belong(text: &str) -> Vec<String> {
    let words = WORDS.iter().map(|(one, other)| format!("{one}{other}"));
    words.filter(|word| text.contains(word.as_str())).collect()
}

#[test]
fn the_change_log_is_open_for_the_next_version() {
    assert!(read("CHANGELOG.md").contains("\n## [Unreleased]\n"));
}

#[test]
fn every_decision_is_numbered_complete_and_found() {
    let index = read("docs/decisions/0001-record-decisions.md");
    let mut problems = Vec::new();
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(root().join("docs/decisions")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        problems.extend(problems_of_a_decision(
            name,
            &fs::read_to_string(&path).unwrap(),
            &index,
        ));
        if !numbers.insert(name.get(..4).unwrap_or_default().to_owned()) {
            problems.push(format!("{name}: its number is taken"));
        }
    }
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn every_promise_names_tests_that_exist_or_says_not_yet() {
    let problems = problems_of_a_specification(&read("docs/specification.md"));
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn documents_name_only_scripts_and_files_that_exist() {
    let mut problems = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        problems.extend(dead_links(&document, &text));
        let missing = scripts_that_are_not_there(&text);
        problems.extend(
            missing
                .iter()
                .map(|name| format!("{}: there is no scripts/{name}", document.display())),
        );
    }
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn the_readme_starts_with_the_two_commands() {
    let readme = read("README.md");
    let head: String = readme.lines().take(20).collect();
    assert!(head.contains("scripts/demo") && head.contains("scripts/test"));
}

#[test]
fn every_script_says_what_it_does_and_may_be_run() {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(root().join("scripts")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // What scripts are made of.
            for module in fs::read_dir(&path).unwrap() {
                let module = module.unwrap().path();
                let text = fs::read_to_string(&module).unwrap();
                assert!(text.starts_with("\"\"\""), "{}", module.display());
            }
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let second = text.lines().nth(1).unwrap_or_default();
        assert!(text.starts_with("#!"), "{}", path.display());
        assert!(
            second.starts_with("# ") || second.starts_with("\"\"\""),
            "{}: {second}",
            path.display()
        );
        assert_ne!(
            path.metadata().unwrap().permissions().mode() & 0o111,
            0,
            "{}",
            path.display()
        );
    }
}

#[test]
fn nothing_is_left_in_the_tree_that_does_not_belong() {
    let mut found = Vec::new();
    files(root(), &mut found);
    let mut problems = Vec::new();
    for path in found {
        // What is not text is a fixture.
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        problems.extend(
            words_that_do_not_belong(&text)
                .into_iter()
                .map(|word| format!("{}: {word}", path.display())),
        );
    }
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

mod each_rule_can_fail {
    use super::*;

    const GOOD: &str =
        "# 7. It is so\n\n## Context\n\n## Decision\n\n## Consequences\n\n## Alternatives\n";

    #[test]
    fn a_decision() {
        let index = "| 7 | [It is so](0007-it-is-so.md) |";
        assert!(problems_of_a_decision("0007-it-is-so.md", GOOD, index).is_empty());
        for (name, text, index) in [
            ("0008-it-is-so.md", GOOD, "(0008-it-is-so.md)"),
            ("it-is-so.md", GOOD, "(it-is-so.md)"),
            ("7-it-is-so.md", GOOD, "(7-it-is-so.md)"),
            ("0007-it-is-so.md", GOOD, ""),
            (
                "0007-it-is-so.md",
                &GOOD.replace("## Decision", "## Decisions"),
                index,
            ),
        ] {
            assert!(
                !problems_of_a_decision(name, text, index).is_empty(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_specification() {
        let whole = |first: &str| {
            let rest = (2..=10).fold(String::new(), |rest, number| {
                rest + &format!("\n## {number}. x\n**not yet**\n")
            });
            problems_of_a_specification(&format!("# S\n\n## 1. x\n{first}\n{rest}")).join("\n")
        };
        assert_eq!(whole("`tests/repository.rs::a_specification`"), "");
        assert_eq!(whole("**not yet**"), "");
        assert!(whole("words").contains("neither"));
        assert!(whole("`tests/repository.rs::no_such_test`").contains("no_such_test"));
        assert!(whole("`tests/no_such_file.rs::a_specification`").contains("no_such_file"));
        assert!(!problems_of_a_specification("# S\n\n## 2. x\n**not yet**\n").is_empty());
    }

    #[test]
    fn a_script_a_link_and_a_word() {
        assert!(scripts_that_are_not_there("run `scripts/demo` or scripts/test.").is_empty());
        assert_eq!(
            scripts_that_are_not_there("run scripts/no-such-one."),
            ["no-such-one"]
        );
        let here = root().join("README.md");
        assert!(
            dead_links(
                &here,
                "[a](src/lib.rs) [b](https://x.y/z) [c](docs/architecture.md#floors)"
            )
            .is_empty()
        );
        assert_eq!(dead_links(&here, "[a](src/no_such_file.rs)").len(), 1);
        for (one, other) in WORDS {
            assert_eq!(
                words_that_do_not_belong(&format!("so {one}{other} so")),
                [format!("{one}{other}")]
            );
        }
    }
}
