//! The whole of loading: golden refusals, the shipped file, drop-ins, hostile bytes.

use super::*;
use crate::model::sandbox::Limits;
use crate::model::setup::{INTERVAL_MS, Probe, Program, READY_TIMEOUT_S};
use proptest::prelude::*;
use std::fs;

fn one(text: impl Into<Vec<u8>>) -> Result<Config, ConfigProblems> {
    Config::from_sources(&[("casemate.yaml".to_owned(), text.into())], &[])
}

fn template(text: impl Into<Vec<u8>>) -> Result<TemplateSpec, ConfigProblems> {
    let main = ("casemate.yaml".to_owned(), b"version: 1".to_vec());
    let file = ("templates/base.yaml".to_owned(), text.into());
    let config = Config::from_sources(&[main], &[file])?;
    Ok(config.templates[&"base".parse().unwrap()].clone())
}

const IMAGE: &str =
    "image: sha256:0000000000000000000000000000000000000000000000000000000000000000\n";

fn several(texts: &[&str]) -> Result<Config, ConfigProblems> {
    let sources: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(n, text)| (format!("{n}.yaml"), text.as_bytes().to_vec()))
        .collect();
    Config::from_sources(&sources, &[])
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A shipped file with every key uncommented: lines of `#` and a key, or `#` and two spaces.
fn uncommented(file: &str) -> String {
    let text = fs::read_to_string(repository(file)).unwrap();
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
        let mut templates = Vec::new();
        for file in files_in(&path.with_extension("templates"), 100).unwrap() {
            let name = file.file_name().unwrap().to_str().unwrap().to_owned();
            templates.push((format!("templates/{name}"), fs::read(&file).unwrap()));
        }
        for drop_in in files_in(&path.with_extension("yaml.d"), 100).unwrap() {
            let name = drop_in.file_name().unwrap().to_str().unwrap().to_owned();
            let bytes = fs::read(&drop_in).unwrap();
            sources.push((format!("casemate.yaml.d/{name}"), bytes));
        }
        let problems =
            Config::from_sources(&sources, &templates).expect_err(path.to_str().unwrap());
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
    let text = uncommented("config/casemate.yaml");
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
}

#[test]
fn every_key_of_an_issuer_stands_on_its_page() {
    let page = fs::read_to_string(repository("docs/authentication.md")).unwrap();
    let text = "jwt: {x: {issuer: a}}";
    let document = document::parse(0, text.as_bytes()).unwrap();
    let (_, found) = walk(&document.root, false);
    let keys = found
        .keys
        .iter()
        .filter_map(|key| key.path.strip_prefix("jwt.x."));
    let keys: Vec<_> = keys.collect();
    for key in &keys {
        assert!(
            page.contains(&format!("\n| `{key}` | ")),
            "{key} is missing"
        );
    }
    assert_eq!(page.matches("\n| `").count(), keys.len());
}

#[test]
fn issuers_of_several_files_are_merged_key_by_key() {
    let main = "version: 1\njwt: {one: {issuer: a, audiences: [b], algorithms: [RS256], key_file: /k, team: t}}";
    let config = several(&[main, "jwt: {one: {leeway_s: 5}, two: {issuer: c, audiences: [b], algorithms: [HS256], secret_credential: s, team_claim: x.y, role: auditor}}"]).unwrap();
    let names: Vec<_> = config
        .jwt
        .iter()
        .map(|issuer| issuer.name.as_str())
        .collect();
    assert_eq!(names, ["one", "two"]);
    assert_eq!(config.jwt[0].leeway.as_secs(), 5);
    assert_eq!(config.jwt[1].leeway.as_secs(), 30);
    assert_eq!(
        config.jwt[1].role.otherwise,
        Some(crate::model::grant::Role::Auditor)
    );
    assert_eq!(one("version: 1").unwrap().jwt, []);
    // Nobody is more than a member because nothing was written.
    assert_eq!(
        config.jwt[0].role.otherwise,
        Some(crate::model::grant::Role::Member)
    );
    // With a claim for roles nobody has one because nothing was written.
    let text =
        format!("{main}\n").replace("team: t", "team: t, roles_claim: r, role_map: {x: member}");
    assert_eq!(one(text).unwrap().jwt[0].role.otherwise, None);
}

