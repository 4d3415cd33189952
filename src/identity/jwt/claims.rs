//! From the claims of a token whose signature was verified to whoever it is about. Pure: the time is an argument.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Refused;
use super::json::{self, Json, Object};
use crate::base::clock::Timestamp;
use crate::model::grant::{Grant, Role, Scope};
use crate::model::issuer::{ClaimPath, Issuer, RoleRule, TeamRule};
use crate::model::name::Name;
use crate::model::principal::{Client, Proof};

/// Longest subject, in bytes: it stands in every record of what its token did.
pub const MAX_SUBJECT_BYTES: usize = 128;

/// Most entries of a list of audiences, roles, groups or scopes that are looked at.
const MAX_ENTRIES: usize = 1024;

/// The last second that a date may name: the end of the year 9999.
const MAX_SECONDS: i64 = 253_402_300_799;

/// Whom a token is about, and when that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    pub(super) client: Client,
    /// Not before this.
    pub(super) from: Timestamp,
    /// Not at this time or later.
    pub(super) until: Timestamp,
}

/// Judges the claims by what the settings say of their issuer.
pub(super) fn judge(issuer: &Issuer, claims: &Object, now: Timestamp) -> Result<Accepted, Refused> {
    if claims.get("iss").and_then(Json::text) != Some(&issuer.issuer) {
        return Err(Refused::Issuer);
    }
    let (from, until) = validity(issuer, claims, now)?;
    audience(issuer, claims)?;
    for (path, wanted) in &issuer.required {
        let found = json::at(claims, path).ok_or(Refused::Claim)?;
        let is_there = |value: &Json| wanted.iter().any(|text| value.is_said_as(text));
        let is_good = match found {
            Json::List(values) => values.iter().take(MAX_ENTRIES).any(is_there),
            value => is_there(value),
        };
        if !is_good {
            return Err(Refused::Claim);
        }
    }
    let client = Client {
        by: Proof::Jwt {
            issuer: issuer.name.clone(),
            subject: subject(&issuer.subject, claims)?,
        },
        team: team(&issuer.team, claims)?,
        grant: Grant {
            role: role(&issuer.role, claims)?,
            scopes: match &issuer.scopes {
                None => None,
                Some(claim) => Some(scopes(claim, claims)?),
            },
        },
        session: None,
    };
    Ok(Accepted {
        client,
        from,
        until,
    })
}

/// From when and until when a token holds, with the clocks apart as far as they may be.
fn validity(
    issuer: &Issuer,
    claims: &Object,
    now: Timestamp,
) -> Result<(Timestamp, Timestamp), Refused> {
    let leeway = issuer.leeway;
    let mut until = later(date(claims, "exp")?.ok_or(Refused::NoExpiry)?, leeway);
    if now >= until {
        return Err(Refused::Expired);
    }
    let mut from = Timestamp::from_millis(0);
    if let Some(begin) = date(claims, "nbf")? {
        from = from.max(earlier(begin, leeway));
    }
    match (date(claims, "iat")?, issuer.max_age) {
        (Some(made), max_age) => {
            from = from.max(earlier(made, leeway));
            if let Some(max_age) = max_age {
                until = until.min(later(later(made, max_age), leeway));
            }
        }
        (None, Some(_)) => return Err(Refused::TooOld),
        (None, None) => {}
    }
    if now < from {
        return Err(Refused::Early);
    }
    if now >= until {
        return Err(Refused::TooOld);
    }
    Ok((from, until))
}

/// A `NumericDate` (RFC 7519 section 2) in milliseconds.
fn date(claims: &Object, name: &str) -> Result<Option<Timestamp>, Refused> {
    let millis = match claims.get(name) {
        None => return Ok(None),
        Some(Json::Integer(seconds @ 0..=MAX_SECONDS)) => seconds * 1000,
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "within the bounds a double has milliseconds to spare"
        )]
        Some(Json::Float(seconds)) if (0.0..=MAX_SECONDS as f64).contains(seconds) => {
            (seconds * 1000.0) as i64
        }
        Some(_) => return Err(Refused::Date),
    };
    Ok(Some(Timestamp::from_millis(millis)))
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    time.after(by)
}

