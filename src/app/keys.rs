//! API keys, tokens of sessions, of others and of operators: who presents one, who may make and revoke them.
//!
//! Keys that were presented lately are kept in memory (`keyring.rs`), so that a request does not wait for the database. A key that
//! is revoked is gone from there before the revocation is answered, and what it opened ends: streams and sockets too.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{App, AppError, Opens};
use crate::base::chain::Chain;
use crate::base::clock::Timestamp;
use crate::base::id::{KeyId, SessionId};
use crate::base::secret::Secret;
use crate::identity::{PresentedKey, jwt, operator};
use crate::model::event::AuditEvent;
use crate::model::grant::{Grant, Role, Scope};
use crate::model::key::ApiKey;
use crate::model::name::Name;
use crate::model::principal::{Client, Principal, Proof};
use crate::policy::{Action, Resource};
use crate::store::KeyInsert;

/// Most valid keys of a team.
pub const MAX_KEYS: u32 = 1000;

/// Most valid tokens of a session.
pub const MAX_TOKENS: u32 = 100;

/// Longest life of a token of a session.
pub const MAX_TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

/// How often a key is read while others are being revoked.
const READS: u32 = 16;

/// How often uses are written down.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// How often the clock is looked at while something waits for a time: it may be set.
const CLOCK_LOOK: Duration = Duration::from_secs(5);

/// How long a token of a session that ran out is kept, for who asks what it was.
const TOKENS_KEPT: Duration = Duration::from_secs(24 * 3600);

/// What a new key shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// What it is for.
    pub name: Name,
    /// The team that it acts for; the principal's own when absent.
    pub team: Option<Name>,
    /// What whoever has it may do at most.
    pub grant: Grant,
    /// From when on it is not valid any more.
    pub expires_at: Option<Timestamp>,
}

impl NewKey {
    /// One of a team, with all that a member may do, until it is revoked.
    #[must_use]
    pub fn member(name: Name, team: Name) -> Self {
        Self {
            name,
            team: Some(team),
            grant: Grant::default(),
            expires_at: None,
        }
    }
}

/// A key that was made: what is kept of it, and its text in both spellings.
pub struct MadeKey {
    /// What is kept.
    pub key: ApiKey,
    /// `cmk_…`.
    pub text: Secret<String>,
    /// The same as `e2b_…`.
    pub e2b: Secret<String>,
}

/// Why there is no such key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// Nobody gives away more than they have.
    #[error(
        "a key cannot be given more than its maker may do, nor last longer; ask for fewer scopes, another role, or an earlier end"
    )]
    Beyond,
    /// Only operators make those.
    #[error("an operator makes auditors, with casemate admin key create")]
    Auditor,
    /// It would never have been valid.
    #[error("its end is not in the future")]
    Over,
    /// A token may not last so long.
    #[error("a token of a session lasts 1 s to 24 h")]
    TokenLife,
    /// There are enough.
    #[error("there are {0} valid ones already; revoke those that nobody uses")]
    TooMany(u32),
    /// There is no such key.
    #[error("there is no such key")]
    NotFound,
}

impl KeyRefusal {
    /// A stable word.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Beyond => "beyond_the_maker",
            Self::Auditor => "auditors_are_made_by_operators",
            Self::Over => "expired",
            Self::TokenLife => "token_life",
            Self::TooMany(_) => "too_many_keys",
            Self::NotFound => "key_not_found",
        }
    }
}

/// Who asks, and for how long that holds.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// Who asks.
    pub principal: Principal,
    /// When it stops to be so.
    pub validity: Validity,
}

/// When a credential stops to be valid.
#[derive(Clone, Debug, Default)]
pub struct Validity {
    /// Cancelled when it is revoked.
    pub revoked: Arc<CancellationToken>,
    /// When it runs out.
    pub expires_at: Option<Timestamp>,
}

