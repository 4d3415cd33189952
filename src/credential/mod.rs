//! Floor 6: the credentials of teams: set, removed and given out for use, and the rotation of the key that they are under.
//!
//! A value goes in by [`Credentials::put`] and comes out by [`Credentials::open_for_use`] alone, which records the use first. Nothing here
//! shows one to a front door. Uses and puts go on while the key is changed: what is sealed says its generation, and a value that was sealed
//! for another one than the database has by then is sealed again.

#[cfg(test)]
mod tests;

pub mod authority;
pub mod veil;

use std::path::Path;
use std::sync::Arc;

use tokio::sync::{Mutex, oneshot};
use tracing::{error, info};

use crate::audit::{AuditError, AuditLog};
use crate::base::chain::Chain;
use crate::base::clock::Timestamp;
use crate::base::id::SessionId;
use crate::model::credential::{
    BadCredential, Credential, CredentialPlace, CredentialValue, Description,
    MAX_CREDENTIALS_OF_TEAM,
};
use crate::model::event::{AuditEvent, AuditRecord, Stage};
use crate::model::name::Name;
use crate::model::principal::Principal;
use crate::model::template::Precondition;
use crate::store::{CredentialPut, CredentialRemoval, NewCredential, Store, StoreError};
use crate::vault::{EnvelopeError, Vault, VaultError};

/// How often something is tried again because the key was changed meanwhile. Once is what it takes.
const TRIES: usize = 4;

/// The credentials of teams. Cheap to clone.
#[derive(Clone)]
pub struct Credentials(Arc<Parts>);

struct Parts {
    store: Store,
    vault: Vault,
    audit: AuditLog,
    /// One value is set at a time: two of a name would need the same number.
    putting: Mutex<()>,
    /// One rotation at a time.
    rotating: Mutex<()>,
}

/// A value that is to be set.
#[derive(Debug)]
pub struct Wanted {
    /// Whose.
    pub team: Name,
    /// Its name.
    pub name: Name,
    /// The value.
    pub value: CredentialValue,
    /// What is said of it; what was said before where absent.
    pub description: Option<Description>,
    /// Which version the caller believes to change.
    pub precondition: Precondition,
    /// Who asks, as the audit log writes principals.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// A rotation that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// The generation of the new key.
    pub generation: u64,
    /// How much was sealed anew.
    pub sealed: u64,
    /// Where the new key is.
    pub origin: String,
}

/// Why a credential cannot be had, set or removed, or the key not be changed. None says anything of a value.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// There is none of this name in the team.
    #[error("there is no credential {0}")]
    NotFound(String),
    /// It cannot be one.
    #[error(transparent)]
    Invalid(BadCredential),
    /// The version that there is is another.
    #[error("the credential {0} is not what If-Match or If-None-Match says; list it again")]
    Conflict(Name),
    /// The team has so many already.
    #[error("the team has {0} credentials already, which is the most; remove one first")]
    Full(u32),
    /// The key was changed again and again meanwhile. Try again.
    #[error("the vault's key is being changed; try again")]
    Contended,
    /// Somebody rotates already.
    #[error("the vault's key is being changed already; wait for that to end")]
    Rotating,
    /// It does not open.
    #[error(transparent)]
    Envelope(EnvelopeError),
    /// The vault refuses.
    #[error(transparent)]
    Vault(VaultError),
    /// The store refuses.
    #[error("reach the state")]
    Store(#[source] StoreError),
    /// The use cannot be recorded, so there is none.
    #[error("record the use of a credential; nothing was used")]
    Audit(#[source] AuditError),
}

impl CredentialError {
    /// A stable word for programs and for the record.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "credential_not_found",
            Self::Invalid(_) => "invalid_request",
            Self::Conflict(_) => "condition_failed",
            Self::Full(_) => "too_many_credentials",
            Self::Contended | Self::Rotating => "vault_busy",
            Self::Envelope(_) => "credential_damaged",
            Self::Vault(_) => "vault",
            Self::Store(_) => "store",
            Self::Audit(_) => "audit",
        }
    }
}

