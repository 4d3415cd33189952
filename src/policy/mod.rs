//! Floor 2: pure decisions on the nouns. No I/O, no clock; the same question has the same answer.
//!
//! Deny is the default: what no rule allows is denied. Another team's session is answered as if it
//! did not exist, so that nobody can probe for names.

pub mod rate;

use crate::model::name::Name;
use crate::model::principal::Principal;

/// What somebody wants to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a session for the principal's own team.
    CreateSession,
    /// List the sessions that the principal may see.
    ListSessions,
    /// See, use or end a session of this team.
    UseSession {
        /// The session's owner.
        team: Name,
    },
    /// See a template, or make a session of it.
    UseTemplate {
        /// Whether it is for the principal's team.
        is_for_its_team: bool,
    },
    /// Make, change or remove a template of the principal's own team.
    ChangeTemplate {
        /// Whether it is for no other team.
        is_kept_in_team: bool,
    },
    /// See, make or remove a volume of the principal's own team.
    UseVolumes,
    /// Read the whole audit log.
    ReadAudit,
    /// Anything at the admin socket.
    Administer,
}

impl Action {
    /// The action's name, for the record.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CreateSession => "create-session",
            Self::ListSessions => "list-sessions",
            Self::UseSession { .. } => "use-session",
            Self::UseTemplate { .. } => "use-template",
            Self::ChangeTemplate { .. } => "change-template",
            Self::UseVolumes => "use-volumes",
            Self::ReadAudit => "read-audit",
            Self::Administer => "administer",
        }
    }
}

/// The answer, with the rule that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// The rule's name, for the refusal and the record.
    pub rule: &'static str,
    /// Whether the caller must be told that the thing does not exist.
    pub hidden: bool,
}

const fn allow(rule: &'static str) -> Decision {
    Decision {
        allowed: true,
        rule,
        hidden: false,
    }
}

const fn deny(rule: &'static str) -> Decision {
    Decision {
        allowed: false,
        rule,
        hidden: false,
    }
}

/// Decides whether `principal` may do `action`.
#[must_use]
pub fn decide(principal: &Principal, action: &Action) -> Decision {
    match (principal, action) {
        (Principal::Operator { .. }, _) => allow("operators-administer"),
        (Principal::Daemon, _) => allow("casemate-keeps-house"),
        (
            Principal::Client(_),
            Action::CreateSession | Action::ListSessions | Action::UseVolumes,
        ) => allow("members-use-their-team"),
        (Principal::Client(client), Action::UseSession { team }) if client.team == *team => {
            allow("members-use-their-team")
        }
        (Principal::Client(_), Action::UseSession { .. }) => Decision {
            hidden: true,
            ..deny("teams-are-apart")
        },
        (Principal::Client(_), Action::UseTemplate { is_for_its_team }) => {
            if *is_for_its_team {
                allow("templates-are-for-their-teams")
            } else {
                Decision {
                    hidden: true,
                    ..deny("templates-are-for-their-teams")
                }
            }
        }
        // What runs in a team's sessions is that team's word, or the operator's.
        (Principal::Client(_), Action::ChangeTemplate { is_kept_in_team }) => {
            if *is_kept_in_team {
                allow("members-make-their-team-s-templates")
            } else {
                deny("members-make-templates-for-their-own-team-only")
            }
        }
        // Of the whole log; what was recorded of one session is part of using it.
        (Principal::Client(_), Action::ReadAudit | Action::Administer) => {
            deny("only-operators-administer")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::KeyId;
    use crate::model::principal::Client;

    fn key(team: &str) -> Principal {
        let team = team.parse().unwrap();
        Principal::Client(Client::member(KeyId::from_bytes([1; 16]), team))
    }

    #[test]
    fn a_member_uses_its_own_team_s_sessions_only() {
        let of = |team: &str| Action::UseSession {
            team: team.parse().unwrap(),
        };
        assert!(decide(&key("a"), &of("a")).allowed);
        let other = decide(&key("a"), &of("b"));
        assert!(!other.allowed && other.hidden);
    }

    #[test]
    fn a_member_makes_templates_for_its_own_team_and_does_not_see_those_of_others() {
        let change = |is_kept_in_team| Action::ChangeTemplate { is_kept_in_team };
        assert!(decide(&key("a"), &change(true)).allowed);
        let shared = decide(&key("a"), &change(false));
        assert!(!shared.allowed && !shared.hidden);
        let used = |is_for_its_team| Action::UseTemplate { is_for_its_team };
        assert!(decide(&key("a"), &used(true)).allowed);
        let other = decide(&key("a"), &used(false));
        assert!(!other.allowed && other.hidden);
    }

    #[test]
    fn a_member_does_not_administer() {
        for action in [Action::ReadAudit, Action::Administer] {
            assert!(!decide(&key("a"), &action).allowed);
            assert!(decide(&Principal::Operator { uid: 0 }, &action).allowed);
        }
    }
}
