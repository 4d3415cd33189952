//! Where the keys of one issuer come from, and the last ones that came.
//!
//! Keys that are at hand are never waited for. They are asked for anew when they are old, and at once when a token names one
//! that nobody knows: by one task at a time, with a deadline, and not sooner than an interval after the last time, whoever wants it. While
//! they cannot be had, the last ones hold for a bounded time.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::Refused;
use super::fetch::{FetchError, MAX_BYTES, Place};
use super::keys::{Key, KeySet, MAX_SECRET_BYTES, NoKey, Unfit};
use crate::base::chain::Chain;
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::model::issuer::{Algorithm, Issuer, KeySource, KeyTimes};
use crate::model::name::Name;

/// Files are read so often: a new key is in force within this time.
const FILE_TIMES: KeyTimes = KeyTimes {
    max_age: Duration::from_secs(5),
    min_interval: Duration::from_secs(1),
    // Longer than anybody takes to write one anew, and short for one that was taken away.
    stale: Duration::from_secs(60),
};

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file cannot be read.
    #[error("read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Others can change a file, or read a secret.
    #[error("{path} {what}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: &'static str,
    },
    /// The server gives none.
    #[error(transparent)]
    Fetch(FetchError),
    /// What is there cannot be used.
    #[error("what {from} has {what}")]
    Unfit {
        /// The file or the URL.
        from: String,
        /// What is wrong and what to do.
        what: Unfit,
    },
    /// The daemon was started without credentials.
    #[error(
        "there is no credential {0}: give the unit LoadCredential={0}:FILE, or set secret_file"
    )]
    NoCredential(String),
}

enum Kind {
    Pem(PathBuf),
    Secret(PathBuf),
    Jwks(PathBuf),
    Url {
        place: Place,
        url: String,
        ca_file: Option<PathBuf>,
    },
}

/// The keys of one issuer.
pub(super) struct Source {
    issuer: Name,
    kind: Kind,
    algorithms: BTreeSet<Algorithm>,
    times: KeyTimes,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    generation: u64,
    tried_at: Option<Timestamp>,
    running: Option<watch::Receiver<()>>,
    /// Whether the last time failed, which was told.
    failed: bool,
}

#[derive(Clone)]
struct Held {
    keys: Arc<KeySet>,
    digest: [u8; 32],
    generation: u64,
    had_at: Timestamp,
}

impl Source {
    /// Nothing is read yet.
    ///
    /// # Errors
    /// [`SourceError::NoCredential`]; [`SourceError::Unfit`] for a URL that is none.
    pub(super) fn new(issuer: &Issuer, credentials: Option<&Path>) -> Result<Self, SourceError> {
        let (kind, times) = match &issuer.keys {
            KeySource::Pem(path) => (Kind::Pem(path.clone()), FILE_TIMES),
            KeySource::Secret(path) => (Kind::Secret(path.clone()), FILE_TIMES),
            KeySource::Credential(name) => {
                let directory =
                    credentials.ok_or_else(|| SourceError::NoCredential(name.clone()))?;
                (Kind::Secret(directory.join(name)), FILE_TIMES)
            }
            KeySource::JwksFile(path) => (Kind::Jwks(path.clone()), FILE_TIMES),
            KeySource::JwksUrl { url, ca_file } => {
                let place = Place::parse(url).map_err(|what| SourceError::Unfit {
                    from: url.clone(),
                    what,
                })?;
                let kind = Kind::Url {
                    place,
                    url: url.clone(),
                    ca_file: ca_file.clone(),
                };
                (kind, issuer.times)
            }
        };
        Ok(Self {
            issuer: issuer.name.clone(),
            kind,
            algorithms: issuer.algorithms.clone(),
            times,
            state: Mutex::default(),
        })
    }

    /// Reads a file for the first time; of a server nothing is asked.
    pub(super) async fn open(&self, now: Timestamp) -> Result<(), SourceError> {
        if matches!(self.kind, Kind::Url { .. }) {
            return Ok(());
        }
        let (keys, digest) = self.load().await?;
        self.take(keys, digest, now);
        Ok(())
    }

    /// The key for a token that says this of itself, and the generation of keys that it is of. Waits for a server only when no
    /// key at hand fits.
    pub(super) async fn key(
        self: &Arc<Self>,
        kid: Option<&str>,
        algorithm: Algorithm,
        now: Timestamp,
        tasks: &TaskTracker,
    ) -> Result<(Arc<KeySet>, u64), Refused> {
        self.refresh(now, tasks, false);
        let chosen = self.choose(kid, algorithm, now);
        if !matches!(chosen, Err(Refused::UnknownKey | Refused::NoKeys)) {
            return chosen;
        }
        let Some(mut running) = self.refresh(now, tasks, true) else {
            return chosen;
        };
        // Ends with the task, which has a deadline.
        let _ = running.changed().await;
        self.choose(kid, algorithm, now)
    }

    fn choose(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        now: Timestamp,
    ) -> Result<(Arc<KeySet>, u64), Refused> {
        let held = self.held(now).ok_or(Refused::NoKeys)?;
        match held.keys.choose(kid, algorithm) {
            Ok(_) => Ok((held.keys, held.generation)),
            Err(NoKey::Unknown) => Err(Refused::UnknownKey),
            Err(NoKey::Algorithm) => Err(Refused::Algorithm),
            Err(NoKey::Ambiguous) => Err(Refused::AmbiguousKey),
        }
    }

    /// Whether the keys of this generation still hold.
    pub(super) fn is_current(&self, generation: u64, now: Timestamp) -> bool {
        self.held(now)
            .is_some_and(|held| held.generation == generation)
    }

    fn held(&self, now: Timestamp) -> Option<Held> {
        let longest = self.times.stale.max(self.times.max_age);
        let held = self.state().held.clone();
        held.filter(|held| now.since(held.had_at) <= longest)
    }

