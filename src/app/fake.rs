//! An app of which everything is real but the sandboxes and the machine: for tests and measurements of what stands on it.
//!
//! As [`crate::runtime::fake`] it is not behind a switch: what is tested is what is shipped.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};
use tokio_util::task::TaskTracker;

use super::{Accesses, KeyRing, Links, LinksError, Parts, RemoteDesk, Snapshots};
use crate::audit::AuditLog;
use crate::audit::retention::Retention;
use crate::backup::Backups;
use crate::backup::keeper::Parts as BackupParts;
use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::credential::{Credentials, authority, veil};
use crate::egress::AuthorityError;
use crate::endpoint::Pool;
use crate::identity::{HASH_KEY_BYTES, KeyHasher};
use crate::model::settings::{BackupConfig, EndpointsConfig, SessionsConfig, VolumesConfig};
use crate::runtime::fake::FakeRuntime;
use crate::runtime::{RuntimeFacts, SandboxRuntime};
use crate::session::manager::{Parts as SessionParts, Sessions, Settings};
use crate::session::volumes::Volumes;
use crate::store::Store;
use crate::vault::{Vault, VaultError};

/// What an app is made of cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NoParts {
    /// There is no key for links to ports.
    #[error(transparent)]
    Links(#[from] LinksError),
    /// There is no key for what is sealed.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// There is no certificate authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// What an app stands on. What a test does not care for has a default: see [`Ground::new`].
pub struct Ground {
    /// The state.
    pub store: Store,
    /// The record.
    pub audit: AuditLog,
    /// What is sealed.
    pub vault: Vault,
    /// Who tells the time.
    pub clock: Arc<dyn Clock>,
    /// What runs sandboxes.
    pub runtime: Arc<dyn SandboxRuntime>,
    /// Sessions' settings and templates.
    pub settings: Settings,
}

impl Ground {
    /// A ground with a record that nobody signs, without images and templates.
    #[must_use]
    pub fn new(store: Store, vault: Vault, clock: Arc<dyn Clock>) -> Self {
        Self {
            audit: AuditLog::new(store.clone(), Arc::clone(&clock)),
            store,
            vault,
            clock,
            runtime: Arc::new(FakeRuntime::new([])),
            settings: Settings {
                sessions: SessionsConfig::default(),
                templates: BTreeMap::new(),
            },
        }
    }

    /// What an app is made of, with its links, volumes and backups below this directory.
    ///
    /// # Errors
    /// [`NoParts`].
    pub fn parts(self, directory: &Path) -> Result<Parts, NoParts> {
        let Self {
            store,
            audit,
            vault,
            clock,
            runtime,
            settings,
        } = self;
        let volumes = VolumesConfig {
            dir: directory.join("volumes"),
            ..VolumesConfig::default()
        };
        let links = Links::fleeting(&vault)?;
        veil::fleeting(&store, &vault)?;
        let credentials = Credentials::new(store.clone(), vault, audit.clone());
        let sessions = Sessions::new(SessionParts {
            opener: authority::fleeting(&store, Arc::clone(&clock))?,
            lender: Arc::new(credentials.clone()),
            memory: Box::new(|| u64::MAX),
            runtime: Arc::clone(&runtime),
            store: store.clone(),
            audit: audit.clone(),
            clock: Arc::clone(&clock),
            link_root: directory.to_owned(),
            volumes: Volumes::new(volumes, store.installation()),
            settings,
        });
        let backups = Backups::new(BackupParts {
            store: store.clone(),
            audit: audit.clone(),
            runtime: Arc::clone(&runtime),
            clock: Arc::clone(&clock),
            config: BackupConfig::by_hand(directory.join("backups")),
            templates: directory.join("templates"),
            images_of_files: Box::new(BTreeSet::new),
        });
        Ok(Parts {
            sessions,
            credentials,
            retention: Retention::new(audit.clone()),
            store,
            audit,
            runtime,
            facts: RuntimeFacts {
                conmon_version: String::new(),
                podman_version: String::new(),
                runtime_path: String::new(),
                runtime_version: String::new(),
                unenforced_limits: Vec::new(),
                volumes_problem: None,
            },
            hasher: KeyHasher::new(&Secret::new([1; HASH_KEY_BYTES])),
            keys: KeyRing::default(),
            rules: Arc::default(),
            tokens: Arc::default(),
            operators: Arc::default(),
            desk: RemoteDesk::default(),
            pool: Pool::new(EndpointsConfig::default()),
            accesses: Accesses::default(),
            links,
            clock,
            reload: mpsc::channel(1).0,
            calls: TaskTracker::new(),
            snapshots: Snapshots::default(),
            backups,
            readiness: Mutex::new(None),
            examine: Arc::new(|| Box::pin(async { Vec::new() })),
        })
    }
}
