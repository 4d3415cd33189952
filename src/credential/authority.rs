//! What sandboxes need of this state when a rule adds something to what they send: the installation's certificate authority, whose key is
//! sealed, and credentials, which are lent to casemated's own connections.

use std::sync::Arc;

use super::{CredentialError, Credentials};
use crate::base::chain::Chain;
use crate::base::clock::Clock;
use crate::base::id::SessionId;
use crate::egress::{Authority, AuthorityError, Lend, Lending, Opener};
use crate::model::name::Name;
use crate::store::{Store, StoreError};
use crate::vault::{Vault, VaultError};

/// Under which name it is sealed.
const KEY: &str = "egress-authority";
/// For what credentials are lent.
const PURPOSE: &str = "egress";

/// There is no authority. Refuse to start.
#[derive(Debug, thiserror::Error)]
pub enum NoAuthority {
    /// The vault refuses.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be made or read.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// The one of this state; made when there is none, or when the one that there is comes to its end.
///
/// # Errors
/// [`NoAuthority`].
pub async fn open(
    store: &Store,
    vault: &Vault,
    clock: Arc<dyn Clock>,
) -> Result<Arc<Opener>, NoAuthority> {
    let name = store.installation().to_string();
    if let Some(sealed) = store.sealed(KEY).await? {
        let authority = Authority::open(&name, &vault.unseal(KEY, &sealed)?)?;
        if !authority.is_old(clock.now()) {
            return Ok(Arc::new(Opener::new(authority, clock)));
        }
    }
    let made = Authority::make(&name, clock.now())?;
    store.keep_sealed(KEY, vault.seal(KEY, &made)?).await?;
    let authority = Authority::open(&name, &made)?;
    Ok(Arc::new(Opener::new(authority, clock)))
}

/// One that nothing keeps.
///
/// # Errors
/// [`AuthorityError`].
pub fn fleeting(store: &Store, clock: Arc<dyn Clock>) -> Result<Arc<Opener>, AuthorityError> {
    let name = store.installation().to_string();
    let made = Authority::make(&name, clock.now())?;
    let authority = Authority::open(&name, &made)?;
    Ok(Arc::new(Opener::new(authority, clock)))
}

impl Lend for Credentials {
    fn lend<'a>(&'a self, session: SessionId, team: &'a Name, name: &'a Name) -> Lending<'a> {
        Box::pin(async move {
            let purpose: Name = PURPOSE.parse().map_err(|_| "cannot be used".to_owned())?;
            let lent = self.open_inside(session, team, name, &purpose).await;
            lent.map_err(|error| {
                // Whoever is told is in the sandbox: what is wrong with the vault is the operator's.
                tracing::warn!(%session, %team, credential = %name, error = %Chain(&error), "cannot lend a credential");
                match error {
                    CredentialError::NotFound(_) => {
                        "does not exist in the session's team; its admins set it".to_owned()
                    }
                    error => format!("cannot be used ({})", error.code()),
                }
            })
        })
    }
}
