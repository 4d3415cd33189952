//! The whole of loading: golden refusals, the shipped file, drop-ins, hostile bytes.

use super::*;
use crate::model::sandbox::Limits;
use proptest::prelude::*;
use std::fs;

fn one(text: impl Into<Vec<u8>>) -> Result<Config, ConfigProblems> {
    Config::from_sources(&[("casemate.yaml".to_owned(), text.into())])
}

fn several(texts: &[&str]) -> Result<Config, ConfigProblems> {
    let sources: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| (format!("{n}.yaml"), text.as_bytes().to_vec()))
        .collect();
    Config::from_sources(&sources)
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The shipped file with every key uncommented: lines of `#` and a key, or `#` and two spaces.
fn uncommented() -> String {
    let text = fs::read_to_string(repository("config/casemate.yaml")).unwrap();
    text.lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') || rest.starts_with("  ") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect()
}

/// With `CASEMATE_BLESS` set, writes what is said now instead of comparing.
#[test]
fn each_wrong_file_is_refused_with_its_lines() {
    let mut cases = 0;
    for entry in fs::read_dir(repository("tests/fixtures/config/invalid")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let mut sources = vec![("casemate.yaml".to_owned(), fs::read(&path).unwrap())];
        for drop_in in drop_ins(&path.with_extension("yaml.d")).unwrap() {
            let name = drop_in.file_name().unwrap().to_str().unwrap().to_owned();
            let bytes = fs::read(&drop_in).unwrap();
            sources.push((format!("casemate.yaml.d/{name}"), bytes));
        }
        let problems = Config::from_sources(&sources).expect_err(path.to_str().unwrap());
        let said = format!("{problems}\n");
        let expected = path.with_extension("txt");
        if std::env::var_os("CASEMATE_BLESS").is_some() {
            fs::write(&expected, &said).unwrap();
        }
        assert_eq!(said, fs::read_to_string(&expected).unwrap(), "{path:?}");
        // No problem repeats what may be a secret.
        assert!(!said.contains("hush"), "{said}");
        cases += 1;
    }
    assert!(cases >= 30, "only {cases} cases were found");
}

#[test]
fn the_shipped_file_says_no_more_than_the_defaults() {
    let shipped = fs::read(repository("config/casemate.yaml")).unwrap();
    assert_eq!(one(shipped).unwrap(), one("version: 1").unwrap());
}

#[test]
fn every_key_stands_in_the_shipped_file_with_its_default() {
    let text = uncommented();
    let document = document::parse(0, text.as_bytes()).unwrap();
    let (_, found) = walk(&document.root, true);
    assert_eq!(found.problems, []);
    for key in &found.keys {
        assert!(
            key.is_set,
            "{} is missing in config/casemate.yaml",
            key.path
        );
    }
    let (stated, real) = (one(text).unwrap(), one("version: 1").unwrap());
    for (key, value) in stated.values() {
        assert_eq!(
            Some(value),
            real.values.get(key).map(String::as_str),
            "{key}"
        );
    }
    let image = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let bare = one(format!(
        "version: 1\ntemplates: {{base: {{image: '{image}'}}}}"
    ))
    .unwrap();
    let default = bare.templates.into_values().next().unwrap();
    let example = stated.templates.into_values().next().unwrap();
    // Environment and directory are examples; everything else states the default.
    let expected = Template {
        env: example.env.clone(),
        workdir: example.workdir.clone(),
        ..default
    };
    assert_eq!(example, expected);
}

#[test]
fn the_defaults_are_what_the_product_promises() {
    let config = one("version: 1").unwrap();
    assert_eq!(config.mode, Mode::Production);
    assert!(config.http.listen.ip().is_loopback());
    assert!(config.runtime.require_limits);
    assert!(config.templates.is_empty());
}

#[test]
fn development_says_limits_and_may_listen_anywhere() {
    let config = one("version: 1\nmode: development\nhttp: {listen: '0.0.0.0:80'}").unwrap();
    assert!(!config.runtime.require_limits);
}

#[test]
fn later_files_win_key_by_key() {
    let config = several(&[
        "version: 1\nsessions: {max: 1, run_timeout_s: 5}\nhttp:\n",
        "sessions: {max: 2}\nlog: {level: debug}",
        "# nothing",
        "log:\nsessions: {max: 3, link_timeout_s: 4}",
    ])
    .unwrap();
    assert_eq!(config.sessions.max, 3);
    assert_eq!(config.sessions.run_timeout_s, 5);
    assert_eq!(config.log.level, "debug");
}

