//! The policy against those who would like it otherwise.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::base::id::{KeyId, SessionId};
use crate::model::grant::{Grant, ROLES, Role, SCOPES, Scope};
use crate::model::principal::Proof;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn client(team: &str, role: Role) -> Client {
    Client {
        grant: Grant::whole(role),
        ..Client::member(KeyId::from_bytes([1; 16]), name(team))
    }
}

fn rules(all: &[(&str, &str)]) -> Rules {
    let read = |(called, json): &(&str, &str)| {
        let rule: Rule = serde_json::from_str(json).unwrap();
        assert_eq!(rule.problems(), [], "{called}");
        NamedRule {
            name: name(called),
            origin: Origin::File,
            rule,
        }
    };
    Rules::new(all.iter().map(read).collect())
}

/// A Monday, 2023-11-13, at 12:00 UTC.
const NOON: Timestamp = Timestamp::from_millis(1_699_876_800_000);

fn ask(rules: &Rules, client: &Client, action: Action, resource: &Resource<'_>) -> Decision {
    let principal = Principal::Client(client.clone());
    decide(rules, &principal, action, resource, NOON)
}

fn session(byte: u8) -> SessionId {
    SessionId::from_bytes([byte; 16])
}

#[test]
fn what_each_role_may_do_to_its_own_team() {
    let own = name("a");
    let may = |role: Role| -> BTreeSet<&str> {
        let actions = ACTIONS.into_iter();
        let allowed = actions.filter(|(action, ..)| {
            ask(
                &Rules::default(),
                &client("a", role),
                *action,
                &Resource::of(&own),
            )
            .allowed
        });
        allowed.map(|(_, name, _)| name).collect()
    };
    let member = may(Role::Member);
    let of_admins = ["change-credentials", "change-keys", "read-keys"];
    for (_, name, _) in ACTIONS {
        let is_for_admins = of_admins.contains(&name);
        let is_for_others = ["administer", "read-audit"].contains(&name);
        assert_eq!(
            member.contains(name),
            !is_for_admins && !is_for_others,
            "{name}"
        );
        assert_eq!(
            may(Role::TeamAdmin).contains(name),
            !is_for_others,
            "{name}"
        );
    }
    assert_eq!(may(Role::Auditor), ["read-audit"].into());
}

