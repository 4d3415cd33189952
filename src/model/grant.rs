//! What a client may do at most: a role, narrowed by scopes. A scope is a verb on a kind of resource; the policy asks for one
//! with each action, and may still deny what a grant would allow.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What somebody is in a team. Operators are no client's role: they come by the admin socket.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Works with the team's sessions, templates and volumes.
    #[default]
    Member,
    /// That, and manages the team's keys and credentials.
    TeamAdmin,
    /// Reads the record, of all teams, and does nothing else. Only an operator makes one.
    Auditor,
}

/// Every role.
pub const ROLES: [Role; 3] = [Role::Member, Role::TeamAdmin, Role::Auditor];

/// A verb on a kind of resource.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Scope {
    /// List and look at sessions, and at what was recorded of one.
    #[serde(rename = "sessions:read")]
    SessionsRead,
    /// Run programs and carry files in sessions, and wake them.
    #[serde(rename = "sessions:use")]
    SessionsUse,
    /// Make, change and end sessions.
    #[serde(rename = "sessions:write")]
    SessionsWrite,
    /// List and look at templates.
    #[serde(rename = "templates:read")]
    TemplatesRead,
    /// Make, change and remove templates of the team.
    #[serde(rename = "templates:write")]
    TemplatesWrite,
    /// List and look at volumes.
    #[serde(rename = "volumes:read")]
    VolumesRead,
    /// Make and remove volumes.
    #[serde(rename = "volumes:write")]
    VolumesWrite,
    /// List the team's API keys.
    #[serde(rename = "keys:read")]
    KeysRead,
    /// Make and revoke API keys of the team.
    #[serde(rename = "keys:write")]
    KeysWrite,
    /// List the names of the team's credentials.
    #[serde(rename = "credentials:read")]
    CredentialsRead,
    /// Set and remove credentials of the team.
    #[serde(rename = "credentials:write")]
    CredentialsWrite,
    /// Read the whole record.
    #[serde(rename = "audit:read")]
    AuditRead,
}

/// Every scope, with its name.
pub const SCOPES: [(Scope, &str); 12] = [
    (Scope::SessionsRead, "sessions:read"),
    (Scope::SessionsUse, "sessions:use"),
    (Scope::SessionsWrite, "sessions:write"),
    (Scope::TemplatesRead, "templates:read"),
    (Scope::TemplatesWrite, "templates:write"),
    (Scope::VolumesRead, "volumes:read"),
    (Scope::VolumesWrite, "volumes:write"),
    (Scope::KeysRead, "keys:read"),
    (Scope::KeysWrite, "keys:write"),
    (Scope::CredentialsRead, "credentials:read"),
    (Scope::CredentialsWrite, "credentials:write"),
    (Scope::AuditRead, "audit:read"),
];

/// The text names no role or no scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is one of {known}")]
pub struct Unknown {
    what: &'static str,
    known: String,
}

impl Role {
    /// Its name, as it is written in requests and settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::TeamAdmin => "team-admin",
            Self::Auditor => "auditor",
        }
    }

    /// What it may do at most.
    #[must_use]
    pub const fn may(self, scope: Scope) -> bool {
        match self {
            Self::Member => !matches!(
                scope,
                Scope::KeysRead | Scope::KeysWrite | Scope::CredentialsWrite | Scope::AuditRead
            ),
            Self::TeamAdmin => !matches!(scope, Scope::AuditRead),
            Self::Auditor => matches!(scope, Scope::AuditRead),
        }
    }
}

impl Scope {
    /// Its name, as it is written in requests and settings.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let found = SCOPES.iter().find(|(scope, _)| *scope == self);
        found.map_or("", |(_, name)| name)
    }
}

impl FromStr for Role {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        let found = ROLES.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| Unknown {
            what: "a role",
            known: ROLES.map(Role::as_str).join(", "),
        })
    }
}

impl FromStr for Scope {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        let found = SCOPES.into_iter().find(|(_, name)| *name == text);
        found.map(|(scope, _)| scope).ok_or_else(|| Unknown {
            what: "a scope",
            known: SCOPES.map(|(_, name)| name).join(", "),
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A role, narrowed to some of its scopes where there are any named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// The role.
    pub role: Role,
    /// Of what the role may do, only this; `None`: all of it.
    pub scopes: Option<BTreeSet<Scope>>,
}

impl Grant {
    /// All that a role may do.
    #[must_use]
    pub const fn whole(role: Role) -> Self {
        Self { role, scopes: None }
    }

    /// Whether it reaches so far.
    #[must_use]
    pub fn may(&self, scope: Scope) -> bool {
        let named = self.scopes.as_ref();
        self.role.may(scope) && named.is_none_or(|scopes| scopes.contains(&scope))
    }

    /// Whether all that `other` may do is in this one: nobody gives away more than they have.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let mut all = SCOPES.iter();
        all.all(|(scope, _)| !other.may(*scope) || self.may(*scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for role in ROLES {
            assert_eq!(role.as_str().parse(), Ok(role));
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
        for (scope, name) in SCOPES {
            assert_eq!((name.parse(), scope.as_str()), (Ok(scope), name));
            assert_eq!(serde_json::to_value(scope).unwrap(), name);
        }
        let error = "root".parse::<Role>().unwrap_err().to_string();
        assert_eq!(error, "a role is one of member, team-admin, auditor");
        assert!("sessions:*".parse::<Scope>().is_err());
    }

    #[test]
    fn scopes_narrow_a_role_and_never_widen_it() {
        let scopes = [Scope::SessionsRead, Scope::KeysWrite].into();
        let narrow = Grant {
            role: Role::Member,
            scopes: Some(scopes),
        };
        assert!(narrow.may(Scope::SessionsRead));
        assert!(!narrow.may(Scope::SessionsWrite) && !narrow.may(Scope::KeysWrite));
        let nothing = Grant {
            role: Role::TeamAdmin,
            scopes: Some(BTreeSet::new()),
        };
        assert!(SCOPES.iter().all(|(scope, _)| !nothing.may(*scope)));
    }

    #[test]
    fn an_auditor_reads_the_record_and_nobody_else_of_a_team_does() {
        for (scope, _) in SCOPES {
            let is_record = scope == Scope::AuditRead;
            assert_eq!(Role::Auditor.may(scope), is_record);
            assert!(!(is_record && (Role::Member.may(scope) || Role::TeamAdmin.may(scope))));
        }
    }

    #[test]
    fn nobody_gives_away_more_than_they_have() {
        let [member, admin, auditor] = ROLES.map(Grant::whole);
        assert!(admin.covers(&member) && admin.covers(&admin) && member.covers(&member));
        assert!(!member.covers(&admin) && !admin.covers(&auditor) && !auditor.covers(&member));
        let narrow = Grant {
            scopes: Some([Scope::SessionsRead].into()),
            ..member.clone()
        };
        assert!(member.covers(&narrow) && !narrow.covers(&member));
    }
}
