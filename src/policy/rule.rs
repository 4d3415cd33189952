//! A rule of the operator's: whom it is about, what, to what, when; and whether that is allowed or denied.
//!
//! A condition that is absent is no condition. All that are there must hold. Times are UTC.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Action, Resource};
use crate::base::clock::Timestamp;
use crate::model::grant::Role;
use crate::model::name::Name;
use crate::model::principal::{Client, Proof};

/// Most entries of one condition.
pub const MAX_ENTRIES: usize = 256;

/// Longest reason, in bytes.
pub const MAX_REASON_BYTES: usize = 200;

/// Longest text that names a principal, in bytes.
pub const MAX_PRINCIPAL_BYTES: usize = 256;

/// Most rules of one source.
pub const MAX_RULES: usize = 1024;

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It may be done, unless some other rule denies it.
    Allow,
    /// It may not be done, whatever other rules allow.
    Deny,
}

/// A rule of the operator's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Whether it allows or denies.
    pub effect: Effect,
    /// What is said to whom it denies something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Only clients of these teams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teams: Option<BTreeSet<Name>>,
    /// Only clients of these roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<BTreeSet<Role>>,
    /// Only these clients, as the record names them: `key_…`, `certificate:name`, `jwt:issuer:subject`, `access-token:*` for the access
    /// tokens of sessions, or `jwt:issuer:*` for all
    /// of an issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principals: Option<BTreeSet<String>>,
    /// Only these actions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actions: Option<BTreeSet<Action>>,
    /// Only where one of these templates plays a part: it is that, or was or shall be made of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub templates: Option<BTreeSet<Name>>,
    /// Only from this instant on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// Only before this instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Only at these times of the day, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hours: Option<Hours>,
    /// Only on these days of the week, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<BTreeSet<Day>>,
}

/// Part of a day, in minutes after midnight: from the first on, before the second; over midnight where the second is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    from: u32,
    before: u32,
}

/// A day of the week.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "their names say all there is to say")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

/// Every day and its name, beginning with that of the epoch: 1970-01-01 was a Thursday.
const DAYS: [(Day, &str); 7] = [
    (Day::Thu, "thu"),
    (Day::Fri, "fri"),
    (Day::Sat, "sat"),
    (Day::Sun, "sun"),
    (Day::Mon, "mon"),
    (Day::Tue, "tue"),
    (Day::Wed, "wed"),
];

const MINUTE_MS: i64 = 60_000;
const DAY_MINUTES: u32 = 24 * 60;
const DAY_MS: i64 = MINUTE_MS * DAY_MINUTES as i64;

/// What is wrong with a rule: the field, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct RuleProblem {
    /// The field.
    pub field: &'static str,
    /// What it must be.
    pub problem: String,
}

/// A condition of a rule that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "they are the rule's own fields")]
pub enum Condition {
    Teams,
    Roles,
    Principals,
    Actions,
    Templates,
    From,
    Until,
    Hours,
    Days,
}

impl Rule {
    /// The first condition that does not hold; `None`: the rule speaks.
    #[must_use]
    pub fn misses(
        &self,
        client: &Client,
        action: Action,
        resource: &Resource<'_>,
        now: Timestamp,
    ) -> Option<Condition> {
        let holds = [
            (Condition::Teams, within(self.teams.as_ref(), &client.team)),
            (
                Condition::Roles,
                within(self.roles.as_ref(), &client.grant.role),
            ),
            (
                Condition::Principals,
                self.principals
                    .as_ref()
                    .is_none_or(|named| is_named(named, &client.by)),
            ),
            (Condition::Actions, within(self.actions.as_ref(), &action)),
            (
                Condition::Templates,
                self.templates.as_ref().is_none_or(|templates| {
                    resource
                        .template
                        .is_some_and(|template| templates.contains(template))
                }),
            ),
            (Condition::From, self.from.is_none_or(|from| now >= from)),
            (Condition::Until, self.until.is_none_or(|until| now < until)),
            (
                Condition::Hours,
                self.hours.is_none_or(|hours| hours.has(now)),
            ),
            (Condition::Days, within(self.days.as_ref(), &Day::of(now))),
        ];
        let missing = holds.into_iter().find(|(_, holds)| !holds);
        missing.map(|(condition, _)| condition)
    }