#[test]
fn operators_may_everything_and_no_rule_locks_them_out() {
    let lockdown = rules(&[("lockdown", r#"{"effect":"deny"}"#)]);
    for (action, ..) in ACTIONS {
        for principal in [Principal::Operator { uid: 0 }, Principal::Daemon] {
            let decision = decide(&lockdown, &principal, action, &Resource::default(), NOON);
            assert!(decision.allowed);
        }
        assert!(
            !ask(
                &lockdown,
                &client("a", Role::TeamAdmin),
                action,
                &Resource::default()
            )
            .allowed
        );
    }
}

#[test]
fn a_rule_denies_with_its_name_and_its_reason() {
    let night = rules(&[(
        "no-nights",
        r#"{"effect":"deny","actions":["create-session"],"templates":["gpu"],"hours":"12:00-13:00","reason":"the card is being looked after"}"#,
    )]);
    let (own, gpu, base) = (name("a"), name("gpu"), name("base"));
    let made = |template| {
        let resource = Resource::of(&own).template(template);
        ask(
            &night,
            &client("a", Role::Member),
            Action::CreateSession,
            &resource,
        )
    };
    let denied = made(&gpu);
    assert!(!denied.allowed && !denied.hidden);
    assert_eq!(
        (&*denied.rule, &*denied.reason),
        ("no-nights", "the card is being looked after")
    );
    assert!(made(&base).allowed);
}

#[test]
fn an_allowing_rule_widens_a_role_and_not_a_narrowed_key() {
    let helpful = rules(&[(
        "members-see-keys",
        r#"{"effect":"allow","roles":["member"],"actions":["read-keys"]}"#,
    )]);
    let own = name("a");
    let resource = Resource::of(&own);
    let member = client("a", Role::Member);
    let allowed = ask(&helpful, &member, Action::ReadKeys, &resource);
    assert_eq!(
        (allowed.allowed, &*allowed.rule),
        (true, "members-see-keys")
    );
    assert!(!ask(&Rules::default(), &member, Action::ReadKeys, &resource).allowed);
    let mut narrow = member;
    narrow.grant.scopes = Some([Scope::SessionsRead].into());
    let denied = ask(&helpful, &narrow, Action::ReadKeys, &resource);
    assert_eq!((denied.allowed, &*denied.rule), (false, "scopes-narrow"));
}

#[test]
fn hours_and_days_are_those_of_utc() {
    let at = |hours: &str, minute: i64| {
        let hours: Hours = hours.parse().unwrap();
        let rule = Rule {
            hours: Some(hours),
            ..serde_json::from_str(r#"{"effect":"deny"}"#).unwrap()
        };
        let now = Timestamp::from_millis(minute * 60_000);
        rule.misses(
            &client("a", Role::Member),
            Action::ListSessions,
            &Resource::default(),
            now,
        )
        .is_none()
    };
    for (hours, minute, holds) in [
        ("08:00-18:00", 8 * 60, true),
        ("08:00-18:00", 8 * 60 - 1, false),
        ("08:00-18:00", 18 * 60 - 1, true),
        ("08:00-18:00", 18 * 60, false),
        ("22:00-06:00", 23 * 60, true),
        ("22:00-06:00", 0, true),
        ("22:00-06:00", 6 * 60, false),
        ("00:00-24:00", 24 * 60 - 1, true),
        // Before the epoch there were minutes too.
        ("23:00-24:00", -1, true),
    ] {
        assert_eq!(at(hours, minute), holds, "{hours} {minute}");
    }
    let day = |text: &str| Rule {
        days: Some([text.parse().unwrap()].into()),
        ..serde_json::from_str(r#"{"effect":"deny"}"#).unwrap()
    };
    let holds = |day: &Rule, now| {
        day.misses(
            &client("a", Role::Member),
            Action::ListSessions,
            &Resource::default(),
            now,
        )
        .is_none()
    };
    let monday = NOON.as_millis();
    for (later, text) in ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
        .iter()
        .enumerate()
    {
        let now = Timestamp::from_millis(monday + i64::try_from(later).unwrap() * 86_400_000);
        assert!(holds(&day(text), now), "{text}");
        assert!(!holds(
            &day(text),
            Timestamp::from_millis(now.as_millis() + 86_400_000)
        ));
    }
}

/// Rules that must not be taken, and a word of what is said of each.
const BAD_RULES: [(&str, &str); 46] = [
    ("", "EOF"),
    ("null", "invalid type"),
    ("[]", "invalid"),
    ("{}", "missing field `effect`"),
    (r#""deny""#, "invalid type"),
    (r#"{"effect":"Deny"}"#, "unknown variant"),
    (r#"{"effect":"permit"}"#, "unknown variant"),
    (r#"{"effect":true}"#, "expected"),
    (r#"{"effect":"deny","effect":"allow"}"#, "duplicate field"),
    (
        r#"{"effect":"deny","action":["read-audit"]}"#,
        "unknown field",
    ),
    (r#"{"effect":"deny","priority":1}"#, "unknown field"),
    (r#"{"effect":"deny","name":"x"}"#, "unknown field"),
    (r#"{"effect":"deny","actions":"*"}"#, "invalid type"),
    (r#"{"effect":"deny","actions":["*"]}"#, "unknown variant"),
    (
        r#"{"effect":"deny","actions":["Create-Session"]}"#,
        "unknown variant",
    ),
    (
        r#"{"effect":"deny","actions":["create_session"]}"#,
        "unknown variant",
    ),
    (r#"{"effect":"deny","actions":[]}"#, "is empty"),
    (r#"{"effect":"deny","actions":["administer"]}"#, "operators"),
    (
        r#"{"effect":"allow","roles":["member"],"actions":["administer"]}"#,
        "operators",
    ),
    (r#"{"effect":"deny","teams":[]}"#, "is empty"),
    (r#"{"effect":"deny","teams":["*"]}"#, "a name is"),
    (r#"{"effect":"deny","teams":["A"]}"#, "a name is"),
    (r#"{"effect":"deny","teams":["a/../b"]}"#, "a name is"),
    (r#"{"effect":"deny","roles":[]}"#, "is empty"),
    (
        r#"{"effect":"deny","roles":["operator"]}"#,
        "unknown variant",
    ),
    (r#"{"effect":"deny","roles":["root"]}"#, "unknown variant"),
    (r#"{"effect":"deny","principals":[]}"#, "is empty"),
    (r#"{"effect":"deny","principals":["*"]}"#, "names a client"),
    (
        r#"{"effect":"deny","principals":["uid:0"]}"#,
        "names a client",
    ),
    (
        r#"{"effect":"deny","principals":["key_x"]}"#,
        "names a client",
    ),
    (
        r#"{"effect":"deny","principals":["jwt:"]}"#,
        "names a client",
    ),
    (
        r#"{"effect":"deny","principals":["jwt:*:*"]}"#,
        "names a client",
    ),
    (
        r#"{"effect":"deny","principals":["jwt:sso:"]}"#,
        "names a client",
    ),
    (
        r#"{"effect":"deny","principals":["jwt:sso:a b"]}"#,
        "names a client",
    ),
    (
        r#"{"effect":"deny","principals":["casemated"]}"#,
        "names a client",
    ),
    (r#"{"effect":"deny","templates":[]}"#, "is empty"),
    (r#"{"effect":"deny","templates":["py*"]}"#, "a name is"),
    (r#"{"effect":"deny","hours":"8-18"}"#, "part of a day"),
    (
        r#"{"effect":"deny","hours":"08:00-08:00"}"#,
        "part of a day",
    ),
    (
        r#"{"effect":"deny","hours":"24:00-08:00"}"#,
        "part of a day",
    ),
    (
        r#"{"effect":"deny","hours":"08:60-09:00"}"#,
        "part of a day",
    ),
    (r#"{"effect":"deny","days":["monday"]}"#, "unknown variant"),
    (r#"{"effect":"deny","from":"2026-02-30T00:00:00Z"}"#, "day"),
    (
        r#"{"effect":"deny","from":"2026-01-02T00:00:00Z","until":"2026-01-02T00:00:00Z"}"#,
        "not after",
    ),
    (r#"{"effect":"allow","roles":["member"]}"#, "must be named"),
    (
        r#"{"effect":"allow","actions":["read-audit"]}"#,
        "says whom",
    ),
];

#[test]
fn a_rule_that_is_not_plain_is_refused() {
    let said = |text: &str| match serde_json::from_str::<Rule>(text) {
        Err(error) => error.to_string(),
        Ok(rule) => rule
            .problems()
            .first()
            .unwrap_or_else(|| panic!("was taken: {text}"))
            .to_string(),
    };
    for (text, word) in BAD_RULES {
        let said = said(text);
        assert!(said.contains(word), "{text}: {said}");
    }
    let long = format!(
        r#"{{"effect":"deny","reason":"{}"}}"#,
        "x".repeat(MAX_REASON_BYTES + 1)
    );
    assert!(said(&long).contains("bytes of text"));
    assert!(said(r#"{"effect":"deny","reason":"a\nb"}"#).contains("one line"));
    assert!(said(r#"{"effect":"deny","reason":""}"#).contains("one line"));
    let many: Vec<String> = (0..=MAX_ENTRIES).map(|n| format!("\"t{n}\"")).collect();
    let many = format!(r#"{{"effect":"deny","teams":[{}]}}"#, many.join(","));
    assert!(said(&many).contains("at most"));
}

/// Everything that an operator could be talked into allowing, at once.
const GENEROUS: [(&str, &str); 3] = [
    (
        "a-all",
        r#"{"effect":"allow","teams":["a"],"actions":["create-session","list-sessions","read-session","use-session","change-session","read-templates","change-templates","read-volumes","change-volumes","read-keys","change-keys","read-credentials","change-credentials"]}"#,
    ),
    (
        "b-all",
        r#"{"effect":"allow","roles":["member","team-admin"],"actions":["use-session","read-session","change-keys"]}"#,
    ),
    (
        "c-one",
        r#"{"effect":"deny","teams":["a"],"actions":["change-volumes"]}"#,
    ),
];

/// Somebody of team `a` who wants what is not theirs: the role; the scopes it was narrowed to (`*`: none); whether it is bound to
/// session 1; what it wants; of which team; in which session; whether for other teams too; and the rule that must answer.
const ATTEMPTS: &str = "
member     *             free  use-session        b 1 own    teams-are-apart
team-admin *             free  use-session        b 1 own    teams-are-apart
auditor    *             free  use-session        b 1 own    teams-are-apart
team-admin *             free  read-session       b 1 own    teams-are-apart
team-admin *             free  change-session     b 1 own    teams-are-apart
team-admin *             free  create-session     b - own    teams-are-apart
team-admin *             free  read-templates     b - own    teams-are-apart
team-admin *             free  change-templates   b - own    teams-are-apart
team-admin *             free  change-templates   b - shared teams-are-apart
team-admin *             free  read-volumes       b - own    teams-are-apart
team-admin *             free  change-volumes     b - own    teams-are-apart
team-admin *             free  read-keys          b - own    teams-are-apart
team-admin *             free  change-keys        b - own    teams-are-apart
team-admin *             free  read-credentials   b - own    teams-are-apart
team-admin *             free  change-credentials b - own    teams-are-apart
team-admin *             free  administer         b - own    teams-are-apart
auditor    *             free  read-audit         b - own    teams-are-apart
member     *             free  administer         - - own    only-operators-administer
team-admin *             free  administer         - - own    only-operators-administer
auditor    *             free  administer         - - own    only-operators-administer
team-admin *             free  administer         a 1 own    only-operators-administer
team-admin audit:read    free  administer         a - own    only-operators-administer
member     *             free  change-templates   a - shared members-make-templates-for-their-own-team-only
team-admin *             free  change-templates   a - shared members-make-templates-for-their-own-team-only
member     *             free  read-audit         - - own    nothing-allows
team-admin *             free  read-audit         - - own    nothing-allows
team-admin audit:read    free  read-audit         - - own    nothing-allows
auditor    *             free  list-sessions      - - own    auditors-read-the-record
auditor    *             free  create-session     a - own    auditors-read-the-record
auditor    *             free  read-volumes       a - own    auditors-read-the-record
member     *             free  change-volumes     a - own    c-one
team-admin *             free  change-volumes     a - own    c-one
member     sessions:read free  use-session        a 1 own    scopes-narrow
member     sessions:read free  change-session     a 1 own    scopes-narrow
member     sessions:read free  create-session     a - own    scopes-narrow
team-admin sessions:read free  change-keys        a - own    scopes-narrow
team-admin sessions:read free  read-keys          a - own    scopes-narrow
auditor    sessions:read free  read-audit         - - own    scopes-narrow
auditor    none          free  read-audit         - - own    scopes-narrow
team-admin none          free  list-sessions      - - own    scopes-narrow
member     *             bound use-session        a 2 own    tokens-are-for-one-session
member     *             bound read-session       a 2 own    tokens-are-for-one-session
member     *             bound change-session     a 2 own    tokens-are-for-one-session
member     *             bound list-sessions      - - own    tokens-are-for-one-session
member     *             bound create-session     a - own    tokens-are-for-one-session
member     *             bound change-templates   a - own    tokens-are-for-one-session
team-admin *             bound change-keys        a - own    tokens-are-for-one-session
team-admin *             bound read-keys          a - own    tokens-are-for-one-session
team-admin *             bound change-credentials a - own    tokens-are-for-one-session
auditor    *             bound read-audit         - - own    tokens-are-for-one-session
member     *             bound use-session        b 1 own    teams-are-apart
member     sessions:read bound use-session        a 1 own    scopes-narrow
member     none          bound read-session       a 1 own    scopes-narrow
auditor    *             bound use-session        a 1 own    auditors-read-the-record
";

#[test]
fn no_rule_of_the_operator_s_opens_what_is_closed_by_nature() {
    let generous = rules(&GENEROUS);
    let mut attempts = 0;
    for line in ATTEMPTS.lines().filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [role, scopes, bound, action, team, of, reach, verdict] = words[..] else {
            panic!("{line}")
        };
        let mut client = client("a", role.parse().unwrap());
        client.grant.scopes = match scopes {
            "*" => None,
            "none" => Some(BTreeSet::new()),
            scope => Some([scope.parse().unwrap()].into()),
        };
        client.session = (bound == "bound").then(|| session(1));
        let team = (team != "-").then(|| name(team));
        let resource = Resource {
            team: team.as_ref(),
            session: (of != "-").then(|| session(of.parse().unwrap())),
            is_shared: reach == "shared",
            ..Resource::default()
        };
        let decision = ask(&generous, &client, action.parse().unwrap(), &resource);
        assert!(!decision.allowed, "{line}: allowed by {}", decision.rule);
        assert_eq!(decision.rule, verdict, "{line}");
        let is_of_others =
            verdict == "teams-are-apart" || (verdict == "tokens-are-for-one-session" && of != "-");
        assert_eq!(decision.hidden, is_of_others, "{line}");
        attempts += 1;
    }
    assert!(attempts + BAD_RULES.len() >= 100);
}

#[test]
fn a_token_of_a_session_uses_that_session() {
    let own = name("a");
    let mut bound = client("a", Role::Member);
    bound.session = Some(session(1));
    let resource = Resource {
        session: Some(session(1)),
        ..Resource::of(&own)
    };
    assert!(ask(&Rules::default(), &bound, Action::UseSession, &resource).allowed);
}

#[test]
fn it_is_told_why_each_rule_does_not_speak() {
    use Condition as C;
    let all = rules(&[
        ("others", r#"{"effect":"deny","teams":["b"]}"#),
        ("admins", r#"{"effect":"deny","roles":["team-admin"]}"#),
        (
            "somebody",
            r#"{"effect":"deny","principals":["jwt:sso:*"]}"#,
        ),
        ("reading", r#"{"effect":"deny","actions":["read-session"]}"#),
        ("gpu", r#"{"effect":"deny","templates":["gpu"]}"#),
        (
            "later",
            r#"{"effect":"deny","from":"2030-01-01T00:00:00Z"}"#,
        ),
        (
            "before",
            r#"{"effect":"deny","until":"2020-01-01T00:00:00Z"}"#,
        ),
        ("morning", r#"{"effect":"deny","hours":"06:00-07:00"}"#),
        ("weekend", r#"{"effect":"deny","days":["sat","sun"]}"#),
        (
            "now",
            r#"{"effect":"deny","hours":"11:00-13:00","days":["mon"]}"#,
        ),
    ]);
    let own = name("a");
    let member = client("a", Role::Member);
    let seen = consider(
        &all,
        &member,
        Action::ListSessions,
        &Resource::of(&own),
        NOON,
    );
    let misses: Vec<_> = seen.iter().map(|considered| considered.misses).collect();
    let expected = [
        C::Teams,
        C::Roles,
        C::Principals,
        C::Actions,
        C::Templates,
        C::From,
        C::Until,
        C::Hours,
        C::Days,
    ];
    let expected: Vec<_> = expected.map(Some).into_iter().chain([None]).collect();
    assert_eq!(misses, expected);
    assert_eq!(
        ask(&all, &member, Action::ListSessions, &Resource::of(&own)).rule,
        "now"
    );
    let by_token = Client {
        by: Proof::Jwt {
            issuer: name("sso"),
            subject: "ann".into(),
        },
        ..member
    };
    assert_eq!(
        ask(&all, &by_token, Action::ListSessions, &Resource::of(&own)).rule,
        "somebody"
    );
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let actions: Vec<Action> = ACTIONS.iter().map(|(action, ..)| *action).collect();
    (
        prop::bool::ANY,
        prop::option::of(prop::collection::btree_set(
            prop::sample::select(vec![name("a"), name("b")]),
            1..3,
        )),
        prop::option::of(prop::collection::btree_set(
            prop::sample::select(ROLES.to_vec()),
            1..3,
        )),
        prop::option::of(prop::collection::btree_set(
            prop::sample::select(actions),
            1..6,
        )),
    )
        .prop_map(|(denies, teams, roles, actions)| Rule {
            effect: if denies { Effect::Deny } else { Effect::Allow },
            teams,
            roles,
            actions,
            ..serde_json::from_str(r#"{"effect":"deny"}"#).unwrap()
        })
}

fn any_client() -> impl Strategy<Value = Client> {
    let scopes: Vec<Scope> = SCOPES.iter().map(|(scope, _)| *scope).collect();
    (
        prop::sample::select(ROLES.to_vec()),
        prop::option::of(prop::collection::btree_set(
            prop::sample::select(scopes),
            0..12,
        )),
        prop::option::of(1_u8..3),
    )
        .prop_map(|(role, scopes, bound)| Client {
            grant: Grant { role, scopes },
            session: bound.map(session),
            ..client("a", role)
        })
}

proptest! {
    #[test]
    fn deny_wins_and_rules_never_cross_teams(
        mut all in prop::collection::vec(any_rule(), 0..6),
        extra in any_rule(),
        client in any_client(),
        which in 0..ACTIONS.len(),
        team in prop::option::of(prop::sample::select(vec![name("a"), name("b")])),
        of in prop::option::of(1_u8..3),
    ) {
        let (action, _, scope) = ACTIONS[which];
        let resource = Resource { team: team.as_ref(), session: of.map(session), ..Resource::default() };
        let named = |all: &[Rule]| Rules::new(all.iter().map(|rule| NamedRule {
            name: name("r"), origin: Origin::Store, rule: rule.clone(),
        }).collect());
        let before = ask(&named(&all), &client, action, &resource);
        if before.allowed {
            prop_assert!(team.as_ref().is_none_or(|team| *team == client.team));
            prop_assert!(action != Action::Administer);
            prop_assert!(client.session.is_none_or(|own| of.map(session) == Some(own)));
            prop_assert!(scope.is_some_and(|scope| client.grant.scopes.as_ref().is_none_or(|all| all.contains(&scope))));
        }
        // Whatever one rule more says: one that denies never allows, one that allows never denies; and the order is nothing.
        all.push(extra.clone());
        let after = ask(&named(&all), &client, action, &resource);
        match extra.effect {
            Effect::Deny => prop_assert!(before.allowed || !after.allowed),
            Effect::Allow => prop_assert!(after.allowed || !before.allowed),
        }
        all.reverse();
        prop_assert_eq!(ask(&named(&all), &client, action, &resource).allowed, after.allowed);
    }
}
