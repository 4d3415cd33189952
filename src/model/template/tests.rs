//! What a template may say, and what is said of it when it is wrong.

use super::*;
use proptest::prelude::*;

fn spec() -> TemplateSpec {
    TemplateSpec::new(ImageDigest::from_bytes([7; 32]))
}

fn start(program: Program) -> StartCommand {
    StartCommand {
        program,
        env: BTreeMap::new(),
        cwd: None,
        user: None,
    }
}

#[test]
fn a_warm_up_has_what_the_template_gives_and_is_judged_as_a_start_command_is() {
    let warm = |run: StartCommand, signal| TemplateSpec {
        env: [("A", "template"), ("B", "template")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        workdir: Some("/w".into()),
        setup: Setup {
            user: Some("app".into()),
            warm_up: Some(WarmUp {
                run,
                ready: Some(Readiness {
                    probe: Probe::Port(0),
                    timeout_s: 0,
                    interval_ms: 1,
                }),
                signal,
            }),
            ..Setup::default()
        },
        ..spec()
    };
    let run = StartCommand {
        env: [("A".to_owned(), "own".to_owned())].into(),
        ..start(Program::Command(String::new()))
    };
    let bad = warm(run.clone(), Some(9));
    let fields: Vec<_> = bad.problems().iter().map(|p| p.field.join(".")).collect();
    let expected = [
        "command",
        "ready.port",
        "ready.timeout_s",
        "ready.interval_ms",
        "signal",
    ];
    assert_eq!(fields, expected.map(|field| format!("warm_up.{field}")));

    let run = bad.session_setup().warm_up.unwrap().run;
    let env: Vec<_> = run.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(env, ["A=own", "B=template"]);
    assert_eq!(
        (run.cwd.as_deref(), run.user.as_deref()),
        (Some("/w"), Some("app"))
    );
    // What has all of it already, as one that came of another, stays so.
    let again = warm(run.clone(), None).session_setup().warm_up.unwrap();
    assert_eq!(again.run, run);
}

#[test]
fn the_default_and_the_most_of_everything_are_right() {
    assert_eq!(spec().problems(), []);
    let full = TemplateSpec {
        allow_root: true,
        env: (0..MAX_ENV_ENTRIES)
            .map(|n| (format!("V{n}"), "x".repeat(200)))
            .collect(),
        workdir: Some(format!("/{}", "w".repeat(MAX_PATH_BYTES - 1))),
        setup: Setup {
            user: Some("0".into()),
            start: Some(start(Program::Argv(vec!["a".into(); MAX_ARGV_WORDS]))),
            ready: Some(Readiness {
                probe: Probe::Port(65_535),
                timeout_s: MAX_READY_TIMEOUT_S,
                interval_ms: READY_INTERVAL_MS.1,
            }),
            ports: (1..).take(MAX_PORTS).collect(),
            egress_ca: true,
            endpoints: Endpoints {
                public: (1..).take(MAX_PORTS).collect(),
                ..Endpoints::default()
            },
            warm_up: Some(WarmUp {
                run: start(Program::Argv(vec!["a".into(); MAX_ARGV_WORDS])),
                ready: None,
                signal: Some(64),
            }),
        },
        pool: MAX_POOL,
        timeout_s: MAX_TIMEOUT_S,
        max_timeout_s: MAX_TIMEOUT_S,
        ..spec()
    };
    assert_eq!(full.problems(), []);
}

/// Makes sure that each of these is wrong in this one field, and that it is said so without a secret.
fn each_is_wrong(cases: impl IntoIterator<Item = (TemplateSpec, &'static str)>) {
    for (spec, field) in cases {
        let problems = spec.problems();
        let fields: Vec<_> = problems.iter().map(|one| one.field.join(".")).collect();
        assert_eq!(fields, [field]);
        let said = problems[0].to_string();
        assert!(said.starts_with(field), "{said}");
        assert!(!said.contains("hush"), "{said}");
    }
}

fn with(setup: Setup) -> TemplateSpec {
    TemplateSpec { setup, ..spec() }
}

fn long() -> String {
    "hush".repeat(10_000)
}

#[test]
fn each_problem_names_its_field_and_no_secret() {
    let user = |user: &str| {
        with(Setup {
            user: Some(user.into()),
            ..Setup::default()
        })
    };
    let env = |name: &str, value: String| TemplateSpec {
        env: [(name.to_owned(), value)].into(),
        ..spec()
    };
    each_is_wrong([
        (env("1A", "hush".into()), "env.1A"),
        (env("A", "hush\0".into()), "env.A"),
        (env("A", long()), "env.A"),
        (user("root"), "user"),
        (user("00"), "user"),
        (user("a:b"), "user"),
        (user(""), "user"),
        (
            TemplateSpec {
                pool: 257,
                ..spec()
            },
            "pool",
        ),
        (
            TemplateSpec {
                teams: Some(BTreeSet::new()),
                ..spec()
            },
            "teams",
        ),
        (
            TemplateSpec {
                timeout_s: 0,
                ..spec()
            },
            "timeout_s",
        ),
        (
            TemplateSpec {
                max_timeout_s: 60,
                ..spec()
            },
            "max_timeout_s",
        ),
        (
            TemplateSpec {
                workdir: Some("w".into()),
                ..spec()
            },
            "workdir",
        ),
        (
            TemplateSpec {
                limits: Limits {
                    pids: 300,
                    ..Limits::default()
                },
                ..spec()
            },
            "max_limits.pids",
        ),
        (
            TemplateSpec {
                max_limits: Limits {
                    cpus: f64::NAN,
                    ..Limits::default()
                },
                ..spec()
            },
            "max_limits.cpus",
        ),
    ]);
}

#[test]
fn each_problem_of_endpoints_names_its_field() {
    let public = |ports: &[u16]| {
        with(Setup {
            endpoints: Endpoints {
                public: ports.to_vec(),
                ..Endpoints::default()
            },
            ..Setup::default()
        })
    };
    let header = |name: &str, value: &str| {
        let headers = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        with(Setup {
            endpoints: Endpoints {
                headers: [(80, headers)].into(),
                ..Endpoints::default()
            },
            ..Setup::default()
        })
    };
    each_is_wrong([
        (public(&[0]), "endpoints.public"),
        (public(&[80, 80]), "endpoints.public"),
        (header("", "x"), "endpoints.headers.80."),
        (header("a b", "x"), "endpoints.headers.80.a b"),
        (header("Host", "x"), "endpoints.headers.80.Host"),
        (
            header("X-Casemate-Session", "x"),
            "endpoints.headers.80.X-Casemate-Session",
        ),
        (header("X-A", "a\r\nb"), "endpoints.headers.80.X-A"),
    ]);
}

#[test]
fn each_problem_of_a_command_names_its_field_and_no_secret() {
    let with_start = |program| {
        with(Setup {
            start: Some(start(program)),
            ..Setup::default()
        })
    };
    let ready = |probe, timeout_s, interval_ms| {
        with(Setup {
            ready: Some(Readiness {
                probe,
                timeout_s,
                interval_ms,
            }),
            ..Setup::default()
        })
    };
    let ports = |ports: &[u16]| {
        with(Setup {
            ports: ports.to_vec(),
            ..Setup::default()
        })
    };
    let line = |line: &str| Probe::Command(line.to_owned());
    each_is_wrong(vec![
        (with_start(Program::Argv(vec![])), "start.argv"),
        (
            with_start(Program::Argv(vec![String::new(), "hush".into()])),
            "start.argv",
        ),
        (
            with_start(Program::Argv(vec!["a".into(), "hush\0".into()])),
            "start.argv",
        ),
        (
            with_start(Program::Argv(vec!["a".into(), long()])),
            "start.argv",
        ),
        (
            with_start(Program::Argv(vec!["hush".into(); 257])),
            "start.argv",
        ),
        (with_start(Program::Command(" ".into())), "start.command"),
        (with_start(Program::Command(long())), "start.command"),
        (ready(line("hush\0"), 1, 50), "ready.command"),
        (ready(line(""), 1, 50), "ready.command"),
        (ready(Probe::Port(0), 1, 50), "ready.port"),
        (ready(Probe::Port(RESERVED_PORT), 1, 50), "ready.port"),
        (ready(Probe::File("x".into()), 1, 50), "ready.file"),
        (ready(Probe::Port(1), 0, 50), "ready.timeout_s"),
        (ready(Probe::Port(1), 3601, 50), "ready.timeout_s"),
        (ready(Probe::Port(1), 1, 49), "ready.interval_ms"),
        (ready(Probe::Port(1), 1, 60_001), "ready.interval_ms"),
        (ports(&[0]), "ports"),
        (ports(&[RESERVED_PORT]), "ports"),
        (ports(&[80, 80]), "ports"),
        (ports(&(1..=65).collect::<Vec<_>>()), "ports"),
    ]);
}

#[test]
fn nothing_of_a_command_is_printed() {
    let setup = Setup {
        start: Some(start(Program::Argv(vec!["hush".into()]))),
        ready: Some(Readiness {
            probe: Probe::Command("hush".into()),
            timeout_s: 1,
            interval_ms: 50,
        }),
        ..Setup::default()
    };
    assert!(!format!("{setup:?}").contains("hush"));
}

#[test]
fn a_template_is_for_every_team_or_for_those_that_it_names() {
    let red: Name = "red".parse().unwrap();
    assert!(spec().is_for(&red));
    let named = TemplateSpec {
        teams: Some(["blue".parse().unwrap()].into()),
        ..spec()
    };
    assert!(!named.is_for(&red));
    assert!(named.is_for(&"blue".parse().unwrap()));
}

fn any_spec() -> impl Strategy<Value = TemplateSpec> {
    let program = prop_oneof![
        proptest::collection::vec("\\PC{0,8}", 0..4).prop_map(Program::Argv),
        ".{0,20}".prop_map(Program::Command),
    ];
    let probe = prop_oneof![
        any::<u16>().prop_map(Probe::Port),
        ".{0,20}".prop_map(Probe::File),
        ".{0,20}".prop_map(Probe::Command),
    ];
    let setup = (
        proptest::option::of(".{0,8}"),
        proptest::option::of(program),
        proptest::option::of((probe, any::<u64>(), any::<u64>())),
        proptest::collection::vec(any::<u16>(), 0..5),
    );
    let env = proptest::collection::btree_map(".{0,5}", ".{0,5}", 0..4);
    (setup, env, any::<(u64, u64, u32, bool)>()).prop_map(
        |((user, program, ready, ports), env, (timeout_s, max_timeout_s, pool, allow_root))| {
            TemplateSpec {
                allow_root,
                env,
                timeout_s,
                max_timeout_s,
                pool,
                setup: Setup {
                    user,
                    start: program.map(start),
                    ready: ready.map(|(probe, timeout_s, interval_ms)| Readiness {
                        probe,
                        timeout_s,
                        interval_ms,
                    }),
                    ports,
                    ..Setup::default()
                },
                ..spec()
            }
        },
    )
}

proptest! {
    #[test]
    fn whatever_a_template_says_it_is_judged_and_reads_back(spec in any_spec()) {
        for problem in spec.problems() {
            prop_assert!(!problem.field.is_empty() && !problem.problem.is_empty());
        }
        let text = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(serde_json::from_str::<TemplateSpec>(&text).unwrap(), spec);
    }

    #[test]
    fn a_precondition_holds_of_what_it_names(version in 1_u32..5, named in proptest::collection::vec(1_u32..5, 0..3)) {
        prop_assert!(Precondition::None.holds(None) && Precondition::None.holds(Some(version)));
        prop_assert!(Precondition::Absent.holds(None) && !Precondition::Absent.holds(Some(version)));
        prop_assert!(!Precondition::Present.holds(None) && Precondition::Present.holds(Some(version)));
        let has = named.contains(&version);
        let one_of = Precondition::OneOf(named);
        prop_assert!(!one_of.holds(None));
        prop_assert_eq!(one_of.holds(Some(version)), has);
    }
}