    /// Everything that is wrong with it.
    #[must_use]
    pub fn problems(&self) -> Vec<RuleProblem> {
        let mut problems = Vec::new();
        let mut say = |field, problem: String| problems.push(RuleProblem { field, problem });
        let counts = [
            ("teams", self.teams.as_ref().map(BTreeSet::len)),
            ("roles", self.roles.as_ref().map(BTreeSet::len)),
            ("principals", self.principals.as_ref().map(BTreeSet::len)),
            ("actions", self.actions.as_ref().map(BTreeSet::len)),
            ("templates", self.templates.as_ref().map(BTreeSet::len)),
            ("days", self.days.as_ref().map(BTreeSet::len)),
        ];
        for (field, count) in counts {
            match count {
                Some(0) => say(
                    field,
                    "is empty, so that the rule would never hold; leave it away for all".to_owned(),
                ),
                Some(count) if count > MAX_ENTRIES => {
                    say(field, format!("has {count} entries; at most {MAX_ENTRIES}"));
                }
                _ => {}
            }
        }
        if let Some(reason) = &self.reason
            && (reason.is_empty()
                || reason.len() > MAX_REASON_BYTES
                || reason.chars().any(char::is_control))
        {
            say(
                "reason",
                format!("is 1 to {MAX_REASON_BYTES} bytes of text on one line"),
            );
        }
        for principal in self.principals.iter().flatten() {
            if !can_name(principal) {
                say(
                    "principals",
                    "names a client as the record does: key_…, certificate:name, access-token:*, jwt:issuer:subject, or jwt:issuer:*"
                        .to_owned(),
                );
                break;
            }
        }
        if let (Some(from), Some(until)) = (self.from, self.until)
            && from >= until
        {
            say(
                "until",
                "is not after from, so that the rule would never hold".to_owned(),
            );
        }
        let actions = self.actions.iter().flatten();
        if actions.clone().any(|action| *action == Action::Administer) {
            say(
                "actions",
                "administer is for operators, at the admin socket, and no rule changes that"
                    .to_owned(),
            );
        }
        if self.effect == Effect::Allow {
            if self.actions.is_none() {
                say("actions", "must be named by a rule that allows: what is new one day is not allowed in advance".to_owned());
            }
            if self.teams.is_none() && self.roles.is_none() && self.principals.is_none() {
                say(
                    "effect",
                    "a rule that allows says whom: teams, roles or principals".to_owned(),
                );
            }
        }
        problems
    }
}

fn within<T: Ord>(set: Option<&BTreeSet<T>>, value: &T) -> bool {
    set.is_none_or(|set| set.contains(value))
}

fn is_named(named: &BTreeSet<String>, by: &Proof) -> bool {
    let any = match by {
        Proof::Jwt { issuer, .. } => named.contains(&format!("jwt:{issuer}:*")),
        Proof::Access(_) => named.contains("access-token:*"),
        Proof::Key(_) | Proof::Certificate { .. } => false,
    };
    any || named.contains(&by.to_string())
}

/// Whether some client could be called so.
fn can_name(text: &str) -> bool {
    if text.len() > MAX_PRINCIPAL_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return false;
    }
    if text == "access-token:*" {
        return true;
    }
    match text.strip_prefix("jwt:").map(|rest| rest.split_once(':')) {
        Some(Some((issuer, subject))) => issuer.parse::<Name>().is_ok() && !subject.is_empty(),
        Some(None) => false,
        None => match text.strip_prefix("certificate:") {
            Some(name) => !name.is_empty(),
            None => text.parse::<crate::base::id::KeyId>().is_ok(),
        },
    }
}

impl Hours {
    fn has(self, now: Timestamp) -> bool {
        let minute = now.as_millis().rem_euclid(DAY_MS) / MINUTE_MS;
        let (from, before) = (i64::from(self.from), i64::from(self.before));
        if from < before {
            (from..before).contains(&minute)
        } else {
            minute >= from || minute < before
        }
    }
}

impl Day {
    fn of(now: Timestamp) -> Self {
        let days = now.as_millis().div_euclid(DAY_MS).rem_euclid(7);
        let index = usize::try_from(days).unwrap_or(0);
        DAYS.get(index).map_or(Self::Thu, |(day, _)| *day)
    }
}

/// The text is not a part of a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is a part of a day in UTC, as in 08:00-18:30, or 22:00-06:00 over midnight; the end is not part of it"
)]
pub struct NotHours;

/// The text is not a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a day is one of mon, tue, wed, thu, fri, sat, sun")]
pub struct NotADay;

/// `HH:MM` in minutes, up to and with 24:00.
fn minutes(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |text: &str| {
        let plain = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<u32>().ok()).flatten()
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    let all = hours * 60 + minutes;
    (minutes < 60 && all <= DAY_MINUTES).then_some(all)
}

impl FromStr for Hours {
    type Err = NotHours;

    fn from_str(text: &str) -> Result<Self, NotHours> {
        let (from, before) = text.split_once('-').ok_or(NotHours)?;
        let from = minutes(from).filter(|from| *from < DAY_MINUTES);
        match (from, minutes(before)) {
            (Some(from), Some(before)) if from != before => Ok(Self { from, before }),
            _ => Err(NotHours),
        }
    }
}

impl FromStr for Day {
    type Err = NotADay;

    fn from_str(text: &str) -> Result<Self, NotADay> {
        let found = DAYS.into_iter().find(|(_, name)| *name == text);
        found.map(|(day, _)| day).ok_or(NotADay)
    }
}

impl FromStr for Effect {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err("is allow or deny"),
        }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, before) = (self.from, self.before);
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02}",
            from / 60,
            from % 60,
            before / 60,
            before % 60
        )
    }
}

impl Serialize for Hours {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hours {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Hours {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Hours".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^[0-2][0-9]:[0-5][0-9]-[0-2][0-9]:[0-5][0-9]$",
            "description": "a part of each day in UTC, over midnight where the end is less than the beginning",
        })
    }
}