    /// Asks for keys in a task of its own where that is due, or `wanted`, and may be done. Whoever waits for
    /// the end of what it gives has whatever came of it.
    pub(super) fn refresh(
        self: &Arc<Self>,
        now: Timestamp,
        tasks: &TaskTracker,
        wanted: bool,
    ) -> Option<watch::Receiver<()>> {
        let mut state = self.state();
        if let Some(running) = &state.running {
            return Some(running.clone());
        }
        // A clock that was set back must not put it off until that time comes again.
        let is_past = |at: Timestamp, wait: Duration| now < at || now.since(at) >= wait;
        let had_at = state.held.as_ref().map(|held| held.had_at);
        let is_due = had_at.is_none_or(|at| is_past(at, self.times.max_age));
        let tried_at = state.tried_at;
        let may = tried_at.is_none_or(|at| is_past(at, self.times.min_interval));
        if !may || !(is_due || wanted) {
            return None;
        }
        state.tried_at = Some(now);
        let (done, running) = watch::channel(());
        state.running = Some(running.clone());
        drop(state);
        let this = Arc::clone(self);
        tasks.spawn(async move {
            // Whatever happens in here, the next one may run, and who waits is told.
            let _end = End {
                source: &this,
                _done: done,
            };
            let loaded = this.load().await;
            match loaded {
                Ok((keys, digest)) => this.take(keys, digest, now),
                Err(error) => this.fail(&error),
            }
        });
        Some(running)
    }

    fn take(&self, keys: KeySet, digest: [u8; 32], now: Timestamp) {
        let mut state = self.state();
        let same = state.held.take().filter(|held| held.digest == digest);
        let held = if let Some(held) = same {
            Held {
                had_at: now,
                ..held
            }
        } else {
            state.generation += 1;
            let count = keys.len();
            info!(issuer = %self.issuer, count, "keys of an issuer of tokens were read");
            Held {
                keys: Arc::new(keys),
                digest,
                generation: state.generation,
                had_at: now,
            }
        };
        state.held = Some(held);
        if std::mem::take(&mut state.failed) {
            info!(issuer = %self.issuer, "keys of an issuer of tokens can be had again");
        }
    }

    fn fail(&self, error: &SourceError) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.failed, true) {
            warn!(
                issuer = %self.issuer,
                error = %Chain(error),
                "no keys of an issuer of tokens can be had; the last ones hold for a while"
            );
        }
    }

    async fn load(&self) -> Result<(KeySet, [u8; 32]), SourceError> {
        let unfit = |from: String| move |what| SourceError::Unfit { from, what };
        let of_file = |path: &Path| unfit(path.display().to_string());
        match &self.kind {
            Kind::Secret(path) => {
                let bytes = read(path, MAX_SECRET_BYTES, true).await?;
                let digest = crate::identity::digest(&bytes);
                let key = Key::secret(&Secret::new(bytes.to_vec()));
                let set = key.and_then(|key| KeySet::one(key, &self.algorithms));
                Ok((set.map_err(of_file(path))?, digest))
            }
            Kind::Pem(path) => {
                let bytes = read(path, MAX_BYTES, false).await?;
                let text = std::str::from_utf8(&bytes).map_err(|_| "is not text");
                let set = text
                    .and_then(Key::pem)
                    .and_then(|key| KeySet::one(key, &self.algorithms));
                Ok((set.map_err(of_file(path))?, crate::identity::digest(&bytes)))
            }
            Kind::Jwks(path) => {
                let bytes = read(path, MAX_BYTES, false).await?;
                let set = KeySet::from_jwks(&bytes, &self.algorithms);
                Ok((set.map_err(of_file(path))?, crate::identity::digest(&bytes)))
            }
            Kind::Url {
                place,
                url,
                ca_file,
            } => {
                let bytes = place.fetch(ca_file.as_deref()).await;
                let bytes = bytes.map_err(SourceError::Fetch)?;
                let set = KeySet::from_jwks(&bytes, &self.algorithms);
                let set = set.map_err(unfit(url.clone()))?;
                Ok((set, crate::identity::digest(&bytes)))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of asking, also when it panics or is taken off.
struct End<'a> {
    source: &'a Source,
    _done: watch::Sender<()>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.source.state().running = None;
    }
}

/// A file that nobody can change who should not, and whose secret nobody reads.
async fn read(
    path: &Path,
    max_bytes: usize,
    is_secret: bool,
) -> Result<Zeroizing<Vec<u8>>, SourceError> {
    let failed = |source| SourceError::File {
        path: path.to_owned(),
        source,
    };
    // Before opening: to open a named pipe is to wait for its other end.
    let found = tokio::fs::metadata(path).await.map_err(failed)?;
    if !found.is_file() {
        return Err(failed(std::io::Error::other("it is not a regular file")));
    }
    let mode = found.permissions().mode();
    let what = if is_secret && mode & 0o007 != 0 {
        "can be read by everybody; chmod o= it, and make a new secret if somebody did"
    } else if mode & 0o002 != 0 {
        "can be written by everybody; look at what it says, then chmod o-w"
    } else {
        ""
    };
    if !what.is_empty() {
        let path = path.to_owned();
        return Err(SourceError::Exposed { path, what });
    }
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    // All of it at once: a buffer that grows would leave pieces of a secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(max_bytes + 64));
    let most = max_bytes as u64 + 2;
    file.take(most)
        .read_to_end(&mut bytes)
        .await
        .map_err(failed)?;
    if bytes.len() as u64 == most {
        let problem = std::io::Error::other(format!("it is longer than {max_bytes} bytes"));
        return Err(failed(problem));
    }
    Ok(bytes)
}
