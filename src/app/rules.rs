//! The operator's rules as they hold now: those of files and those of the store, put together when one of them changes.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use super::{App, AppError, KeyRefusal};
use crate::base::clock::Timestamp;
use crate::base::id::{KeyId, SessionId};
use crate::model::event::AuditEvent;
use crate::model::grant::{Grant, Role, Scope};
use crate::model::name::Name;
use crate::model::principal::{Client, Principal, Proof};
use crate::policy::{
    self, Action, Considered, Decision, MAX_RULES, NamedRule, Resource, Rule, RuleProblem, Rules,
};
use crate::store::{RulePut, Store, StoreError};

/// The rules that hold.
#[derive(Debug, Default)]
pub struct RuleBook {
    book: RwLock<Book>,
    /// Whoever changes those of the store; what is in memory is read after it.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Book {
    files: Vec<NamedRule>,
    stored: Vec<NamedRule>,
    all: Arc<Rules>,
}

/// Why a rule is not kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleRefusal {
    /// It says what no rule may say.
    #[error(transparent)]
    Invalid(RuleProblem),
    /// There are enough.
    #[error("there are {MAX_RULES} rules already")]
    Full,
    /// There is no such rule in the store.
    #[error("there is no rule {0} in the store; those of files are changed in the files")]
    NotFound(Name),
    /// A file says what this one is.
    #[error("a file of the configuration has the rule {0}; call this one otherwise")]
    InAFile(Name),
}

impl RuleRefusal {
    /// A stable word.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid_rule",
            Self::Full => "too_many_rules",
            Self::NotFound(_) => "rule_not_found",
            Self::InAFile(_) => "rule_in_a_file",
        }
    }
}

/// Whom a question is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whom {
    /// The key, which says the rest; `None`: somebody with what follows.
    pub key: Option<KeyId>,
    /// The team.
    pub team: Option<Name>,
    /// The role.
    #[serde(default)]
    pub role: Role,
    /// What it is narrowed to.
    pub scopes: Option<BTreeSet<Scope>>,
}

/// What would be decided, and what of the operator's rules was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// What would be decided.
    pub decision: Decision,
    /// Each rule of the operator's.
    pub considered: Vec<Considered>,
}

impl RuleBook {
    /// What holds now.
    #[must_use]
    pub fn rules(&self) -> Arc<Rules> {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&book.all)
    }

    /// Puts other rules in place of those of the files.
    pub fn set_files(&self, files: Vec<NamedRule>) {
        self.change(|book| book.files = files);
    }

    /// Reads those of the store.
    ///
    /// # Errors
    /// [`StoreError`], also when one of them cannot be understood; then what held holds.
    pub async fn read_stored(&self, store: &Store) -> Result<(), StoreError> {
        let stored = store.rules().await?;
        self.change(|book| book.stored = stored);
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut Book)) {
        let mut book = self.book.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut book);
        let all = book.files.iter().chain(&book.stored).cloned();
        book.all = Arc::new(Rules::new(all.collect()));
    }
}

impl App {
    /// Whether the policy would allow it, without anybody being refused.
    pub(super) fn would_allow(&self, principal: &Principal, action: Action) -> bool {
        let rules = self.0.rules.rules();
        policy::decide(&rules, principal, action, &Resource::default(), self.now()).allowed
    }

    /// Every rule of the operator's.
    ///
    /// # Errors
    /// [`AppError`].
    pub fn rules(&self, principal: &Principal) -> Result<Vec<NamedRule>, AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        Ok(self.0.rules.rules().all().to_vec())
    }

    /// Keeps a rule in the store; it holds when this returns.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn put_rule(
        &self,
        principal: &Principal,
        name: Name,
        rule: Rule,
    ) -> Result<(), AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        if let Some(problem) = rule.problems().into_iter().next() {
            return Err(AppError::Rule(RuleRefusal::Invalid(problem)));
        }
        let says = serde_json::to_string(&rule);
        let event = AuditEvent::PolicyPut {
            rule: name.clone(),
            says: says.map_err(|error| AppError::Internal(error.to_string()))?,
        };
        let (this, by, at) = (self.clone(), principal.to_string(), self.now());
        let work = async move {
            let _changing = this.0.rules.changing.lock().await;
            let rules = this.0.rules.rules();
            let mut files = rules.all().iter();
            if files.any(|named| named.origin == policy::Origin::File && named.name == name) {
                return Err(AppError::Rule(RuleRefusal::InAFile(name)));
            }
            let put = this.0.store.put_rule(name, rule, MAX_RULES, by, at).await;
            match put.map_err(AppError::Store)? {
                RulePut::Kept => this.0.rules.read_stored(&this.0.store).await,
                RulePut::Full => return Err(AppError::Rule(RuleRefusal::Full)),
            }
            .map_err(AppError::Store)
        };
        self.changed(principal, event, work, |()| None).await
    }

    /// Removes a rule of the store.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn remove_rule(&self, principal: &Principal, name: Name) -> Result<(), AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        let event = AuditEvent::PolicyRemove { rule: name.clone() };
        let this = self.clone();
        let work = async move {
            let _changing = this.0.rules.changing.lock().await;
            let removed = this.0.store.remove_rule(name.clone()).await;
            if !removed.map_err(AppError::Store)? {
                return Err(AppError::Rule(RuleRefusal::NotFound(name)));
            }
            let read = this.0.rules.read_stored(&this.0.store).await;
            read.map_err(AppError::Store)
        };
        self.changed(principal, event, work, |()| None).await
    }

    /// What would be decided of somebody who wants something, and why.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn explain(
        &self,
        principal: &Principal,
        whom: Whom,
        action: Action,
        resource: (Option<Name>, Option<SessionId>, Option<Name>),
        at: Option<Timestamp>,
    ) -> Result<Explained, AppError> {
        self.allow(principal, Action::Administer, &Resource::default())?;
        let client = match whom.key {
            Some(id) => {
                let key = self.0.store.key(id).await.map_err(AppError::Store)?;
                let key = key.ok_or(AppError::Key(KeyRefusal::NotFound))?;
                Client {
                    by: Proof::Key(id),
                    team: key.team,
                    grant: key.grant,
                    session: key.session,
                }
            }
            None => Client {
                by: Proof::Key(KeyId::from_bytes([0; 16])),
                team: match whom.team {
                    Some(team) => team,
                    None => "default"
                        .parse()
                        .map_err(|_| AppError::Internal("a name of ours".to_owned()))?,
                },
                grant: Grant {
                    role: whom.role,
                    scopes: whom.scopes,
                },
                session: None,
            },
        };
        let (team, session, template) = resource;
        let (mut team, mut template) = (team, template);
        if let Some(id) = session {
            let found = self.0.sessions.get(id).await.map_err(AppError::Session)?;
            team = Some(found.spec.team.clone());
            template = Some(found.spec.template.clone());
        }
        let resource = Resource {
            team: team.as_ref(),
            session,
            template: template.as_ref(),
            is_shared: false,
        };
        let (rules, at) = (self.0.rules.rules(), at.unwrap_or_else(|| self.now()));
        let considered = policy::consider(&rules, &client, action, &resource, at);
        let decision = policy::decide(&rules, &Principal::Client(client), action, &resource, at);
        Ok(Explained {
            decision,
            considered,
        })
    }
}
