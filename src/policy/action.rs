//! What somebody may want to do, and to what.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::id::SessionId;
use crate::model::grant::Scope;
use crate::model::name::Name;

/// What somebody wants to do.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Make a session for the principal's own team.
    CreateSession,
    /// List the sessions that the principal may see.
    ListSessions,
    /// Look at a session, and at what was recorded of it.
    ReadSession,
    /// Run programs and carry files in a session.
    UseSession,
    /// Reach a port in a session.
    OpenEndpoint,
    /// Make a signed link to a port in a session.
    ShareEndpoint,
    /// Pause, resume, change, or end a session; make tokens for it.
    ChangeSession,
    /// List and look at templates.
    ReadTemplates,
    /// Make, change or remove a template of the principal's own team.
    ChangeTemplates,
    /// List and look at volumes.
    ReadVolumes,
    /// Make or remove a volume of the principal's own team.
    ChangeVolumes,
    /// List the keys of the principal's own team.
    ReadKeys,
    /// Make or revoke a key of the principal's own team.
    ChangeKeys,
    /// List the credentials of the principal's own team, without their values.
    ReadCredentials,
    /// Set or remove a credential of the principal's own team.
    ChangeCredentials,
    /// Read the whole audit log.
    ReadAudit,
    /// Anything at the admin socket.
    Administer,
}

/// Every action, with its name and the scope that it takes. What has none is for operators.
pub const ACTIONS: [(Action, &str, Option<Scope>); 17] = [
    (
        Action::CreateSession,
        "create-session",
        Some(Scope::SessionsWrite),
    ),
    (
        Action::ListSessions,
        "list-sessions",
        Some(Scope::SessionsRead),
    ),
    (
        Action::ReadSession,
        "read-session",
        Some(Scope::SessionsRead),
    ),
    (Action::UseSession, "use-session", Some(Scope::SessionsUse)),
    (
        Action::OpenEndpoint,
        "open-endpoint",
        Some(Scope::SessionsUse),
    ),
    (
        Action::ShareEndpoint,
        "share-endpoint",
        Some(Scope::SessionsUse),
    ),
    (
        Action::ChangeSession,
        "change-session",
        Some(Scope::SessionsWrite),
    ),
    (
        Action::ReadTemplates,
        "read-templates",
        Some(Scope::TemplatesRead),
    ),
    (
        Action::ChangeTemplates,
        "change-templates",
        Some(Scope::TemplatesWrite),
    ),
    (
        Action::ReadVolumes,
        "read-volumes",
        Some(Scope::VolumesRead),
    ),
    (
        Action::ChangeVolumes,
        "change-volumes",
        Some(Scope::VolumesWrite),
    ),
    (Action::ReadKeys, "read-keys", Some(Scope::KeysRead)),
    (Action::ChangeKeys, "change-keys", Some(Scope::KeysWrite)),
    (
        Action::ReadCredentials,
        "read-credentials",
        Some(Scope::CredentialsRead),
    ),
    (
        Action::ChangeCredentials,
        "change-credentials",
        Some(Scope::CredentialsWrite),
    ),
    (Action::ReadAudit, "read-audit", Some(Scope::AuditRead)),
    (Action::Administer, "administer", None),
];

/// The text names no action.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an action is one of {}", ACTIONS.map(|(_, name, _)| name).join(", "))]
pub struct UnknownAction;

impl Action {
    /// The action's name, for rules and the record.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().map_or("", |(_, name, _)| name)
    }

    /// The scope that a client needs for it; `None`: no scope is enough.
    #[must_use]
    pub fn scope(self) -> Option<Scope> {
        self.entry().and_then(|(_, _, scope)| scope)
    }

    fn entry(self) -> Option<(Self, &'static str, Option<Scope>)> {
        ACTIONS.into_iter().find(|(action, ..)| *action == self)
    }
}

impl FromStr for Action {
    type Err = UnknownAction;

    fn from_str(text: &str) -> Result<Self, UnknownAction> {
        let found = ACTIONS.into_iter().find(|(_, name, _)| *name == text);
        found.map(|(action, ..)| action).ok_or(UnknownAction)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What it is to be done to, as far as that decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resource<'a> {
    /// Whose it is, where it is somebody's.
    pub team: Option<&'a Name>,
    /// The session that it is, or is part of.
    pub session: Option<SessionId>,
    /// The template that it is, or was made of, or shall be made of.
    pub template: Option<&'a Name>,
    /// Whether it shall be for other teams too.
    pub is_shared: bool,
}

impl<'a> Resource<'a> {
    /// Something of this team.
    #[must_use]
    pub fn of(team: &'a Name) -> Self {
        Self {
            team: Some(team),
            ..Self::default()
        }
    }

    /// The same, where a template plays a part.
    #[must_use]
    pub const fn template(self, template: &'a Name) -> Self {
        Self {
            template: Some(template),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for (action, name, scope) in ACTIONS {
            assert_eq!((name.parse(), action.name()), (Ok(action), name));
            assert_eq!(serde_json::to_value(action).unwrap(), name);
            assert_eq!(scope.is_none(), action == Action::Administer);
        }
        assert!("Administer".parse::<Action>().is_err());
    }
}