fn earlier(time: Timestamp, by: Duration) -> Timestamp {
    let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millis(time.as_millis().saturating_sub(by).max(0))
}

/// Whether the token is for us (RFC 7519 section 4.1.3), and was given to a party that may use it.
fn audience(issuer: &Issuer, claims: &Object) -> Result<(), Refused> {
    let is_ours = |text: &str| issuer.audiences.contains(text);
    match claims.get("aud") {
        // Whoever expects none must not take a token that is for somebody else.
        None if issuer.audiences.is_empty() => {}
        Some(Json::Text(text)) if is_ours(text) => {}
        Some(Json::List(list)) if list.len() <= MAX_ENTRIES => {
            let texts: Option<Vec<&str>> = list.iter().map(Json::text).collect();
            if !texts.ok_or(Refused::Audience)?.into_iter().any(is_ours) {
                return Err(Refused::Audience);
            }
        }
        _ => return Err(Refused::Audience),
    }
    if issuer.authorized_parties.is_empty() {
        return Ok(());
    }
    match claims.get("azp") {
        Some(Json::Text(party)) if issuer.authorized_parties.contains(party) => Ok(()),
        _ => Err(Refused::Party),
    }
}

/// Whom it is about. What could not stand in the record as it is, is refused: nothing is escaped, so no two are one.
fn subject(path: &ClaimPath, claims: &Object) -> Result<String, Refused> {
    let subject = json::at(claims, path).and_then(Json::text);
    let is_plain = |text: &&str| {
        (1..=MAX_SUBJECT_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
    };
    subject
        .filter(is_plain)
        .map(str::to_owned)
        .ok_or(Refused::Subject)
}

/// The team, exactly one.
fn team(rule: &TeamRule, claims: &Object) -> Result<Name, Refused> {
    let (claim, map) = match rule {
        TeamRule::Fixed(team) => return Ok(team.clone()),
        TeamRule::Claim { claim, map } => (claim, map),
    };
    let values = texts(claim, claims).ok_or(Refused::Team)?;
    let teams: BTreeSet<Name> = if let Some(map) = map {
        let known = values.iter().filter_map(|value| map.get(*value));
        known.cloned().collect()
    } else {
        let names = values.iter().map(|value| value.parse::<Name>().ok());
        names.collect::<Option<_>>().ok_or(Refused::Team)?
    };
    let mut teams = teams.into_iter();
    match (teams.next(), teams.next()) {
        (Some(team), None) => Ok(team),
        _ => Err(Refused::Team),
    }
}

/// The role: of a member and a team's admin the greater. An auditor is nothing else beside.
fn role(rule: &RoleRule, claims: &Object) -> Result<Role, Refused> {
    let mut roles = BTreeSet::new();
    if let Some((claim, map)) = &rule.claim
        && json::at(claims, claim).is_some()
    {
        let values = texts(claim, claims).ok_or(Refused::Role)?;
        roles.extend(values.iter().filter_map(|value| map.get(*value)).copied());
    }
    if roles.contains(&Role::Auditor) && roles.len() > 1 {
        return Err(Refused::Role);
    }
    roles
        .last()
        .copied()
        .or(rule.otherwise)
        .ok_or(Refused::Role)
}

/// The scopes that a token names: a list, or text with blanks between them (RFC 8693 section 4.2). Without the claim there is none.
fn scopes(claim: &ClaimPath, claims: &Object) -> Result<BTreeSet<Scope>, Refused> {
    if json::at(claims, claim).is_none() {
        return Ok(BTreeSet::new());
    }
    let values = texts(claim, claims).ok_or(Refused::Scope)?;
    let words = values.iter().flat_map(|value| value.split(' '));
    Ok(words.filter_map(|word| word.parse().ok()).collect())
}

/// Text, or a list of nothing but text.
fn texts<'a>(claim: &ClaimPath, claims: &'a Object) -> Option<Vec<&'a str>> {
    match json::at(claims, claim)? {
        Json::Text(text) => Some(vec![text]),
        Json::List(list) if list.len() <= MAX_ENTRIES => list.iter().map(Json::text).collect(),
        _ => None,
    }
}