#[test]
fn every_key_of_a_template_stands_in_the_shipped_one_with_its_default() {
    let file = "config/templates/base.yaml";
    let text = uncommented(file);
    let document = document::parse(0, text.as_bytes()).unwrap();
    let walk = Walk::new(true);
    let stated = templates::template(&walk.root(&document.root)).unwrap();
    let found = walk.finish();
    assert_eq!(found.problems, []);
    for key in &found.keys {
        // Of these the file shows one, and names the others.
        let is_alternative = [
            "start.argv",
            "ready.file",
            "ready.command",
            "warm_up.argv",
            "warm_up.ready.file",
            "warm_up.ready.command",
        ]
        .contains(&&*key.path);
        let name = key.path.rsplit('.').next().unwrap();
        assert!(
            key.is_set || is_alternative && text.contains(&format!(" {name}: ")),
            "{} is missing in {file}",
            key.path
        );
    }
    let default = TemplateSpec::new(stated.image);
    // These are examples; everything else states the default.
    let mut expected = TemplateSpec {
        env: stated.env.clone(),
        workdir: stated.workdir.clone(),
        setup: stated.setup.clone(),
        teams: stated.teams.clone(),
        egress: stated.egress.clone(),
        ..default
    };
    assert_eq!(stated, expected);
    let ready = expected.setup.ready.take().unwrap();
    let times = (ready.timeout_s, ready.interval_ms);
    assert_eq!(times, (READY_TIMEOUT_S, INTERVAL_MS));
}

#[test]
fn the_shipped_templates_lack_nothing_but_an_image() {
    let directory = repository("config/templates");
    let mut names = Vec::new();
    for file in files_in(&directory, 100).unwrap() {
        let text = fs::read_to_string(&file).unwrap();
        let problems = template(text.clone()).unwrap_err().problems;
        assert_eq!(problems.len(), 1, "{file:?} {problems:?}");
        assert_eq!(problems[0].key, "image");
        // What puts them in place writes it over this line.
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("#image: "))
            .collect();
        assert_eq!(lines.len(), 1, "{file:?}");
        template(text.replace(lines[0], IMAGE)).unwrap();
        names.push(file.file_name().unwrap().to_owned());
    }
    let shipped = [
        "base.yaml",
        "code-interpreter-v1.yaml",
        "notebook.yaml",
        "python.yaml",
    ];
    assert_eq!(names, shipped);
}

#[test]
fn a_template_says_all_that_one_can() {
    let spec = template(format!(
        "{IMAGE}user: app\nports: [8000, 80]\nendpoints: {{any_port: true, public: [80], headers: {{'80': {{X-A: b}}}}}}\npool: 2\nteams: [b, a]\n\
         start: {{argv: [serve, '80'], env: {{A: b}}, cwd: /srv, user: web}}\n\
         ready: {{file: /run/ready, timeout_s: 5, interval_ms: 100}}"
    ))
    .unwrap();
    let setup = spec.setup;
    assert_eq!(setup.user.as_deref(), Some("app"));
    assert_eq!(setup.ports, [8000, 80]);
    assert!(setup.endpoints.any_port);
    assert_eq!(setup.endpoints.public, [80]);
    assert_eq!(setup.endpoints.headers[&80]["X-A"], "b");
    let start = setup.start.unwrap();
    assert!(start.program == Program::Argv(vec!["serve".into(), "80".into()]));
    assert_eq!(start.env["A"], "b");
    assert_eq!(start.cwd.as_deref(), Some("/srv"));
    assert_eq!(start.user.as_deref(), Some("web"));
    let ready = setup.ready.unwrap();
    assert!(ready.probe == Probe::File("/run/ready".into()));
    assert_eq!((ready.timeout_s, ready.interval_ms), (5, 100));
    assert_eq!(spec.pool, 2);
    let teams: Vec<_> = spec
        .teams
        .unwrap()
        .into_iter()
        .map(|t| t.to_string())
        .collect();
    assert_eq!(teams, ["a", "b"]);
}

#[test]
fn the_defaults_are_what_the_product_promises() {
    let config = one("version: 1").unwrap();
    assert_eq!(config.mode, Mode::Production);
    assert!(config.http.listen.ip().is_loopback());
    assert!(config.templates.is_empty());
}

#[test]
fn development_may_listen_anywhere() {
    let config = one("version: 1\nmode: development\nhttp: {listen: '0.0.0.0:80'}").unwrap();
    assert!(!config.http.listen.ip().is_loopback());
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
fn nobody_may_ask_for_more_than_the_limits_unless_the_template_says_so() {
    let base = template(format!("{IMAGE}limits: {{pids: 99}}")).unwrap();
    assert_eq!(
        base.limits,
        Limits {
            pids: 99,
            ..Limits::default()
        }
    );
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

    fs::create_dir(dir.path().join("templates")).unwrap();
    write("templates/python.yaml", IMAGE);
    write("templates/old.yaml.bak", "nonsense");
    let names: Vec<_> = Config::load(&main).unwrap().templates.into_keys().collect();
    assert_eq!(names, ["python".parse().unwrap()]);
    write("templates/base.yaml", "imag: x");
    let problems = Config::load(&main).unwrap_err().to_string();
    assert!(problems.starts_with("templates/base.yaml"), "{problems}");
    fs::remove_file(dir.path().join("templates/base.yaml")).unwrap();

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
        let shipped = uncommented("config/casemate.yaml") + &uncommented("config/templates/base.yaml");
        let mut text: Vec<char> = shipped.lines().filter(|line| !line.starts_with('#')).flat_map(|line| line.chars().chain(['\n'])).collect();
        for (place, new) in cuts {
            let at = place.index(text.len());
            text.splice(at..=at, new.chars());
        }
        let text: String = text.into_iter().collect();
        let _ = template(text.clone());
        if let Err(problems) = one(text) {
            prop_assert!(!problems.problems.is_empty());
            // One line for each.
            prop_assert_eq!(problems.to_string().lines().count(), problems.problems.len());
        }
    }
}

