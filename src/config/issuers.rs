//! Every key of an issuer of JSON web tokens, `jwt.NAME`, one line each. The page is docs/authentication.md, which a test compares.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use super::document::Value;
use super::section::{Section, plain_path};
use super::validate::MAX_PATH_BYTES;
use crate::identity::jwt::check_url;
use crate::model::grant::Role;
use crate::model::issuer::{
    ALGORITHMS, Algorithm, ClaimPath, Issuer, KeySource, KeyTimes, RoleRule, TeamRule,
};
use crate::model::name::Name;

/// Most issuers.
const MAX_ISSUERS: usize = 64;
/// Longest text of a list or a map, and longest `iss`.
const MAX_TEXT_BYTES: usize = 1024;
/// A day and thirty of them, in seconds.
const DAY_S: u64 = 24 * 3600;
const MONTH_S: u64 = 30 * DAY_S;
const LEEWAY: Duration = Duration::from_secs(30);

/// What says where keys are; exactly one of them is written.
const SOURCES: [&str; 5] = [
    "key_file",
    "secret_file",
    "secret_credential",
    "jwks_file",
    "jwks_url",
];

/// All issuers.
pub(super) fn issuers(root: &Section<'_>) -> Vec<Issuer> {
    let mut issuers: Vec<Issuer> = Vec::new();
    let sections = root.sections("jwt");
    if sections.len() > MAX_ISSUERS {
        root.problem("jwt", format!("has more than {MAX_ISSUERS} issuers"));
    }
    for (name, keys) in sections {
        // What is no map was noted, and a name without a value says nothing.
        if !keys.is_written() {
            continue;
        }
        let name = name.parse::<Name>();
        if let Err(why) = &name {
            keys.problem_here(format!("its name does not name an issuer: {why}"));
        }
        // Looked at in any case, so that everything is said at once.
        let Some(issuer) = issuer(name.ok(), &keys) else {
            continue;
        };
        let twin = issuers.iter().find(|other| other.issuer == issuer.issuer);
        if let (true, Some(twin)) = (root.is_complete(), twin) {
            let text = format!(
                "is that of {} too; two issuers cannot have the same",
                twin.name
            );
            keys.problem("issuer", text);
        }
        issuers.push(issuer);
    }
    issuers
}

/// One issuer; `None` when something without which there is none was noted, or is in another file.
fn issuer(name: Option<Name>, keys: &Section<'_>) -> Option<Issuer> {
    let issuer = keys.required(
        "issuer",
        "is missing; it is exactly what the tokens have as iss",
        plain,
    );
    let audiences = set(keys, "audiences");
    let authorized_parties = set(keys, "authorized_parties");
    if keys.is_complete() && audiences.is_empty() && authorized_parties.is_empty() {
        keys.problem(
            "audiences",
            "is missing, and so is authorized_parties; a token that is for somebody else would be taken",
        );
    }
    let algorithms = algorithms(keys);
    let source = source(keys, &algorithms);
    let (team, role) = (team(keys), role(keys));
    let claim = |key, default: Option<&str>| claim_or(keys, key, default);
    let scopes = claim("scopes_claim", None);
    let subject = claim("subject_claim", Some("sub"));
    let times = KeyTimes::default();
    let times = KeyTimes {
        max_age: keys.seconds("cache_s", times.max_age, 10..=DAY_S),
        min_interval: keys.seconds("refresh_s", times.min_interval, 5..=3600),
        stale: keys.seconds("stale_s", times.stale, 0..=MONTH_S),
    };
    let leeway = keys.seconds("leeway_s", LEEWAY, 0..=600);
    let max_age = keys.seconds("max_age_s", Duration::ZERO, 0..=MONTH_S);
    let required = required(keys);
    Some(Issuer {
        name: name?,
        issuer: issuer?,
        audiences,
        authorized_parties,
        algorithms,
        keys: source?,
        times,
        leeway,
        max_age: (!max_age.is_zero()).then_some(max_age),
        required,
        subject: subject?,
        team: team?,
        role,
        scopes,
    })
}

fn algorithms(keys: &Section<'_>) -> BTreeSet<Algorithm> {
    let parse = |value: &Value| {
        let known = || {
            format!(
                "has an entry that is none of {}",
                ALGORITHMS.map(Algorithm::as_str).join(", ")
            )
        };
        match value {
            Value::Text(text) => Algorithm::named(text).ok_or_else(known),
            _ => Err(known()),
        }
    };
    let algorithms: BTreeSet<_> = keys
        .list("algorithms", parse)
        .unwrap_or_default()
        .into_iter()
        .collect();
    if keys.is_complete() && !keys.is_set("algorithms") {
        keys.problem(
            "algorithms",
            "is missing; write how the tokens are signed, as in [RS256]",
        );
    } else if keys.is_complete() && algorithms.len() > 1 && algorithms.contains(&Algorithm::Hs256) {
        // With a public key as its secret anybody could sign.
        keys.problem(
            "algorithms",
            "has HS256 beside others; an issuer has either a secret or public keys",
        );
    }
    algorithms
}