impl App {
    /// Who presents this key, or this token of whatever kind.
    ///
    /// # Errors
    /// [`AppError::Unauthenticated`], [`AppError::Store`].
    pub async fn authenticate(&self, presented: &str) -> Result<Authenticated, AppError> {
        if jwt::looks_like_one(presented) {
            return self.by_token(presented).await;
        }
        if Self::is_spelled_like_an_access_token(presented) {
            return self.by_access_token(presented, Opens::Inside);
        }
        if presented.starts_with(operator::PREFIX) {
            return self.by_operator_token(presented);
        }
        let presented = PresentedKey::parse(presented).map_err(|_| AppError::Unauthenticated)?;
        let has_it = |key: &ApiKey| self.0.hasher.matches(&presented, &key.digest);
        let (key, revoked) = self.known_key(presented.id, has_it).await?;
        if !has_it(&key) {
            return Err(AppError::Unauthenticated);
        }
        self.holder(&key, revoked)
    }

    /// Whether a text is spelled like one of our keys: then it is nobody else's business.
    #[must_use]
    pub fn is_spelled_like_a_key(text: &str) -> bool {
        PresentedKey::parse(text).is_ok()
    }

    /// Whether a text is spelled like a JSON web token.
    #[must_use]
    pub fn is_spelled_like_a_token(text: &str) -> bool {
        jwt::looks_like_one(text)
    }

    /// Whoever has the key with this name, where its text was presented before, to us.
    pub(super) async fn by_name_of_key(&self, id: KeyId) -> Result<Authenticated, AppError> {
        let (key, revoked) = self.known_key(id, |_| true).await?;
        self.holder(&key, revoked)
    }

    /// Whoever has this key, if it is valid now.
    fn holder(
        &self,
        key: &ApiKey,
        revoked: Arc<CancellationToken>,
    ) -> Result<Authenticated, AppError> {
        let now = self.now();
        if !key.is_valid(now) {
            return Err(AppError::Unauthenticated);
        }
        if let Some(session) = key.session
            && self.0.sessions.handle(session).is_none()
        {
            // Its session has ended.
            return Err(AppError::Unauthenticated);
        }
        self.0.keys.used(key.id, now);
        Ok(Authenticated {
            principal: Principal::Client(Client {
                by: Proof::Key(key.id),
                team: key.team.clone(),
                grant: key.grant.clone(),
                session: key.session,
            }),
            validity: Validity {
                revoked,
                expires_at: key.expires_at,
            },
        })
    }

    /// Whoever administers from elsewhere.
    fn by_operator_token(&self, presented: &str) -> Result<Authenticated, AppError> {
        let taken = self.0.operators.find(presented, self.now());
        let taken = taken.ok_or(AppError::Unauthenticated)?;
        Ok(Authenticated {
            principal: Principal::Remote { token: taken.mark },
            validity: Validity {
                revoked: taken.over,
                expires_at: taken.until,
            },
        })
    }

    /// Who presents this token. The reason of a refusal is for the log alone.
    async fn by_token(&self, token: &str) -> Result<Authenticated, AppError> {
        let verified = self.0.tokens.authenticate(token, self.now()).await;
        let (client, until) = verified.map_err(|refused| {
            debug!(reason = refused.as_str(), "a token was refused");
            AppError::Unauthenticated
        })?;
        Ok(Authenticated {
            principal: Principal::Client(client),
            validity: Validity {
                revoked: Arc::default(),
                expires_at: Some(until),
            },
        })
    }

    /// The key, from memory or from the store.
    async fn known_key(
        &self,
        id: KeyId,
        has_it: impl Fn(&ApiKey) -> bool,
    ) -> Result<(Arc<ApiKey>, Arc<CancellationToken>), AppError> {
        for _ in 0..READS {
            let revocations = match self.0.keys.find(id) {
                Ok(known) => return Ok(known),
                Err(revocations) => revocations,
            };
            let key = self.0.store.key(id).await;
            let key = key.map_err(AppError::Store)?;
            let key = Arc::new(key.ok_or(AppError::Unauthenticated)?);
            // Only whoever has its secret part makes it take room.
            if !has_it(&key) || key.revoked.is_some() {
                return Err(AppError::Unauthenticated);
            }
            if let Some(revoked) = self.0.keys.remember(Arc::clone(&key), revocations) {
                return Ok((key, revoked));
            }
        }
        Err(AppError::Internal(
            "keys were revoked all the while that one was looked up".to_owned(),
        ))
    }