#[test]
fn backups_have_a_time_a_place_and_a_recipient_or_none() {
    let config = |text: &str| one(format!("version: 1\n{text}"));
    let default = config("").unwrap().backup;
    assert_eq!(default.directory, Path::new("/var/lib/casemate/backups"));
    assert_eq!((default.at, default.recipient), (None, None));
    assert_eq!(default.elsewhere, None);
    let other = config("backup: {elsewhere: /mnt/other}").unwrap().backup;
    assert_eq!(other.elsewhere.as_deref(), Some(Path::new("/mnt/other")));
    assert!(config("backup: {elsewhere: other}").is_err());
    assert_eq!(default.every, Some(std::time::Duration::from_secs(86_400)));
    assert!(!default.images);
    let with = config("backup: {images: true, max_images_bytes: 1048576}").unwrap();
    assert!(with.backup.images && with.backup.max_images_bytes == 1 << 20);
    let off = config("backup: {every_s: 0}\nstore: {check_every_s: 0}").unwrap();
    assert_eq!((off.backup.every, off.store.check_every), (None, None));
    assert_eq!(config("backup: {at: 03:30}").unwrap().backup.at, Some(210));
    for bad in [
        "{at: 24:00}",
        "{at: 3:30}",
        "{at: noon}",
        "{at: 03:30, every_s: 60}",
        "{recipient: age1}",
        "{recipient: AGE-SECRET-KEY-1}",
        "{keep: 0}",
        "{directory: backups}",
        "{images: some}",
        "{max_images_bytes: 1}",
    ] {
        assert!(config(&format!("backup: {bad}")).is_err(), "{bad}");
    }
    let secret = config("backup: {recipient: AGE-SECRET-KEY-1HUSH}").unwrap_err();
    assert!(!secret.to_string().contains("HUSH"), "{secret}");
}

#[test]
fn the_rules_that_the_page_shows_are_rules() {
    let page = fs::read_to_string(repository("docs/access.md")).unwrap();
    let main = || ("casemate.yaml".to_owned(), b"version: 1".to_vec());
    let shown: Vec<_> = page.split("```yaml\n").skip(1).collect();
    assert!(shown.len() >= 3);
    for block in shown {
        let (rule, _) = block.split_once("```").unwrap();
        let file = ("policy/shown.yaml".to_owned(), rule.as_bytes().to_vec());
        let config = Config::from_sources(&[main()], &[file]).unwrap();
        assert_eq!(config.policy.len(), 1, "{rule}");
    }
    for (file, text, told) in [
        ("policy/Nights.yaml", "effect: deny", "does not name a rule"),
        ("policy/a.yaml", "reason: x", "effect: is missing"),
        ("policy/a.yaml", "effect: maybe", "is allow or deny"),
        (
            "policy/a.yaml",
            "effect: deny\nteam: red",
            "did you mean teams?",
        ),
        (
            "policy/a.yaml",
            "effect: deny\nactions: [fly]",
            "an action is one of",
        ),
        (
            "policy/a.yaml",
            "effect: deny\nactions: [administer]",
            "operators",
        ),
        (
            "policy/a.yaml",
            "effect: allow\nactions: [read-keys]",
            "says whom",
        ),
        ("policy/a.yaml", "effect: deny\nhours: 8-9", "part of a day"),
        ("policy/a.yaml", "effect: deny\nfrom: tomorrow", "RFC 3339"),
        (
            "policy/a.yaml",
            "effect: deny\neffect: allow",
            "more than once",
        ),
    ] {
        let source = (file.to_owned(), text.as_bytes().to_vec());
        let problems = Config::from_sources(&[main()], &[source])
            .unwrap_err()
            .to_string();
        assert!(problems.contains(told), "{text}: {problems}");
        assert!(problems.starts_with("policy/"), "{problems}");
    }
}