fn source(keys: &Section<'_>, algorithms: &BTreeSet<Algorithm>) -> Option<KeySource> {
    let path = |key| {
        keys.single(key, |value| match value {
            Value::Text(text) => plain_path(text, MAX_PATH_BYTES).map(Shown),
            _ => Err("expected a path".to_owned()),
        })
        .map(|Shown(path)| path)
    };
    let text = |key, check: fn(&str) -> Result<(), String>| {
        keys.single(key, |value| match value {
            Value::Text(text) => check(text).map(|()| text.clone()),
            _ => Err("expected text".to_owned()),
        })
    };
    let url = text("jwks_url", |text| check_url(text).map_err(str::to_owned));
    let ca_file = path("ca_file");
    let sources = [
        path("key_file").map(KeySource::Pem),
        path("secret_file").map(KeySource::Secret),
        text("secret_credential", credential).map(KeySource::Credential),
        path("jwks_file").map(KeySource::JwksFile),
        url.map(|url| KeySource::JwksUrl {
            url,
            ca_file: ca_file.clone(),
        }),
    ];
    let written = SOURCES.iter().filter(|key| keys.is_set(key)).count();
    if written > 1 || (written == 0 && keys.is_complete()) {
        keys.problem_here(format!("needs one of {}", SOURCES.join(", ")));
    }
    if keys.is_complete() && ca_file.is_some() && !keys.is_set("jwks_url") {
        keys.problem("ca_file", "is for jwks_url, which is not set");
    }
    let source = sources.into_iter().flatten().next()?;
    let has_secret = matches!(source, KeySource::Secret(_) | KeySource::Credential(_));
    if keys.is_complete()
        && !algorithms.is_empty()
        && has_secret != algorithms.contains(&Algorithm::Hs256)
    {
        keys.problem(
            "algorithms",
            "must be [HS256] with a secret, and cannot have it with public keys",
        );
    }
    Some(source)
}

/// A path that is shown in lists.
struct Shown(PathBuf);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.display().fmt(f)
    }
}

/// A credential's name (systemd.exec(5)): a file's name.
fn credential(text: &str) -> Result<(), String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let fits = (1..=128).contains(&text.len()) && text.bytes().all(plain);
    (fits && !text.starts_with('.'))
        .then_some(())
        .ok_or_else(|| "is not the name of a credential".to_owned())
}

fn team(keys: &Section<'_>) -> Option<TeamRule> {
    let fixed = keys.single("team", name);
    let claim = claim_or(keys, "team_claim", None);
    let map = keys.pairs("team_map", name);
    let has_map = keys.is_set("team_map");
    match (keys.is_set("team"), keys.is_set("team_claim")) {
        (true, true) => keys.problem(
            "team",
            "and team_claim exclude each other; keep one of them",
        ),
        (false, false) if keys.is_complete() => {
            keys.problem(
                "team",
                "is missing, and so is team_claim; a token acts for a team",
            );
        }
        (true, false) if has_map => keys.problem("team_map", "is for team_claim, which is not set"),
        _ => {}
    }
    match (fixed, claim) {
        (Some(team), _) => Some(TeamRule::Fixed(team)),
        (None, Some(claim)) => Some(TeamRule::Claim {
            claim,
            map: has_map.then_some(map),
        }),
        (None, None) => None,
    }
}

/// A member, unless something else is written.
fn role(keys: &Section<'_>) -> RoleRule {
    let fixed = keys.single("role", role_name);
    let claim = claim_or(keys, "roles_claim", None);
    let map = keys.pairs("role_map", role_name);
    if keys.is_complete() && keys.is_set("roles_claim") != keys.is_set("role_map") {
        keys.problem_here("needs both of roles_claim and role_map, or neither".to_owned());
    }
    let otherwise = match (&claim, fixed) {
        (None, None) => Some(Role::default()),
        (_, fixed) => fixed,
    };
    RoleRule {
        claim: claim.map(|claim| (claim, map)),
        otherwise,
    }
}

fn required(keys: &Section<'_>) -> BTreeMap<ClaimPath, BTreeSet<String>> {
    let one = |value: &Value| match value {
        Value::Text(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        _ => Err("expected text, a whole number, true, false, or a list of them".to_owned()),
    };
    let values = |value: &Value| match value {
        Value::List(nodes) if nodes.is_empty() => {
            Err("has no value that could be right".to_owned())
        }
        Value::List(nodes) => nodes.iter().map(|node| one(&node.value)).collect(),
        value => one(value).map(|value| [value].into()),
    };
    let mut required = BTreeMap::new();
    for (claim, values) in keys.pairs("required_claims", values) {
        match ClaimPath::parse(&claim) {
            Ok(path) => {
                required.insert(path, values);
            }
            Err(why) => {
                keys.problem_at(&["required_claims".to_owned(), claim], why.to_string());
            }
        }
    }
    required
}

fn claim_or(keys: &Section<'_>, key: &'static str, default: Option<&str>) -> Option<ClaimPath> {
    let written = keys.single(key, |value| match value {
        Value::Text(text) => ClaimPath::parse(text).map_err(|why| why.to_string()),
        _ => Err("expected a claim's name".to_owned()),
    });
    written.or_else(|| ClaimPath::parse(default?).ok())
}

fn set(keys: &Section<'_>, key: &'static str) -> BTreeSet<String> {
    let parse = |value: &Value| match value {
        Value::Text(text) => plain(text).map_err(|why| format!("has an entry that {why}")),
        _ => Err("expected text in each entry".to_owned()),
    };
    let list = keys.list(key, parse).unwrap_or_default();
    list.into_iter().collect()
}

fn plain(text: &str) -> Result<String, String> {
    let fits = (1..=MAX_TEXT_BYTES).contains(&text.len());
    if fits && !text.chars().any(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(format!("is not text of 1 to {MAX_TEXT_BYTES} bytes"))
}

fn name(value: &Value) -> Result<Name, String> {
    match value {
        Value::Text(text) => text.parse::<Name>().map_err(|why| why.to_string()),
        _ => Err("expected a name; put it in quotes".to_owned()),
    }
}

fn role_name(value: &Value) -> Result<Role, String> {
    match value {
        Value::Text(text) => text.parse::<Role>().map_err(|why| why.to_string()),
        _ => Err("expected a role".to_owned()),
    }
}