/// There is no vault for this database. Refuse to start.
#[derive(Debug, thiserror::Error)]
pub enum NoVault {
    /// The vault refuses.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The vault of this database, which then has its veil. Where the database does not say yet which key it has, because it is new or older than that, the key is the one
/// that opens all that is sealed, and it is kept which one that is.
///
/// # Errors
/// [`NoVault`].
pub async fn vault_of(
    store: &Store,
    credentials: Option<&Path>,
    state_dir: &Path,
) -> Result<Vault, NoVault> {
    if let Some(anchor) = store.anchor().await? {
        // What a daemon that was killed had committed may not be on the disk yet, and the old key goes as soon as the new one is believed.
        store.settled_generation().await?;
        let vault = Vault::find(credentials, state_dir, &anchor)?;
        veil::draw(store, &vault).await?;
        return Ok(vault);
    }
    let sealed = store.all_sealed().await?;
    let vault = Vault::open(credentials, state_dir, !sealed.is_empty())?;
    for (name, value) in &sealed {
        vault.unseal(name, value)?;
    }
    store.keep_anchor(vault.anchor()?).await?;
    veil::draw(store, &vault).await?;
    Ok(vault)
}

impl Credentials {
    /// Those of this state.
    #[must_use]
    pub fn new(store: Store, vault: Vault, audit: AuditLog) -> Self {
        Self(Arc::new(Parts {
            store,
            vault,
            audit,
            putting: Mutex::default(),
            rotating: Mutex::default(),
        }))
    }

    /// A team's credentials, by name: everything but their values.
    ///
    /// # Errors
    /// [`CredentialError::Store`].
    pub async fn list(&self, team: Name) -> Result<Vec<Credential>, CredentialError> {
        let found = self.0.store.credentials(team).await;
        found.map_err(CredentialError::Store)
    }

    /// Sets a value. `true` says that there was no credential of this name.
    ///
    /// # Errors
    /// [`CredentialError`]; then the old value stands.
    pub async fn put(&self, wanted: Wanted) -> Result<(Credential, bool), CredentialError> {
        let Parts {
            store,
            vault,
            putting,
            ..
        } = &*self.0;
        let _one = putting.lock().await;
        let (team, name) = (&wanted.team, &wanted.name);
        let mut known = None;
        for _ in 0..TRIES {
            let next = match known.take() {
                Some(next) => next,
                None => store
                    .next_credential(team.clone(), name.clone())
                    .await
                    .map_err(CredentialError::Store)?,
            };
            let place = CredentialPlace {
                team: team.clone(),
                name: name.clone(),
                version: next.version,
            };
            let sealed = match vault.seal_value(next.generation, &place, &wanted.value) {
                Err(EnvelopeError::OtherGeneration(_)) => continue,
                sealed => sealed.map_err(CredentialError::Envelope)?,
            };
            let new = NewCredential {
                place,
                description: wanted
                    .description
                    .as_ref()
                    .map(|text| text.as_str().to_owned()),
                sealed,
                precondition: wanted.precondition.clone(),
                max: MAX_CREDENTIALS_OF_TEAM,
                by: wanted.by.clone(),
                at: wanted.at,
            };
            let put = store.put_credential(new).await;
            match put.map_err(CredentialError::Store)? {
                CredentialPut::Made(credential) => return Ok((credential, true)),
                CredentialPut::Changed(credential) => return Ok((credential, false)),
                CredentialPut::Conflict => return Err(CredentialError::Conflict(wanted.name)),
                CredentialPut::Full => {
                    return Err(CredentialError::Full(MAX_CREDENTIALS_OF_TEAM));
                }
                CredentialPut::Stale(next) => known = Some(next),
            }
        }
        Err(CredentialError::Contended)
    }

    /// Removes a credential; the version that it had.
    ///
    /// # Errors
    /// [`CredentialError`]; then it stands.
    pub async fn remove(
        &self,
        team: Name,
        name: Name,
        precondition: Precondition,
    ) -> Result<u32, CredentialError> {
        let removal = self
            .0
            .store
            .remove_credential(team, name.clone(), precondition);
        match removal.await.map_err(CredentialError::Store)? {
            CredentialRemoval::Removed(version) => Ok(version),
            CredentialRemoval::Missing => Err(CredentialError::NotFound(name.to_string())),
            CredentialRemoval::Conflict => Err(CredentialError::Conflict(name)),
        }
    }

    /// The value of a team's credential, for casemated itself to use: never for a sandbox, an answer or a log. That it is used, by whom, in which
    /// session and for what, is on the disk before the value is given. `purpose` is a word such as `egress`. The caller has asked the
    /// policy. Takes as long as a record and its flush, at most the store's deadline.
    ///
    /// # Errors
    /// [`CredentialError`]; then there is nothing to use.
    pub async fn open_for_use(
        &self,
        by: &Principal,
        session: Option<SessionId>,
        team: &Name,
        name: &Name,
        purpose: &Name,
    ) -> Result<CredentialValue, CredentialError> {
        let audit = &self.0.audit;
        let recorded = |event| audit.record(Stage::Fact, by, session, event);
        self.open(team, name, purpose, recorded).await
    }