#[test]
fn a_template_may_be_completed_by_a_drop_in() {
    let digest = "1".repeat(64);
    let config = several(&[
        "version: 1\ntemplates: {base: {limits: {pids: 99}}}",
        &format!("templates: {{base: {{image: 'sha256:{digest}', env: {{A: b}}}}}}"),
    ])
    .unwrap();
    let base = &config.templates[&"base".parse().unwrap()];
    assert_eq!(base.image.hex(), digest);
    assert_eq!(
        base.limits,
        Limits {
            pids: 99,
            ..Limits::default()
        }
    );
    // Nobody may ask for more than the limits unless somebody says so.
    assert_eq!(base.max_limits, base.limits);
}

#[test]
fn a_mistake_is_reported_even_when_a_later_file_hides_it() {
    let error = several(&["version: 1\nmode: wrong", "mode: development"]).unwrap_err();
    assert_eq!(error.problems.len(), 1);
    assert_eq!(error.problems[0].file, "0.yaml");
    assert_eq!(error.problems[0].line, Some(2));
}

#[test]
fn problems_beyond_a_hundred_are_counted() {
    let text = (0..5000).fold("version: 1\n".to_owned(), |text, n| {
        text + &format!("x{n}: 1\n")
    });
    let error = one(text).unwrap_err();
    assert_eq!((error.problems.len(), error.more), (100, 4900));
    assert!(error.to_string().ends_with("and 4900 more"));
}

#[test]
fn files_are_read_in_the_order_of_their_names_and_others_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("casemate.yaml");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    };
    write("casemate.yaml", "version: 1");
    assert_eq!(Config::load(&main).unwrap(), one("version: 1").unwrap());

    fs::create_dir(dir.path().join("casemate.yaml.d")).unwrap();
    write("casemate.yaml.d/20-b.yaml", "sessions: {max: 20}");
    write("casemate.yaml.d/10-a.yaml", "sessions: {max: 10}");
    write("casemate.yaml.d/.30-hidden.yaml", "sessions: {max: 30}");
    write("casemate.yaml.d/40-old.yaml.bak", "sessions: {max: 40}");
    assert_eq!(Config::load(&main).unwrap().sessions.max, 20);

    write("casemate.yaml.d/10-x.yaml", "http: {listen: abc}");
    assert_eq!(
        Config::load(&main).unwrap_err().to_string(),
        "casemate.yaml.d/10-x.yaml:1: http.listen: \"abc\" is not an address and port, for example 127.0.0.1:7272"
    );
}

#[test]
fn a_missing_an_open_and_a_strange_file_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("casemate.yaml");
    let said = |path: &Path| Config::load(path).unwrap_err().to_string();
    assert!(said(&main).contains("--config"), "{}", said(&main));
    assert!(said(&main).contains(main.to_str().unwrap()));
    assert!(said(dir.path()).contains("not a regular file"));
    fs::write(&main, "version: 1").unwrap();
    fs::set_permissions(&main, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(said(&main).contains("chmod o-w"));
    fs::set_permissions(&main, fs::Permissions::from_mode(0o644)).unwrap();
    fs::create_dir(dir.path().join("casemate.yaml.d")).unwrap();
    for n in 0..=MAX_DROP_INS {
        fs::write(dir.path().join(format!("casemate.yaml.d/{n}.yaml")), "").unwrap();
    }
    assert!(said(&main).contains("more than 64"), "{}", said(&main));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = one(bytes);
    }

    /// Damaged, the fullest file there is reaches every reader.
    #[test]
    fn no_damage_makes_it_panic(cuts in proptest::collection::vec((any::<prop::sample::Index>(), "[-0-9a-z:{}\\[\\]&*!#\"'\n ]{0,4}"), 1..8)) {
        let mut text: Vec<char> = uncommented().lines().filter(|line| !line.starts_with('#')).flat_map(|line| line.chars().chain(['\n'])).collect();
        for (place, new) in cuts {
            let at = place.index(text.len());
            text.splice(at..=at, new.chars());
        }
        let text: String = text.into_iter().collect();
        if let Err(problems) = one(text) {
            prop_assert!(!problems.problems.is_empty());
            // One line for each.
            prop_assert_eq!(problems.to_string().lines().count(), problems.problems.len());
        }
    }
}