    /// Makes an API key. Its text is shown here and never again.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn create_key(
        &self,
        principal: &Principal,
        new: NewKey,
    ) -> Result<MadeKey, AppError> {
        let team = match (principal.team(), new.team) {
            (Some(own), None) => own.clone(),
            (_, Some(team)) => team,
            (None, None) => return Err(AppError::denied("keys-belong-to-a-team", "say of which")),
        };
        self.allow(principal, Action::ChangeKeys, &Resource::of(&team))?;
        if new.expires_at.is_some_and(|end| end <= self.now()) {
            return Err(AppError::Key(KeyRefusal::Over));
        }
        self.check_gift(principal, &new.grant, new.expires_at)
            .await?;
        self.make_key(principal, team, new.name, new.grant, None, new.expires_at)
            .await
    }

    /// Makes a token that reaches one session only, for programs in it or a browser. Its text is shown here and never again.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn create_session_token(
        &self,
        principal: &Principal,
        id: SessionId,
        scopes: Option<std::collections::BTreeSet<Scope>>,
        life: Duration,
    ) -> Result<MadeKey, AppError> {
        let session = self.reach(principal, id, Action::ChangeSession).await?;
        if session.ended_at.is_some() {
            return Err(self.ended(id).await);
        }
        if life > MAX_TOKEN_LIFE || life < Duration::from_secs(1) {
            return Err(AppError::Key(KeyRefusal::TokenLife));
        }
        let least = || [Scope::SessionsRead, Scope::SessionsUse].into();
        let grant = Grant {
            role: Role::Member,
            scopes: Some(scopes.unwrap_or_else(least)),
        };
        let end = Some(self.now().after(life));
        self.check_gift(principal, &grant, end).await?;
        let team = session.spec.team.clone();
        let name = "session-token".parse();
        let name = name.map_err(|_| AppError::Internal("a name of ours".to_owned()))?;
        self.make_key(principal, team, name, grant, Some(id), end)
            .await
    }

    /// Nobody gives away more than they have, nor for longer.
    async fn check_gift(
        &self,
        principal: &Principal,
        grant: &Grant,
        end: Option<Timestamp>,
    ) -> Result<(), AppError> {
        let Principal::Client(client) = principal else {
            return Ok(());
        };
        if grant.role == Role::Auditor {
            return Err(AppError::Key(KeyRefusal::Auditor));
        }
        let own_end = match &client.by {
            Proof::Key(id) => {
                let key = self.0.store.key(*id).await.map_err(AppError::Store)?;
                key.and_then(|key| key.expires_at)
            }
            // A token of somebody who signed in is short, and a certificate is renewed; what they make is theirs for longer.
            Proof::Jwt { .. } | Proof::Certificate { .. } | Proof::Access(_) => None,
        };
        let outlives = own_end.is_some_and(|own| end.is_none_or(|end| end > own));
        if outlives || !client.grant.covers(grant) {
            return Err(AppError::Key(KeyRefusal::Beyond));
        }
        Ok(())
    }

    async fn make_key(
        &self,
        principal: &Principal,
        team: Name,
        name: Name,
        grant: Grant,
        session: Option<SessionId>,
        expires_at: Option<Timestamp>,
    ) -> Result<MadeKey, AppError> {
        let now = self.now();
        let internal = |error: &dyn std::error::Error| AppError::Internal(error.to_string());
        let id = KeyId::generate(now).map_err(|error| internal(&error))?;
        let presented = PresentedKey::generate(id).map_err(|error| internal(&error))?;
        let event = AuditEvent::KeyCreate {
            key: id,
            name: name.clone(),
            team: Some(team.clone()),
            role: Some(grant.role),
            scopes: grant.scopes.clone(),
            expires_at,
        };
        let key = ApiKey {
            id,
            name,
            team,
            grant,
            session,
            digest: self.0.hasher.digest(&presented),
            created_at: now,
            created_by: principal.to_string(),
            expires_at,
            revoked: None,
            last_used_at: None,
        };
        let max = session.map_or(MAX_KEYS, |_| MAX_TOKENS);
        let maker = match principal {
            Principal::Client(Client {
                by: Proof::Key(id), ..
            }) => Some(*id),
            _ => None,
        };
        let (store, kept) = (self.0.store.clone(), key.clone());
        let work = async move {
            let kept = store.insert_key(kept, max, maker).await;
            match kept.map_err(AppError::Store)? {
                KeyInsert::Kept => Ok(()),
                KeyInsert::Full => Err(AppError::Key(KeyRefusal::TooMany(max))),
                KeyInsert::NoMaker => Err(AppError::Unauthenticated),
            }
        };
        self.record(principal, session, event, work, |()| None)
            .await?;
        Ok(MadeKey {
            key,
            text: presented.reveal(),
            e2b: presented.reveal_e2b(),
        })
    }

    /// Keys of the principal's team, in the order of their making; an operator sees those of a team, or of all.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn keys(
        &self,
        principal: &Principal,
        team: Option<Name>,
        after: Option<KeyId>,
        limit: u32,
    ) -> Result<Vec<ApiKey>, AppError> {
        let team = principal.team().cloned().or(team);
        let resource = team.as_ref().map(Resource::of).unwrap_or_default();
        self.allow(principal, Action::ReadKeys, &resource)?;
        let mut keys = self.0.store.keys(team, after, limit).await;
        // What was used in the last minute is not written yet.
        if let Ok(keys) = &mut keys {
            for key in keys {
                key.last_used_at = self.0.keys.unwritten(key.id).max(key.last_used_at);
            }
        }
        keys.map_err(AppError::Store)
    }

    /// Revokes a key: once this returns it opens nothing, and what it had opened ends. Revoked already is success.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn revoke_key(&self, principal: &Principal, id: KeyId) -> Result<ApiKey, AppError> {
        let team = principal.team().cloned();
        let resource = team.as_ref().map(Resource::of).unwrap_or_default();
        self.allow(principal, Action::ChangeKeys, &resource)?;
        let not_found = || AppError::Key(KeyRefusal::NotFound);
        let found = self.0.store.key(id).await.map_err(AppError::Store)?;
        let is_own = |key: &ApiKey| team.as_ref().is_none_or(|team| key.team == *team);
        let found = found.filter(is_own).ok_or_else(not_found)?;
        if found.revoked.is_some() {
            return Ok(found);
        }
        let (this, by, at) = (self.clone(), principal.to_string(), self.now());
        let work = async move {
            let revoked = this.0.store.revoke_key(id, team, by, at).await;
            let revoked = revoked.map_err(AppError::Store)?.ok_or_else(not_found)?;
            this.0.keys.revoke(id);
            Ok(revoked)
        };
        let event = AuditEvent::KeyRevoke { key: id };
        self.changed(principal, event, work, |_| None).await
    }

    /// Waits until a credential is not valid any more.
    pub async fn outlives(&self, validity: &Validity) {
        let over = async {
            match validity.expires_at {
                Some(end) => self.until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = validity.revoked.cancelled() => {}
            () = over => {}
        }
    }

    /// Waits until the clock on the wall shows this, however it gets there.
    async fn until(&self, end: Timestamp) {
        loop {
            let left = end.since(self.now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(CLOCK_LOOK)).await;
        }
    }

    /// Writes down when keys were used, and forgets tokens that ran out, until `stop`. What the operator token of before opened ends
    /// so.
    pub async fn keep_keys(&self, stop: CancellationToken) {
        loop {
            let is_end = tokio::select! {
                biased;
                () = stop.cancelled() => true,
                () = tokio::time::sleep(NOTE_EVERY) => false,
            };
            let uses = self.0.keys.take_uses();
            if !uses.is_empty()
                && let Err(error) = self.0.store.note_uses(uses.clone()).await
            {
                warn!(error = %Chain(&error), "cannot note when keys were used");
                self.0.keys.put_back(uses);
            }
            if is_end {
                return;
            }
            self.0.operators.sweep(self.now());
            let kept = i64::try_from(TOKENS_KEPT.as_millis()).unwrap_or(i64::MAX);
            let before = Timestamp::from_millis(self.now().as_millis().saturating_sub(kept));
            if let Err(error) = self.0.store.forget_tokens(before).await {
                warn!(error = %Chain(&error), "cannot forget tokens of sessions");
            }
        }
    }
}