    /// The same for what a program in a session does outside of it.
    ///
    /// # Errors
    /// As [`Credentials::open_for_use`].
    pub async fn open_inside(
        &self,
        session: SessionId,
        team: &Name,
        name: &Name,
        purpose: &Name,
    ) -> Result<CredentialValue, CredentialError> {
        let audit = &self.0.audit;
        let recorded = |event| audit.record_inside(Stage::Fact, session, event);
        self.open(team, name, purpose, recorded).await
    }

    async fn open(
        &self,
        team: &Name,
        name: &Name,
        purpose: &Name,
        recorded: impl Fn(AuditEvent) -> Result<AuditRecord, AuditError> + Send + Sync,
    ) -> Result<CredentialValue, CredentialError> {
        let Parts { store, vault, .. } = &*self.0;
        for _ in 0..TRIES {
            let event = AuditEvent::CredentialUse {
                credential: name.clone(),
                team: team.clone(),
                // The store knows it.
                version: 0,
                purpose: purpose.clone(),
            };
            let record = recorded(event).map_err(CredentialError::Audit)?;
            let used = store
                .use_credential(team.clone(), name.clone(), purpose.clone(), record)
                .await
                .map_err(CredentialError::Store)?;
            let (place, sealed) =
                used.ok_or_else(|| CredentialError::NotFound(name.to_string()))?;
            match vault.open_value(&place, &sealed) {
                // Sealed anew since it was read: the next one is under the key that there is.
                Err(EnvelopeError::OtherGeneration(_)) => {}
                opened => return opened.map_err(CredentialError::Envelope),
            }
        }
        Err(CredentialError::Contended)
    }

    /// The generation of the vault's key.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0.vault.generation()
    }

    /// Puts everything that is sealed under another root key, which takes the old one's place. To be run to its end: whoever drops it in the
    /// middle leaves the rest to the next start.
    ///
    /// # Errors
    /// [`CredentialError`]. Nothing is lost on any of them: what is sealed opens with the key that there is, or with the one beside it.
    pub async fn rotate(&self) -> Result<Rotated, CredentialError> {
        let Parts {
            store,
            vault,
            rotating,
            ..
        } = &*self.0;
        let _one = rotating.try_lock().map_err(|_| CredentialError::Rotating)?;
        if vault.is_unsettled() {
            self.settle().await?;
        }
        let beginning = vault.clone();
        let rotation = blocking(move || beginning.begin_rotation()).await?;
        let from = rotation.from();
        let to = match rotation.anchor() {
            Ok(to) => to,
            Err(error) => {
                self.settle().await?;
                return Err(CredentialError::Vault(error));
            }
        };
        let rewrapped = store
            .rewrap(from, to, move |what, sealed| rotation.rewrap(what, sealed))
            .await;
        // What failed may have been kept all the same, or be kept yet: the database says, after all that waits is written.
        let is_new = match (self.settle().await, &rewrapped) {
            (Ok(is_new), _) => is_new,
            (Err(unsettled), Err(error)) => {
                error!(error = %Chain(&unsettled), "cannot find out which key the vault has; both stay");
                info!(error = %Chain(error), "what was before that");
                return Err(unsettled);
            }
            (Err(unsettled), Ok(_)) => return Err(unsettled),
        };
        match rewrapped {
            Err(error) if !is_new => Err(CredentialError::Store(error)),
            rewrapped => Ok(Rotated {
                generation: vault.generation(),
                // Not known where the answer was lost.
                sealed: rewrapped.unwrap_or_default(),
                origin: vault.origin(),
            }),
        }
    }

    /// Ends a rotation as the database says.
    async fn settle(&self) -> Result<bool, CredentialError> {
        let generation = self.0.store.settled_generation().await;
        let generation = generation.map_err(CredentialError::Store)?;
        let vault = self.0.vault.clone();
        blocking(move || vault.settle(generation)).await
    }
}

/// Does what waits for the disk on a thread of its own, where it keeps nobody from running, and waits for its end.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VaultError> + Send + 'static,
) -> Result<T, CredentialError> {
    let (answer, answered) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("vault".to_owned())
        .spawn(move || drop(answer.send(work())));
    // What was begun is not known to be done: the database tells.
    let unsettled = |()| CredentialError::Vault(VaultError::Unsettled);
    thread.map_err(|_| unsettled(()))?;
    let done = answered.await.map_err(|_| unsettled(()))?;
    done.map_err(CredentialError::Vault)
}
